"""Two live jobs with one id are told apart by a lease: a file that the owner keeps locked and renews.

On one host the kernel's lock tells at once whether the owner lives. From another host, where locks may not be seen, the newcomer watches the
file: if it changes within two periods of the newcomer's own clock, the owner lives. No clocks are compared.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from smallpond_mpi.common import JobOwned

PERIOD_SECS = 5.0


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
        self._count = 0
        self._renew()
        threading.Thread(target=self._keep_renewing, name="lease", daemon=True).start()

    @classmethod
    def take(cls, path: str, env: Mapping[str, str], sleep: Callable[[float], None] = time.sleep) -> "Lease":
        """Become the owner.

        Raises:
            JobOwned: a live process is; the message names it.
        """
        me = this_process(env)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read(path)[0]
            os.close(fd)
            raise _owned(path, owner) from None
        except OSError:
            # No locks on this file system: the watch below has to do.
            pass
        owner, seen = _read(path)
        if owner is not None and owner.boot_id != me.boot_id:
            deadline = 2 * PERIOD_SECS
            step = PERIOD_SECS / 4
            while deadline > 0:
                sleep(step)
                deadline -= step
                if _read(path)[1] != seen:
                    os.close(fd)
                    raise _owned(path, owner)
        return cls(path, fd, me)

    def _renew(self) -> None:
        self._count += 1
        text = json.dumps(asdict(self._owner) | {"renewed": self._count}).encode().ljust(1024)
        os.pwrite(self._fd, text, 0)

    def _keep_renewing(self) -> None:
        while not self._released.wait(PERIOD_SECS):
            self._renew()

    def release(self) -> None:
        """Let the next one in at once."""
        self._released.set()
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _read(path: str) -> tuple[Owner | None, str]:
    """Who is written down, and the text itself: it changes with each renewal."""
    with open(path) as file:
        text = file.read()
    try:
        values = json.loads(text)
        values.pop("renewed", None)
        return Owner(**values), text
    except (ValueError, TypeError):
        return None, text


def _owned(path: str, owner: Owner | None) -> JobOwned:
    job = os.path.basename(os.path.dirname(path))
    return JobOwned(
        f"job {job} is run by {owner or 'another live process'}: wait for it, stop it, or give this job an id of its own (job_id or SP_JOBID)"
    )
