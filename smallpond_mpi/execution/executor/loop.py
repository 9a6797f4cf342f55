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
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from smallpond_mpi.common import MB
from smallpond_mpi.execution.executor.child import DUMP_SIGNAL, TOKEN_BYTES
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
from smallpond_mpi.execution.executor.forkserver import Answer, Exited, Forked, Started
from smallpond_mpi.execution.executor.joblog import JobLog, Spool, tail_of
from smallpond_mpi.execution.executor.memory import Footprint, MemoryWatch
from smallpond_mpi.execution.executor.pipe import FrameReader, Hello, Ready, Refused, Reply, Work, pack
from smallpond_mpi.execution.executor.sandbox import ForkServer, ForkServerGone
from smallpond_mpi.execution.model import Capacity, Rank, TaskRuntimeId
from smallpond_mpi.execution.protocol import (
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
READ_BYTES = 1 << 20
SERVER_KEY = -1
CLOSE_SECS = 5.0
FD_SETSIZE = 1024


class _Wire:
    """The rank's ends of what it shares with one child."""

    __slots__ = (
        "blobs",
        "footprint",
        "is_writing",
        "next_number",
        "pending",
        "pid",
        "reader",
        "sent",
        "sock",
        "spool",
        "token_read",
        "token_write",
    )

    def __init__(self, sock: socket.socket, spool: Spool, token_read: int, token_write: int) -> None:
        self.sock = sock
        self.spool = spool
        self.token_read = token_read
        self.token_write = token_write
        self.reader = FrameReader()
        self.pending: deque[memoryview] = deque()
        self.blobs: set[bytes] = set()
        self.next_number = 0
        self.sent: dict[int, TaskRuntimeId] = {}
        self.pid = 0
        self.footprint: Footprint | None = None
        self.is_writing = False

    def close(self) -> None:
        self.sock.close()
        self.spool.close()
        os.close(self.token_read)
        os.close(self.token_write)


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
        self._wires: dict[int, _Wire] = {}
        self._dead: list[int] = []
        self._full_spools: set[int] = set()
        self._events: list[Event] = []
        self._outbox: list[Message] = [self._joined()]
        self._blobs: dict[bytes, Blob] = {}
        self._welcome: Welcome | None = None
        self._log: JobLog | None = None
        self._memory = MemoryWatch(clock)
        self._next_sample = 0.0
        self._oom_kills = oom_kills()
        self._peer_gone = ""
        self.finished = False
        self.reason = ""

    def fileno(self) -> int:
        """Readable when a child or the fork server has something to say: for a wait that rank 0's scheduler shares."""
        return self._selector.fileno()  # epoll's own descriptor

    def filenos(self) -> list[int]:
        """What to wait on besides the transport."""
        return [self.fileno()]

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
                self._push(key.data, wire)
            if mask & selectors.EVENT_READ and not self._read_child(key.data, wire):
                self._selector.unregister(wire.sock)  # it has left; the fork server tells how

    def _read_child(self, child: int, wire: _Wire) -> bool:
        """Take in what a child said. False at the end of it."""
        while True:
            try:
                piece = wire.sock.recv(READ_BYTES)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not piece:
                return False
            for message in wire.reader.feed(piece):
                self._take_from_child(child, wire, message)
            if len(piece) < READ_BYTES // 2:
                return True

    def _take_from_child(self, child: int, wire: _Wire, message: Message) -> None:
        match message:
            case Reply():
                self._forget_sent(wire, message.attempt)
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

    @staticmethod
    def _forget_sent(wire: _Wire, attempt: TaskRuntimeId) -> None:
        number = next(iter(wire.sent))  # replies come in the order of the numbers
        if wire.sent[number] == attempt:
            del wire.sent[number]

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
                kills = oom_kills() if os.WIFSIGNALED(status) else self._oom_kills
                self._events.append(ChildDied(child, status, kills > self._oom_kills))
                self._oom_kills = kills
                self._dead.append(child)
            case _:
                assert_never(answer)

    def _drain(self, child: int, wire: _Wire) -> None:
        """Take in the last words of a child that is dead."""
        while self._read_child(child, wire):
            try:
                if not wire.sock.recv(1, socket.MSG_PEEK):
                    break
            except (BlockingIOError, ConnectionResetError):
                break
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
                self._send_work(self._wires[child], child, runs)
            case Report(ended, child, output_end):
                self._outbox.append(ended if child is None else self._with_output(ended, child, output_end))
            case ForkChild(child, lane):
                self._fork(child, lane)
            case KillChild(child):
                self._server.signal(child, signal.SIGKILL)
            case KillServer():
                self._server.kill()
            case RecallWork(child):
                self._recall(child)
            case DumpChild(child):
                self._server.signal(child, DUMP_SIGNAL)
            case BeatHeart(alive):
                self._outbox.append(alive)
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
        wire = _Wire(ours, Spool(self._spool_dir), token_read, token_write)
        self._wires[child] = wire
        tokens = tuple(self.capacity.gpus[index].token for index in lane.gpus)
        with theirs:
            self._server.fork(child, lane, tokens, [theirs.fileno(), wire.spool.fd, token_read])
        self._selector.register(ours, selectors.EVENT_READ, child)
        self._say(child, wire, pack(Hello(self._welcome, self._rank, self._host, self._growth_bytes)))

    def _send_work(self, wire: _Wire, child: int, runs: tuple[RunTask, ...]) -> None:
        digests = {digest: None for run in runs for digest in run.blobs if digest not in wire.blobs}
        wire.blobs.update(digests)
        number = wire.next_number
        wire.next_number += len(runs)
        wire.sent.update((at, run.attempt) for at, run in enumerate(runs, number))
        self._say(child, wire, pack(Work(number, runs, tuple([self._blobs[digest] for digest in digests]))))
        # a child may begin what it finds a number of; those that come before their Work make it wait for that
        numbers = b"".join([at.to_bytes(TOKEN_BYTES, "little") for at in range(number, wire.next_number)])
        os.write(wire.token_write, numbers)

    def _say(self, child: int, wire: _Wire, frame: bytes) -> None:
        wire.pending.append(memoryview(frame))
        if len(wire.pending) == 1:
            self._push(child, wire)

    def _push(self, child: int, wire: _Wire) -> None:
        """Send what waits for a child, as far as its socket takes it."""
        while wire.pending:
            try:
                sent = wire.sock.send(wire.pending[0])
            except BlockingIOError:
                self._watch(child, wire, selectors.EVENT_READ | selectors.EVENT_WRITE)
                return
            except (BrokenPipeError, ConnectionResetError):
                wire.pending.clear()  # it is dead; the fork server tells how
                break
            if sent == len(wire.pending[0]):
                wire.pending.popleft()
            else:
                wire.pending[0] = wire.pending[0][sent:]
        if wire.is_writing:
            self._watch(child, wire, selectors.EVENT_READ)

    def _watch(self, child: int, wire: _Wire, mask: int) -> None:
        wire.is_writing = bool(mask & selectors.EVENT_WRITE)
        if wire.sock in self._selector.get_map():
            self._selector.modify(wire.sock, mask, child)

    def _recall(self, child: int) -> None:
        """Take back the numbers of what the child has not begun: what can be read here it can't read any more."""
        wire = self._wires[child]
        numbers: list[int] = []
        while True:
            try:
                numbers.append(int.from_bytes(os.read(wire.token_read, TOKEN_BYTES), "little"))
            except BlockingIOError:
                break
        self._events.append(WorkRecalled(child, tuple([wire.sent.pop(number) for number in numbers])))

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
