"""Every row to a partition that follows from its key: what hash and range partitioning share. The kinds differ in what the key says.

    input --read (keyed_rows.py)--> rows, keys --order by partition--> chunks, counts --assemble--> rows by partition --PartitionWriter--> files

A chunk is small enough to be ordered within the processor's caches; the rows of a partition, a slice of each chunk, are put together
without a copy when they are encoded. What is read is held until it fills its share of the memory, then it is written as one batch.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from smallpond_mpi.common import DATA_PARTITION_COLUMN_NAME, DEFAULT_ROW_GROUP_SIZE, MB, ColumnNotFound
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.keyed_rows import KeyedRows, KeyedTask, keyed_rows
from smallpond_mpi.execution.task.output import input_facts, is_unknown, nothing_of, row_group_size, write_errors_told
from smallpond_mpi.execution.task.partition import Inputs, PartitionProducerTask
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.io.packed import Int64s, PackedWriter, PartitionFileWriter, PartitionWriter, WriteOptions
from smallpond_mpi.logical.dataset import PackedPartitions

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

CHUNK_ROWS = 122880
SAMPLE_ROWS = 4096
SAMPLE_BYTES = 1 * MB
WORTH_COMPRESSING = 0.9
MAX_INT32_DIGITS = 9
MAX_INTEGER_DIGITS = 18
"""Decimals of so many digits are stored as whole numbers of 4 and of 8 bytes."""
SLICE_BYTES = 4 * MB
"""Of a partition in a file: enough to be worth a read, 1.5 ms of processor time for 16 columns."""
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

        Not more than that, for memory that is new to a process costs more than files do: 64 partitions of 570 MB in three files instead of
        one took a fifth less of the producer's time, and a fifth more of its readers', who take a quarter of it.
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
                writer = writer or self._writer(batch)
                written += self._write(writer, batch)
                self.add_elapsed_time("output dump time (secs)")
            assert writer is not None, "partition() gives a chunk without rows when there are none"
            self.dataset = PackedPartitions([writer.close()])
        self._check_rows(written, facts.num_rows if facts is not None else written)
        return True

    def _write(self, writer: PartitionWriter, batch: list[Chunk]) -> int:
        """Write a batch and let go of it; returns its rows."""
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

    def _writer(self, first: list[Chunk]) -> PartitionWriter:
        metadata = self.parquet_kv_metadata_str()
        place = (self.runtime_output_abspath, self.output_filename, self.npartitions)
        if self.temp_output and not (self.use_parquet_writer or self.hive_partitioning):
            packed = self._packed_options(first, metadata)
            return PackedWriter(*place, self.dimension, packed)
        options = WriteOptions(
            self.parquet_compression or "NONE",
            self.parquet_compression_level,
            self.parquet_dictionary_encoding,
            row_group_size(self),
            metadata,
        )
        dimension = self.data_partition_column if self.hive_partitioning else self.dimension
        return PartitionFileWriter(*place, dimension, options, self.hive_partitioning)

    def _packed_options(self, first: list[Chunk], metadata: Mapping[str, str]) -> WriteOptions:
        """How a batch is best written for those who read it once and soon, judged by its first rows."""
        codec = "LZ4" if gets_smaller(first[0].rows) else "NONE"
        sample = sample_of(first[0].rows)
        rows_a_partition = sum(chunk.rows.num_rows for chunk in first) // self.npartitions
        repeated = repeated_columns(sample, rows_a_partition)
        encodings = encodings_of(sample.drop_columns(repeated), is_compressed=codec != "NONE")
        return WriteOptions(
            codec,
            use_dictionary=repeated,
            row_group_size=row_group_size(self),
            kv_metadata=metadata,
            encodings=encodings,
        )

    def ordered(self, rows: pa.RecordBatch, keys: pa.Array | None) -> Chunk:
        """Rows ordered by partition, as they are to be written."""
        numbers = self.partitions_of(keys, rows.num_rows)
        counts = np.bincount(numbers, minlength=self.npartitions)
        order = self.order_within(np.argsort(numbers.astype(_smallest(self.npartitions)), kind="stable"), counts)
        return Chunk(self.with_partition_column(rows, numbers).take(pa.array(order)), counts)

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


def gets_smaller(rows: pa.RecordBatch) -> bool:
    """Whether a fast codec is worth its time, judged by the first rows: of random bytes (hashes, keys, compressed images) it is not."""
    row_bytes = max(1, rows.nbytes // max(1, rows.num_rows))
    sample = rows.slice(0, max(1, min(SAMPLE_ROWS, SAMPLE_BYTES // row_bytes))).serialize()
    compressed: bytes = pa.compress(sample, codec="lz4", asbytes=True)
    return len(compressed) < WORTH_COMPRESSING * int(sample.size)


def sample_of(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Some of the rows, from everywhere."""
    step = max(1, rows.num_rows // SAMPLE_ROWS)
    return rows.take(pa.array(range(0, rows.num_rows, step), pa.int64()))


def repeated_columns(sample: pa.RecordBatch, rows_a_partition: int) -> list[str]:
    """The columns that a dictionary makes smaller and much faster to read: those with few values, judged by a sample.

    Few: a third of the sample at most, and a quarter of the rows that a partition has; with more a dictionary is lost work.
    """
    most = min(sample.num_rows // 3, rows_a_partition // 4)
    return [
        name for name, column in zip(sample.schema.names, sample.columns, strict=True) if _is_repeated(column, most)
    ]


def _is_repeated(column: pa.Array, most: int) -> bool:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return True
    if pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        return False
    if not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or _is_text(kind)):
        return False
    return bool(most) and pc.count_distinct(column, mode="all").as_py() <= most


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(kind) or pa.types.is_large_binary(kind))


def encodings_of(sample: pa.RecordBatch, is_compressed: bool) -> dict[str, str]:
    """The columns that Parquet's delta encodings are better for than plain values, and which of them.

    Whole numbers that lie close together are packed into the bits they need: TPC-H's keys, prices and dates take 60% of the bytes that LZ4
    makes of them, half the time to write and three quarters to read. Texts have their lengths apart, which DuckDB reads in half the time;
    that costs more to write unless LZ4 is most of it.
    """
    encodings = {}
    for name, column in zip(sample.schema.names, sample.columns, strict=True):
        if "." in name:
            continue  # Parquet's name of a field of a struct may be the same
        if is_compressed and _is_text(column.type):
            encodings[name] = "DELTA_LENGTH_BYTE_ARRAY"
        elif _is_close_together(column):
            encodings[name] = "DELTA_BINARY_PACKED"
    return encodings


def _is_close_together(column: pa.Array) -> bool:
    """Whether these are whole numbers to Parquet, and three quarters of their bits are enough to tell them apart."""
    kind = column.type
    if pa.types.is_decimal128(kind) and kind.precision <= MAX_INTEGER_DIGITS:
        low, high = (value.as_py() for value in pc.min_max(column).values())
        spread = None if low is None else int((high - low).scaleb(kind.scale))
        width = 32 if kind.precision <= MAX_INT32_DIGITS else 64
    elif pa.types.is_integer(kind) or pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind):
        width = kind.bit_width
        numbers = column if pa.types.is_integer(kind) else column.view(pa.int32() if width == 32 else pa.int64())
        low, high = (value.as_py() for value in pc.min_max(numbers).values())
        spread = None if low is None else high - low
    else:
        return False
    return spread is not None and spread.bit_length() <= width * 3 // 4


def batched(chunks: Iterable[Chunk], max_bytes: int) -> Iterator[list[Chunk]]:
    """Lists of chunks of at least `max_bytes` together, the last one of what is left."""
    held: list[Chunk] = []
    size = 0
    for chunk in chunks:
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
