"""Files that are whole or absent: write beside, sync, rename; remove, link and find again what another node has just renamed.

Knows nothing of jobs, tasks or formats.
"""

import errno
import os
import pickle
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import cloudpickle

from smallpond_mpi.common import MB

T = TypeVar("T")

HF3FS_MOUNT_POINT_PREFIX = "/hf3fs"
HF3FS_FSSPEC_PROTOCOL = "hf3fs://"

RENAME_VISIBLE_SECS = 10.0
"""How long a path that a message named may stay invisible to this node (negative entries of an NFS client's cache)."""


def remove_path(path: str) -> None:
    """Remove a file, a link or a whole directory; nothing there is fine."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            _rmtree(path, _ignore_missing)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return


def remove_tree(path: str) -> list[str]:
    """Remove what can be removed of a directory; returns the paths that stay, with why. What is gone already is fine."""
    left: list[str] = []
    last = ""

    def note(where: str, error: BaseException) -> None:
        nonlocal last
        # A directory in which something stays does so too, and comes right after it: it says nothing new.
        if not isinstance(error, FileNotFoundError) and not last.startswith(where + os.sep):
            left.append(with_reason(where, error))
            last = where

    _rmtree(path, note)
    return left


def with_reason(path: str, error: BaseException) -> str:
    """A path and what is wrong with it, for a list of such."""
    return f"{path} ({getattr(error, 'strerror', None) or error})"


def _rmtree(path: str, on_error: Callable[[str, BaseException], None]) -> None:
    """shutil's, whose way to tell of errors has another name since Python 3.12. It goes on after each that `on_error` doesn't raise."""
    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=lambda _, where, error: on_error(where, error))
    else:
        shutil.rmtree(path, onerror=lambda _, where, info: on_error(where, info[1]))


def _ignore_missing(_path: str, error: BaseException) -> None:
    # Two attempts may sweep one directory at the same time: what the other one took is gone, as wanted.
    if not isinstance(error, FileNotFoundError):
        raise error


def find_mount_point(path: str) -> str:
    """The mount point of the file system that `path` (which need not exist yet) lies on."""
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def sync_directory(path: str) -> None:
    """Make names that were created in or renamed into a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems have no fsync for directories; their renames are as durable as they get.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: str, buffering: int = 2 * MB) -> Iterator[BinaryIO]:
    """A file to write that appears under `path` whole, when the block ends without an error, or not at all."""
    beside = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with open(beside, "wb", buffering=buffering) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_directory(os.path.dirname(os.path.abspath(path)))
    except BaseException:
        remove_path(beside)
        raise


def dump(obj: Any, path: str, buffering: int = 2 * MB, atomic_write: bool = False) -> None:
    """Pickle an object into a file; with `atomic_write` readers see the file whole or not at all."""
    if atomic_write:
        with whole_file(path, buffering) as file:
            cloudpickle.dump(obj, file, protocol=5)
        return
    with open(path, "wb", buffering=buffering) as file:
        cloudpickle.dump(obj, file, protocol=5)


def load(path: str, buffering: int = 2 * MB) -> Any:
    """Read back what `dump` wrote."""

    def read() -> Any:
        with open(path, "rb", buffering=buffering) as file:
            return pickle.load(file)

    return retry_missing(read, path)


def retry_missing(
    read: Callable[[], T],
    path: str,
    promised: bool = False,
    timeout_secs: float = RENAME_VISIBLE_SECS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call `read` again while `path` does not exist, for a bounded time, if it may just have been renamed into place.

    A client of a network file system may remember that a name was absent. Opening and listing its directory drops that memory. A path
    that a user wrote is missing, not late, when two such listings don't show it; one that its writer `promised` gets all the time.
    """
    deadline = clock() + timeout_secs
    pause, unseen = 0.01, 0
    while True:
        try:
            return read()
        except FileNotFoundError:
            unseen += not _listed(path)
            if (unseen >= 2 and not promised) or clock() >= deadline:
                raise
        sleep(pause)
        pause = min(pause * 2, 0.5)


def _listed(path: str) -> bool:
    """Whether a fresh listing of the directory shows the name."""
    directory, name = os.path.split(os.path.abspath(path))
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        return name in os.listdir(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: str, target: str) -> bool:
    """Hard-link `source` as `target`, or copy it where links don't reach; returns whether it was a link. `target` must not exist."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        copy_file(source, target)
        return False
    return True


def copy_file(source: str, target: str) -> None:
    """Copy a file; the copy appears whole or not at all."""

    def copy() -> None:
        with open(source, "rb") as reader, whole_file(target) as writer:
            shutil.copyfileobj(reader, writer, 8 * MB)

    retry_missing(copy, source)
