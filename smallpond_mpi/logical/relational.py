"""The plans of relational operations: select, windows, group, distinct, union (joins: `joins.py`). Columns are checked here, before anything runs.

Where the columns of an input are not known yet (a Python function makes them), what can be said without them is said, and the rest is
checked when it runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from smallpond_mpi.common import ColumnNotFound, InvalidArgument
from smallpond_mpi.execution.task.sort_key import SortKey
from smallpond_mpi.logical.aggregates import in_two_steps
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.expressions import (
    Expression,
    aggregates_in,
    all_names_in,
    column_tree,
    columns_in,
    expressions,
    is_by_row,
    template,
    windows_in,
)
from smallpond_mpi.logical.node.base import Node, shapes, topological
from smallpond_mpi.logical.node.keyed import KeyedSqlNode, Side
from smallpond_mpi.logical.node.reshape import ConsolidateNode, UnionNode
from smallpond_mpi.logical.node.sql import SqlEngineNode
from smallpond_mpi.logical.query_columns import Schema, bound_query, names_in, no_column, place_of, refuse_twice
from smallpond_mpi.logical.schema import bound, schema_of

SqlNode = TypeVar("SqlNode", bound=SqlEngineNode)

KEY = "__key"
"""What the names of columns with computed keys begin with."""


# held against the columns that there are


def checked(node: SqlNode) -> SqlNode:
    """The node, whose query fits its inputs as far as these are known.

    Raises:
        UnknownColumn, InvalidQuery: it does not. InvalidArgument: two columns of the result have one name.
    """
    bound(node)
    return node


def there(names: Iterable[str], schema: Schema | None, what: str) -> list[str]:
    """The columns as they are written in the data.

    Raises:
        ColumnNotFound: one is not there.
    """
    if schema is None:
        return list(names)
    known = names_in(schema)
    written = {name.lower(): name for name in known}
    for name in names:
        if name.lower() not in written:
            raise ColumnNotFound(f"{what}: {no_column(name, schema)}{place_of()}")
    return [name if name in known else written[name.lower()] for name in names]


def check_sort_keys(node: Node, keys: Sequence[SortKey]) -> None:
    """Hold what rows are to be sorted by against the columns, as far as these are known.

    Raises:
        ColumnNotFound, UnknownColumn, InvalidQuery: a column, or an expression, does not fit them.
    """
    schema = schema_of(node)
    if schema is None:
        return
    columns = names_in(schema)
    try:
        directed = [key.among(columns) for key in keys]
    except ColumnNotFound as error:
        raise ColumnNotFound(f"{error}{place_of()}") from None
    values = [key.expression(columns) for key in directed if key.by not in columns]
    for value, kind in zip(
        values, check_values(node, values), strict=False
    ):  # no types where the columns are not known
        if kind.id == "interval":
            raise InvalidArgument(
                f"sort: {value} is of type INTERVAL, which files of intermediate results can't hold: sort by epoch_us{value}{place_of()}"
            )


def check_values(node: Node, values: Sequence[str]) -> list[Any]:
    """Hold expressions of a row against the columns, as far as these are known. Returns the type of each, or none.

    Raises:
        UnknownColumn, InvalidQuery: one does not fit them.
    """
    schema = schema_of(node)
    if not values or schema is None:
        return []
    named = [f"{value} AS v{number}" for number, value in enumerate(values)]
    found = bound_query(f"SELECT {template(', '.join(named))} FROM {{0}}", [schema])
    return [] if found is None else list(found.values())


# row by row


def selected(
    node: Node, items: Sequence[Expression], settings: Mapping[str, Any], method: str = "select"
) -> SqlEngineNode:
    """Columns computed row by row."""
    trees = [item.tree for item in items]
    if any(map(aggregates_in, trees)):
        raise InvalidArgument(
            f"{method} works row by row: for {items_shown(items, aggregates_in)} use group_by(...).agg(...){place_of()}"
        )
    windows = windows_in(trees)
    if windows:
        raise InvalidArgument(
            f"{items_shown(items, lambda tree: windows_in([tree]))} looks at several rows: use with_columns(..., key=...), where key "
            f"names the columns that it is partitioned by{place_of()}"
        )
    return by_row(node, template(", ".join(item.selected for item in items)), is_by_row(trees), settings)


def items_shown(items: Iterable[Expression], which: Any) -> str:
    return ", ".join(repr(item.sql) for item in items if which(item.tree))


def by_row(node: Node, select_list: str, is_pure: bool, settings: Mapping[str, Any]) -> SqlEngineNode:
    made = SqlEngineNode(node.ctx, (node,), f"SELECT {select_list} FROM {{0}}", **settings)
    made.is_by_row = is_pure
    return checked(made)


def with_columns(
    node: Node, items: Sequence[Expression], key: Sequence[str] | None, settings: Mapping[str, Any]
) -> SqlEngineNode:
    """All columns, and further ones; one of the same name is replaced in its place."""
    if any(item.alias is None or item.is_star for item in items):
        unnamed = next(item for item in items if item.alias is None or item.is_star)
        raise InvalidArgument(
            f"with_columns: say what the column {unnamed.sql!r} is called, such as name={unnamed.sql!r}{place_of()}"
        )
    trees = [item.tree for item in items]
    windows = windows_in(trees)
    named = _replaced(_exact(items, node) if windows else items, schema_of(node))
    select_list = ", ".join(named.values())
    use_each_other = _use_each_other(items, schema_of(node) or {})
    if not windows and key is None:
        if any(map(aggregates_in, trees)):
            raise InvalidArgument(
                f"with_columns works row by row: make {items_shown(items, aggregates_in)} a window function (... over (partition by ...)), "
                f"or use group_by(...).agg(...){place_of()}"
            )
        by_rows = by_row(node, select_list, is_by_row(trees), settings)
        by_rows.select_list = {} if use_each_other else named
        return by_rows
    query = f"SELECT {select_list} FROM {{0}}"
    keys = there(_window_key(windows, key), schema_of(node), "the key of with_columns")
    made = KeyedSqlNode(node.ctx, (node,), query, sides=[Side(tuple(keys))], **settings)
    made.select_list = {} if use_each_other else named
    return checked(made)


def _use_each_other(items: Sequence[Expression], columns: Iterable[str]) -> bool:
    """Whether an expression names another one: then one can't be left out without the other."""
    new = {item.name.lower() for item in items} - {name.lower() for name in columns}
    return any(name.lower() in new for item in items for name in all_names_in(item.tree))


def _exact(items: Sequence[Expression], node: Node) -> list[Expression]:
    """The expressions with sums of integers as BIGINT, see `_without_hugeints`."""
    schema = schema_of(node)
    numbered = [Expression(item.tree, f"c{number}") for number, item in enumerate(items)]
    found = bound_query(f"SELECT {template(_named(numbered))} FROM {{0}}", [schema])
    if found is None:
        return list(items)
    return [
        Expression(expressions([f"CAST({item.sql} AS BIGINT)"])[0].tree, item.alias)
        if kind.id in ("hugeint", "uhugeint")
        else item
        for item, kind in zip(items, found.values(), strict=True)
    ]


def _replaced(items: Sequence[Expression], schema: Schema | None) -> dict[str, str]:
    """What stands for each column: replaced ones stay where they are; if it isn't known where that is, they come last."""
    new = {item.name: template(item.selected) for item in items}
    if schema is None:
        others = ", ".join("'" + item.name.lower().replace("'", "''") + "'" for item in items)
        return {"*": template(f"COLUMNS(lambda c: lower(c) NOT IN ({others}))")} | new
    replacing = {item.name.lower(): template(item.selected) for item in items}
    columns = {name: replacing.pop(name.lower(), template(quote_name(name))) for name in schema}
    return columns | {item.name: replacing[item.name.lower()] for item in items if item.name.lower() in replacing}


def _window_key(windows: Sequence[Any], key: Sequence[str] | None) -> Sequence[str]:
    """The columns whose rows must be together for all windows.

    Raises:
        InvalidArgument: there are none that all windows are partitioned by, or they are not partitioned by the key that was given.
    """
    # A column, not a field of a struct: `s.a` must not bring rows together by a column `a`.
    plain = [
        [
            part["column_names"][0]
            for part in window["partitions"]
            if part["class"] == "COLUMN_REF" and len(part["column_names"]) == 1
        ]
        for window in windows
    ]
    lowered = [{name.lower() for name in names} for names in plain]
    if key is None:
        shared = [name for name in plain[0] if all(name.lower() in names for names in lowered)]
        if not shared:
            raise InvalidArgument(
                "window functions need rows that belong together: partition all of them by a common column (over (partition by ...)), or "
                f"say key=[] to bring all rows into one partition{place_of()}"
            )
        return shared
    for names in lowered:
        if not {name.lower() for name in key} <= names:
            raise InvalidArgument(
                f"a window function is not partitioned by its key: write over (partition by {', '.join(key)} ...), or key=[] to bring all "
                f"rows into one partition{place_of()}"
            )
    return key


# groups


def aggregated(
    node: Node, keys: Sequence[Expression], aggregates: Sequence[Expression], settings: Mapping[str, Any]
) -> KeyedSqlNode:
    """One row for each key (without keys: one in all), with aggregates of the rows that have it."""
    for item in aggregates:
        if not aggregates_in(item.tree):
            raise InvalidArgument(
                f"agg: {item.sql!r} is no aggregate: use such as sum(...), or make it a key of the group{place_of()}"
            )
    if keys and windows_in(item.tree for item in aggregates):
        raise InvalidArgument(
            f"agg: {items_shown(aggregates, lambda tree: windows_in([tree]))} looks at several groups, which lie in several partitions: give the "
            f"aggregate a name, and use with_columns(..., key=[]) over that{place_of()}"
        )
    names = [item.name for item in (*keys, *aggregates)]
    refuse_twice(names, node)
    check_values(node, [item.sql for item in keys])  # DuckDB takes a key that isn't there for its own alias
    schema = schema_of(node)
    count = len(keys)
    groups = f" GROUP BY {', '.join(str(number + 1) for number in range(count))}" if count else ""
    whole = f"SELECT {template(_named([*keys, *aggregates]))} FROM {{0}}{groups}"
    whole = _without_hugeints(whole, names, schema)
    before, over_parts, moved_keys = _split(keys, aggregates, schema, groups)
    query = whole
    if over_parts is not None:
        query = _without_hugeints(over_parts, names, schema, before)
    elif before is not None:
        renamed = [Expression(column_tree(name), item.name) for name, item in zip(moved_keys, keys, strict=True)]
        query = f"SELECT {template(_named([*renamed, *aggregates]))} FROM {{0}}{groups}"
        query = _without_hugeints(query, names, schema, before)
    made = KeyedSqlNode(
        node.ctx, (node,), query, sides=[Side(tuple(moved_keys), before)], whole_query=whole, **settings
    )
    bound_query(whole, [schema], made)
    return made


def _named(items: Iterable[Expression]) -> str:
    return ", ".join(f"{item.sql} AS {quote_name(item.name)}" for item in items)


def _split(
    keys: Sequence[Expression], aggregates: Sequence[Expression], schema: Schema | None, groups: str
) -> tuple[str | None, str | None, list[str]]:
    """What runs before rows are moved, what runs after (None: the aggregates as they are), and the columns to move them by."""
    steps = None if schema is None else in_two_steps(aggregates, schema)
    names = [f"{KEY}{number}" for number in range(len(keys))]
    computed = [f"{item.sql} AS {quote_name(name)}" for item, name in zip(keys, names, strict=True)]
    if steps is not None and not _reads_keys(aggregates):
        before = f"SELECT {template(', '.join([*computed, *steps.of_part]))} FROM {{0}}{groups}"
        final = [Expression(column_tree(name), item.name) for name, item in zip(names, keys, strict=True)]
        return before, f"SELECT {template(_named([*final, *steps.of_all]))} FROM {{0}}{groups}", names
    plain = [item.column for item in keys]
    if all(name is not None for name in plain):
        return None, None, there([name for name in plain if name is not None], schema, "group_by")
    return f"SELECT *, {template(', '.join(computed))} FROM {{0}}", None, names


def _reads_keys(aggregates: Sequence[Expression]) -> bool:
    """Whether something outside the aggregate functions is read: a key, which has another name after the first step."""
    return any(
        len(columns_in(item.tree)) > sum(len(columns_in(call)) for call in aggregates_in(item.tree))
        for item in aggregates
    )


def _without_hugeints(query: str, names: Sequence[str], schema: Schema | None, before: str | None = None) -> str:
    """The query with sums of integers as BIGINT: of 128 bits there is nothing that a Parquet file could hold exactly."""
    if schema is not None and before is not None:
        schema = bound_query(before, [schema])
    found = None if schema is None else bound_query(query, [schema])
    if found is None or not any(kind.id in ("hugeint", "uhugeint") for kind in found.values()):
        return query
    columns = [
        f"CAST({quote_name(name)} AS BIGINT) AS {quote_name(name)}"
        if kind.id in ("hugeint", "uhugeint")
        else quote_name(name)
        for name, kind in zip(names, found.values(), strict=True)
    ]
    return f"SELECT {template(', '.join(columns))} FROM ({query})"


def distinct(node: Node, columns: Sequence[str], settings: Mapping[str, Any]) -> KeyedSqlNode:
    """Rows that differ, in all columns or in the given ones (then one row of each)."""
    schema = schema_of(node)
    columns = there(columns, schema, "distinct")
    on = f" ON ({template(', '.join(map(quote_name, columns)))})" if columns else ""
    query = f"SELECT DISTINCT{on} * FROM {{0}}"
    keys = tuple(columns) if columns or schema is None else tuple(schema)
    made = KeyedSqlNode(node.ctx, (node,), query, sides=[Side(keys, query)], **settings)
    checked(made)
    return made


# union


def united(nodes: Sequence[Node], by_name: bool) -> Node:
    """The rows of all inputs, in order. Types that differ become one that holds both."""
    schemas = [schema_of(node) for node in nodes]
    known = [schema for schema in schemas if schema is not None]
    parts = list(nodes)
    if len(known) == len(nodes):
        target = _united_schema(nodes, known, by_name)
        parts = [_conformed(node, schema, target, by_name) for node, schema in zip(nodes, known, strict=True)]
    return UnionNode(nodes[0].ctx, [_one_partition(part) for part in parts])


def _one_partition(node: Node) -> Node:
    has_open_shape = any(isinstance(other, KeyedSqlNode) for other in topological([node]))
    return ConsolidateNode(node.ctx, node, []) if has_open_shape or shapes([node])[node].dims else node


def _united_schema(nodes: Sequence[Node], schemas: Sequence[Schema], by_name: bool) -> Schema:
    first = schemas[0]
    for node, schema in zip(nodes[1:], schemas[1:], strict=True):
        same = (
            {name.lower() for name in schema} == {name.lower() for name in first}
            if by_name
            else len(schema) == len(first)
        )
        if not same:
            raise InvalidArgument(
                f"union: the columns of {node} at {node.location} ({', '.join(schema)}) are not those of the first table "
                f"({', '.join(first)}): select the same ones"
            )
    word = "UNION ALL BY NAME" if by_name else "UNION ALL"
    query = f" {word} ".join(f"FROM {{{index}}}" for index in range(len(schemas)))
    found = bound_query(query, schemas)
    assert found is not None
    return dict(zip(first, found.values(), strict=True))


def _conformed(node: Node, schema: Schema, target: Schema, by_name: bool) -> Node:
    """The node's rows with the columns of the union."""
    if list(schema) == list(target) and all(str(schema[name]) == str(kind) for name, kind in target.items()):
        return node
    names = list(target) if by_name else list(schema)
    columns = [
        f"CAST({quote_name(source)} AS {kind}) AS {quote_name(name)}"
        for source, (name, kind) in zip(names, target.items(), strict=True)
    ]
    made = SqlEngineNode(node.ctx, (node,), f"SELECT {template(', '.join(columns))} FROM {{0}}")
    made.is_by_row = True
    return made
