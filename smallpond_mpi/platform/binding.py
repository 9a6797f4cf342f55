"""How a node is divided among the ranks that a launcher put on it, and what the launcher's variables say. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smallpond_mpi.execution.model import SCHEDULER_RANK, GpuSlot, Rank
from smallpond_mpi.platform import slurm
from smallpond_mpi.platform.topology import Topology

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_SIZE", "FLUX_JOB_SIZE", "MV2_COMM_WORLD_SIZE")
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PALS_RANKID", "FLUX_TASK_RANK", "MV2_COMM_WORLD_RANK")
OPEN_MPI = "Open MPI's mpirun"
SRUN = "srun"
OWN_BYTES = 160 << 20
"""What a rank, its fork server and a child without work hold together (93 + 43 + 25 MB measured for rank 0, with pages that they share counted once). The
memory of a task counts from its start, so this is none of a grant; in a job of a few hundred MB it is what the kernel's OOM killer would come for.
"""


@dataclass(frozen=True, slots=True)
class LocalRank:
    """A rank of this node: the CPUs that it is bound to, and the GPUs that it sees.

    `job_cpus` are all CPUs that its job has on this node, where that is certain and the launcher may have bound it to fewer without being asked.
    """

    rank: Rank
    cpus: tuple[int, ...]
    gpus: tuple[GpuSlot, ...] = ()
    job_cpus: tuple[int, ...] = ()


def launched_size(env: Mapping[str, str]) -> int:
    """How many processes the launcher says it started; 1 without a launcher."""
    sizes = [int(env[name]) for name in SIZE_VARIABLES if env.get(name, "").isdigit()]
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    if slurm.is_step(env) and tasks.isdigit():
        sizes.append(int(tasks))
    return max(sizes, default=1)


def launched_by_mpi(env: Mapping[str, str]) -> bool:
    """Whether a launcher started this process together with others: only then is there a world to be part of."""
    return launched_size(env) > 1


def launched_rank(env: Mapping[str, str]) -> Rank | None:
    """Which of the launched processes this is, known before MPI starts; None without a launcher, or if it doesn't say."""
    if not launched_by_mpi(env):
        return None
    # Slurm's comes last: below an mpirun that a batch script started, every process has inherited the script's
    for name in (*RANK_VARIABLES, "SLURM_PROCID"):
        if env.get(name, "").isdigit():
            return Rank(int(env[name]))
    return None


def launcher_of(env: Mapping[str, str]) -> str:
    """The launcher by its variables, in words."""
    if "OMPI_COMM_WORLD_SIZE" in env or "PRTE_LAUNCHED" in env:
        return OPEN_MPI
    if "HYDI_CONTROL_FD" in env or "MPI_LOCALNRANKS" in env:
        return "MPICH's mpirun"
    if slurm.is_step(env):  # MPICH's own variable PMI_FD is set by srun too
        return SRUN
    return "MPICH's mpirun" if "PMI_FD" in env else "the launcher"


def has_long_addresses(env: Mapping[str, str], library: str) -> bool:
    """Whether this is an MPICH over UCX that Slurm's pmi2 may cut short, and that could go over libfabric as well.

    Addresses of UCX, with what lies behind them in memory, take nine parts of an exchange that MPICH 5.0 sends Slurm 22.05 damaged in one of eight starts, and nearly
    always in some programs ("value not properly terminated"). Libfabric's are short: 33 starts of such a program and 12 of ours went well. Messages here are few and small.
    """
    device = next((line for line in library.splitlines() if line.startswith("MPICH Device")), "")
    return launcher_of(env) == SRUN and "PMI_FD" in env and "ch4:ucx" in device and " ofi" in device


def refused(env: Mapping[str, str]) -> str:
    """Why no job can be started on the processes of this launch, and what to do; empty if one can."""
    tasks = slurm.component_tasks(env)
    is_mpirun = any(name in env for name in ("OMPI_COMM_WORLD_SIZE", "HYDI_CONTROL_FD", "MPI_LOCALNRANKS"))
    if len(tasks) < 2 or not is_mpirun:
        return ""
    return (
        f"this heterogeneous job has {len(tasks)} components with {sum(tasks)} tasks, and mpirun sees the first component alone: start the ranks of all by "
        f"`srun --het-group=0-{len(tasks) - 1} --mpi=pmix` (Open MPI) or --mpi=pmi2 (MPICH) in its place"
    )


def unbound(local: Sequence[LocalRank]) -> list[LocalRank]:
    """The ranks of a node as if they were bound to nothing, where their bindings leave CPUs of the job to nobody.

    Open MPI's mpirun gives each of up to two ranks one core, whatever the job has. A binding that leaves nothing over is kept.
    """
    bound = {cpu for one in local for cpu in one.cpus}
    if all(set(one.job_cpus) <= bound for one in local):
        return list(local)
    return [LocalRank(one.rank, one.job_cpus or one.cpus, one.gpus) for one in local]


def counted(cores: Sequence[tuple[int, ...]], granted: int | None, threads: int | None) -> list[tuple[int, ...]]:
    """The hardware threads of a job's cores that Slurm counts, where it leaves the others of these cores to the job too.

    It counts as many of each core as the job asked for (`threads`, see `slurm.threads_per_core`), and one where a site tells it of as many CPUs as a node has cores.
    """
    if threads is None and len(cores) == granted:
        threads = 1
    return [core[:threads] for core in cores]


def within_grant(
    local: Sequence[LocalRank], granted: int | None, job: int, topology: Topology, threads: int | None = None
) -> list[LocalRank]:
    """The ranks of a node held to the CPUs that Slurm counts, and to as many as it granted the job there, where the site holds them to none (`TaskPlugin=task/none`).

    Which CPUs are the job's nobody can say then: it takes a run of whole cores that begins elsewhere for each job.
    """
    cores = counted(topology.cores({cpu for one in local for cpu in one.cpus}), granted, threads)
    if granted is not None and sum(map(len, cores)) > granted:
        begin = job * granted % len(cores)
        cores = [*cores[begin:], *cores[:begin]]
    kept = sorted([cpu for core in cores for cpu in core][:granted])
    return [
        LocalRank(one.rank, tuple(cpu for cpu in one.cpus if cpu in kept) or tuple(kept), one.gpus, one.job_cpus)
        for one in local
    ]


def divide_cpus(
    local: Sequence[LocalRank], world_size: int, topology: Topology | None = None
) -> dict[Rank, tuple[int, ...]]:
    """The CPUs of each rank of a node.

    A CPU that one rank alone may use is its. Those that several may use are divided evenly by whole cores, neighbours together; the rank that schedules
    gets a part only where there are more of them than other ranks, and the smaller one. Where they are too few, ranks that have others go without.
    A worker that would be left without any shares.
    """
    if world_size == 1:
        return {one.rank: one.cpus for one in local}
    sharers: dict[int, list[Rank]] = {}
    for one in sorted(local, key=lambda one: one.rank):
        for cpu in one.cpus:
            sharers.setdefault(cpu, []).append(one.rank)
    groups: dict[tuple[Rank, ...], list[int]] = {}
    for cpu in sorted(sharers):
        groups.setdefault(tuple(sharers[cpu]), []).append(cpu)
    own: dict[Rank, list[int]] = {one.rank: [] for one in local}
    for ranks, cpus in sorted(groups.items(), key=lambda group: len(group[0])):
        cores = (topology or Topology()).cores(cpus)
        poor = tuple(rank for rank in ranks if not own[rank])
        for rank, part in _split(cores, poor if poor and len(cores) < len(ranks) else ranks).items():
            own[rank] += part
    for place, one in enumerate(one for one in local if one.rank != SCHEDULER_RANK):
        if not own[one.rank] and one.cpus:
            own[one.rank].append(one.cpus[place % len(one.cpus)])
    return {rank: tuple(sorted(cpus)) for rank, cpus in own.items()}


def _split(cores: Sequence[tuple[int, ...]], ranks: Sequence[Rank]) -> dict[Rank, list[int]]:
    """Contiguous parts; the longer ones first, rank 0's last. Hardware threads of a core are parted only where cores are too few."""
    if len(ranks) == 1:
        return {ranks[0]: [cpu for core in cores for cpu in core]}
    workers = [rank for rank in ranks if rank != SCHEDULER_RANK]
    if len(cores) < len(workers):
        cores = [(cpu,) for core in cores for cpu in core]
    takers = [*workers, SCHEDULER_RANK] if len(workers) < len(ranks) and len(cores) > len(workers) else workers
    if len(cores) < len(takers):
        return {rank: list(cores[place % len(cores)]) for place, rank in enumerate(takers)}
    size, longer = divmod(len(cores), len(takers))
    parts: dict[Rank, list[int]] = {}
    begin = 0
    for place, rank in enumerate(takers):
        end = begin + size + (place < longer)
        parts[rank] = [cpu for core in cores[begin:end] for cpu in core]
        begin = end
    return parts


def spread(cpus: Sequence[int], topology: Topology) -> tuple[int, ...]:
    """The CPUs of a rank in the order in which tasks are to get them: one hardware thread of each core, then the others."""
    cores = topology.cores(cpus)
    threads = max((len(core) for core in cores), default=0)
    return tuple(core[thread] for thread in range(threads) for core in cores if thread < len(core))


def divide_memory(cpus: Mapping[Rank, tuple[int, ...]], memory_bytes: int) -> dict[Rank, int]:
    """The memory of a node for tasks, by ranks: each one's part goes by its CPUs, a rank without any counting as one, less what the rank takes itself."""
    weights = {rank: max(1, len(own)) for rank, own in cpus.items()}
    total = sum(weights.values())
    parts = {rank: memory_bytes * weight // total for rank, weight in weights.items()}
    return {rank: part - min(OWN_BYTES, part // 2) for rank, part in parts.items()}


def divide_gpus(
    local: Sequence[LocalRank], cpus: Mapping[Rank, tuple[int, ...]], topology: Topology | None = None
) -> dict[Rank, tuple[str, ...]]:
    """Each GPU (by its token) to one of the ranks that see it: evenly, to ranks that have CPUs to feed it, and near as far as that is even."""
    here = topology or Topology()
    seers: dict[tuple[Rank, ...], list[GpuSlot]] = {}
    for gpu in dict.fromkeys(gpu for one in local for gpu in one.gpus):
        seers.setdefault(tuple(one.rank for one in local if gpu in one.gpus), []).append(gpu)
    own: dict[Rank, list[GpuSlot]] = {one.rank: [] for one in local}
    for ranks, gpus in sorted(
        seers.items(), key=lambda seen: len(seen[0])
    ):  # those that few see first: they go nowhere else
        takers = [rank for rank in ranks if cpus.get(rank)] or list(ranks)
        least, more = divmod(len(gpus), len(takers))  # so many ranks may have one more than the others
        given = dict.fromkeys(takers, 0)
        left = []
        for gpu in gpus:
            most = least + (sum(count > least for count in given.values()) < more)
            near = [
                rank for rank in takers if given[rank] < most and here.distance(gpu.numa_node, cpus.get(rank, ())) == 0
            ]
            if near:
                _give(gpu, near, own, given, here, cpus)
            else:
                left.append(gpu)
        for gpu in left:
            _give(gpu, takers, own, given, here, cpus)
    order = {gpu: place for place, gpu in enumerate(dict.fromkeys(gpu for one in local for gpu in one.gpus))}
    return {rank: tuple(gpu.token for gpu in sorted(gpus, key=lambda gpu: order[gpu])) for rank, gpus in own.items()}


def _give(
    gpu: GpuSlot,
    takers: Sequence[Rank],
    own: dict[Rank, list[GpuSlot]],
    given: dict[Rank, int],
    topology: Topology,
    cpus: Mapping[Rank, tuple[int, ...]],
) -> None:
    """To the one with the fewest so far; of several to the nearest, and to workers first."""

    def cost(rank: Rank) -> tuple[int, int, bool, Rank]:
        return len(own[rank]), topology.distance(gpu.numa_node, cpus.get(rank, ())), rank == SCHEDULER_RANK, rank

    taker = min(takers, key=cost)
    own[taker].append(gpu)
    given[taker] += 1
