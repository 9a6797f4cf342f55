"""The plan as text, as a graph, and for visitors."""

from smallpond_mpi.logical.node import (
    Context,
    DataSinkNode,
    LimitNode,
    LogicalPlan,
    LogicalPlanVisitor,
    Node,
    ProjectionNode,
    RootNode,
    SqlEngineNode,
    UnionNode,
)
from tests.unit.logical.plan_builders import evenly, hashed, source, sql


def test_nodes_come_after_what_they_need(ctx: Context) -> None:
    one = source(ctx)
    left, right = sql(ctx, one), hashed(ctx, one, 2)
    root = RootNode(ctx, (right, left, right))
    nodes = LogicalPlan(ctx, root).nodes
    assert list(nodes) == [node.id for node in nodes.values()]
    assert set(nodes.values()) == {one, left, right, root}
    order = list(nodes.values())
    assert all(order.index(dep) < order.index(node) for node in order for dep in node.input_deps)


def test_explain_shows_each_node_once(ctx: Context) -> None:
    shared = evenly(ctx, source(ctx, "/data/events.parquet"), 4, dimension="day")
    query = sql(ctx, shared, query="SELECT a,\n  b FROM {0}", output_name="answer")
    root = RootNode(ctx, (query, LimitNode(ctx, shared, 9)))
    text = LogicalPlan(ctx, root).explain_str()
    lines = text.splitlines()
    assert lines[0] == f"RootNode {root.id}, 5 partitions, at {root.location}"
    assert lines[1] == f"  SqlEngineNode {query.id}, 4 partitions, at {query.location}"
    assert "query: SELECT a, b FROM {0}" in text
    assert "output_name: answer" in text
    assert "limit: 9" in text
    assert "npartitions: 4, dimension: day" in text
    assert text.count("/data/events.parquet") == 1
    assert f"    EvenlyDistributedPartitionNode {shared.id} (as above)" in lines
    assert "sum" not in text
    shared.add_perf_metrics("num output rows", [1000.0, 3000.0])
    assert "num output rows: sum 4,000, min 1,000, avg 2,000, max 3,000, of 2 tasks" in str(LogicalPlan(ctx, root))


def test_graph_is_in_graphviz_language(ctx: Context) -> None:
    first = source(ctx)
    query = sql(ctx, first, query='SELECT "a\\b" FROM {0}')
    source_text = LogicalPlan(ctx, query).graph().source
    assert source_text.startswith("digraph")
    assert f"n{int(first.id)} -> n{int(query.id)};" in source_text
    assert r"SELECT \"a\\b\" FROM {0}" in source_text


class Names(LogicalPlanVisitor[list[str]]):
    """The kinds of nodes below one, with their depths."""

    def visit_node(self, node: Node, depth: int) -> list[str]:
        below = [name for dep in node.input_deps for name in self.visit(dep, depth + 1)]
        return [f"{depth} {type(node).__name__}", *below]

    def visit_query_engine_node(self, node: SqlEngineNode, depth: int) -> list[str]:
        return [f"{depth} query", *(name for dep in node.input_deps for name in self.visit(dep, depth + 1))]


def test_visitors_have_a_method_for_each_kind(ctx: Context) -> None:
    query = sql(ctx, UnionNode(ctx, (source(ctx),)))
    root = DataSinkNode(ctx, (LimitNode(ctx, ProjectionNode(ctx, query), 1),), "/out")
    assert Names().visit(root) == [
        "0 DataSinkNode",
        "1 LimitNode",
        "2 ProjectionNode",
        "3 query",
        "4 UnionNode",
        "5 DataSourceNode",
    ]


def test_a_visitor_that_overrides_one_method_sees_all_such_nodes(ctx: Context) -> None:
    class Queries(LogicalPlanVisitor[None]):
        def __init__(self) -> None:
            self.found: list[str] = []

        def visit_query_engine_node(self, node: SqlEngineNode, depth: int) -> None:
            self.found.append(node.oneline_query)
            self.visit_node(node, depth)

    visitor = Queries()
    visitor.visit(LimitNode(ctx, sql(ctx, sql(ctx, query="SELECT 1"), query="FROM {0}"), 1))
    assert visitor.found == ["FROM {0}", "SELECT 1"]


def test_a_plan_of_five_thousand_chained_nodes_can_be_shown(ctx: Context) -> None:
    node: Node = source(ctx)
    for _ in range(5000):
        node = ProjectionNode(ctx, node)
    plan = LogicalPlan(ctx, node)
    assert len(plan.nodes) == 5001
    assert plan.explain_str().count("ProjectionNode") == 5000
    assert plan.graph().source.count("->") == 5000
