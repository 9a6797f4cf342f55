"""Columns that nobody reads are left out; everything else stays as it was."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.logical import joins
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.expressions import counts_columns
from smallpond_mpi.logical.node import (
    ArrowComputeNode,
    Context,
    DataSourceNode,
    HashPartitionNode,
    LimitNode,
    Node,
    SqlEngineNode,
)
from smallpond_mpi.logical.node.base import topological
from smallpond_mpi.logical.node.keyed import KeyedSqlNode
from smallpond_mpi.logical.pruning import pruned
from smallpond_mpi.logical.query_columns import columns_read
from smallpond_mpi.logical.schema import schema_of
from tests.unit.logical.plan_builders import sql

Source = Callable[..., DataSourceNode]


@pytest.fixture
def source(ctx: Context, tmp_path: Path) -> Source:
    def make(name: str, *columns: str) -> DataSourceNode:
        path = str(tmp_path / f"{name}.parquet")
        pq.write_table(pa.table({column: [1, 2, 3] for column in columns}), path)
        return DataSourceNode(ctx, ParquetDataSet([path]))

    return make


def made_of(root: Node, *kept: Node) -> Node:
    (made,) = pruned([root], lambda node: node in kept)
    return made


def columns(node: Node) -> list[str]:
    schema = schema_of(node)
    assert schema is not None
    return list(schema)


def test_only_what_is_read_comes_out_of_files_and_joins(ctx: Context, source: Source) -> None:
    left, right = source("left", "k", "a", "b", "c"), source("right", "k", "x", "y")
    join = joins.joined(left, right, "k", "inner", "_right", {})
    root = sql(ctx, join, query="SELECT a, x FROM {0} WHERE x > 1")
    made = made_of(root)
    (narrow,) = made.input_deps
    assert made.id == root.id
    assert columns(made) == ["a", "x"]
    assert isinstance(narrow, KeyedSqlNode)
    assert columns(narrow) == ["a", "x"]
    assert narrow.id != join.id, "whoever asks for all columns must not be given these"
    assert '"b"' not in narrow.sql_queries[0]
    assert '"y"' not in narrow.whole_query
    assert [columns(dep) for dep in narrow.input_deps] == [["k", "a"], ["k", "x"]]
    assert columns(join) == ["k", "a", "b", "c", "x", "y"]


def test_columns_that_a_text_names_and_does_not_need_are_null(ctx: Context, source: Source) -> None:
    numbers = sql(ctx, source("numbers", "a", "b", "c"), query="SELECT a, b, a + c AS d FROM {0}")
    root = sql(ctx, numbers, query="WITH t AS (SELECT a, b + d AS unread FROM {0}) SELECT a FROM t")
    (inner,) = made_of(root).input_deps
    assert columns(inner) == ["a"]
    made = made_of(root)
    assert isinstance(made, SqlEngineNode)
    assert "CAST(NULL AS BIGINT)" in made.sql_queries[0]
    assert columns(made) == ["a"]


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("SELECT * FROM {0} ORDER BY 2 LIMIT 1", [10]),
        ("SELECT a, #2 AS b FROM {0} LIMIT 1", [1]),
        ("FROM {0} WHERE b < 6 UNION ALL FROM {1} WHERE x < 1", [10]),
    ],
)
def test_columns_that_a_text_counts_stay_where_they_are(
    ctx: Context, tmp_path: Path, query: str, values: list[int]
) -> None:
    path = str(tmp_path / "some.parquet")
    pq.write_table(pa.table({"x": [1, 2], "b": [6, 5], "a": [1, 10]}), path)
    sources = [DataSourceNode(ctx, ParquetDataSet([path])) for _ in range(query.count("{"))]
    root = sql(ctx, sql(ctx, *sources, query=query), query="SELECT a FROM {0}")
    (narrow,) = made_of(root).input_deps
    assert isinstance(narrow, SqlEngineNode)
    selected = [
        f"({dep.sql_queries[0].format(repr(path))})" if isinstance(dep, SqlEngineNode) else repr(path)
        for dep in narrow.input_deps
    ]
    with duckdb.connect() as conn:
        assert [a for (a,) in conn.execute(narrow.sql_queries[0].format(*selected)).fetchall()] == values


@pytest.mark.parametrize(
    ("query", "counted"),
    [
        ("SELECT a, b FROM t ORDER BY 2", False),
        ("SELECT a, sum(b) FROM t GROUP BY 1", False),
        ("SELECT * FROM t WHERE a > 2 ORDER BY b", False),
        ("SELECT * FROM t ORDER BY 2", True),
        ("FROM t ORDER BY 2", True),
        ("SELECT #2 FROM t", True),
        ("FROM t UNION ALL FROM u", True),
        ("SELECT x FROM t AS s(x, y)", True),
        ("WITH s(x, y) AS (FROM t) SELECT x FROM s", True),
        ("SELECT a FROM (SELECT * FROM t ORDER BY 2 LIMIT 3)", True),
        ("no sql", True),
    ],
)
def test_only_what_counts_columns_gets_all_of_them(query: str, counted: bool) -> None:
    assert counts_columns(query) == counted


def test_rows_are_counted_by_one_column(ctx: Context, source: Source) -> None:
    made = made_of(sql(ctx, source("numbers", "a", "b"), query="SELECT count(*) AS n FROM {0}"))
    assert columns(made.input_deps[0]) == ["a"]


def test_the_columns_of_all_readers_are_kept(ctx: Context, source: Source) -> None:
    shared = sql(ctx, source("numbers", "a", "b", "c"), query="SELECT * FROM {0} WHERE c > 1")
    one, other = sql(ctx, shared, query="SELECT a FROM {0}"), sql(ctx, shared, query="SELECT b FROM {0}")
    made = pruned([one, other], lambda node: False)
    assert made[0].input_deps == made[1].input_deps
    assert columns(made[0].input_deps[0]) == ["a", "b"]


@pytest.mark.parametrize(
    "reader",
    [
        lambda ctx, dep: ArrowComputeNode(ctx, (dep,), process_func=lambda ctx, tables: tables[0]),
        lambda ctx, dep: HashPartitionNode(ctx, (dep,), 3, ["a"]),
        lambda ctx, dep: sql(ctx, dep, query="SELECT p.a FROM {0} p JOIN {0} q ON p.b = q.a"),
        lambda ctx, dep: sql(ctx, dep, query=["SELECT a FROM {0}", "SELECT b FROM {0}"]),
        lambda ctx, dep: sql(ctx, dep, query="SELECT a FROM {0}", output_name="named"),
    ],
    ids=["Python", "partitions of the user's", "self-join", "two queries", "named"],
)
def test_what_may_need_all_columns_gets_them(
    ctx: Context, source: Source, reader: Callable[[Context, Node], Node]
) -> None:
    rows = sql(ctx, source("numbers", "a", "b", "c"), query="SELECT * FROM {0} WHERE c > 1")
    root = sql(ctx, reader(ctx, rows), query="SELECT a FROM {0}")
    assert rows in topological([made_of(root)])


def test_roots_and_what_is_computed_stay_as_they_are(ctx: Context, source: Source) -> None:
    rows = sql(ctx, source("numbers", "a", "b"), query="SELECT * FROM {0} WHERE b > 1")
    assert made_of(rows) is rows
    root = sql(ctx, rows, query="SELECT a FROM {0}")
    assert made_of(root, rows) is root


def test_a_limit_reads_files_itself(ctx: Context, source: Source) -> None:
    numbers = source("numbers", "a", "b")
    limit = LimitNode(ctx, numbers, 2)
    (made,) = made_of(sql(ctx, limit, query="SELECT a FROM {0}")).input_deps
    assert made.input_deps == (numbers,)


def test_wide_tables(ctx: Context, source: Source) -> None:
    names = [f"a_rather_long_name_{number}" for number in range(1500)]
    rows = sql(ctx, source("wide", *names), query="SELECT * FROM {0} WHERE a_rather_long_name_7 > 1")
    root = sql(ctx, rows, query=f"WITH t AS (SELECT {', '.join(names)} FROM {{0}}) SELECT {names[3]} FROM t")
    made = made_of(root)
    assert columns(made) == [names[3]]
    assert columns(made.input_deps[0]) == [names[3]]
    assert columns(made.input_deps[0].input_deps[0]) == [names[3], names[7]]


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ("SELECT x.a, y.b FROM {0} x JOIN {1} y ON x.c = y.c", [["a", "c"], ["b", "c"]]),
        ("SELECT a FROM {0} WHERE c IN (SELECT b FROM {1})", [["a", "c"], ["b"]]),
        ("SELECT x.* FROM {0} x ANTI JOIN {1} y ON x.a = y.a", [["a", "b", "c"], ["a"]]),
        ("SELECT count(*) FROM {0}, {1}", [[], []]),
        ("SELECT a FROM {0} UNION ALL SELECT b FROM {1} WHERE false", [["a"], ["b"]]),
        ("SELECT nonsense FROM {0}, {1}", None),
    ],
)
def test_columns_read(ctx: Context, source: Source, query: str, read: list[list[str]] | None) -> None:
    schema = schema_of(source("numbers", "a", "b", "c"))
    assert schema is not None
    assert columns_read(query, [schema, schema]) == read


def test_a_field_of_a_struct_reads_its_column() -> None:
    kind = duckdb.struct_type({"a": duckdb.type("INTEGER"), "b c": duckdb.struct_type({"x": duckdb.type("INTEGER")})})
    columns = {"s": kind, "s.a": duckdb.type("INTEGER"), 'q"r': kind, "v": duckdb.type("INTEGER"), "sa": kind}
    assert columns_read("SELECT s.a FROM {0}", [columns]) == [["s", "s.a"]]
    assert columns_read('SELECT v, "q""r"."b c".x FROM {0}', [columns]) == [['q"r', "v"]]
    assert columns_read("SELECT sa['a'], count(*) FROM {0} GROUP BY 1", [columns]) == [["sa"]]
