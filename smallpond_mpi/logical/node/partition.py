"""Nodes that cut data into partitions: producers split, one consumer a partition collects what all producers made of it.

inputs -> merge -> split x producers -> producer x producers -> consumer x npartitions
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smallpond_mpi.common import DATA_PARTITION_COLUMN_NAME
from smallpond_mpi.logical.node.base import Context, Node, Shape, joined_shape
from smallpond_mpi.logical.node.reshape import ConsolidateNode, UnionNode
from smallpond_mpi.logical.node.source_sink import DataSourceNode

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.deps import Dependencies
    from smallpond_mpi.execution.task.partition_info import PartitionInfo
    from smallpond_mpi.logical.dataset import DataSet


class PartitionNode(Node):
    """Base of nodes that partition.

    Args:
        npartitions: how many partitions (nested: of each existing one).
        dimension: names what is compatible: a node with several inputs pairs partitions along dimensions that they share.
            None is the default dimension.
        nested: cut every existing partition again, into a new dimension; otherwise all inputs are put together and cut anew.
    """

    max_num_producer_tasks = 100
    max_card_of_producers_x_consumers = 4096000
    # So many of the last inputs, of one partition each, go to every producer beside its share of the others.
    num_broadcast_inputs = 0
    visit_method = "visit_partition_node"

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        npartitions: int,
        dimension: str | None = None,
        nested: bool = False,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int = 1,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, output_name, output_path, cpu_limit, 0, memory_limit)
        if not self.input_deps:
            raise self.invalid("input_deps is empty: there is nothing to partition")
        self.npartitions = self._whole_number("npartitions", npartitions, 1)
        if self.npartitions > self.max_card_of_producers_x_consumers:
            raise self.invalid(
                f"npartitions must be at most {self.max_card_of_producers_x_consumers:,}, not {self.npartitions:,}: use fewer, "
                "larger partitions (a few for each CPU of the job, each of 100 MB or more, is a good start)"
            )
        if dimension is not None and not (isinstance(dimension, str) and dimension):
            raise self.invalid(f"dimension must be a name, not {dimension!r}")
        self.dimension = DATA_PARTITION_COLUMN_NAME if dimension is None else dimension
        self.nested = nested

    def shape(self, inputs: list[Shape]) -> Shape:
        outer = dict(joined_shape(inputs).dims) if self.nested else {}
        return Shape(outer | {self.dimension: self.npartitions})

    def create_producer_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        """The task that cuts its one input into `npartitions` datasets."""
        raise NotImplementedError(f"{type(self).__name__} does not define create_producer_task()")

    def create_consumer_task(
        self,
        runtime_ctx: "RuntimeContext",
        input_deps: "list[Task] | Dependencies",
        partition_infos: "list[PartitionInfo]",
    ) -> "Task":
        """The task that collects one partition from all producers. (`input_deps` is shared by all consumers.)"""
        from smallpond_mpi.execution.task.partition import PartitionConsumerTask

        return PartitionConsumerTask(runtime_ctx, input_deps, partition_infos)

    def create_merge_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        """The task that puts inputs together before they are split among producers."""
        from smallpond_mpi.execution.task.views import MergeDataSetsTask

        return MergeDataSetsTask(runtime_ctx, input_deps, partition_infos)

    def create_split_task(
        self,
        runtime_ctx: "RuntimeContext",
        input_deps: "list[Task] | Dependencies",
        partition_infos: "list[PartitionInfo]",
    ) -> "Task":
        """The task that picks the share of one producer."""
        from smallpond_mpi.execution.task.views import SplitDataSetTask

        return SplitDataSetTask(runtime_ctx, input_deps, partition_infos)

    def _limits(self) -> dict[str, Any]:
        return {"cpu_limit": self.cpu_limit, "memory_limit": self.memory_limit}

    def _output(self) -> dict[str, Any]:
        return {"output_name": self.output_name, "output_path": self.output_path}


class RepeatPartitionNode(PartitionNode):
    """All of the input, `npartitions` times, along a dimension of its own; no data is moved."""

    max_num_producer_tasks = 1

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        npartitions: int,
        dimension: str,
        cpu_limit: int = 1,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, npartitions, dimension, False, cpu_limit=cpu_limit, memory_limit=memory_limit)

    def create_producer_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.partition import RepeatPartitionProducerTask

        return RepeatPartitionProducerTask(
            runtime_ctx, input_deps, partition_infos, self.npartitions, self.dimension, **self._limits()
        )


class UserDefinedPartitionNode(PartitionNode):
    """Partitions as the user's `partition(ctx, dataset)` gives them: a list of `npartitions` datasets."""

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        npartitions: int,
        dimension: str | None = None,
        nested: bool = False,
        cpu_limit: int = 1,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, npartitions, dimension, nested, cpu_limit=cpu_limit, memory_limit=memory_limit
        )

    def create_producer_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.partition import UserDefinedPartitionProducerTask

        # One object for all tasks, so that it is pickled and hashed once.
        partition_func = self.__dict__.setdefault("_process_func", self.partition)
        return UserDefinedPartitionProducerTask(
            runtime_ctx,
            input_deps,
            partition_infos,
            self.npartitions,
            self.dimension,
            partition_func,
            **self._limits(),
        )

    def partition(self, runtime_ctx: "RuntimeContext", dataset: "DataSet") -> "list[DataSet]":
        """To be overridden: `npartitions` datasets."""
        raise NotImplementedError(f"{type(self).__name__} does not define partition()")


class UserPartitionedDataSourceNode(UserDefinedPartitionNode):
    """Datasets that are partitions already."""

    max_num_producer_tasks = 1

    def __init__(self, ctx: Context, partitioned_datasets: "list[DataSet]", dimension: str | None = None) -> None:
        from smallpond_mpi.logical.dataset import PartitionedDataSet

        source = DataSourceNode(ctx, PartitionedDataSet(list(partitioned_datasets)))
        super().__init__(ctx, (source,), len(partitioned_datasets), dimension)

    def partition(self, runtime_ctx: "RuntimeContext", dataset: "DataSet") -> "list[DataSet]":
        return [dataset[index] for index in range(self.npartitions)]  # type: ignore[index] # a PartitionedDataSet


class EvenlyDistributedPartitionNode(PartitionNode):
    """Partitions of about the same number of files, or of rows; no data is moved.

    Args:
        partition_by_rows: by rows instead of files.
        random_shuffle: in random order (the same in every run with the job's seed).
    """

    max_num_producer_tasks = 1

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        npartitions: int,
        dimension: str | None = None,
        nested: bool = False,
        *,
        partition_by_rows: bool = False,
        random_shuffle: bool = False,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int = 1,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, npartitions, dimension, nested, output_name, output_path, cpu_limit, memory_limit
        )
        self.partition_by_rows = partition_by_rows
        self.random_shuffle = random_shuffle

    def create_producer_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.partition import EvenlyDistributedPartitionProducerTask

        return EvenlyDistributedPartitionProducerTask(
            runtime_ctx,
            input_deps,
            partition_infos,
            self.npartitions,
            self.dimension,
            partition_by_rows=self.partition_by_rows,
            random_shuffle=self.random_shuffle,
            **self._limits(),
        )


class LoadPartitionedDataSetNode(PartitionNode):
    """Partitions that were written as such: each file tells its number.

    Args:
        data_partition_column: the key in the files' metadata, the part of a hive path, or the column that holds the number.
        hive_partitioning: the number is in the path (`column=3/`).
    """

    max_num_producer_tasks = 10

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        npartitions: int,
        dimension: str | None = None,
        nested: bool = False,
        data_partition_column: str | None = None,
        hive_partitioning: bool = False,
        cpu_limit: int = 1,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, npartitions, dimension, nested, cpu_limit=cpu_limit, memory_limit=memory_limit
        )
        self.data_partition_column = data_partition_column or DATA_PARTITION_COLUMN_NAME
        self.hive_partitioning = hive_partitioning

    def create_producer_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.partition import LoadPartitionedDataSetProducerTask

        return LoadPartitionedDataSetProducerTask(
            runtime_ctx,
            input_deps,
            partition_infos,
            self.npartitions,
            self.dimension,
            self.data_partition_column,
            self.hive_partitioning,
            **self._limits(),
        )


def DataSetPartitionNode(
    ctx: Context,
    input_deps: Sequence[Node],
    npartitions: int,
    *,
    partition_by_rows: bool = False,
    random_shuffle: bool = False,
    data_partition_column: str | None = None,
) -> Node:
    """A node that makes `npartitions` of its inputs: as they were written, or evenly; 1 puts them together."""
    if npartitions == 1:
        return ConsolidateNode(ctx, input_deps[0] if len(input_deps) == 1 else UnionNode(ctx, input_deps), [])
    if data_partition_column is None:
        return EvenlyDistributedPartitionNode(
            ctx, input_deps, npartitions, partition_by_rows=partition_by_rows, random_shuffle=random_shuffle
        )
    node = LoadPartitionedDataSetNode(ctx, input_deps, npartitions, data_partition_column=data_partition_column)
    if partition_by_rows or random_shuffle:
        raise node.invalid("data_partition_column can't be combined with partition_by_rows or random_shuffle")
    return node
