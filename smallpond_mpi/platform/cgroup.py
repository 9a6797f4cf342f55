"""Parsers of control groups, v1 and v2: where a process's are, and what they allow. Pure: text in, values out."""

from pathlib import PurePosixPath

NO_LIMIT_BYTES = 1 << 60
"""cgroup v1 says "no limit" by a number of pages near 2^63."""


def directories(proc_self_cgroup: str, mountinfo: str, controller: str) -> list[str]:
    """Directories of the cgroups that a process is in, of one controller and of v2, from the innermost up to what is mounted.

    A mount may show a part of the hierarchy only (a container sees its own cgroup as the root): what /proc/self/cgroup tells is then relative to
    that part, or, if the process is outside of what is mounted, all that can be said is the mount itself.
    """
    found: list[str] = []
    for line in proc_self_cgroup.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_v2 = number == "0" and not controllers
        if not is_v2 and controller not in controllers.split(","):
            continue
        for root, mount in _mounts(mountinfo, "" if is_v2 else controller):
            below = PurePosixPath(path)
            is_inside = below.is_relative_to(root) and ".." not in below.parts
            inner = below.relative_to(root) if is_inside else PurePosixPath()
            found += [str(PurePosixPath(mount, level)) for level in (inner, *inner.parents)]
    return list(dict.fromkeys(found))


def _mounts(mountinfo: str, controller: str) -> list[tuple[str, str]]:
    """(what of the hierarchy is mounted, where) for a v1 controller; for v2 without one. A later mount at a place hides an earlier one."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        found.pop(fields[4], None)
        wanted = kind[0] == "cgroup" and controller in kind[2].split(",") if controller else kind[0] == "cgroup2"
        if wanted:
            found[fields[4]] = fields[3]
    return [(root, mount) for mount, root in found.items()]


def memory_limit(text: str) -> int | None:
    """Bytes of a memory.max, memory.high (v2) or memory.limit_in_bytes (v1); None for no limit."""
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
