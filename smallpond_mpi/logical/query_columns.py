"""Which columns a query gives, and which it reads, as DuckDB finds them over empty tables of its inputs' columns; nothing is run.

What is wrong with a query is told with the columns that there are and the line of the user's script.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager, suppress
from functools import cache, lru_cache
from typing import Any

import duckdb

from smallpond_mpi.common import DATA_PARTITION_COLUMN_NAME, BadInput, InvalidArgument, InvalidQuery, UnknownColumn
from smallpond_mpi.execution.task.sql import format_query
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.node.base import Node, shapes, user_location

Schema = Mapping[str, Any]
"""DuckDB type of each column, in order."""

MAX_TABLES = 2000
KEPT_RULES = frozenset({"unused_columns", "cte_inlining", "deliminator"})
"""Of DuckDB's optimizer, where it is asked what a query reads."""


class SchemaWithTwins(dict[str, Any]):
    """Columns of which some differ in case only: SQL calls the second of them another name (`A_1`), and takes its own for the first one's."""

    twins: Sequence[str] = ()


def names_in(schema: Schema) -> list[str]:
    """The names of columns, as they are in the data and as SQL calls them."""
    return [*schema, *(schema.twins if isinstance(schema, SchemaWithTwins) else ())]


@contextmanager
def scratch(alone: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to bind queries on: a cursor of a kept instance, whose temporary tables go with it, or (`alone`) an instance of its own."""
    conn = _new_instance() if alone else _binder().conn.cursor()
    try:
        yield conn
    finally:
        conn.close()


def _new_instance() -> duckdb.DuckDBPyConnection:
    # a table that is not there is none, not some variable of ours
    return duckdb.connect(":memory:", config={"threads": 1, "python_enable_replacements": False})


class _Binder:
    """A kept instance, with empty tables of the columns that were asked about: making one takes longer than binding a query on it."""

    def __init__(self, settings: str = "") -> None:
        self.conn = _new_instance()
        self.conn.execute(settings)
        self._names: dict[tuple[int, str], str] = {}
        self._num_made = 0

    def tables(self, schemas: Sequence[Schema]) -> list[str]:
        """The names of tables with these columns, two of them also where two inputs have the same."""
        if len(self._names) > MAX_TABLES:
            self.conn.execute("; ".join(f"DROP TABLE {name}" for name in self._names.values()))
            self._names.clear()
        return [self._table(index, columns_of_table(schema)) for index, schema in enumerate(schemas)]

    def _table(self, index: int, columns: str) -> str:
        name = self._names.get((index, columns))
        if name is None:
            self._num_made += 1
            name = f"__columns_{index}_{self._num_made}"
            self.conn.execute(f"CREATE TABLE {name} ({columns})")
            self._names[index, columns] = name
        return name


@cache
def _binder() -> _Binder:
    return _Binder()


@cache
def _column_finder() -> _Binder:
    """An instance whose optimizer only removes columns: over empty tables other rules would remove everything."""
    with scratch() as conn:
        rules = [rule for (rule,) in conn.execute("SELECT name FROM duckdb_optimizers()").fetchall()]
    return _Binder(f"SET disabled_optimizers='{','.join(rule for rule in rules if rule not in KEPT_RULES)}'")


def bound_query(
    query: str, schemas: Sequence[Schema | None], node: Node | None = None, udfs: Sequence[Any] = ()
) -> Schema | None:
    """The columns of a query over inputs of these columns, with the types that it computes. None if that can't be known without running it.

    Raises:
        UnknownColumn, InvalidQuery: the query does not fit its inputs. InvalidArgument: two columns of the result have one name.
    """
    tables = [schema for schema in schemas if schema is not None]
    _refuse_twins(query, tables, node)
    if len(tables) < len(schemas):
        return None
    try:
        if udfs:
            with scratch(alone=True) as conn:
                for udf in udfs:
                    udf.bind(conn)
                columns = _bound_on(conn, on_tables(query, create_tables(conn, tables), node))
        else:
            columns = _bound_text(on_tables(query, _binder().tables(tables), node))
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException) as error:
        raise told(error, query, tables, node) from None
    if columns is None:
        return None
    refuse_twice([name for name, _ in columns], node)
    return dict(columns)


def _refuse_twins(query: str, schemas: Iterable[Schema], node: Node | None) -> None:
    """Refuse a query that may name a column of whose name there is another in another case: it would get the first one, whichever it means."""
    for twins in (schema.twins for schema in schemas if isinstance(schema, SchemaWithTwins)):
        if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query, re.IGNORECASE) for name in twins):
            raise InvalidArgument(
                f"the columns {', '.join(map(repr, twins))} differ in case only, which SQL does not tell apart: rename them first, by "
                f"map_batches(lambda table: table.rename_columns([...])), or when they are read{place_of(node)}"
            )


Columns = tuple[tuple[str, Any], ...]


@lru_cache(MAX_TABLES)
def _bound_text(text: str) -> Columns | None:
    """As `_bound_on` the kept instance, whose tables are never others under the same name."""
    with scratch() as conn:
        return _bound_on(conn, text)


def _bound_on(conn: duckdb.DuckDBPyConnection, text: str) -> Columns | None:
    """The columns of a text that is one SELECT, None if it is not."""
    statements = duckdb.extract_statements(text)
    if len(statements) != 1 or statements[0].type is not duckdb.StatementType.SELECT:
        return None
    relation = conn.sql(text)
    return tuple(zip(relation.columns, relation.types, strict=True))


def on_tables(query: str, tables: Sequence[str], node: Node | None = None) -> str:
    """A node's query, to be bound on empty tables."""
    names: dict[str, object] = dict.fromkeys(("batch_index", "query_index", "rand_seed"), 0)
    names |= {"cpu_limit": 1, "memory_limit": 1, "output_filename": "file", DATA_PARTITION_COLUMN_NAME: 0}
    names |= {} if node is None else _dimensions(node)
    return format_query(query, names | {str(index): table for index, table in enumerate(tables)})


def _dimensions(node: Node) -> dict[str, object]:
    found = shapes(node.input_deps)
    return {dimension: 0 for dep in node.input_deps for dimension in found[dep].dims}


def create_tables(conn: duckdb.DuckDBPyConnection, schemas: Iterable[Schema]) -> list[str]:
    """Empty tables with these columns, and their names."""
    names = []
    for index, schema in enumerate(schemas):
        names.append(f"__columns_{index}")
        conn.execute(f"CREATE TEMP TABLE {names[-1]} ({columns_of_table(schema)})")
    return names


def columns_of_table(schema: Schema) -> str:
    """As they stand in CREATE TABLE."""
    return ", ".join(f"{quote_name(name)} {kind}" for name, kind in schema.items())


def refuse_twice(names: Iterable[str], node: Node | None) -> None:
    """Refuse two columns of one name. (DuckDB tells names apart without regard to upper and lower case.)"""
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            first = seen[name.lower()]
            raise InvalidArgument(
                f"two columns would be called {first!r} and {name!r}: give one of them another name{place_of(node)}"
            )
        seen[name.lower()] = name


INPUT = re.compile(r"\{(\d+)\}")
NO_COLUMN = re.compile(
    r'Referenced column "(?P<a>(?:[^"]|"")+)" not found'
    r'|does not have a column named "(?P<b>(?:[^"]|"")+)"'
    r'|Column "(?P<c>(?:[^"]|"")+)" in (?:EXCLUDE|REPLACE|RENAME) list not found'
)


def told(error: Exception, query: str, schemas: Sequence[Schema], node: Node | None) -> BadInput:
    """A binder's error, with the columns that there are and the line of the user's script."""
    where = place_of(node)
    text = str(error)
    found = NO_COLUMN.search(text)
    if found is not None:
        name = next(part for part in found.groups() if part is not None).replace('""', '"')
        columns = [column for schema in schemas for column in schema]
        return UnknownColumn(f"{no_column(name, columns)}{where}\nin the query: {query}")
    beyond = next((one for one in INPUT.findall(query) if int(one) >= len(schemas)), None)
    if beyond is not None and isinstance(error, duckdb.ParserException):
        text = f"{{{beyond}}} is no input: there are {len(schemas)}, from {{0}} on; {text}"
    elif isinstance(error, duckdb.ParserException):
        text += "\ncorrect the query where it is marked"
    return InvalidQuery(f"{text}{where}\nin the query: {query}")


def place_of(node: Node | None = None) -> str:
    """Where in the user's script a node was made, to end a message with; without one: where the script is now."""
    return f" (at {user_location(None)})" if node is None else f" ({type(node).__name__} at {node.location})"


def no_column(name: str, columns: Iterable[str]) -> str:
    """That a column is not there: what is, and which one may have been meant."""
    there = list(dict.fromkeys(columns))
    close = difflib.get_close_matches(name.lower(), {column.lower(): column for column in there}, n=1)
    meant = next((column for column in there if close and column.lower() == close[0]), None)
    hint = f": did you mean {meant!r}?" if meant is not None else ""
    return f"there is no column {name!r}{hint} (the columns: {', '.join(there)})"


def columns_read(query: str, schemas: Sequence[Schema]) -> list[list[str]] | None:
    """The columns that a query reads of each input, as DuckDB's planner finds them; None if that can't be said."""
    tables = _column_finder().tables(schemas)
    scans: Mapping[str, Set[str] | None] = {}
    with suppress(duckdb.Error):
        scans = _scans(on_tables(query, tables))
    if not all(table in scans for table in tables):
        return None
    read = [scans[table] for table in tables]
    return [
        [name for name in schema if names is None or _is_read(name, names)]
        for schema, names in zip(schemas, read, strict=True)
    ]


def _is_read(name: str, scanned: Set[str]) -> bool:
    """Whether a column is scanned, or a field of it: `s.a` may be either's name, and is taken for both."""
    return name in scanned or any(other.startswith(f"{name}.") for other in scanned)


@lru_cache(MAX_TABLES)
def _scans(text: str) -> Mapping[str, Set[str] | None]:
    """The columns that a query reads of each table, None for all."""
    with closing(_column_finder().conn.cursor()) as conn:
        ((_, plan),) = conn.execute(f"EXPLAIN (FORMAT JSON) {text}").fetchall()
    found: dict[str, Set[str] | None] = {}
    stack = json.loads(plan)
    while stack:
        step = stack.pop()
        stack.extend(step["children"])
        info = step["extra_info"]
        if "Table" in info:
            table = str(info["Table"]).split(".")[-1]
            names = info.get("Projections")
            before = found.get(table, frozenset())
            read = None if names is None else {names} if isinstance(names, str) else set(names)
            found[table] = None if before is None or read is None else before | read
    return found
