"""Datasets that are lists of datasets, one a partition: given, or found in what producers have packed."""

from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from smallpond_mpi.common import DEFAULT_BATCH_SIZE, InvalidArgument
from smallpond_mpi.io.packed import PackedOutput, PartitionSlices
from smallpond_mpi.io.parquet import PackedRanges, RowRange, pack_ranges, unpack_ranges
from smallpond_mpi.logical.dataset.base import DataSet, merge_datasets, merge_udfs
from smallpond_mpi.logical.dataset.parquet import ParquetDataSet


class PartitionedDataSet(DataSet):
    """One dataset a partition. Read as a whole it is all partitions in order."""

    is_of_files = False

    def __init__(self, datasets: list[DataSet]) -> None:
        super().__init__([], None)
        self.datasets: Sequence[DataSet] = datasets

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} partitions)"

    def __len__(self) -> int:
        return len(self.datasets)

    def __getitem__(self, partition: int) -> DataSet:
        return self.datasets[partition]

    def __iter__(self) -> Iterator[DataSet]:
        return (self[partition] for partition in range(len(self)))

    @property
    def udfs(self) -> list[Any]:
        """Functions that reading any partition needs."""
        return merge_udfs(self)

    @property
    def resolved_paths(self) -> list[str]:
        """The files of all partitions, in order."""
        return [path for dataset in self for path in dataset.resolved_paths]

    @property
    def absolute_paths(self) -> list[str]:
        """The paths and patterns of all partitions."""
        return [path for dataset in self for path in dataset.absolute_paths]

    @property
    def num_rows(self) -> int:
        return sum(dataset.num_rows for dataset in self)

    @property
    def empty(self) -> bool:
        return all(dataset.empty for dataset in self)

    def moved(self, source_dir: str, target_dir: str) -> "PartitionedDataSet":
        """The same partitions after the directory of their files was renamed."""
        return PartitionedDataSet([dataset.moved(source_dir, target_dir) for dataset in self])

    @property
    def recorded_file_sizes(self) -> dict[str, int]:
        """Size on disk of each file whose writer told it."""
        sizes: dict[str, int] = {}
        for dataset in self:
            sizes.update(dataset.recorded_file_sizes)
        return sizes

    def whole(self) -> DataSet:
        """All partitions, in order, as one dataset of their kind."""
        return DataSet.merge(list(self))

    def sql_query_fragment(
        self, filesystem: AbstractFileSystem | None = None, conn: duckdb.DuckDBPyConnection | None = None
    ) -> str:
        """A parenthesised query of all partitions."""
        return self.whole().sql_query_fragment(filesystem, conn)

    def to_arrow_table(
        self,
        max_workers: int = 16,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.Table:
        """The rows of all partitions."""
        return self.whole().to_arrow_table(max_workers, filesystem, conn)

    def to_batch_reader(
        self,
        batch_size: int = DEFAULT_BATCH_SIZE,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.RecordBatchReader:
        """The rows of all partitions, as batches."""
        return self.whole().to_batch_reader(batch_size, filesystem, conn)

    @staticmethod
    def merge(datasets: "list[PartitionedDataSet]") -> "PartitionedDataSet":  # type: ignore[override]
        """Partition by partition: the i-th is the merger of all i-th ones."""
        return merge_datasets(datasets, PartitionedDataSet)

    def _merge_with(self, others: "Sequence[PartitionedDataSet]") -> "PartitionedDataSet":
        every = [self, *others]
        if any(len(dataset) != len(self) for dataset in every):
            raise InvalidArgument(f"can't merge {[len(dataset) for dataset in every]} partitions with each other")
        if all(isinstance(dataset, PackedPartitions) for dataset in every):
            return PackedPartitions([output for dataset in every for output in dataset.outputs])  # type: ignore[attr-defined]
        return PartitionedDataSet([DataSet.merge(list(same)) for same in zip(*every, strict=True)])


class PackedPartitions(PartitionedDataSet):
    """The partitions that producers have packed. A partition becomes an object only when it is asked for.

    Merge those of all producers once and take every partition from the merger: the arrays of the outputs are shared by all slices.
    """

    def __init__(self, outputs: Sequence[PackedOutput]) -> None:
        super().__init__([])
        self.outputs = list(outputs)
        self._slices: PartitionSlices | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"outputs": self.outputs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        PackedPartitions.__init__(self, state["outputs"])

    @property
    def slices(self) -> PartitionSlices:
        """Where the rows of each partition are."""
        if self._slices is None:
            self._slices = PartitionSlices(self.outputs)
        return self._slices

    def __len__(self) -> int:
        return self.outputs[0].npartitions

    def __getitem__(self, partition: int) -> ParquetDataSet:
        return slice_of(self.slices, partition)

    def __iter__(self) -> Iterator[ParquetDataSet]:
        return (self[partition] for partition in range(len(self)))

    @property
    def num_rows(self) -> int:
        return sum(self.slices.num_rows(partition) for partition in range(len(self)))

    @property
    def empty(self) -> bool:
        return not any(item.num_rows for item in self.slices.files)

    @property
    def resolved_paths(self) -> list[str]:
        """Every file once."""
        return [item.path for item in self.slices.files]

    @property
    def recorded_file_sizes(self) -> dict[str, int]:
        """Size on disk of each file."""
        return {item.path: item.file_bytes for item in self.slices.files}

    def moved(self, source_dir: str, target_dir: str) -> "PackedPartitions":
        """The same partitions after the directory of their files was renamed."""
        return PackedPartitions([output.moved(source_dir, target_dir) for output in self.outputs])

    def whole(self) -> ParquetDataSet:
        """All rows, in the order of the partitions."""
        # by partition, not by file: the order of a partitioned dataset
        return ParquetDataSet.of_ranges(
            [item for partition in range(len(self)) for item in self.slices.ranges(partition) if item.num_rows]
            or self.slices.ranges(0)
        )


def slice_of(outputs: Sequence[PackedOutput] | PartitionSlices, partition: int) -> "PackedSlice":
    """Partition `partition` of what producers wrote. Pass the same PartitionSlices for all partitions: making one reads all outputs."""
    slices = outputs if isinstance(outputs, PartitionSlices) else PartitionSlices(outputs)
    return PackedSlice(slices, partition)


class PackedSlice(ParquetDataSet):
    """One partition of a shuffle: a ParquetDataSet whose row ranges are made when somebody asks for them.

    On rank 0 that is nobody: rows and bytes come from the shared arrays, and what is pickled is this partition's own paths and offsets, which
    open as an ordinary ParquetDataSet.
    """

    # Set by the first who asks for one of them.
    _LATE = frozenset(("paths", "_resolved", "_resolved_from", "_known", "_known_files"))

    def __init__(self, slices: PartitionSlices, partition: int) -> None:
        super().__init__([], None)
        self._slices = slices
        self._partition = partition
        slices.num_rows(partition)
        for name in self._LATE:
            del self.__dict__[name]

    def __getattr__(self, name: str) -> Any:
        if name not in self._LATE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._take_ranges(self._slices.ranges(self._partition))
        return self.__dict__[name]

    def __reduce__(self) -> tuple[Any, ...]:
        packed = pack_ranges(self._ranges_as_known()) if self._is_open else self._slices.packed(self._partition)
        return _open_slice, (packed, *self._settings())

    def __repr__(self) -> str:
        return f"PackedSlice({self._partition}, {self.num_rows} rows)"

    @property
    def _is_open(self) -> bool:
        return "_known" in self.__dict__

    @property
    def num_rows(self) -> int:
        return super().num_rows if self._is_open else self._slices.num_rows(self._partition)

    @property
    def empty(self) -> bool:
        return self.num_rows == 0

    @property
    def estimated_data_size(self) -> int:
        """Uncompressed bytes of the rows."""
        return super().estimated_data_size if self._is_open else self._slices.num_bytes(self._partition)

    def _with_ranges(self, ranges: list[RowRange]) -> ParquetDataSet:  # type: ignore[override]
        return self._as_plain(ranges)

    def _as_plain(self, ranges: list[RowRange]) -> ParquetDataSet:
        return _open_slice(pack_ranges(ranges), *self._settings())

    def _settings(self) -> "tuple[bool, list[str] | None, list[str] | None, bool, list[Any]]":
        alike = self._slices.is_of_one_schema
        return alike, self.columns, self.generated_columns, self._union_by_name, self._udfs


def _open_slice(
    packed: PackedRanges,
    is_of_one_schema: bool,
    columns: list[str] | None,
    generated_columns: list[str] | None,
    union_by_name: bool,
    udfs: list[Any],
) -> ParquetDataSet:
    dataset = ParquetDataSet.of_ranges(unpack_ranges(packed))
    dataset.columns, dataset.generated_columns = columns, generated_columns
    dataset._union_by_name, dataset._udfs = union_by_name, udfs
    if is_of_one_schema:
        dataset.files_are_alike()
    return dataset
