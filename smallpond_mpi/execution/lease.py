"""Two live jobs with one id are told apart by a lease: a file that the owner keeps locked and renews.

On one host the kernel's lock tells at once whether the owner lives. From another host, where locks may not be seen, the newcomer watches the
file: if it changes within two periods of the newcomer's own clock, the owner lives. No clocks are compared.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from smallpond_mpi.common import JobOwned
from smallpond_mpi.faults import fault_point

PERIOD_SECS = 5.0
_FILE_BYTES = 1024
_LOOKS = 9

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who runs a job."""

    host: str
    pid: int
    boot_id: str
    slurm_step: str
    nonce: str

    def __str__(self) -> str:
        step = f" (Slurm step {self.slurm_step})" if self.slurm_step else ""
        return f"process {self.pid} on {self.host}{step}"


def this_process(env: Mapping[str, str]) -> Owner:
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot_id = file.read().strip()
    step = ".".join(filter(None, (env.get("SLURM_JOB_ID"), env.get("SLURM_STEP_ID"))))
    return Owner(socket.gethostname(), os.getpid(), boot_id, step, os.urandom(8).hex())


class Lease:
    """The right to run a job, held from `take` to `release`.

    A thread renews the file: rank 0 runs the user's script between two computes, for as long as it likes.
    """

    def __init__(self, path: str, fd: int, owner: Owner) -> None:
        self._path = path
        self._fd = fd
        self._owner = owner
        self._released = threading.Event()
        self._writing = threading.Lock()  # the descriptor's number may belong to another file once it is closed
        self._count = 0
        self.renew()
        os.register_at_fork(after_in_child=self._let_go)
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, path: str, env: Mapping[str, str], sleep: Callable[[float], None] = time.sleep) -> "Lease":
        """Become the owner.

        Raises:
            JobOwned: a live process is; the message names it.
        """
        me = this_process(env)
        fault_point("lease.take")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            is_locked = _try_lock(fd)
            owner, seen = _read(path)
            if is_locked is False:
                raise _owned(path, owner)
            # The kernel of this host has said that nobody here holds it. Where it can't say, or for a process elsewhere, time tells.
            if (
                owner is not None
                and (is_locked is None or owner.boot_id != me.boot_id)
                and _is_renewed(path, seen, sleep)
            ):
                raise _owned(path, owner)
            lease = cls(path, fd, me)
        except BaseException:
            os.close(fd)
            raise
        fault_point("lease.taken")
        return lease

    @property
    def nonce(self) -> str:
        """What tells this lease from every other."""
        return self._owner.nonce

    def renew(self) -> bool:
        """Show that this process lives. False if the lease is another's by now: that one took this process for dead."""
        with self._writing:
            if self._released.is_set():
                return False
            if self._count and not self._is_mine():
                return False
            self._count += 1
            text = json.dumps(asdict(self._owner) | {"renewed": self._count}).encode().ljust(_FILE_BYTES)
            os.pwrite(self._fd, text, 0)
            self._sync()
            return True

    def _sync(self) -> None:
        """A client of NFS may keep what was written to itself for half a minute; who watches from another host sees what the server has."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:  # written it is: the next sync may be better
            logger.warning("%s can't be synced: %s", self._path, error)

    def _is_mine(self) -> bool:
        owner, _ = _parse(os.pread(self._fd, _FILE_BYTES, 0).decode(errors="replace"))
        return owner is None or owner.nonce == self._owner.nonce

    def _keep_renewing(self) -> None:
        while not self._released.wait(PERIOD_SECS):
            try:
                if not self.renew():
                    return
            except OSError as error:  # a file system that hiccups: the next time may be better, and the journal's epoch guards the job
                logger.warning("%s can't be renewed: %s", self._path, error)

    def _let_go(self) -> None:
        """In a process forked from this one: a lock lasts as long as anybody has the file open."""
        if not self._released.is_set():
            self._released.set()
            os.close(self._fd)

    def release(self) -> None:
        """Let the next one in at once. Does nothing the second time."""
        with self._writing:
            if self._released.is_set():
                return
            self._released.set()
            if self._is_mine():
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
        self._thread.join()


def _try_lock(fd: int) -> bool | None:
    """Whether the kernel gave the lock; None where it can't tell: no locks on this file system."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_renewed(path: str, seen: str, sleep: Callable[[float], None]) -> bool:
    """Whether somebody renews the file, watched for a bit more than two periods."""
    for _ in range(_LOOKS):
        sleep(2 * PERIOD_SECS / (_LOOKS - 1))
        if _read(path)[1] != seen:
            return True
    return False


def _read(path: str) -> tuple[Owner | None, str]:
    """Who is written down, and the text itself: it changes with each renewal."""
    with open(path, errors="replace") as file:
        return _parse(file.read(_FILE_BYTES))


def read_owner(path: str) -> tuple[Owner | None, str]:
    """Who holds the lease, None if nobody ever did or it was released; and a text that changes as long as the owner lives."""
    try:
        return _read(path)
    except OSError:
        return None, ""


def _parse(text: str) -> tuple[Owner | None, str]:
    try:
        values = json.loads(text)
        values.pop("renewed", None)
        return Owner(**values), text
    except (ValueError, TypeError, AttributeError):
        return None, text


def _owned(path: str, owner: Owner | None) -> JobOwned:
    job = os.path.basename(os.path.dirname(path))
    return JobOwned(
        f"job {job} is run by {owner or 'another live process'}: wait for it, stop it, or give this job an id of its own (job_id or SP_JOBID)"
    )
