"""Run under mpirun by test_executor_mpi: rank 0 stands in for the scheduler, the others are real executors with real children."""

import os
import pickle
import sys
import time
from pathlib import Path

from smallpond_mpi.execution.executor.loop import ExecutorLoop
from smallpond_mpi.execution.executor.sandbox import ForkServer
from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank
from smallpond_mpi.execution.protocol import Ended, Joined, Message, Shutdown, Welcome, decode, encode
from smallpond_mpi.execution.transport import PeerGone, Received
from smallpond_mpi.execution.transport.mpi import MpiTransport, World, start
from tests import stand_in
from tests.stand_in import task

DEADLINE_SECS = 60.0


class Scheduler:
    """What rank 0 needs to drive the others."""

    def __init__(self, transport: MpiTransport, world: World, tmp: str) -> None:
        self.transport = transport
        self.workers = [Rank(rank) for rank in range(1, world.size)]
        self.came: list[tuple[Rank, Message]] = []
        self.gone: list[Rank] = []
        self.joined = {rank: self.wait(rank, Joined) for rank in self.workers}
        for rank in self.workers:
            self.send(rank, Welcome(0, b"", f"{tmp}/rank-{rank}.log", 3600.0))

    def send(self, rank: Rank, *messages: Message) -> None:
        self.transport.send(rank, encode(list(messages)))

    def poll(self) -> None:
        for came in self.transport.poll():
            match came:
                case Received(source, frame):
                    self.came += [(source, message) for message in decode(frame)]
                case PeerGone(peer):
                    self.gone.append(peer)
        time.sleep(0.0005)

    def wait(self, rank: Rank, kind: type[Message]) -> Message:
        """The next message of this kind from this rank."""
        deadline = time.monotonic() + DEADLINE_SECS
        while time.monotonic() < deadline:
            for place, (source, message) in enumerate(self.came):
                if source == rank and isinstance(message, kind):
                    del self.came[place]
                    return message
            self.poll()
        raise TimeoutError(f"no {kind.__name__} from rank {rank}; {self.came}")

    def result(self, rank: Rank) -> object:
        ended = self.wait(rank, Ended)
        assert isinstance(ended, Ended)
        assert ended.failure is None, ended.failure
        return pickle.loads(ended.state or b"")

    def cpu(self, rank: Rank) -> tuple[int, ...]:
        joined = self.joined[rank]
        assert isinstance(joined, Joined)
        return joined.capacity.cpus[:1]


def mpi_in_a_task(scheduler: Scheduler) -> None:
    """Each worker's task imports mpi4py and finds itself alone; the job goes on."""
    for rank in scheduler.workers:
        scheduler.send(rank, task(1, "mpi_world", cpus=scheduler.cpu(rank), fresh=True))
    for rank in scheduler.workers:
        assert scheduler.result(rank) == (1, 0)
        scheduler.send(rank, task(2, "say", "still here", cpus=scheduler.cpu(rank)))
        assert scheduler.result(rank)


def daemons(scheduler: Scheduler) -> None:
    """Leave a daemon in a running task of each worker and tell all pids; then wait to be killed."""
    for rank in scheduler.workers:
        path = os.path.join(sys.argv[2], f"daemon-{rank}")
        scheduler.send(rank, task(1, "daemon_then_sleep", path, cpus=scheduler.cpu(rank)))
    for rank in scheduler.workers:
        path = os.path.join(sys.argv[2], f"daemon-{rank}")
        while not os.path.exists(path) or not Path(path).read_text():
            scheduler.poll()
        joined = scheduler.joined[rank]
        assert isinstance(joined, Joined)
        os.write(1, f"rank {rank} {joined.pid} {Path(path).read_text()}\n".encode())
    os.write(1, b"ready\n")
    while True:
        scheduler.poll()


def death_of_a_rank(scheduler: Scheduler) -> None:
    """Under ULFM: a rank is killed by its own task, the other one goes on."""
    doomed, other = scheduler.workers
    path = os.path.join(sys.argv[2], "daemon")
    scheduler.send(doomed, task(1, "daemon_then_sleep", path, cpus=scheduler.cpu(doomed)))
    while not os.path.exists(path) or not Path(path).read_text():
        scheduler.poll()
    joined = scheduler.joined[doomed]
    assert isinstance(joined, Joined)
    os.kill(joined.pid, 9)
    deadline = time.monotonic() + DEADLINE_SECS
    while not scheduler.gone and time.monotonic() < deadline:
        scheduler.poll()
    assert scheduler.gone == [doomed]
    scheduler.send(other, task(2, "pid", cpus=scheduler.cpu(other)))
    assert scheduler.result(other)


def throughput(scheduler: Scheduler) -> None:
    """Tasks that do nothing, in batches; prints the rate. A figure to look at, not a test."""
    total, batch = 20_000, 256
    for rank in scheduler.workers:
        scheduler.send(rank, task(0, cpus=scheduler.cpu(rank)))
    for rank in scheduler.workers:
        scheduler.result(rank)
    began = time.monotonic()
    sent = dict.fromkeys(scheduler.workers, 0)
    ended = dict.fromkeys(scheduler.workers, 0)
    share = total // len(scheduler.workers)
    while sum(ended.values()) < share * len(scheduler.workers):
        for rank in scheduler.workers:
            if sent[rank] - ended[rank] < batch and sent[rank] < share:
                runs = [task(n + 1, cpus=scheduler.cpu(rank)) for n in range(sent[rank], sent[rank] + batch // 2)]
                scheduler.send(rank, *runs)
                sent[rank] += len(runs)
        came = False
        for received in scheduler.transport.poll():
            assert isinstance(received, Received)
            came = True
            ended[received.source] += sum(isinstance(message, Ended) for message in decode(received.frame))
        if not came:
            os.sched_yield()
    secs = time.monotonic() - began
    os.write(1, f"{sum(ended.values()) / secs:.0f} tasks/s\n".encode())


def main() -> None:
    began = time.monotonic()
    server = ForkServer(os.environ, performer=stand_in.NAME)
    transport, world = start(os.environ)
    if world.rank == SCHEDULER_RANK:
        server.close(1.0)
        scheduler = Scheduler(transport, world, sys.argv[2])
        globals()[sys.argv[1]](scheduler)
        for rank in scheduler.workers:
            scheduler.send(rank, Shutdown())
    else:
        parent = os.getppid()
        executor = ExecutorLoop(
            transport,
            rank=world.rank,
            peer=SCHEDULER_RANK,
            capacity=world.capacity,
            host=world.host,
            server=server,
            watched_parent=parent,
        )
        os.write(1, f"up in {time.monotonic() - began:.3f} s\n".encode())
        idle_since = time.monotonic()
        while not executor.finished:
            idle = time.monotonic() - idle_since
            if executor.step(0.0 if idle < 0.001 else 0.001 if idle < 1.0 else 0.01):
                idle_since = time.monotonic()
            elif idle < 0.001:
                os.sched_yield()
        assert executor.reason == "", executor.reason
    transport.finalize(20.0, 3)
    os.write(1, f"rank {world.rank} is done\n".encode())
    if len(sys.argv) > 2:  # after a rank's death mpirun has been seen to drop what was printed last
        Path(sys.argv[2], f"done-{world.rank}").touch()
    transport.leave(0)


if __name__ == "__main__":
    main()
