"""What partition producers tell of what they wrote, and where the rows of a partition are over all of them.

PartitionWriter.close() -> PackedOutput   what goes to rank 0 (partition_writer.py): paths and a few arrays
PartitionSlices(outputs).ranges(p)        the row ranges of partition p over all producers
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.io.parquet import PackedRanges, RowRange, moved_path, pack_paths, pack_ranges, unpack_paths

Int64s = np.ndarray[Any, np.dtype[np.int64]]
Int32s = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class PackedFile:
    """One file: rows and sizes, where in its segment its rows and row groups begin, and a digest that files of the same columns share."""

    path: str
    num_rows: int
    num_bytes: int
    file_bytes: int
    first_row: int
    first_group: int
    schema_digest: int


@dataclass(slots=True)
class Segment:
    """What one append wrote. 24 bytes a partition: rows and row groups as running totals, uncompressed bytes, and the file."""

    files: list[PackedFile]
    row_offsets: Int64s  # [npartitions + 1]
    group_offsets: Int32s  # [npartitions + 1]
    num_bytes: Int64s  # [npartitions]
    file_index: Int32s  # [npartitions]

    def __reduce__(self) -> tuple[Any, ...]:
        numbers = [
            (item.num_rows, item.num_bytes, item.file_bytes, item.first_row, item.first_group, item.schema_digest)
            for item in self.files
        ]
        arrays = (self.row_offsets, self.group_offsets, self.num_bytes, self.file_index)
        packed = tuple(np.ascontiguousarray(item).tobytes() for item in (np.array(numbers, np.int64), *arrays))
        return _unpack_segment, (len(self.files), *pack_paths([item.path for item in self.files]), *packed)


def _unpack_segment(
    count: int, prefix: str, rest: str, numbers: bytes, rows: bytes, groups: bytes, sizes: bytes, index: bytes
) -> Segment:
    paths = unpack_paths(prefix, rest, count)
    facts = np.frombuffer(numbers, np.int64).reshape(count, 6).tolist()
    return Segment(
        [PackedFile(path, *fact) for path, fact in zip(paths, facts, strict=True)],
        np.frombuffer(rows, np.int64),
        np.frombuffer(groups, np.int32),
        np.frombuffer(sizes, np.int64),
        np.frombuffer(index, np.int32),
    )


@dataclass(slots=True)
class PackedOutput:
    """All that one producer wrote."""

    npartitions: int
    segments: list[Segment]

    def moved(self, source_dir: str, target_dir: str) -> "PackedOutput":
        """The same output after its directory was renamed."""
        return PackedOutput(
            self.npartitions,
            [
                replace(
                    segment,
                    files=[replace(item, path=moved_path(item.path, source_dir, target_dir)) for item in segment.files],
                )
                for segment in self.segments
            ],
        )


class PartitionSlices:
    """Where the rows of each partition are, over all producers: the arrays of all outputs side by side, one row a partition.

    Made once a shuffle and shared by its consumers, each of which takes its row: no object exists for a slice. The outputs' own arrays become
    views of these, so that they are held once.
    """

    def __init__(self, outputs: Sequence[PackedOutput]) -> None:
        if not outputs:
            raise InvalidArgument("there is no output to take partitions of")
        self.npartitions = outputs[0].npartitions
        if any(output.npartitions != self.npartitions for output in outputs):
            found = sorted({output.npartitions for output in outputs})
            raise InvalidArgument(f"producers made different numbers of partitions: {found}")
        segments = [segment for output in outputs for segment in output.segments]
        self.files = [item for segment in segments for item in segment.files]
        bases = np.cumsum([0, *(len(segment.files) for segment in segments)])[:-1]
        self._file_base: Int64s = bases.astype(np.int64)
        # Side by side for a consumer: its numbers are neighbours in memory.
        self._row_offsets = np.stack([item.row_offsets for item in segments], axis=1) if segments else _none(1)
        self._group_offsets = np.stack([item.group_offsets for item in segments], axis=1) if segments else _none(1)
        self._num_bytes = np.stack([item.num_bytes for item in segments], axis=1) if segments else _none(0)
        self._file_index = np.stack([item.file_index for item in segments], axis=1) if segments else _none(0)
        for number, segment in enumerate(segments):
            segment.row_offsets = self._row_offsets[:, number]
            segment.group_offsets = self._group_offsets[:, number]
            segment.num_bytes = self._num_bytes[:, number]
            segment.file_index = self._file_index[:, number]

    def __len__(self) -> int:
        return self.npartitions

    @cached_property
    def is_of_one_schema(self) -> bool:
        """Whether all files have the same columns: then nobody needs to open them to find out."""
        return len({item.schema_digest for item in self.files}) <= 1

    def num_rows(self, partition: int) -> int:
        """How many rows a partition has."""
        self._check(partition)
        return int((self._row_offsets[partition + 1] - self._row_offsets[partition]).sum())

    def num_bytes(self, partition: int) -> int:
        """How many uncompressed bytes a partition has."""
        self._check(partition)
        return int(self._num_bytes[partition].sum())

    def ranges(self, partition: int) -> list[RowRange]:
        """The rows of a partition, by file. One without rows is no rows of the first file, which tells the schema."""
        self._check(partition)
        begins, ends = self._row_offsets[partition], self._row_offsets[partition + 1]
        filled = np.flatnonzero(ends > begins)
        if not len(filled):
            return [self._range(self.files[0], 0, 0, None)] if self.files else []
        files = (self._file_base + self._file_index[partition])[filled].tolist()
        first_groups = self._group_offsets[partition][filled].tolist()
        end_groups = self._group_offsets[partition + 1][filled].tolist()
        return [
            self._range(
                self.files[number],
                begin - self.files[number].first_row,
                end - self.files[number].first_row,
                (first - self.files[number].first_group, stop - first),
            )
            for number, begin, end, first, stop in zip(
                files, begins[filled].tolist(), ends[filled].tolist(), first_groups, end_groups, strict=True
            )
        ]

    def packed(self, partition: int) -> PackedRanges:
        """The ranges of a partition as `pack_ranges` packs them, made from the arrays alone: rank 0 sends thousands of them."""
        self._check(partition)
        begins, ends = self._row_offsets[partition], self._row_offsets[partition + 1]
        filled = np.flatnonzero(ends > begins)
        if not len(filled):
            return pack_ranges(self.ranges(partition))
        prefix, names, facts = self._packed_files
        files = (self._file_base + self._file_index[partition])[filled]
        numbers = np.empty((len(filled), 7), np.int64)
        numbers[:, 0], numbers[:, 1], numbers[:, 4] = facts[files, 0], facts[files, 1], facts[files, 2]
        numbers[:, 2] = begins[filled] - facts[files, 3]
        numbers[:, 3] = ends[filled] - facts[files, 3]
        numbers[:, 5] = self._group_offsets[partition][filled] - facts[files, 4]
        numbers[:, 6] = (self._group_offsets[partition + 1] - self._group_offsets[partition])[filled]
        rest = "\0".join([names[number] for number in files.tolist()])
        return len(filled), prefix, rest, numbers.tobytes()

    @cached_property
    def _packed_files(self) -> tuple[str, list[str], Int64s]:
        """Common start of all paths, the rest of each, and (bytes, rows, bytes on disk, first row, first row group) of each file."""
        prefix, rest = pack_paths([item.path for item in self.files])
        facts = [
            (item.num_bytes, item.num_rows, item.file_bytes, item.first_row, item.first_group) for item in self.files
        ]
        return prefix, rest.split("\0"), np.array(facts, np.int64)

    @staticmethod
    def _range(file: PackedFile, begin: int, end: int, groups: tuple[int, int] | None) -> RowRange:
        return RowRange(file.path, file.num_bytes, file.num_rows, begin, end, file.file_bytes, groups)

    def _check(self, partition: int) -> None:
        if not 0 <= partition < self.npartitions:
            raise IndexError(f"partition {partition} is out of range 0-{self.npartitions - 1}")


def _none(more: int) -> Any:
    return np.zeros((more, 0), np.int64)
