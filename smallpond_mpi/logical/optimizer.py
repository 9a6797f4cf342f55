"""Fewer tasks for the same result, and less to move.

An SQL node whose only reader is another SQL node, or a hash partition made here, runs inside that one's tasks: the inner query becomes a common
table expression of the outer one. Only what is surely the same is fused: text that could be anything else than one SELECT, or that reads its
input more than once, is left alone. Nodes that need rows brought together are replaced by those that do it (see lowering.py). Before all that
columns that nobody reads are left out (see pruning.py).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from smallpond_mpi.logical.dataset import DataSet
from smallpond_mpi.logical.estimate import Estimates
from smallpond_mpi.logical.expressions import gives_the_same_again
from smallpond_mpi.logical.lowering import PRODUCERS_A_SLOT, Lowering, is_by_row_over_source
from smallpond_mpi.logical.node.base import Node, topological
from smallpond_mpi.logical.node.hash_partition import HashPartitionNode
from smallpond_mpi.logical.node.keyed import KeyedSqlNode
from smallpond_mpi.logical.node.plan import LogicalPlanVisitor
from smallpond_mpi.logical.node.sort import SortNode
from smallpond_mpi.logical.node.sql import LimitNode, SqlEngineNode
from smallpond_mpi.logical.origin import place_of_both
from smallpond_mpi.logical.pruning import pruned
from smallpond_mpi.logical.query_columns import on_tables
from smallpond_mpi.logical.query_text import nested_query, parsed
from smallpond_mpi.logical.top_rows import MAX_TOP_ROWS, order_of, rows_of_sort

NUM_READERS_IN_SORT = 2  # split points and ranges
MAX_FUSED_NODES = 16  # nested deeper, DuckDB's binder takes long


def nothing_computed(node: Node) -> None:
    """Of a plan that stands for itself."""


class Optimizer(LogicalPlanVisitor[Node]):
    """Makes the optimized version of a plan; the plan itself stays as it is.

    A node that had to be changed is replaced by a version with the same id, location and metrics, so that planner and reports take
    one for the other.

    Args:
        exclude_nodes: nodes whose output is wanted or there already: neither changed nor fused into others.
        computed: the outputs of nodes that were computed already, None of others: how much they are.
    """

    def __init__(
        self,
        exclude_nodes: Iterable[Node] = (),
        computed: Callable[[Node], Sequence[DataSet] | None] = nothing_computed,
    ) -> None:
        self._held = list(exclude_nodes)  # keeps the identities of contexts valid
        self._excluded = {(id(node.ctx), int(node.id)) for node in self._held}
        self._optimized: dict[Node, Node] = {}
        self._num_readers: Counter[Node] = Counter()
        self._num_fused: dict[Node, int] = {}
        self._lowering = Lowering(Estimates(computed), self._is_free)
        self._fusable: set[Node] = set()
        """Optimized nodes that may run inside the tasks of whoever reads them, as may what lowering made."""

    def plans(self, roots: Sequence[Node]) -> list[Node]:
        """The optimized versions of several plans, which are to run together."""
        narrowed = pruned(roots, self.is_excluded)
        self._num_readers.update(narrowed)  # who asked for them reads them too
        return [self.visit(root) for root in narrowed]

    def visit(self, node: Node, depth: int = 0) -> Node:
        """The optimized version of a node and of all that it needs."""
        if node in self._optimized:
            return self._optimized[node]
        needed = topological([node], known=lambda other: other in self._optimized)
        self._num_readers.update(dep for reader in needed if not self.is_excluded(reader) for dep in reader.input_deps)
        for other in needed:
            if self.is_excluded(other):
                self._optimized[other] = other
                continue
            made = self._optimized[other] = super().visit(other, depth)
            if self._num_readers[other] == 1 or (self._num_readers[other] and is_by_row_over_source(made)):
                self._fusable.add(made)
        return self._optimized[node]

    def is_excluded(self, node: Node) -> bool:
        """Whether a node is to stay as it is."""
        return (id(node.ctx), int(node.id)) in self._excluded

    def visit_node(self, node: Node, depth: int) -> Node:
        rows = rows_of_sort(node)
        if rows is not None and self._lowering.is_for_one_task([rows]):
            return node.with_inputs((self._lowering.whole(self._rows_to_sort(rows)),))
        inputs = tuple(self._optimized[dep] for dep in node.input_deps)
        unchanged = all(new is old for new, old in zip(inputs, node.input_deps, strict=True))
        return node if unchanged else node.with_inputs(inputs)

    def visit_query_engine_node(self, node: SqlEngineNode, depth: int) -> Node:
        """SQL on SQL as one query, where that gives the same rows."""
        made = self.visit_node(node, depth)
        assert isinstance(made, SqlEngineNode)
        return self._with_inputs_fused(made)

    def visit_limit_node(self, node: LimitNode, depth: int) -> Node:
        """The first rows of a sort are found partition by partition."""
        (sort,) = node.input_deps
        if not isinstance(sort, SortNode):
            return self.visit_node(node, depth)
        rows = rows_of_sort(sort) if self._num_readers[sort] == 1 and not self.is_excluded(sort) else None
        order = None if rows is None or node.limit > MAX_TOP_ROWS else order_of(sort.sort_keys, rows)
        if rows is None or order is None:
            return self.visit_node(node, depth)
        query = f"SELECT * FROM {{0}} {order} LIMIT {node.limit}"
        first = self._lowering.between(SqlEngineNode(node.ctx, (self._rows_to_sort(rows),), query), node)
        assert isinstance(first, SqlEngineNode)
        fused = self._with_inputs_fused(first)
        self._lowering.made.add(fused)
        whole = self._lowering.whole(fused)
        if whole is fused:  # of one partition these are the rows
            fused.id = node.id
            return fused
        made = node.with_inputs((whole,))
        assert isinstance(made, LimitNode)
        made.sql_queries = [query]
        return made

    def _rows_to_sort(self, rows: Node) -> Node:
        """What is sorted, read by nobody else once ranges and split points are not needed."""
        optimized = self._optimized[rows]
        if self._num_readers[rows] == NUM_READERS_IN_SORT and not self.is_excluded(rows):
            self._fusable.add(optimized)
        return optimized

    def visit_keyed_sql_node(self, node: KeyedSqlNode, depth: int) -> Node:
        """Nodes that bring rows together, and the query over them."""
        lowered = self._lowering.lower(node, [self._optimized[dep] for dep in node.input_deps])
        moved = [self._fused_into_partition(dep) for dep in lowered.input_deps]
        lowered.input_deps = tuple(map(self._settled, moved))
        return self._with_inputs_fused(lowered)

    def _settled(self, node: Node) -> Node:
        """Nodes that lowering has put in, with what they read fused into them."""
        if node not in self._lowering.made or isinstance(node, HashPartitionNode):
            return node
        inputs = tuple(map(self._settled, node.input_deps))
        made = node.with_inputs(inputs)
        if isinstance(made, SqlEngineNode):
            made = self._with_inputs_fused(made)
        self._lowering.made.add(made)
        return made

    def _with_inputs_fused(self, node: SqlEngineNode) -> SqlEngineNode:
        """The node with each input that may run inside its tasks doing so: from the last on, so that the numbers of those before hold."""
        for position in reversed(range(len(node.input_deps))):
            inner = node.input_deps[position]
            if not self._may_be_fused(inner, position, node):
                continue
            assert isinstance(inner, SqlEngineNode)
            fused = fuse(node, inner, position)
            if fused is not None:
                self._num_fused[fused] = self._num_fused.get(inner, 1) + self._num_fused.get(node, 1)
                node = fused
        return node

    def _may_be_fused(self, inner: Node, position: int, outer: Node) -> bool:
        return (
            isinstance(inner, SqlEngineNode)
            and self._is_free(inner)
            # What has several inputs itself stays first: the order of the pairs is that of the first input.
            and (position == 0 or is_by_row_over_source(inner) or self._may_be_repeated(inner))
            and outer.input_deps.count(inner) == 1
            and self._num_fused.get(inner, 1) + self._num_fused.get(outer, 1) <= MAX_FUSED_NODES
        )

    def _may_be_repeated(self, inner: SqlEngineNode) -> bool:
        """Whether a node may run in each task of its reader: with next to nothing to do, and with the same rows in all of them."""
        if inner.udfs or not self._lowering.is_tiny(inner.input_deps):
            return False
        tables = [f"input_{index}" for index in range(len(inner.input_deps))]
        return all(gives_the_same_again(on_tables(query, tables, inner)) for query in inner.sql_queries)

    def _is_free(self, node: Node) -> bool:
        return node in self._fusable or node in self._lowering.made

    def _fused_into_partition(self, node: Node) -> Node:
        """A hash partition that lowering made, with the query that it reads running in its producers."""
        if not isinstance(node, HashPartitionNode) or node not in self._lowering.made:
            return node
        (inner,) = node.input_deps
        if not (isinstance(inner, SqlEngineNode) and self._is_free(inner) and is_plain(inner) and not inner.udfs):
            return node
        if inner.output_name is not None or inner.output_path is not None:
            return node
        query = inner.sql_queries[0]
        if node.query is not None:
            nested = nested_query(node.query, query, f"__query_{inner.id}", 0, len(inner.input_deps))
            if nested is None:
                return node
            query = nested
        elif parsed(query) is None:
            return node
        node.location = place_of_both(node.location, node.query or "", inner.location, inner.sql_queries[0])
        node.query = query
        node.input_deps = inner.input_deps
        node.is_cut_freely = inner.is_by_row
        node.num_broadcast_inputs = len(inner.input_deps) - 1
        if node.num_broadcast_inputs:
            # Each producer reads all of these, and holds little else: fewer and larger ones.
            fewer = math.ceil(node.max_num_producer_tasks / (2 * PRODUCERS_A_SLOT))
            node.max_num_producer_tasks = min(node.max_num_producer_tasks, max(node.ctx.num_slots, fewer))
        node.cpu_limit = max(node.cpu_limit, inner.cpu_limit)
        node.memory_limit = max(filter(None, (node.memory_limit, inner.memory_limit)), default=None)
        return node


def fuse(outer: SqlEngineNode, inner: SqlEngineNode, position: int = 0) -> SqlEngineNode | None:
    """A version of `outer` that computes `inner`, its input at `position`, too, or None where that could be something else."""
    if not (is_plain(outer) and is_plain(inner)) or not have_equal_limits(outer, inner):
        return None
    if inner.output_name is not None or inner.output_path is not None:
        return None
    udfs = {udf.name: udf for udf in (*inner.udfs, *outer.udfs)}
    if any(udfs[udf.name] is not udf for udf in inner.udfs):
        return None
    query = nested_query(
        outer.sql_queries[0],
        inner.sql_queries[0],
        f"__query_{inner.id}",
        position,
        len(inner.input_deps),
        len(outer.input_deps),
    )
    if query is None:
        return None
    before, after = outer.input_deps[:position], outer.input_deps[position + 1 :]
    fused = outer.with_inputs((*before, *inner.input_deps, *after))
    assert isinstance(fused, SqlEngineNode)
    fused.sql_queries = [query]
    fused.location = place_of_both(outer.location, outer.sql_queries[0], inner.location, inner.sql_queries[0])
    fused.udfs = list(udfs.values())
    fused.is_by_row = outer.is_by_row and (position > 0 or inner.is_by_row)
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
