"""Drives a real executor (fork server, children) over the local transport, as rank 0 would."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from smallpond_mpi.execution.executor.loop import ExecutorLoop
from smallpond_mpi.execution.executor.sandbox import ForkServer
from smallpond_mpi.execution.model import SCHEDULER_RANK, Capacity, GpuSlot, TaskRuntimeId
from smallpond_mpi.execution.protocol import (
    Alive,
    Checkpoint,
    Ended,
    Heard,
    Joined,
    Message,
    RunTask,
    Welcome,
    decode,
    encode,
)
from smallpond_mpi.execution.transport import Received
from smallpond_mpi.execution.transport.local import local_pair
from tests import stand_in

GB = 1 << 30
DEADLINE_SECS = 60.0


class Bench:
    """One executor with everything real but the performer and MPI."""

    def __init__(
        self,
        tmp: Path,
        *,
        cpus: tuple[int, ...] = (0,),
        memory_bytes: int = 4 * GB,
        gpus: tuple[str, ...] = (),
        heartbeat_secs: float = 3600.0,
        context: bytes = b"",
        preload: tuple[str, ...] = ("pyarrow",),
        welcome: bool = True,
    ) -> None:
        self.log_path = tmp / "logs" / "rank-0.log"
        self.transport, theirs = local_pair()
        self.server = ForkServer(os.environ, performer=stand_in.NAME, preload=preload)
        slots = tuple(GpuSlot(token) for token in gpus)
        capacity = Capacity(cpus, memory_bytes, slots, (None,) * len(cpus))
        self.executor = ExecutorLoop(
            theirs, rank=SCHEDULER_RANK, peer=SCHEDULER_RANK, capacity=capacity, host="bench", server=self.server
        )
        self.messages: list[Message] = []
        self.answers_heartbeats = True
        if welcome:
            self.send(Welcome(0, context, str(self.log_path), heartbeat_secs))

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.close()

    def send(self, *messages: Message) -> None:
        self.transport.send(SCHEDULER_RANK, encode(list(messages)))

    def step(self, timeout_secs: float = 0.01) -> None:
        self.executor.step(timeout_secs)
        for came in self.transport.poll():
            assert isinstance(came, Received)
            for message in decode(came.frame):
                self.messages.append(message)
                if isinstance(message, Alive) and self.answers_heartbeats:
                    self.send(Heard())

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECS
        while not condition():
            self.step()
            assert time.monotonic() < deadline, f"not in {DEADLINE_SECS} s; so far: {self.messages}"

    def ended(self) -> dict[TaskRuntimeId, Ended]:
        return {message.attempt: message for message in self.messages if isinstance(message, Ended)}

    def of(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.messages if isinstance(message, kind)]

    def run(self, *tasks: RunTask) -> list[Ended]:
        """Send them all; their ends in the order of `tasks`."""
        self.send(*tasks)
        return self.wait_for(tasks)

    def wait_for(self, tasks: Iterable[RunTask]) -> list[Ended]:
        ids = [one.attempt for one in tasks]
        self.until(lambda: self.ended().keys() >= set(ids))
        ends = [message for message in self.messages if isinstance(message, Ended)]
        assert len(ends) == len({end.attempt for end in ends}), "an attempt ended twice"
        return [self.ended()[id] for id in ids]


def gone(pid: int) -> bool:
    """Whether a process is dead (a zombie that waits for its parent counts)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool], what: str = "", deadline_secs: float = DEADLINE_SECS) -> None:
    """Fails after a generous while."""
    deadline = time.monotonic() + deadline_secs
    while not condition():
        assert time.monotonic() < deadline, what or "condition not reached"
        time.sleep(0.01)


__all__ = ["Bench", "Checkpoint", "Joined", "gone", "wait_until"]
