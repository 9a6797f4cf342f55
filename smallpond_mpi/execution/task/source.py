"""Where data comes in: files are named, everything else is written to Parquet once, so that all tasks can read it."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import pyarrow as pa

from smallpond_mpi.common import DEFAULT_ROW_GROUP_SIZE, InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin
from smallpond_mpi.execution.task.output import copy_to_parquet, write_table, written_dataset
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.io.resolve import not_there
from smallpond_mpi.logical.dataset import ArrowTableDataSet, PandasDataSet, ParquetDataSet, SqlQueryDataSet, has_magic

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet, FileFacts

MAX_PATHS_LOOKED_FOR = 1000
"""So many files are looked for before anything runs: it costs a fraction of a second. Of more, the first task that reads finds what is missing."""


_listed: "WeakKeyDictionary[DataSet, tuple[int, bool]]" = WeakKeyDictionary()
"""Whether a dataset of so many paths names them one by one: asked for again and again, and a second's work for a million paths."""


class DataSourceTask(ExecSqlQueryMixin):
    """Its output is a dataset that was given: files as they are, patterns resolved; rows in memory and queries as Parquet."""

    # Read once or twice and gone with the job: a codec that costs next to nothing.
    parquet_compression = "SNAPPY"
    parquet_row_group_size = DEFAULT_ROW_GROUP_SIZE
    memory_overcommit_ratio = 0.9

    def __init__(self, ctx: RuntimeContext, dataset: "DataSet", partition_infos: Iterable[PartitionInfo]) -> None:
        super().__init__(ctx, [], partition_infos)
        # Not `dataset`, which is what an attempt makes and so never travels to it.
        self.source = dataset

    @property
    def exec_on_scheduler(self) -> bool:
        return True

    @property
    def runs_here(self) -> bool:
        """Whether naming the files touches none: they are listed one by one."""
        dataset = self.source
        if isinstance(dataset, (ArrowTableDataSet, PandasDataSet, SqlQueryDataSet)):
            return False
        known = _listed.get(dataset)
        if known is None or known[0] != len(dataset.paths):
            # What is united by name must be opened: which columns it has, all tasks that read a part of it have to know.
            listed = not (
                dataset.union_by_name or getattr(dataset, "recursive", False) or any(map(_may_be_many, dataset.paths))
            )
            known = _listed[dataset] = (len(dataset.paths), listed)
        return known[1]

    def content_stamp(self) -> object:
        return self.source.content_stamp()

    def check_before_run(self) -> None:
        dataset = self.source
        if isinstance(dataset, (ArrowTableDataSet, PandasDataSet, SqlQueryDataSet)):
            return
        few = len(dataset.absolute_paths) <= MAX_PATHS_LOOKED_FOR
        # What a pattern matches now is what it means to every task of the job.
        files = dataset.resolved_paths if few or not self.runs_here else []
        if few and is_read(self):
            check_files_exist(files)

    def run(self) -> bool:
        dataset = self.source
        if isinstance(dataset, SqlQueryDataSet):
            self.dataset = self._run_query(dataset)
        elif isinstance(dataset, (ArrowTableDataSet, PandasDataSet)):
            self.dataset = self._write(dataset)
        else:
            if not self.runs_here:
                _ = dataset.resolved_paths
            if isinstance(dataset, ParquetDataSet):
                dataset.learn_columns()
            self.dataset = dataset
        return True

    def _write(self, dataset: "ArrowTableDataSet | PandasDataSet") -> "DataSet":
        table = dataset.to_arrow_table()
        if table.num_columns == 0:
            raise InvalidArgument(f"{dataset!r} has no columns")
        try:
            files = write_table(self, table)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InvalidArgument(f"Parquet can't hold {dataset!r}: {error}; its schema:\n{table.schema}") from error
        return self._counted(files)

    def _run_query(self, dataset: "SqlQueryDataSet") -> "DataSet":
        with self.connection(["CREATE TABLE unknown"]) as conn:  # a builder may do anything with the connection
            query = f"SELECT * FROM {dataset.sql_query_fragment(None, conn)}"
            return self._counted(copy_to_parquet(self, conn, query, f"{self.output_filename}-0"))

    def _counted(self, files: "list[FileFacts]") -> "DataSet":
        self.perf_metrics["num output rows"] = sum(file.num_rows for file in files)
        return written_dataset(self, files)


def _may_be_many(path: str) -> bool:
    """Whether only the file system can tell which files a path stands for: patterns, and names that may be directories."""
    return has_magic(path) or ("://" not in path and not os.path.splitext(path)[1])


def is_read(task: Task) -> bool:
    """Whether a task that needs more than the names of this one's files comes after it, or nothing at all (then a user asked for its rows)."""
    seen: set[int] = set()
    stack = [task]
    while stack:
        for group in stack.pop()._groups:
            for dependant in group.dependants:
                if not dependant.runs_here and getattr(dependant, "type", None) != "manifest":
                    return True
                if dependant.runs_here and dependant.id not in seen:
                    seen.add(dependant.id)
                    stack.append(dependant)
    return not task._groups


def check_files_exist(paths: Sequence[str]) -> None:
    """Raise InputNotFound for the first file that is not there. `protocol://` paths are left to whoever reads them."""
    missing = [path for path in paths if "://" not in path and not os.path.exists(path)]
    if missing:
        more = f" (nor do {len(missing) - 1} more of the {len(paths)} files)" if len(missing) > 1 else ""
        raise not_there(missing[0], more)
