"""Run under mpirun by test_transport_mpi: what each rank does is named by the first argument."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

from smallpond_mpi.execution.model import Rank
from smallpond_mpi.execution.transport import PeerGone, Received
from smallpond_mpi.execution.transport.mpi import MpiTransport, start
from tests.conformance import CASES, End, pattern
from tests.executor_bench import gone

DEADLINE_SECS = 100.0


def say(text: str) -> None:
    """One write: lines of several ranks come out of mpirun in one piece each."""
    os.write(1, f"{text}\n".encode())


def conformance(case: str) -> None:
    """Rank 0 talks to each other rank in turn; all the others idle at rest."""
    transport, world = start(os.environ)
    transport._chunk_bytes = 1 << 16
    first, second = CASES[case]
    if world.rank == 0:
        scripts = [first(End(Filtered(transport, Rank(peer)), Rank(peer), 1 << 16)) for peer in (1,)]
    elif world.rank == 1:
        scripts = [second(End(transport, Rank(0), 1 << 16))]
    else:
        scripts = []
    for script in scripts:
        for _ in script:
            transport_idle()
    say(f"rank {world.rank} is done")
    transport.finalize(20.0, 3)


class Filtered:
    """A transport seen as if there were one peer: others' frames would be an error here."""

    def __init__(self, transport: MpiTransport, peer: Rank) -> None:
        self.send = transport.send
        self.poll = transport.poll
        self.close = transport.close


def transport_idle() -> None:
    os.sched_yield()


def everybody_to_everybody() -> None:
    transport, world = start(os.environ)
    transport._chunk_bytes = 1 << 12
    peers = [Rank(rank) for rank in range(world.size) if rank != world.rank]
    for number in range(50):
        for peer in peers:
            transport.send(peer, pattern(number * 1000, number + world.rank))
    count = dict.fromkeys(peers, 0)
    while any(seen < 50 for seen in count.values()):
        for came in transport.poll():
            assert isinstance(came, Received)
            number = count[came.source]
            assert bytes(came.frame) == pattern(number * 1000, number + came.source)
            count[came.source] += 1
    transport.finalize(20.0, 3)
    say(f"rank {world.rank} is done")


def huge() -> None:
    """More than 2 GiB from rank 1 to rank 0, while small frames go the other way."""
    transport, world = start(os.environ)
    size = (2 << 30) + 12345
    if world.rank == 1:
        transport.send(Rank(0), b"\1" * size)
        while not any(isinstance(came, Received) and came.frame == b"got it" for came in transport.poll()):
            time.sleep(0.001)
    if world.rank == 0:
        came = []
        while not came:
            came += transport.poll()
            time.sleep(0.001)
        frame = came[0].frame
        assert len(frame) == size
        assert frame.count(b"\1") == size
        transport.send(Rank(1), b"got it")
    transport.finalize(20.0, 3)
    say(f"rank {world.rank} is done")


def death(place: str) -> None:
    """The last rank dies; the others are told, once, go on, and leave a file. (mpirun may lose their last lines, and MPI_Finalize may hang, after a death.)"""
    transport, world = start(os.environ)
    last = Rank(world.size - 1)
    if world.rank == last:
        os.kill(os.getpid(), signal.SIGKILL)
    news: list[Received | PeerGone] = []
    peers = [Rank(rank) for rank in range(last) if rank != world.rank]
    deadline = time.monotonic() + DEADLINE_SECS

    def heard() -> list[Rank]:
        return sorted(came.source for came in news if isinstance(came, Received))

    def gone_ranks() -> list[Rank]:
        return [came.peer for came in news if isinstance(came, PeerGone)]

    while not gone_ranks() and time.monotonic() < deadline:
        news += transport.poll()
        transport.send(last, b"are you there?")
        time.sleep(0.005)
    for peer in peers:
        transport.send(peer, b"x" * 200_000)
    while heard() != peers and time.monotonic() < deadline:
        news += transport.poll()
    assert heard() == peers
    # one that has heard everybody may have left already, which is no death of `last`
    assert gone_ranks().count(last) == 1, news
    Path(place, str(world.rank)).touch()
    transport.finalize(2.0, 0)
    transport.leave(0)


def abort() -> None:
    transport, world = start(os.environ)
    if world.rank == 1:
        transport.abort(7)
    while True:
        transport.poll()
        time.sleep(0.01)


def watchdog() -> None:
    """Rank 1 does not call Finalize: rank 0 leaves all the same, and rank 1 sees it go."""
    transport, world = start(os.environ)
    if world.rank == 0:
        transport.send(Rank(1), str(os.getpid()).encode())
    else:
        came: list[Received | PeerGone] = []
        while not came:
            came += transport.poll()
        assert isinstance(came[0], Received)
        while not gone(int(came[0].frame)):
            time.sleep(0.01)
        os._exit(9)
    transport.finalize(1.0, 5)
    say("finalize came back")


def world() -> None:
    transport, world = start(os.environ)
    say(f"world {world.rank} {world.size} {world.host} cpus={world.capacity.cpus} local={len(world.local_ranks)}")
    heavy = {"numpy", "pandas", "duckdb", "pyarrow"} & set(sys.modules)
    assert not heavy, heavy
    transport.finalize(20.0, 3)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    globals()[sys.argv[1]](*sys.argv[2:])
