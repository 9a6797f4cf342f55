"""A piece of work, its status, and the queue that its checkpoints are pushed to while it runs."""

import contextlib
import copy
import os
import pickle
import queue
import random as randomness
import time
from collections.abc import Iterable
from typing import Any

import cloudpickle

from smallpond_mpi.common import MB, NonzeroExitCode, OutOfMemory
from smallpond_mpi.execution.model import WorkStatus

__all__ = ["WorkItem", "WorkQueue", "WorkQueueInMemory", "WorkQueueOnFilesystem", "WorkStatus"]


class WorkItem:
    """Something with limits that is initialized, run, finalized and cleaned up, in this order, once an attempt.

    Attributes of an attempt have their defaults on the class: a planned item holds only what was planned.
    """

    status = WorkStatus.INCOMPLETE
    exception: BaseException | None = None
    start_time: float | None = None
    finish_time: float | None = None
    retry_count = 0
    fail_count = 0
    exec_id: str | None = None
    exec_cq: "WorkQueue | None" = None
    # The factors by which the scheduler raised the limits of this attempt.
    _cpu_boost: float = 1
    _memory_boost: float = 1
    # The grant, as the process of the attempt sees it: ranks of its GPUs with their quotas, and its NUMA node.
    _granted_gpus: tuple[tuple[int, float], ...] = ()
    _granted_numa_node: int | None = None

    def __init__(
        self, key: str, cpu_limit: int | None = None, gpu_limit: float | None = None, memory_limit: int | None = None
    ):
        self.key = key
        self._cpu_limit = 1 if cpu_limit is None else cpu_limit
        self._gpu_limit = 0 if gpu_limit is None else gpu_limit
        self._memory_limit = memory_limit

    def __call__(self) -> WorkStatus:
        return self.exec()

    @property
    def cpu_limit(self) -> int:
        """CPUs, at least 1."""
        return self._cpu_limit

    @property
    def gpu_limit(self) -> float:
        """GPUs; 0.5 is half of one."""
        return self._gpu_limit

    @property
    def memory_limit(self) -> int | None:
        """Bytes; None until the attempt is initialized: its share of the rank's memory."""
        return self._memory_limit

    @memory_limit.setter
    def memory_limit(self, limit: int | None) -> None:
        self._memory_limit = limit

    @property
    def elapsed_time(self) -> float:
        """Seconds so far, or of the whole attempt; 0 before it starts."""
        if self.start_time is None:
            return 0.0
        return (time.time() if self.finish_time is None else self.finish_time) - self.start_time

    @property
    def exec_on_scheduler(self) -> bool:
        """Whether this only rearranges metadata and so runs on rank 0."""
        return False

    @property
    def local_gpu_ranks(self) -> list[int]:
        """Ranks of all GPUs granted, valid under this process's CUDA_VISIBLE_DEVICES."""
        return [rank for rank, _ in self._granted_gpus]

    @property
    def local_gpu(self) -> int | None:
        """The first GPU granted."""
        return self.local_rank

    @property
    def local_rank(self) -> int | None:
        """The rank of the first GPU granted."""
        return self._granted_gpus[0][0] if self._granted_gpus else None

    @property
    def numa_node(self) -> int | None:
        """The NUMA node that this attempt is bound to."""
        return self._granted_numa_node

    def oom(self, nonzero_exitcode_as_oom: bool = False) -> bool:
        """Whether the attempt crashed for want of memory: its limit can be raised and it can be tried again."""
        causes: tuple[type[BaseException], ...] = (OutOfMemory, MemoryError)
        if nonzero_exitcode_as_oom:
            causes = (*causes, NonzeroExitCode)
        return (
            self.status is WorkStatus.CRASHED and isinstance(self.exception, causes) and self.memory_limit is not None
        )

    def initialize(self) -> None:
        """Called before run()."""

    def run(self) -> bool:
        """The work; true when it succeeded."""
        raise NotImplementedError(f"{type(self).__name__} does not define run()")

    def finalize(self) -> None:
        """Called after a run() that succeeded."""

    def cleanup(self) -> None:
        """Called at the end of every attempt, whatever happened."""

    def _prepare(self) -> None:
        """What the engine itself needs before initialize(), whatever subclasses override."""

    def _commit(self) -> None:
        """What the engine itself needs after finalize(), whatever subclasses override."""

    def exec(self, cq: "WorkQueue | None" = None) -> WorkStatus:
        """Run the whole lifetime of an attempt, if this item is INCOMPLETE, and return the status it ends with.

        Exceptions end up in `exception` with status CRASHED. Checkpoints are pushed to `cq` while it runs.
        """
        if self.status is not WorkStatus.INCOMPLETE:
            return self.status
        global _attempt_pid
        _attempt_pid = os.getpid()
        self.start_time = time.time()
        self.finish_time = None
        self.exec_cq = cq
        try:
            self._prepare()
            self.initialize()
            try:
                succeeded = self.run()
            finally:
                end_copies()
            if succeeded:
                self.status = WorkStatus.SUCCEED
                self.finalize()
                self._commit()
            else:
                self.status = WorkStatus.FAILED
        except BaseException as error:  # noqa: BLE001 - user code: whatever it raises is the attempt's end
            self.status = WorkStatus.CRASHED
            self.exception = error
        try:
            self.cleanup()
        except BaseException as error:  # noqa: BLE001 - as above
            self.status = WorkStatus.CRASHED
            self.exception = self.exception or error
        self.exec_cq = None
        self.finish_time = time.time()
        if isinstance(self.exception, KeyboardInterrupt):
            raise self.exception  # whoever runs a task by hand wants out of more than the task
        return self.status


_attempt_pid: int | None = None


def end_copies() -> None:
    """Leave, if this is a process that the user's code has forked and that came back from there: a copy of the attempt's, which would undo what that does."""
    if _attempt_pid is not None and os.getpid() != _attempt_pid:
        os._exit(0)


class WorkQueue:
    """Where items are pushed and popped; `flush` sends what was pushed with `buffering`."""

    def __init__(self) -> None:
        self._buffered: list[WorkItem] = []

    def pop(self, count: int = 1) -> list[WorkItem]:
        """At most `count` items, none if there are none."""
        raise NotImplementedError

    def push(self, item: WorkItem, buffering: bool = False) -> None:
        """Put an item in; with `buffering` it may wait for `flush`."""
        self._buffered.append(item)
        if not buffering:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        raise NotImplementedError


class WorkQueueInMemory(WorkQueue):
    """Within one process. Items are copied when pushed: what is popped does not change any more."""

    def __init__(self, queue_type: type[Any] = queue.Queue) -> None:
        super().__init__()
        self._queue = queue_type()

    def pop(self, count: int = 1) -> list[WorkItem]:
        items: list[WorkItem] = []
        while len(items) < count:
            try:
                items.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return items

    def flush(self) -> None:
        for item in self._buffered:
            self._queue.put(copy.copy(item))
        self._buffered.clear()


class WorkQueueOnFilesystem(WorkQueue):
    """Between processes that share a directory: an item is a file, and whoever renames it away has it. No locks.

        {workq_root}/enqueued/{time}.{process}.{number} --rename--> {workq_root}/dequeued/...

    (Our own scheduler and executors don't use it: see transport/files.py.)

    Args:
        workq_root: is made if it is not there.
        sort: pop what was pushed first, by the clocks of the processes that pushed. random: pop in any order, so that many processes seldom
            reach for the same item.
    """

    buffer_size = 16 * MB
    """Bytes of items pushed with `buffering` at which they are written out."""

    def __init__(self, workq_root: str, sort: bool = True, random: bool = False) -> None:
        super().__init__()
        self.workq_root = os.path.abspath(workq_root)
        self.sort = sort
        self.random = random
        self._enqueued = os.path.join(self.workq_root, "enqueued")
        self._dequeued = os.path.join(self.workq_root, "dequeued")
        self._pickled: list[bytes] = []
        self._pickled_bytes = 0
        self._num_pushed = 0
        for directory in (self._enqueued, self._dequeued):
            os.makedirs(directory, mode=0o700, exist_ok=True)

    def push(self, item: WorkItem, buffering: bool = False) -> None:
        """Put an item, as it is now, at the end; with `buffering` at the next flush, or when there is enough to write."""
        data = cloudpickle.dumps(item, protocol=5)
        self._pickled.append(data)
        self._pickled_bytes += len(data)
        if not buffering or self._pickled_bytes >= self.buffer_size:
            self.flush()

    def flush(self) -> None:
        """Write what was pushed with `buffering`."""
        pickled, self._pickled, self._pickled_bytes = self._pickled, [], 0
        for data in pickled:
            name = f"{time.time_ns():020d}.{os.uname().nodename}.{os.getpid()}.{self._num_pushed:09d}"
            self._num_pushed += 1
            beside = os.path.join(self.workq_root, f".{name}")
            with open(beside, "wb") as file:
                file.write(data)
            os.rename(beside, os.path.join(self._enqueued, name))

    def pop(self, count: int = 1) -> list[WorkItem]:
        """At most `count` items, none if there are none; no other process gets these."""
        items: list[WorkItem] = []
        for name in self._names(self._enqueued):
            if len(items) == count:
                break
            taken = os.path.join(self._dequeued, name)
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.rename(os.path.join(self._enqueued, name), taken)
                items += _loaded([taken])
        return items

    def size(self) -> int:
        """How many items wait."""
        return len(os.listdir(self._enqueued))

    def list_enqueued(self, expand_batch: bool = True) -> list[WorkItem]:
        """The items that wait. (Each is a file of its own: there are no batches to expand.)"""
        return _loaded(os.path.join(self._enqueued, name) for name in self._names(self._enqueued))

    def list_dequeued(self, expand_batch: bool = True) -> list[WorkItem]:
        """The items that were popped, as they were when pushed."""
        return _loaded(os.path.join(self._dequeued, name) for name in self._names(self._dequeued))

    def list_works(self, expand_batch: bool = True) -> list[WorkItem]:
        """All items that were ever pushed: those popped, then those that wait."""
        return self.list_dequeued() + self.list_enqueued()

    def _names(self, directory: str) -> list[str]:
        names = os.listdir(directory)
        if self.random:
            randomness.shuffle(names)
        elif self.sort:
            names.sort()
        return names


def _loaded(paths: Iterable[str]) -> list[WorkItem]:
    items: list[WorkItem] = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # popped since it was listed
            items.append(pickle.load(file))
    return items
