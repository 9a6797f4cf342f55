"""Fewer tasks for the same result: an SQL node whose only reader is another SQL node runs inside that one's tasks.

The inner query becomes a common table expression of the outer one. Only what is surely the same is fused: text that could be anything
else than one SELECT, or that reads its input more than once, is left alone.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from smallpond_mpi.logical.node.base import Node, topological
from smallpond_mpi.logical.node.plan import LogicalPlanVisitor
from smallpond_mpi.logical.node.sql import SqlEngineNode

MAX_QUERY_CHARS = 32 * 1024  # longer ones are hard to read in an error
MAX_FUSED_NODES = 16  # nested deeper, DuckDB's binder takes long

FIELD = re.compile(r"\{[\w@]+\}")
INPUT = re.compile(r"\{0\}")
INPUT_AS_TABLE = re.compile(r"\{0\}(?!\s*\.)")
COMMENTS = re.compile(r"(\s|--[^\n]*(\n|$)|/\*.*?\*/)*", re.DOTALL)
SELECT = re.compile(r"(select|from)\b", re.IGNORECASE)
WITH = re.compile(r"with(\s+recursive)?\b", re.IGNORECASE)
FILE_NAME = "{output_filename}"


class Optimizer(LogicalPlanVisitor[Node]):
    """Makes the optimized version of a plan; the plan itself stays as it is.

    A node that had to be changed is replaced by a version with the same id, location and metrics, so that planner and reports take
    one for the other.

    Args:
        exclude_nodes: nodes whose output is wanted or there already: neither changed nor fused into others.
    """

    def __init__(self, exclude_nodes: Iterable[Node] = ()) -> None:
        self._held = list(exclude_nodes)  # keeps the identities of contexts valid
        self._excluded = {(id(node.ctx), int(node.id)) for node in self._held}
        self._optimized: dict[Node, Node] = {}
        self._num_readers: Counter[Node] = Counter()
        self._num_fused: dict[Node, int] = {}

    def visit(self, node: Node, depth: int = 0) -> Node:
        """The optimized version of a node and of all that it needs."""
        if node in self._optimized:
            return self._optimized[node]
        needed = topological([node], known=lambda other: other in self._optimized)
        self._num_readers.update(dep for reader in needed if not self.is_excluded(reader) for dep in reader.input_deps)
        for other in needed:
            self._optimized[other] = other if self.is_excluded(other) else super().visit(other, depth)
        return self._optimized[node]

    def is_excluded(self, node: Node) -> bool:
        """Whether a node is to stay as it is."""
        return (id(node.ctx), int(node.id)) in self._excluded

    def visit_node(self, node: Node, depth: int) -> Node:
        inputs = tuple(self._optimized[dep] for dep in node.input_deps)
        unchanged = all(new is old for new, old in zip(inputs, node.input_deps, strict=True))
        return node if unchanged else node.with_inputs(inputs)

    def visit_query_engine_node(self, node: SqlEngineNode, depth: int) -> Node:
        """SQL on SQL of one input as one query, where that gives the same rows."""
        inner = self._inner(node)
        fused = None if inner is None else fuse(node, inner)
        if inner is None or fused is None:
            return self.visit_node(node, depth)
        self._num_fused[fused] = self._num_fused.get(inner, 1) + 1
        return fused

    def _inner(self, node: SqlEngineNode) -> SqlEngineNode | None:
        """The node that may run inside this one's tasks."""
        if len(node.input_deps) != 1:
            return None
        (dep,) = node.input_deps
        inner = self._optimized[dep]
        if not isinstance(inner, SqlEngineNode) or self._num_readers[dep] > 1 or self.is_excluded(dep):
            return None
        return inner if self._num_fused.get(inner, 1) < MAX_FUSED_NODES else None


def fuse(outer: SqlEngineNode, inner: SqlEngineNode) -> SqlEngineNode | None:
    """A version of `outer` that computes `inner` too, or None where that could be something else."""
    if not (is_plain(outer) and is_plain(inner)) or not have_equal_limits(outer, inner):
        return None
    if inner.output_name is not None or inner.output_path is not None or len(inner.input_deps) != 1:
        return None
    udfs = {udf.name: udf for udf in (*inner.udfs, *outer.udfs)}
    if any(udfs[udf.name] is not udf for udf in inner.udfs):
        return None
    query = nested_query(outer.sql_queries[0], inner.sql_queries[0], f"__query_{inner.id}")
    if query is None:
        return None
    fused = outer.with_inputs(inner.input_deps)
    assert isinstance(fused, SqlEngineNode)
    fused.sql_queries = [query]
    fused.udfs = list(udfs.values())
    fused.cpu_limit = max(inner.cpu_limit, outer.cpu_limit)
    fused.cpu_limit_asked = max(inner.cpu_limit_asked, outer.cpu_limit_asked)
    fused.enable_temp_directory = inner.enable_temp_directory or outer.enable_temp_directory
    return fused


def is_plain(node: SqlEngineNode) -> bool:
    """Whether a node does just what this package defines, once a partition."""
    return (
        type(node) is SqlEngineNode
        and "spawn" not in node.__dict__
        and len(node.sql_queries) == 1
        and not node.batched_processing
        and node.timeout_secs is None
        and not node.isolated
    )


def have_equal_limits(one: SqlEngineNode, other: SqlEngineNode) -> bool:
    """Whether two queries run under the same memory limit and overcommit ratios."""
    return (
        one.memory_limit == other.memory_limit
        and one.memory_overcommit_ratio == other.memory_overcommit_ratio
        and one.cpu_overcommit_ratio == other.cpu_overcommit_ratio
    )


@dataclass(frozen=True, slots=True)
class Select:
    """A text that is a single SELECT: what comes before its first word, its WITH if it has one, and the rest."""

    prefix: str
    with_clause: str
    rest: str


def parsed(query: str) -> Select | None:
    """The text as one SELECT, or None if it could be anything else."""
    text = query.rstrip().rstrip(";")
    bare = FIELD.sub("", text)
    if ";" in bare or "{" in bare or "}" in bare or FILE_NAME in text:
        return None
    start = COMMENTS.match(text)
    begin = start.end() if start else 0
    with_clause = WITH.match(text, begin)
    if with_clause:
        return Select(text[:begin], with_clause[0], text[with_clause.end() :])
    return Select(text[:begin], "", text[begin:]) if SELECT.match(text, begin) else None


def nested_query(outer: str, inner: str, name: str) -> str | None:
    """One query that reads the result of `inner` where `outer` reads `{0}`; None if that can't be said for sure."""
    outer_select, inner_select = parsed(outer), parsed(inner)
    if outer_select is None or inner_select is None or len(INPUT_AS_TABLE.findall(outer)) != 1:
        return None
    inner_text = inner.rstrip().rstrip(";")
    # The line breaks end a comment at the end of the inner query.
    table = f"{name} AS NOT MATERIALIZED (\n{inner_text}\n)"
    with_clause = f"{outer_select.with_clause} {table}," if outer_select.with_clause else f"WITH {table}\n"
    # By function: the name is no pattern of re.sub's.
    query = outer_select.prefix + with_clause + INPUT.sub(lambda _: name, outer_select.rest)
    return query if len(query) <= MAX_QUERY_CHARS else None
