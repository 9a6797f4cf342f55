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
            if node is not None and task.gpu_limit <= largest.gpus:
                self._clamp(node, task, largest)
            _check_resources(task, largest)

    def _clamp(self, node: Node, task: Task, largest: _Largest) -> None:
        """What nobody asked for, but a default or a rule of ours brought (8 CPUs for a GPU), smaller ranks need not meet."""
        clamped = []
        if node.cpu_limit_asked <= largest.cpus < task.cpu_limit:
            clamped.append(f"{task.cpu_limit} CPUs (using {largest.cpus})")
            task._cpu_limit = largest.cpus
        if node.memory_limit_asked is None and largest.memory_bytes < (task.memory_limit or 0):
            clamped.append(f"{task.memory_limit:,} bytes of memory (using {largest.memory_bytes:,})")
            task._memory_limit = largest.memory_bytes
        if clamped and not self._has_clamped:
            self._has_clamped = True
            logger.warning("%s: what a task takes by default is more than any rank has: %s", node, ", ".join(clamped))


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
