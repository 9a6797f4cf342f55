"""Sums over the tasks of a node: what is kept of tasks that are over, however many they are."""

import math
from collections.abc import Mapping
from typing import Final

from smallpond_mpi.execution.scheduler.progress import Remaining
from smallpond_mpi.execution.scheduler.summary import StageSummary, TimeSpent
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.partition import PartitionProducerTask
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.sink import DataSinkTask

NEVER: Final = math.inf


class Stage:
    """Sums over the tasks of one node. `total` and `done` count what children run; rows and bytes are None until a task tells of some."""

    __slots__ = (
        "before",
        "began_at",
        "bytes_read",
        "bytes_written",
        "compute_secs",
        "cpus",
        "done",
        "ended_at",
        "exec_secs",
        "failed_attempts",
        "here",
        "is_shuffle",
        "is_sink",
        "kind",
        "location",
        "node_id",
        "of",
        "queue_secs",
        "read_secs",
        "rows_in",
        "rows_out",
        "start_secs",
        "taken_up",
        "total",
        "wall_secs",
        "write_secs",
    )

    def __init__(self, task: Task) -> None:
        self.node_id = task.node_id
        self.describe(task)
        self.total = self.done = self.here = self.taken_up = self.failed_attempts = 0
        self.before = 0  # done in the runs that are over
        self.rows_in: int | None = None
        self.rows_out: int | None = None
        self.bytes_read: int | None = None
        self.bytes_written: int | None = None
        self.queue_secs = self.start_secs = self.exec_secs = 0.0
        self.read_secs = self.compute_secs = self.write_secs = 0.0
        self.wall_secs = 0.0  # of the runs that are over
        self.began_at, self.ended_at = NEVER, -NEVER  # in the current one

    def describe(self, task: Task) -> None:
        """Take kind and place from a task: from the last kind that children run, which is the one that the node is there for."""
        self.of = type(task)
        self.kind = kind_of(task)
        self.location = task.location
        self.is_shuffle = isinstance(task, PartitionProducerTask)
        self.is_sink = isinstance(task, DataSinkTask)
        self.cpus = task.cpu_limit

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """What an attempt measured, as far as it did (the names are the contract's)."""
        get = metrics.get
        self.read_secs += get("input load time (secs)", 0.0)
        self.compute_secs += get("compute time (secs)", 0.0)
        self.write_secs += get("output dump time (secs)", 0.0)
        rows = get("num input rows")
        if rows is not None:
            self.rows_in = int(rows) + (self.rows_in or 0)
        rows = get("num output rows")
        if rows is not None:
            self.rows_out = int(rows) + (self.rows_out or 0)
        size = get("num input bytes")
        if size is not None:
            self.bytes_read = int(size) + (self.bytes_read or 0)

    @property
    def current_secs(self) -> float:
        """Wall time in the current run."""
        return max(0.0, self.ended_at - self.began_at) if self.began_at < NEVER else 0.0

    @property
    def time(self) -> TimeSpent:
        told = self.read_secs + self.compute_secs + self.write_secs
        return TimeSpent(
            self.queue_secs,
            self.start_secs,
            self.read_secs,
            self.compute_secs,
            self.write_secs,
            max(0.0, self.exec_secs - told),
        )

    def remaining(self, running: int) -> Remaining:
        done = self.done - self.taken_up
        return Remaining(self.total - self.done, done, self.exec_secs + self.start_secs, self.cpus, running)

    def end_run(self) -> None:
        """What did not end in this run will not: if it is asked for again, it is submitted again."""
        self.wall_secs += self.current_secs
        self.began_at, self.ended_at = NEVER, -NEVER
        self.total = self.before = self.done

    def summary(self) -> StageSummary:
        return StageSummary(
            self.node_id,
            self.kind,
            self.location,
            self.done - self.taken_up,
            self.here,
            self.taken_up,
            self.wall_secs + self.current_secs,
            self.rows_in,
            self.rows_out,
            self.bytes_read,
            self.bytes_written,
            self.failed_attempts,
            self.time,
        )


def kind_of(task: Task) -> str:
    """The word for what a task does: as its node is called, for the kinds of ours."""
    return type(task).__name__.removesuffix("Task").removesuffix("Producer")


def partitions_of(task: Task) -> str:
    """Which part it works on; the top level only where it is cut."""
    cut = [info for info in task.partition_infos if not info.is_toplevel or info.npartitions > 1]
    unnamed = (PartitionInfo.toplevel_dimension, PartitionInfo.default_dimension)
    return " ".join(f"[{info.index}/{info.npartitions}]" if info.dimension in unnamed else str(info) for info in cut)
