"""A child: runs attempts one after the other, in a process of its own, until it should not be trusted with another.

It begins an attempt only when it could take the attempt's number out of the pipe that it shares with its rank, which can take numbers back:
so both always agree on what was begun. All else (limits, deadlines, the judgement over a death) is the rank's.
"""

import _thread
import ctypes
import faulthandler
import importlib
import os
import random
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from smallpond_mpi.execution.executor.commands import Lane
from smallpond_mpi.execution.executor.pipe import FrameReader, Hello, Ready, Refused, Reply, Work, pack
from smallpond_mpi.execution.model import Failure
from smallpond_mpi.execution.protocol import Checkpoint, Message, RunTask, Welcome
from smallpond_mpi.platform import gpu
from smallpond_mpi.platform.process import (
    PAGE_BYTES,
    adopt_orphans,
    be_killed_first,
    die_with_parent,
    prefer_memory_of,
    show_as,
)

DUMP_SIGNAL = signal.SIGUSR2
"""Makes a child write the tracebacks of all its threads to its log."""
IDLE = "sp idle"
"""What ps and top call a child without work; at work it has its attempt's name."""
TOKEN_BYTES = 8
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
    "TOKENIZERS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "SLURM_CPUS_ON_NODE",  # what DuckDB goes by where a user's code opens one: it never looks at the affinity
)
RLIMITS = tuple(
    getattr(resource, f"RLIMIT_{name}")
    for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "NOFILE", "NPROC", "STACK")
)
SIGNALS = tuple(int(signum) for signum in signal.valid_signals() if signum < signal.SIGRTMIN)


_getsignal: Callable[[int], object] = importlib.import_module("_signal").getsignal
"""signal.getsignal without making enums of numbers and handlers: 20 times as fast."""


class Performs(Protocol):
    """What does the work of a task: `execution.payload.Performer`, or a test's stand-in."""

    reusable: bool

    def perform(
        self,
        run: RunTask,
        blobs: Mapping[bytes, bytes],
        checkpoint: Callable[[bytes], None],
        gpu_tokens: tuple[str, ...],
    ) -> tuple[bytes, Failure | None]: ...


def prepare(performer: str) -> Callable[[int, int, int, Lane, tuple[str, ...]], None]:
    """Load the performer ("module:class") in the fork server and return what a forked child does."""
    module, _, name = performer.partition(":")
    factory: Callable[[Welcome, int, str], Performs] = getattr(importlib.import_module(module), name)
    libc = ctypes.CDLL(None)

    def child_main(sock_fd: int, spool_fd: int, token_fd: int, lane: Lane, gpu_tokens: tuple[str, ...]) -> None:
        bind(lane, gpu_tokens)
        redirect(spool_fd)
        sock = socket.socket(fileno=sock_fd)
        Child(sock, token_fd, spool_fd, factory, lane, gpu_tokens, lambda: libc.fflush(None)).run()

    return child_main


def bind(lane: Lane, gpu_tokens: tuple[str, ...]) -> None:
    """Become a session of its own on the granted CPUs, before any pool of threads starts: threads that exist keep their affinity."""
    server = os.getppid()
    os.setsid()
    die_with_parent()
    if os.getppid() != server:
        os._exit(0)
    adopt_orphans()
    be_killed_first()
    for signum in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    if lane.cpus:
        try:
            os.sched_setaffinity(0, lane.cpus)
        except OSError as error:
            sys.stderr.write(f"can't bind to CPUs {lane.cpus}: {error}\n")
    if lane.numa_node is not None:
        prefer_memory_of(lane.numa_node)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(max(1, len(lane.cpus)))))
    os.environ.update(gpu.environment(gpu_tokens))


def redirect(spool_fd: int) -> None:
    """stdin from nowhere, stdout and stderr into the spool file."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(spool_fd, 1)
    os.dup2(spool_fd, 2)
    os.close(nowhere)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 lives as long as the process
    # a line at a time, so that what a crash is preceded by is there
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    faulthandler.enable(2)
    faulthandler.register(DUMP_SIGNAL, file=2, all_threads=True)


def size_pools(cpus: int) -> None:
    """Libraries that are loaded already don't read the variables again: tell them."""
    if "pyarrow" in sys.modules:
        import pyarrow

        pyarrow.set_cpu_count(cpus)
        pyarrow.set_io_thread_count(max(2, cpus))
    if "numpy" in sys.modules:
        import numpy
        import threadpoolctl

        threadpoolctl.threadpool_limits(cpus)
        numpy.random.seed()  # else every child would draw what the fork server had
    random.seed()


class Habitat:
    """What a task must leave as it was for its child to be used again. A look costs some 10 µs."""

    def __init__(self, growth_bytes: int) -> None:
        self._growth_bytes = growth_bytes
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        self._resident = self._resident_bytes()
        self._first_peak = self._last_peak = _max_resident_bytes()
        self._cwd = os.getcwd()
        self._environ = dict(_environ())
        self._rlimits = _rlimits()
        self._handlers = _handlers()
        self._umask = _umask()
        self._threads = _thread._count()
        self._cpus = os.sched_getaffinity(0)

    def _resident_bytes(self) -> int:
        return int(os.pread(self._statm, 128, 0).split()[1]) * PAGE_BYTES

    def peak_bytes(self) -> int:
        """The most memory since the last call, beyond that of the start; exact only where a task set a new record in this process."""
        peak = _max_resident_bytes()
        if peak > self._last_peak:
            self._last_peak = peak
            return peak - self._first_peak
        return max(0, self._resident_bytes() - self._resident)

    def what_changed(self) -> str:
        """Why this process should not run another task, empty if it may."""
        if _thread._count() > self._threads:
            return "it left a thread behind"
        if _has_children():
            return "it left a process behind"
        if self._resident_bytes() - self._resident > self._growth_bytes:
            return "it has grown"
        if _environ() != self._environ and self._environ_changed():
            return "it changed the environment"
        if _rlimits() != self._rlimits:
            return "it changed a resource limit"
        if _handlers() != self._handlers:
            return "it changed a signal handler"
        if _umask() != self._umask:
            return "it changed the umask"
        if os.sched_getaffinity(0) != self._cpus:
            return "it changed the CPUs that it may run on"
        try:
            return "" if os.getcwd() == self._cwd else "it changed the working directory"
        except FileNotFoundError:
            return "its working directory is gone"

    def _environ_changed(self) -> bool:
        # sizes of thread pools are the engine's own doing
        ours = {name.encode() for name in THREAD_VARIABLES}
        now, before = _environ(), self._environ
        return any(now.get(name) != before.get(name) for name in (now.keys() | before.keys()) - ours)


def _environ() -> dict[bytes, bytes]:
    return cast(dict[bytes, bytes], os.environ._data)  # type: ignore[attr-defined] # one compare of dicts instead of a hundred decodes


def _rlimits() -> list[tuple[int, int]]:
    return [resource.getrlimit(limit) for limit in RLIMITS]


def _handlers() -> list[object]:
    return [_getsignal(signum) for signum in SIGNALS]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _max_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


class Child:
    """One child's life."""

    def __init__(
        self,
        sock: socket.socket,
        token_fd: int,
        spool_fd: int,
        factory: Callable[[Welcome, int, str], Performs],
        lane: Lane,
        gpu_tokens: tuple[str, ...],
        flush_c_streams: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._token_fd = token_fd
        self._spool_fd = spool_fd
        self._factory = factory
        self._lane = lane
        self._gpu_tokens = gpu_tokens
        self._flush_c_streams = flush_c_streams
        self._pid = os.getpid()
        self._reader = FrameReader()
        self._came: deque[Message] = deque()
        self._runs: deque[tuple[int, RunTask]] = deque()
        self._blobs: dict[bytes, bytes] = {}
        self._poll = select.poll()
        self._poll.register(token_fd, select.POLLIN)
        self._poll.register(sock, select.POLLRDHUP)

    def run(self) -> None:
        """Until the rank closes the socket, or this process should not run another task."""
        hello = self._next_message()
        if not isinstance(hello, Hello):
            return
        try:
            performer = self._set_up(hello)
        except BaseException:  # noqa: BLE001 whatever the job's context raises, rank 0 must read it
            self._say(Refused(traceback.format_exc()))
            return
        self._say(Ready())
        while (run := self._next_run()) is not None:
            if self._perform(performer, run):
                return

    def _set_up(self, hello: Hello) -> Performs:
        sys.path[:0] = [path for path in hello.welcome.sys_path if path not in sys.path]
        os.environ.update(hello.welcome.env)
        size_pools(max(1, len(self._lane.cpus)))
        performer = self._factory(hello.welcome, hello.rank, hello.host)
        self._habitat = Habitat(hello.growth_bytes)
        return performer

    def _perform(self, performer: Performs, run: RunTask) -> str:
        """Run one attempt and reply. Why it must be the last one, empty if it need not."""

        def checkpoint(state: bytes) -> None:
            self._say(Checkpoint(run.attempt, state))

        show_as(str(run.attempt))
        began = time.monotonic()
        state, failure = performer.perform(run, self._blobs, checkpoint, self._gpu_tokens)
        elapsed_secs = time.monotonic() - began
        show_as(IDLE)
        if os.getpid() != self._pid:
            os._exit(0)  # a fork made by the task came back here: it has no say
        retire = self._flush()
        if failure is not None:
            retire = retire or "its task failed"
        elif not performer.reusable:
            retire = retire or "its task asked for it"
        retire = retire or self._habitat.what_changed()
        peak_bytes = self._habitat.peak_bytes()
        self._say(
            Reply(run.attempt, state, failure, elapsed_secs, peak_bytes, os.fstat(self._spool_fd).st_size, retire)
        )
        return retire

    def _flush(self) -> str:
        """Write out what was printed. Why this process can't go on, empty if it can."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError) as error:  # the disk is full, or the task closed or replaced them
            return f"its output can't be written: {error}"
        self._flush_c_streams()
        return ""

    def _next_run(self) -> RunTask | None:
        """The next attempt that the rank lets this child begin; waits for one. None when the rank has closed the socket."""
        number = self._next_token()
        if number is None:
            return None
        while True:
            while self._runs:
                at, run = self._runs.popleft()
                if at == number:  # those before it were taken back by the rank
                    return run
            work = self._next_message()
            if work is None:
                return None
            assert isinstance(work, Work), work
            self._blobs.update((blob.digest, blob.content) for blob in work.blobs)
            self._runs.extend(enumerate(work.runs, work.first_number))

    def _next_token(self) -> int | None:
        while True:
            try:
                token = os.read(self._token_fd, TOKEN_BYTES)
            except BlockingIOError:
                self._poll.poll()
                if self._hung_up():
                    return None
                continue
            return int.from_bytes(token, "little") if token else None

    def _hung_up(self) -> bool:
        return any(fd == self._sock.fileno() for fd, _ in self._poll.poll(0))

    def _next_message(self) -> Message | None:
        while not self._came:
            piece = self._sock.recv(1 << 20)
            if not piece:
                return None
            self._came.extend(self._reader.feed(piece))
        return self._came.popleft()

    def _say(self, message: Message) -> None:
        try:
            self._sock.sendall(pack(message))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the rank is gone or has let go of this child
