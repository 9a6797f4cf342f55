"""Which children take too much memory: the rank ends one before the kernel ends the largest. Pure: decided on what was sampled of them."""

from collections.abc import Iterable

from smallpond_mpi.common import MB
from smallpond_mpi.execution.executor.state import Child, ChildState

MEMORY_KILL_FACTOR = 1.1
FULL = 0.95
"""Share of the rank's memory at which somebody who is over its grant has to go. (At most 0.9 is granted, and each may take 1.1 of that.)"""
WATCH_AFTER_SECS = 0.005
LOOK_SECS = 0.02
"""Between two looks at the memory of children; shorter where one could get past its grant before the next."""
SHORTEST_LOOK_SECS = 0.002
FASTEST_BYTES_PER_SEC = 4 << 30
"""That one CPU can take: zeroing pages is what it costs."""


def watched(children: Iterable[Child], now: float) -> list[tuple[int, int]]:
    """Children whose memory is worth a look, for what they run has lasted a while; with the bytes granted."""
    return [
        (child.id, child.granted_bytes)
        for child in children
        if child.state is ChildState.BUSY and now - child.began_at >= WATCH_AFTER_SECS
    ]


def look_again_secs(children: Iterable[Child]) -> float:
    """Seconds in which no child, however fast it grows, gets far past its grant."""
    secs = LOOK_SECS
    for child in children:
        if child.state is ChildState.BUSY:
            room = child.granted_bytes * MEMORY_KILL_FACTOR - child.used
            secs = min(secs, room / (FASTEST_BYTES_PER_SEC * max(1, len(child.line[0].run.grant.cpus))))
    return max(secs, SHORTEST_LOOK_SECS)


def is_over(child: Child) -> bool:
    """Whether what a child runs takes more than it may."""
    return child.state is ChildState.BUSY and 0 < child.granted_bytes * MEMORY_KILL_FACTOR < child.used


def in_the_way(children: Iterable[Child], rank_bytes: int) -> list[Child]:
    """Those furthest over their grants, while all together have nearly what the rank has: the kernel would take anybody."""
    busy = [child for child in children if child.state is ChildState.BUSY]
    used = sum(child.used for child in busy)
    found = []
    for child in sorted(busy, key=lambda one: (one.used / max(1, one.granted_bytes), one.id), reverse=True):
        if used <= rank_bytes * FULL or child.used <= child.granted_bytes:
            break
        used -= child.used
        found.append(child)
    return found


def taken(child: Child) -> str:
    """What a child took, in words."""
    return f"it took {child.used // MB} MiB of memory and had {child.granted_bytes // MB} MiB granted"
