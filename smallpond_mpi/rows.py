"""Python functions of rows as functions of Arrow tables: what DataFrame.map and its like run in a child.

The type of a new column is inferred over a whole partition; where the values say nothing (all None) the given schema decides.
"""

from collections.abc import Callable, Iterator
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
        rows = [new for row in batch.to_pylist() for new in rows_of(row)]
        if rows:
            made.append(_from_rows(rows, schema))
    if not made:
        return (schema if schema is not None else arrow.schema([])).empty_table()
    try:
        return arrow.concat_tables(made, promote_options="permissive" if schema is None else "none")
    except arrow.ArrowInvalid as error:
        raise SchemaMismatch(
            f"rows of one partition have types that don't fit together: {error}; give schema="
        ) from error


def _from_rows(rows: list[Row], schema: "arrow.Schema | None") -> "arrow.Table":
    import pyarrow as arrow

    if schema is None:
        # from_pylist takes the columns of the first row only: what other rows have besides must not be lost.
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not names:
            raise WrongReturnType(
                "the function returned rows without columns ({}), which can't be kept: leave rows out by filter or flat_map"
            )
        columns = {name: [row.get(name) for row in rows] for name in names}
    else:
        columns = {name: [row.get(name) for row in rows] for name in schema.names}
    try:
        return arrow.Table.from_pydict(columns, schema=schema)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, OverflowError) as error:
        raise SchemaMismatch(
            f"what the function returned does not fit {'one type a column' if schema is None else 'the schema'}: {error}"
        ) from error


def _row(func: Callable[..., Any], row: Any) -> Row:
    if not isinstance(row, dict):
        raise _wrong(func, row, "a dict")
    return row


def _wrong(func: Callable[..., Any], value: Any, wanted: str) -> WrongReturnType:
    name = getattr(func, "__qualname__", repr(func))
    return WrongReturnType(f"function {name} must return {wanted}, it returned {value!r:.80} ({type(value).__name__})")
