"""The top of a job: the root task that waits for all outputs, and the plan that finds tasks and outputs below it."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.partition_info import PartitionInfo

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet
    from smallpond_mpi.logical.node import LogicalPlan


class RootTask(Task):
    """Done when all its inputs are; its output is theirs: one dataset, or all of them side by side."""

    def __init__(
        self, ctx: RuntimeContext, input_deps: "Sequence[Task] | Dependencies", partition_infos: Iterable[PartitionInfo]
    ) -> None:
        super().__init__(ctx, input_deps, partition_infos)
        # Which input makes the final results, as opposed to named outputs on the way: known where the task travels to as well.
        self._final_index = next(
            (index for index, task in enumerate(self._deps.tasks) if getattr(task, "is_final_node", False)), None
        )

    @property
    def exec_on_scheduler(self) -> bool:
        return True

    @property
    def runs_here(self) -> bool:
        return True

    @property
    def self_contained_output(self) -> bool:
        return False

    def initialize(self) -> None:
        """Nothing to prepare, and no place for an injected fault: the job's work is done."""

    @property
    def final_sink(self) -> Task | None:
        """The input that makes the final results."""
        return None if self._final_index is None else self._deps.tasks[self._final_index]

    def run(self) -> bool:
        from smallpond_mpi.logical.dataset import PartitionedDataSet

        datasets = list(self.input_datasets)
        if self._final_index is not None:
            self.dataset = datasets[self._final_index]
        else:
            self.dataset = datasets[0] if len(datasets) == 1 else PartitionedDataSet(datasets)
        return True

    def finalize(self) -> None:
        """Nothing was written."""


class ExecutionPlan:
    """All tasks of a job, reached from its root.

    Args:
        ctx: the job's context.
        root_task: depends, directly or not, on all others.
        logical_plan: what they were made from.
    """

    def __init__(self, ctx: RuntimeContext, root_task: RootTask, logical_plan: "LogicalPlan") -> None:
        self.ctx = ctx
        self.root_task = root_task
        self.logical_plan = logical_plan

    @staticmethod
    def iter_tasks(task: Task, visited: set[str] | None = None) -> Iterator[Task]:
        """The tasks below `task` and itself, inputs before what needs them, each once; those in `visited` are left out."""
        visited = set() if visited is None else visited
        entered: set[int] = set()
        stack: list[tuple[Task, Iterator[Task]]] = []

        def enter(found: Task) -> None:
            visited.add(found.key)
            # Thousands of consumers share one group of producers, which the first of them has walked through.
            known = id(found._deps) in entered
            entered.add(id(found._deps))
            stack.append((found, iter(() if known else found._deps.tasks)))

        if task.key not in visited:
            enter(task)
        while stack:
            current, deps = stack[-1]
            dep = next((dep for dep in deps if dep.key not in visited), None)
            if dep is None:
                stack.pop()
                yield current
            else:
                enter(dep)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """All tasks by key, inputs first."""
        return {task.key: task for task in self.iter_tasks(self.root_task)}

    @property
    def leaves(self) -> list[Task]:
        """The tasks that depend on none."""
        return [task for task in self.tasks.values() if not task._deps.tasks]

    @property
    def final_output(self) -> "DataSet":
        """The result of the plan."""
        return self.root_task.output

    @property
    def final_output_path(self) -> str | None:
        """The directory of the result, if there is a sink that made one."""
        sink = self.root_task.final_sink
        return sink.final_output_abspath if sink is not None else None

    @property
    def successful(self) -> bool:
        """Whether all of it ran and succeeded."""
        return self.root_task.status is WorkStatus.SUCCEED

    @cached_property
    def _named_tasks(self) -> dict[str, list[Task]]:
        named: dict[str, list[Task]] = {}
        for task in sorted(self.tasks.values(), key=lambda task: task.id):
            if task.output_name is not None:
                named.setdefault(task.output_name, []).append(task)
        return named

    @property
    def named_outputs(self) -> "dict[str, DataSet]":
        """The outputs that have a name, each with all its partitions in order."""
        return {name: merged_output(tasks) for name, tasks in self._named_tasks.items()}

    def get_output(self, output_name: str) -> "DataSet | None":
        """The output of that name, or None."""
        tasks = self._named_tasks.get(output_name)
        return None if tasks is None else merged_output(tasks)

    @cached_property
    def analyzed_logical_plan(self) -> "LogicalPlan":
        """The logical plan with the metrics of this run's tasks added to the nodes that they were made from."""
        nodes = {int(node.id): node for node in self.logical_plan.nodes.values()}
        for task in self.tasks.values():
            if task.status is WorkStatus.SUCCEED and task.node_id in nodes:
                for name, value in task.perf_metrics.items():
                    nodes[task.node_id].add_perf_metrics(name, value)
        return self.logical_plan


def merged_output(tasks: list[Task]) -> "DataSet":
    """The outputs of the tasks of one node as one dataset, partitions in order."""
    from smallpond_mpi.logical.dataset import DataSet, PartitionedDataSet

    merged = DataSet.merge([task.output for task in tasks])
    return merged.whole() if isinstance(merged, PartitionedDataSet) else merged
