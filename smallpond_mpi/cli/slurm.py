"""Slurm's commands, as far as ours use them: thin calls, and what they say as values."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smallpond_mpi.common import SmallpondError

ASK_SECS = 60.0
"""A busy slurmctld may take its time."""
OVER = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"}
    | {"TIMEOUT", "SPECIAL_EXIT"}
)
"""States in which a job does not run again by itself."""


class SlurmError(SmallpondError):
    """A command of Slurm's is missing, or refused what it was asked."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that Slurm knows: `array` and `index` are those of an element of an array."""

    id: str
    state: str
    reason: str
    name: str
    time_left: str
    array: str
    index: int | None


def call(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """What a command of Slurm's printed.

    Raises:
        SlurmError: it is not there, it does not answer, or it failed, with what it said.
    """
    if shutil.which(command[0]) is None:
        raise SlurmError(f"there is no {command[0]} on the PATH: is this a login node of a Slurm cluster?")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_SECS, stdin=subprocess.DEVNULL, env=env
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {ASK_SECS:g} seconds") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise SlurmError(said[-1] if said else f"{command[0]} ended with exit code {done.returncode}")
    return done.stdout


def my_jobs() -> list[QueuedJob]:
    """This user's jobs that wait, run, or ended a moment ago; each element of an array by itself."""
    shown = call(["squeue", "-h", "-r", "-t", "all", "-u", str(os.geteuid()), "-o", "%i|%T|%r|%L|%F|%K|%j"])
    return [parse_queued(line) for line in shown.splitlines() if line]


def parse_queued(line: str) -> QueuedJob:
    """One line of squeue with the format above."""
    job, state, reason, time_left, array, index, name = line.split("|", 6)
    return QueuedJob(job, state, reason, name, time_left, array, int(index) if index.isdigit() else None)


def shown_job(job: str) -> dict[str, str]:
    """The fields of a job as `scontrol show job` has them; none once Slurm has forgotten it. Of several records, an array's, the first."""
    try:
        shown = call(["scontrol", "show", "job", "-o", job])
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    first = shown.splitlines()[0] if shown else ""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s+[A-Z][A-Za-z:/]*=|\s*$)", first))
