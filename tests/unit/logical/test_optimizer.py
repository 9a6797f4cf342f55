"""Queries are fused where the result is surely the same, and only there."""

from typing import Any

import duckdb
import pytest

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.sql import format_query
from smallpond_mpi.logical.node import Context, LimitNode, LogicalPlan, Node, SqlEngineNode, UnionNode
from smallpond_mpi.logical.optimizer import MAX_FUSED_NODES, Optimizer
from smallpond_mpi.logical.planner import Planner
from smallpond_mpi.logical.udf import UDFType
from tests.unit.logical.plan_builders import evenly, kinds, source, sql, upstream


def rows(conn: duckdb.DuckDBPyConnection, *queries: str) -> list[tuple[Any, ...]]:
    """The rows of the last query, each reading the one before as a table of its own."""
    table = "numbers"
    for number, query in enumerate(queries):
        statement = format_query(query, {"0": table, "__data_partition__": 3})
        table = f"step_{number}"
        conn.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS {statement}")
    return conn.execute(f"FROM {table}").fetchall()


@pytest.fixture
def conn() -> duckdb.DuckDBPyConnection:
    made = duckdb.connect()
    made.execute("CREATE TABLE numbers AS SELECT i, i * 7919 % 101 AS v FROM range(100) r(i)")
    return made


def chain(ctx: Context, *queries: str) -> SqlEngineNode:
    node: Node = source(ctx)
    for query in queries:
        node = sql(ctx, node, query=query)
    assert isinstance(node, SqlEngineNode)
    return node


FUSED = [
    ("SELECT i FROM {0}", "SELECT i + 1 AS i FROM {0}"),
    ("SELECT * FROM {0} ORDER BY v", "SELECT v FROM {0} WHERE v % 2 = 0"),
    ("select i from {0} -- a comment", "  -- another\n  /* and\n one */ select {0}.i from {0} where {0}.i > 5;"),
    ("WITH a AS (SELECT i FROM {0}) FROM a", "WITH b AS (FROM {0} WHERE i < 7) SELECT sum(i) FROM b"),
    (
        "SELECT i FROM {0} LIMIT 3",
        "with recursive r as (select 1 as n union all select n + 1 from r where n < 3) from {0} join r on n = i",
    ),
    ("SELECT v, count(*) AS n FROM {0} GROUP BY v;", "SELECT q.n FROM {0} AS q UNION ALL SELECT 0"),
    ("SELECT i FROM {0}", "SELECT 5 AS five, {__data_partition__} AS p FROM {0}"),
    ("SELECT sum(i) AS s FROM {0}", "SELECT typeof(s) FROM {0}"),
    ("SELECT {{'a': i}} AS s FROM {0}", "SELECT s.a FROM {0}"),
    ("FROM {0} SELECT i WHERE i < 10", "SELECT i FROM {0}", "SELECT max(i) FROM {0}", "FROM {0}"),
]


@pytest.mark.parametrize("queries", FUSED)
def test_fused_queries_give_the_same_rows(
    ctx: Context, conn: duckdb.DuckDBPyConnection, queries: tuple[str, ...]
) -> None:
    node = chain(ctx, *queries)
    fused = Optimizer().visit(node)
    assert isinstance(fused, SqlEngineNode)
    assert kinds_of(fused) == ["DataSourceNode", "SqlEngineNode"]
    assert rows(conn, *fused.sql_queries) == rows(conn, *queries)
    assert (fused.id, fused.location) == (node.id, node.location)
    assert node.sql_queries == [queries[-1]], "the plan itself stays as it is"


def kinds_of(node: Node) -> list[str]:
    return [type(other).__name__ for other in LogicalPlan(node.ctx, node).nodes.values()]


LEFT_ALONE = [
    ("SELECT i FROM {0}", "SELECT * FROM {0} a JOIN {0} b USING (i)"),
    ("SELECT random() AS r FROM {0}", "SELECT 1"),
    ("CREATE TABLE t AS FROM {0}; FROM t", "SELECT i FROM {0}"),
    ("SELECT i FROM {0}", "SET threads=1; SELECT i FROM {0}"),
    ("SELECT i FROM {0}", "SELECT {'a': i} AS s FROM {0}"),
    ("COPY (FROM {0}) TO 'x'", "SELECT i FROM {0}"),
    ("SELECT '{output_filename}' AS f FROM {0}", "SELECT f FROM {0}"),
    ("PIVOT {0} ON v", "SELECT i FROM {0}"),
    ("SELECT i FROM {0}", "SUMMARIZE SELECT i FROM {0}"),
    ("SELECT i FROM {0}", "SELECT i FROM {0}" + " " * 40_000 + "WHERE true"),
]


@pytest.mark.parametrize("queries", LEFT_ALONE)
def test_text_that_could_be_something_else(ctx: Context, queries: tuple[str, str]) -> None:
    node = chain(ctx, *queries)
    assert Optimizer().visit(node) is node


SIMPLE = "SELECT * FROM {0}"


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ({"output_name": "kept"}, {}),
        ({"output_path": "/kept"}, {}),
        ({"memory_limit": 2**30}, {}),
        ({"memory_limit": 2**30}, {"memory_limit": 2**31}),
        ({"batched_processing": True}, {}),
        ({}, {"batched_processing": True}),
        ({"cpu_overcommit_ratio": 2.0}, {}),
        ({"sql_query": [SIMPLE, SIMPLE]}, {}),
    ],
)
def test_nodes_that_do_more_than_a_query(ctx: Context, inner: dict[str, Any], outer: dict[str, Any]) -> None:
    node = SqlEngineNode(ctx, (source(ctx),), **{"sql_query": SIMPLE} | inner)
    top = SqlEngineNode(ctx, (node,), **{"sql_query": SIMPLE} | outer)
    assert Optimizer().visit(top) is top


@pytest.mark.parametrize(("setting", "value"), [("timeout_secs", 5.0), ("isolated", True)])
@pytest.mark.parametrize("which", [0, 1])
def test_nodes_with_a_setting_for_their_attempts(ctx: Context, setting: str, value: object, which: int) -> None:
    inner = chain(ctx, SIMPLE)
    outer = sql(ctx, inner)
    setattr((inner, outer)[which], setting, value)
    assert Optimizer().visit(outer) is outer


def test_subclasses_are_left_alone(ctx: Context) -> None:
    class Own(SqlEngineNode):
        pass

    inner = Own(ctx, (source(ctx),), SIMPLE)
    outer = Own(ctx, (sql(ctx, inner),), SIMPLE)
    assert Optimizer().visit(outer) is outer
    assert Optimizer().visit(limit := LimitNode(ctx, sql(ctx, source(ctx)), 3)) is limit


def test_a_node_with_two_readers_is_computed_once(ctx: Context) -> None:
    shared = chain(ctx, SIMPLE)
    top = UnionNode(ctx, (sql(ctx, shared), sql(ctx, shared)))
    assert Optimizer().visit(top) is top


def test_excluded_nodes_are_kept(ctx: Context) -> None:
    first = chain(ctx, "SELECT 1 AS a FROM {0}", "SELECT 2 AS b FROM {0}")
    wanted = sql(ctx, first)
    top = sql(ctx, wanted)
    optimized = Optimizer({wanted}).visit(top)
    assert optimized is top, "what is wanted is there already, with all that it needs"
    assert len(kinds_of(Optimizer({first}).visit(top))) == 4


def test_limits_and_functions_of_both(ctx: Context) -> None:
    for name in ("f", "g"):
        ctx.create_function(name, abs, [UDFType.INTEGER], UDFType.INTEGER)
    inner = sql(ctx, source(ctx), udfs=["f"], cpu_limit=4, enable_temp_directory=True)
    outer = sql(ctx, inner, udfs=["f", "g"], cpu_limit=2, output_name="result", parquet_compression="SNAPPY")
    fused = Optimizer().visit(outer)
    assert isinstance(fused, SqlEngineNode)
    assert fused.input_deps == inner.input_deps
    assert [udf.name for udf in fused.udfs] == ["f", "g"]
    assert (fused.cpu_limit, fused.enable_temp_directory) == (4, True)
    assert (fused.output_name, fused.parquet_compression) == ("result", "SNAPPY")
    assert (outer.cpu_limit, len(outer.udfs)) == (2, 2)


def test_functions_of_one_name_keep_queries_apart(ctx: Context) -> None:
    ctx.create_function("f", abs, None, None)
    inner = sql(ctx, source(ctx), udfs=["f"])
    ctx.create_function("f", hex, None, None)
    outer = sql(ctx, inner, udfs=["f"])
    assert Optimizer().visit(outer) is outer


def test_nodes_above_a_fused_one_read_it(ctx: Context, job: RuntimeContext) -> None:
    query = sql(ctx, sql(ctx, evenly(ctx, source(ctx), 3)))
    top = LimitNode(ctx, query, 5)
    optimized = Optimizer().visit(top)
    assert (type(optimized), optimized.id, optimized.perf_metrics is top.perf_metrics) == (LimitNode, top.id, True)
    planner = Planner(job)
    tasks = upstream(planner.plan_node(optimized))
    assert kinds(tasks).count("SqlEngineTask") == 3 + 3 + 1
    assert planner.plan_node(top) == planner.plan_node(optimized), "one stands for the other"
    assert planner.is_planned(query)


def test_a_long_chain_is_fused_in_pieces(ctx: Context) -> None:
    node = chain(ctx, *["SELECT i + 1 AS i FROM {0}"] * 1000)
    fused = Optimizer().visit(node)
    assert kinds_of(fused).count("SqlEngineNode") == -(-1000 // MAX_FUSED_NODES)


def test_the_longest_fused_query_can_be_run(ctx: Context, conn: duckdb.DuckDBPyConnection) -> None:
    node = Optimizer().visit(chain(ctx, *["SELECT i + 1 AS i FROM {0}"] * MAX_FUSED_NODES))
    assert isinstance(node, SqlEngineNode)
    assert rows(conn, *node.sql_queries) == [(i + MAX_FUSED_NODES,) for i in range(100)]
