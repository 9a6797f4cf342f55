"""Python functions of rows as functions of Arrow tables: what DataFrame.map and its like run in a child.

The type of a new column is inferred over a whole partition; where the values say nothing (all None) the given schema decides. Columns whose values
a function hands on as they are keep their types.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from smallpond_mpi.common import DEFAULT_BATCH_SIZE, InvalidArgument, SchemaMismatch, WrongReturnType

if TYPE_CHECKING:
    import pyarrow as arrow

    from smallpond_mpi.execution.context import RuntimeContext

Row = dict[str, Any]


@dataclass(frozen=True)
class MapRows:
    """A row of each row."""

    func: Callable[[Row], Row]
    schema: "arrow.Schema | None"

    def __call__(self, ctx: "RuntimeContext", tables: "list[arrow.Table]") -> "arrow.Table":
        return _table_of(tables[0], lambda row: (_row(self.func, self.func(row)),), self.schema)


@dataclass(frozen=True)
class ExplodeRows:
    """Any number of rows of each row."""

    func: Callable[[Row], list[Row]]
    schema: "arrow.Schema | None"

    def __call__(self, ctx: "RuntimeContext", tables: "list[arrow.Table]") -> "arrow.Table":
        def rows_of(row: Row) -> Iterator[Row]:
            found = self.func(row)
            if isinstance(found, (dict, str, bytes)) or not hasattr(found, "__iter__"):
                raise _wrong(self.func, found, "a list of dicts")
            return (_row(self.func, one) for one in found)

        return _table_of(tables[0], rows_of, self.schema)


@dataclass(frozen=True)
class FilterRows:
    """The rows for which a function is true."""

    func: Callable[[Row], bool]
    keeps_columns: ClassVar[bool] = True

    def __call__(self, ctx: "RuntimeContext", tables: "list[arrow.Table]") -> "arrow.Table":
        import pyarrow as arrow

        _check_names(tables[0])
        kept = [
            batch.filter(arrow.array([bool(self.func(row)) for row in batch.to_pylist()], arrow.bool_()))
            for batch in tables[0].to_batches(DEFAULT_BATCH_SIZE)
        ]
        return arrow.Table.from_batches(kept, tables[0].schema)


@dataclass(frozen=True)
class MapBatches:
    """A table of each batch."""

    func: "Callable[[arrow.Table], arrow.Table]"

    def __call__(self, ctx: "RuntimeContext", tables: "list[arrow.Table]") -> "arrow.Table":
        import pyarrow as arrow

        table = self.func(tables[0])
        if not isinstance(table, arrow.Table):
            raise _wrong(self.func, table, "a pyarrow.Table")
        return table


@dataclass(frozen=True)
class ShuffleRows:
    """The rows in an order drawn from the task's own randomness."""

    keeps_columns: ClassVar[bool] = True

    def __call__(self, ctx: "RuntimeContext", tables: "list[arrow.Table]") -> "arrow.Table":
        return tables[0].take(ctx.task.numpy_random_gen.permutation(tables[0].num_rows))


def _check_names(table: "arrow.Table") -> None:
    names = table.schema.names
    if len(set(names)) < len(names):
        twice = ", ".join(dict.fromkeys(name for name in names if names.count(name) > 1))
        raise InvalidArgument(
            f"columns named twice can't be a dict's keys: {twice}; rename them by map(\"a as x, ...\")"
        )


def _table_of(table: "arrow.Table", rows_of: "Callable[[Row], Any]", schema: "arrow.Schema | None") -> "arrow.Table":
    import pyarrow as arrow

    _check_names(table)
    made: list[arrow.Table] = []
    for batch in table.to_batches(DEFAULT_BATCH_SIZE):
        given = batch.to_pylist()
        pairs = [(row, new) for row in given for new in rows_of(row)]
        if pairs and schema is None:
            made.append(_inferred(pairs, table.schema))
        elif pairs:
            made.append(_of_schema([new for _, new in pairs], schema))
    if not made:
        return (schema if schema is not None else arrow.schema([])).empty_table()
    try:
        return arrow.concat_tables(made, promote_options="permissive" if schema is None else "none")
    except arrow.ArrowInvalid as error:
        raise SchemaMismatch(
            f"rows of one partition have types that don't fit together: {error}; give schema="
        ) from error


def _of_schema(rows: list[Row], schema: "arrow.Schema") -> "arrow.Table":
    """Rows as the user says they are."""
    import pyarrow as arrow

    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            columns.append(arrow.array(values, field.type))
        except _unfit() as error:
            raise SchemaMismatch(
                f"what the function returned as {field.name!r} does not fit the schema ({field.type}): {error}; correct the one or the other"
            ) from error
    return arrow.Table.from_arrays(columns, schema=schema)


def _inferred(pairs: list[tuple[Row, Row]], known: "arrow.Schema") -> "arrow.Table":
    """New rows beside those that they were made from, as their values say."""
    import pyarrow as arrow

    # What single rows have besides must not be lost.
    names = list(dict.fromkeys(name for _, row in pairs for name in row))
    if not names:
        raise WrongReturnType(
            "the function returned rows without columns ({}), which can't be kept: leave rows out by filter or flat_map"
        )
    for name in names:
        if not isinstance(name, str):
            raise WrongReturnType(f"the names of columns must be texts, and the function returned {name!r} as one")
    return arrow.table({name: _column(name, pairs, known) for name in names})


def _column(name: str, pairs: list[tuple[Row, Row]], known: "arrow.Schema") -> "arrow.Array":
    """A column of new rows: with the type it had where the function handed its values on, otherwise with what they say.

    Values alone say less than the type they came from: a map is a list of pairs, nanoseconds and the scale of decimals are gone.
    """
    import pyarrow as arrow

    values = [row.get(name) for _, row in pairs]
    before = known.field(name).type if name in known.names else None
    if before is not None and _is_handed_on(name, pairs, values, before):
        with suppress(*_unfit()):
            return arrow.array(values, before)
    try:
        return arrow.array(values)
    except _unfit() as error:
        raise SchemaMismatch(
            f"what the function returned as {name!r} does not fit one type a column: {error}; give schema= if there is one that it fits"
        ) from error


def _is_handed_on(name: str, pairs: list[tuple[Row, Row]], values: list[Any], before: "arrow.DataType") -> bool:
    """Whether the values of a column are those that it had: nested ones may have been changed in place, but must have their shape. Maps, which
    can't do without their type, keep it as long as they have that."""
    is_same = all(new is None or new is old[name] for (old, _), new in zip(pairs, values, strict=True))
    return (is_same or _holds_map(before)) and all(_has_shape(value, before) for value in values)


def _holds_map(type_: "arrow.DataType") -> bool:
    import pyarrow as arrow

    return arrow.types.is_map(type_) or any(_holds_map(type_.field(index).type) for index in range(type_.num_fields))


def _has_shape(value: Any, type_: "arrow.DataType") -> bool:
    """Whether a value's lists, pairs and names of fields are those of a type."""
    import pyarrow as arrow

    if value is None or not arrow.types.is_nested(type_):
        return True
    if arrow.types.is_map(type_):
        pairs = value.items() if isinstance(value, dict) else value
        return isinstance(pairs, Iterable) and all(
            isinstance(pair, tuple) and len(pair) == 2 and _has_shape(pair[1], type_.item_type) for pair in pairs
        )
    if arrow.types.is_struct(type_):
        names = {type_.field(index).name: type_.field(index).type for index in range(type_.num_fields)}
        return isinstance(value, dict) and all(
            key in names and _has_shape(part, names[key]) for key, part in value.items()
        )
    return isinstance(value, (list, tuple)) and all(_has_shape(part, type_.value_type) for part in value)


def _unfit() -> tuple[type[Exception], ...]:
    """What Arrow raises about values that fit no type, or not the given one."""
    import pyarrow as arrow

    return (
        arrow.ArrowNotImplementedError,
        OverflowError,
        TypeError,
        ValueError,
    )  # of its own, and of values like pandas' NaT


def _row(func: Callable[..., Any], row: Any) -> Row:
    if not isinstance(row, dict):
        raise _wrong(func, row, "a dict")
    return row


def _wrong(func: Callable[..., Any], value: Any, wanted: str) -> WrongReturnType:
    name = getattr(func, "__qualname__", repr(func))
    return WrongReturnType(f"function {name} must return {wanted}, it returned {value!r:.80} ({type(value).__name__})")
