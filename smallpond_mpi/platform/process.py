"""Processes as the Linux kernel shows them: descendants, memory, and the few process attributes that Python has no call for.

Only reads and system calls; who is killed, and why, is decided elsewhere. Everything here answers quietly where a kernel or a container
doesn't allow it: a missing memory policy costs speed, never a task.
"""

import ctypes
import functools
import os
import signal
from collections.abc import Collection, Iterable
from dataclasses import dataclass

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NAME = 15
PR_SET_TIMERSLACK = 29
MPOL_PREFERRED = 1
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
"""Numbers of the system call, which glibc doesn't wrap."""


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent(signum: int = signal.SIGKILL) -> bool:
    """Ask for `signum` when the thread that forked this process ends. The parent may be gone already: the caller compares getppid()."""
    return bool(_libc().prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0) == 0)


def adopt_orphans() -> bool:
    """Become the parent of every descendant whose own parent dies, daemons included."""
    return bool(_libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def sleep_precisely() -> bool:
    """Let this thread's sleeps end on time: the kernel may add 50 µs to each otherwise, as much as the shortest of ours."""
    return bool(_libc().prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0) == 0)


def show_as(name: str) -> None:
    """What ps and top call this process: the first 15 bytes of a name."""
    _libc().prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def prefer_memory_of(numa_node: int) -> bool:
    """Take memory from this NUMA node while it has some. True if the kernel agreed."""
    number = SET_MEMPOLICY.get(os.uname().machine)
    if number is None:
        return False
    words = numa_node // 64 + 1
    mask = (ctypes.c_ulong * words)()
    mask[numa_node // 64] = 1 << (numa_node % 64)
    return bool(_libc().syscall(number, MPOL_PREFERRED, mask, words * 64 + 1) == 0)


def be_killed_first(adjustment: int = 500) -> bool:
    """Raise this process's badness for the kernel's OOM killer. True if that was allowed."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            current = int(file.read())
            file.seek(0)
            file.write(str(min(1000, max(current, adjustment))))
    except OSError:
        return False
    return True


def children_of(pid: int) -> list[int]:
    """Direct children, zombies included; empty when the process is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
        except FileNotFoundError:
            if not HAS_CHILDREN_FILE:
                return [child for child, parent in parents().items() if parent == pid]
        except OSError:  # the thread ended in between
            continue
    return found


HAS_CHILDREN_FILE = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
"""Whether the kernel was built with CONFIG_PROC_CHILDREN."""


def parent_of(pid: int) -> int:
    """The parent's pid, 0 when the process is gone or has none here."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name in parentheses may hold spaces and parentheses: fields count from the last one
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def ancestor_named(names: Collection[str]) -> int | None:
    """The nearest process above this one that goes by one of these names (of a program: 15 bytes at most)."""
    pid = os.getppid()
    while pid > 1:
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read().rstrip("\n") in names:
                    return pid
        except OSError:
            return None
        pid = parent_of(pid)
    return None


def parents() -> dict[int, int]:
    """pid → parent's pid, of every process that this one can see."""
    return {int(name): parent for name in os.listdir("/proc") if name.isdigit() and (parent := parent_of(int(name)))}


def descendants_of(pid: int) -> list[int]:
    """Every process below `pid`, parents before their children."""
    found = children_of(pid)
    for child in found:  # grows while it is walked
        found += children_of(child)
    return found


def carrying(marker: bytes) -> list[int]:
    """Processes whose environment held `marker` when they were exec'ed (forks without exec show their ancestor's)."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if marker in file.read():
                        found.append(int(name))
            except OSError:
                continue
    return found


def kill_quietly(pids: Iterable[int], signum: int = signal.SIGKILL) -> None:
    """Signal each of them that is still there."""
    for pid in pids:
        try:
            os.kill(pid, signum)
        except (ProcessLookupError, PermissionError):
            continue


def resident_bytes(pid: int) -> int:
    """Resident set of a process by /proc/PID/statm, 0 when it is gone. Counts shared and file pages too, but costs microseconds."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read(128).split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def unreclaimable_bytes(pid: int) -> int:
    """Anonymous and shared memory of a process, resident or swapped: what file pages that the kernel can drop at will are not part of."""
    return _sum_of_lines(f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:", b"VmSwap:"))


def proportional_bytes(pid: int) -> int:
    """As `unreclaimable_bytes`, with pages that processes share after a fork divided among them. Walks the page tables: expensive."""
    return _sum_of_lines(f"/proc/{pid}/smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:"))


def _sum_of_lines(path: str, names: tuple[bytes, ...]) -> int:
    """Bytes, of lines that tell kB; 0 when the process is gone."""
    try:
        with open(path, "rb") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(names))
    except (OSError, IndexError):
        return 0


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """A process, so that it is told from any other on any host: kernel, namespace of process ids, id, and start in clock ticks after boot."""

    boot_id: str
    namespace: str
    pid: int
    started_ticks: int


def mark_of_this_process() -> ProcessMark:
    """The mark of the process that asks."""
    return ProcessMark(_boot_id(), os.readlink("/proc/self/ns/pid"), os.getpid(), _started_ticks(os.getpid()) or 0)


def is_dead(mark: ProcessMark) -> bool | None:
    """Whether a process has ended (zombies have); None where this one can't see it: on another host or in another namespace."""
    if mark.boot_id != _boot_id() or mark.namespace != os.readlink("/proc/self/ns/pid"):
        return None
    return _started_ticks(mark.pid) != mark.started_ticks


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _started_ticks(pid: int) -> int | None:
    """When a process started; None of one that has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            after_name = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in (b"Z", b"X") else int(after_name[19])
