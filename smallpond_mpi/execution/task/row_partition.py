"""Every row to a partition that follows from its key: what hash and range partitioning share. The kinds differ in what the key says.

    input --read (keyed_rows.py)--> rows, keys --narrow (packing.py), order by partition--> chunks, counts --assemble--> rows by partition
          --PartitionWriter--> files

A chunk is small enough to be ordered within the processor's caches; the rows of a partition, a slice of each chunk, are put together
without a copy when they are encoded. What is read is held until it fills its share of the memory, then it is written as one batch.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from smallpond_mpi.common import DATA_PARTITION_COLUMN_NAME, DEFAULT_ROW_GROUP_SIZE, MB, ColumnNotFound
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.keyed_rows import KeyedRows, KeyedTask, keyed_rows
from smallpond_mpi.execution.task.output import input_facts, is_unknown, nothing_of, row_group_size, write_errors_told
from smallpond_mpi.execution.task.packing import Packing
from smallpond_mpi.execution.task.partition import Inputs, PartitionProducerTask
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.io.arrow import from_numpy
from smallpond_mpi.io.packed import Int64s
from smallpond_mpi.io.partition_writer import PackedWriter, PartitionFileWriter, PartitionWriter, WriteOptions
from smallpond_mpi.logical.dataset import PackedPartitions

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

CHUNK_ROWS = 122880
SLICE_BYTES = 6 * MB
"""Of a partition in a file, as rows are held: enough to be worth a read, 2 ms of processor time for 16 columns."""
SMALLEST_BATCH_BYTES = 128 * MB
ROWS_A_SLICE = 512
"""Rows that a partition should have of a chunk, on average: a slice costs as much as copying so many."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of the input, ordered by partition and otherwise as they came; counts[p] of them are in partition p."""

    rows: pa.RecordBatch
    counts: Int64s


class RowPartitionTask(KeyedTask, PartitionProducerTask):
    """Base of tasks that send each row to the partition that its key says.

    Args:
        use_parquet_writer, hive_partitioning: a file a partition, as for outputs that have a name or a path, instead of one a producer.
    """

    data_partition_column = DATA_PARTITION_COLUMN_NAME
    # Of the running attempt, once it has read rows that go into packed files.
    _packing: Packing | None = None

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        npartitions: int,
        dimension: str,
        use_parquet_writer: bool = False,
        hive_partitioning: bool = False,
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
            ctx,
            input_deps,
            partition_infos,
            npartitions,
            dimension,
            output_name,
            output_path,
            cpu_limit or 1,
            memory_limit,
        )
        self.use_parquet_writer = use_parquet_writer
        self.hive_partitioning = hive_partitioning
        self.parquet_row_group_size = parquet_row_group_size
        self.parquet_row_group_bytes = 0
        self.parquet_dictionary_encoding = parquet_dictionary_encoding
        self.parquet_compression = parquet_compression
        self.parquet_compression_level = parquet_compression_level

    @property
    def max_batch_size(self) -> int:
        """Bytes of rows (in memory) that are held before they are written, as one file: enough that a partition's slice is worth a read.

        Not more than that, for memory that is new to a process costs time too; but with half of it a shuffle of 64 partitions of 16 columns has twice
        the files, and takes 4% longer.
        No more than a quarter of the memory in any case: what is being read and encoded takes room too.
        """
        return max(1, min(max(self.npartitions * SLICE_BYTES, SMALLEST_BATCH_BYTES), self.engine_memory // 4))

    @property
    def chunk_rows(self) -> int:
        """Rows that are read and ordered at a time: enough for slices of a size worth writing."""
        return max(CHUNK_ROWS, self.npartitions * ROWS_A_SLICE)

    def partition(self, batch_index: int, input_dataset: "DataSet") -> Generator[Chunk, None, None]:
        """Read the input and order it by partition, chunk by chunk; a chunk without rows, for its schema, if there are none."""
        return self.chunks(keyed_rows(self, input_dataset))

    def chunks(self, rows: KeyedRows) -> Generator[Chunk, None, None]:
        """What was read, ordered by partition."""
        with closing(rows):
            for batch, keys in rows:
                yield self.ordered(batch, keys)

    def partitions_of(self, keys: pa.Array | None, num_rows: int) -> Int64s:
        """The partition of each row, by its key (None: there are no key columns)."""
        raise NotImplementedError(f"{type(self).__name__} does not define partitions_of()")

    # the work

    def cleanup(self) -> None:
        self._packing = None
        super().cleanup()

    def rows_to_partition(self) -> "DataSet":
        """What is cut: the first input, unless a kind says otherwise."""
        return self.input_datasets[0]

    def run(self) -> bool:
        dataset = self.rows_to_partition()
        # Not whether any input is empty: split points are none where all keys are equal.
        if is_unknown(dataset) or (self.ctx.skip_task_with_empty_input and dataset.empty):
            return self._set_parts([nothing_of(self, [dataset])] * self.npartitions)
        facts = input_facts([dataset])
        if facts is not None:
            self.adjust_row_group_size(facts.num_bytes, facts.num_rows)
        self.add_elapsed_time()
        written = 0
        writer: PartitionWriter | None = None
        with write_errors_told(), closing(self.partition(0, dataset)) as chunks:
            for batch in batched(chunks, self.max_batch_size):
                self.add_elapsed_time("compute time (secs)")
                writer = writer or self._writer()
                written += self._write(writer, batch)
                self.add_elapsed_time("output dump time (secs)")
            assert writer is not None, "partition() gives a chunk without rows when there are none"
            self.dataset = PackedPartitions([writer.close()])
        self._check_rows(written, facts.num_rows if facts is not None else written)
        return True

    def _write(self, writer: PartitionWriter, batch: list[Chunk]) -> int:
        """Write a batch and let go of it; returns its rows."""
        if self._packing is not None:
            rows = self._packing.united([chunk.rows for chunk in batch])
            batch[:] = [replace(chunk, rows=held) for chunk, held in zip(batch, rows, strict=True)]
        table, counts = assemble(batch)
        batch.clear()
        writer.append(table, counts.tolist())
        return int(table.num_rows)

    def _check_rows(self, written: int, expected: int) -> None:
        self.perf_metrics["num input rows"] = expected
        self.perf_metrics["num output rows"] = written
        if written != expected:
            raise RuntimeError(
                f"{self.key} read {expected} rows and wrote {written}: this is a bug, the output is not used"
            )

    @property
    def is_packed(self) -> bool:
        """Whether the output is one file a producer, for tasks only, and not a file a partition."""
        return self.temp_output and not (self.use_parquet_writer or self.hive_partitioning)

    def _writer(self) -> PartitionWriter:
        metadata = self.parquet_kv_metadata_str()
        place = (self.runtime_output_abspath, self.output_filename, self.npartitions)
        if self._packing is not None:
            options = WriteOptions(
                self._packing.compression,
                use_dictionary=self._packing.repeated,
                row_group_size=row_group_size(self),
                kv_metadata=metadata,
                encodings=self._packing.encodings,
                schema=self._packing.schema,
            )
            return PackedWriter(*place, self.dimension, options)
        options = WriteOptions(
            self.parquet_compression or "NONE",
            self.parquet_compression_level,
            self.parquet_dictionary_encoding,
            row_group_size(self),
            metadata,
        )
        dimension = self.data_partition_column if self.hive_partitioning else self.dimension
        return PartitionFileWriter(*place, dimension, options, self.hive_partitioning)

    def ordered(self, rows: pa.RecordBatch, keys: pa.Array | None) -> Chunk:
        """Rows ordered by partition, as they are to be written."""
        numbers = self.partitions_of(keys, rows.num_rows)
        counts = np.bincount(numbers, minlength=self.npartitions)
        order = self.order_within(np.argsort(numbers.astype(_smallest(self.npartitions)), kind="stable"), counts)
        rows = self.with_partition_column(rows, numbers)
        if self.is_packed:
            self._packing = self._packing or Packing(rows, self._rows_a_partition(rows))
            rows = self._packing.held(rows)
        return Chunk(rows.take(from_numpy(order)), counts)

    def _rows_a_partition(self, first: pa.RecordBatch) -> int:
        """How many rows of a partition a file will hold, about, by the first rows."""
        num_rows: int = first.num_rows
        if num_rows >= self.chunk_rows:
            facts = input_facts([self.rows_to_partition()])
            in_a_batch = self.max_batch_size * num_rows // max(1, first.nbytes)
            num_rows = in_a_batch if facts is None else min(in_a_batch, facts.num_rows)
        return num_rows // self.npartitions

    def order_within(self, order: Any, counts: Int64s) -> Any:
        """The rows in order of their partitions, `counts` of them in each, and as they come within one."""
        return order

    def with_partition_column(self, rows: pa.RecordBatch, numbers: Int64s) -> pa.RecordBatch:
        """The rows as they are written: some kinds add the number of the partition."""
        return rows


def check_columns_are_there(names: Sequence[str], columns: Sequence[str]) -> None:
    """Raise ColumnNotFound for the first key column that is not among the input's."""
    for name in names:
        if name not in columns:
            raise ColumnNotFound(f"no column {name!r} to partition by; the columns: {', '.join(columns)}")


def _smallest(npartitions: int) -> Any:
    """The smallest type that holds partition numbers: those of 16 bits are sorted by radix."""
    return np.uint8 if npartitions <= 1 << 8 else np.uint16 if npartitions <= 1 << 16 else np.uint32


def batched(chunks: Iterable[Chunk], max_bytes: int) -> Iterator[list[Chunk]]:
    """Lists of chunks of one schema, of at least `max_bytes` together unless the schema changes, the last one of what is left."""
    held: list[Chunk] = []
    size = 0
    for chunk in chunks:
        if held and chunk.rows.schema != held[-1].rows.schema:
            yield held
            held, size = [], 0
        held.append(chunk)
        size += chunk.rows.nbytes
        if size >= max_bytes:
            yield held
            held, size = [], 0
    if held:
        yield held


def assemble(chunks: list[Chunk]) -> tuple[pa.Table, Int64s]:
    """The rows of all chunks by partition, as slices of the chunks, and the rows of each partition."""
    counts = np.stack([chunk.counts for chunk in chunks])
    ends = np.cumsum(counts, axis=1)
    pairs: list[list[int]] = np.argwhere(counts.T).tolist()
    parts = [
        chunks[chunk].rows.slice(int(ends[chunk, partition] - counts[chunk, partition]), int(counts[chunk, partition]))
        for partition, chunk in pairs
    ]
    return pa.Table.from_batches(parts, chunks[0].rows.schema), counts.sum(axis=0)
