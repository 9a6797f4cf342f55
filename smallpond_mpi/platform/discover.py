"""What this rank may use: the reader of the machine, beside `gpu` and `process`. Parsers are in `topology`, the division in `binding`."""

import os
import re
from collections.abc import Mapping, Sequence

from smallpond_mpi.execution.model import Capacity, GpuSlot, Rank
from smallpond_mpi.platform.binding import LocalRank, divide_cpus, divide_gpus, divide_memory
from smallpond_mpi.platform.gpu import visible_gpus
from smallpond_mpi.platform.topology import (
    available_memory,
    memory_cgroups,
    memory_limit,
    numa_of_cpus,
    oom_kill_count,
)


def allowed_cpus() -> tuple[int, ...]:
    """CPUs that this process may run on: its affinity, which the kernel keeps within its cpuset."""
    return tuple(sorted(os.sched_getaffinity(0)))


def capacity(
    rank: Rank,
    local: Sequence[LocalRank],
    gpus: Sequence[GpuSlot],
    *,
    world_size: int,
    proc: str = "/proc",
    sys: str = "/sys",
) -> Capacity:
    """What the executor of `rank` may hand out, on a node that it shares with `local` (itself among them); `gpus` are those that it sees."""
    cpus = divide_cpus(local, world_size)
    memory = divide_memory(cpus, node_memory_bytes(proc, sys))
    tokens = divide_gpus(local, cpus)[rank]
    nodes = numa_nodes(sys)
    return Capacity(
        cpus[rank],
        memory[rank],
        tuple(gpu for gpu in gpus if gpu.token in tokens),
        tuple(nodes.get(cpu) for cpu in cpus[rank]),
    )


def node_memory_bytes(proc: str = "/proc", sys: str = "/sys") -> int:
    """Memory that the ranks of this node have together: the least of what is available and what any cgroup above them allows."""
    limits = [available_memory(_read(f"{proc}/meminfo")) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for directory in memory_cgroups(_read(f"{proc}/self/cgroup"), f"{sys}/fs/cgroup"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = memory_limit(_read(os.path.join(directory, name)))
            if limit is not None:
                limits.append(limit)
    return min(limits)


def numa_nodes(sys: str = "/sys") -> dict[int, int]:
    """CPU → NUMA node; empty where the kernel has none."""
    directory = f"{sys}/devices/system/node"
    try:
        names = [name for name in os.listdir(directory) if re.fullmatch(r"node\d+", name)]
    except OSError:
        return {}
    return numa_of_cpus({int(name[4:]): _read(f"{directory}/{name}/cpulist") for name in names})


def oom_kills(proc: str = "/proc", sys: str = "/sys") -> int:
    """How many processes of this rank's memory cgroup the kernel's OOM killer has taken so far; 0 where that can't be read."""
    for directory in memory_cgroups(_read(f"{proc}/self/cgroup"), f"{sys}/fs/cgroup"):
        for name in ("memory.events", "memory.oom_control"):
            count = oom_kill_count(_read(os.path.join(directory, name)))
            if count is not None:
                return count
    return 0


def local_rank(rank: Rank, env: Mapping[str, str]) -> tuple[LocalRank, tuple[GpuSlot, ...]]:
    """This rank as the others of its node need to know it, and the GPUs that it sees."""
    gpus = visible_gpus(env)
    return LocalRank(rank, allowed_cpus(), tuple(gpu.token for gpu in gpus)), gpus


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
