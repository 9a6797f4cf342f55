"""The executor of a rank: which attempt runs in which child, when, and what became of it. Pure: events in, commands out.

An attempt waits in the queue of each CPU and GPU of its grant, in the order of arrival. It starts when it is first in all of them and
they are free; or, bound to the same lane as the warm child that holds them, it is sent after what runs there, to be begun without a
round trip. A child begins nothing before it has replied to what came before: so of a child that dies, exactly the attempt at the head
of its line was running.

Not decided here: what runs where (the scheduler gave the grant) and what a failure leads to.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from smallpond_mpi.common import MB
from smallpond_mpi.execution.executor import guard
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
from smallpond_mpi.execution.executor.fate import fate_of_dead
from smallpond_mpi.execution.executor.pipe import Reply
from smallpond_mpi.execution.executor.state import (
    OWN_LANE,
    SHARE_EPSILON,
    Attempt,
    Child,
    ChildState,
    Resource,
    gpu_key,
    resources_of,
)
from smallpond_mpi.execution.model import Capacity, Failure, FailureKind, TaskRuntimeId
from smallpond_mpi.execution.protocol import Ended, Heard, Reset, RunTask, Shutdown, StopTask, Welcome

SHORT_SECS = 0.02  # of work that may lie in a child's socket ahead of time
MAX_AHEAD = 64
MAX_AHEAD_BYTES = MB  # larger payloads wait here, not in a socket
DUMP_SECS = 0.25  # from the request for a traceback to the kill
START_SECS = (
    300.0  # for a child to be ready, the start of its fork server included: libraries may come from a slow file system
)
UNKILLABLE_SECS = 10.0  # after which an attempt is over although its process can't be killed (state D)


class ExecutorCore:
    """`handle(events, now) -> commands` is the only way to change it."""

    def __init__(self, capacity: Capacity, *, rank: int, host: str) -> None:
        self._rank = rank
        self._host = host
        self._capacity = capacity
        self._resources = {key: Resource() for key in self._keys(capacity)}
        self._attempts: dict[TaskRuntimeId, Attempt] = {}
        self._children: dict[int, Child] = {}
        self._idle: dict[Lane, list[Child]] = {}
        self._idle_order: dict[int, Child] = {}
        self._timed: dict[int, Child] = {}
        self._typical_secs: dict[Lane, float] = {}
        self._max_idle = len(capacity.cpus) + 4
        self._next_child = 0
        self._dirty: dict[int, None] = {}
        self._outgoing: dict[int, list[Attempt]] = {}
        self._commands: list[Command] = []
        self._heartbeat_secs: float | None = None
        self._next_beat = 0.0
        self._unheard = False
        self._rejoin_by: float | None = None
        self._left = False

    @staticmethod
    def _keys(capacity: Capacity) -> list[int]:
        return [OWN_LANE, *capacity.cpus, *(gpu_key(index) for index in range(len(capacity.gpus)))]

    def handle(self, events: Sequence[Event], now: float) -> list[Command]:
        """Take in what happened, in this order, and say what to do."""
        for event in events:
            self._apply(event, now)
        if any(type(event) is MemorySampled for event in events):
            self._make_room(now)
        self._place_waiting(now)
        if self._rejoin_by is not None and (not self._children or now >= self._rejoin_by):
            self._rejoin_by = None
            self._commands.append(JoinAgain())
        commands, self._commands = self._commands, []
        return commands

    def next_deadline(self) -> float | None:
        """When TimePassed is due, None if nothing waits for the clock."""
        times = [child.deadline for child in self._timed.values() if child.deadline is not None]
        if self._heartbeat_secs is not None and not self._unheard:
            times.append(self._next_beat)
        if self._rejoin_by is not None:
            times.append(self._rejoin_by)
        return min(times, default=None)

    def watched(self, now: float) -> list[tuple[int, int]]:
        """Children whose memory is worth a look, with the bytes granted."""
        return guard.watched(self._children.values(), now)

    def look_again_secs(self) -> float:
        """Until the next look at them."""
        return guard.look_again_secs(self._children.values())

    @property
    def is_running(self) -> bool:
        """Whether any child runs an attempt."""
        return len(self._children) > len(self._idle_order)

    def _apply(self, event: Event, now: float) -> None:
        match event:
            case ChildReplied(child, reply):
                self._on_reply(self._children[child], reply, now)
            case RunTask():
                self._on_run(event, now)
            case MemorySampled(child, used_bytes):
                self._on_memory(child, used_bytes, now)
            case TimePassed():
                self._on_time(now)
            case ChildReady(child):
                self._on_ready(self._children[child], now)
            case ChildRefused(child, traceback):
                self._on_refused(self._children[child], traceback, now)
            case StopTask(attempt):
                self._on_stop(attempt, now)
            case WorkRecalled(child, attempts):
                self._on_recalled(child, attempts, now)
            case ChildDied(child, status, by_oom_killer):
                self._on_died(self._children[child], status, by_oom_killer, now)
            case ServerDied(reason):
                self._on_server_died(reason, now)
            case Heard():
                self._unheard = False
            case Welcome():
                self._drop_everything(now)
                self._heartbeat_secs = event.heartbeat_secs
                self._next_beat = now + event.heartbeat_secs
                self._unheard = False
            case Reset():
                self._drop_everything(now)
                self._unheard = False
                self._rejoin_by = now + UNKILLABLE_SECS
            case Shutdown():
                self._drop_everything(now)
                self._left = True
                self._heartbeat_secs = None
                self._commands.append(Leave())
            case _:
                assert_never(event)

    def _on_run(self, run: RunTask, now: float) -> None:
        if run.attempt in self._attempts:
            return  # said twice; one end will do for both
        lane = Lane.of(run.grant)
        resources = resources_of(run.grant)
        attempt = Attempt(run, lane, resources, now)
        problem = self._problem(run, resources)
        if problem:
            self._end(attempt, self._failure(FailureKind.NOT_STARTED, "NotStarted", problem), now)
            return
        self._attempts[run.attempt] = attempt
        for key, _ in resources:
            self._resources[key].queue.append(attempt)
        self._dirty[resources[0][0]] = None

    def _problem(self, run: RunTask, resources: tuple[tuple[int, float], ...]) -> str:
        if self._heartbeat_secs is None or self._left:
            return "this executor has not been told of a job"
        unknown = [key for key, _ in resources if key not in self._resources]
        if unknown:
            return f"the grant {run.grant} is not of this rank, which has {self._capacity}"
        return ""

    def _on_ready(self, child: Child, now: float) -> None:
        if child.state is not ChildState.FORKING:
            return  # it was stopped in the meantime
        child.state = ChildState.BUSY
        self._outgoing[child.id] = list(child.line)
        self._begin_head(child, now)
        self._touch(child.held)

    def _on_refused(self, child: Child, traceback: str, now: float) -> None:
        if child.state is not ChildState.FORKING:
            return
        if child.line:
            attempt = child.line.popleft()
            message = "the child process could not set itself up: " + (
                traceback.strip().rpartition("\n")[2] or "no reason"
            )
            failure = replace(self._failure(FailureKind.NOT_STARTED, "NotStarted", message), traceback=traceback)
            self._end(attempt, failure, now, child)
        self._retire(child, now)

    def _on_reply(self, child: Child, reply: Reply, now: float) -> None:
        if not child.line:
            return  # everything was dropped by Reset, Welcome or Shutdown
        attempt = child.line.popleft()
        if attempt.run.attempt != reply.attempt:
            raise RuntimeError(
                f"child {child.id} replied to {reply.attempt} while {attempt.run.attempt} was first in its line"
            )
        del self._attempts[reply.attempt]
        ended = Ended(
            reply.attempt,
            reply.state,
            reply.failure,
            attempt.granted_at - attempt.arrived_at,
            attempt.sent_at - attempt.granted_at,
            reply.elapsed_secs,
            # what the child says of itself counts file pages too: beyond the grant only what was sampled is certain
            max(child.peak, min(reply.peak_bytes, attempt.run.grant.memory_bytes)),
        )
        self._commands.append(Report(ended, child.id, reply.output_end))
        self._learn(child.lane, reply.elapsed_secs)
        if child.state is ChildState.DYING:
            return
        if reply.retire or reply.failure is not None or child.single or child.state is ChildState.DUMPING:
            self._retire(child, now)
        elif child.line:
            self._begin_head(child, now)
            self._touch(child.held)
        else:
            self._rest(child, now)

    def _learn(self, lane: Lane, secs: float) -> None:
        # quick to believe in a long task, slow to believe in short ones: a line behind a long task is the costly error
        known = self._typical_secs.get(lane, secs)
        self._typical_secs[lane] = max(secs, known + (secs - known) * 0.25)

    def _on_stop(self, id: TaskRuntimeId, now: float) -> None:
        attempt = self._attempts.get(id)
        if attempt is None or attempt.stopping:
            return
        child = attempt.child
        if child is None:
            attempt.gone = True
            self._touch(attempt.resources)
            self._end(attempt, self._failure(FailureKind.STOPPED, "Stopped", "stopped before it started"), now)
            return
        attempt.stopping = True
        if child.line[0] is attempt:
            self._stop_head(child, now)
        elif child.state is not ChildState.DYING:
            self._commands.append(RecallWork(child.id))

    def _stop_head(self, child: Child, now: float) -> None:
        self._kill(child, FailureKind.STOPPED, "Stopped", "stopped while it ran", now)

    def _on_recalled(self, child_id: int, ids: tuple[TaskRuntimeId, ...], now: float) -> None:
        child = self._children.get(child_id)
        if child is None:
            return
        back = [self._attempts[id] for id in ids if id in self._attempts and self._attempts[id].child is child]
        for attempt in reversed(back):
            child.line.remove(attempt)
            self._send_back(attempt, now)
        if not child.line and child.state is ChildState.BUSY:
            self._rest(child, now)  # even the first was still in its socket
        elif not child.line and child.state is ChildState.DUMPING:
            self._retire(child, now)

    def _send_back(self, attempt: Attempt, now: float) -> None:
        """An attempt that a child had and never began waits again, as the first of its lane; or is over, if it was to stop."""
        attempt.child = None
        if attempt.stopping:
            self._end(attempt, self._failure(FailureKind.STOPPED, "Stopped", "stopped before it started"), now)
            return
        for key, _ in attempt.resources:
            self._resources[key].queue.appendleft(attempt)
        self._touch(attempt.resources)

    def _on_died(self, child: Child, status: int, by_oom_killer: bool, now: float) -> None:
        if child.line:
            attempt = child.line[0]
            failure = self._failure(*fate_of_dead(child, attempt, status, by_oom_killer))
            child.line.popleft()
            self._end(attempt, failure, now, child)
        self._bury(child, now)

    def _on_server_died(self, reason: str, now: float) -> None:
        for child in list(self._children.values()):
            if child.line:
                attempt = child.line.popleft()
                kind = FailureKind.NOT_STARTED if child.state is ChildState.FORKING else FailureKind.SIGNAL
                failure = self._failure(kind, "ForkServerDied", f"the fork server of this rank died: {reason}")
                if child.doomed is attempt and child.fate is not None:
                    failure = self._failure(*child.fate)
                self._end(attempt, failure, now, child)
            self._bury(child, now)

    def _on_memory(self, child_id: int, used_bytes: int, now: float) -> None:
        child = self._children.get(child_id)
        if child is None:
            return
        child.used = used_bytes
        child.peak = max(child.peak, used_bytes)
        if guard.is_over(child):
            self._kill(child, FailureKind.OUT_OF_MEMORY, "OutOfMemory", guard.taken(child), now)

    def _make_room(self, now: float) -> None:
        whole = self._capacity.memory_bytes
        for child in guard.in_the_way(self._children.values(), whole):
            message = f"{guard.taken(child)}, and little was left of the {whole // MB} MiB of its rank"
            self._kill(child, FailureKind.OUT_OF_MEMORY, "OutOfMemory", message, now)

    def _on_time(self, now: float) -> None:
        for child in [c for c in self._timed.values() if c.deadline is not None and c.deadline <= now]:
            if child.state is ChildState.BUSY:
                self._set_deadline(child, now + DUMP_SECS)
                child.state = ChildState.DUMPING
                self._commands += [RecallWork(child.id), DumpChild(child.id)]
            elif child.state is ChildState.DUMPING:
                limit = child.line[0].run.timeout_secs
                self._kill(
                    child, FailureKind.TIMEOUT, "TimeoutError", f"it ran longer than its limit of {limit:g} s", now
                )
            elif child.state is ChildState.FORKING:
                message = f"its child process was not ready within {START_SECS:g} s"
                self._kill(child, FailureKind.NOT_STARTED, "NotStarted", message, now)
            elif child.fate is not None and child.fate[0] is FailureKind.NOT_STARTED:
                self._set_deadline(child, None)
                self._commands.append(KillServer())  # neither forks nor kills
            else:
                self._give_up(child, now)
        if self._heartbeat_secs is not None and not self._unheard and now >= self._next_beat:
            self._next_beat = now + self._heartbeat_secs
            self._unheard = True
            self._commands.append(BeatHeart())

    def _give_up(self, child: Child, now: float) -> None:
        """The kernel doesn't let it die: tell what became of the attempt, keep its lane closed."""
        self._set_deadline(child, None)
        if child.line:
            attempt = child.line.popleft()
            failure = self._failure(*(child.fate or (FailureKind.LOST, "Lost", "its child process was killed")))
            self._end(attempt, replace(failure, message=failure.message + "; its process does not die"), now, child)

    def _drop_everything(self, now: float) -> None:
        for attempt in self._attempts.values():
            attempt.gone = True
        self._attempts.clear()
        for resource in self._resources.values():
            resource.queue.clear()
        for child in list(self._children.values()):
            child.line.clear()
            self._retire(child, now)

    def _place_waiting(self, now: float) -> None:
        while self._dirty:
            key = next(iter(self._dirty))
            del self._dirty[key]
            resource = self._resources[key]
            while (attempt := resource.head()) is not None and self._place(attempt, now):
                pass
        if self._outgoing:
            for child_id, attempts in self._outgoing.items():
                for attempt in attempts:
                    attempt.sent_at = now
                self._commands.append(SendWork(child_id, tuple([attempt.run for attempt in attempts])))
            self._outgoing.clear()

    def _place(self, attempt: Attempt, now: float) -> bool:
        """Give the attempt a child if it is its turn on everything it was granted."""
        is_free = True
        holder = None
        for key, share in attempt.resources:
            resource = self._resources[key]
            if resource.head() is not attempt:
                return False
            if resource.free + SHARE_EPSILON < share:
                is_free = False
                holder = resource.holder
        if is_free:
            child = self._take_child(attempt, now)
        elif holder is not None and self._may_line_up(attempt, holder):
            child = holder
            self._outgoing.setdefault(child.id, []).append(attempt)
        else:
            return False
        for key, _ in attempt.resources:
            self._resources[key].queue.popleft()
        self._touch(attempt.resources)
        attempt.child = child
        attempt.granted_at = now
        child.line.append(attempt)
        if is_free and child.state is ChildState.BUSY:
            self._outgoing[child.id] = [attempt]
            self._begin_head(child, now)
        return True

    def _may_line_up(self, attempt: Attempt, holder: Child) -> bool:
        # the last lane equal to the holder's: then the holder has all of the attempt's CPUs, and nobody else any
        if attempt.single or holder.single or holder.state is not ChildState.BUSY or holder.lane != attempt.lane:
            return False
        typical = self._typical_secs.get(holder.lane)
        if typical is None or len(holder.line) >= MAX_AHEAD or typical * len(holder.line) > SHORT_SECS:
            return False
        return (
            len(attempt.run.payload) + len(attempt.run.header) <= MAX_AHEAD_BYTES // MAX_AHEAD or len(holder.line) < 2
        )

    def _take_child(self, attempt: Attempt, now: float) -> Child:
        warm = None if attempt.single else self._idle.get(attempt.lane)
        if warm:
            child = warm.pop()
            del self._idle_order[child.id]
            child.state = ChildState.BUSY
        else:
            child = Child(self._next_child, attempt)
            self._next_child += 1
            self._children[child.id] = child
            self._commands.append(ForkChild(child.id, child.lane))
            self._set_deadline(child, now + START_SECS)
        child.held = attempt.resources
        for key, share in child.held:
            resource = self._resources[key]
            resource.free -= share
            resource.holder = child if share == 1.0 else None
        return child

    def _begin_head(self, child: Child, now: float) -> None:
        child.began_at = now
        child.peak = child.used = 0
        head = child.line[0]
        timeout = head.run.timeout_secs
        if timeout is not None or child.deadline is not None:
            self._set_deadline(child, None if timeout is None else now + timeout)
        if head.stopping:
            self._stop_head(child, now)

    def _set_deadline(self, child: Child, deadline: float | None) -> None:
        child.deadline = deadline
        if deadline is None:
            self._timed.pop(child.id, None)
        else:
            self._timed[child.id] = child

    def _rest(self, child: Child, now: float) -> None:
        child.state = ChildState.IDLE
        self._set_deadline(child, None)
        self._release(child)
        self._idle.setdefault(child.lane, []).append(child)
        self._idle_order[child.id] = child
        if len(self._idle_order) > self._max_idle:
            self._retire(next(iter(self._idle_order.values())), now)

    def _retire(self, child: Child, now: float) -> None:
        """Let a child go. What it has not begun waits again; its lane is free when it is dead."""
        if child.state is ChildState.IDLE:
            self._idle[child.lane].remove(child)
            del self._idle_order[child.id]
        if child.state is not ChildState.DYING:
            child.state = ChildState.DYING
            self._commands.append(KillChild(child.id))
        self._set_deadline(child, now + UNKILLABLE_SECS)
        self._outgoing.pop(child.id, None)
        while child.line:
            self._send_back(child.line.pop(), now)

    def _kill(self, child: Child, kind: FailureKind, type_name: str, message: str, now: float) -> None:
        """Kill a child for what the head of its line did."""
        if child.state is ChildState.DYING:
            return
        unsent = self._outgoing.pop(child.id, [])
        for attempt in reversed(unsent):
            if attempt is not child.line[0]:
                child.line.remove(attempt)
                self._send_back(attempt, now)
        if len(child.line) > 1:
            self._commands.append(RecallWork(child.id))
        child.state = ChildState.DYING
        child.fate = (kind, type_name, message)
        child.doomed = child.line[0]
        self._set_deadline(child, now + UNKILLABLE_SECS)
        self._commands.append(KillChild(child.id))

    def _bury(self, child: Child, now: float) -> None:
        if child.state is ChildState.IDLE:
            self._idle[child.lane].remove(child)
            del self._idle_order[child.id]
        self._outgoing.pop(child.id, None)
        while child.line:
            self._send_back(child.line.pop(), now)
        self._set_deadline(child, None)
        self._release(child)
        del self._children[child.id]

    def _release(self, child: Child) -> None:
        for key, share in child.held:
            resource = self._resources[key]
            resource.free = min(1.0, resource.free + share)
            if resource.holder is child:
                resource.holder = None
        self._touch(child.held)
        child.held = ()

    def _touch(self, resources: tuple[tuple[int, float], ...]) -> None:
        for key, _ in resources:
            self._dirty[key] = None

    def _failure(self, kind: FailureKind, type_name: str, message: str) -> Failure:
        return Failure(kind, type_name, message, host=self._host, rank=self._rank)

    def _end(self, attempt: Attempt, failure: Failure, now: float, child: Child | None = None) -> None:
        """An attempt is over about which its child can say nothing."""
        self._attempts.pop(attempt.run.attempt, None)
        attempt.gone = True
        queued, start, elapsed = now - attempt.arrived_at, 0.0, 0.0
        if child is not None:
            queued = attempt.granted_at - attempt.arrived_at
            start = (now if child.began_at == 0.0 else attempt.sent_at) - attempt.granted_at
            elapsed = now - child.began_at if child.began_at else 0.0
        ended = Ended(attempt.run.attempt, None, failure, queued, start, elapsed, child.peak if child else 0)
        self._commands.append(Report(ended, None if child is None else child.id))

    def check(self) -> None:
        """Raise if an invariant is broken."""
        in_lines = [attempt for child in self._children.values() for attempt in child.line]
        for attempt in self._attempts.values():
            waits = [key for key, _ in attempt.resources if attempt in self._resources[key].queue]
            if attempt.gone:
                raise AssertionError(f"{attempt.run.attempt} is over and still known")
            if attempt.child is None and len(waits) != len(attempt.resources):
                raise AssertionError(f"{attempt.run.attempt} waits in {waits} of {attempt.resources}")
            if attempt.child is not None and (waits or in_lines.count(attempt) != 1):
                raise AssertionError(f"{attempt.run.attempt} is in a child's line and waits in {waits}")
        if len(in_lines) != sum(1 for attempt in self._attempts.values() if attempt.child is not None):
            raise AssertionError("a child's line holds an attempt that is not known")
        for child in self._children.values():
            if (child.state is ChildState.IDLE) != (child.id in self._idle_order):
                raise AssertionError(f"child {child.id} is {child.state} and listed as idle or not")
            if child.state is ChildState.IDLE and (child.line or child.held):
                raise AssertionError(f"idle child {child.id} holds something")
            if child.state in (ChildState.FORKING, ChildState.BUSY, ChildState.DUMPING) and not child.line:
                raise AssertionError(f"{child.state} child {child.id} has nothing to do")
        for key, resource in self._resources.items():
            held = sum(share for child in self._children.values() for k, share in child.held if k == key)
            if abs(1.0 - held - resource.free) > SHARE_EPSILON * 10 or held > 1 + SHARE_EPSILON * 10:
                raise AssertionError(f"resource {key}: {held} held, {resource.free} free")
            head = resource.head()
            if (
                head is not None
                and not self._commands
                and all(
                    self._resources[k].head() is head and self._resources[k].free + SHARE_EPSILON >= share
                    for k, share in head.resources
                )
            ):
                raise AssertionError(f"{head.run.attempt} could start and does not")
