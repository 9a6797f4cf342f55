"""Partitions by ranges of a key: at split points that are given, or that a task finds in a sample when the plan runs.

inputs ---------------------------> merge -> split x P -> RangePartitionTask x P -> consumer x n
   '---> SplitPointsTask (1) --------------------------------^ to each
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smallpond_mpi.common import GB
from smallpond_mpi.execution.task.sort_key import SortKey, sort_keys
from smallpond_mpi.logical.node.base import Context, Node, Shape, joined_shape
from smallpond_mpi.logical.node.partition import PartitionNode

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.partition_info import PartitionInfo

DEFAULT_CPU_LIMIT = 16
DEFAULT_MEMORY_LIMIT = 128 * GB


class SplitPointsNode(Node):
    """Where to cut the inputs so that `npartitions` are of about the same size, as a table of split points.

    Args:
        nested: of each partition of the inputs on its own.
        min_rows: of fewer rows no partition should be.
    """

    visit_method = "visit_split_points_node"

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        npartitions: int,
        keys: Sequence[SortKey],
        nested: bool = False,
        min_rows: int = 1,
    ) -> None:
        super().__init__(ctx, input_deps)
        self.npartitions = npartitions
        self.sort_keys = list(keys)
        self.nested = nested
        self.min_rows = min_rows

    def shape(self, inputs: list[Shape]) -> Shape:
        return Shape(joined_shape(inputs).dims if self.nested else {})

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.split_points import SplitPointsTask

        return SplitPointsTask(
            runtime_ctx, input_deps, partition_infos, self.npartitions, self.sort_keys, self.min_rows
        )


class RangePartitionNode(PartitionNode):
    """Partition i has the rows whose key is split_points[i - 1] or after it and before split_points[i]: n points make n + 1 partitions.

    Rows with equal keys are in one partition, so that a key that many rows have may fill one. Keys compare as DuckDB's ORDER BY compares
    them: NaN is the largest number, text is compared byte by byte.

    Args:
        split_points: in the order of the partitions (descending, where the key is); a tuple a point, or, of one column, a value. None: they are
            found in a sample when the plan runs, for `npartitions`.
        by: columns or SQL expressions; None: the first columns, as many as a point has values.
        descending, nulls_last: a bool, or one for each column. NULL comes last by default, in both directions, as in DuckDB.
        npartitions: how many partitions, if they are found by sampling.
        min_rows: sampling makes partitions of no fewer rows than this, so that some may stay empty.

    Raises:
        InvalidArgument: split points have different numbers of values, or are not in order.
    """

    max_num_producer_tasks = 1000

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        split_points: "list[Any] | None",
        dimension: str | None = None,
        nested: bool = False,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int = DEFAULT_CPU_LIMIT,
        memory_limit: int | None = DEFAULT_MEMORY_LIMIT,
        *,
        by: str | list[str] | None = None,
        descending: bool | list[bool] = False,
        nulls_last: bool | list[bool] = True,
        npartitions: int | None = None,
        min_rows: int = 1,
    ) -> None:
        points = None if split_points is None else _as_list(split_points)
        super().__init__(
            ctx,
            input_deps,
            len(points) + 1 if points is not None else 1 if npartitions is None else npartitions,
            dimension,
            nested,
            output_name,
            output_path,
            cpu_limit,
            memory_limit,
        )
        # The defaults need not be met by a rank that has less.
        if cpu_limit == DEFAULT_CPU_LIMIT:
            self.cpu_limit_asked = 1
        if memory_limit == DEFAULT_MEMORY_LIMIT:
            self.memory_limit_asked = None
        self.sort_keys = self._keys(by, descending, nulls_last)
        self.split_points = points
        if split_points is None:
            self._find_points(npartitions, min_rows)
        else:
            self._check_points(split_points, npartitions)

    def _find_points(self, npartitions: int | None, min_rows: int) -> None:
        """Make the node that finds them, as the last input."""
        if not self.sort_keys or npartitions is None:
            raise self.invalid("split_points is None: give by and npartitions, for which they are to be found")
        rows = self._whole_number("min_rows", min_rows, 1)
        points = SplitPointsNode(self.ctx, self.input_deps, self.npartitions, self.sort_keys, self.nested, rows)
        self.input_deps = (*self.input_deps, points)
        self.num_broadcast_inputs = 1

    def _check_points(self, given: Any, npartitions: int | None) -> None:
        if self.split_points is None:
            raise self.invalid(f"split_points must be a list of values, not {given!r}")
        if npartitions not in (None, self.npartitions):
            count = len(self.split_points)
            raise self.invalid(f"{count} split points make {self.npartitions} partitions, not {npartitions}")
        from smallpond_mpi.execution.task.key_compare import check_points  # DuckDB: only for who gives points

        try:
            check_points(self.split_points, self.sort_keys)
        except ValueError as error:
            raise self.invalid(str(error)) from None

    def _keys(self, by: Any, descending: Any, nulls_last: Any) -> list[SortKey]:
        names = [by] if isinstance(by, str) else list(by or ())
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise self.invalid(f"by must be a column or a list of columns, not {by!r}")
        try:
            return sort_keys(names, descending, nulls_last)
        except ValueError as error:
            raise self.invalid(str(error)) from None

    def create_producer_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.range_partition import RangePartitionTask

        return RangePartitionTask(
            runtime_ctx,
            input_deps,
            partition_infos,
            self.split_points or (),
            self.dimension,
            self.sort_keys,
            self.npartitions,
            **self._output(),
            **self._limits(),
        )


def _as_list(values: Any) -> list[Any] | None:
    """A list, tuple or array as a list; None for what is none."""
    is_text = isinstance(values, (str, bytes))
    return None if is_text or not hasattr(values, "__iter__") else list(values)
