"""What a test cluster has on the machine beside its directory, and the removal of all of it.

Nothing is found by the name of a program: every process of a cluster is in the cluster's own cgroup, whose name is that of its directory, and the
name says who wanted it. So remains of a test run that was killed are found whatever it had come to.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "sp-slurm-"
BY_HAND = PREFIX + "hand"
GONE_SECS = 20.0


def box_of_this_process(parent: Path, number: int) -> Path:
    """Where this process keeps a cluster. Short: Slurm and munge have sockets in it, whose paths may have 107 characters."""
    return parent / f"{PREFIX}{os.getpid()}.{_began(os.getpid())}.{number}"


def is_forsaken(box: Path) -> bool:
    """Whether the process that made it is gone. One that was started by hand is nobody's to remove."""
    owner = box.name.removeprefix(PREFIX).split(".")
    return len(owner) == 3 and all(map(str.isdigit, owner)) and _began(int(owner[0])) != int(owner[1])


def clusters(parent: Path) -> set[Path]:
    """Every cluster of which anything is left: directories in `parent`, and cgroups of those whose directory is gone already."""
    found = set(parent.glob(PREFIX + "*"))
    for each in controllers():
        found.update(parent / path.name for path in (CGROUPS / each).glob(PREFIX + "*"))
    return found


def controllers() -> list[str]:
    """Hierarchies of cgroup v1 that have a controller, by their directory below /sys/fs/cgroup."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        place = Path(mount.split()[4])
        if kind.split()[0] == "cgroup" and "name=" not in kind.split()[2] and place.parent == CGROUPS:
            found.append(place.name)
    return found


def make_cgroups(box: Path) -> None:
    """One in each hierarchy, with all CPUs and memory nodes."""
    for each in controllers():
        directory = CGROUPS / each / box.name
        directory.mkdir()
        if each == "cpuset":
            (directory / "cgroup.clone_children").write_text("1")
            for name in ("cpuset.cpus", "cpuset.mems"):
                (directory / name).write_text((directory.parent / name).read_text())


def cgroups_of(box: Path) -> list[Path]:
    """The cluster's directories in all hierarchies, each after those in it."""
    found = []
    for each in controllers():
        top = CGROUPS / each / box.name
        if top.is_dir():
            found += [*_below(top), top]
    return sorted(found, key=lambda path: -len(path.parts))


def _below(directory: Path) -> Iterator[Path]:
    for path, names, _ in os.walk(directory):
        yield from (Path(path) / name for name in names)


def processes_of(box: Path) -> set[int]:
    """Living processes of the cluster, as the machine's own process ids."""
    found: set[int] = set()
    for directory in cgroups_of(box):
        try:
            found.update(map(int, (directory / "cgroup.procs").read_text().split()))
        except OSError:  # went away meanwhile
            continue
    return {pid for pid in found if pid and _began(pid) is not None}


def _began(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot: with the id it names it for good. None for none, and for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def destroy(box: Path) -> None:
    """Kill every process of the cluster in `box`, remove its cgroups, then its files. Namespaces, mounts and networks end with the last process.

    Raises:
        TimeoutError: something could not be removed within GONE_SECS.
    """
    deadline = time.monotonic() + GONE_SECS
    while True:
        left = processes_of(box)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # process 1 of a machine takes all others with it
                continue
        if not left and _cgroups_are_gone(box):
            break
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"can't remove the cluster in {box}: processes {sorted(left)}, cgroups {cgroups_of(box)}"
            )
        time.sleep(0.02)
    shutil.rmtree(box, ignore_errors=True)  # another start may be removing it too
    if box.exists():
        shutil.rmtree(box)


def _cgroups_are_gone(box: Path) -> bool:
    """Remove them, deepest first. One whose last process is just dying is busy for a moment."""
    for directory in cgroups_of(box):
        try:
            directory.rmdir()
        except OSError:
            continue
    return not cgroups_of(box)
