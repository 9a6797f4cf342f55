"""Which columns a node's output has, known on rank 0 before anything runs.

Sources are asked (one Parquet footer, the schema of text files), SQL is bound by DuckDB over empty tables of its inputs' columns, and nodes that
only move rows have the columns of their input. What a Python function returns is not known before it ran: columns after it are checked when
they are read.
"""

import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager, suppress
from functools import cache, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import duckdb
import pyarrow as pa

from smallpond_mpi.common import DATA_PARTITION_COLUMN_NAME, BadInput, InvalidArgument, InvalidQuery, UnknownColumn
from smallpond_mpi.execution.task.sql import format_query
from smallpond_mpi.io.arrow_types import with_durations_as
from smallpond_mpi.io.resolve import files_in
from smallpond_mpi.logical.dataset import (
    ArrowTableDataSet,
    CsvDataSet,
    DataSet,
    JsonDataSet,
    PandasDataSet,
    ParquetDataSet,
    PartitionedDataSet,
    SqlQueryDataSet,
)
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.node.base import Node, shapes, topological, user_location
from smallpond_mpi.logical.node.compute import ArrowComputeNode
from smallpond_mpi.logical.node.hash_partition import HashPartitionNode
from smallpond_mpi.logical.node.keyed import KeyedSqlNode
from smallpond_mpi.logical.node.partition import PartitionNode
from smallpond_mpi.logical.node.range_partition import RangePartitionNode
from smallpond_mpi.logical.node.reshape import ConsolidateNode, ProjectionNode, UnionNode
from smallpond_mpi.logical.node.sort import SortNode
from smallpond_mpi.logical.node.source_sink import DataSinkNode, DataSourceNode
from smallpond_mpi.logical.node.sql import SqlEngineNode

Schema = Mapping[str, Any]
"""DuckDB type of each column, in order."""

RENAMED = re.compile(r"_\d+$")
"""What DuckDB adds to the second of two names that it takes for one."""
MAX_FILES_UNITED = 64
"""Files with different columns that are opened to learn all of them; of more the columns are not known beforehand."""
MAX_TABLES = 2000
KEPT_RULES = frozenset({"unused_columns", "cte_inlining", "deliminator"})


class SchemaWithTwins(dict[str, Any]):
    """Columns of which some differ in case only: SQL calls the second of them another name (`A_1`), and takes its own for the first one's."""

    twins: Sequence[str] = ()


def names_in(schema: Schema) -> list[str]:
    """The names of columns, as they are in the data and as SQL calls them."""
    return [*schema, *(schema.twins if isinstance(schema, SchemaWithTwins) else ())]


_known: "WeakKeyDictionary[Node, Schema | None]" = WeakKeyDictionary()


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


def schema_of(node: Node) -> Schema | None:
    """The columns of a node's output, None if they are not known yet."""
    for needed in topological([node], known=_known.__contains__):
        try:
            _known[needed] = _found(needed)
        except (BadInput, OSError, duckdb.Error, pa.ArrowException):
            _known[needed] = None  # whoever runs it says what is wrong, and where
    return _known[node]


def remember(node: Node, schema: Schema | None) -> None:
    """Take a node's columns from what was computed."""
    _known[node] = schema


def forget(node: Node) -> None:
    """Look at a node again: it was changed."""
    _known.pop(node, None)


def _found(node: Node) -> Schema | None:
    match node:
        case DataSourceNode():
            return schema_of_dataset(node.dataset)
        case SqlEngineNode():
            return stored(bound(node))
        case DataSinkNode():
            return None
        case ProjectionNode():
            return _projected(_known[node.input_deps[0]], node)
        case ArrowComputeNode():
            return _of_function(node)
        case RangePartitionNode() | SortNode():
            return _known[node.input_deps[0]]  # the other input of ranges is where they are cut
        case UnionNode() | ConsolidateNode() | PartitionNode():
            return _moved(node)
    return None


def _projected(schema: Schema | None, node: ProjectionNode) -> Schema | None:
    if schema is None or node.generated_columns or node.union_by_name:
        return None
    return schema if node.columns is None else {name: schema[name] for name in node.columns if name in schema}


def _of_function(node: ArrowComputeNode) -> Schema | None:
    """What our own row functions say of their result."""
    func = node.process_func
    if getattr(func, "keeps_columns", False):
        return _known[node.input_deps[0]]
    schema = getattr(func, "schema", None)
    return schema_of_arrow(schema) if isinstance(schema, pa.Schema) else None


def _moved(node: Node) -> Schema | None:
    """The columns of a node that moves rows: those of its inputs, which are the same."""
    first, *others = (_known[dep] for dep in node.input_deps)
    if first is None or any(other is None or list(other) != list(first) for other in others):
        return None
    if isinstance(node, HashPartitionNode):
        if node.query is not None:
            return stored(bound_query(node.query, [_known[dep] for dep in node.input_deps]))
        if not node.shuffle_only and not node.drop_partition_column:
            return _with_twins_of(first, {**first, node.data_partition_column: duckdb.type("BIGINT")})
        if node.drop_partition_column:
            left = {name: kind for name, kind in first.items() if name != node.data_partition_column}
            return _with_twins_of(first, left)
    return first


def _with_twins_of(before: Schema, columns: dict[str, Any]) -> Schema:
    """A column more or less, and the same that differ in case only."""
    if not isinstance(before, SchemaWithTwins):
        return columns
    made = SchemaWithTwins(columns)
    made.twins = before.twins
    return made


# sources


def schema_of_dataset(dataset: DataSet) -> Schema | None:
    """The columns of a dataset; opens one file where that must be. None if that does not tell."""
    match dataset:
        case PartitionedDataSet():
            return schema_of_dataset(dataset[0]) if len(dataset) else None
        case ArrowTableDataSet():
            return schema_of_arrow(dataset.to_arrow_table().schema)
        case PandasDataSet():
            return schema_of_arrow(pa.Schema.from_pandas(dataset.to_pandas(), preserve_index=False))
        case CsvDataSet() | JsonDataSet():
            names = dataset.columns or list(dataset.schema)
            return {name: duckdb.type(dataset.schema[name]) for name in names}
        case ParquetDataSet():
            return _schema_of_parquet(dataset)
        case SqlQueryDataSet():
            with scratch(alone=True) as conn:
                return _columns(conn.sql(f"SELECT * FROM {dataset.sql_query_fragment(None, conn)}"))
    return None


def _schema_of_parquet(dataset: ParquetDataSet) -> Schema | None:
    files = dataset.resolved_paths
    if not files or (dataset.union_by_name and len(files) > MAX_FILES_UNITED):
        return None
    if not dataset.union_by_name:
        first = files[0]
        files = files_in(first, dataset.recursive)[:1] if os.path.isdir(first) else [first]
    read = dataset._of_files(files)
    with scratch() as conn:
        columns = _columns(conn.sql(f"SELECT * FROM {read.sql_query_fragment()}"))
    may_have_twins = any(RENAMED.search(name) for name in columns)
    return _with_twins(columns, read.to_batch_reader().schema.names) if may_have_twins else columns


def _with_twins(columns: Schema, names: Sequence[str]) -> Schema:
    """The columns that SQL reads of those with these names."""
    count = Counter(name.lower() for name in names)
    made = SchemaWithTwins(columns)
    made.twins = [name for name in names if count[name.lower()] > 1]
    return made if made.twins else columns


def schema_of_arrow(schema: pa.Schema) -> Schema:
    """The DuckDB types that columns of Arrow's types have, once they were written as Parquet: there a duration is a number."""
    schema = with_durations_as(schema, pa.int64())
    with scratch() as conn:
        conn.register("given", schema.empty_table())
        try:
            return _with_twins(_columns(conn.sql("FROM given")), schema.names)
        finally:
            conn.unregister("given")


def arrow_schema(schema: Schema) -> pa.Schema:
    """The Arrow types that columns of DuckDB's types are read as."""
    with scratch() as conn:
        conn.execute(f"CREATE TEMP TABLE __of_arrow ({columns_of_table(schema)})")
        return conn.sql("FROM __of_arrow").to_arrow_table().schema


def _columns(relation: Any) -> Schema:
    return {name: _stored(kind) for name, kind in zip(relation.columns, relation.types, strict=True)}


def stored(schema: Schema | None) -> Schema | None:
    """The types that columns have once they were written as Parquet."""
    return None if schema is None else {name: _stored(kind) for name, kind in schema.items()}


def _stored(kind: Any) -> Any:
    if kind.id in ("hugeint", "uhugeint"):
        return duckdb.type("DOUBLE")
    if kind.id == "enum":
        return duckdb.type("VARCHAR")
    return duckdb.type("INTEGER") if str(kind) in ('"NULL"', "NULL") else kind


def holds_intervals(nodes: Iterable[Node]) -> bool:
    """Whether any node is known to have a column of type INTERVAL, at any depth."""
    return any(_holds_interval(kind) for node in nodes for kind in (schema_of(node) or {}).values())


def check_storable(nodes: Iterable[Node]) -> None:
    """Refuse nodes whose rows files can't hold as they are: Parquet's intervals lose microseconds, and can't be negative.

    Raises:
        InvalidArgument: naming the column, the line of the script, and what to do.
    """
    for node in nodes:
        schema = schema_of(node) if isinstance(node, (SqlEngineNode, HashPartitionNode)) else None
        for name, kind in (schema or {}).items():
            if _holds_interval(kind):
                raise node.invalid(
                    f"column {name!r} is of type {kind}, which files of intermediate results can't hold exactly: make it a number or a text "
                    f"where it is made, by epoch_us(...) (microseconds) or CAST(... AS VARCHAR), and CAST(... AS INTERVAL) or to_microseconds(...) "
                    "where an INTERVAL is needed"
                )


def _holds_interval(kind: Any) -> bool:
    if kind.id in ("list", "array", "struct", "map", "union"):
        return any(hasattr(part, "id") and _holds_interval(part) for _, part in kind.children)
    return bool(kind.id == "interval")


# queries


def bound(node: SqlEngineNode) -> Schema | None:
    """The columns that a node's query gives, with the types that it computes. None if that can't be known without running it.

    Raises:
        UnknownColumn, InvalidQuery: the query does not fit its inputs.
    """
    schemas = [schema_of(dep) if dep not in _known else _known[dep] for dep in node.input_deps]
    if len(node.sql_queries) != 1 or type(node).spawn is not SqlEngineNode.spawn or "spawn" in node.__dict__:
        return None
    query = node.whole_query if isinstance(node, KeyedSqlNode) else node.sql_queries[0]
    return bound_query(query, schemas, node, node.udfs)


def bound_query(
    query: str, schemas: Sequence[Schema | None], node: Node | None = None, udfs: Sequence[Any] = ()
) -> Schema | None:
    """The columns of a query over inputs of these columns (see `bound`)."""
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


# what a query reads


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
