"""What a rank finds out about itself: the questions that rank 0 asks, answered on each rank. IO, no judgement."""

import resource
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from smallpond_mpi.execution.worker import Place
from smallpond_mpi.platform import discover, slurm
from smallpond_mpi.platform.binding import launcher_of

PACKAGES = ("smallpond-mpi", "mpi4py", "duckdb", "pyarrow", "numpy", "cloudpickle")


def rank_facts(place: Place, env: Mapping[str, str], library: str) -> dict[str, Any]:
    """Who this rank is, what it has, and where each limit of that comes from."""
    capacity = place.capacity
    limits = sorted(discover.memory_limits(env), key=lambda limit: limit.bytes)
    return {
        "rank": int(place.rank),
        "host": place.host,
        "cpus": list(capacity.cpus),
        "allowed_cpus": list(discover.counted_cpus(discover.allowed_cpus(), env)),
        "cpuset": list(discover.counted_cpus(discover.cpuset(), env)),
        "job_cpus": slurm.job_cpus(env) if slurm.is_job(env) else None,
        "job_nodes": len(slurm.expand_hosts(env.get("SLURM_JOB_NODELIST", ""))) if slurm.is_job(env) else None,
        "numa_nodes": sorted({node for node in capacity.numa_nodes if node is not None}),
        "numa_node_of_cpu": list(capacity.numa_nodes),
        "gpus": [gpu.token for gpu in capacity.gpus],
        "numa_node_of_gpu": [gpu.numa_node for gpu in capacity.gpus],
        "memory_bytes": capacity.memory_bytes,
        "memory_limits": [{"bytes": limit.bytes, "source": limit.source} for limit in limits],
        "launcher": launcher_of(env),
        "library": library,
        "slurm_job": env.get("SLURM_JOB_ID", ""),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES},
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0],
        "clock": time.time(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
