"""What tasks a logical plan becomes.

source 1 task | SQL, Arrow, scripts: 1 task a pair of partitions | limit: 1 task a partition, merge, 1 task
partition: merge -> split x P -> producer x P -> consumer x n     | sink: 1 task a partition collects, 1 task publishes
"""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from smallpond_mpi.common import GB, UnpairedPartitions
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.partition_info import TOPLEVEL, PartitionInfo
from smallpond_mpi.logical.estimate import Estimates
from smallpond_mpi.logical.node.base import Node, topological
from smallpond_mpi.logical.node.compute import ArrowComputeNode, ArrowStreamNode, PythonScriptNode
from smallpond_mpi.logical.node.hash_partition import HashPartitionNode
from smallpond_mpi.logical.node.keyed import KeyedSqlNode
from smallpond_mpi.logical.node.pairing import (
    CannotPair,
    Cell,
    cells_of,
    check_counts,
    described,
    dimensions,
    merged_cells,
    paired,
)
from smallpond_mpi.logical.node.partition import PartitionNode
from smallpond_mpi.logical.node.plan import LogicalPlan, LogicalPlanVisitor
from smallpond_mpi.logical.node.range_partition import RangePartitionNode, SplitPointsNode
from smallpond_mpi.logical.node.reshape import ConsolidateNode, ProjectionNode, UnionNode
from smallpond_mpi.logical.node.sort import SortNode
from smallpond_mpi.logical.node.source_sink import DataSinkNode, DataSourceNode, RootNode
from smallpond_mpi.logical.node.sql import LimitNode, SqlEngineNode

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.plan import ExecutionPlan

TaskGroup = list[Task]
AnyTask = TypeVar("AnyTask", bound=Task)
T = TypeVar("T")

FINAL_RESULTS = "FinalResults"
PRODUCERS_PER_SLOT = 2
PRODUCER_BYTES = GB
"""What one task cuts of larger inputs, uncompressed: minutes of work at the most, so that a failure costs little and progress is seen."""


class Planner(LogicalPlanVisitor[TaskGroup]):
    """Makes the tasks of nodes, each node's once: several plans of a session share the tasks of nodes that they share."""

    def __init__(self, runtime_ctx: "RuntimeContext") -> None:
        self.runtime_ctx = runtime_ctx
        # By id: the optimizer's version of a node has the id of the node that it stands for.
        self._planned: dict[tuple[int, int], TaskGroup] = {}
        self._contexts: list[object] = []  # keeps their identities valid

    def create_exec_plan(self, logical_plan: LogicalPlan, manifest_only_final_results: bool = True) -> "ExecutionPlan":
        """All tasks of a plan: a sink for each output name, one for the result, and a root task that waits for them.

        The result is copied to `ctx.final_output_path` if there is one; otherwise its files are listed, or linked too unless
        `manifest_only_final_results`.

        Raises:
            UnpairedPartitions: inputs of a node are cut in ways that don't fit.
            InvalidArgument: two sinks have the same output path, or a node's setting does not fit its input.
        """
        from smallpond_mpi.execution.task.plan import ExecutionPlan, RootTask

        check_sinks(logical_plan)
        sinks = [self._final_sink(logical_plan, manifest_only_final_results), *self._named_sinks(logical_plan)]
        root_node = RootNode(logical_plan.ctx, sinks)
        sink_tasks = [task for sink in sinks for task in self.plan_node(sink)]
        root_task = self._adopt(root_node, RootTask(self.runtime_ctx, sink_tasks, [TOPLEVEL]))
        return ExecutionPlan(self.runtime_ctx, root_task, logical_plan)

    def _final_sink(self, plan: LogicalPlan, manifest_only: bool) -> DataSinkNode:
        path = self.runtime_ctx.final_output_path
        sink = DataSinkNode(
            plan.ctx,
            (plan.root_node,),
            os.path.abspath(path) if path else os.path.join(self.runtime_ctx.output_root, FINAL_RESULTS),
            type="copy" if path else "manifest" if manifest_only else "link",
            is_final_node=True,
        )
        sink.location = plan.root_node.location
        return sink

    def _named_sinks(self, plan: LogicalPlan) -> list[DataSinkNode]:
        named: dict[str, list[Node]] = {}
        for node in plan.nodes.values():
            if node.output_name == FINAL_RESULTS:
                raise node.invalid(f"output_name {FINAL_RESULTS} is that of the job's own result: choose another")
            if node.output_name is not None:
                named.setdefault(node.output_name, []).append(node)
        sinks = []
        for name, nodes in named.items():
            path = os.path.join(self.runtime_ctx.output_root, name)
            sink = DataSinkNode(plan.ctx, nodes, path, manifest_only=True)
            sink.location = nodes[0].location
            sinks.append(sink)
        return sinks

    # one node's tasks

    def plan_node(self, node: Node) -> TaskGroup:
        """The tasks that make the partitions of a node's output, in order."""
        return self.visit(node)

    def forget(self, node: Node) -> None:
        """Make new tasks when the node is planned again. (What was planned from its old tasks keeps them.)"""
        self._planned.pop(self._key(node), None)

    def is_planned(self, node: Node) -> bool:
        """Whether the node has tasks."""
        return self._key(node) in self._planned

    def visit(self, node: Node, depth: int = 0) -> TaskGroup:
        """The tasks of a node. What it needs is planned first, so that the depth of a plan is no depth of calls."""
        if not self.is_planned(node):
            for needed in self._unplanned(node):
                self._planned[self._key(needed)] = super().visit(needed, depth)
        return self._planned[self._key(node)]

    def _unplanned(self, node: Node) -> list[Node]:
        return topological([node], known=self.is_planned)

    def _key(self, node: Node) -> tuple[int, int]:
        if not any(ctx is node.ctx for ctx in self._contexts):
            self._contexts.append(node.ctx)
        return id(node.ctx), int(node.id)

    def _adopt(self, node: Node, task: AnyTask) -> AnyTask:
        """What every task knows of its node."""
        task.node_id = int(node.id)
        task.location = node.location
        if node.timeout_secs is not None:
            task.timeout_secs = node.timeout_secs
        if node.isolated:
            task.isolated = True
        if node.times_forgotten:
            task.times_forgotten = node.times_forgotten
        return task

    # inputs

    def broadcast_input_deps(self, node: Node, depth: int) -> list[tuple[TaskGroup, list[PartitionInfo]]]:
        """For each task to be made of a node with several inputs, its input tasks and its partition.

        Raises:
            UnpairedPartitions: the inputs are cut in ways that don't fit.
        """
        inputs = [cells_of(self.visit(dep, depth + 1)) for dep in node.input_deps]
        return [(list(cell.tasks), list(cell.infos)) for cell in self._paired(node, inputs)]

    def _paired(self, node: Node, inputs: Sequence[list[Cell]]) -> list[Cell]:
        try:
            return paired(inputs)
        except CannotPair as error:
            raise self._unpaired(node, inputs, str(error)) from None

    def _unpaired(self, node: Node, inputs: Sequence[list[Cell]], why: str) -> UnpairedPartitions:
        sides = "\n".join(
            f"  input {number}: {dep} at {dep.location}: {described(cells)}"
            for number, (dep, cells) in enumerate(zip(node.input_deps, inputs, strict=True))
        )
        return UnpairedPartitions(
            f"the partitions of the inputs of {node} at {node.location} can't be paired: {why}\n{sides}\n"
            "Partition the inputs into the same number of partitions along the same dimension, or along dimensions of "
            "different names if each partition is to be combined with each."
        )

    def _input_tasks(self, node: Node, depth: int) -> TaskGroup:
        return [task for dep in node.input_deps for task in self.visit(dep, depth + 1)]

    # kinds

    def visit_node(self, node: Node, depth: int) -> TaskGroup:
        """One task a pair of input partitions."""
        return [
            self._adopt(node, node.create_task(self.runtime_ctx, tasks, infos))
            for tasks, infos in self.broadcast_input_deps(node, depth)
        ]

    def visit_data_source_node(self, node: DataSourceNode, depth: int) -> TaskGroup:
        """One task."""
        return [self._adopt(node, node.create_task(self.runtime_ctx, [], [TOPLEVEL]))]

    def visit_python_script_node(self, node: PythonScriptNode, depth: int) -> TaskGroup:
        """One task a pair of input partitions."""
        return self.visit_node(node, depth)

    def visit_arrow_compute_node(self, node: ArrowComputeNode, depth: int) -> TaskGroup:
        """One task a pair of input partitions."""
        return self.visit_node(node, depth)

    def visit_arrow_stream_node(self, node: ArrowStreamNode, depth: int) -> TaskGroup:
        """One task a pair of input partitions."""
        return self.visit_node(node, depth)

    def visit_query_engine_node(self, node: SqlEngineNode, depth: int) -> TaskGroup:
        """One task a pair of input partitions."""
        return self.visit_node(node, depth)

    def visit_projection_node(self, node: ProjectionNode, depth: int) -> TaskGroup:
        """One task an input partition, on rank 0."""
        return self.visit_node(node, depth)

    def visit_limit_node(self, node: LimitNode, depth: int) -> TaskGroup:
        """A limit in each partition, a merge, the limit once more."""
        inputs = self._input_tasks(node, depth)
        if len(inputs) == 1:
            return [self._adopt(node, node.create_task(self.runtime_ctx, inputs, [TOPLEVEL]))]
        parts = [
            self._adopt(node, node.create_task(self.runtime_ctx, [task], list(task.partition_infos))) for task in inputs
        ]
        merged = self._adopt(node, node.create_merge_task(self.runtime_ctx, parts, [TOPLEVEL]))
        return [self._adopt(node, node.create_task(self.runtime_ctx, [merged], [TOPLEVEL]))]

    def visit_union_node(self, node: UnionNode, depth: int) -> TaskGroup:
        """The tasks of all inputs; none of its own.

        Raises:
            UnpairedPartitions: the inputs have different dimensions.
        """
        inputs = [cells_of(self.visit(dep, depth + 1)) for dep in node.input_deps]
        try:
            check_counts(inputs)
            if any(dimensions(cells).keys() != dimensions(inputs[0]).keys() for cells in inputs):
                raise CannotPair("a union needs the same dimensions in all inputs")
        except CannotPair as error:
            raise self._unpaired(node, inputs, str(error)) from None
        return self._input_tasks(node, depth)

    def visit_consolidate_node(self, node: ConsolidateNode, depth: int) -> TaskGroup:
        """One task that merges for each group of partitions that agree along the dimensions that stay.

        Raises:
            InvalidArgument: the input is not partitioned along one of the dimensions.
        """
        inputs = self._input_tasks(node, depth)
        for dimension in node.dimensions:
            if not all(dimension in task.partition_dims for task in inputs):
                there = ", ".join(dimensions(cells_of(inputs))) or "none"
                raise node.invalid(f"the input is not partitioned along {dimension!r} (its dimensions: {there})")
        return [
            cell.tasks[0]
            if len(cell.tasks) == 1 and cell.infos == cell.tasks[0].partition_infos
            else self._adopt(node, node.create_task(self.runtime_ctx, list(cell.tasks), list(cell.infos)))
            for cell in merged_cells(inputs, node.dimensions)
        ]

    def visit_root_node(self, node: RootNode, depth: int) -> TaskGroup:
        """The tasks of all inputs."""
        return self._input_tasks(node, depth)

    def visit_data_sink_node(self, node: DataSinkNode, depth: int) -> TaskGroup:
        """A task an input partition that collects its files beside the output path (none for a manifest), and one that publishes."""
        inputs = self._input_tasks(node, depth)
        if node.type != "manifest":
            inputs = [
                self._adopt(node, node.create_collect_task(self.runtime_ctx, [task], list(task.partition_infos)))
                for task in inputs
            ]
        return [self._adopt(node, node.create_task(self.runtime_ctx, inputs, [TOPLEVEL]))]

    def visit_partition_node(self, node: PartitionNode, depth: int) -> TaskGroup:
        """Producers, which cut, and a consumer a partition."""
        return self._nested_partitions(node, depth) if node.nested else self._partitions(node, depth)

    # partition nodes

    def max_producers(self, node: PartitionNode) -> int:
        """How many tasks may share the work of cutting."""
        ctx = self.runtime_ctx
        slots = ctx.num_slots or max(1, ctx.num_executors) * ctx.usable_cpu_count
        places = PRODUCERS_PER_SLOT * slots
        most = min(node.max_num_producer_tasks, node.max_card_of_producers_x_consumers // node.npartitions)
        if most <= places:
            return max(1, most)
        cut = node.input_deps[: len(node.input_deps) - node.num_broadcast_inputs]
        needed = math.ceil(sum(map(Estimates(lambda _: None).num_bytes, cut)) / PRODUCER_BYTES)
        return min(most, max(places, needed))

    def _partitions(self, node: PartitionNode, depth: int) -> TaskGroup:
        if isinstance(node, HashPartitionNode) and not node.is_cut_freely:
            return self._consumers(node, self._paired_producers(node), [TOPLEVEL])
        tasks = [self.visit(dep, depth + 1) for dep in node.input_deps]
        cut, everywhere = split_off(tasks, node.num_broadcast_inputs)
        shares = self._shares(node, [task for group in cut for task in group], self.max_producers(node))
        producers = [
            self._producer(
                node, [share, *(task for group in everywhere for task in group)], [PartitionInfo(index, len(shares))]
            )
            for index, share in enumerate(shares)
        ]
        return self._consumers(node, producers, [TOPLEVEL])

    def _paired_producers(self, node: HashPartitionNode) -> TaskGroup:
        """A producer for each pair of partitions of a query's inputs."""
        cells = self.broadcast_input_deps(node, 0)
        return [
            self._producer(node, tasks, [PartitionInfo(index, len(cells))]) for index, (tasks, _) in enumerate(cells)
        ]

    def _shares(self, node: PartitionNode, inputs: TaskGroup, count: int) -> TaskGroup:
        """The inputs, put together and cut into one share a producer; left as they are where that is what they are."""
        if len(inputs) == count:
            return inputs
        whole = inputs[0]
        if len(inputs) > 1:
            whole = self._adopt(node, node.create_merge_task(self.runtime_ctx, inputs, [TOPLEVEL]))
        if count == 1:
            return [whole]
        deps = Dependencies([whole])
        return [
            self._adopt(node, node.create_split_task(self.runtime_ctx, deps, [PartitionInfo(index, count)]))
            for index in range(count)
        ]

    def _nested_partitions(self, node: PartitionNode, depth: int) -> TaskGroup:
        inputs = [merged_cells(self.visit(dep, depth + 1)) for dep in node.input_deps]
        cells = self._paired(node, inputs)
        if node.dimension in dimensions(cells):
            raise node.invalid(f"the input is already partitioned along {node.dimension!r}: name another dimension")
        if len(cells) * node.npartitions > node.max_card_of_producers_x_consumers:
            raise node.invalid(
                f"{node.npartitions:,} partitions in each of {len(cells):,} are more than {node.max_card_of_producers_x_consumers:,}: "
                "use fewer, larger partitions"
            )
        consumers: TaskGroup = []
        for cell in cells:
            infos = list(cell.infos)
            cut, everywhere = split_off(cell.tasks, node.num_broadcast_inputs)
            whole = cut[0]
            if len(cut) > 1:
                whole = self._adopt(node, node.create_merge_task(self.runtime_ctx, list(cut), infos))
            consumers.extend(self._consumers(node, [self._producer(node, [whole, *everywhere], infos)], infos))
        return consumers

    def visit_split_points_node(self, node: SplitPointsNode, depth: int) -> TaskGroup:
        """One task for all inputs together, or, for points of nested partitions, for each of these."""
        if not node.nested:
            return [self._adopt(node, node.create_task(self.runtime_ctx, self._input_tasks(node, depth), [TOPLEVEL]))]
        inputs = [merged_cells(self.visit(dep, depth + 1)) for dep in node.input_deps]
        return [
            self._adopt(node, node.create_task(self.runtime_ctx, list(cell.tasks), list(cell.infos)))
            for cell in self._paired(node, inputs)
        ]

    def _producer(self, node: PartitionNode, inputs: TaskGroup, infos: list[PartitionInfo]) -> Task:
        task = self._adopt(node, node.create_producer_task(self.runtime_ctx, inputs, infos))
        if node.output_name is not None and task.output_name is None:
            # A producer that moves no data: its named output are files of its inputs.
            task.output_name = node.output_name
            task.temp_output = False
        return task

    def _consumers(self, node: PartitionNode, producers: TaskGroup, outer: list[PartitionInfo]) -> TaskGroup:
        shared = Dependencies(producers)
        if node.dimension == TOPLEVEL.dimension:
            outer = [info for info in outer if not info.is_toplevel]
        return [
            self._adopt(
                node,
                node.create_consumer_task(
                    self.runtime_ctx, shared, [*outer, PartitionInfo(index, node.npartitions, node.dimension)]
                ),
            )
            for index in range(node.npartitions)
        ]


def split_off(items: Sequence[T], count: int) -> tuple[Sequence[T], Sequence[T]]:
    """All but the last `count` items, and these."""
    return items[: len(items) - count], items[len(items) - count :]


def check_sinks(plan: LogicalPlan) -> None:
    """Refuse a plan in which two sinks would replace each other's files."""
    by_path: dict[str, DataSinkNode] = {}
    for node in plan.nodes.values():
        if isinstance(node, DataSinkNode):
            other = by_path.setdefault(node.output_path, node)
            if other is not node:
                raise node.invalid(
                    f"output_path {node.output_path} is also that of {other} at {other.location}: give each sink its own, "
                    "or all inputs to one sink"
                )


def cannot_be_wrong(node: Node) -> bool:
    """Whether planning a node finds nothing wrong: no rank must have much for it, it pairs no partitions, it reads and writes no file of the user's."""
    is_harmless = isinstance(node, (KeyedSqlNode, LimitNode, ConsolidateNode, SortNode, SplitPointsNode))
    is_harmless = is_harmless or type(node) is RangePartitionNode
    is_harmless = is_harmless or (isinstance(node, SqlEngineNode) and len(node.input_deps) == 1)
    return is_harmless and node.cpu_limit_asked == 1 and node.memory_limit is None and not node.gpu_limit
