"""Parquet files to Arrow tables and back: readers of whole files or row ranges, writers that tell what they wrote.

Everything read has large string and binary types, at any depth, whatever tool wrote the file: a column of one partition must have the same
type as that of the next, and 2 GiB of text must fit in one chunk. What types become is in `arrow_types`; its public names are found here too.
"""

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from smallpond_mpi.common import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_ROW_GROUP_BYTES,
    DEFAULT_ROW_GROUP_SIZE,
    MAX_PARQUET_FILE_BYTES,
    InvalidArgument,
)
from smallpond_mpi.io.arrow_types import (
    cast_columns_to_large_string,
    concat,
    conform,
    convert_types_to_large_string,
    in_order,
    unify,
)
from smallpond_mpi.io.arrow_types import convert_type_to_large as convert_type_to_large
from smallpond_mpi.io.arrow_types import filter_schema as filter_schema
from smallpond_mpi.io.parquet import (
    FileFacts,
    RowRange,
    arrow_filesystem,
    check_columns,
    map_in_threads,
    open_parquet,
    read_footers,
    row_groups_of,
    translate_arrow,
    without_own_metadata,
)

CODECS_WITH_LEVELS = ("ZSTD", "GZIP", "BROTLI")


def from_numpy(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    """Whole numbers as Arrow's, not copied. pa.array() would load pandas, 0.3 s in each child, to see whether they are a Series."""
    numbers = np.ascontiguousarray(numbers, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])


def as_ranges(
    paths_or_ranges: Sequence[str] | Sequence[RowRange], filesystem: AbstractFileSystem | None = None
) -> list[RowRange]:
    """Row ranges; those of plain paths cover the whole file, whose footer is opened."""
    paths = [item for item in paths_or_ranges if isinstance(item, str)]
    footers = iter(read_footers(paths, filesystem))
    return [RowRange.of_file(next(footers).facts) if isinstance(item, str) else item for item in paths_or_ranges]


def read_range(
    item: RowRange,
    columns: Sequence[str] | None = None,
    filesystem: AbstractFileSystem | None = None,
    use_threads: bool = False,
    by_name: bool = False,
    generated: Sequence[str] = (),
) -> pa.Table:
    """The rows of one range, as large types. Row groups that hold none of them are not read. With `by_name` columns may be missing.

    `generated` columns (of GENERATED_COLUMNS) come last.
    """
    with open_parquet(item.path, filesystem, item.is_promised) as file:
        columns = present(columns, file.schema_arrow, item.path, by_name)
        try:
            groups, skipped = row_groups_of(file, item)
            table = file.read_row_groups(groups, columns, use_threads=use_threads)
        except (pa.ArrowException, OSError) as error:
            raise translate_arrow(error, item.path) from error
    if columns is not None:
        table = table.select(columns)
    table = table.slice(skipped, item.num_rows)
    return add_generated(cast_columns_to_large_string(without_our_notes(table)), item.path, item.begin, generated)


def add_generated(table: pa.Table, path: str, begin: int, generated: Sequence[str]) -> pa.Table:
    """A table with the columns that say where its rows come from: row `begin` and following of a file."""
    for name in generated:
        if name == "filename":
            values: pa.Array = pa.repeat(pa.scalar(path, generated_type(name)), table.num_rows)
        else:
            values = from_numpy(np.arange(begin, begin + table.num_rows))
        table = table.append_column(name, values)
    return table


def present(columns: Sequence[str] | None, schema: pa.Schema, path: str, by_name: bool) -> list[str] | None:
    """The columns to read from a file: all that were asked for, or with `by_name` those that it has."""
    if columns is None:
        return None
    if not by_name:
        check_columns(columns, schema, path)
    return [name for name in columns if name in schema.names]


def without_our_notes(table: pa.Table) -> pa.Table:
    """A table without what this package, or DuckDB for it, noted in the schema of the file it was read from."""
    schema = without_own_metadata(table.schema)
    if schema.equals(table.schema, check_metadata=True):
        return table
    return (
        pa.Table.from_arrays(table.columns, schema=schema)
        if table.num_columns
        else table.replace_schema_metadata(schema.metadata)
    )


def schema_of(
    item: RowRange,
    columns: Sequence[str] | None = None,
    filesystem: AbstractFileSystem | None = None,
    by_name: bool = False,
    generated: Sequence[str] = (),
) -> pa.Schema:
    """The schema that `read_range` gives the rows of a range."""
    with open_parquet(item.path, filesystem, item.is_promised) as file:
        schema = file.schema_arrow
    columns = present(columns, schema, item.path, by_name)
    fields = schema if columns is None else [schema.field(name) for name in columns]
    schema = convert_types_to_large_string(without_own_metadata(pa.schema(fields, metadata=schema.metadata)))
    for name in generated:
        schema = schema.append(pa.field(name, generated_type(name)))
    return schema


def generated_type(name: str) -> pa.DataType:
    """The type of one of GENERATED_COLUMNS."""
    return pa.large_string() if name == "filename" else pa.int64()


def load_ranges(
    ranges: Sequence[RowRange],
    columns: Sequence[str] | None = None,
    max_workers: int = 16,
    filesystem: AbstractFileSystem | None = None,
    by_name: bool = False,
    generated: Sequence[str] = (),
) -> pa.Table:
    """The rows of all ranges, in order: many ranges side by side in threads, a single one by Arrow's own threads."""
    alone = len(ranges) == 1 and max_workers > 1
    tables = map_in_threads(
        lambda item: read_range(item, columns, filesystem, alone, by_name, generated), ranges, max_workers
    )
    return concat([(item.path, table) for item, table in zip(ranges, tables, strict=True)], by_name, columns)


def read_parquet_files_into_table(
    paths_or_ranges: list[str] | list[RowRange],
    columns: list[str] | None = None,
    filesystem: AbstractFileSystem | None = None,
) -> pa.Table:
    """The rows of all files or ranges, read in this thread."""
    return load_ranges(as_ranges(paths_or_ranges, filesystem), columns, 1, filesystem)


def load_from_parquet_files(
    paths_or_ranges: list[str] | list[RowRange],
    columns: list[str] | None = None,
    max_workers: int = 16,
    filesystem: AbstractFileSystem | None = None,
) -> pa.Table:
    """The rows of all files or ranges, read by up to `max_workers` threads."""
    return load_ranges(as_ranges(paths_or_ranges, filesystem), columns, max_workers, filesystem)


def build_batch_reader_from_files(
    paths_or_ranges: list[str] | list[RowRange],
    *,
    columns: list[str] | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    max_batch_byte_size: int | None = None,
    filesystem: AbstractFileSystem | None = None,
) -> pa.RecordBatchReader:
    """A reader of batches of at most `batch_size` rows, and of about `max_batch_byte_size` uncompressed bytes if that is given."""
    ranges = as_ranges(paths_or_ranges, filesystem)
    if max_batch_byte_size is not None:
        rows = max(1, sum(item.num_rows for item in ranges))
        row_bytes = max(1, sum(item.estimated_data_size for item in ranges) // rows)
        batch_size = max(1, min(batch_size, max_batch_byte_size // row_bytes))
    return batch_reader(ranges, columns, batch_size, filesystem)


def batch_reader(
    ranges: Sequence[RowRange],
    columns: Sequence[str] | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    filesystem: AbstractFileSystem | None = None,
    by_name: bool = False,
    generated: Sequence[str] = (),
) -> pa.RecordBatchReader:
    """A reader of batches of at most `batch_size` rows, in order, that holds a row group at a time in memory."""
    if batch_size < 1:
        raise InvalidArgument(f"batch_size must be at least 1, not {batch_size}")
    if not ranges:
        return pa.RecordBatchReader.from_batches(pa.schema([]), [])
    distinct = {item.path: item for item in ranges}.values()
    schemas = [(item.path, schema_of(item, columns, filesystem, by_name, generated)) for item in distinct]
    schema = in_order(unify(schemas, by_name), columns if by_name else None)
    batches = (
        batch
        for item in ranges
        for table in iter_range(item, columns, batch_size, filesystem, by_name, generated)
        for batch in conform(table, schema, item.path).to_batches(batch_size)
    )
    return pa.RecordBatchReader.from_batches(schema, batches)


def iter_range(
    item: RowRange,
    columns: Sequence[str] | None,
    batch_size: int,
    filesystem: AbstractFileSystem | None = None,
    by_name: bool = False,
    generated: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """The rows of one range as tables of at most `batch_size` rows, a row group at a time in memory."""
    with open_parquet(item.path, filesystem, item.is_promised, at_once=False) as file:
        columns = present(columns, file.schema_arrow, item.path, by_name)
        groups, skipped = row_groups_of(file, item)
        begin, left = item.begin, item.num_rows
        batches = file.iter_batches(batch_size, row_groups=groups, columns=columns) if groups else iter(())
        while left > 0:
            try:
                batch = next(batches)
            except (pa.ArrowException, OSError) as error:
                raise translate_arrow(error, item.path) from error
            rows = batch.slice(skipped, left)
            skipped, left = max(0, skipped - batch.num_rows), left - rows.num_rows
            if rows.num_rows:
                table = without_our_notes(pa.Table.from_batches([rows]))
                table = cast_columns_to_large_string(table if columns is None else table.select(columns))
                yield add_generated(table, item.path, begin, generated)
                begin += rows.num_rows


def parquet_write_table(
    table: pa.Table, where: str, filesystem: AbstractFileSystem | None = None, **write_table_args: Any
) -> FileFacts:
    """Write one Parquet file (arguments as those of pyarrow.parquet.write_table) and tell what is in it."""
    codec = write_table_args.get("compression")
    if isinstance(codec, str) and codec.upper() not in CODECS_WITH_LEVELS:
        write_table_args.pop("compression_level", None)
    written: list[pq.FileMetaData] = []
    pq.write_table(
        table, where, filesystem=arrow_filesystem(filesystem), metadata_collector=written, **write_table_args
    )
    return facts_of_written(str(where), written[0], filesystem)


def facts_of_written(path: str, metadata: pq.FileMetaData, filesystem: AbstractFileSystem | None = None) -> FileFacts:
    """What a writer knows of a file that it has just closed."""
    num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    file_bytes = os.path.getsize(path) if filesystem is None else filesystem.size(path)
    return FileFacts(path, metadata.num_rows, num_bytes, file_bytes)


def dump_to_parquet_files(
    table: pa.Table,
    output_dir: str,
    filename: str = "data",
    compression: str | None = "ZSTD",
    compression_level: int | None = 3,
    row_group_size: int = DEFAULT_ROW_GROUP_SIZE,
    row_group_bytes: int = DEFAULT_ROW_GROUP_BYTES,
    use_dictionary: bool = False,
    max_workers: int = 16,
    filesystem: AbstractFileSystem | None = None,
) -> list[FileFacts]:
    """Write a table as `{filename}-{i}.parquet`, as many files as hold MAX_PARQUET_FILE_BYTES each; returns the facts of each."""
    num_files = max(1, min(math.ceil(table.nbytes / MAX_PARQUET_FILE_BYTES), max(1, table.num_rows)))
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    rows_a_group = max(1, min(row_group_size, row_group_bytes // row_bytes))
    rows_a_file = math.ceil(table.num_rows / num_files)

    def write(index: int) -> FileFacts:
        return parquet_write_table(
            table.slice(index * rows_a_file, rows_a_file),
            os.path.join(output_dir, f"{filename}-{index}.parquet"),
            filesystem,
            compression=compression,
            compression_level=compression_level,
            row_group_size=rows_a_group,
            use_dictionary=use_dictionary,
        )

    if filesystem is None:
        os.makedirs(output_dir, exist_ok=True)
    return map_in_threads(write, range(num_files), max_workers)
