"""SQL over the inputs, the result written to Parquet by DuckDB itself."""

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import duckdb

from smallpond_mpi.common import (
    DATA_PARTITION_COLUMN_NAME,
    DEFAULT_ROW_GROUP_SIZE,
    INPUT_VIEW_PREFIX,
    InvalidArgument,
    InvalidQuery,
)
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin, rows_for, split_statements
from smallpond_mpi.execution.task.keyed_rows import survives_duckdb
from smallpond_mpi.execution.task.output import (
    copy_dataset,
    copy_to_parquet,
    input_facts,
    is_unknown,
    nothing_of,
    write_errors_told,
    written_dataset,
)
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.logical.dataset import ParquetDataSet, SqlQueryDataSet

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from smallpond_mpi.logical.dataset import DataSet, FileFacts
    from smallpond_mpi.logical.udf import UDFContext

FIELD = re.compile(r"\{([^{}]+)\}")


def format_query(query: str, names: Mapping[str, object]) -> str:
    """A query with `{name}` replaced by what the name stands for.

    A query whose every brace is one of these fields, or doubled as str.format wants it, is formatted as by str.format. In any other query (a
    regular expression, JSON, a struct) only the fields are replaced, and all other braces stay as they are.
    """
    try:
        pieces = list(string.Formatter().parse(query))
    except ValueError:
        pieces = [("", "{", "", "")]
    if all(name is None or (name in names and not spec and not conversion) for _, name, spec, conversion in pieces):
        return "".join(text + ("" if name is None else str(names[name])) for text, name, _, _ in pieces)
    return FIELD.sub(lambda field: str(names.get(field[1], field[0])), query)


class SqlEngineTask(ExecSqlQueryMixin, Task):
    """Runs queries in order, on one connection; the rows of the last one are the output.

    The output is in the order of the query, one file a batch, encoded by all threads: files written by each thread (`per_thread_output`)
    would hold the rows in no order, so that the name only permits what is not done.

    Args:
        sql_queries: `{0}`, `{1}` are the inputs; see `format_query` and `query_names` for what else is replaced.
        udfs: functions that the queries call.
        materialize_output: False leaves the query to whoever reads the output.
        materialize_in_memory: hold the whole result in memory before writing it.
        batched_processing: cut the only input into batches that fit in memory and run the queries for each.
        enable_temp_directory: let DuckDB spill to `temp_abspath` at once; otherwise the first attempt fails with OutOfMemory, and later ones spill.
        cpu_overcommit_ratio, memory_overcommit_ratio: DuckDB's share of the limits.
    """

    memory_overcommit_ratio = 0.9
    # Set where that many first rows of the only input are all that the query gives: they keep their types, of which DuckDB has fewer.
    limit: int | None = None

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: "Sequence[Task] | Dependencies",
        partition_infos: Iterable[PartitionInfo],
        sql_queries: Sequence[str],
        udfs: "Sequence[UDFContext] | None" = None,
        per_thread_output: bool = True,
        materialize_output: bool = True,
        materialize_in_memory: bool = False,
        batched_processing: bool = False,
        enable_temp_directory: bool = False,
        parquet_row_group_size: int = DEFAULT_ROW_GROUP_SIZE,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str | None = "ZSTD",
        parquet_compression_level: int | None = 3,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        gpu_limit: float | None = None,
        memory_limit: int | None = None,
        cpu_overcommit_ratio: float = 1.0,
        memory_overcommit_ratio: float = 0.9,
    ) -> None:
        super().__init__(
            ctx, input_deps, partition_infos, output_name, output_path, cpu_limit or 1, gpu_limit or 0, memory_limit
        )
        if batched_processing and len(self._deps.tasks) != 1:
            raise InvalidArgument(
                f"{self.key}: batched processing needs exactly one input, not {len(self._deps.tasks)}"
            )
        self.sql_queries = [sql_queries] if isinstance(sql_queries, str) else list(sql_queries)
        self._udfs = list(udfs or ())
        self.per_thread_output = per_thread_output
        self.materialize_output = materialize_output
        self.materialize_in_memory = materialize_in_memory
        self.batched_processing = batched_processing
        self.enable_temp_directory = enable_temp_directory
        self.parquet_row_group_size = parquet_row_group_size
        self.parquet_row_group_bytes = 0
        self.parquet_dictionary_encoding = parquet_dictionary_encoding
        self.parquet_compression = parquet_compression
        self.parquet_compression_level = parquet_compression_level
        self.cpu_overcommit_ratio = cpu_overcommit_ratio
        self.memory_overcommit_ratio = memory_overcommit_ratio

    @property
    def udfs(self) -> "Sequence[UDFContext]":
        return self._udfs

    @property
    def self_contained_output(self) -> bool:
        return self.materialize_output or not self._can_be_left_to_readers()

    @property
    def oneline_query(self) -> str:
        """The queries on one line."""
        return "; ".join(" ".join(query.split()) for query in self.sql_queries)

    @property
    def max_batch_size(self) -> int:
        """Bytes of input (uncompressed) a batch: what leaves room for what a query makes of it."""
        return max(1, self.engine_memory // 4)

    def cleanup(self) -> None:
        self.input_view_index = 0
        super().cleanup()

    def run(self) -> bool:
        datasets = list(self.input_datasets)
        if any(is_unknown(dataset) for dataset in datasets) or self.skip_when_any_input_empty:
            self.dataset = nothing_of(self, datasets)
            return True
        if not self.materialize_output and self._can_be_left_to_readers():
            self.dataset = self._left_to_readers(datasets)
            return True
        facts = input_facts(datasets)
        if facts is not None:
            self.perf_metrics["num input rows"] = facts.num_rows
            self.adjust_row_group_size(facts.num_bytes, facts.num_rows)
        if self.limit is not None and isinstance(datasets[0], ParquetDataSet) and not survives_duckdb(datasets[0]):
            self._copy_first_rows(datasets[0], self.limit)
            return True
        written: list[FileFacts] = []
        for index, batch in enumerate(self._batches(datasets)):
            written += self._run_batch(index, batch)
        self.perf_metrics["num output rows"] = sum(file.num_rows for file in written)
        self.dataset = written_dataset(self, written)
        return True

    def _copy_first_rows(self, dataset: ParquetDataSet, limit: int) -> None:
        self.add_elapsed_time()
        with write_errors_told():
            self.dataset = copy_dataset(self, dataset.first_rows(limit), f"{self.output_filename}-0.parquet")
        self.perf_metrics["num output rows"] = self.dataset.num_rows
        self.add_elapsed_time("output dump time (secs)")

    def _batches(self, datasets: "list[DataSet]") -> "Iterable[list[DataSet]]":
        if self.batched_processing and isinstance(datasets[0], ParquetDataSet):
            return [[batch] for batch in datasets[0].partition_by_size(self.max_batch_size)] or [datasets]
        return [datasets]

    def _run_batch(self, batch_index: int, datasets: "list[DataSet]") -> "list[FileFacts]":
        self.add_elapsed_time()
        with self.connection(
            self._queries_on([f"input_{index}" for index in range(len(datasets))], batch_index)
        ) as conn:
            views = self.create_input_views(conn, datasets, queries=self.sql_queries)
            self.add_elapsed_time("input load time (secs)")
            *first, last = self._statements(views, batch_index)
            for statement in first:
                self.exec_query(conn, statement, self.ctx.enable_profiling)
            if self.materialize_in_memory:
                self.exec_query(
                    conn, f"CREATE OR REPLACE TEMP TABLE __result AS (\n{last}\n)", self.ctx.enable_profiling
                )
                last = "FROM __result"
                self.add_elapsed_time("compute time (secs)")
            name = f"{self.output_filename}.{batch_index}" if self.batched_processing else f"{self.output_filename}-0"
            files = copy_to_parquet(self, conn, last, name)
        self.add_elapsed_time("output dump time (secs)" if self.materialize_in_memory else "compute time (secs)")
        return files

    def _statements(self, views: Sequence[str], batch_index: int) -> list[str]:
        """All statements, formatted, in order; the last one gives rows.

        Raises:
            InvalidQuery: one can't be parsed, there is none, or the last one gives no rows.
        """
        statements: list[tuple[str, duckdb.StatementType]] = []
        for query in self._queries_on(views, batch_index):
            statements += split_statements(query)
        if not statements or statements[-1][1] not in (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI):
            raise InvalidQuery(f"the last statement gives no rows to write, it must be a SELECT: {self.oneline_query}")
        return [text for text, _ in statements]

    def _queries_on(self, views: Sequence[str], batch_index: int) -> list[str]:
        """The queries over inputs of these names."""
        return [
            format_query(query, query_names(self, views, batch_index, query_index))
            for query_index, query in enumerate(self.sql_queries)
        ]

    def _can_be_left_to_readers(self) -> bool:
        return len(self.sql_queries) == 1 and not self._udfs and not self.batched_processing

    def _left_to_readers(self, datasets: "list[DataSet]") -> SqlQueryDataSet:
        """The query as a dataset: the inputs' files are read when it is."""
        return SqlQueryDataSet(
            "", partial(build_query, self.sql_queries[0], query_names(self, [], 0, 0), int(self.id), datasets)
        )


def query_names(task: ExecSqlQueryMixin, views: Sequence[str], batch_index: int, query_index: int) -> dict[str, object]:
    """What `{name}` stands for in a query: inputs by number, limits, indices, and the partition along each dimension."""
    return {
        DATA_PARTITION_COLUMN_NAME: 0,
        **task.partition_infos_as_dict,
        "batch_index": batch_index,
        "query_index": query_index,
        "cpu_limit": task.cpu_limit,
        "memory_limit": task.memory_limit,
        "rand_seed": task.rand_seed_uint32,
        "output_filename": task.output_filename,
        **{str(index): view for index, view in enumerate(views)},
    }


def build_query(
    query: str,
    names: dict[str, object],
    number: int,
    datasets: "list[DataSet]",
    conn: duckdb.DuckDBPyConnection,
    filesystem: "AbstractFileSystem | None" = None,
) -> str:
    """The text of a query that was left to its readers, for one reader's connection: its inputs become views of that."""
    views = {}
    for index, dataset in enumerate(datasets):
        view = f"{INPUT_VIEW_PREFIX}_left_{number:06d}_{index:06d}"
        rows = rows_for([query], dataset.sql_query_fragment(filesystem, conn))
        conn.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {rows}")
        views[str(index)] = view
    ((statement, _),) = split_statements(format_query(query, names | views))
    return statement
