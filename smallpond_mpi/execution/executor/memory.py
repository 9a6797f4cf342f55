"""How much memory a child and everything below it have taken since the fork, measured no more dearly than the answer is worth.

Far from the limit the resident set is enough (microseconds, counts too much: file pages, pages shared after a fork). Near it, what the kernel
can't drop at will; and where processes below the child share pages with it, a walk of the page tables, as rarely as it is slow.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from smallpond_mpi.platform.process import descendants_of, proportional_bytes, resident_bytes, unreclaimable_bytes

FAMILY_SECS = 0.1
FAMILY_SHARE = 50
"""Processes below a child are looked for this often, and at most in 1/50 of the time."""
WALK_SHARE = 10


@dataclass(slots=True)
class Footprint:
    """A child right after its fork, and what was last seen of it."""

    pid: int
    resident: int
    unreclaimable: int
    proportional: int
    family: list[int] = field(default_factory=list)
    next_look: float = 0.0
    next_walk: float = 0.0
    last_walk: int = 0


class MemoryWatch:
    """Measures; who is killed is the core's matter."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def first_look(self, pid: int) -> Footprint:
        """What a child has before its first attempt: never counted against one."""
        return Footprint(pid, resident_bytes(pid), unreclaimable_bytes(pid), proportional_bytes(pid))

    def used_bytes(self, seen: Footprint, granted: int) -> int:
        """Bytes taken since `first_look`. Below `granted` it may be too high, never above."""
        now = self._clock()
        if now >= seen.next_look:
            seen.family = descendants_of(seen.pid)
            done = self._clock()
            seen.next_look = done + max(FAMILY_SECS, FAMILY_SHARE * (done - now))
        pids = [seen.pid, *seen.family]
        resident = sum(map(resident_bytes, pids)) - seen.resident
        if granted <= 0 or resident <= granted:
            return max(0, resident)
        kept = sum(map(unreclaimable_bytes, pids)) - seen.unreclaimable
        if kept <= granted or not seen.family:
            return max(0, kept)
        if now >= seen.next_walk:
            seen.last_walk = sum(map(proportional_bytes, pids)) - seen.proportional
            done = self._clock()
            seen.next_walk = done + WALK_SHARE * (done - now)
        return max(0, seen.last_walk)
