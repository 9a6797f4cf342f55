"""The fork server's own program: a clean process with the heavy libraries loaded, from which the children of a rank are forked.

        rank  -- Fork(child, lane) + 3 descriptors, Signal(child) -->  fork server  == fork ==>  child (own session)
              <----------- Forked(pid), Exited(status) -------------

It is exec'ed before MPI starts, has no thread when it forks, and holds nothing of the rank's: no MPI, no stdout. Every process that a task
leaves behind, daemons in sessions of their own included, becomes the child of its child or, when that is dead, of this server (subreaper):
so it is found and killed. When its rank is gone the server kills all it ever made, then itself.
"""

import array
import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from smallpond_mpi.execution.executor.commands import Lane
from smallpond_mpi.platform.process import (
    adopt_orphans,
    children_of,
    descendants_of,
    die_with_parent,
    kill_quietly,
)

MAX_MESSAGE_BYTES = 65536
PARENT_CHECK_SECS = 1.0
SWEEP_SECS = 2.0
"""How long the death of a child's leftovers is waited for before its end is told."""
LAST_SWEEP_SECS = 60.0
TRACKER = b"resource_tracker import main"
"""In the command line of the process that removes a Python's shared memory (multiprocessing's, joblib's) when all who could use it are dead."""
TRACKER_SECS = 1.0
"""How long that may take. Segments that it leaves would stay on the node, and count for the job, until somebody else removes them."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Comes with three descriptors: the child's end of its socket, its spool file, and the pipe that holds what it may begin."""

    child: int
    lane: Lane
    gpu_tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Signal:
    """SIGKILL goes to all that the child has started too, any other signal to the child alone."""

    child: int
    signum: int


@dataclass(frozen=True, slots=True)
class Started:
    """The libraries are loaded. `threads` should be 1."""

    threads: int


@dataclass(frozen=True, slots=True)
class Forked:
    child: int
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The child and whatever it left behind are gone."""

    child: int
    status: int


Request = Fork | Signal
Answer = Started | Forked | Exited

ChildMain = Callable[[int, int, int, Lane, tuple[str, ...]], None]


class Server:
    """Serves one rank over one socket until that closes."""

    def __init__(self, sock: socket.socket, rank_pid: int, child_main: ChildMain) -> None:
        self._sock = sock
        self._rank_pid = rank_pid
        self._child_main = child_main
        self._children: dict[int, int] = {}  # pid → child
        self._pids: dict[int, int] = {}  # child → pid
        self._wakeup, self._wakeup_writer = socket.socketpair()

    def serve(self) -> None:
        """Until the rank closes its end or is gone."""
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGTERM, lambda signum, frame: None)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        self._tell(Started(len(os.listdir("/proc/self/task"))))
        while os.getppid() == self._rank_pid:
            readable, _, _ = select.select([self._sock, self._wakeup], [], [], PARENT_CHECK_SECS)
            if self._wakeup in readable:
                self._wakeup.recv(4096)
                self._reap()
            if self._sock in readable and not self._take_request():
                return

    def _take_request(self) -> bool:
        message, ancillary, _, _ = self._sock.recvmsg(
            MAX_MESSAGE_BYTES, socket.CMSG_SPACE(3 * array.array("i").itemsize)
        )
        if not message:
            return False
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        request: Request = pickle.loads(message)
        match request:
            case Fork():
                self._fork(request, list(fds))
            case Signal(child, signum):
                self._signal(child, signum)
            case _:
                assert_never(request)
        return True

    def _fork(self, request: Fork, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # no processes left, or no memory: the rank sees its child end before it is ready
            sys.stderr.write(f"fork: {error}\n")
            self._tell(Exited(request.child, 1 << 8))
            pid = -1
        if pid == 0:
            self._become_child(request, fds)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self._children[pid] = request.child
            self._pids[request.child] = pid
            self._tell(Forked(request.child, pid))

    def _become_child(self, request: Fork, fds: list[int]) -> None:
        """Never returns."""
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            self._sock.close()
            self._wakeup.close()
            self._wakeup_writer.close()
            self._child_main(fds[0], fds[1], fds[2], request.lane, request.gpu_tokens)
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:  # noqa: BLE001 the edge of a process: whatever it is, it must not run on as a second server
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(code)

    def _signal(self, child: int, signum: int) -> None:
        pid = self._pids.get(child)
        if pid is None:
            return
        below = [each for each in descendants_of(pid) if not _is_tracker(each)] if signum == signal.SIGKILL else []
        kill_quietly([pid, *below], signum)  # what they start meanwhile is swept when the child is dead

    def _reap(self) -> None:
        ended: list[tuple[int, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self._children:
                child = self._children.pop(pid)
                del self._pids[child]
                ended.append((child, status))
        if ended:
            self._sweep(SWEEP_SECS)
        for child, status in ended:
            self._tell(Exited(child, status))

    def _sweep(self, secs: float) -> None:
        """Kill whatever dead children have left to this server; who tidies up after them is let do so first."""
        begin = time.monotonic()
        while True:
            strays = [pid for pid in children_of(os.getpid()) if pid not in self._children]
            waited = time.monotonic() - begin
            if not strays or waited > secs:
                return
            doomed = [below for pid in strays for below in descendants_of(pid)] + strays
            kill_quietly([pid for pid in doomed if waited > TRACKER_SECS or not _is_tracker(pid)])
            for pid in strays:
                _reap_one(pid)
            time.sleep(0.001)

    def kill_all(self) -> None:
        """Every process below this one, however deep and in whatever session."""
        self._children.clear()
        self._sweep(LAST_SWEEP_SECS)

    def _tell(self, answer: Answer) -> None:
        try:
            self._sock.send(pickle.dumps(answer))
        except (BrokenPipeError, ConnectionResetError):
            return  # the rank is gone: the next read says so and ends the loop


def _is_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return TRACKER in file.read()
    except OSError:  # ended meanwhile
        return False


def _reap_one(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # reaped already


def main(arguments: str) -> None:
    """The program. `arguments` is JSON: fd of the socket, pid of the rank, names of modules to load, name of the performer."""
    given: Mapping[str, object] = json.loads(arguments)
    rank_pid = int(str(given["rank_pid"]))
    adopt_orphans()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a wake-up when the rank dies: getppid() tells
    for warning in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
        signal.signal(
            warning, signal.SIG_IGN
        )  # Slurm sends them to every process of a step; children ignore them likewise
    die_with_parent(signal.SIGTERM)
    sock = socket.socket(fileno=int(str(given["fd"])))
    modules = given["preload"]
    assert isinstance(modules, list)
    for module in modules:
        importlib.import_module(module)
    child_module = importlib.import_module("smallpond_mpi.execution.executor.child")
    child_main = child_module.prepare(str(given["performer"]))
    gc.collect()
    gc.freeze()  # children write no reference counts into the collector's lists of what they share
    server = Server(sock, rank_pid, child_main)
    try:
        server.serve()
    finally:
        server.kill_all()
        os._exit(0)
