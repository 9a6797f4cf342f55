"""Frames between rank 0's scheduler and rank 0's own executor, in one process: two deques. Bytes go through it as over a network."""

from collections import deque
from collections.abc import Sequence

from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank
from smallpond_mpi.execution.transport import PeerGone, Received


class LocalTransport:
    """One end of a pair; its only peer is the other end, under the same rank."""

    def __init__(self, incoming: deque[Received | PeerGone], outgoing: deque[Received | PeerGone]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    def send(self, dest: Rank, frame: bytes) -> None:
        """Queue a frame. Raises ValueError for any rank but this one."""
        if dest != SCHEDULER_RANK:
            raise ValueError(f"the local transport reaches rank {SCHEDULER_RANK} only, not {dest}")
        if not self._closed:
            self._outgoing.append(Received(SCHEDULER_RANK, frame))

    def poll(self) -> Sequence[Received | PeerGone]:
        """Everything that has come since the last poll."""
        if not self._incoming:
            return ()
        came = list(self._incoming)
        self._incoming.clear()
        return came

    def close(self, deadline_secs: float) -> None:
        """Nothing has to leave: the other end reads what was sent whenever it polls. It is told that this one is gone."""
        if not self._closed:
            self._closed = True
            self._outgoing.append(PeerGone(SCHEDULER_RANK, "closed"))


def local_pair() -> tuple[LocalTransport, LocalTransport]:
    """Two ends in one process, both rank 0."""
    one: deque[Received | PeerGone] = deque()
    other: deque[Received | PeerGone] = deque()
    return LocalTransport(one, other), LocalTransport(other, one)
