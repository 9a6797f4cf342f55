"""Tasks that only rearrange what their inputs are known to be: merge, split, project. No data is moved."""

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from smallpond_mpi.common import GENERATED_COLUMNS, InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.partition_info import PartitionInfo

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet


class ViewTask(Task):
    """A task of rank 0 itself: it touches no file and no user code, and its output refers to its inputs' files."""

    @property
    def exec_on_scheduler(self) -> bool:
        return True

    @property
    def runs_here(self) -> bool:
        return True

    @property
    def self_contained_output(self) -> bool:
        return False


class MergeDataSetsTask(ViewTask):
    """All inputs as one dataset, in order."""

    def run(self) -> bool:
        from smallpond_mpi.logical.dataset import DataSet

        self.dataset = DataSet.merge(list(self.input_datasets))
        return True


class SplitDataSetTask(ViewTask):
    """Part i of n of its input, i and n being those of its partition: whole files if there are enough, otherwise rows."""

    def __init__(
        self, ctx: RuntimeContext, input_deps: "Sequence[Task] | Dependencies", partition_infos: Iterable[PartitionInfo]
    ) -> None:
        super().__init__(ctx, input_deps, partition_infos)

    @property
    def split(self) -> PartitionInfo:
        """Which part: of the top-level dimension if that has parts, otherwise of the innermost one."""
        toplevel = self.get_partition_info(PartitionInfo.toplevel_dimension)
        inner = [info for info in self.partition_infos if not info.is_toplevel and info.npartitions > 1]
        return inner[-1] if inner and toplevel.npartitions == 1 else toplevel

    def run(self) -> bool:
        self.dataset = part_of(self.input_datasets[0], self.split.index, self.split.npartitions)
        return True


_parts: "WeakKeyDictionary[DataSet, dict[int, list[DataSet]]]" = WeakKeyDictionary()
"""Siblings cut the same dataset: one cut serves them all, where n cuts of a million files each would not end."""


def part_of(dataset: "DataSet", index: int, npartitions: int) -> "DataSet":
    """The `index`-th of `npartitions` parts: by files, or by rows where there are fewer files than parts."""
    if npartitions == 1:
        return dataset
    cuts = _parts.setdefault(dataset, {})
    if npartitions not in cuts:
        cuts[npartitions] = _cut(dataset, npartitions)
    return cuts[npartitions][index]


def _cut(dataset: "DataSet", npartitions: int) -> "list[DataSet]":
    partition_by_rows = getattr(dataset, "partition_by_rows", None)
    if partition_by_rows is not None and 0 < dataset.num_files < npartitions:
        parts: list[DataSet] = partition_by_rows(npartitions)
        return parts
    return dataset.partition_by_files(npartitions)


class ProjectionTask(ViewTask):
    """Its input with only some columns, with generated ones, or with files' columns united by name. None leaves a setting as it is."""

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: "Sequence[Task] | Dependencies",
        partition_infos: Iterable[PartitionInfo],
        columns: list[str] | None = None,
        generated_columns: list[str] | None = None,
        union_by_name: bool | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, partition_infos)
        for name in generated_columns or ():
            if name not in GENERATED_COLUMNS:
                raise InvalidArgument(f"{name!r} can't be generated, only {', '.join(GENERATED_COLUMNS)}")
        self.columns = columns
        self.generated_columns = generated_columns
        self.union_by_name = union_by_name

    def run(self) -> bool:
        self.dataset = projected(self.input_datasets[0], self.columns, self.generated_columns, self.union_by_name)
        return True


def projected(
    dataset: "DataSet", columns: list[str] | None, generated_columns: list[str] | None, union_by_name: bool | None
) -> "DataSet":
    """A copy of a dataset with other settings; None leaves one as it is."""
    from smallpond_mpi.logical.dataset import ParquetDataSet

    view = copy.copy(dataset)
    if columns is not None:
        view.columns = list(columns)
    if union_by_name is not None:
        view._union_by_name = union_by_name
    if generated_columns is not None:
        if not isinstance(view, ParquetDataSet):
            raise InvalidArgument(
                f"{', '.join(generated_columns)} can only be generated for Parquet files, not {dataset!r}"
            )
        view.generated_columns = list(generated_columns)
    return view
