"""The whole of a plan: its nodes in order, how it reads as text and as a graph, and visitors over it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.execution.task.sort_key import SortKey
from smallpond_mpi.logical.node.base import Context, Node, NodeId, shapes, topological
from smallpond_mpi.logical.node.compute import ArrowComputeNode, ArrowStreamNode, PythonScriptNode
from smallpond_mpi.logical.node.hash_partition import HashPartitionNode
from smallpond_mpi.logical.node.keyed import KeyedSqlNode
from smallpond_mpi.logical.node.partition import PartitionNode
from smallpond_mpi.logical.node.range_partition import RangePartitionNode, SplitPointsNode
from smallpond_mpi.logical.node.reshape import ConsolidateNode, ProjectionNode, UnionNode
from smallpond_mpi.logical.node.sort import SortNode
from smallpond_mpi.logical.node.source_sink import DataSinkNode, DataSourceNode, RootNode
from smallpond_mpi.logical.node.sql import LimitNode, SqlEngineNode

T = TypeVar("T")

MAX_INDENT = 40
MAX_DETAIL = 120
SHOWN_METRICS = ("elapsed wall time (secs)", "num input rows", "num output rows", "max resident set size (MB)")


class LogicalPlanVisitor(Generic[T]):
    """A method for each kind of node. What is not overridden visits the inputs and returns None.

    `visit` recurses; visitors that must bear plans of any depth visit inputs first, as the planner does.
    """

    def visit(self, node: Node, depth: int = 0) -> T:
        """Call the method of the node's kind; `depth` counts from the root."""
        return cast(T, getattr(self, node.visit_method)(node, depth))

    def visit_node(self, node: Node, depth: int) -> T:
        """Nodes of any kind that is not overridden, users' own ones among them."""
        for dep in node.input_deps:
            self.visit(dep, depth + 1)
        return cast(T, None)

    def visit_data_source_node(self, node: DataSourceNode, depth: int) -> T:
        """Files, or data in memory."""
        return self.visit_node(node, depth)

    def visit_data_sink_node(self, node: DataSinkNode, depth: int) -> T:
        """Output under a path of the user's."""
        return self.visit_node(node, depth)

    def visit_root_node(self, node: RootNode, depth: int) -> T:
        """What assembles several nodes at the top."""
        return self.visit_node(node, depth)

    def visit_union_node(self, node: UnionNode, depth: int) -> T:
        """Partitions of several inputs side by side."""
        return self.visit_node(node, depth)

    def visit_consolidate_node(self, node: ConsolidateNode, depth: int) -> T:
        """Fewer, larger partitions."""
        return self.visit_node(node, depth)

    def visit_partition_node(self, node: PartitionNode, depth: int) -> T:
        """Partition nodes of all kinds."""
        return self.visit_node(node, depth)

    def visit_split_points_node(self, node: SplitPointsNode, depth: int) -> T:
        """Where a range partitioning cuts."""
        return self.visit_node(node, depth)

    def visit_python_script_node(self, node: PythonScriptNode, depth: int) -> T:
        """A Python function of datasets."""
        return self.visit_node(node, depth)

    def visit_arrow_compute_node(self, node: ArrowComputeNode, depth: int) -> T:
        """A function of whole tables, of Arrow or pandas."""
        return self.visit_node(node, depth)

    def visit_arrow_stream_node(self, node: ArrowStreamNode, depth: int) -> T:
        """A function of batches, of Arrow or pandas."""
        return self.visit_node(node, depth)

    def visit_query_engine_node(self, node: SqlEngineNode, depth: int) -> T:
        """SQL."""
        return self.visit_node(node, depth)

    def visit_keyed_sql_node(self, node: KeyedSqlNode, depth: int) -> T:
        """SQL over rows that belong together: joins and groups of DataFrames."""
        return self.visit_query_engine_node(node, depth)

    def visit_projection_node(self, node: ProjectionNode, depth: int) -> T:
        """Other columns of the same files."""
        return self.visit_node(node, depth)

    def visit_limit_node(self, node: LimitNode, depth: int) -> T:
        """The first rows."""
        return self.visit_node(node, depth)


@dataclass(frozen=True, slots=True)
class Graph:
    """A plan in Graphviz's language: `dot -Tsvg` draws `source`."""

    source: str

    def __str__(self) -> str:
        return self.source

    def save(self, path: str) -> None:
        """Write the source to a file."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.source)


class LogicalPlan:
    """All that has to be computed for `root_node`."""

    def __init__(self, ctx: Context, root_node: Node) -> None:
        if not isinstance(root_node, Node):
            raise InvalidArgument(f"root_node must be a node, not {type(root_node).__name__}")
        self.ctx = ctx
        self.root_node = root_node

    def __str__(self) -> str:
        return self.explain_str()

    @property
    def nodes(self) -> dict[NodeId, Node]:
        """All nodes by id, inputs before what needs them."""
        return {node.id: node for node in topological([self.root_node])}

    def explain_str(self) -> str:
        """The plan as a tree, a node a line, inputs below what needs them; after a run with what its tasks measured."""
        shape_of = shapes([self.root_node])
        lines: list[str] = []
        shown: set[Node] = set()
        stack = [(self.root_node, 0)]
        while stack:
            node, depth = stack.pop()
            indent = "  " * min(depth, MAX_INDENT)
            if node in shown:
                lines.append(f"{indent}{node} (as above)")
                continue
            shown.add(node)
            count = shape_of[node].num_partitions
            lines.append(f"{indent}{node}, {count} partition{'' if count == 1 else 's'}, at {node.location}")
            lines.extend(f"{indent}    {line}" for line in (*details(node), *measured(node)))
            stack.extend((dep, depth + 1) for dep in reversed(node.input_deps))
        return "\n".join(lines)

    def graph(self) -> Graph:
        """The plan for Graphviz."""
        shape_of = shapes([self.root_node])
        lines = ["digraph logical_plan {", "  rankdir=BT;", "  node [shape=box];"]
        for node, shape in shape_of.items():
            label = "\n".join([str(node), f"{shape.num_partitions} partitions", *details(node), *measured(node)])
            lines.append(f"  n{int(node.id)} [label={json.dumps(label, ensure_ascii=False)}];")
            lines.extend(f"  n{int(dep.id)} -> n{int(node.id)};" for dep in node.input_deps)
        return Graph("\n".join([*lines, "}", ""]))


def details(node: Node) -> list[str]:
    """What tells this node from others of its kind."""
    found: list[str] = []
    match node:
        case DataSourceNode():
            found.append(f"dataset: {node.dataset!r}")
        case DataSinkNode():
            found.append(f"type: {node.type}, output_path: {node.output_path}")
        case LimitNode():
            found.append(f"limit: {node.limit}")
        case SqlEngineNode():
            found.append(f"query: {node.oneline_query}")
        case PartitionNode():
            found.append(
                f"npartitions: {node.npartitions}, dimension: {node.dimension}{', nested' if node.nested else ''}"
            )
            if isinstance(node, HashPartitionNode) and node.hash_columns:
                found.append(f"hash_columns: {', '.join(node.hash_columns)}")
            if isinstance(node, RangePartitionNode) and node.sort_keys:
                found.append(f"by: {shown_keys(node.sort_keys)}")
            if isinstance(node, HashPartitionNode) and node.query is not None:
                found.append(f"query: {' '.join(node.query.split())}")
        case SortNode() | SplitPointsNode():
            found.append(f"by: {shown_keys(node.sort_keys)}")
        case ConsolidateNode():
            found.append(f"dimensions: {', '.join(node.dimensions) or 'none'}")
        case ProjectionNode():
            found.append(f"columns: {'all' if node.columns is None else ', '.join(node.columns)}")
    if node.output_name:
        found.append(f"output_name: {node.output_name}")
    return [line if len(line) <= MAX_DETAIL else line[: MAX_DETAIL - 3] + "..." for line in found]


def shown_keys(keys: Iterable[SortKey]) -> str:
    """What is compared, as ORDER BY has it."""
    return ", ".join(f"{key.by} {key.direction}" for key in keys)


def measured(node: Node) -> list[str]:
    """What the node's tasks measured, if they ran."""
    lines = []
    for name in SHOWN_METRICS:
        stats = node.get_perf_stats(name)
        if stats is not None:
            lines.append(
                f"{name}: sum {stats.sum:,.6g}, min {stats.min:,.6g}, avg {stats.avg:,.6g}, max {stats.max:,.6g}, of {stats.cnt} tasks"
            )
    return lines
