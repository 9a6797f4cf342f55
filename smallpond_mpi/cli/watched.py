"""Watches over a launcher of ranks on several nodes: mpirun has been seen to end with 0 when it lost a node, and with it the job.

smallpond-mpi run ── starts ─▶ mpirun ── starts ─▶ rank 0, on this node
        '── a directory ◀── "begun", then "succeeded" ──┘

So 0 counts as success only if rank 0 says so too. (On one node there is nothing to lose: there the command becomes the launcher.)
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType

from smallpond_mpi.common import STOPPED_EXIT_CODE
from smallpond_mpi.platform.process import die_with_parent

MARKS = "SMALLPOND_MPI_MARKS"
"""Environment variable: the directory."""
BEGUN, SUCCEEDED = "begun", "succeeded"
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Whatever becomes of them here: the command has SIGUSR1 ignored until somebody can answer it."""
FORWARDED_UNLESS_IGNORED = (signal.SIGINT, signal.SIGHUP)  # nohup, and the background of a shell


def mark(name: str, env: Mapping[str, str]) -> None:
    """Rank 0 has come so far. Nothing happens where nobody watches, or watches from another machine."""
    if MARKS in env:
        with suppress(OSError), open(os.path.join(env[MARKS], name), "x"):
            pass


def watch(line: Sequence[str], env: Mapping[str, str], before_exec: Callable[[], None]) -> int:
    """Run a launcher to its end; the exit code, STOPPED_EXIT_CODE if rank 0 was lost on the way. Signals go on to the launcher."""
    with tempfile.TemporaryDirectory(prefix="sp-marks-") as marks:
        launcher: subprocess.Popen[bytes] | None = None
        early: list[int] = []
        is_terminated = False

        def begin() -> None:
            die_with_parent(signal.SIGTERM)
            before_exec()

        def forward(signum: int, frame: FrameType | None) -> None:
            nonlocal is_terminated
            is_terminated |= signum == signal.SIGTERM
            if launcher is None:
                early.append(signum)
            else:
                launcher.send_signal(signum)

        kept = [one for one in FORWARDED_UNLESS_IGNORED if signal.getsignal(one) is not signal.SIG_IGN]
        for signum in (*FORWARDED, *kept):
            signal.signal(signum, forward)
        launcher = subprocess.Popen(line, env={**env, MARKS: marks}, preexec_fn=begin)
        for one in early:
            launcher.send_signal(one)
        if sys.stdin.isatty():  # Ctrl-C reaches the launcher by itself, which takes a second one for impatience
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = launcher.wait()
        was_lost = code == 0 and _has(marks, BEGUN) and not _has(marks, SUCCEEDED)
    if was_lost:
        # Slurm's SIGTERM ends the launcher's helpers on other nodes too, which it may notice first
        why = "the job was terminated (SIGTERM)" if is_terminated else "a node was lost"
        sys.stderr.write(
            f"smallpond-mpi: {line[0]} ended with 0, but rank 0 had not come to its end: {why}. "
            "The same script with the same job id (SP_JOBID) goes on where it was\n"
        )
        return 128 + signal.SIGTERM if is_terminated else STOPPED_EXIT_CODE
    return code if code >= 0 else 128 - code


def _has(marks: str, name: str) -> bool:
    return os.path.exists(os.path.join(marks, name))
