"""How a task gets into a message, is performed by a child, and gets back.

    rank 0   Packer.pack(task)       -> header (this attempt) + payload (this task) + blobs (what its siblings share, sent once a rank)
    child    Performer.perform(...)  -> plain state, Failure | None
    rank 0   merge_state(task, state)

Siblings are tasks of one class made from one node: what they hold in common (function, query, schema; told by identity) is pickled once,
by value where it comes from the user's script. What is left of a task is a handful of plain values, so that C's pickle does it.
"""

import errno
import hashlib
import logging
import os
import pickle
import resource
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle

from smallpond_mpi import common
from smallpond_mpi.common import (
    MB,
    BadInput,
    CannotPickle,
    DataRootUnusable,
    InjectedFault,
    NonzeroExitCode,
    OutOfMemory,
    SmallpondError,
    TaskFailed,
)
from smallpond_mpi.config import LEVELS
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.model import Capacity, Failure, FailureKind, Grant, TaskId, TaskRuntimeId, WorkStatus
from smallpond_mpi.execution.protocol import RunTask, Welcome
from smallpond_mpi.execution.slots import usable_memory
from smallpond_mpi.execution.task.base import DECLARED, Task, is_plain
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.workqueue import WorkQueue
from smallpond_mpi.io.memory import MEMORY_POOL_VARIABLE, limit_duckdb, use_memory_pool

PACKAGE_DIR = os.path.join(os.path.dirname(os.path.abspath(common.__file__)), "")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
MAX_INLINE_BYTES = 64 * MB
"""What is larger goes by file, with its path in the message."""

MAX_TEXT = 32_000
"""Characters of what is told of an exception."""

_MISSING = object()
_SIMPLE = frozenset({int, str, float, bool, bytes, type(None), TaskId})
# Attributes that a payload never carries: they belong to rank 0, to the attempt (in the header), or are made anew in the child.
_NOT_PAYLOAD = frozenset(
    {
        *(
            "ctx",
            "id",
            "_deps",
            "_groups",
            "_partition_infos",
            "status",
            "exception",
            "start_time",
            "finish_time",
            "exec_cq",
        ),
        *(
            "retry_count",
            "fail_count",
            "sched_epoch",
            "exec_id",
            "runtime_state",
            "input_datasets",
            "dataset",
            "_perf_metrics",
        ),
        *("_metrics", "_running", "_granted_gpus", "_granted_numa_node", "_num_tasks_created", "_ray_ref"),
    }
)
# Attributes that never come back.
_NOT_STATE = frozenset(
    {"ctx", "id", "_deps", "_groups", "_input_keys", "input_datasets", "exec_cq", "_metrics", "_running", "exception"}
)
# Attributes that say what an attempt's output is.
_OUTPUT = frozenset({"dataset", "_output_files", "_output_dir"})


class Packed(NamedTuple):
    """A task in bytes. `blobs` are (digest, content) of what its siblings share."""

    header: bytes
    payload: bytes
    blobs: tuple[tuple[bytes, bytes], ...]


# What travels is plain tuples: names of classes in every task would be half of the bytes.
#
# header (what differs by attempt): retry_count, fail_count, rank_resources, num_tasks_created, datasets (pickled list, or the path of a
#     file that holds it, or None), runtime_state (pickled, or the path of a file that holds it, or None)
# payload (what a task is, less what its siblings share): own attributes, names that the siblings have and this task has not,
#     partitions as (index, npartitions, dimension), keys of its inputs


@dataclass(frozen=True, slots=True)
class _Siblings:
    shared: dict[str, Any]
    digest: bytes
    content: bytes


class Packer:
    """Rank 0's side: pickles tasks for a job."""

    def __init__(self, ctx: RuntimeContext) -> None:
        self._ctx = ctx
        self._siblings: dict[tuple[type, int, int], _Siblings] = {}

    def pack(
        self,
        task: Task,
        attempt: TaskRuntimeId,
        fail_count: int,
        capacity: Capacity,
        datasets: Sequence[Any],
        runtime_state: bytes | None,
    ) -> Packed:
        """The task as bytes.

        Raises:
            CannotPickle: naming the task, its place in the script, and what in it can't be pickled.
        """
        try:
            return self._pack(task, attempt, fail_count, capacity, datasets, runtime_state)
        except (CannotPickle, DataRootUnusable):
            raise
        except Exception as error:  # pickling runs the user's __reduce__ and __getstate__: anything can come out
            raise CannotPickle(why_not_pickled(task, error)) from error

    def _pack(
        self,
        task: Task,
        attempt: TaskRuntimeId,
        fail_count: int,
        capacity: Capacity,
        datasets: Sequence[Any],
        runtime_state: bytes | None,
    ) -> Packed:
        siblings = self._siblings_of(task)
        shared = siblings.shared
        attrs = task.__dict__
        own = {
            name: value
            for name, value in attrs.items()
            if name not in _NOT_PAYLOAD and shared.get(name, _MISSING) is not value
        }
        absent = tuple(name for name in shared.keys() - attrs.keys()) if len(shared) + len(own) else ()
        partitions = tuple((info.index, info.npartitions, info.dimension) for info in task.partition_infos)
        payload = (own, absent, partitions, tuple(task._deps) if task._deps.tasks else ())
        simple = all(type(value) in _SIMPLE for value in own.values())
        header = (
            attempt.retry,
            fail_count,
            (len(capacity.cpus), usable_memory(capacity), len(capacity.gpus)),
            self._ctx.num_tasks_created,
            self._spill(cloudpickle.dumps(list(datasets), protocol=5), f"{attempt}.inputs") if datasets else None,
            None if runtime_state is None else self._spill(runtime_state, f"{attempt}.state"),
        )
        data = pickle.dumps(payload, protocol=5) if simple else cloudpickle.dumps(payload, protocol=5)
        return Packed(
            pickle.dumps(header, protocol=5),
            pickle.dumps(self._spill(data, f"{attempt}.payload"), protocol=5) if len(data) > MAX_INLINE_BYTES else data,
            ((siblings.digest, siblings.content),),
        )

    def forget(self) -> None:
        """Keep nothing of the tasks packed so far."""
        self._siblings.clear()

    def _siblings_of(self, task: Task) -> _Siblings:
        group = (type(task), task.node_id, task.times_forgotten)
        siblings = self._siblings.get(group)
        if siblings is None:
            # Outputs and in-memory inputs are never shared: they'd be kept for the whole job.
            shared = {
                name: value
                for name, value in task.__dict__.items()
                if name not in _NOT_PAYLOAD and not hasattr(value, "to_arrow_table")
            }
            content = cloudpickle.dumps((type(task), shared), protocol=5)
            digest = hashlib.blake2b(content, digest_size=16).digest()
            kept = self._spill(content, f"{digest.hex()}.shared")
            content = kept if isinstance(kept, bytes) else pickle.dumps(kept, protocol=5)
            siblings = _Siblings(shared, digest, content)
            self._siblings[group] = siblings
        return siblings

    def _spill(self, data: bytes, name: str) -> bytes | str:
        """The data itself, or the path of a file that holds it."""
        if len(data) <= MAX_INLINE_BYTES:
            return data
        path = os.path.join(self._ctx.paths.messages, name)
        try:
            os.makedirs(self._ctx.paths.messages, exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
        except OSError as error:
            raise DataRootUnusable(error.errno, f"{path} can't be written: {error.strerror}") from None
        return path


def why_not_pickled(task: Task, error: Exception) -> str:
    """What to tell the user of a task that can't be pickled."""
    where = f" ({task.location})" if task.location else ""
    text = str(error)
    hint = "what a function refers to travels with it to the workers: make it inside the function, or pass plain values"
    if "lock" in text or "Logger" in text:
        hint = "a logger, lock or open connection is caught in a closure or in an attribute: make it inside the function, on the worker"
    return f"Can't pickle task {task.key}{where}: {type(error).__name__}: {text}; {hint}"


SHARE_OF_READERS = 0.9
"""Of a grant, what a DuckDB that a dataset opens to read its files may take (those of queries go by their kind's memory_overcommit_ratio)."""


class _Checkpoints(WorkQueue):
    """Where a running task pushes itself; what goes out is its runtime_state."""

    def __init__(self, push: Callable[[bytes], None]) -> None:
        super().__init__()
        self._push = push

    def flush(self) -> None:
        for item in self._buffered:
            self._push(cloudpickle.dumps(getattr(item, "runtime_state", None), protocol=5))
        self._buffered.clear()


def log_to_stderr(level: str) -> None:
    """Let what a child logs, its functions' own messages too, stand in the log of its rank, beside what they print.

    From INFO on, or from `level` if that is higher; TRACE shows each query. (An error shows the user the end of that log: it must not be noise.)
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if level == "TRACE" else max(LEVELS[level], logging.INFO),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


class Performer:
    """The child's side: makes the task again, runs its attempt, tells what became of it. One a child."""

    def __init__(self, welcome: Welcome, rank: int, host: str) -> None:
        self._ctx: RuntimeContext = pickle.loads(welcome.context)
        self._ctx.sched_epoch = welcome.epoch
        log_to_stderr(self._ctx.file_log_level)
        self._rank = rank
        self._host = host
        self._siblings: dict[bytes, tuple[type[Task], dict[str, Any]]] = {}
        self.reusable = True
        use_memory_pool(os.environ.get(MEMORY_POOL_VARIABLE))

    def perform(
        self,
        run: RunTask,
        blobs: Mapping[bytes, bytes],
        checkpoint: Callable[[bytes], None],
        gpu_tokens: tuple[str, ...] = (),
    ) -> tuple[bytes, Failure | None]:
        """Run an attempt: (the task's plain state pickled, why it failed or None). Never raises for what user code does."""
        try:
            task = self._make(run, blobs)
        except Exception as error:  # noqa: BLE001 - user code runs while unpickling: whatever it raises is the attempt's end
            failure = _describe(error, self._host, self._rank)
            return pickle.dumps({}), Failure(
                FailureKind.BAD_INPUT,
                failure.type_name,
                f"can't be unpickled: {failure.message}",
                failure.traceback,
                "",
                self._host,
                self._rank,
            )
        before = dict(task.__dict__)
        if self._ctx.enforce_memory_limit and task.memory_limit:
            self.reusable = False
            task.set_memory_limit(round(task.memory_limit * 1.2), round(task.memory_limit * 1.5))
        try:
            task.exec(_Checkpoints(checkpoint))
        except BaseException as error:  # noqa: BLE001 - a KeyboardInterrupt of the user's code, which exec() leaves to whoever runs a task by hand
            task.status, task.exception = WorkStatus.CRASHED, error
        verdict = None if task.status is WorkStatus.SUCCEED else failure_of(task, self._host, self._rank)
        if verdict is not None:
            _remove_output(task)
        return self._outcome(task, before, verdict)

    def _make(self, run: RunTask, blobs: Mapping[bytes, bytes]) -> Task:
        retry_count, fail_count, rank_resources, num_tasks_created, datasets, runtime_state = pickle.loads(run.header)
        payload = _unspilled(pickle.loads(run.payload))
        own, absent, partitions, input_keys = payload
        digest = run.blobs[0]
        if digest not in self._siblings:
            self._siblings[digest] = _unspilled(pickle.loads(blobs[digest]))
        cls, shared = self._siblings[digest]
        task: Task = cls.__new__(cls)
        attrs = task.__dict__
        attrs.update(shared)
        for name in absent:
            attrs.pop(name, None)
        attrs.update(own)
        self._ctx.rank_resources = rank_resources
        task.ctx = self._ctx
        task.id = run.attempt.id
        task._partition_infos = tuple(PartitionInfo(*one) for one in partitions)
        task._input_keys = input_keys
        task.sched_epoch = run.attempt.epoch
        task.retry_count = retry_count
        task.fail_count = fail_count
        task.exec_id = f"{self._host}.{self._rank}"
        task._num_tasks_created = num_tasks_created
        self._grant(task, run.grant)
        if datasets is not None:
            task.input_datasets = _load(datasets)
        if runtime_state is not None:
            task.runtime_state = _load(runtime_state)
        return task

    @staticmethod
    def _grant(task: Task, grant: Grant) -> None:
        asked = task._memory_limit or task.share_of_memory()
        task._memory_limit = grant.memory_bytes
        limit_duckdb(int(grant.memory_bytes * SHARE_OF_READERS))
        if grant.memory_bytes > asked:
            task._memory_boost = raised_by(asked, grant.memory_bytes)
        task._granted_gpus = tuple((visible, quota) for visible, (_, quota) in enumerate(grant.gpus))
        task._granted_numa_node = grant.numa_node

    def _outcome(self, task: Task, before: dict[str, Any], failure: Failure | None) -> tuple[bytes, Failure | None]:
        """What changed since the attempt began, without what rank 0 has no use for; and why it failed, if only because its output can't travel."""
        try:
            task.clean_complex_attrs()
            state = self._changed(task, before)
            if failure is not None:
                state["exception"] = exception_of(failure)
            return _pickled_state(state), failure
        except Exception:  # noqa: BLE001 - an attribute of the user's can't be pickled, or is no end of itself: the others go back
            state = self._changed(task, before)
        travels: dict[str, Any] = {}
        for name, value in state.items():
            error = _why_it_stays(name, value)
            if error is None:
                travels[name] = value
            elif name in _OUTPUT and failure is None:  # without it the task would seem to have no rows
                failure = _describe(error, self._host, self._rank)
                task.status = WorkStatus.CRASHED
                _remove_output(task)
        travels["status"] = task.status
        if failure is not None:
            travels["exception"] = exception_of(failure)
        return _pickled_state(travels), failure

    @staticmethod
    def _changed(task: Task, before: dict[str, Any]) -> dict[str, Any]:
        state = {
            name: value
            for name, value in task.__dict__.items()
            if name not in _NOT_STATE
            and (before.get(name, _MISSING) is not value or isinstance(value, (list, dict, set)))
        }
        state["exec_id"] = task.exec_id
        if task._memory_boost != 1:
            state |= {"_memory_limit": task._memory_limit, "_memory_boost": task._memory_boost}
        return state


def _pickled_state(state: dict[str, Any]) -> bytes:
    by_value = "dataset" in state or "runtime_state" in state
    return cloudpickle.dumps(state, protocol=5) if by_value else pickle.dumps(state, protocol=5)


def _why_it_stays(name: str, value: Any) -> Exception | None:
    """Why an attribute of a task can't go back to rank 0; None if it can."""
    try:
        if name not in DECLARED and not is_plain(value):
            raise TypeError("not plain data")
        cloudpickle.dumps(value, protocol=5)
    except MemoryError as error:
        return error
    except Exception as error:  # noqa: BLE001 - pickling runs the user's __reduce__ and __getstate__: anything can come out
        return CannotPickle(f"its {name} can't be pickled: {type(error).__name__}: {_message_of(error)}")
    return None


def raised_by(asked: int, granted: int) -> float:
    """The factor between two limits; a whole number where it is one but for rounding."""
    factor = granted / asked
    return round(factor) if abs(factor - round(factor)) < 0.01 else factor


def _remove_output(task: Task) -> None:
    """What a failed attempt wrote is nobody's, and room that the next one may need. Its scratch stays: there may be a dump of it."""
    task._running = False
    for path in {task.runtime_output_abspath, task.final_output_abspath}:
        if str(task.runtime_id) in path:  # a sink publishes into a directory that is not its own
            shutil.rmtree(path, ignore_errors=True)


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
    return _describe(task.exception, host, rank)


def disk_error(error: BaseException | None) -> OSError | None:
    """The error of a disk that is full or read-only behind an exception, unless it was the user's own code that wrote."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return None if _passed_user_code(error) else error
        error = error.__cause__ or error.__context__
    return None


def _passed_user_code(error: BaseException) -> bool:
    installed = (PACKAGE_DIR, *sysconfig.get_paths().values())
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return any(
        os.path.isabs(file) and not file.startswith(installed) for file in files
    )  # compiled modules tell no whole path


def _describe(error: BaseException, host: str, rank: int) -> Failure:
    return Failure(kind_of(error), type(error).__name__, _message_of(error), traceback_of_user(error), "", host, rank)


def traceback_of_user(error: BaseException) -> str:
    """The traceback of an exception from the first frame on that is not ours: how the engine got there is of no use to who wrote the function."""
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


def _load(data: bytes | str) -> Any:
    return _unspilled(data) if isinstance(data, str) else pickle.loads(data)


def _unspilled(found: Any) -> Any:
    """What was unpickled itself, or, if that is a path, what lies there."""
    if isinstance(found, str):
        with open(found, "rb") as file:
            return pickle.load(file)
    return found


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


def _message_of(error: BaseException) -> str:
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


def merge_state(task: Task, state: bytes) -> None:
    """Bring an attempt's plain state into the planned task, whose identity never changes."""
    attrs: dict[str, Any] = pickle.loads(state)
    # What an attempt was granted stays with the attempt.
    for name in ("_granted_gpus", "_granted_numa_node"):
        attrs.pop(name, None)
    task.__dict__.update(attrs)
