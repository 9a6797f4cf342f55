"""SQL expressions as users give them (texts, or DuckDB's Expression objects), parsed by DuckDB itself.

A text may hold several expressions (`"a, b + 1 as c"`). What an expression is made of is asked of DuckDB's own parse tree, so that a word in a
string or a comment is never taken for a column or a function.
"""

import json
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb

from smallpond_mpi.common import InvalidArgument, InvalidQuery, WrongType
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.query_columns import scratch

Tree = dict[str, Any]

MAX_KEPT_TEXTS = 1 << 15
_kept: dict[tuple[str, str], str] = {}


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression: its parse tree and the name that it was given, if it was."""

    tree: Tree
    alias: str | None

    @property
    def sql(self) -> str:
        """Its text, without the name."""
        if self.column is not None:
            return quote_name(self.column)
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
    unnamed, known = list(flat(given)), frozenset(columns)
    texts = [one for one in (*unnamed, *(named or {}).values()) if isinstance(one, str) and one not in known]
    _ask("json_serialize_sql", map(_as_query, texts))
    for one in unnamed:
        found += _parsed(one, known)
    for name, one in (named or {}).items():
        parsed = _parsed(one, known)
        if len(parsed) != 1:
            raise InvalidArgument(f"{name} must be one expression, not {len(parsed)}: {one!r}")
        found.append(Expression(parsed[0].tree, name))
    return labelled((item.alias, item.tree) for item in found)


def labelled(trees: "Iterable[tuple[str | None, Tree]]") -> list[Expression]:
    """Expressions of trees, under these names. What their texts are is asked here, for all at once."""
    found = [Expression(tree, name) for name, tree in trees]
    texts_of([{**item.tree, "alias": ""} for item in found if item.column is None])
    return found


def flat(given: Iterable[Any]) -> Iterator[Any]:
    """The elements, those of lists among them too."""
    for one in given:
        if isinstance(one, (list, tuple)):
            yield from flat(one)
        else:
            yield one


def _parsed(one: Any, columns: Set[str]) -> list[Expression]:
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
    return [Expression(column_tree(one), None)] if one in columns else parse(one)


CLAUSES = ("where_clause", "modifiers", "group_expressions", "having", "qualify", "sample")
"""What DuckDB's parser found around a select list. `modifiers` are DISTINCT, ORDER BY and LIMIT."""


def parse(text: str) -> list[Expression]:
    """The expressions of a select list."""
    (statement,) = _statements(_as_query(text), text)
    node = statement["node"]
    is_list = node["type"] == "SELECT_NODE" and node["from_table"]["type"] == "EMPTY"
    if not is_list or any(map(node.get, CLAUSES)) or node["aggregate_handling"] != "STANDARD_HANDLING":
        raise InvalidQuery(f"{text!r} is a query: expressions are needed, such as stand after SELECT")
    return [Expression(tree, tree["alias"] or None) for tree in node["select_list"]]


def parse_all(texts: Sequence[str]) -> list[Tree]:
    """The trees of texts that are one expression each."""
    _ask("json_serialize_sql", map(_as_query, texts))
    return [parse(text)[0].tree for text in texts]


def column_tree(name: str) -> Tree:
    """The tree of a column."""
    return {**parse("x")[0].tree, "column_names": [name]}


def _as_query(text: str) -> str:
    return f"SELECT {text}"


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


def _asked(function: str, text: str) -> str:
    """What a function of DuckDB's makes of a text."""
    return _ask(function, [text])[0]


def _ask(function: str, texts: Iterable[str]) -> list[str]:
    """What a function of DuckDB's makes of texts: asked once for all of them (of wide tables there are thousands), and kept, as an
    expression is looked at several times while a plan is made."""
    wanted = [(function, text) for text in texts]
    missing = list(dict.fromkeys(key[1] for key in wanted if key not in _kept))
    if len(_kept) + len(missing) > MAX_KEPT_TEXTS:
        _kept.clear()
        missing = list(dict.fromkeys(text for _, text in wanted))
    if missing:
        with scratch() as conn:
            rows = conn.execute(f"SELECT {function}(text) FROM (SELECT unnest(?) AS text)", [missing]).fetchall()
        _kept.update(zip(((function, text) for text in missing), (str(made) for (made,) in rows), strict=True))
    return [_kept[key] for key in wanted]


def sql_of(tree: Tree) -> str:
    """The text of an expression's tree."""
    return texts_of([tree])[0]


def texts_of(trees: Sequence[Tree]) -> list[str]:
    """The texts of expressions' trees."""
    query = select_tree()
    node = query["statements"][0]["node"]
    asked = []
    for tree in trees:
        node["select_list"] = [tree]
        asked.append(json.dumps(query))
    return [text.removeprefix("SELECT ") for text in _ask("json_deserialize_sql", asked)]


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


CLOCKS = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"})
"""Functions that are written like columns."""


@cache
def unsteady_functions() -> frozenset[str]:
    """The functions whose values don't follow from their arguments: random(), and now(), which is another in each task.

    Many (`+`, year) depend on the time zone for one type of arguments only, and that is the same in all tasks; of those age(x) alone looks at the clock.
    """
    with scratch() as conn:
        rows = conn.execute(
            "SELECT function_name FROM duckdb_functions() WHERE stability IS NOT NULL GROUP BY ALL "
            "HAVING bool_or(stability = 'VOLATILE') OR bool_and(stability <> 'CONSISTENT')"
        ).fetchall()
    return frozenset(name for (name,) in rows) | {"age"}


def is_steady(part: Any) -> bool:
    """Whether a part of a tree, looked at alone, is nothing that differs from one task to the next."""
    if not isinstance(part, dict):
        return True
    if part.get("class") == "COLUMN_REF":
        return ".".join(part["column_names"]).lower() not in CLOCKS
    return not part.get("sample") and str(part.get("function_name", "")).lower() not in unsteady_functions()


def is_by_row(trees: Iterable[Tree]) -> bool:
    """Whether each row's values follow from that row alone, the same ones each time: no aggregate, window, subquery, or random number."""
    return not any(
        part["class"] in ("WINDOW", "SUBQUERY") or is_aggregate(part) or not is_steady(part)
        for tree in trees
        for part in parts(tree)
    )


def gives_the_same_again(query: str) -> bool:
    """Whether a query over the same rows gives the same ones each time. False if it can't be parsed."""
    parsed = json.loads(_asked("json_serialize_sql", query))
    return not parsed["error"] and all(map(is_steady, _everything(parsed)))


def counts_columns(query: str) -> bool:
    """Whether a query may mean columns of its inputs by where they stand: `select * ... order by 2`, `#2`, `union all`, `t(x, y)`. True if it can't be
    parsed."""
    parsed = json.loads(_asked("json_serialize_sql", query))
    return parsed["error"] or any(isinstance(part, dict) and _counts_columns(part) for part in _everything(parsed))


def _counts_columns(part: Tree) -> bool:
    if part.get("type") in ("SET_OPERATION_NODE", "RECURSIVE_CTE_NODE") or part.get("class") == "POSITIONAL_REFERENCE":
        return True
    if part.get("column_name_alias") or part.get("aliases"):
        return True
    if not any(one["class"] == "STAR" for tree in part.get("select_list", ()) for one in parts(tree)):
        return False
    ordered = [order["expression"] for modifier in part["modifiers"] for order in modifier.get("orders", ())]
    return any(one["class"] == "CONSTANT" for one in (*ordered, *part["group_expressions"]))


def _everything(tree: Any) -> Iterator[Any]:
    """A tree and all that is in it."""
    left = [tree]
    while left:
        part = left.pop()
        yield part
        left.extend(part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())


def says_rows_alone(text: str) -> bool:
    """`is_by_row` of a text that nobody has parsed yet; False if it can't be."""
    try:
        return is_by_row(item.tree for item in parse(text))
    except InvalidQuery:
        return False


def columns_in(tree: Tree) -> list[str]:
    """The columns that an expression names."""
    return [part["column_names"][-1] for part in parts(tree) if part["class"] == "COLUMN_REF"]


def all_names_in(tree: Tree) -> list[str]:
    """All names that an expression uses for columns: of `x.y`, which may be a table's column or a column's field, both."""
    return [name for part in parts(tree) if part["class"] == "COLUMN_REF" for name in part["column_names"]]


def template(sql: str) -> str:
    """A text as it stands in a node's query: there braces mean something unless they are doubled."""
    return sql.replace("{", "{{").replace("}", "}}")
