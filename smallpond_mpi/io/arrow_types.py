"""Which type a column has: large strings, durations as they are stored and as SQL reads them, casts, and one schema for several files.

Nothing is read or written here.
"""

import uuid
from collections.abc import Callable, Sequence

import pyarrow as pa

from smallpond_mpi.common import InvalidArgument, SchemaMismatch


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


def survives_sql(schema: pa.Schema) -> bool:
    """Whether SQL gives values back as it takes them: no durations, which it reads as numbers, no times of a zone of their own, no numbers that
    it has not."""
    changed: list[pa.DataType] = []

    def look(type_: pa.DataType) -> pa.DataType:
        has_zone = pa.types.is_timestamp(type_) and type_.tz not in (None, "UTC")
        if has_zone or pa.types.is_duration(type_) or pa.types.is_float16(type_) or pa.types.is_decimal256(type_):
            changed.append(type_)
        return type_within(type_, look)

    for field in schema:
        look(field.type)
    return not changed


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
