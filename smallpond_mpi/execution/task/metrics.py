"""What is measured of every attempt, and the statistics that a node keeps of its tasks."""

import cProfile
import logging
import os
import resource
import time
from collections import namedtuple
from typing import TYPE_CHECKING

from smallpond_mpi.common import MB

if TYPE_CHECKING:
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.io.parquet import RowRange
    from smallpond_mpi.logical.dataset import DataSet

PROFILE_LOGGED_AFTER_SECS = 3.0


class PerfStats(namedtuple("PerfStats", ("cnt", "sum", "min", "max", "avg", "p50", "p75", "p95", "p99"))):
    """Count, sum, extremes, mean and percentiles (nearest rank) of a metric over the tasks of a node."""

    __slots__ = ()

    @staticmethod
    def of(values: list[float]) -> "PerfStats":
        """Statistics of at least one value."""
        ordered = sorted(values)

        def percentile(percent: int) -> float:
            return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

        total = sum(ordered)
        return PerfStats(
            len(ordered),
            total,
            ordered[0],
            ordered[-1],
            total / len(ordered),
            *(percentile(percent) for percent in (50, 75, 95, 99)),
        )


class AttemptMetrics:
    """Timers of a running attempt."""

    def __init__(self, enable_profiling: bool) -> None:
        self._last_lap: float | None = None
        self._begin = time.monotonic()
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        self.profile: cProfile.Profile | None = None
        if enable_profiling:
            self.profile = cProfile.Profile()
            self.profile.enable()

    def lap(self, name: str | None) -> float:
        """Seconds since the last lap; 0.0 for the first, which has no name."""
        now = time.monotonic()
        last, self._last_lap = self._last_lap, now
        if name is None:
            return 0.0
        if last is None:
            raise RuntimeError(f"no timer runs for {name!r}: call add_elapsed_time() without a name first")
        return now - last

    def finish(self, task: "Task") -> None:
        """Add what every attempt that succeeded tells."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        metrics = task.perf_metrics
        metrics["elapsed wall time (secs)"] = time.monotonic() - self._begin
        metrics["max resident set size (MB)"] = usage.ru_maxrss / 1024
        metrics["user mode cpu time (secs)"] = usage.ru_utime - self._usage.ru_utime
        metrics["system mode cpu time (secs)"] = usage.ru_stime - self._usage.ru_stime
        if task.input_datasets and not task.exec_on_scheduler:
            metrics["num input bytes"] = sum(map(known_bytes, task.input_datasets))
        if task.ctx.enable_diagnostic_metrics:
            inputs = [size for dataset in task.input_datasets for size in _file_sizes(dataset.resolved_paths)]
            outputs = list(_file_sizes(task.output.resolved_paths))
            metrics["num input files"] = len(inputs)
            metrics["total input size (MB)"] = sum(inputs) / MB
            metrics["num output files"] = len(outputs)
            metrics["total output size (MB)"] = sum(outputs) / MB

    def stop(self, task: "Task") -> None:
        """End the profile; tell of it when the attempt was long."""
        if self.profile is None:
            return
        self.profile.disable()
        if task.elapsed_time > PROFILE_LOGGED_AFTER_SECS:
            from smallpond_mpi.utility import cprofile_to_string

            logging.getLogger(__name__).info(
                "%s took %.1f s:\n%s", task.key, task.elapsed_time, cprofile_to_string(self.profile)
            )


def known_bytes(dataset: "DataSet") -> int:
    """Bytes on disk of the rows of a dataset that was read: in proportion where they are a part of a file's.

    Opens nothing and lists nothing: what this process has not looked at so far, it has not read.
    """
    from smallpond_mpi.logical.dataset import CsvDataSet, JsonDataSet, ParquetDataSet

    if isinstance(dataset, ParquetDataSet):
        ranges = dataset._known if dataset._files_if_known() is not None else []
        return sum(_share_on_disk(item) for item in ranges if item.is_known and item.num_rows)
    if isinstance(dataset, (CsvDataSet, JsonDataSet)) and dataset._resolved_from == dataset.paths:
        return sum(map(_size, dataset._resolved or ()))
    return 0


def _share_on_disk(item: "RowRange") -> int:
    size = item.file_bytes if item.is_promised else _size(item.path)
    return size if item.is_whole_file else size * item.num_rows // item.file_num_rows


def _size(path: str) -> int:
    """Bytes of a file; 0 of one that is gone or is not of this node's file systems."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _file_sizes(paths: list[str]) -> list[int]:
    return [os.path.getsize(path) for path in paths]
