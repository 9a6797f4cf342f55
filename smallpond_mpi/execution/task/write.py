"""Results as files that other programs read: CSV, JSON, and Parquet in directories by the values of columns."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from smallpond_mpi.common import DEFAULT_ROW_GROUP_SIZE
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin, struct_literal
from smallpond_mpi.execution.task.output import is_unknown
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.io.parquet import read_footer
from smallpond_mpi.logical.dataset import CsvDataSet, DataSet, JsonDataSet, ParquetDataSet
from smallpond_mpi.logical.dataset.quoting import quote_name, quote_text

WrittenFormat = Literal["csv", "json", "parquet"]


class WriteFilesTask(ExecSqlQueryMixin, Task):
    """Writes the rows of its input, in order, as a file of another format, or as Parquet files in directories `column=value/`.

    Args:
        format: csv, json (an object a line), or parquet.
        delim: what stands between the values of a CSV file. header: whether its first line names the columns.
        partition_by: columns whose values name the directories; they are in the paths then, and not in the files.
    """

    memory_overcommit_ratio = 0.9

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: "Sequence[Task] | Dependencies",
        partition_infos: Iterable[PartitionInfo],
        format: WrittenFormat,
        delim: str = ",",
        header: bool = True,
        partition_by: Sequence[str] = (),
        cpu_limit: int = 1,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, partition_infos, cpu_limit=cpu_limit, memory_limit=memory_limit)
        self.format: WrittenFormat = format
        self.delim = delim
        self.header = header
        self.partition_by = list(partition_by)

    def run(self) -> bool:
        (dataset,) = self.input_datasets
        if is_unknown(dataset):
            self.dataset = ParquetDataSet([])
            return True
        self.add_elapsed_time()
        with self.connection() as conn:
            (view,) = self.create_input_views(conn, [dataset])
            relation = conn.sql(f"FROM {view}")
            schema = {name: str(kind) for name, kind in zip(relation.columns, relation.types, strict=True)}
            rows = self.exec_query(conn, self._copy(view), self.ctx.enable_profiling).fetchall()
        self.add_elapsed_time("output dump time (secs)")
        if self.format == "parquet":
            self.perf_metrics["num output rows"] = sum(count for _, count, *_ in rows)
            self.dataset = parquet_files([(str(path), int(size)) for path, _, size, *_ in rows])
        else:
            self.perf_metrics["num output rows"] = sum(count for (count,) in rows)
            self.dataset = self._text_file(schema)
        return True

    @property
    def _path(self) -> str:
        return os.path.join(self.runtime_output_abspath, f"{self.output_filename}-0.{self.format}")

    def _copy(self, view: str) -> str:
        options = self._format_options()
        target = self._path
        if self.partition_by:
            names = ", ".join(map(quote_name, self.partition_by))
            pattern = quote_text(f"{self.output_filename}-{{i}}")
            options += [f"PARTITION_BY ({names})", f"FILENAME_PATTERN {pattern}", "OVERWRITE_OR_IGNORE"]
            target = self.runtime_output_abspath
        return f"COPY (\nFROM {view}\n) TO {quote_text(target)} ({', '.join(options)})"

    def _format_options(self) -> list[str]:
        match self.format:
            case "csv":
                return ["FORMAT CSV", f"DELIMITER {quote_text(self.delim)}", f"HEADER {str(self.header).lower()}"]
            case "json":
                return ["FORMAT JSON"]
            case "parquet":
                metadata = struct_literal(self.parquet_kv_metadata_str())
                return [
                    "FORMAT PARQUET",
                    "COMPRESSION ZSTD",
                    f"KV_METADATA {metadata}",
                    f"ROW_GROUP_SIZE {DEFAULT_ROW_GROUP_SIZE}",
                    "RETURN_STATS",
                ]

    def _text_file(self, schema: dict[str, str]) -> DataSet:
        """The file that was written, read as it was written."""
        dataset: CsvDataSet | JsonDataSet = JsonDataSet([], schema, root_dir=None)
        if self.format == "csv":
            dataset = CsvDataSet([], schema, self.delim, header=self.header, root_dir=None)
        return dataset._of_files([self._path])


def parquet_files(files: list[tuple[str, int]]) -> ParquetDataSet:
    """Files that were written, with their bytes."""
    return ParquetDataSet.of_files([replace(read_footer(path).facts, file_bytes=size) for path, size in sorted(files)])
