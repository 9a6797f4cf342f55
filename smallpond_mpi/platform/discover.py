"""What this rank may use: the reader of the machine, beside `gpu` and `process`. Parsers are in `topology`, `cgroup` and `slurm`, the division in `binding`.

`root` stands before every path, so that a directory captured on another machine can be read in its place.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from smallpond_mpi.execution.model import Capacity, Rank
from smallpond_mpi.platform import binding, cgroup, slurm, topology
from smallpond_mpi.platform.binding import LocalRank
from smallpond_mpi.platform.gpu import visible_gpus
from smallpond_mpi.platform.topology import Topology

NODES = "/sys/devices/system/node"
CPUS = "/sys/devices/system/cpu"
MEMORY_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")
AVAILABLE = "available on the machine"
CPUSET_FILES = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Something that limits the memory of this node's ranks together, and what it is, in words."""

    bytes: int
    source: str


def local_rank(rank: Rank, env: Mapping[str, str], root: str = "") -> LocalRank:
    """This rank as the others of its node need to know it."""
    cpus = allowed_cpus(root)
    gpus = visible_gpus(env, read_topology((), root), root)
    return LocalRank(rank, cpus, gpus, job_cpus(env, root))


def capacity(
    rank: Rank,
    local: Sequence[LocalRank],
    env: Mapping[str, str],
    *,
    world_size: int,
    memory_share: float = 1.0,
    root: str = "",
) -> Capacity:
    """What the executor of `rank` may hand out, on a node that it shares with `local` (itself among them). `memory_share`: their part of the node's memory."""
    local = binding.unbound(local)
    here = read_topology({cpu for one in local for cpu in one.cpus}, root)
    if slurm.is_job(env):
        threads = slurm.threads_per_core(env)
        local = binding.within_grant(local, slurm.job_cpus(env), int(env["SLURM_JOB_ID"]), here, threads)
    cpus = binding.divide_cpus(local, world_size, here)
    memory = binding.divide_memory(cpus, int(memory_limit(env, root).bytes * memory_share))
    tokens = binding.divide_gpus(local, cpus, here)[rank]
    own = binding.spread(cpus[rank], here)
    seen = next(one.gpus for one in local if one.rank == rank)
    return Capacity(
        own,
        memory[rank],
        tuple(gpu for gpu in seen if gpu.token in tokens),
        tuple(here.numa.get(cpu) for cpu in own),
    )


def memory_share(cpus: Sequence[int], env: Mapping[str, str], root: str = "") -> float:
    """What part of this node's memory goes with these CPUs, of a process that knows of no other: their part of all CPUs that its step, or its cgroup, has here.

    Processes that are bound to parts of a node share its memory limits.
    """
    counted = env.get("SLURM_CPUS_ON_NODE", "") if slurm.is_job(env) else ""
    online = topology.parse_cpu_list(_read(f"{root}{CPUS}/online"))
    whole = int(counted) if counted.isdigit() else len(cpuset(root) or online)
    own = len(counted_cpus(cpus, env, root))
    return own / max(1, own, whole)


def allowed_cpus(root: str = "") -> tuple[int, ...]:
    """CPUs that this process may run on: its affinity, which the kernel keeps within its cpuset, and of these only the ones that are switched on."""
    allowed = topology.allowed_cpus(_read(f"{root}/proc/self/status")) or tuple(sorted(os.sched_getaffinity(0)))
    online = set(topology.parse_cpu_list(_read(f"{root}{CPUS}/online")))
    return tuple(cpu for cpu in allowed if cpu in online) or allowed


def job_cpus(env: Mapping[str, str], root: str = "") -> tuple[int, ...]:
    """All CPUs of the job on this node, if Open MPI's mpirun started this rank, which binds ranks to fewer without being asked; else none.

    They are those of the cpuset, if this has as many CPUs as Slurm granted: then it is the job's, and no other job's are among them. Every other binding is
    what somebody asked for.
    """
    if binding.launcher_of(env) != binding.OPEN_MPI or not slurm.is_job(env):
        return ()
    cpus = counted_cpus(cpuset(root), env, root)
    return cpus if len(cpus) == slurm.job_cpus(env) else ()


def counted_cpus(cpus: Sequence[int], env: Mapping[str, str], root: str = "") -> tuple[int, ...]:
    """Of the CPUs of a job those that Slurm counts; outside of one all."""
    if not slurm.is_job(env):
        return tuple(cpus)
    cores = read_topology(cpus, root).cores(cpus)
    counted = binding.counted(cores, slurm.job_cpus(env), slurm.threads_per_core(env))
    return tuple(sorted(cpu for core in counted for cpu in core))


def cpuset(root: str = "") -> tuple[int, ...]:
    """CPUs that the cgroup of this process may use, whatever it is bound to; none where there is no cpuset."""
    for directory in _cgroups("cpuset", root):
        for name in CPUSET_FILES:
            cpus = topology.parse_cpu_list(_read(f"{root}{directory}/{name}"))
            if cpus:
                return cpus
    return ()


def cpu_ticks(root: str = "") -> dict[int, topology.Ticks]:
    """CPU → its busy time and all its time so far; empty where that can't be read."""
    return topology.cpu_ticks(_read(f"{root}/proc/stat"))


def memory_limit(env: Mapping[str, str], root: str = "") -> MemoryLimit:
    """The least of what limits the ranks of this node together."""
    return min(memory_limits(env, root), key=lambda limit: limit.bytes)


def memory_limits(env: Mapping[str, str], root: str = "") -> list[MemoryLimit]:
    """What is available on the machine, what Slurm granted, and what any cgroup above this process allows."""
    available = cgroup.available_memory(_read(f"{root}/proc/meminfo"))
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [MemoryLimit(available or pages, AVAILABLE)]
    granted = slurm.memory_bytes(env, by_srun=binding.launcher_of(env) == binding.SRUN)
    if granted is not None:
        limits.append(MemoryLimit(granted, "granted by Slurm"))
    for directory in _cgroups("memory", root):
        for name in MEMORY_FILES:
            limit = cgroup.memory_limit(_read(f"{root}{directory}/{name}"))
            if limit is not None:
                limits.append(MemoryLimit(limit, f"{directory}/{name}"))
    return limits


def numa_nodes(root: str = "") -> dict[int, int]:
    """CPU → NUMA node; empty where the kernel has none."""
    return topology.numa_of_cpus(_of_nodes("cpulist", root))


def read_topology(cpus: Iterable[int], root: str = "") -> Topology:
    """NUMA nodes, and the cores of these CPUs."""
    siblings = {}
    for cpu in cpus:
        threads = topology.parse_cpu_list(_read(f"{root}{CPUS}/cpu{cpu}/topology/thread_siblings_list"))
        if threads:
            siblings[cpu] = threads
    return Topology(numa_nodes(root), siblings, topology.distances(_of_nodes("distance", root)))


def _of_nodes(name: str, root: str) -> dict[int, str]:
    """NUMA node → the text of this file of it."""
    try:
        nodes = [int(entry[4:]) for entry in os.listdir(root + NODES) if re.fullmatch(r"node\d+", entry)]
    except OSError:
        return {}
    return {node: _read(f"{root}{NODES}/node{node}/{name}") for node in nodes}


def oom_kills(root: str = "") -> int:
    """How many processes of this rank's memory cgroup the kernel's OOM killer has taken so far; 0 where that can't be read."""
    for directory in _cgroups("memory", root):
        for name in ("memory.events", "memory.oom_control"):
            count = cgroup.oom_kill_count(_read(f"{root}{directory}/{name}"))
            if count is not None:
                return count
    return 0


def _cgroups(controller: str, root: str) -> list[str]:
    return cgroup.directories(_read(f"{root}/proc/self/cgroup"), _read(f"{root}/proc/self/mountinfo"), controller)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except (OSError, ValueError):  # not there, not allowed, or not text
        return ""
