"""What Slurm's variables say that this process was given on its node. Pure.

Only what holds under every launcher is read: below an mpirun that a batch script started, SLURM_PROCID, _LOCALID, _NTASKS and the like are those of the
batch script or of the launcher's own helpers, never of a rank.
"""

import re
from collections.abc import Mapping

MB = 1 << 20
FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Step ids from here on are Slurm's own: the batch script, an interactive shell."""


def is_job(env: Mapping[str, str]) -> bool:
    """Whether this process belongs to a job."""
    return env.get("SLURM_JOB_ID", "").isdigit()


def is_step(env: Mapping[str, str]) -> bool:
    """Whether these variables were set by an srun (of a launcher's helper, perhaps), not by the batch script or an interactive shell."""
    step = env.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < FIRST_SPECIAL_STEP


def expand_counts(text: str) -> list[int]:
    """`4(x2),3` as in SLURM_JOB_CPUS_PER_NODE: a number for each node."""
    counts: list[int] = []
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def expand_hosts(text: str) -> list[str]:
    """`n[1-3,07],login` as in SLURM_JOB_NODELIST, in Slurm's order; several brackets in one name are several dimensions."""
    hosts: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", item):
            names = [name + end for name in names for end in ([plain] if plain else _numbers(ranges))]
        hosts += names
    return hosts


def _numbers(ranges: str) -> list[str]:
    found: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return found


def component_tasks(env: Mapping[str, str]) -> list[int]:
    """How many tasks each component of a heterogeneous job has; empty in any other job. (In a step of it Slurm may tell fewer.)"""
    size = env.get("SLURM_HET_SIZE", "")
    counts = [env.get(f"SLURM_NTASKS_HET_GROUP_{number}", "") for number in range(int(size) if size.isdigit() else 0)]
    return [int(count) for count in counts if count.isdigit()]


def job_cpus(env: Mapping[str, str]) -> int | None:
    """CPUs of the whole job on this node; None if Slurm doesn't say."""
    counts = expand_counts(env.get("SLURM_JOB_CPUS_PER_NODE", ""))
    hosts = expand_hosts(env.get("SLURM_JOB_NODELIST", ""))
    name = env.get("SLURMD_NODENAME", "")
    if len(counts) == len(hosts) and name in hosts:
        return counts[hosts.index(name)]
    return counts[0] if counts and len(set(counts)) == 1 else None


def tasks_of_nodes(env: Mapping[str, str]) -> dict[str, int]:
    """Node → how many of the job's tasks it has; empty if Slurm doesn't say."""
    counts = expand_counts(env.get("SLURM_TASKS_PER_NODE", ""))
    hosts = expand_hosts(env.get("SLURM_JOB_NODELIST", ""))
    return dict(zip(hosts, counts, strict=True)) if len(hosts) == len(counts) else {}


def threads_per_core(env: Mapping[str, str]) -> int | None:
    """How many hardware threads of each core the job asked to use (`--hint=nomultithread`, `--threads-per-core`); None if it said nothing of it."""
    threads = env.get("SLURM_THREADS_PER_CORE", "")
    return int(threads) if is_job(env) and threads.isdigit() and int(threads) else None


def memory_bytes(env: Mapping[str, str], *, by_srun: bool) -> int | None:
    """Memory granted on this node: of the step if srun started the ranks (`by_srun`), else of the job. None: no limit is told."""
    node = env.get("SLURM_MEM_PER_NODE", "")
    if node.isdigit() and int(node):
        return int(node) * MB
    own = env.get("SLURM_CPUS_ON_NODE", "")
    cpus = int(own) if by_srun and own.isdigit() else job_cpus(env)
    for each, count in (("SLURM_MEM_PER_CPU", cpus), ("SLURM_MEM_PER_GPU", _gpus_on_node(env))):
        megabytes = env.get(each, "")
        if megabytes.isdigit() and int(megabytes) and count:
            return int(megabytes) * count * MB
    return None


def _gpus_on_node(env: Mapping[str, str]) -> int:
    count = env.get("SLURM_GPUS_ON_NODE", "")
    return int(count) if count.isdigit() else 0


def gpu_indices(env: Mapping[str, str]) -> tuple[str, ...] | None:
    """Indices of the GPUs of the step, or else of the job, as Slurm counts those of the node; empty: it gave none.

    None: it gave some and doesn't say which, as with `--gpu-bind=none`; or this is no job. Only to be asked where no mask (CUDA_VISIBLE_DEVICES) is set: a mask
    says the same in the numbers that hold inside the job's cgroup.
    """
    if not is_job(env):
        return None
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if env.get(name):
            return tuple(part.strip() for part in env[name].split(","))
    return None if _gpus_on_node(env) else ()
