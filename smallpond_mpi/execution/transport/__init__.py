"""How frames get from one rank to another: one Protocol, two ways (`mpi`, `local`). A transport decides nothing."""

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
    """The transport knows that a peer is dead. Told once."""

    peer: Rank
    reason: str


class Transport(Protocol):
    """Sends whole frames of any size, polls for what has come, never blocks."""

    def send(self, dest: Rank, frame: bytes) -> None:
        """Queue a frame; a frame for a dead peer is dropped (PeerGone tells of it)."""

    def poll(self) -> Sequence[Received | PeerGone]:
        """Everything that has come since the last poll; also moves what is still to be sent. Never blocks."""

    def close(self, deadline_secs: float) -> None:
        """Wait up to `deadline_secs` for queued frames to leave, then let go."""
