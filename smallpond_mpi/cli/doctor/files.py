"""What a rank finds out about the data root: whether the others see what it writes, and what the file system can do. IO, no judgement."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

SMALL_FILES = 20
BIG_BYTES = 8 << 20
SEEN_SECS = 10.0
"""How long a file that another node wrote may take to be seen."""
LOOK_SECS = 0.05


def write(path: str, content: str) -> dict[str, Any]:
    """Write a file for the others, whole at once."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.part", "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.part", path)
    except OSError as error:
        return {"error": str(error)}
    return {}


def see(path: str, content: str, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """How long it takes until a file that another rank has written is seen here, whole."""
    began = clock()
    while clock() - began < SEEN_SECS:
        try:
            with open(path) as file:
                if file.read() == content:
                    return {"seen_secs": clock() - began}
        except FileNotFoundError:
            os.listdir(os.path.dirname(path)) if os.path.isdir(os.path.dirname(path)) else None
        except OSError as error:
            return {"error": str(error)}
        time.sleep(LOOK_SECS)
    return {"error": f"not seen within {SEEN_SECS:g} seconds"}


def see_all(paths: Mapping[int, str], content: str, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """Which of these files, one of each rank, are not seen here whole within SEEN_SECS."""
    missing = sorted(paths)
    deadline = clock() + SEEN_SECS
    while missing:
        missing = [rank for rank in missing if not _is(paths[rank], content)]
        if clock() >= deadline:
            break
        time.sleep(LOOK_SECS if missing else 0.0)
    return {"unseen": missing}


def _is(path: str, content: str) -> bool:
    try:
        with open(path) as file:
            return file.read() == content
    except OSError:
        return False


def try_files(directory: str, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """What the file system of the data root can do, and how fast: names, space, small files, one of BIG_BYTES."""
    facts: dict[str, Any] = {}
    try:
        os.makedirs(directory, exist_ok=True)
        status = os.statvfs(directory)
        facts["free_bytes"] = status.f_bavail * status.f_frsize
        facts["free_inodes"] = status.f_favail if status.f_files else None
        first, second = os.path.join(directory, "a"), os.path.join(directory, "b")
        began = clock()
        for number in range(SMALL_FILES):
            with open(os.path.join(directory, f"small-{number}"), "wb") as file:
                file.write(b"x" * 100)
        facts["small_files_per_sec"] = SMALL_FILES / max(1e-9, clock() - began)
        began = clock()
        with open(first, "wb") as file:
            file.write(os.urandom(BIG_BYTES))
            file.flush()
            os.fsync(file.fileno())
        facts["write_bytes_per_sec"] = BIG_BYTES / max(1e-9, clock() - began)
        facts["rename"] = _can_rename(first, second, second, BIG_BYTES)
        facts["rename_directory"] = _can_rename_directory(directory)
        facts["exclusive"] = _is_exclusive(os.path.join(directory, "claim"))
        facts["link"] = _can_link(first if os.path.exists(first) else second, os.path.join(directory, "c"))
    except OSError as error:
        facts["error"] = str(error)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return facts


def _can_rename_directory(directory: str) -> bool:
    """Whether a directory appears under its new name with its file, as an output does."""
    stage, place = os.path.join(directory, "stage"), os.path.join(directory, "place")
    os.mkdir(stage)
    with open(os.path.join(stage, "file"), "wb") as file:
        file.write(b"x")
    return _can_rename(stage, place, os.path.join(place, "file"), 1)


def _can_rename(source: str, target: str, file: str, size: int) -> bool:
    """Whether `source` moves: `file`, which comes with it, is there whole, and the old name is not."""
    try:
        os.rename(source, target)
        return os.path.getsize(file) == size and not os.path.exists(source)
    except OSError:
        return False


def _is_exclusive(path: str) -> bool:
    """Whether a file that is there can't be created again: by that a job's journal is claimed."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return True
    return False


def _can_link(source: str, target: str) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return os.stat(source).st_ino == os.stat(target).st_ino
