"""One partition in order. Memory does not bound it.

What fits several times into the grant is sorted by the keys alone, and the rows are picked in that order as they are written: less than two thirds
of what DuckDB's sort costs, which moves the rows. Anything larger DuckDB sorts in runs, and spills them to the task's scratch directory.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from smallpond_mpi.common import DEFAULT_BATCH_SIZE, DEFAULT_ROW_GROUP_SIZE, InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.engine import translate_duckdb
from smallpond_mpi.execution.task.key_compare import cast_to, compared_as
from smallpond_mpi.execution.task.key_search import order_of
from smallpond_mpi.execution.task.keyed_rows import KeyedTask, keyed_rows, survives_duckdb
from smallpond_mpi.execution.task.output import (
    input_facts,
    is_unknown,
    nothing_of,
    row_group_size,
    tables_of,
    write_errors_told,
    written_dataset,
)
from smallpond_mpi.execution.task.partition import Inputs
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.sort_key import InputKeys, SortKey
from smallpond_mpi.io.arrow import from_numpy
from smallpond_mpi.io.arrow_types import cast_table
from smallpond_mpi.io.parquet import read_footer
from smallpond_mpi.io.partition_writer import WriteOptions, writer_arguments
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.dataset.quoting import quote_names

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet, FileFacts

TIMES_IN_MEMORY = 4
"""How often rows are held at once while they are sorted in memory: as read, in one piece, picked, encoded."""


class SortTask(KeyedTask):
    """The rows of its input, sorted, as one file, whose name sorts as the partition's number does. Columns keep their types.

    Rows that compare equal come in no particular order.
    """

    # The keys as they are of its input, once that is known.
    _keys: InputKeys | None = None
    # What is sorted passes through Arrow on its way to the file, and not all that DuckDB takes does it count.
    memory_overcommit_ratio = 0.5

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
        self._keys = None
        self.enable_temp_directory = False
        self.input_view_index = 0
        super().cleanup()

    def run(self) -> bool:
        dataset = self.input_datasets[0]
        if is_unknown(dataset) or self.skip_when_any_input_empty:
            self.dataset = nothing_of(self, [dataset])
            return True
        facts = input_facts([dataset])
        assert self.memory_limit is not None, "a running task has a memory limit"
        room = self.memory_limit // TIMES_IN_MEMORY
        if facts is not None:
            self.adjust_row_group_size(facts.num_bytes, facts.num_rows)
            self._fit_row_groups_into_memory(facts)
        self.add_elapsed_time()
        with write_errors_told():
            # Once read, rows are as large as they were before they were encoded, or larger.
            may_fit = facts is None or facts.num_bytes <= room
            written = (self._sort_in_memory(dataset, room) if may_fit else None) or self._sort_on_disk(dataset)
        self._check_rows(written.num_rows, written.num_rows if facts is None else facts.num_rows)
        self.dataset = written_dataset(self, [written])
        return True

    def _fit_row_groups_into_memory(self, facts: "FileFacts") -> None:
        """A row group is held while it is filled: with long rows it has fewer of them."""
        row_bytes = max(1, facts.num_bytes // max(1, facts.num_rows))
        assert self.memory_limit is not None, "a running task has a memory limit"
        self.parquet_row_group_size = max(1, min(row_group_size(self), self.memory_limit // 16 // row_bytes))

    def _sort_in_memory(self, dataset: "DataSet", room: int) -> "FileFacts | None":
        """By the keys alone; None if all rows take more than `room` bytes."""
        held = self._read(dataset, room)
        if held is None:
            pa.default_memory_pool().release_unused()  # DuckDB needs it now
            return None
        self.add_elapsed_time("input load time (secs)")
        table, keys = held
        order = order_of(keys)
        self.add_elapsed_time("compute time (secs)")
        step = row_group_size(self)
        tables = (table.take(from_numpy(order[begin : begin + step])) for begin in range(0, len(order), step))
        return self._write(tables, table.schema)

    @property
    def chunk_rows(self) -> int:
        return DEFAULT_BATCH_SIZE

    def key_columns(self, columns: Sequence[str]) -> list[str]:
        self._keys = InputKeys.among(self.sort_keys, columns)
        return self._keys.columns

    def key_expression(self, conn: duckdb.DuckDBPyConnection, names: Sequence[str], types: Sequence[Any]) -> str:
        assert self._keys is not None, "key_columns() was asked before"
        values = self._keys.values(names)
        return self._keys.comparable(cast_to(compared_as(conn, values, names, types), values))

    def _read(self, dataset: "DataSet", room: int) -> tuple[pa.Table, pa.Array] | None:
        """All rows, and the keys that they compare by; None if they take more than `room` bytes."""
        batches: list[pa.RecordBatch] = []
        keys: list[pa.Array] = []
        with closing(keyed_rows(self, dataset)) as rows:
            for batch, key in rows:
                assert key is not None, "there is something to sort by"
                room -= batch.nbytes + key.nbytes
                if room < 0:
                    return None
                batches.append(batch)
                keys.append(key)
        table = pa.Table.from_batches(batches)
        batches.clear()
        return in_one_piece(table), pa.chunked_array(keys).combine_chunks()

    def _sort_on_disk(self, dataset: "DataSet") -> "FileFacts":
        """By DuckDB, as much as the disk holds."""
        self.enable_temp_directory = True
        with self.connection() as conn:
            (view,) = self.create_input_views(conn, [dataset])
            source = conn.sql(f"FROM {view}")
            names, columns, rows = names_in_data(dataset, source.columns), source.columns, view
            if names != columns:
                columns = [f"c{number}" for number in range(len(names))]
                rows = f"(FROM {view}) AS t({quote_names(columns)})"
            keys = InputKeys.among(self.sort_keys, names)
            values = keys.values([columns[names.index(name)] for name in keys.columns])
            terms = keys.order_by(cast_to(compared_as(conn, values, columns, source.types), values))
            query = f"FROM {rows} ORDER BY {terms}"
            try:
                reader = conn.sql(query).to_arrow_reader(min(row_group_size(self), DEFAULT_BATCH_SIZE))
                read = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
                tables = (table.rename_columns(names) for table in tables_of(reader, row_group_size(self)))
                return self._write(tables, types_of(dataset, read))
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                raise translate_duckdb(error, query, [dataset]) from error

    def _write(self, tables: Iterable[pa.Table], schema: pa.Schema) -> "FileFacts":
        """Write tables as row groups of one file."""
        path = os.path.join(self.runtime_output_abspath, f"{self.output_filename}-0.parquet")
        metadata = {**(schema.metadata or {}), **self.parquet_kv_metadata_bytes()}
        options = WriteOptions(
            self.parquet_compression or "NONE", self.parquet_compression_level, self.parquet_dictionary_encoding
        )
        # Of sorted rows statistics are worth something: readers skip what is out of range.
        arguments = {**writer_arguments(options), "write_statistics": True}
        with pq.ParquetWriter(path, schema.with_metadata(metadata), **arguments) as writer:
            for table in tables:
                writer.write_table(cast_table(table, writer.schema), row_group_size=row_group_size(self))
        self.add_elapsed_time("output dump time (secs)")
        return replace(read_footer(path).facts, file_bytes=os.path.getsize(path))

    def _check_rows(self, written: int, expected: int) -> None:
        self.perf_metrics["num input rows"] = expected
        self.perf_metrics["num output rows"] = written
        if written != expected:
            raise RuntimeError(
                f"{self.key} read {expected} rows and wrote {written}: this is a bug, the output is not used"
            )


def in_one_piece(table: pa.Table) -> pa.Table:
    """A table of one chunk a column: picking rows from many would put them together each time. Only one column is held twice at a time."""
    names, columns = table.column_names, table.columns
    del table
    for number, column in enumerate(columns):
        columns[number] = column.combine_chunks()
    return pa.Table.from_arrays(columns, names)


def names_in_data(dataset: "DataSet", columns: Sequence[str]) -> list[str]:
    """What the columns that DuckDB reads are called in the files: of two that differ in case only it calls the second another name.

    Raises:
        InvalidArgument: that can't be said.
    """
    if not isinstance(dataset, ParquetDataSet) or survives_duckdb(dataset):
        return list(columns)
    names = dataset.to_batch_reader().schema.names
    if set(names) == set(columns):
        return list(columns)
    if dataset.union_by_name or len(names) != len(columns):
        raise InvalidArgument(
            f"columns whose names differ in case only can't be sorted, rename them: {', '.join(names)}"
        )
    return list(names)


def types_of(dataset: "DataSet", read: pa.Schema) -> pa.Schema:
    """The schema of a dataset as Arrow reads it, in the order of the columns that DuckDB reads."""
    if not isinstance(dataset, ParquetDataSet) or survives_duckdb(dataset):
        return read
    schema = dataset.to_batch_reader().schema
    return pa.schema([schema.field(name) for name in read.names], metadata=schema.metadata)
