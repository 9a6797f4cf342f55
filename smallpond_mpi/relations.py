"""What DataFrames have in common with tables of a database: columns by expressions, joins, groups, distinct rows, unions.

SQL expressions are texts or DuckDB's own Expression objects. Column names in them are matched as DuckDB does it, without regard to case.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import duckdb

from smallpond_mpi import arguments
from smallpond_mpi.common import ColumnNotFound, InvalidArgument, WrongType
from smallpond_mpi.logical import joins, relational
from smallpond_mpi.logical.dataset import DataSet
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.expressions import Expression, expressions, template
from smallpond_mpi.logical.node import Node, SqlEngineNode
from smallpond_mpi.logical.query_columns import Schema, no_column, place_of
from smallpond_mpi.logical.schema import arrow_schema, remember, schema_of, schema_of_dataset

if TYPE_CHECKING:
    import pyarrow as arrow

    from smallpond_mpi.dataframe import DataFrame, Session


class Relations:
    """The relational operations of a DataFrame. All are lazy, and all know their mistakes about columns at once."""

    session: "Session"
    plan: Node

    def select(self, *columns: Any, **named: Any) -> "DataFrame":
        """These columns, computed row by row: names, SQL expressions (`"a + 1 as b"`), or `b="a + 1"`.

        Raises:
            ColumnNotFound: one is not there; the message lists what is.
        """
        items, settings = self._items("select", columns, named)
        return self._of(relational.selected(self.plan, items, settings))

    def with_columns(self, *columns: Any, key: str | Sequence[str] | None = None, **named: Any) -> "DataFrame":
        """All columns, and further ones: `total="price * count"`, or `"price * count as total"`. One of the same name is replaced.

        Args:
            key: for window functions (`rank="row_number() over (partition by k order by v)"`): columns that all of them are partitioned by,
                whose rows are brought together first. Of None: what they have in common. Empty: all rows in one partition.
        """
        items, settings = self._items("with_columns", columns, named)
        keys = None if key is None else [key] if isinstance(key, str) else list(key)
        return self._of(relational.with_columns(self.plan, items, keys, settings))

    def rename(self, names: "Mapping[str, str] | None" = None, **renamed: str) -> "DataFrame":
        """The same columns, some under new names: `{"old": "new"}`, or `old="new"`."""
        given = {**(names or {}), **renamed}
        for name in given.values():
            arguments.text(name, "the new name of a column")
        there = self._columns_there(given)
        if there is None:
            pairs = ", ".join(f"{quote_name(old)} AS {quote_name(new)}" for old, new in given.items())
            return self._of(relational.by_row(self.plan, template(f"* RENAME ({pairs})"), True, {}))
        new_names = {old.lower(): new for old, new in given.items()}
        columns = [f"{quote_name(name)} AS {quote_name(new_names.get(name.lower(), name))}" for name in there]
        return self._of(relational.by_row(self.plan, template(", ".join(columns)), True, {}))

    def drop(self, *columns: str) -> "DataFrame":
        """All columns but these."""
        dropped = [name for one in columns for name in arguments.texts(one, "the columns to drop")]
        there = self._columns_there(dropped)
        lowered = {name.lower() for name in dropped}
        if there is not None and all(name.lower() in lowered for name in there):
            raise InvalidArgument("drop: no column would be left")
        excluded = f"* EXCLUDE ({', '.join(map(quote_name, dropped))})" if dropped else "*"
        return self._of(relational.by_row(self.plan, template(excluded), True, {}))

    def join(
        self,
        other: "DataFrame",
        on: "str | Sequence[str | tuple[str, str]] | Mapping[str, str] | None" = None,
        how: str = "inner",
        *,
        suffix: str = "_right",
        **settings: Any,
    ) -> "DataFrame":
        """Rows of this table and another with equal keys, side by side. NULL equals nothing.

        A key that both tables call the same is one column of the result; keys of different names are two. Another column of `other`
        whose name is taken gets the suffix.

        Args:
            on: a column of both, several, or pairs or a dict of this table's and the other's columns.
            how: inner, left, right, full, semi (this table's rows that have a match), anti (those that have none), cross (each with each, no key).

        Raises:
            ColumnNotFound: a key is not there. InvalidArgument: keys are of kinds that can't be compared, or two columns would have one name.
        """
        arguments.check_settings(SqlEngineNode, settings)
        right = _frame_of(other)
        return self._of(joins.joined(self.plan, right.plan, on, how, arguments.text(suffix, "suffix"), settings))

    def group_by(self, *keys: Any, **named: Any) -> "Groups":
        """Groups of rows with equal keys (columns or expressions; NULL is a key like any other): `df.group_by("k").agg(n="count(*)")`."""
        items, _ = self._items("group_by", keys, named, takes_settings=False)
        return Groups(self, items)

    def agg(self, *aggregates: Any, **named: Any) -> "DataFrame":
        """Aggregates of all rows, as one row."""
        return Groups(self, []).agg(*aggregates, **named)

    def distinct(self, *columns: str, **settings: Any) -> "DataFrame":
        """Rows that differ; with columns: one row (any) for each combination of their values."""
        arguments.check_settings(SqlEngineNode, settings)
        names = [name for one in columns for name in arguments.texts(one, "the columns of distinct")]
        return self._of(relational.distinct(self.plan, names, settings))

    def union(self, *others: "DataFrame", by_name: bool = True) -> "DataFrame":
        """The rows of this table and of others, in order, duplicates too. Columns are matched by name, or (`by_name=False`) by place."""
        return self._of(relational.united([self.plan, *(_frame_of(other).plan for other in others)], by_name))

    @property
    def columns(self) -> list[str]:
        """The names of the columns. What a Python function returns is only known once it ran: then this computes."""
        return list(self._schema())

    @property
    def schema(self) -> "arrow.Schema":
        """The Arrow types of the columns (see `columns`). Of texts, bytes and lists a table may have the large type, and dictionaries of texts."""
        return arrow_schema(self._schema())

    def _schema(self) -> Schema:
        schema = schema_of(self.plan)
        if schema is None:
            found = (schema_of_dataset(dataset) for dataset in self._datasets())
            schema = next((one for one in found if one), {})
            remember(self.plan, schema)
        return schema

    # inside

    def _datasets(self) -> list[DataSet]:
        return self.session._run([self.plan])[0]

    def _items(
        self, method: str, given: Sequence[Any], named: Mapping[str, Any], takes_settings: bool = True
    ) -> tuple[list[Expression], dict[str, Any]]:
        """Expressions, and what of the named ones are settings of the node (numbers and the like: expressions are not)."""
        known = inspect.signature(SqlEngineNode).parameters if takes_settings else ()
        settings = {name: value for name, value in named.items() if name in known and not _is_expression(value)}
        schema = schema_of(self.plan)
        items = expressions(given, {n: e for n, e in named.items() if n not in settings}, list(schema or ()))
        if not items:
            hint = "; for one row of all there is agg(...) of the DataFrame itself" if method == "group_by" else ""
            raise InvalidArgument(f"{method} needs at least one column or expression{hint}")
        return items, settings

    def _columns_there(self, names: "Sequence[str] | Mapping[str, str]") -> "list[str] | None":
        """The columns of this table, if they are known: all the given ones must be among them."""
        schema = schema_of(self.plan)
        if schema is None:
            return None
        for name in names:
            if name.lower() not in {column.lower() for column in schema}:
                raise ColumnNotFound(f"{no_column(name, schema)}{place_of()}")
        return list(schema)

    def _of(self, node: Node) -> "DataFrame":
        from smallpond_mpi.dataframe import DataFrame

        return DataFrame(self.session, node)


class Groups:
    """Rows by key, to be aggregated."""

    def __init__(self, frame: Relations, keys: Sequence[Expression]) -> None:
        self._frame = frame
        self._keys = list(keys)

    def agg(self, *aggregates: Any, **named: Any) -> "DataFrame":
        """One row a group: its key, and aggregates such as `total="sum(price)"` or `"sum(price) as total"`.

        Sums of integers are BIGINT (DOUBLE, where a Python function without `schema=` made the column). Counts, sums, extremes, means and deviations are summed up before rows are moved.
        """
        items, settings = self._frame._items("agg", aggregates, named)
        return self._frame._of(relational.aggregated(self._frame.plan, self._keys, items, settings))

    def count(self) -> "DataFrame":
        """One row a group: its key and the number of its rows, `count`."""
        return self.agg(count="count(*)")


def _frame_of(df: Any) -> Relations:
    if not isinstance(df, Relations):
        raise WrongType(f"a DataFrame is needed, not {arguments.shown(df)}")
    return df


def _is_expression(value: Any) -> bool:
    return isinstance(value, (str, duckdb.Expression))
