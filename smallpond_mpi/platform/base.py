"""What a place where jobs run offers: defaults for a job, and a way to start one. The base is this machine alone."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.config import DEFAULT_DATA_ROOT


class Platform:
    """This machine: a job is processes here."""

    def __init__(self) -> None:
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    @staticmethod
    def is_available() -> bool:
        """Whether jobs can be started this way here."""
        return True

    def start_job(
        self,
        num_nodes: int,
        entrypoint: str,
        args: Sequence[str],
        envs: Mapping[str, str] = {},
        extra_opts: Mapping[str, str] = {},
    ) -> list[str]:
        """Start a Python script on `num_nodes` nodes; returns the ids of what was started, for `stop_job`. Here: as many processes.

        Args:
            entrypoint: the script. args: its arguments. envs: set besides this process's environment.
            extra_opts: `python`: another interpreter; `cwd`: another working directory.

        Raises:
            InvalidArgument: num_nodes is less than 1.
        """
        if num_nodes < 1:
            raise InvalidArgument(f"num_nodes must be at least 1, not {num_nodes}")
        return [
            self._start(command, envs, extra_opts.get("cwd"))
            for command in self._commands(num_nodes, extra_opts.get("python", sys.executable), entrypoint, args)
        ]

    def _commands(self, num_nodes: int, python: str, entrypoint: str, args: Sequence[str]) -> list[list[str]]:
        """What to start for `num_nodes` nodes."""
        return [[python, entrypoint, *args]] * num_nodes

    def _start(self, command: Sequence[str], envs: Mapping[str, str], cwd: str | None) -> str:
        process = subprocess.Popen(
            command, env={**os.environ, **envs}, cwd=cwd, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._started[str(process.pid)] = process
        return str(process.pid)

    def stop_job(self, pid: str) -> None:
        """End a process that `start_job` started, and what it started; one that has ended is no error."""
        process = self._started.pop(pid, None)
        if process is None:
            raise InvalidArgument(f"{pid} was not started here: {', '.join(self._started) or 'nothing was'}")
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()

    @staticmethod
    def default_job_id() -> str:
        """SP_JOBID, or a new id."""
        return os.environ.get("SP_JOBID") or str(uuid.uuid4())

    @staticmethod
    def default_job_time() -> float:
        """SP_JOB_TIME, or now: seconds since the epoch."""
        return float(os.environ.get("SP_JOB_TIME") or time.time())

    @staticmethod
    def default_data_root() -> str:
        """SP_DATA_ROOT, or a directory below the user's own."""
        return os.environ.get("SP_DATA_ROOT") or os.path.expanduser(DEFAULT_DATA_ROOT)

    @staticmethod
    def default_memory_allocator() -> str:
        """SP_MEMORY_ALLOCATOR, or the allocator of the system."""
        return os.environ.get("SP_MEMORY_ALLOCATOR") or "system"
