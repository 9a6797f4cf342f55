"""How one looks at a DataFrame: batches, tables on the screen, statistics, the plan. And what a notebook shows, without computing anything."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from smallpond_mpi import arguments
from smallpond_mpi.common import DEFAULT_BATCH_SIZE, BadInput, CorruptInput, InvalidArgument
from smallpond_mpi.logical import relational
from smallpond_mpi.logical.dataset.quoting import quote_name, quote_text
from smallpond_mpi.logical.expressions import template
from smallpond_mpi.logical.node import DataSourceNode, LogicalPlan, Node
from smallpond_mpi.logical.node.base import topological
from smallpond_mpi.logical.node.keyed import KeyedSqlNode, Side
from smallpond_mpi.logical.origin import of_partitions, read_at, read_text
from smallpond_mpi.logical.query_columns import Schema
from smallpond_mpi.logical.schema import schema_of
from smallpond_mpi.relations import Relations

if TYPE_CHECKING:
    import pyarrow as arrow

    from smallpond_mpi.dataframe import DataFrame

SHOWN_WIDTH = 40
NUMBERS = frozenset({"tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint"}) | {
    "float",
    "double",
    "decimal",
}
STATISTICS = ("count", "nulls", "mean", "min", "max")
UNORDERED = frozenset({"struct", "map", "list", "array", "union", "blob", "bit"})


class Results(Relations):
    """Ways to look at rows."""

    def iter_batches(self, batch_size: int = DEFAULT_BATCH_SIZE) -> "Iterator[arrow.RecordBatch]":
        """The rows in partition order, as record batches of at most `batch_size` rows. Only what is being looked at is held in memory."""
        rows = arguments.whole_number(batch_size, "batch_size", 1)
        datasets = self._datasets()
        return self._batches(datasets, rows)

    def _batches(self, datasets: Any, batch_size: int) -> "Iterator[arrow.RecordBatch]":
        with reading_rows_of(self.plan):
            for dataset in datasets:
                if dataset.paths or not getattr(dataset, "is_of_files", True):
                    yield from dataset.to_batch_reader(batch_size)

    def head(self, n: int = 5) -> "DataFrame":
        """The first `n` rows."""
        return self.limit(n)  # type: ignore[attr-defined,no-any-return] # of DataFrame

    def show(self, n: int = 20) -> None:
        """Print the first `n` rows as a table."""
        print(self._shown(n))  # noqa: T201

    def _shown(self, n: int) -> str:
        """The first rows as text: a line a row, as wide as their values, long ones cut."""
        arguments.whole_number(n, "n", 0)
        table = self.head(n + 1).to_arrow()
        names = table.column_names
        lines = [[_cell(value) for value in row] for row in _rows(table.slice(0, n))]
        kinds = [str(field.type) for field in table.schema]
        widths = [max(map(len, column)) for column in zip(names, kinds, *lines, strict=True)]
        ruler = "-+-".join("-" * width for width in widths)
        text = [_line(names, widths), _line(kinds, widths), ruler, *(_line(line, widths) for line in lines)]
        return "\n".join([*text, f"({table.num_rows} rows)" if table.num_rows <= n else f"(the first {n} rows)"])

    def describe(self) -> "DataFrame":
        """Statistics, one row a column: count, nulls, num_distinct, mean, std, min, max (as text).

        Distinct values are told apart by hashes of 64 bits. NULL is none of them.
        """
        schema = self._schema()
        if not schema:
            raise InvalidArgument("describe: there are no columns")
        values = self._of(relational.by_row(self.plan, template(_values(schema)), True, {}))
        hashes = values.select("number", "hash").distinct().group_by("number").agg(num_distinct="count(hash)")
        spreads = values.group_by("number").agg(std="stddev(value)")
        inputs = (self._summary(schema).plan, hashes.plan, spreads.plan)
        query = (
            "SELECT s.column, s.type, s.count, s.nulls, coalesce(num_distinct, 0) AS num_distinct, mean, std, s.min, s.max "
            "FROM {0} AS s LEFT JOIN {1} USING (number) LEFT JOIN {2} USING (number) ORDER BY number"
        )
        return self._of(relational.checked(KeyedSqlNode(self.plan.ctx, inputs, query, sides=[Side(())] * len(inputs))))

    def _summary(self, schema: Schema) -> "DataFrame":
        """What aggregates of each column say, one row a column."""
        row = self.agg(
            **{
                f"{what}{number}": sql
                for number, (name, kind) in enumerate(schema.items())
                for what, sql in _statistics(quote_name(name), kind.id).items()
            }
        )
        structs = ", ".join(
            f"{{'number': {number}, 'column': {quote_text(name)}, 'type': {quote_text(str(kind))}, "
            + ", ".join(f"{quote_text(field)}: {quote_name(f'{field}{number}')}" for field in STATISTICS)
            + "}"
            for number, (name, kind) in enumerate(schema.items())
        )
        return self._of(relational.by_row(row.plan, template(f"unnest([{structs}], recursive := true)"), True, {}))

    def explain(self) -> str:
        """The plan as it would run now, a node a line, inputs below what needs them; what ran already with its measurements."""
        (optimized,) = self.session._optimized([self.plan])
        text: str = LogicalPlan(self.plan.ctx, optimized).explain_str()
        return text

    def __repr__(self) -> str:
        return f"DataFrame[{self._columns_shown()}]({self._plan_shown()})"

    def _repr_html_(self) -> str:
        """For notebooks: the columns and where the table comes from, nothing computed."""
        schema = schema_of(self.plan)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in schema or {})
        kinds = "".join(f"<td>{html.escape(str(kind))}</td>" for kind in (schema or {}).values())
        table = f"<table><thead><tr>{head}</tr></thead><tbody><tr>{kinds}</tr></tbody></table>" if schema else ""
        unknown = "" if schema else " columns known once computed,"
        return f"<div><p>DataFrame:{unknown} {html.escape(self._plan_shown())}</p>{table}</div>"

    def _columns_shown(self) -> str:
        schema = schema_of(self.plan)
        return "?" if schema is None else ", ".join(f"{name}: {kind}" for name, kind in schema.items())

    def _plan_shown(self) -> str:
        state = "computed" if self.session._is_computed(self.plan) else "not computed"
        return f"{type(self.plan).__name__} of {self.plan.location}, {state}"


def _statistics(column: str, kind: str) -> dict[str, str]:
    """Aggregates of one column, each of one type whatever the column's is."""
    is_ordered = kind not in UNORDERED
    made = (
        f"count({column})",
        f"count(*) - count({column})",
        f"avg({column})::double" if kind in NUMBERS else "NULLIF(count(*), count(*))::double",
        f"min({column})::varchar" if is_ordered else "NULLIF(count(*), count(*))::varchar",
        f"max({column})::varchar" if is_ordered else "NULLIF(count(*), count(*))::varchar",
    )
    return dict(zip(STATISTICS, made, strict=True))


def _values(schema: Schema) -> str:
    """Each value as a row: the number of its column, its hash, and itself if it is a number."""
    structs = (
        f"{{'number': {number}, 'hash': CASE WHEN {name} IS NOT NULL THEN hash({name}) END, "
        f"'value': {_spread_of(name, kind.id)}}}"
        for number, (name, kind) in enumerate((quote_name(name), kind) for name, kind in schema.items())
    )
    return f"unnest([{', '.join(structs)}], recursive := true)"


def _spread_of(column: str, kind: str) -> str:
    """What a value is for its column's deviation, which DuckDB refuses to take of infinite ones."""
    if kind in ("float", "double"):
        return f"CASE WHEN isinf({column}) THEN 'nan' ELSE {column}::double END"
    return f"{column}::double" if kind in NUMBERS else "NULL::double"


def _rows(table: "arrow.Table") -> "list[tuple[Any, ...]]":
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _cell(value: Any) -> str:
    text = "NULL" if value is None else str(value).replace("\n", "\\n")
    return text if len(text) <= SHOWN_WIDTH else text[: SHOWN_WIDTH - 3] + "..."


def _line(cells: list[str], widths: list[int]) -> str:
    return " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


@contextmanager
def reading_rows_of(plan: Node) -> Iterator[None]:
    """What rank 0 finds wrong with files that it reads itself is told with the line that they come from."""
    try:
        yield
    except BadInput as error:
        sources = [(node.location, node.dataset) for node in topological([plan]) if isinstance(node, DataSourceNode)]
        lines = read_at(str(error), sources, isinstance(error, CorruptInput))
        text = str(error) if lines else of_partitions(str(error))
        found = f"found in the rows of {type(plan).__name__} of {plan.location}"
        raise type(error)("\n  ".join(filter(None, (text, found, read_text(lines, plan.location))))) from error
