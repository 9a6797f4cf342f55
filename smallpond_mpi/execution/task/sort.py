"""One partition in order. Memory does not bound it: DuckDB sorts runs, and spills them to the task's scratch directory."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from smallpond_mpi.common import DEFAULT_ROW_GROUP_SIZE, InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin, translate_duckdb
from smallpond_mpi.execution.task.output import (
    full_disk_told,
    input_facts,
    is_unknown,
    nothing_of,
    parquet_options,
    row_group_size,
    tables_of,
    written_dataset,
)
from smallpond_mpi.execution.task.partition import Inputs
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.row_chunks import survives_duckdb
from smallpond_mpi.execution.task.sort_key import SortKey, order_by
from smallpond_mpi.io.arrow import cast_table
from smallpond_mpi.io.parquet import read_footer
from smallpond_mpi.logical.dataset import ParquetDataSet

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet, FileFacts


class SortTask(ExecSqlQueryMixin):
    """The rows of its input, sorted, as one file, whose name sorts as the partition's number does. Columns keep their types.

    Rows that compare equal come in no particular order.
    """

    enable_temp_directory = True
    # What is sorted passes through Arrow on its way to the file, outside of what DuckDB counts.
    memory_overcommit_ratio = 0.7

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        sort_keys: Sequence[SortKey],
        parquet_row_group_size: int = DEFAULT_ROW_GROUP_SIZE,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str | None = "ZSTD",
        parquet_compression_level: int | None = 3,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, partition_infos, output_name, output_path, cpu_limit or 1, memory_limit=memory_limit
        )
        self.sort_keys = list(sort_keys)
        self.parquet_row_group_size = parquet_row_group_size
        self.parquet_row_group_bytes = 0
        self.parquet_dictionary_encoding = parquet_dictionary_encoding
        self.parquet_compression = parquet_compression
        self.parquet_compression_level = parquet_compression_level

    @property
    def output_filename(self) -> str:
        """Begins with the partition's number: where ids of tasks change between runs of a script, the order of files must not."""
        infos = [info for info in self.partition_infos if not info.is_toplevel or len(self.partition_infos) == 1]
        numbers = "-".join(f"{info.index:0{len(str(info.npartitions - 1))}d}" for info in infos)
        return f"{self.output_name or 'sorted'}-{numbers}-{self.ctx.job_id}.{self.runtime_id}"

    def cleanup(self) -> None:
        self.input_view_index = 0
        super().cleanup()

    def run(self) -> bool:
        dataset = self.input_datasets[0]
        if is_unknown(dataset) or self.skip_when_any_input_empty:
            self.dataset = nothing_of([dataset])
            return True
        facts = input_facts([dataset])
        if facts is not None:
            self.adjust_row_group_size(facts.num_bytes, facts.num_rows)
            self._fit_row_groups_into_memory(facts)
        self.add_elapsed_time()
        with full_disk_told(), self.connection() as conn:
            written = self._write_sorted(conn, dataset)
        self.add_elapsed_time("compute time (secs)")
        self._check_rows(written.num_rows, written.num_rows if facts is None else facts.num_rows)
        self.dataset = written_dataset(self, [written])
        return True

    def _fit_row_groups_into_memory(self, facts: "FileFacts") -> None:
        """A row group is held while it is filled: with long rows it has fewer of them."""
        row_bytes = max(1, facts.num_bytes // max(1, facts.num_rows))
        assert self.memory_limit is not None, "a running task has a memory limit"
        self.parquet_row_group_size = max(1, min(row_group_size(self), self.memory_limit // 16 // row_bytes))

    def _write_sorted(self, conn: duckdb.DuckDBPyConnection, dataset: "DataSet") -> "FileFacts":
        (view,) = self.create_input_views(conn, [dataset])
        columns = conn.sql(f"FROM {view}").columns
        query = f"FROM {view} ORDER BY {order_by([key.among(columns) for key in self.sort_keys], columns)}"
        path = os.path.join(self.runtime_output_abspath, f"{self.output_filename}-0.parquet")
        try:
            reader = conn.sql(query).to_arrow_reader(min(row_group_size(self), DEFAULT_ROW_GROUP_SIZE))
            self._write(reader, path, types_of(dataset, reader.schema))
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise translate_duckdb(error, query, [dataset]) from error
        return replace(read_footer(path).facts, file_bytes=os.path.getsize(path))

    def _write(self, rows: pa.RecordBatchReader, path: str, schema: pa.Schema) -> None:
        metadata = {**(schema.metadata or {}), **self.parquet_kv_metadata_bytes()}
        options = parquet_options(self)
        with pq.ParquetWriter(path, schema.with_metadata(metadata), store_decimal_as_integer=True, **options) as writer:
            for table in tables_of(rows, row_group_size(self)):
                writer.write_table(cast_table(table, writer.schema), row_group_size=row_group_size(self))

    def _check_rows(self, written: int, expected: int) -> None:
        self.perf_metrics["num input rows"] = expected
        self.perf_metrics["num output rows"] = written
        if written != expected:
            raise RuntimeError(
                f"{self.key} read {expected} rows and wrote {written}: this is a bug, the output is not used"
            )


def types_of(dataset: "DataSet", read: pa.Schema) -> pa.Schema:
    """The schema of a dataset as Arrow reads it, in the order of the columns that DuckDB reads.

    Raises:
        InvalidArgument: columns differ in case only, which DuckDB does not tell apart.
    """
    if not isinstance(dataset, ParquetDataSet) or survives_duckdb(dataset):
        return read
    schema = dataset.to_batch_reader().schema
    if set(schema.names) != set(read.names):
        raise InvalidArgument(
            f"columns whose names differ in case only can't be sorted, rename them: {', '.join(schema.names)}"
        )
    return pa.schema([schema.field(name) for name in read.names], metadata=schema.metadata)
