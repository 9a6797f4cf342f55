"""The executor of a rank at work: the only place that turns the core's commands into processes, and processes into events.

        rank 0  <== transport ==>  ExecutorLoop ( ExecutorCore decides )  <== socket pairs ==>  children
                                        |  <== one socket ==>  fork server

One thread, no blocking call: `step` polls the transport, looks at the children's sockets, and lets what came be handled in one go. The same loop
runs in every worker and, over the local transport, beside the scheduler in rank 0. It never opens a payload.
"""

import os
import select
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from smallpond_mpi.common import MB
from smallpond_mpi.execution.executor.child import DUMP_SIGNAL
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
from smallpond_mpi.execution.executor.fate import OomKills
from smallpond_mpi.execution.executor.forkserver import Answer, Exited, Forked, Started
from smallpond_mpi.execution.executor.joblog import JobLog, Spool, tail_of
from smallpond_mpi.execution.executor.memory import MemoryWatch
from smallpond_mpi.execution.executor.pipe import Hello, Ready, Refused, Reply
from smallpond_mpi.execution.executor.sandbox import ForkServer, ForkServerGone
from smallpond_mpi.execution.executor.wire import Wire
from smallpond_mpi.execution.model import Capacity, Rank
from smallpond_mpi.execution.protocol import (
    Alive,
    Blob,
    Broken,
    Checkpoint,
    Ended,
    Forget,
    Heard,
    Joined,
    Message,
    Reset,
    RunTask,
    Shutdown,
    StopTask,
    Welcome,
    decode,
    encode,
)
from smallpond_mpi.execution.transport import PeerGone, Received, Transport
from smallpond_mpi.platform.discover import oom_kills

LOOK_SHARE = 20
"""Looking at the memory of children takes at most 1/20 of the time."""
PARENT_CHECK_SECS = 1.0
SPOOL_CUT_BYTES = MB
MIN_GROWTH_BYTES = 64 * MB
MAX_GROWTH_BYTES = 512 * MB
SERVER_KEY = -1
CLOSE_SECS = 5.0
FD_SETSIZE = 1024


class ExecutorLoop:
    """`step` until `finished`; `reason` is then why, empty if rank 0 had asked for it."""

    def __init__(
        self,
        transport: Transport,
        *,
        rank: Rank,
        peer: Rank,
        capacity: Capacity,
        host: str,
        server: ForkServer,
        clock: Callable[[], float] = time.monotonic,
        watched_parent: int | None = None,
        spool_dir: str | None = None,
    ) -> None:
        self._transport = transport
        self._rank = rank
        self._peer = peer
        self.capacity = capacity
        self._host = host
        self._server = server
        self._clock = clock
        self._watched_parent = watched_parent
        self._next_parent_check = clock() + PARENT_CHECK_SECS
        self._spool_dir = spool_dir
        self._core = ExecutorCore(capacity, rank=rank, host=host)
        self._growth_bytes = min(
            MAX_GROWTH_BYTES, max(MIN_GROWTH_BYTES, capacity.memory_bytes // (4 * max(1, len(capacity.cpus))))
        )
        self._selector = selectors.DefaultSelector()
        self._watch_server()
        self._wires: dict[int, Wire] = {}
        self._dead: list[int] = []
        self._full_spools: set[int] = set()
        self._events: list[Event] = []
        self._outbox: list[Message] = [self._joined()]
        self._blobs: dict[bytes, Blob] = {}
        self._welcome: Welcome | None = None
        self._log: JobLog | None = None
        self._memory = MemoryWatch(clock)
        self._next_sample = 0.0
        self._oom_kills = OomKills(oom_kills())
        self._peer_gone = ""
        self.finished = False
        self.reason = ""

    def fileno(self) -> int:
        """Readable when a child or the fork server has something to say: for a wait that rank 0's scheduler shares."""
        return self._selector.fileno()  # epoll's own descriptor

    def nap(self, secs: float) -> None:
        """Sleep, to the microsecond, until a child says something or `secs` are over. What comes over the transport is seen afterwards."""
        if self._core.is_running:
            secs = min(secs, max(0.0, self._next_sample - self._clock()))
        if self.fileno() < FD_SETSIZE:
            select.select([self], [], [], secs)  # epoll itself knows milliseconds only
        else:
            time.sleep(secs)

    def step(self, timeout_secs: float) -> bool:
        """One turn: take in what came, wait up to `timeout_secs` for children if nothing did, carry out what follows. True if anything came in.

        Raises:
            Exception: whatever this executor has no answer to; rank 0 has been sent Broken with the traceback.
        """
        if self.finished:
            return False
        try:
            return self._step(timeout_secs)
        except Exception:
            self._outbox.append(Broken(self._host, traceback.format_exc()))
            self._flush_outbox()
            self.reason = "an error of the executor itself"
            self.close()
            raise

    def _step(self, timeout_secs: float) -> bool:
        self._read_transport()
        self._read_children(0.0 if self._events or self._outbox else self._wait_secs(timeout_secs))
        self._server.flush()
        now = self._clock()
        happened = bool(self._events) or bool(self._outbox)
        self._look_around(now)  # what the clock brings up is no news: polling goes on slowing down
        while self._events:
            events, self._events = self._events, []
            for command in self._core.handle(events, now):
                self._carry_out(command)
        for child in self._dead:
            self._bury(child)
        self._dead.clear()
        if self._full_spools:
            self._cut_spools()
        self._flush_outbox()
        if self._peer_gone and not self.finished:  # a Shutdown that came with the news has been heeded
            self._finish(self._peer_gone)
        return happened or self.finished

    def _wait_secs(self, timeout_secs: float) -> float:
        deadline = self._core.next_deadline()
        return timeout_secs if deadline is None else min(timeout_secs, max(0.0, deadline - self._clock()))

    def _look_around(self, now: float) -> None:
        """What only the clock brings up: deadlines, memory, the launcher."""
        deadline = self._core.next_deadline()
        if deadline is not None and now >= deadline:
            self._events.append(TimePassed())
        if now >= self._next_sample and self._core.is_running:
            for child, granted in self._core.watched(now):
                footprint = self._wires[child].footprint
                if footprint is not None:
                    self._events.append(MemorySampled(child, self._memory.used_bytes(footprint, granted)))
            done = self._clock()
            self._next_sample = done + max(self._core.look_again_secs(), LOOK_SHARE * (done - now))
        if self._watched_parent is not None and now >= self._next_parent_check:
            self._next_parent_check = now + PARENT_CHECK_SECS
            if os.getppid() != self._watched_parent:
                self._finish("the launcher of this rank is gone")

    # what came in

    def _read_transport(self) -> None:
        for came in self._transport.poll():
            match came:
                case Received(_, frame):
                    for message in decode(frame):
                        self._take(message)
                case PeerGone(peer, reason):
                    if peer == self._peer:  # other workers are rank 0's matter
                        self._peer_gone = f"rank {self._peer} is gone: {reason}"
                case _:
                    assert_never(came)

    def _take(self, message: Message) -> None:
        match message:
            case RunTask() | StopTask() | Heard() | Reset() | Shutdown():
                self._events.append(message)
            case Blob(digest):
                self._blobs[digest] = message
            case Forget():
                self._blobs.clear()  # what still waits here was told to stop before, and is not sent to a child any more
            case Welcome():
                self._events.append(message)
                self._blobs.clear()
                self._welcome = message
                if self._log is not None:
                    self._log.close()
                self._log = JobLog(message.log_path)
            case _:
                raise TypeError(f"rank {self._peer} sent {message}, which executors don't take")

    def _read_children(self, timeout_secs: float) -> None:
        for key, mask in self._selector.select(timeout_secs):
            if key.data == SERVER_KEY:
                self._read_server()
                continue
            wire = self._wires.get(key.data)
            if wire is None or wire.sock is not key.fileobj or wire.sock not in self._selector.get_map():
                continue  # drained or buried in this very turn: the fork server spoke first
            if mask & selectors.EVENT_WRITE:
                self._await_room(key.data, wire, wire.push())
            if mask & selectors.EVENT_READ and not self._read_child(key.data, wire):
                self._selector.unregister(wire.sock)  # it has left; the fork server tells how

    def _read_child(self, child: int, wire: Wire) -> bool:
        """Take in what a child said. False at the end of it."""
        said, may_say_more = wire.read()
        for message in said:
            self._take_from_child(child, wire, message)
        return may_say_more

    def _take_from_child(self, child: int, wire: Wire, message: Message) -> None:
        match message:
            case Reply():
                wire.has_replied(message.attempt)
                self._events.append(ChildReplied(child, message))
            case Checkpoint():
                self._outbox.append(message)
            case Ready():
                wire.footprint = self._memory.first_look(wire.pid)
                self._events.append(ChildReady(child))
            case Refused(text):
                self._events.append(ChildRefused(child, text))
            case _:
                raise TypeError(f"child {child} said {message}, which children don't say")

    def _read_server(self) -> None:
        try:
            answers = self._server.receive()
        except ForkServerGone as gone:
            self._replace_server(str(gone))
            return
        for answer in answers:
            self._take_answer(answer)

    def _take_answer(self, answer: Answer) -> None:
        match answer:
            case Started():
                pass
            case Forked(child, pid):
                self._wires[child].pid = pid
            case Exited(child, status):
                wire = self._wires[child]
                self._drain(child, wire)
                if wire.sent:
                    self._recall(child)  # what it never began can't have been its end
                self._events.append(ChildDied(child, status, self._was_taken(wire, status)))
                self._dead.append(child)
            case _:
                assert_never(answer)

    def _was_taken(self, wire: Wire, status: int) -> bool:
        """Whether the OOM killer took a child that is dead."""
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL or wire.was_killed:
            return False
        return self._oom_kills.took_one(oom_kills(), self._clock())

    def _drain(self, child: int, wire: Wire) -> None:
        """Take in the last words of a child that is dead."""
        for message in wire.last_words():
            self._take_from_child(child, wire, message)
        if wire.sock in self._selector.get_map():
            self._selector.unregister(wire.sock)

    def _replace_server(self, reason: str) -> None:
        for child, wire in self._wires.items():
            self._drain(child, wire)
            self._recall(child)
            self._dead.append(child)
        self._events.append(ServerDied(reason))
        self._selector.unregister(self._server_fd)
        self._server.restart(reason)
        self._watch_server()

    def _watch_server(self) -> None:
        self._server_fd = self._server.fileno()
        self._selector.register(self._server_fd, selectors.EVENT_READ, SERVER_KEY)

    # what goes out

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendWork(child, runs):
                wire = self._wires[child]
                self._await_room(child, wire, wire.send_work(runs, self._blobs))
            case Report(ended, child, output_end):
                self._outbox.append(ended if child is None else self._with_output(ended, child, output_end))
            case ForkChild(child, lane):
                self._fork(child, lane)
            case KillChild(child):
                self._wires[child].was_killed = True
                self._server.signal(child, signal.SIGKILL)
            case KillServer():
                self._server.kill()
            case RecallWork(child):
                self._recall(child)
            case DumpChild(child):
                self._server.signal(child, DUMP_SIGNAL)
            case BeatHeart():
                self._outbox.append(Alive())
            case JoinAgain():
                self._outbox.append(self._joined())
            case Leave():
                self._flush_outbox()
                self._finish("")
            case _:
                assert_never(command)

    def _fork(self, child: int, lane: Lane) -> None:
        assert self._welcome is not None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        token_read, token_write = os.pipe()
        os.set_blocking(token_read, False)
        wire = Wire(ours, Spool(self._spool_dir), token_read, token_write)
        self._wires[child] = wire
        tokens = tuple(self.capacity.gpus[index].token for index in lane.gpus)
        with theirs:
            self._server.fork(child, lane, tokens, [theirs.fileno(), wire.spool.fd, token_read])
        self._selector.register(ours, selectors.EVENT_READ, child)
        self._await_room(child, wire, wire.say(Hello(self._welcome, self._rank, self._host, self._growth_bytes)))

    def _await_room(self, child: int, wire: Wire, is_through: bool) -> None:
        """Where a socket is full, go on with what waits when it takes more."""
        if wire.is_full is is_through:
            wire.is_full = not is_through
            if wire.sock in self._selector.get_map():
                mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if wire.is_full else 0)
                self._selector.modify(wire.sock, mask, child)

    def _recall(self, child: int) -> None:
        self._events.append(WorkRecalled(child, self._wires[child].take_back()))

    def _with_output(self, ended: Ended, child: int, output_end: int | None) -> Ended:
        wire = self._wires[child]
        begin, end = wire.spool.take(output_end)
        if end > begin and self._log is not None:
            self._log.keep(wire.spool, begin, end, ended.attempt)
        if ended.failure is not None:
            tail = tail_of(wire.spool, begin, end)
            if self._log is not None and self._log.problem:
                tail += f"\n[{self._log.problem}]"
            ended = replace(ended, failure=replace(ended.failure, log_tail=tail))
        if end > SPOOL_CUT_BYTES:
            self._full_spools.add(child)
        return ended

    def _cut_spools(self) -> None:
        """Empty the long spools of children that have reported all they were sent: those write nothing now."""
        for child in list(self._full_spools):
            wire = self._wires.get(child)
            if wire is None:
                self._full_spools.discard(child)
            elif not wire.sent:
                wire.spool.cut()
                self._full_spools.discard(child)

    def _flush_outbox(self) -> None:
        if self._outbox:
            messages, self._outbox = self._outbox, []
            self._transport.send(self._peer, encode(messages))

    def _joined(self) -> Joined:
        version = ".".join(map(str, sys.version_info[:3]))
        return Joined(self._host, os.getpid(), self.capacity, python=version)

    def _bury(self, child: int) -> None:
        wire = self._wires.pop(child, None)
        if wire is not None:
            wire.close()

    def _finish(self, reason: str) -> None:
        self.reason = reason
        self.close()

    def close(self) -> None:
        """Kill everything that runs here, the fork server too. The transport stays open: it is the caller's."""
        if self.finished:
            return
        self.finished = True
        self._server.close(CLOSE_SECS)
        for child in list(self._wires):
            self._bury(child)
        self._selector.close()
        if self._log is not None:
            self._log.close()
        self._events.clear()
