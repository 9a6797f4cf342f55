"""Why an attempt ended, as data: never an exception of a class of the user's crosses processes.

child, or rank 0 for what it runs itself   failure_of(task) -> Failure: kind, type name, message, traceback
rank 0                                     exception_of(failure) -> an exception of our own
"""

import errno
import os
import resource
import sysconfig
import traceback
from collections.abc import Iterator

from smallpond_mpi import common
from smallpond_mpi.common import (
    BadInput,
    DataRootUnusable,
    InjectedFault,
    NonzeroExitCode,
    OutOfMemory,
    SmallpondError,
    TaskFailed,
)
from smallpond_mpi.execution.model import Failure, FailureKind
from smallpond_mpi.execution.task.base import Task

PACKAGE_DIR = os.path.join(os.path.dirname(os.path.abspath(common.__file__)), "")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""No room, or not allowed: what the user can mend, and a retry can't."""
MAX_TEXT = 32_000
"""Characters of what is told of an exception."""


def failure_of(task: Task, host: str, rank: int) -> Failure:
    """Why a task that ended without success did so."""
    if task.exception is None:
        return Failure(FailureKind.EXCEPTION, "Failed", "run() returned false", "", "", host, rank)
    full = disk_error(task.exception)
    if full is not None:
        where = task.output_root or task.ctx.data_root
        room = "" if full.errno == errno.EROFS else "make room there, or "
        text = (
            f"can't write below {where}: {os.strerror(full.errno or 0)}; {room}give another place "
            f"({'the output path' if task.output_root else 'data_root= or SP_DATA_ROOT'})"
        )
        return Failure(FailureKind.EXCEPTION, DataRootUnusable.__name__, text, "", "", host, rank)
    return failure_from(task.exception, host, rank)


def disk_error(error: BaseException | None) -> OSError | None:
    """The error of a disk that is full or read-only behind an exception, unless it was the user's own code that wrote."""
    for behind in _chain(error):
        if isinstance(behind, OSError) and behind.errno in DISK_ERRORS:
            return None if _passed_user_code(behind) else behind
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _passed_user_code(error: BaseException) -> bool:
    installed = (PACKAGE_DIR, *sysconfig.get_paths().values())
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    # compiled modules tell no whole path
    return any(os.path.isabs(file) and not file.startswith(installed) for file in files)


def failure_from(error: BaseException, host: str, rank: int) -> Failure:
    """What an exception says, as data."""
    return Failure(kind_of(error), type(error).__name__, message_of(error), traceback_of_user(error), "", host, rank)


def traceback_of_user(error: BaseException) -> str:
    """The traceback of an exception from the first frame on that is not ours: how the engine got there is of no use to who wrote the function.

    Empty for an error of ours that no code of the user's had a part in (what a function raised in a query DuckDB tells in a message only).
    """
    if isinstance(error, SmallpondError) and not any(map(_passed_user_code, _chain(error))):
        return ""
    shown = traceback.TracebackException.from_exception(error)
    stack: list[traceback.TracebackException | None] = [shown]
    seen: set[int] = set()
    while stack:
        one = stack.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        theirs = next((index for index, frame in enumerate(one.stack) if not frame.filename.startswith(PACKAGE_DIR)), 0)
        del one.stack[:theirs]
        stack += [one.__cause__, one.__context__, *(one.exceptions or ())]
    return _shortened("".join(shown.format()))


def _shortened(text: str) -> str:
    """Without its middle, if it is long: rank 0 keeps what every failed attempt said, and shows the last of it to the user."""
    left_out = len(text) - MAX_TEXT
    if left_out <= 0:
        return text
    return f"{text[: MAX_TEXT // 2]}\n[{left_out:,} characters left out]\n{text[-MAX_TEXT // 2 :]}"


def kind_of(error: BaseException) -> FailureKind:
    """What the retry policy needs to know of an exception."""
    name = type(error).__name__
    match error:
        case InjectedFault():
            return FailureKind.INJECTED
        case OutOfMemory() | MemoryError():
            return FailureKind.OUT_OF_MEMORY
        case NonzeroExitCode() | SystemExit():
            return FailureKind.EXIT_CODE
        case BadInput():
            return FailureKind.BAD_INPUT
        case _ if name in ("OutOfMemoryException", "ArrowMemoryError"):
            return FailureKind.OUT_OF_MEMORY
        case RuntimeError() if "can't start new thread" in str(error) and _is_limited():
            return FailureKind.OUT_OF_MEMORY  # its stack is memory too
        case _:
            return FailureKind.EXCEPTION


def _is_limited() -> bool:
    """Whether the kernel limits the memory of this process."""
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def message_of(error: BaseException) -> str:
    """What an exception says, without its middle if it is long."""
    try:
        return _shortened(str(error))
    except Exception:  # noqa: BLE001 - a user's __str__ that raises must not hide the failure
        return f"<{type(error).__name__} whose str() raises>"


def exception_of(failure: Failure) -> SmallpondError:
    """A failure as an exception of this project's own classes: nobody has to unpickle a user's class on rank 0."""
    own = getattr(common, failure.type_name, None)
    if isinstance(own, type) and issubclass(own, SmallpondError):
        return own(failure.message)
    text = f"{failure.type_name}: {failure.message}\n{failure.traceback}".rstrip()
    match failure.kind:
        case FailureKind.OUT_OF_MEMORY:
            return OutOfMemory(text)
        case FailureKind.EXIT_CODE:
            return NonzeroExitCode(text)
        case _:
            return TaskFailed(text)
