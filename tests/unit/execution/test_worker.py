"""What a process does with its place among the ranks."""

from typing import Any

from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank
from smallpond_mpi.execution.protocol import Shutdown, decode
from smallpond_mpi.execution.worker import Place
from smallpond_mpi.testing import rank


class Sent:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.frames: list[tuple[Rank, bytes]] = []

    def send(self, dest: Rank, frame: bytes) -> None:
        self.frames.append((dest, frame))


def test_ranks_that_a_job_had_given_up_are_dismissed_too() -> None:
    transport = Sent()
    no_server: Any = None
    place = Place(SCHEDULER_RANK, 4, "host", rank(), no_server, transport)
    place.ranks = {Rank(0), Rank(2)}  # that wait for another job
    place.dismiss()
    place.dismiss()
    assert [(dest, decode(frame)) for dest, frame in transport.frames] == [(dest, [Shutdown()]) for dest in (1, 2, 3)]
