"""Tasks and ranks with defaults, so that a test says only what matters to it."""

from collections.abc import Sequence

from smallpond_mpi.common import GB
from smallpond_mpi.execution.model import Capacity, GpuSlot, Resources, SpecKind, TaskId, TaskSpec


def rank(cpus: int = 4, memory_bytes: int = 16 * GB, gpus: int = 0, numa_nodes: int = 1) -> Capacity:
    """What a rank has. CPUs and GPUs are split evenly over the NUMA nodes, in order."""
    return Capacity(
        tuple(range(cpus)),
        memory_bytes,
        tuple(GpuSlot(f"GPU-{index}", index * numa_nodes // gpus) for index in range(gpus)),
        tuple(cpu * numa_nodes // cpus for cpu in range(cpus)),
    )


def task(
    id: int,
    after: Sequence[int] = (),
    *,
    cpus: int = 1,
    gpus: float = 0.0,
    memory_bytes: int | None = None,
    stage: int = 1,
    kind: SpecKind = SpecKind.CHILD,
    priority: int = 0,
    speculate: bool = True,
) -> TaskSpec:
    """A task."""
    deps = tuple(TaskId(dep) for dep in after)
    return TaskSpec(TaskId(id), deps, Resources(cpus, gpus, memory_bytes), stage, kind, priority, speculate)


def layered(widths: Sequence[int], first_id: int = 1) -> list[TaskSpec]:
    """Stages of so many tasks, a barrier between each two: the shape of a shuffle."""
    specs: list[TaskSpec] = []
    before: tuple[int, ...] = ()
    for stage, width in enumerate(widths, start=1):
        begin = first_id + len(specs)
        specs += [task(begin + number, before, stage=stage) for number in range(width)]
        if stage < len(widths):
            barrier = begin + width
            specs.append(task(barrier, range(begin, barrier), stage=0, kind=SpecKind.BARRIER))
            before = (barrier,)
    return specs
