"""How a node is divided among the ranks that a launcher put on it, and what the launcher's variables say. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_SIZE", "FLUX_JOB_SIZE", "MV2_COMM_WORLD_SIZE")
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PALS_RANKID", "FLUX_TASK_RANK", "MV2_COMM_WORLD_RANK")
SLURM_SPECIAL_STEPS = 0xFFFFFFF0
"""Step ids from here on are Slurm's own: the batch script, an interactive shell."""


@dataclass(frozen=True, slots=True)
class LocalRank:
    """A rank of this node: the CPUs that its launcher lets it use, and the GPUs (opaque tokens) that it sees."""

    rank: Rank
    cpus: tuple[int, ...]
    gpus: tuple[str, ...] = ()


def launched_size(env: Mapping[str, str]) -> int:
    """How many processes the launcher says it started; 1 without a launcher."""
    sizes = [int(env[name]) for name in SIZE_VARIABLES if env.get(name, "").isdigit()]
    step = env.get("SLURM_STEP_ID", "")
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    if step.isdigit() and int(step) < SLURM_SPECIAL_STEPS and tasks.isdigit():
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
    """The launcher by its variables, for an error message."""
    if "OMPI_COMM_WORLD_SIZE" in env or "PRTE_LAUNCHED" in env:
        return "Open MPI's mpirun"
    if "HYDI_CONTROL_FD" in env or "PMI_FD" in env or "MPI_LOCALNRANKS" in env:
        return "MPICH's mpirun"
    if "SLURM_STEP_ID" in env:
        return "srun"
    return "the launcher"


def divide_cpus(local: Sequence[LocalRank], world_size: int) -> dict[Rank, tuple[int, ...]]:
    """The CPUs of each rank of a node.

    A CPU that one rank alone may use is its. Those that several may use are divided evenly and contiguously; the rank that schedules gets a part
    only where there are more of them than other ranks, and the smaller one. A worker that would be left without any shares.
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
    for ranks, cpus in groups.items():
        for rank, part in _split(cpus, ranks).items():
            own[rank] += part
    for place, one in enumerate(one for one in local if one.rank != SCHEDULER_RANK):
        if not own[one.rank] and one.cpus:
            own[one.rank].append(one.cpus[place % len(one.cpus)])
    return {rank: tuple(sorted(cpus)) for rank, cpus in own.items()}


def _split(cpus: Sequence[int], ranks: Sequence[Rank]) -> dict[Rank, list[int]]:
    """Contiguous parts; the longer ones first, rank 0's last."""
    if len(ranks) == 1:
        return {ranks[0]: list(cpus)}
    workers = [rank for rank in ranks if rank != SCHEDULER_RANK]
    takers = [*workers, SCHEDULER_RANK] if len(workers) < len(ranks) and len(cpus) > len(workers) else workers
    if len(cpus) < len(takers):
        return {rank: [cpus[place % len(cpus)]] for place, rank in enumerate(takers)}
    size, longer = divmod(len(cpus), len(takers))
    parts: dict[Rank, list[int]] = {}
    begin = 0
    for place, rank in enumerate(takers):
        end = begin + size + (place < longer)
        parts[rank] = list(cpus[begin:end])
        begin = end
    return parts


def divide_memory(cpus: Mapping[Rank, tuple[int, ...]], memory_bytes: int) -> dict[Rank, int]:
    """The memory of a node among its ranks, by their CPUs; a rank without any counts as one."""
    weights = {rank: max(1, len(own)) for rank, own in cpus.items()}
    total = sum(weights.values())
    return {rank: memory_bytes * weight // total for rank, weight in weights.items()}


def divide_gpus(local: Sequence[LocalRank], cpus: Mapping[Rank, tuple[int, ...]]) -> dict[Rank, tuple[str, ...]]:
    """Each GPU to one of the ranks that see it: to the one with the fewest so far, preferring ranks that have CPUs to feed it."""
    own: dict[Rank, list[str]] = {one.rank: [] for one in local}
    for token in dict.fromkeys(token for one in local for token in one.gpus):
        seers = [one.rank for one in local if token in one.gpus]
        taker = min(seers, key=lambda rank: (not cpus.get(rank), len(own[rank]), rank == SCHEDULER_RANK, rank))
        own[taker].append(token)
    return {rank: tuple(tokens) for rank, tokens in own.items()}
