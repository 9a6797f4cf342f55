"""The script's stdin under Open MPI 5, whose mpirun forwards lines but never the end of the input: whoever reads to the end would wait for ever.

So mpirun is told to leave its stdin alone, and rank 0, which it starts on its own machine, reads it at the source.
A terminal stays with mpirun: only its foreground processes may read it.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Mapping

SOURCE = "SMALLPOND_MPI_STDIN"
"""Environment variable: host and path of the input, and what it must be, as device:inode (a process id is used again some day)."""


def hand_over(env: dict[str, str]) -> bool:
    """Note in `env` where rank 0 finds this process's stdin. False if it is a terminal, or nothing that can be opened."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # closed
        os.open(os.devnull, os.O_RDONLY)
        return True
    if os.isatty(0) or stat.S_ISSOCK(mode):
        return False
    env[SOURCE] = f"{socket.gethostname()}:/proc/{os.getpid()}/fd/0:{_identity(0)}"
    return True


def take_over(env: Mapping[str, str]) -> None:
    """Read from where `hand_over` noted. On another machine than mpirun's stdin stays empty."""
    if SOURCE not in env:
        return
    host, path, identity = env[SOURCE].split(":", 2)
    if host != socket.gethostname():
        return
    with contextlib.suppress(OSError):  # the launcher has ended already: so will this
        source = os.open(path, os.O_RDONLY)
        if _identity(source) == identity:
            os.dup2(source, 0)
        os.close(source)


def _identity(fd: int) -> str:
    found = os.fstat(fd)
    return f"{found.st_dev}:{found.st_ino}"
