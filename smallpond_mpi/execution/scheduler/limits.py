"""What can be known to be wrong with planned tasks before any of them runs: their inputs, and what they ask of the ranks that are there."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from smallpond_mpi.common import ResourcesUnavailable
from smallpond_mpi.execution.model import Capacity
from smallpond_mpi.execution.scheduler.story import check_early
from smallpond_mpi.execution.slots import usable_memory
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.logical.node import Node, NodeId

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Largest:
    """The most of everything that some rank has."""

    cpus: int
    gpus: int
    memory_bytes: int

    @classmethod
    def of(cls, capacities: Iterable[Capacity]) -> "_Largest":
        found = list(capacities)
        return cls(
            max((len(one.cpus) for one in found), default=1),
            max((len(one.gpus) for one in found), default=0),
            max(map(usable_memory, found), default=0),
        )


class Limits:
    """Checks tasks; a default of ours that no rank can meet is lowered, with one notice a job."""

    def __init__(self) -> None:
        self._has_clamped = False

    def check(self, tasks: Sequence[Task], nodes: Mapping[NodeId, Node], capacities: Iterable[Capacity]) -> None:
        """Raise BadInput for the first task that can't succeed; ResourcesUnavailable if no rank has what it asks for."""
        largest = _Largest.of(capacities)
        for task in tasks:
            check_early(task)
            node = nodes.get(NodeId(task.node_id))
            has_gpus = task.gpu_limit <= largest.gpus
            if has_gpus and node is not None and node.cpu_limit_asked <= largest.cpus < task.cpu_limit:
                self._clamp_cpus(node, task, largest.cpus)
            _check_resources(task, largest)

    def _clamp_cpus(self, node: Node, task: Task, most: int) -> None:
        """Nobody asked for these CPUs: a rule of ours did (8 for a GPU), which smaller ranks need not meet."""
        if not self._has_clamped:
            self._has_clamped = True
            logger.warning(
                "%s: %d CPUs a task, the default, are more than any rank has: using %d", node, task.cpu_limit, most
            )
        task._cpu_limit = most


def _check_resources(task: Task, largest: _Largest) -> None:
    """Refuse what no rank can ever meet."""
    asked = [
        ("GPUs", task.gpu_limit, largest.gpus, f"{largest.gpus}"),  # first: they bring CPUs that nobody asked for
        ("CPUs", task.cpu_limit, largest.cpus, f"{largest.cpus}"),
        ("bytes of memory", task.memory_limit or 0, largest.memory_bytes, f"{largest.memory_bytes:,}"),
    ]
    for what, wanted, most, shown in asked:
        if wanted > most and not (what == "CPUs" and task.exec_on_scheduler):
            where = f" of {task.location}" if task.location else ""
            raise ResourcesUnavailable(
                f"{task.key}{where} asks for {wanted:,} {what}, and no rank has more than {shown} to give: ask for less, or start ranks that have more"
            )
