"""Named places where a test can have a process killed: the steps of taking a job up, committing, publishing and ending.

A no-op unless SP_FAULT_POINT names the place ("publish.staged", or "publish.file:3" for the third time it is reached in this process), and
the file named by SP_FAULT_ONCE, if given, is not there yet: it is made first, so that the next attempt gets past.
"""

import os
import signal

POINTS = (
    # rank 0, as a job begins
    "lease.take",
    "lease.taken",
    "journal.claim",
    "journal.claimed",
    # a child: its output becomes whole
    "commit.start",
    "commit.renamed",
    # rank 0: an output becomes the task's
    "journal.append",
    "journal.appended",
    # a child: results are collected, then published, as a directory or file by file
    "publish.collected",
    "publish.staged",
    "publish.replace",
    "publish.aside",
    "publish.file",
    "publish.manifest",
    "publish.done",
    # rank 0: staging goes
    "publish.accepted",
    "publish.cleaned",
    # rank 0, as a job ends
    "job.ended",
    "job.cleaned",
)

_wanted, _, _count = os.environ.get("SP_FAULT_POINT", "").partition(":")
_remaining = int(_count or 1)


def fault_point(name: str) -> None:
    """Die here, by SIGKILL, if a test asked for it. SP_FAULT_PID names another process to be killed instead."""
    global _remaining
    if name != _wanted:
        return
    _remaining -= 1
    if _remaining:
        return
    marker = os.environ.get("SP_FAULT_ONCE")
    if marker:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    os.kill(int(os.environ.get("SP_FAULT_PID") or os.getpid()), signal.SIGKILL)
