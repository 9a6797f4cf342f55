"""A stand-in for execution.payload.Performer: a task is a pickled function name and arguments, called in the child.

Faithful where it counts for the executor: it keeps what a user's code raises as a Failure, and returns pickled state.
"""

import ctypes
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smallpond_mpi.execution.model import Failure, FailureKind, Grant, TaskId, TaskRuntimeId
from smallpond_mpi.execution.protocol import RunTask, Welcome

NAME = "tests.stand_in:StandIn"
CHECKPOINT: Callable[[bytes], None] = lambda state: None  # noqa: E731 set while a task runs
GPU_TOKENS: tuple[str, ...] = ()
BLOBS: Mapping[bytes, bytes] = {}


class StandIn:
    def __init__(self, welcome: Welcome, rank: int, host: str) -> None:
        if welcome.context == b"refuse":
            raise RuntimeError("this context can't be used")
        self.rank = rank
        self.host = host
        self.reusable = True

    def perform(
        self,
        run: RunTask,
        blobs: Mapping[bytes, bytes],
        checkpoint: Callable[[bytes], None],
        gpu_tokens: tuple[str, ...],
    ) -> tuple[bytes, Failure | None]:
        global CHECKPOINT, GPU_TOKENS, BLOBS
        CHECKPOINT, GPU_TOKENS, BLOBS = checkpoint, gpu_tokens, blobs
        name, args = pickle.loads(run.payload)
        try:
            return pickle.dumps(globals()[name](*args)), None
        except Exception as error:  # noqa: BLE001 what user code raises is the attempt's end
            text = traceback.format_exc()
            failure = Failure(
                FailureKind.EXCEPTION, type(error).__name__, str(error), text, host=self.host, rank=self.rank
            )
            return pickle.dumps(None), failure


def task(
    number: int,
    name: str = "nothing",
    *args: Any,
    cpus: tuple[int, ...] = (0,),
    memory_bytes: int = 0,
    gpus: tuple[tuple[int, float], ...] = (),
    retry: int = 0,
    fresh: bool = False,
    timeout_secs: float | None = None,
    blobs: tuple[bytes, ...] = (),
) -> RunTask:
    """A RunTask of function `name` below."""
    return RunTask(
        TaskRuntimeId(TaskId(number), 0, retry),
        Grant(cpus, memory_bytes, gpus),
        b"",
        pickle.dumps((name, args)),
        blobs,
        fresh,
        timeout_secs,
    )


def nothing() -> None:
    return None


def pid() -> int:
    return os.getpid()


def say(text: str) -> int:
    print(text)
    return os.getpid()


def say_in_c(text: str) -> None:
    ctypes.CDLL(None).printf(text.encode())


def say_much(count: int) -> None:
    os.write(1, b"x" * count)


def echo(data: bytes) -> bytes:
    return data


def sleep(secs: float) -> int:
    time.sleep(secs)
    return os.getpid()


def announce_and_sleep(secs: float) -> None:
    """Tell by a checkpoint that it has begun."""
    CHECKPOINT(b"begun")
    time.sleep(secs)


def raise_error(text: str) -> None:
    print("about to raise")
    raise ValueError(text)


def leave(code: int) -> None:
    print("about to leave")
    os._exit(code)


def segfault() -> None:
    print("about to crash")
    ctypes.string_at(0)


def kill_self(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)


def deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def recurse() -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1) + 1

    deeper(0)


def recurse_without_limit() -> None:
    sys.setrecursionlimit(1 << 30)

    def deeper(n: int) -> str:
        return "%s" % Deep(n)  # noqa: UP031 through C, so that the C stack grows

    class Deep:
        def __init__(self, n: int) -> None:
            self.n = n

        def __str__(self) -> str:
            return deeper(self.n + 1)

    deeper(0)


def daemon(path: str) -> int:
    """Leave a process in a session of its own behind, whose parent is gone; its pid is in `path` and the result."""
    script = f"import os,time; open({path!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    pid = os.fork()
    if pid == 0:
        os.setsid()
        subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        os._exit(0)
    os.waitpid(pid, 0)
    while not os.path.exists(path) or not Path(path).read_text():
        time.sleep(0.005)
    return int(Path(path).read_text())


def daemon_then_sleep(path: str) -> None:
    daemon(path)
    time.sleep(600)


def fork_and_return() -> int:
    """A fork that comes back into the engine as if it were the child."""
    os.fork()
    return os.getpid()


def leave_thread() -> int:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return os.getpid()


def change(what: str) -> int:
    match what:
        case "cwd":
            os.chdir("/")
        case "env":
            os.environ["CHANGED"] = "1"
        case "rlimit":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        case "handler":
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        case "umask":
            os.umask(0o77)
        case "cpus":
            os.sched_setaffinity(0, range(os.cpu_count() or 1))  # its lane has one of them
    return os.getpid()


KEPT: list[bytes] = []


def keep(count: int) -> int:
    KEPT.append(os.urandom(1024) * (count // 1024))
    return os.getpid()


def take_memory(count: int, secs: float = 30.0) -> int:
    """Allocate and touch `count` bytes in steps of 1 MiB, then stay."""
    pieces = []
    for _ in range(count >> 20):
        pieces.append(b"x" * (1 << 20))
        time.sleep(0.0005)
    time.sleep(secs)
    return len(pieces)


def take_memory_below(count: int) -> int:
    """As take_memory, in a process below."""
    return subprocess.run(
        [sys.executable, "-c", f"import time; x = b'x' * {count}; time.sleep(30)"], check=False
    ).returncode


def ignored_signals(status_path: str) -> int:
    """The bits of a /proc/PID/status."""
    with open(status_path) as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn:"))


def take_shared_memory(count: int, path: str) -> None:
    """Have `count` bytes of a segment whose name is left at `path`, and stay."""
    from multiprocessing.resource_tracker import _resource_tracker
    from multiprocessing.shared_memory import SharedMemory

    segment = SharedMemory(create=True, size=count)
    tracker = f"/proc/{_resource_tracker._pid}/status"  # type: ignore[attr-defined]
    while not ignored_signals(tracker) >> signal.SIGTERM - 1 & 1:  # it does that first, when it is up
        time.sleep(0.001)
    with open(path, "w") as file:
        file.write(segment.name)
    for at in range(0, count, 4096):
        segment.buf[at] = 1
    time.sleep(30)


def map_file(path: str) -> int:
    """Have a whole file in memory, but none of the process's own."""
    import mmap

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for at in range(0, len(mapped), 4096):
            mapped[at]
        time.sleep(0.3)
        return len(mapped)


def environ(name: str) -> str | None:
    return os.environ.get(name)


def surroundings() -> dict[str, Any]:
    import pyarrow

    return {
        "affinity": sorted(os.sched_getaffinity(0)),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "gpu_tokens": GPU_TOKENS,
        "arrow": pyarrow.cpu_count(),
        "stdin": os.readlink("/proc/self/fd/0"),
        "fds": sorted(
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        ),
        "oom": int(open("/proc/self/oom_score_adj").read()),
        "launcher": sorted(n for n in os.environ if n.startswith(("PMI", "OMPI_", "PRTE", "HYD"))),
        "sid": os.getsid(0) == os.getpid(),
        "threads": len(os.listdir("/proc/self/task")),
    }


def blob(digest: bytes) -> bytes:
    return BLOBS[digest]


def checkpoint(*states: bytes) -> None:
    for state in states:
        CHECKPOINT(state)


def mpi_world() -> tuple[int, int]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank


def random_numbers() -> tuple[float, float]:
    import random

    import numpy

    return random.random(), float(numpy.random.rand())
