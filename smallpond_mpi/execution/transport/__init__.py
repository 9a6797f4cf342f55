"""How frames get from one rank to another: one Protocol, three ways (`mpi`, `local`, `files`). A transport decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from smallpond_mpi.execution.model import Rank


@dataclass(frozen=True, slots=True)
class Received:
    """A whole frame. Frames of one peer arrive in the order they were sent."""

    source: Rank
    frame: bytes | bytearray


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The transport knows that a peer is dead, or has left in order. Told once."""

    peer: Rank
    reason: str
    has_left: bool = False


MIN_NAP_SECS = 0.00005
MAX_NAP_SECS = 0.010
NAP_SHARE = 0.05


def nap_secs(idle_secs: float) -> float:
    """How long to sleep before the next poll, nothing having come for `idle_secs`.

    A twentieth of the silence so far: what comes is late by at most 5% of the time it took, short tasks turn round in well under a
    millisecond, and a rank at rest polls a hundred times a second. (A blocking receive would take a whole core; yielding the core
    without sleeping takes it from the child that is to answer: 4 ms a round trip on busy cores, measured.)
    """
    return min(MAX_NAP_SECS, max(MIN_NAP_SECS, idle_secs * NAP_SHARE))


class Transport(Protocol):
    """Sends whole frames of any size, polls for what has come, never blocks."""

    def send(self, dest: Rank, frame: bytes) -> None:
        """Queue a frame; a frame for a dead peer is dropped (PeerGone tells of it)."""

    def poll(self) -> Sequence[Received | PeerGone]:
        """Everything that has come since the last poll; also moves what is still to be sent. Never blocks."""

    def close(self, deadline_secs: float) -> None:
        """Wait up to `deadline_secs` for queued frames to leave, then let go."""
