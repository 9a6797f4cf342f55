"""A world without processes for the executor core: children that begin, end, fail, leave, hang and die as a seed says."""

import signal
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from smallpond_mpi.execution.executor.commands import (
    BeatHeart,
    Command,
    DumpChild,
    ForkChild,
    JoinAgain,
    KillChild,
    KillServer,
    Lane,
    Leave,
    RecallWork,
    Report,
    SendWork,
)
from smallpond_mpi.execution.executor.core import ExecutorCore
from smallpond_mpi.execution.executor.events import (
    ChildDied,
    ChildReady,
    ChildRefused,
    ChildReplied,
    Event,
    MemorySampled,
    ServerDied,
    TimePassed,
    WorkRecalled,
)
from smallpond_mpi.execution.executor.pipe import Reply
from smallpond_mpi.execution.model import Capacity, Failure, FailureKind, GpuSlot, Grant, TaskId, TaskRuntimeId
from smallpond_mpi.execution.protocol import Ended, RunTask, Welcome

KILLED = int(signal.SIGKILL)
CRASHED = int(signal.SIGSEGV)


def capacity(cpus: int = 4, gpus: int = 0) -> Capacity:
    return Capacity(tuple(range(cpus)), 1 << 30, tuple(GpuSlot(f"GPU-{n}") for n in range(gpus)), (None,) * cpus)


def run(
    number: int,
    *cpus: int,
    memory_bytes: int = 1 << 20,
    gpus: tuple[tuple[int, float], ...] = (),
    fresh: bool = False,
    timeout_secs: float | None = None,
) -> RunTask:
    return RunTask(
        TaskRuntimeId(TaskId(number), 0, 0), Grant(cpus, memory_bytes, gpus), b"", b"", (), fresh, timeout_secs
    )


@dataclass
class SimChild:
    lane: Lane
    is_ready: bool = False
    begun: RunTask | None = None
    sent: list[RunTask] = field(default_factory=list)
    is_killed: bool = False
    hangs: bool = False


class World:
    """Carries out what the core commands and remembers everything; `check` runs after every event."""

    def __init__(self, capacity: Capacity, random: Random | None = None, heartbeat_secs: float = 1e9) -> None:
        self.random = random or Random(0)
        self.core = ExecutorCore(capacity, rank=1, host="sim")
        self.now = 100.0
        self.children: dict[int, SimChild] = {}
        self.pending: list[Event] = []
        self.ends: dict[TaskRuntimeId, Ended] = {}
        self.begun: list[RunTask] = []
        self.log: list[Command] = []
        self.joins = 0
        self.beats = 0
        self.has_left = False
        self.feed(Welcome(0, b"", "log", heartbeat_secs))

    def feed(self, *events: Event) -> None:
        waiting = list(events)
        while waiting:
            commands = self.core.handle(waiting, self.now)
            self.core.check()
            self.log += commands
            waiting = []
            for command in commands:
                waiting += self.carry_out(command)

    def carry_out(self, command: Command) -> list[Event]:
        match command:
            case ForkChild(child, lane):
                assert child not in self.children
                self.children[child] = SimChild(lane)
            case SendWork(child, runs):
                assert self.children[child].is_ready
                for one in runs:
                    assert Lane.of(one.grant) == self.children[child].lane
                self.children[child].sent += runs
            case RecallWork(child):
                back, self.children[child].sent = self.children[child].sent, []
                return [WorkRecalled(child, tuple(one.attempt for one in back))]
            case KillChild(child):
                self.children[child].is_killed = True
            case Report(ended):
                assert ended.attempt not in self.ends, f"{ended.attempt} ended twice"
                self.ends[ended.attempt] = ended
            case JoinAgain():
                self.joins += 1
            case BeatHeart():
                self.beats += 1
            case Leave():
                self.has_left = True
            case DumpChild() | KillServer():
                pass
        return []

    # what a child can do

    def ready(self, child: int) -> None:
        self.children[child].is_ready = True
        self.feed(ChildReady(child))

    def begin(self, child: int) -> RunTask:
        """Begin the first attempt that the child was sent; no two children may have a CPU at a time."""
        it = self.children[child]
        it.begun = it.sent.pop(0)
        self.begun.append(it.begun)
        self.check_no_overlap()
        return it.begun

    def check_no_overlap(self) -> None:
        busy = [it for it in self.children.values() if it.begun is not None]
        cpus = Counter(cpu for it in busy for cpu in it.lane.cpus)
        assert all(count == 1 for count in cpus.values()), f"two children on one CPU: {cpus}"
        shares: Counter[int] = Counter()
        for it in busy:
            assert it.begun is not None
            for index, quota in it.begun.grant.gpus:
                shares[index] += quota  # type: ignore[assignment]
        assert all(share <= 1 + 1e-6 for share in shares.values()), shares

    def reply(self, child: int, failure: Failure | None = None, retire: str = "", secs: float = 0.0) -> None:
        it = self.children[child]
        assert it.begun is not None
        attempt, it.begun = it.begun.attempt, None
        if failure is not None:
            retire = retire or "it failed"
        self.now += secs
        self.feed(ChildReplied(child, Reply(attempt, b"state", failure, secs, 0, 0, retire)))
        if retire:
            it.sent.clear()  # it has left by itself
            it.is_killed = True

    def die(self, child: int, status: int = CRASHED, by_oom_killer: bool = False) -> None:
        never_begun = tuple(one.attempt for one in self.children.pop(child).sent)
        self.feed(WorkRecalled(child, never_begun), ChildDied(child, status, by_oom_killer))

    def bury_the_killed(self) -> None:
        for child in [child for child, it in self.children.items() if it.is_killed]:
            self.die(child, KILLED)

    def work(self, child: int, secs: float = 0.0) -> RunTask:
        """Begin and end one attempt."""
        begun = self.begin(child)
        self.reply(child, secs=secs)
        return begun

    def settle(self, secs: float = 0.0) -> None:
        """Let everything go well until nothing more happens."""
        for _ in range(10_000):
            self.bury_the_killed()
            for child, it in list(self.children.items()):
                if child not in self.children or it.is_killed:
                    continue
                if not it.is_ready:
                    self.ready(child)
                elif it.begun is not None:
                    self.reply(child, secs=secs)
                elif it.sent:
                    self.begin(child)
            if all(
                it.is_ready and not it.sent and it.begun is None and not it.is_killed for it in self.children.values()
            ):
                return
        raise AssertionError("the executor does not come to rest")

    def random_step(self) -> None:
        """Something happens to some child, or time passes."""
        random = self.random
        self.now += random.choice([0.0, 0.001, 0.1, 3.0])
        deadline = self.core.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.feed(TimePassed())
        if random.random() < 0.01:
            self.children.clear()
            self.feed(ServerDied("bad luck"))
            return
        if not self.children:
            return
        child = random.choice(sorted(self.children))
        it = self.children[child]
        if it.is_killed and random.random() < 0.7:
            self.die(child, KILLED)
        elif not it.is_ready and not it.is_killed:
            what = random.random()
            if what < 0.8:
                self.ready(child)
            elif what < 0.9:
                self.feed(ChildRefused(child, "Traceback\nValueError: no"))
            else:
                self.die(child, 256)
        elif it.begun is not None:
            what = random.random()
            if it.hangs:
                pass
            elif what < 0.6:
                self.reply(child)
            elif what < 0.7:
                self.reply(child, failure=Failure(FailureKind.EXCEPTION, "ValueError", "no"))
            elif what < 0.8:
                self.reply(child, retire="it has grown")
            elif what < 0.9:
                self.die(child, random.choice([CRASHED, 3 << 8]))
            elif what < 0.95 and it.begun.timeout_secs is not None:
                it.hangs = True
            else:
                self.feed(MemorySampled(child, random.choice([1, 1 << 40])))
        elif it.sent and not it.is_killed:
            self.begin(child)
