"""What the executor core wants done. Imperatives; the loop carries them out in the given order and decides nothing."""

from dataclasses import dataclass

from smallpond_mpi.execution.model import Grant
from smallpond_mpi.execution.protocol import Ended, RunTask


@dataclass(frozen=True, slots=True)
class Lane:
    """What a child is bound to for life: CPUs, NUMA node, GPUs (indices in Capacity.gpus). Only equal lanes share a warm child."""

    cpus: tuple[int, ...]
    numa_node: int | None = None
    gpus: tuple[int, ...] = ()

    @classmethod
    def of(cls, grant: Grant) -> "Lane":
        return cls(grant.cpus, grant.numa_node, tuple(index for index, _ in grant.gpus))


@dataclass(frozen=True, slots=True)
class ForkChild:
    """Fork a child under this number, bound to this lane."""

    child: int
    lane: Lane


@dataclass(frozen=True, slots=True)
class SendWork:
    child: int
    runs: tuple[RunTask, ...]


@dataclass(frozen=True, slots=True)
class RecallWork:
    """Take back whatever the child has not begun; WorkRecalled tells what that was."""

    child: int


@dataclass(frozen=True, slots=True)
class DumpChild:
    """Have the child write the tracebacks of its threads to its log."""

    child: int


@dataclass(frozen=True, slots=True)
class KillChild:
    """Kill the child's process group. ChildDied follows."""

    child: int


@dataclass(frozen=True, slots=True)
class KillServer:
    """The fork server does nothing any more. ServerDied follows, and another server."""


@dataclass(frozen=True, slots=True)
class Report:
    """Keep what the child wrote until `output_end` (None: all of it) as this attempt's output, and tell rank 0 of its end."""

    ended: Ended
    child: int | None = None
    output_end: int | None = None


@dataclass(frozen=True, slots=True)
class BeatHeart:
    """Tell rank 0 that this executor lives."""


@dataclass(frozen=True, slots=True)
class JoinAgain:
    """Nothing is left of what was before: say Joined."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The session is over."""


Command = (
    ForkChild | SendWork | RecallWork | DumpChild | KillChild | KillServer | Report | BeatHeart | JoinAgain | Leave
)
