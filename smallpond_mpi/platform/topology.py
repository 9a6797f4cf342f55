"""Parsers of what the kernel tells about CPUs, NUMA nodes and memory limits. Pure: text in, values out."""

from collections.abc import Mapping
from pathlib import PurePosixPath

NO_LIMIT_BYTES = 1 << 60
"""cgroup v1 says "no limit" by a number of pages near 2^63."""


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Numbers of a list as in /sys (`0-3,8,10-11`), ascending."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))


def numa_of_cpus(cpu_lists: Mapping[int, str]) -> dict[int, int]:
    """CPU → NUMA node, from each node's cpulist."""
    return {cpu: node for node, text in cpu_lists.items() for cpu in parse_cpu_list(text)}


def memory_cgroups(proc_self_cgroup: str, mount: str) -> list[str]:
    """Directories of the memory cgroups that a process is in, v1 and v2, from the innermost up to the mount.

    Inside a container the path may be the host's: those directories don't exist then, and the mount itself is the container's.
    """
    directories: list[str] = []
    for line in proc_self_cgroup.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [mount, f"{mount}/unified"]
        elif "memory" in controllers.split(","):
            mounts = [f"{mount}/memory"]
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for base in mounts:
            directories += [str(PurePosixPath(base, level)) for level in (inner, *inner.parents)]
    return list(dict.fromkeys(directories))


def memory_limit(text: str) -> int | None:
    """Bytes of a memory.max (v2) or memory.limit_in_bytes (v1); None for no limit."""
    text = text.strip()
    if not text.isdigit():
        return None
    limit = int(text)
    return limit if limit < NO_LIMIT_BYTES else None


def oom_kill_count(text: str) -> int | None:
    """The oom_kill line of memory.events (v2) or memory.oom_control (v1), None if there is none."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdigit():
            return int(value)
    return None


def available_memory(meminfo: str) -> int | None:
    """MemAvailable of /proc/meminfo in bytes."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
