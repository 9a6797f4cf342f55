"""A rank's side of its fork server: starts it, asks for children, hears of their ends, and starts another one when it dies.

It is started before MPI is (a process that has MPI should not fork), in a session of its own (a launcher that kills the rank's process group leaves
it the time to clean up), with none of the rank's stdout or stderr (a launcher waits until nobody holds those).
"""

import array
import json
import os
import pickle
import resource
import secrets
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

from smallpond_mpi import common
from smallpond_mpi.execution.executor.commands import Lane
from smallpond_mpi.execution.executor.forkserver import MAX_MESSAGE_BYTES, Answer, Fork, Request, Signal, Started
from smallpond_mpi.platform.process import carrying, kill_quietly

PERFORMER = "smallpond_mpi.execution.payload:Performer"
PRELOAD = (
    "pyarrow.parquet",
    "duckdb",
    "smallpond_mpi.execution.payload",
    "smallpond_mpi.execution.task.compute",
    "smallpond_mpi.execution.task.hash_duckdb",
    "smallpond_mpi.execution.task.sink",
    "smallpond_mpi.execution.task.sql",
)
"""What nearly every task needs: imported once by the server, not by each child (0.3 s)."""
MARKER = "SMALLPOND_MPI_SANDBOX"
"""Environment variable by which processes of a dead server are recognised."""
LAUNCHER_PREFIXES = (
    "PMI_",
    "PMIX_",
    "OMPI_",
    "PRTE_",
    "HYDRA",
    "HYDI_",
    "MPI_LOCAL",
    "MPIR_",
    "PALS_",
    "FLUX_TASK",
    "SLURM_MPI",
    "SLURM_PMI",
    "SLURM_STEP_",
)
QUIET_POOLS = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""While the libraries load: a process that has threads should not fork."""
ENOUGH_FILES = 16384
MAX_EARLY_DEATHS = 3
"""Fork servers in a row that die before they are up: then it is not bad luck."""
MAX_BURY_ROUNDS = 200


class ForkServerGone(Exception):
    """The fork server is dead, and so is everything it had forked."""


class ForkServerBroken(RuntimeError):
    """No fork server can be started here."""


def scrub(env: Mapping[str, str]) -> dict[str, str]:
    """An environment without what makes a process part of an MPI job: user code that imports mpi4py gets a world of its own."""
    return {name: value for name, value in env.items() if not name.startswith(LAUNCHER_PREFIXES)}


class ForkServer:
    """One at a time; a new one after `restart`."""

    def __init__(self, env: Mapping[str, str], *, performer: str = PERFORMER, preload: Sequence[str] = PRELOAD) -> None:
        self._env = env
        self._performer = performer
        self._preload = list(preload)
        self._early_deaths = 0
        self._start()

    def _start(self) -> None:
        _allow_many_files()
        self._marker = f"{MARKER}={secrets.token_hex(16)}"
        self._is_up = False
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self._stderr = os.memfd_create("fork server's stderr")
        arguments = {
            "fd": theirs.fileno(),
            "rank_pid": os.getpid(),
            "preload": self._preload,
            "performer": self._performer,
        }
        root = os.path.dirname(os.path.dirname(os.path.abspath(common.__file__)))
        # the rank's own path comes last: a module of the working directory must not stand in for a library
        program = (
            f"import sys; sys.path += {[root, *sys.path]!r}\n"
            "from smallpond_mpi.execution.executor.forkserver import main\n"
            f"main({json.dumps(arguments)!r})"
        )
        name, _, value = self._marker.partition("=")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                env={**scrub(self._env), **QUIET_POOLS, name: value},
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Readable when there is something to `receive`."""
        return self._sock.fileno()

    def fork(self, child: int, lane: Lane, gpu_tokens: tuple[str, ...], fds: Sequence[int]) -> None:
        """Ask for a child that gets these descriptors (socket, spool, pipe of tokens); the caller may close its own copies at once."""
        self._request(Fork(child, lane, gpu_tokens), [os.dup(fd) for fd in fds])

    def signal(self, child: int, signum: int) -> None:
        """Send a signal to a child; to its whole process group if it is SIGKILL. One that is gone is no error."""
        self._request(Signal(child, signum), [])

    def kill(self) -> None:
        """End the server; `receive` tells when it is dead."""
        self._process.kill()

    def _request(self, request: Request, fds: list[int]) -> None:
        self._waiting.append((pickle.dumps(request), fds))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        while self._waiting:
            message, fds = self._waiting[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self._sock.sendmsg([message], rights)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                return  # receive tells
            self._waiting.popleft()
            for fd in fds:
                os.close(fd)

    def receive(self) -> list[Answer]:
        """What the server has told since the last time.

        Raises:
            ForkServerGone: it has died; everything that it forked is killed by now. `restart` is next.
        """
        answers: list[Answer] = []
        while True:
            try:
                message = self._sock.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return answers
            except ConnectionResetError:
                message = b""
            if not message:
                raise ForkServerGone(self._bury())
            answer: Answer = pickle.loads(message)
            if isinstance(answer, Started):
                self._is_up = True
                self._early_deaths = 0
            answers.append(answer)

    def _bury(self) -> str:
        """Make sure that nothing of a dead server is left; why it died."""
        self._process.kill()
        code = self._process.wait()
        if not self._is_up:
            self._early_deaths += 1
        marker = self._marker.encode()
        for _ in range(MAX_BURY_ROUNDS):  # a process in state D outlives any number of them
            leftovers = carrying(marker)
            if not leftovers:
                break
            kill_quietly(leftovers)
            time.sleep(0.001)
        said = os.pread(self._stderr, 1 << 16, 0).decode(errors="replace").strip()
        self._let_go()
        return f"exit status {code}" + (f": {said[-4000:]}" if said else "")

    def _let_go(self) -> None:
        for _, fds in self._waiting:
            for fd in fds:
                os.close(fd)
        self._waiting.clear()
        self._sock.close()
        os.close(self._stderr)

    def restart(self, reason: str) -> None:
        """Start another one.

        Raises:
            ForkServerBroken: the last ones died before they were up, for the reason given.
        """
        if self._early_deaths >= MAX_EARLY_DEATHS:
            raise ForkServerBroken(f"the fork server can't be started on this host: {reason}")
        self._start()

    def close(self, deadline_secs: float) -> None:
        """Kill everything that was forked here, and the server."""
        if self._sock.fileno() < 0:
            return
        self._sock.close()
        try:
            self._process.wait(deadline_secs)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        kill_quietly(carrying(self._marker.encode()))
        self._let_go()


def _allow_many_files() -> None:
    """A rank holds three descriptors a child; some nodes have more CPUs than the usual limit has room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
