"""What a rank finds out about itself and about the data root: the questions that rank 0 asks, answered on each rank. IO, no judgement."""

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from smallpond_mpi.execution.worker import Place
from smallpond_mpi.platform import discover
from smallpond_mpi.platform.binding import launcher_of

PACKAGES = ("smallpond-mpi", "mpi4py", "duckdb", "pyarrow", "numpy", "cloudpickle")
SMALL_FILES = 20
BIG_BYTES = 8 << 20
SEEN_SECS = 10.0
"""How long a file that another node wrote may take to be seen."""


def rank_facts(place: Place, env: Mapping[str, str], library: str) -> dict[str, Any]:
    """Who this rank is, what it has, and where each limit of that comes from."""
    capacity = place.capacity
    limits = sorted(discover.memory_limits(env), key=lambda limit: limit.bytes)
    return {
        "rank": int(place.rank),
        "host": place.host,
        "cpus": list(capacity.cpus),
        "allowed_cpus": list(discover.allowed_cpus()),
        "numa_nodes": sorted({node for node in capacity.numa_nodes if node is not None}),
        "gpus": [gpu.token for gpu in capacity.gpus],
        "memory_bytes": capacity.memory_bytes,
        "memory_limits": [{"bytes": limit.bytes, "source": limit.source} for limit in limits],
        "launcher": launcher_of(env),
        "library": library,
        "slurm_job": env.get("SLURM_JOB_ID", ""),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES},
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0],
        "fork_server": is_alive(place.server.pid),
        "clock": time.time(),
    }


def is_alive(pid: int) -> bool:
    """Whether a process of ours is there."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def see(path: str, content: str, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """How long it takes until a file that another rank has written is seen here, whole."""
    began = clock()
    while clock() - began < SEEN_SECS:
        try:
            with open(path) as file:
                if file.read() == content:
                    return {"seen_secs": clock() - began}
        except FileNotFoundError:
            os.listdir(os.path.dirname(path)) if os.path.isdir(os.path.dirname(path)) else None
        except OSError as error:
            return {"error": str(error)}
        time.sleep(0.05)
    return {"error": f"not seen within {SEEN_SECS:g} seconds"}


def write(path: str, content: str) -> dict[str, Any]:
    """Write a file for the others, whole at once."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.part", "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.part", path)
    except OSError as error:
        return {"error": str(error)}
    return {}


def try_files(directory: str, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """What the file system of the data root can do, and how fast: names, space, small files, one of BIG_BYTES."""
    facts: dict[str, Any] = {}
    try:
        os.makedirs(directory, exist_ok=True)
        status = os.statvfs(directory)
        facts["free_bytes"] = status.f_bavail * status.f_frsize
        facts["free_inodes"] = status.f_favail if status.f_files else None
        first, second = os.path.join(directory, "a"), os.path.join(directory, "b")
        began = clock()
        for number in range(SMALL_FILES):
            with open(os.path.join(directory, f"small-{number}"), "wb") as file:
                file.write(b"x" * 100)
        facts["small_files_per_sec"] = SMALL_FILES / max(1e-9, clock() - began)
        began = clock()
        with open(first, "wb") as file:
            file.write(os.urandom(BIG_BYTES))
            file.flush()
            os.fsync(file.fileno())
        facts["write_bytes_per_sec"] = BIG_BYTES / max(1e-9, clock() - began)
        os.rename(first, second)
        facts["rename"] = os.path.getsize(second) == BIG_BYTES and not os.path.exists(first)
        facts["link"] = _can_link(second, first)
    except OSError as error:
        facts["error"] = str(error)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return facts


def _can_link(source: str, target: str) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return os.stat(source).st_ino == os.stat(target).st_ino
