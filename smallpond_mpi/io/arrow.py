"""Parquet files to Arrow tables and back: readers of whole files or row ranges, writers that tell what they wrote.

Everything read has large string and binary types, at any depth, whatever tool wrote the file: a column of one partition must have the same
type as that of the next, and 2 GiB of text must fit in one chunk.
"""

import math
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
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
    SchemaMismatch,
)
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


def convert_type_to_large(type_: pa.DataType) -> pa.DataType:
    """The type with large_string and large_binary in place of every other variable-length string and binary type within it."""
    if pa.types.is_string(type_) or pa.types.is_string_view(type_):
        return pa.large_string()
    if pa.types.is_binary(type_) or pa.types.is_binary_view(type_):
        return pa.large_binary()
    return type_within(type_, convert_type_to_large)


def type_within(type_: pa.DataType, convert: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type whose parts are converted; one without parts as it is."""

    def of_field(field: pa.Field) -> pa.Field:
        return field.with_type(convert(field.type))

    if pa.types.is_dictionary(type_):
        return pa.dictionary(type_.index_type, convert(type_.value_type), type_.ordered)
    if pa.types.is_map(type_):
        return pa.map_(of_field(type_.key_field), of_field(type_.item_field), type_.keys_sorted)
    if pa.types.is_struct(type_):
        return pa.struct([of_field(type_.field(i)) for i in range(type_.num_fields)])
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(of_field(type_.value_field), type_.list_size)
    if pa.types.is_large_list(type_):
        return pa.large_list(of_field(type_.value_field))
    if pa.types.is_list(type_):
        return pa.list_(of_field(type_.value_field))
    return type_


def with_durations_as(schema: pa.Schema, kind: pa.DataType) -> pa.Schema:
    """A schema with another type in place of durations, at any depth."""

    def convert(type_: pa.DataType) -> pa.DataType:
        return kind if pa.types.is_duration(type_) else type_within(type_, convert)

    return pa.schema([field.with_type(convert(field.type)) for field in schema], schema.metadata)


def durations_in_micros(table: pa.Table) -> pa.Table:
    """A table as it is stored: Parquet holds durations as integers, which mean microseconds to SQL, whatever unit they had.

    Raises:
        InvalidArgument: a duration is finer than that, or longer than 292,000 years.
    """
    schema = with_durations_as(table.schema, pa.duration("us"))
    if schema.equals(table.schema):
        return table
    try:
        return cast_table(table, schema)
    except pa.ArrowInvalid as error:
        raise InvalidArgument(f"durations are kept in microseconds, and one can't be: {error}") from error


def durations_as_numbers(table: pa.Table) -> pa.Table:
    """A table as SQL reads it: durations are whole microseconds, where DuckDB would take Arrow's for INTERVALs. Less than one is left out.

    Raises:
        InvalidArgument: a duration is longer than 292,000 years.
    """
    numbers = with_durations_as(table.schema, pa.int64())
    if numbers.equals(table.schema):
        return table
    micros = with_durations_as(table.schema, pa.duration("us"))
    columns = [
        column.cast(field.type, safe=False) if "duration[ns]" in str(column.type) else column
        for column, field in zip(table.columns, micros, strict=True)
    ]
    return cast_table(durations_in_micros(pa.Table.from_arrays(columns, table.column_names)), numbers)


def convert_field(field: pa.Field) -> pa.Field:
    """A field with its type converted, all else kept."""
    return field.with_type(convert_type_to_large(field.type))


def convert_types_to_large_string(schema: pa.Schema) -> pa.Schema:
    """A schema with large string and binary types at any depth; metadata is kept."""
    return pa.schema([convert_field(field) for field in schema], metadata=schema.metadata)


def cast_columns_to_large_string(table: pa.Table) -> pa.Table:
    """A table whose string and binary columns are large ones, at any depth. Columns that are so already are not copied."""
    return cast_table(table, convert_types_to_large_string(table.schema))


def cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table cast column by column, in order, to a schema of the same names."""
    columns = [
        column if column.type == field.type else cast_column(column, field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema) if columns else table.replace_schema_metadata(schema.metadata)


def cast_column(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """A column cast to a type, also where Arrow has no kernel for it (dictionaries)."""
    return pa.chunked_array([cast_array(chunk, type_) for chunk in column.chunks], type_)


def cast_array(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """An array cast to a type, by parts where it holds dictionaries."""
    if values.type == type_:
        return values
    if pa.types.is_dictionary(values.type) and pa.types.is_dictionary(type_):
        indices = values.indices.cast(type_.index_type)
        return pa.DictionaryArray.from_arrays(
            indices, cast_array(values.dictionary, type_.value_type), ordered=type_.ordered
        )
    if is_uuid(type_) and _is_text(values.type):  # as which DuckDB hands UUIDs out
        parsed = [None if text is None else uuid.UUID(text).bytes for text in values.to_pylist()]
        return pa.array(parsed, pa.binary(16)).cast(type_)
    if not _holds_dictionary(values.type):
        return values.cast(type_)
    if pa.types.is_struct(values.type):
        children = [cast_array(values.field(i), type_.field(i).type) for i in range(type_.num_fields)]
        # field(i) honours the offset of a slice but not the parent's validity, which goes in by the mask
        return pa.StructArray.from_arrays(children, fields=list(type_), mask=values.is_null())
    return pa.array(values.to_pylist(), type_)


def is_uuid(type_: pa.DataType) -> bool:
    """Whether a type is Arrow's for UUIDs, or what holds them."""
    return bool(type_.equals(pa.uuid()) or type_.equals(pa.binary(16)))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _holds_dictionary(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return True
    return any(_holds_dictionary(type_.field(i).type) for i in range(type_.num_fields))


def filter_schema(
    schema: pa.Schema, included_cols: list[str] | None = None, excluded_cols: list[str] | None = None
) -> pa.Schema:
    """The fields named in `included_cols` (all, if None) without those in `excluded_cols`, in the schema's order."""
    kept = [
        field
        for field in schema
        if (included_cols is None or field.name in included_cols) and field.name not in (excluded_cols or ())
    ]
    return pa.schema(kept, metadata=schema.metadata)


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


def differing_columns(left: pa.Schema, right: pa.Schema) -> list[str]:
    """Sentences on the columns in which two schemas differ, order of columns aside."""
    here, there = dict(zip(left.names, left.types, strict=True)), dict(zip(right.names, right.types, strict=True))
    found = [f"{name!r} is only in the first" for name in here if name not in there]
    found += [f"{name!r} is only in the second" for name in there if name not in here]
    common = [name for name in here if name in there]
    return found + [f"{name!r} is {here[name]} and {there[name]}" for name in common if here[name] != there[name]]


TYPES_ADVICE = "read what has other types apart, and cast it"
UNION_ADVICE = "union_by_name=True fills missing columns with NULL"


def unify(
    schemas: Sequence[tuple[str, pa.Schema]], by_name: bool = False, advice: str | None = UNION_ADVICE
) -> pa.Schema:
    """One schema for files given as (path, schema): columns of the first file in its order, types wide enough for all.

    Unless `by_name`, all files must have the same columns. Raises SchemaMismatch that names two files and the columns that differ, and gives
    `advice` if one lacks some.
    """
    first_path, first = schemas[0]
    first = unified = convert_types_to_large_string(first)
    for path, schema in schemas[1:]:
        schema = convert_types_to_large_string(schema)
        if schema.equals(first):
            continue
        misfit = not by_name and set(schema.names) != set(first.names)
        try:
            if not misfit:
                unified = pa.unify_schemas([unified, schema.with_metadata(None)], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            misfit = True
        if misfit:
            columns = "; ".join(differing_columns(first, schema))
            lacks = not by_name and set(schema.names) != set(first.names)
            hint = f" ({advice})" if lacks and advice else "" if lacks else f"; {TYPES_ADVICE}"
            raise SchemaMismatch(f"schemas of {first_path!r} and {path!r} differ: {columns}{hint}")
    return unified


def conform(table: pa.Table, schema: pa.Schema, path: str) -> pa.Table:
    """A table of one file as `schema` has it: columns in order and cast, missing ones NULL."""
    if table.schema.equals(schema):
        return table
    columns = []
    for field in schema:
        if field.name not in table.schema.names:
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
            continue
        try:
            columns.append(cast_column(table.column(field.name), field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise SchemaMismatch(f"column {field.name!r} of {path!r} is not {field.type}: {error}") from error
    return pa.Table.from_arrays(columns, schema=schema)


def in_order(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """A schema with the columns that were asked for, as far as it has them, in the order that they were asked for; all others after them."""
    if columns is None or schema.names[: len(columns)] == list(columns):
        return schema
    asked = [name for name in columns if name in schema.names]
    others = [name for name in schema.names if name not in asked]
    return pa.schema([schema.field(name) for name in (*asked, *others)], metadata=schema.metadata)


def concat(
    tables: Sequence[tuple[str, pa.Table]], by_name: bool = False, columns: Sequence[str] | None = None
) -> pa.Table:
    """Tables of several files, given as (path, table), one below the other."""
    if not tables:
        return pa.table({})
    schema = in_order(unify([(path, table.schema) for path, table in tables], by_name), columns if by_name else None)
    return pa.concat_tables([conform(table, schema, path) for path, table in tables])


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
