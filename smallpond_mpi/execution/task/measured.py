"""What a task measures of its attempts, and what follows from sizes: how many rows make a row group."""

from collections.abc import Mapping
from typing import Any

from smallpond_mpi.common import MAX_NUM_ROW_GROUPS, MAX_ROW_GROUP_BYTES, MAX_ROW_GROUP_SIZE, clamp_row_group_size
from smallpond_mpi.execution.task.metrics import AttemptMetrics
from smallpond_mpi.execution.task.random import Randomness


class Measured(Randomness):
    """The measuring part of a Task."""

    _metrics: AttemptMetrics | None = None

    @property
    def perf_metrics(self) -> dict[str, float]:
        """Seconds, rows, bytes by name."""
        metrics: dict[str, float] = self.__dict__.setdefault("_perf_metrics", {})
        return metrics

    @property
    def perf_profile(self) -> Any:
        """The attempt's cProfile.Profile, with ctx.enable_profiling."""
        return self._metrics.profile if self._metrics else None

    def add_elapsed_time(self, metric_name: str | None = None) -> float:
        """Without a name start the timer; with one add the seconds since the last call to that metric and start anew.

        Raises:
            RuntimeError: a name was given and no timer runs.
        """
        if self._metrics is None:
            self._metrics = AttemptMetrics(False)
        secs = self._metrics.lap(metric_name)
        if metric_name is not None:
            self.perf_metrics[metric_name] = self.perf_metrics.get(metric_name, 0.0) + secs
        self.inject_fault()
        return secs

    def merge_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add each value."""
        for name, value in metrics.items():
            self.perf_metrics[name] = self.perf_metrics.get(name, 0) + value

    def compute_avg_row_size(self, nbytes: int, num_rows: int) -> int:
        """Bytes a row, at least 1."""
        return max(1, nbytes // max(1, num_rows))

    def adjust_row_group_size(
        self,
        nbytes: int,
        num_rows: int,
        max_row_group_size: int = MAX_ROW_GROUP_SIZE,
        max_row_group_bytes: int = MAX_ROW_GROUP_BYTES,
        max_num_row_groups: int = MAX_NUM_ROW_GROUPS,
    ) -> int:
        """Rows a row group for `num_rows` rows of `nbytes` in all: more when there would be too many groups, fewer when too big.

        Sets `parquet_row_group_size` and `parquet_row_group_bytes` if the task has them, and returns the rows.
        """
        row_bytes = self.compute_avg_row_size(nbytes, num_rows)
        rows = getattr(self, "parquet_row_group_size", clamp_row_group_size(0))
        if num_rows > rows * max_num_row_groups:
            rows = min(-(-num_rows // max_num_row_groups), max_row_group_size)
        rows = max(1, min(rows, max_row_group_bytes // row_bytes))
        if hasattr(self, "parquet_row_group_size"):
            self.parquet_row_group_size = rows
            self.parquet_row_group_bytes = rows * row_bytes
        return rows
