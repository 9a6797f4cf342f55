"""Every row to the partition whose range its key is in.

    split points   p0  p1  ..  pn-1     ascending in the order of the keys' directions
    partition      0   1   2   ..  n    partition i has the keys from p(i-1) on and before p(i)

A key that equals a split point is in the partition that begins there, so that rows with equal keys are in one partition, whatever types
they have in their files: a key is compared with the points as values, in the type that DuckDB compares the two in. The points are given, or come
from a task that sampled the input (split_points.py), as a second input of each task.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.key_compare import (
    cast_to,
    check_ascending,
    check_width,
    compared_as,
    compared_points,
    points_table,
)
from smallpond_mpi.execution.task.key_search import points_at_or_before
from smallpond_mpi.execution.task.partition import Inputs
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.row_partition import RowPartitionTask
from smallpond_mpi.execution.task.sort_key import InputKeys, SortKey
from smallpond_mpi.io.packed import Int64s


class RangePartitionTask(RowPartitionTask):
    """Cuts its first input at split points: those given, or the rows of its second input.

    Args:
        split_points: ascending; a tuple a point, or a value if there is one key.
        sort_keys: what is compared; none: the first columns, as many as a point has values, ascending.
        npartitions: of None one more than there are split points. More are partitions without rows.
        settings: how partitions are written, and limits, as of RowPartitionTask.
    """

    memory_overcommit_ratio = 0.9

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        split_points: Sequence[Any] = (),
        dimension: str = "range",
        sort_keys: Sequence[SortKey] = (),
        npartitions: int | None = None,
        **settings: Any,
    ) -> None:
        count = len(split_points) + 1 if npartitions is None else npartitions
        super().__init__(ctx, input_deps, partition_infos, count, dimension, **settings)
        self.split_points = list(split_points)
        self.sort_keys = list(sort_keys)

    # Of the running attempt: the keys as they are of its input, the points, and these in the form that keys are compared in.
    _keys: InputKeys | None = None
    _table: pa.Table | None = None
    _points: pa.Array | None = None

    def cleanup(self) -> None:
        self._keys = self._table = self._points = None
        self.input_view_index = 0
        super().cleanup()

    @property
    def _points_are_given(self) -> bool:
        return len(self.input_datasets) < 2

    def key_columns(self, columns: Sequence[str]) -> list[str]:
        self._table = (
            points_table(self.split_points) if self._points_are_given else self.input_datasets[1].to_arrow_table()
        )
        first = [SortKey(name) for name in columns[: max(1, self._table.num_columns)]]
        self._keys = InputKeys.among(self.sort_keys or first, columns)
        check_width(self._table, self._keys)
        return self._keys.columns

    def key_expression(self, conn: duckdb.DuckDBPyConnection, names: Sequence[str], types: Sequence[Any]) -> str:
        """What compares as the key does; the split points are brought into the same form."""
        assert self._keys is not None, "key_columns() was asked before"
        values = self._keys.values(names)
        forms = compared_as(conn, values, names, types, self._table)
        self._points = compared_points(conn, self._table, forms, self._keys)
        if self._points_are_given:
            check_ascending(self._points, self.split_points)
        return self._keys.comparable(cast_to(forms, values))

    def partitions_of(self, keys: pa.Array | None, num_rows: int) -> Int64s:
        assert keys is not None, "there is always a key"
        assert self._points is not None, "its expression was asked for"
        return points_at_or_before(keys, self._points)
