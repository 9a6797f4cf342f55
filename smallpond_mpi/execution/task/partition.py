"""Cutting data into partitions: producers cut their share, a consumer takes one partition from all of them.

    producer 0 -> PartitionedDataSet [0 .. n-1] --.
    producer 1 -> PartitionedDataSet [0 .. n-1] ---+--> consumer i: the i-th of each, in the order of the producers

Consumers of the same producers share what was made of the producers' outputs: a slice is an index until somebody reads it.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from smallpond_mpi.common import InvalidArgument, WrongReturnType
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.views import ViewTask

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet, PartitionedDataSet

Inputs = Sequence[Task] | Dependencies


class PartitionProducerTask(Task):
    """Base of tasks that cut their one input into `npartitions` datasets, along `dimension`."""

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        npartitions: int,
        dimension: str,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, partition_infos, output_name, output_path, cpu_limit or 1, memory_limit=memory_limit
        )
        if npartitions < 1:
            raise InvalidArgument(f"{self.key}: the number of partitions must be at least 1, not {npartitions}")
        self.npartitions = npartitions
        self.dimension = dimension

    def finalize(self) -> None:
        from smallpond_mpi.logical.dataset import PartitionedDataSet

        if not isinstance(self.dataset, PartitionedDataSet) or len(self.dataset) != self.npartitions:
            raise InvalidArgument(
                f"{self.key} should have made {self.npartitions} partitions and made {self.dataset!r}"
            )
        super().finalize()

    def _set_parts(self, parts: "Sequence[DataSet]") -> bool:
        from smallpond_mpi.logical.dataset import PartitionedDataSet

        self.dataset = PartitionedDataSet(list(parts))
        return True


class RepeatPartitionProducerTask(PartitionProducerTask):
    """The whole input, `npartitions` times."""

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        npartitions: int,
        dimension: str,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, partition_infos, npartitions, dimension, cpu_limit=cpu_limit, memory_limit=memory_limit
        )

    @property
    def exec_on_scheduler(self) -> bool:
        return True

    @property
    def runs_here(self) -> bool:
        return True

    @property
    def self_contained_output(self) -> bool:
        return False

    def run(self) -> bool:
        return self._set_parts([self.input_datasets[0]] * self.npartitions)


class UserDefinedPartitionProducerTask(PartitionProducerTask):
    """Partitions as `partition_func(runtime_ctx, dataset)` gives them: a list of `npartitions` datasets."""

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        npartitions: int,
        dimension: str,
        partition_func: "Callable[[RuntimeContext, DataSet], list[DataSet]]",
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, partition_infos, npartitions, dimension, cpu_limit=cpu_limit, memory_limit=memory_limit
        )
        self.partition_func = partition_func

    @property
    def self_contained_output(self) -> bool:
        return False

    def run(self) -> bool:
        from smallpond_mpi.logical.dataset import DataSet

        parts = self.partition_func(self.ctx, self.input_datasets[0])
        name = getattr(self.partition_func, "__qualname__", None) or repr(self.partition_func)
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, DataSet) for part in parts):
            raise WrongReturnType(f"{name} returned {parts!r} and should return a list of {self.npartitions} datasets")
        if len(parts) != self.npartitions:
            raise InvalidArgument(f"{name} returned {len(parts)} datasets for {self.npartitions} partitions")
        return self._set_parts(parts)


class EvenlyDistributedPartitionProducerTask(PartitionProducerTask):
    """Contiguous parts whose numbers of files, or of rows, differ by at most 1."""

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        npartitions: int,
        dimension: str,
        partition_by_rows: bool = False,
        random_shuffle: bool = False,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, partition_infos, npartitions, dimension, cpu_limit=cpu_limit, memory_limit=memory_limit
        )
        self.partition_by_rows = partition_by_rows
        self.random_shuffle = random_shuffle

    @property
    def exec_on_scheduler(self) -> bool:
        return True

    @property
    def runs_here(self) -> bool:
        """Paths are dealt out by rank 0; rows are counted by opening footers, which a child does."""
        return not self.partition_by_rows

    @property
    def self_contained_output(self) -> bool:
        return False

    def run(self) -> bool:
        dataset = self.input_datasets[0]
        with seeded(self.random_uint32() if self.random_shuffle else None):
            if not self.partition_by_rows:
                return self._set_parts(
                    with_schema(dataset, dataset.partition_by_files(self.npartitions, self.random_shuffle))
                )
            partition_by_rows = getattr(dataset, "partition_by_rows", None)
            if partition_by_rows is None:
                raise InvalidArgument(
                    f"only Parquet files can be partitioned by rows, not {dataset!r}: read them by a SqlEngineNode first (select * from {{0}})"
                )
            return self._set_parts(partition_by_rows(self.npartitions, self.random_shuffle))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """The global generator, which datasets shuffle with, at a given seed; afterwards it is what it was. None leaves it alone."""
    if seed is None:
        yield
        return
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def with_schema(dataset: "DataSet", parts: "Sequence[DataSet]") -> "Sequence[DataSet]":
    """Parts of a dataset, those without files replaced by one without rows, which has a schema."""
    from smallpond_mpi.logical.dataset import ParquetDataSet

    if not isinstance(dataset, ParquetDataSet) or not dataset.paths or all(part.paths for part in parts):
        return parts
    empty = next(part for part in parts if part.paths)._without_rows()  # type: ignore[attr-defined]
    return [part if part.paths else empty for part in parts]


class LoadPartitionedDataSetProducerTask(PartitionProducerTask):
    """Partitions that were written as such: each file tells its number, by its metadata, its path or a column."""

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        npartitions: int,
        dimension: str,
        data_partition_column: str,
        hive_partitioning: bool,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, partition_infos, npartitions, dimension, cpu_limit=cpu_limit, memory_limit=memory_limit
        )
        self.data_partition_column = data_partition_column
        self.hive_partitioning = hive_partitioning

    @property
    def self_contained_output(self) -> bool:
        return False

    def run(self) -> bool:
        from smallpond_mpi.logical.dataset import ParquetDataSet, PartitionedDataSet

        dataset = self.input_datasets[0]
        if isinstance(dataset, PartitionedDataSet):
            dataset = dataset.whole()
        if not isinstance(dataset, ParquetDataSet):
            raise InvalidArgument(f"only Parquet files can be loaded as partitions, not {dataset!r}")
        return self._set_parts(
            dataset.load_partitioned_datasets(self.npartitions, self.data_partition_column, self.hive_partitioning)
        )


class PartitionConsumerTask(ViewTask):
    """One partition of what all producers made: the one that its partition info of the producers' dimension names."""

    def __init__(self, ctx: RuntimeContext, input_deps: Inputs, partition_infos: Iterable[PartitionInfo]) -> None:
        super().__init__(ctx, input_deps, partition_infos)
        producer = self._deps.tasks[0]
        self.dimension = getattr(producer, "dimension", self.partition_infos[-1].dimension)

    def run(self) -> bool:
        self.dataset = merged_partitions(self.input_datasets)[self.get_partition_info(self.dimension).index]
        return True


_merged: "WeakKeyDictionary[DataSet, tuple[list[int], PartitionedDataSet]]" = WeakKeyDictionary()
"""By the first producer's output: of which outputs (by identity) the merger was made, and the merger."""


def merged_partitions(outputs: "Sequence[DataSet]") -> "PartitionedDataSet":
    """The outputs of all producers, partition by partition; made once for all their consumers."""
    from smallpond_mpi.logical.dataset import PartitionedDataSet

    made_of = [id(output) for output in outputs]
    known = _merged.get(outputs[0])
    if known is not None and known[0] == made_of:
        return known[1]
    merged: PartitionedDataSet = outputs[0] if len(outputs) == 1 else PartitionedDataSet.merge(list(outputs))  # type: ignore[arg-type, assignment]
    _merged[outputs[0]] = (made_of, merged)
    return merged
