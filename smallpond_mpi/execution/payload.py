"""How a task gets into a message, is performed by a child, and gets back.

    rank 0   Packer.pack(task)       -> header (this attempt) + payload (this task) + blobs (what its siblings share, sent once a rank)
    child    Performer.perform(...)  -> plain state, Failure | None
    rank 0   merge_state(task, state)

Siblings are tasks of one class made from one node: what they hold in common (function, query, schema; told by identity) is pickled once,
by value where it comes from the user's script. What is left of a task is a handful of plain values, so that C's pickle does it.
"""

import hashlib
import logging
import mmap
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cloudpickle

from smallpond_mpi.common import (
    MB,
    CannotPickle,
    DataRootUnusable,
)
from smallpond_mpi.config import LEVELS
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.failures import exception_of, failure_from, failure_of, message_of
from smallpond_mpi.execution.model import Capacity, Failure, FailureKind, Grant, TaskId, TaskRuntimeId, WorkStatus
from smallpond_mpi.execution.protocol import RunTask, Welcome
from smallpond_mpi.execution.slots import usable_memory
from smallpond_mpi.execution.task.attributes import DECLARED, NOT_PAYLOAD, NOT_STATE, OUTPUT, is_plain
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.workqueue import WorkQueue
from smallpond_mpi.io.memory import MEMORY_POOL_VARIABLE, limit_duckdb, use_memory_pool

MAX_INLINE_BYTES = 64 * MB
"""What is larger goes by file, with its path in the message."""

_MISSING = object()
_SIMPLE = frozenset({int, str, float, bool, bytes, type(None), TaskId})


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
            if name not in NOT_PAYLOAD and shared.get(name, _MISSING) is not value
        }
        absent = tuple(shared.keys() - attrs.keys())
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
                if name not in NOT_PAYLOAD and not hasattr(value, "to_arrow_table")
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
        except DataRootUnusable as error:
            return pickle.dumps({}), failure_from(error, self._host, self._rank)
        except Exception as error:  # noqa: BLE001 - user code runs while unpickling: whatever it raises is the attempt's end
            failure = failure_from(error, self._host, self._rank)
            message = f"can't be unpickled: {failure.message}"
            return pickle.dumps({}), replace(failure, kind=FailureKind.BAD_INPUT, message=message)
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
            elif name in OUTPUT and failure is None:  # without it the task would seem to have no rows
                failure = failure_from(error, self._host, self._rank)
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
            if name not in NOT_STATE
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
        return CannotPickle(f"its {name} can't be pickled: {type(error).__name__}: {message_of(error)}")
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


def _load(data: bytes | str) -> Any:
    return _unspilled(data) if isinstance(data, str) else pickle.loads(data)


def _unspilled(found: Any) -> Any:
    """What was unpickled itself, or, if that is a path, what lies there.

    Raises:
        DataRootUnusable: that file can't be read, which another attempt may be able to.
    """
    if not isinstance(found, str):
        return found
    try:
        with open(found, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # it may be large: not held twice
    except OSError as error:
        raise DataRootUnusable(error.errno, f"{found} can't be read: {error.strerror}") from error
    with content:
        return pickle.loads(content)


def merge_state(task: Task, state: bytes) -> None:
    """Bring an attempt's plain state into the planned task, whose identity never changes."""
    attrs: dict[str, Any] = pickle.loads(state)
    # What an attempt was granted stays with the attempt.
    for name in ("_granted_gpus", "_granted_numa_node"):
        attrs.pop(name, None)
    task.__dict__.update(attrs)
