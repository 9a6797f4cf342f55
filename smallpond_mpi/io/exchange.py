"""Directories that change places in one step, so that a reader sees one of them, whole, at any time."""

import ctypes
import errno
import os
import re

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def exchange(one: str, other: str) -> bool:
    """Swap the names of two directories. False where the kernel or the file system has no such operation (NFS, Lustre); nothing is done then."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in _NOT_HERE:
        return False
    raise OSError(error, os.strerror(error), one, None, other)


def is_mount_point(directory: str) -> bool:
    """Whether something is mounted there: nothing can be renamed into it from beside. Sees bind mounts, which os.path.ismount does not."""
    if os.path.ismount(directory):
        return True
    place = os.path.realpath(directory)
    with open("/proc/self/mountinfo") as file:
        return any(_unescaped(line.split(" ")[4]) == place for line in file)


def _unescaped(field: str) -> str:
    """A field of /proc: blanks and the like are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def sync(path: str) -> None:
    """Make sure that a file's content, or a directory's entries, survive the machine."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
