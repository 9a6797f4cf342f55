"""How rows are held on their way through a shuffle, and how they are encoded for those who read them once and soon.

Moving rows to their partitions costs by the byte, so they are made narrow before: texts of few values are numbers into one dictionary a
column, and decimals have as many bytes as they need. What their columns are to readers stands in each file (`Packing.schema`).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from smallpond_mpi.common import MB
from smallpond_mpi.io.arrow import from_numpy
from smallpond_mpi.io.arrow_types import type_within

SAMPLE_ROWS = 4096
SAMPLE_BYTES = 1 * MB
WORTH_COMPRESSING = 0.9
MAX_INT32_DIGITS = 9
MAX_INTEGER_DIGITS = 18
"""Decimals of so many digits are stored as whole numbers of 4 and of 8 bytes."""
MAX_DICTIONARY_BYTES = 1 * MB
"""Beyond it Parquet's writer gives the dictionary up."""


class Packing:
    """Of one task, decided by the first rows it reads.

    Args:
        rows: the first of them.
        rows_a_partition: that a file will hold, about.
    """

    def __init__(self, rows: pa.RecordBatch, rows_a_partition: int) -> None:
        self.schema = widened(rows.schema)
        self.compression = "LZ4" if gets_smaller(rows) else "NONE"
        sample = sample_of(rows)
        self.repeated = repeated_columns(sample, rows_a_partition)
        self.encodings = encodings_of(sample.drop_columns(self.repeated), is_compressed=self.compression != "NONE")
        self._most = rows_a_partition // 4
        self._values: dict[str, pa.Array] = {
            name: sample.column(name).slice(0, 0) for name in self.repeated if _is_text(self.schema.field(name).type)
        }
        self._given_up: set[str] = set()

    def held(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows with numbers in place of texts of few values."""
        names = rows.schema.names
        return _with_columns(
            rows, [self._numbered(name, column) for name, column in zip(names, rows.columns, strict=True)]
        )

    def united(self, batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
        """Rows that were held as one schema, all with the dictionaries as they are now: values were added since."""
        return [self._united(rows) for rows in batches]

    def _numbered(self, name: str, column: pa.Array) -> pa.Array:
        if name not in self._values or name in self._given_up:
            return column
        values = self._values[name]
        numbers = pc.index_in(column, value_set=values)
        if numbers.null_count > column.null_count:
            values = pa.concat_arrays([values, _others(column, values)])
            if len(values) > self._most or values.nbytes > MAX_DICTIONARY_BYTES:
                # The first rows were not like the rest: partitions would have values in their dictionaries of which they have no row.
                self._given_up.add(name)
                return column
            self._values[name] = values
            numbers = pc.index_in(column, value_set=values)
        return pa.DictionaryArray.from_arrays(numbers, values)

    def _united(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        columns = rows.columns
        for name, values in self._values.items():
            index = rows.schema.names.index(name)
            if pa.types.is_dictionary(columns[index].type):
                columns[index] = pa.DictionaryArray.from_arrays(columns[index].indices, values)
        return _with_columns(rows, columns)


def _others(column: pa.Array, values: pa.Array) -> pa.Array:
    """The values of a column that are not among these."""
    found = pc.drop_null(pc.unique(column))
    return found.filter(pc.invert(pc.is_in(found, value_set=values)))


def _with_columns(rows: pa.RecordBatch, columns: list[pa.Array]) -> pa.RecordBatch:
    """Other columns in place of those of a batch, under their names."""
    fields = [field.with_type(column.type) for field, column in zip(rows.schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, rows.schema.metadata))


def widened(schema: pa.Schema) -> pa.Schema:
    """A schema with decimals of 16 bytes in place of narrower ones, at any depth: these are a way to hold them, and no type of the data."""
    return pa.schema([field.with_type(_widened(field.type)) for field in schema], schema.metadata)


def _widened(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    return type_within(kind, _widened)


def gets_smaller(rows: pa.RecordBatch) -> bool:
    """Whether a fast codec is worth its time, judged by the first rows: of random bytes (hashes, keys, compressed images) it is not."""
    row_bytes = max(1, rows.nbytes // max(1, rows.num_rows))
    sample = rows.slice(0, max(1, min(SAMPLE_ROWS, SAMPLE_BYTES // row_bytes))).serialize()
    compressed: bytes = pa.compress(sample, codec="lz4", asbytes=True)
    return len(compressed) < WORTH_COMPRESSING * int(sample.size)


def sample_of(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Some of the rows, from everywhere."""
    step = max(1, rows.num_rows // SAMPLE_ROWS)
    return rows.take(from_numpy(np.arange(0, rows.num_rows, step)))


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
    kind = _widened(column.type)
    if pa.types.is_decimal128(kind) and kind.precision <= MAX_INTEGER_DIGITS:
        column = column.cast(kind)
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
