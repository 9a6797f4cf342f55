"""SQL expressions as users give them (texts, or DuckDB's Expression objects), parsed by DuckDB itself.

A text may hold several expressions (`"a, b + 1 as c"`). What an expression is made of is asked of DuckDB's own parse tree, so that a word in a
string or a comment is never taken for a column or a function.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import duckdb

from smallpond_mpi.common import InvalidArgument, InvalidQuery, WrongType
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.schema import scratch

Tree = dict[str, Any]

MAX_KEPT_TEXTS = 4096


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression: its parse tree and the name that it was given, if it was."""

    tree: Tree
    alias: str | None

    @property
    def sql(self) -> str:
        """Its text, without the name."""
        return sql_of({**self.tree, "alias": ""})

    @property
    def selected(self) -> str:
        """As it stands in a select list."""
        return self.sql if self.alias is None else f"{self.sql} AS {quote_name(self.alias)}"

    @property
    def is_star(self) -> bool:
        """Whether it stands for any number of columns."""
        return any(part["class"] == "STAR" for part in parts(self.tree))

    @property
    def column(self) -> str | None:
        """The column that it is, if it is just one."""
        names = self.tree.get("column_names", [])
        return names[-1] if self.tree["class"] == "COLUMN_REF" and len(names) == 1 else None

    @property
    def name(self) -> str:
        """The name of the column that it makes."""
        return self.alias or self.column or self.sql


def expressions(
    given: Iterable[Any], named: "dict[str, Any] | None" = None, columns: Sequence[str] = ()
) -> list[Expression]:
    """What stands in a select list.

    Args:
        given: texts, Expression objects, or lists of them. A text that is the name of one of `columns` is that column; any other is SQL.
        named: expressions by the names of the columns that they make.

    Raises:
        WrongType: something else is given. InvalidQuery: a text is no SQL.
    """
    found: list[Expression] = []
    for one in flat(given):
        found += _parsed(one, columns)
    for name, one in (named or {}).items():
        parsed = _parsed(one, columns)
        if len(parsed) != 1:
            raise InvalidArgument(f"{name} must be one expression, not {len(parsed)}: {one!r}")
        found.append(Expression(parsed[0].tree, name))
    return found


def flat(given: Iterable[Any]) -> Iterator[Any]:
    """The elements, those of lists among them too."""
    for one in given:
        if isinstance(one, (list, tuple)):
            yield from flat(one)
        else:
            yield one


def _parsed(one: Any, columns: Sequence[str]) -> list[Expression]:
    if isinstance(one, duckdb.Expression):
        text, name = str(one), one.get_name()
        (parsed,) = parse(text)
        return [Expression(parsed.tree, None if parsed.is_star or name in (text, parsed.column) else name)]
    if not isinstance(one, str):
        raise WrongType(
            f"an SQL expression is needed, as a text or a duckdb.Expression, not {one!r} ({type(one).__name__})"
        )
    if not one.strip():
        raise InvalidArgument("an SQL expression is empty")
    return parse(quote_name(one) if one in columns else one)


def parse(text: str) -> list[Expression]:
    """The expressions of a select list."""
    (statement,) = _statements(f"SELECT {text}", text)
    node = statement["node"]
    if node["type"] != "SELECT_NODE" or node["from_table"]["type"] != "EMPTY" or node["where_clause"]:
        raise InvalidQuery(f"{text!r} is a query: expressions are needed, such as stand after SELECT")
    return [Expression(tree, tree["alias"] or None) for tree in node["select_list"]]


def _statements(query: str, shown: str) -> list[Tree]:
    result = json.loads(_asked("json_serialize_sql", query))
    if result["error"]:
        raise InvalidQuery(f"{shown!r} is no SQL expression: {result['error_message']}")
    if len(result["statements"]) != 1:
        raise InvalidQuery(f"{shown!r} is no SQL expression but {len(result['statements'])} statements")
    statements: list[Tree] = result["statements"]
    return statements


def select_tree() -> Tree:
    """The parse tree of `SELECT 1`."""
    return json.loads(_asked("json_serialize_sql", "SELECT 1"))  # type: ignore[no-any-return]


@lru_cache(MAX_KEPT_TEXTS)
def _asked(function: str, text: str) -> str:
    """What a function of DuckDB's makes of a text; an expression is looked at several times while a plan is made."""
    with scratch() as conn:
        ((made,),) = conn.execute(f"SELECT {function}(?)", [text]).fetchall()
    return str(made)


def sql_of(tree: Tree) -> str:
    """The text of an expression's tree."""
    query = select_tree()
    query["statements"][0]["node"]["select_list"] = [tree]
    return _asked("json_deserialize_sql", json.dumps(query)).removeprefix("SELECT ")


# what is in an expression


def children(tree: Any) -> Iterator[Tree]:
    """The expressions directly below a part of a tree."""
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for value in values:
        if isinstance(value, dict) and "class" in value:
            yield value
        elif isinstance(value, (dict, list)):
            yield from children(value)


def parts(tree: Tree) -> Iterator[Tree]:
    """An expression and all within it."""
    yield tree
    for child in children(tree):
        yield from parts(child)


def function_of(tree: Tree) -> str | None:
    """The name of the function that an expression calls, if it is a call."""
    return str(tree["function_name"]).lower() if tree["class"] == "FUNCTION" else None


@cache
def functions(condition: str) -> frozenset[str]:
    """The names of DuckDB's functions for which a condition on duckdb_functions() holds."""
    with scratch() as conn:
        rows = conn.execute(f"SELECT DISTINCT function_name FROM duckdb_functions() WHERE {condition}").fetchall()
    return frozenset(name for (name,) in rows)


def aggregates_in(tree: Tree) -> list[Tree]:
    """The outermost calls of aggregate functions."""
    if is_aggregate(tree):
        return [tree]
    return [found for child in children(tree) for found in aggregates_in(child)]


def is_aggregate(tree: Tree) -> bool:
    return function_of(tree) in functions("function_type = 'aggregate'")


def windows_in(trees: Iterable[Tree]) -> list[Tree]:
    """All window functions."""
    return [part for tree in trees for part in parts(tree) if part["class"] == "WINDOW"]


def is_by_row(trees: Iterable[Tree]) -> bool:
    """Whether each row's values follow from that row alone, the same ones each time: no aggregate, window, subquery, or random number."""
    volatile = functions("stability = 'VOLATILE'")  # random() and the like
    return not any(
        part["class"] in ("WINDOW", "SUBQUERY") or is_aggregate(part) or function_of(part) in volatile
        for tree in trees
        for part in parts(tree)
    )


def says_rows_alone(text: str) -> bool:
    """`is_by_row` of a text that nobody has parsed yet; False if it can't be."""
    try:
        return is_by_row(item.tree for item in parse(text))
    except InvalidQuery:
        return False


def columns_in(tree: Tree) -> list[str]:
    """The columns that an expression names."""
    return [part["column_names"][-1] for part in parts(tree) if part["class"] == "COLUMN_REF"]


def template(sql: str) -> str:
    """A text as it stands in a node's query: there braces mean something unless they are doubled."""
    return sql.replace("{", "{{").replace("}", "}}")
