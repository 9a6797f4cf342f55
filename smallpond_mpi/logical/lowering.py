"""How rows that belong together are brought together: what becomes of a KeyedSqlNode.

    one partition   all inputs put together -> query                              little data, or no key
    broadcast       one input cut by rows, the other whole for each part -> query the other is small
    shuffle         [query] -> hash partition of each input -> query              otherwise

The numbers of partitions follow from the guessed bytes and the places to work (`Context.num_slots`).
"""

import math
from collections.abc import Callable, Sequence

from smallpond_mpi.common import MB
from smallpond_mpi.logical.dataset.text import TextDataSet
from smallpond_mpi.logical.estimate import Estimates, row_bytes
from smallpond_mpi.logical.node.base import Node, shapes
from smallpond_mpi.logical.node.hash_partition import HashPartitionNode
from smallpond_mpi.logical.node.keyed import KeyedSqlNode
from smallpond_mpi.logical.node.partition import EvenlyDistributedPartitionNode
from smallpond_mpi.logical.node.reshape import ConsolidateNode
from smallpond_mpi.logical.node.source_sink import DataSourceNode
from smallpond_mpi.logical.node.sql import SqlEngineNode
from smallpond_mpi.logical.query_text import with_inputs
from smallpond_mpi.logical.schema import schema_of

ONE_TASK_BYTES = 16 * MB
"""So little that cutting and moving it costs more than one task that works on all of it."""
INLINED_BYTES = 2 * MB
"""So little that reading it, and joining it, again in each task that needs it costs less than a task that does it for all."""
RECOMPUTED_BYTES = 512 * MB
"""What all readers of a broadcast table may read of files together to make it themselves."""
LARGEST_PART_BYTES = 256 * MB
LARGEST_BROADCAST_BYTES = 512 * MB
SHUFFLE_COST = 3
"""What moving a byte (read, hash, write, read again) costs, in reads of a byte."""
MAX_PARTS = 4096
PRODUCERS_A_SLOT = 2
"""Where each reads but its share: of tasks of different lengths more than one a place keeps all places at work."""


class Lowering:
    """Replaces the KeyedSqlNodes of one plan."""

    def __init__(self, estimates: Estimates, is_free: Callable[[Node], bool]) -> None:
        self._estimates = estimates
        self._is_free = is_free
        self.made: set[Node] = set()
        """Nodes that were put in between: nobody else reads them."""

    def lower(self, node: KeyedSqlNode, inputs: Sequence[Node]) -> SqlEngineNode:
        """A plain SQL node that stands for `node`, over nodes that bring the rows of `inputs` (its optimized inputs) together."""
        sizes = [self._estimates.num_bytes(dep) for dep in node.input_deps]
        if self.is_for_one_task(node.input_deps):
            return self._in_one_task(node, inputs)
        if not all(side.keys for side in node.sides):
            return self._all_together(node, inputs, sizes)
        small = self._to_broadcast(node, sizes)
        if small is not None:
            return self._broadcast(node, inputs, sizes, small)
        count = self._num_parts(self._moved_bytes(node, sizes), node.ctx.num_slots)
        if count == 1:
            return self._all_together(node, inputs, sizes)
        moved = [self._moved(node, index, inputs[index], sizes[index], count) for index in range(len(inputs))]
        return node.version(node.sql_queries[0], tuple(moved))

    def is_tiny(self, nodes: Sequence[Node]) -> bool:
        """Whether nodes are sources with next to no rows."""
        are_sources = all(isinstance(node, DataSourceNode) for node in nodes)
        return are_sources and sum(map(self._estimates.num_bytes, nodes)) <= INLINED_BYTES

    def is_for_one_task(self, nodes: Sequence[Node]) -> bool:
        """Whether all rows of these nodes are so few that one task works on them in no time."""
        return sum(map(self._estimates.num_bytes, nodes)) <= ONE_TASK_BYTES

    # all rows together

    def _in_one_task(self, node: KeyedSqlNode, inputs: Sequence[Node]) -> SqlEngineNode:
        made = node.version(node.whole_query, tuple(map(self.whole, inputs)))
        # Whoever reads it may still choose to have the first input cut.
        made.is_by_row = len(node.sides) == 2 and node.sides[1].may_be_broadcast
        return made

    def whole(self, node: Node) -> Node:
        """A node's output as one partition; no data is moved."""
        shape = shapes([node])[node]
        is_whole = not shape.dims and shape.copies == 1
        return node if is_whole else self.between(ConsolidateNode(node.ctx, node, []), node)

    def _all_together(self, node: KeyedSqlNode, inputs: Sequence[Node], sizes: Sequence[float]) -> SqlEngineNode:
        """One partition, of what is left after the first query, which runs in parts."""
        if any(side.before is None for side in node.sides):
            return node.version(node.whole_query, tuple(map(self.whole, inputs)))
        together = []
        for dep, side, size in zip(inputs, node.sides, sizes, strict=True):
            assert side.before is not None
            part = self.between(SqlEngineNode(node.ctx, (self.cut(dep, size),), side.before), node)
            together.append(self.whole(part))
        return node.version(node.sql_queries[0], tuple(together))

    # broadcast

    def _to_broadcast(self, node: KeyedSqlNode, sizes: Sequence[float]) -> int | None:
        """The input that is so small that reading it in each task costs less than moving both."""
        candidates = [index for index, side in enumerate(node.sides) if side.may_be_broadcast]
        if not candidates:
            return None
        small = min(candidates, key=lambda index: sizes[index])
        parts = self._num_parts(sum(sizes) - sizes[small], node.ctx.num_slots)
        fits = sizes[small] <= LARGEST_BROADCAST_BYTES
        return small if fits and sizes[small] * parts <= SHUFFLE_COST * sum(sizes) else None

    def _broadcast(
        self, node: KeyedSqlNode, inputs: Sequence[Node], sizes: Sequence[float], small: int
    ) -> SqlEngineNode:
        large = 1 - small
        query = node.whole_query if large == 0 else with_inputs(node.whole_query, {0: "{1}", 1: "{0}"})
        parts = self.cut(inputs[large], sizes[large])
        made = node.version(query, (parts, self._made_once(inputs[small], shapes([parts])[parts].num_partitions)))
        made.is_by_row = True
        return made

    def _made_once(self, node: Node, num_readers: int) -> Node:
        """What is broadcast, in one partition: made in parts by all places where that takes long, and each of the readers would do it again or wait."""
        if not (isinstance(node, SqlEngineNode) and node.is_by_row and self._is_free(node)):
            return self.whole(node)
        read = self._estimates.rows(node.input_deps[0]) * row_bytes(schema_of(node))
        is_recomputed = is_by_row_over_source(node) and num_readers * read <= RECOMPUTED_BYTES
        return self.whole(node if is_recomputed or self.is_tiny(node.input_deps) else self.cut(node, read))

    # parts

    def _num_parts(self, size: float, num_slots: int) -> int:
        """How many parts so many bytes are worth: one for each place to work, fewer if they would be tiny, more if they would be huge."""
        useful = math.ceil(size / ONE_TASK_BYTES)
        needed = math.ceil(size / LARGEST_PART_BYTES)
        count = max(1, needed, min(num_slots, useful))
        rounds = math.ceil(count / num_slots)
        return min(MAX_PARTS, count if rounds == 1 else rounds * num_slots)

    def _moved_bytes(self, node: KeyedSqlNode, sizes: Sequence[float]) -> float:
        """What goes into the partitions, after each side's first query."""
        return sum(
            size if side.before is None else min(size, self._estimates.bytes_before_moving(dep, side.before))
            for dep, side, size in zip(node.input_deps, node.sides, sizes, strict=True)
        )

    def cut(self, node: Node, size: float) -> Node:
        """The rows of a node in as many partitions as there are places to work on them; no data is moved."""
        count = self._num_parts(size, node.ctx.num_slots)
        if 2 * shapes([node])[node].num_partitions > count:
            return node
        if is_by_row_over_source(node) or (isinstance(node, SqlEngineNode) and node.is_by_row and self._is_free(node)):
            assert isinstance(node, SqlEngineNode)
            first, *others = node.input_deps
            copied = node.with_inputs((self.cut(first, size), *others))
            copied.id = (
                node.ctx.new_node_id()
            )  # another one than the node in one partition, which somebody else may read
            return self.between(copied, node)
        by_rows = not _is_text(node)
        return self.between(EvenlyDistributedPartitionNode(node.ctx, (node,), count, partition_by_rows=by_rows), node)

    def _moved(self, node: KeyedSqlNode, index: int, dep: Node, size: float, count: int) -> Node:
        """One input, after its first query, in `count` partitions by key."""
        side = node.sides[index]
        moved = HashPartitionNode(
            node.ctx,
            (dep,),
            count,
            list(side.keys),
            drop_partition_column=True,
            cpu_limit=node.cpu_limit,
            memory_limit=node.memory_limit,
        )
        moved.query = side.before
        moved.max_num_producer_tasks = PRODUCERS_A_SLOT * self._num_parts(size / PRODUCERS_A_SLOT, node.ctx.num_slots)
        return self.between(moved, node)

    def between(self, made: Node, stands_for: Node) -> Node:
        """A node that is put in where `stands_for` was."""
        made.location = stands_for.location
        made.timeout_secs = stands_for.timeout_secs
        made.isolated = stands_for.isolated
        self.made.add(made)
        return made


def is_by_row_over_source(node: Node) -> bool:
    """Whether a node's rows follow one by one from those of files: working them out again where they are read costs no more than reading
    them would, and never gives others."""
    return (
        isinstance(node, SqlEngineNode)
        and node.is_by_row
        and len(node.input_deps) == 1
        and isinstance(node.input_deps[0], (DataSourceNode, EvenlyDistributedPartitionNode))
    )


def _is_text(node: Node) -> bool:
    return isinstance(node, DataSourceNode) and isinstance(node.dataset, TextDataSet)
