"""One process, one session: how init() finds its place, and how the process ends.

Kept apart from the session itself, which imports the planner, DuckDB and Arrow: a rank other than 0 serves and leaves without ever loading them.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from smallpond_mpi.common import InvalidArgument, SmallpondError
from smallpond_mpi.config import Config
from smallpond_mpi.execution.model import SCHEDULER_RANK
from smallpond_mpi.execution.worker import Place, arrive
from smallpond_mpi.platform.process import die_with_parent

PACKAGE_DIR = os.path.dirname(os.path.abspath(__file__)) + os.sep
LAUNCHER_DIED = signal.SIGRTMIN + 5
LIBRARY_DIR = os.path.dirname(os.__file__) + os.sep

_place: Place | None = None
_job: Any = None  # the last Job that was opened here; workers never load its class
_pid: int | None = None  # whose place and job these are: a fork copies them, and has no say
_stop_reason: str | None = None  # from a SIGUSR1
_terminated_at: float | None = None  # when a SIGTERM came
REPEAT_SECS = 30.0
"""For so long after a SIGTERM another is a repetition: Slurm sends several, srun passes them on, and none of them must break off the end in order."""


def current() -> Any:
    """The job that this process schedules, or None."""
    return None if _is_copy() else _job


def _is_copy() -> bool:
    """Whether this process was forked from the one that takes part in the job (os.fork, multiprocessing)."""
    return _pid is not None and _pid != os.getpid()


def opened(job: Any) -> None:
    """From now on signals, errors that nobody catches, and the end of the process are about this job."""
    global _job
    _job = job
    if _stop_reason is not None:
        job.ask_to_stop(_stop_reason)


def take_place(env: Mapping[str, str]) -> Place:
    """Rank 0's place in the world; other ranks serve rank 0 here, and never return.

    Raises:
        InvalidArgument: a job is open in this process, the ranks of this launch have left with an earlier one, or this is not the main thread.
    """
    global _place
    if _is_copy() and _place is not None and not _place.has_left:
        raise InvalidArgument(
            "init() in a forked copy of a process that has a session: start another program (subprocess), or call shutdown() before the fork"
        )
    if _job is not None and not _job.is_closed:
        raise InvalidArgument(
            "init() was called before: this process has a session already; use it, or call shutdown() on it first"
        )
    if _place is not None and not _place.has_left:
        return _place
    if _place is not None and _place.transport is not None:
        raise InvalidArgument(
            "init() after shutdown(): the other ranks have left; under a launcher a process has one session"
        )
    install_hooks()
    place = arrive(env)
    if place.rank != SCHEDULER_RANK:
        place.serve()
    if place.transport is not None:
        end_with_launcher()
    _place = place
    return place


def leave() -> None:
    """This process schedules nothing any more: the ranks go, MPI is finalized. Does nothing the second time, nor in a forked copy."""
    if not _is_copy() and _place is not None and not _place.has_left:
        has_failed = _job is None or _job.failure is not None
        _place.dismiss()
        _place.leave(exit_code_if_stuck=1 if has_failed else 0)


def open_session(load_class: Callable[[], Any], load_config: Callable[[], Config], env: Mapping[str, str]) -> Any:
    """Make this process's session on rank 0; serve rank 0, and never return, on the others.

    Only rank 0 loads the session's class and looks at the arguments: what is wrong with them is said once.

    Raises:
        InvalidArgument: there is an open session already, or the ranks of this launch have left with an earlier one.
    """
    place = take_place(env)
    try:
        config = load_config()
        session = load_class()(config=config, place=place)
    except BaseException:
        leave()
        raise
    opened(session._job)
    return session


def install_hooks() -> None:
    """Errors of ours end the script with one clear message; SIGTERM ends it in order, SIGUSR1 when what runs is done; the job is closed at exit.

    Raises:
        InvalidArgument: this is not the main thread. Nothing has been changed then.
    """
    global _pid
    is_there = getattr(sys.excepthook, "of_smallpond_mpi", False)
    if not is_there and threading.current_thread() is not threading.main_thread():
        raise InvalidArgument(
            "init() in a thread: call it in the main thread, which alone may handle signals; other threads can use its session"
        )
    _pid = os.getpid()
    if is_there:
        return
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        job = current()
        if job is not None and job.failure is None:
            job.failure = f"{kind.__name__}: {error}"
        if job is not None:
            job.show_summary()  # before the error: the last thing that is said is what went wrong
        if issubclass(kind, SmallpondError):
            sys.stderr.write(f"{_place_in_script(traceback)}smallpond_mpi: {kind.__name__}: {error}\n")
            sys.stderr.flush()
        elif issubclass(kind, KeyboardInterrupt):
            _say_ended(f"{_place_in_script(traceback)}smallpond_mpi: interrupted")
        else:
            previous(kind, error, traceback)

    show.of_smallpond_mpi = True  # type: ignore[attr-defined]
    sys.excepthook = show
    atexit.register(_shut_down_at_exit)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)
    if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, signal.SIG_IGN):
        signal.signal(signal.SIGUSR1, _on_sigusr1)


def end_with_launcher() -> None:
    """A launcher that dies is a SIGTERM: who killed it meant the job, and may start that again at once."""
    launcher = os.getppid()

    def on_death(signum: int, frame: FrameType | None) -> None:
        if os.getppid() != launcher:  # the signal comes for the end of a mere thread of the launcher too
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(LAUNCHER_DIED, on_death)
    die_with_parent(LAUNCHER_DIED)
    if os.getppid() != launcher:
        os.kill(os.getpid(), signal.SIGTERM)


def _on_sigusr1(signum: int, frame: FrameType | None) -> None:
    """Slurm's warning (`--signal=USR1@120`): the end is near, but not here."""
    global _stop_reason
    if _stop_reason is None and not _is_copy():
        _stop_reason = "asked to stop by SIGUSR1"
        _say("smallpond_mpi: SIGUSR1: what runs is finished, nothing new is started")
        job = current()
        if job is not None:
            job.ask_to_stop(_stop_reason)


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    global _terminated_at
    if _is_copy():
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return
    now = time.monotonic()
    if _terminated_at is not None and now < _terminated_at + REPEAT_SECS:
        return
    _terminated_at = now
    job = current()
    if job is not None and not job.is_closed:
        job.failure = "terminated (SIGTERM)"
    _say_ended(f"{_place_of(frame)}smallpond_mpi: terminated (SIGTERM)")
    raise SystemExit(128 + signum)


def _say_ended(what: str) -> None:
    """The job was ended from outside: say how it goes on."""
    job = current()
    _say(what if job is None or (job.is_closed and job.failure is None) else f"{what}. {job.how_to_go_on()}")


def _say(line: str) -> None:
    """Written past Python's buffers: a signal may come while they are in use."""
    with contextlib.suppress(OSError):  # stderr went to a launcher that is dead
        os.write(2, f"{line}\n".encode())


def _shut_down_at_exit() -> None:
    if _is_copy():
        return
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this is the end already
    try:
        job = current()
        if job is not None:
            job.close()
    finally:
        leave()


def _place_in_script(traceback: Any) -> str:
    """The line of the script that the error came from: the last frame outside this package."""
    place = ""
    while traceback is not None:
        if _is_of_script(traceback.tb_frame):
            place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}: "
        traceback = traceback.tb_next
    return place


def _place_of(frame: FrameType | None) -> str:
    """The line of the script that is being executed."""
    while frame is not None and not _is_of_script(frame):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}: " if frame is not None else ""


def _is_of_script(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    return not path.startswith("<frozen") and not os.path.abspath(path).startswith((PACKAGE_DIR, LIBRARY_DIR))
