"""A global sort: split points from a sample, partitions by range, each of them sorted.

input -> SplitPointsNode -.
   '------------------> RangePartitionNode -> SortNode: partition 0 <= partition 1 <= ...
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from smallpond_mpi.common import DEFAULT_ROW_GROUP_SIZE
from smallpond_mpi.execution.task.sort_key import SortKey
from smallpond_mpi.logical.node.base import Context, Node
from smallpond_mpi.logical.node.range_partition import RangePartitionNode
from smallpond_mpi.logical.node.reshape import ConsolidateNode

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.partition_info import PartitionInfo

PARTITIONS_A_SLOT = 4
MIN_ROWS_A_PARTITION = 10_000


class SortNode(Node):
    """Each partition in order, as a file; more than fits in memory is sorted on disk. Rows that compare equal are in no particular order.

    Args:
        sort_keys: columns or SQL expressions, and their directions.
    """

    default_row_group_size = DEFAULT_ROW_GROUP_SIZE

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        sort_keys: Sequence[SortKey],
        *,
        parquet_row_group_size: int | None = None,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str = "ZSTD",
        parquet_compression_level: int | None = 3,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int = 1,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, output_name, output_path, cpu_limit, memory_limit=memory_limit)
        if len(self.input_deps) != 1:
            raise self.invalid(f"a sort has one input, not {len(self.input_deps)}")
        self.sort_keys = list(sort_keys)
        if not self.sort_keys:
            raise self.invalid("sort_keys is empty: name what to sort by")
        self.parquet_row_group_size = (
            self.default_row_group_size
            if parquet_row_group_size is None
            else self._whole_number("parquet_row_group_size", parquet_row_group_size, 1)
        )
        self.parquet_dictionary_encoding = parquet_dictionary_encoding
        self.parquet_compression = parquet_compression
        self.parquet_compression_level = parquet_compression_level

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.sort import SortTask

        return SortTask(
            runtime_ctx,
            input_deps,
            partition_infos,
            self.sort_keys,
            parquet_row_group_size=self.parquet_row_group_size,
            parquet_dictionary_encoding=self.parquet_dictionary_encoding,
            parquet_compression=self.parquet_compression,
            parquet_compression_level=self.parquet_compression_level,
            output_name=self.output_name,
            output_path=self.output_path,
            cpu_limit=self.cpu_limit,
            memory_limit=self.memory_limit,
        )


def cut_for_sort(plan: Node, keys: Sequence[SortKey], npartitions: int | None, num_slots: int) -> Node:
    """The rows of a plan, cut into ranges that only need to be sorted each. One partition is not cut at all.

    Args:
        npartitions: None: some for each of `num_slots`, the tasks that run at once, but no fewer than the plan has, and none of so few rows
            that a task is not worth it.
    """
    count, min_rows = npartitions, 1
    if count is None:
        count, min_rows = max(plan.num_partitions, PARTITIONS_A_SLOT * num_slots), MIN_ROWS_A_PARTITION
    if count == 1:
        return plan if plan.num_partitions == 1 else ConsolidateNode(plan.ctx, plan, [])
    return RangePartitionNode(
        plan.ctx,
        (plan,),
        None,
        cpu_limit=1,
        memory_limit=None,
        by=[key.by for key in keys],
        descending=[key.descending for key in keys],
        nulls_last=[key.nulls_last for key in keys],
        npartitions=count,
        min_rows=min_rows,
    )
