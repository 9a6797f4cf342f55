"""What a partition producer writes: the seam between those who split rows and those who read a partition.

    writer.append(table, counts)   rows ordered by partition, counts[p] of them in partition p; any number of times
    writer.close() -> PackedOutput what to send to rank 0: paths and a few arrays
    PartitionSlices(outputs).ranges(p)   the row ranges of partition p over all producers

Two writers: PackedWriter puts the partitions of a producer into one Parquet file, as consecutive row groups that end where a partition
ends; PartitionFileWriter writes a file a partition, where users get to see the files. Files = producers, not producers x partitions: metadata
servers are what breaks first on a parallel file system. At most 64 non-empty partitions share a file, because each reader of one partition
parses the footer of all.
"""

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smallpond_mpi.common import (
    DATA_PARTITION_COLUMN_NAME,
    DEFAULT_ROW_GROUP_SIZE,
    PARQUET_METADATA_KEY_PREFIX,
    CorruptInput,
    InvalidArgument,
)
from smallpond_mpi.io.arrow import CODECS_WITH_LEVELS
from smallpond_mpi.io.parquet import PackedRanges, RowRange, moved_path, pack_paths, pack_ranges, unpack_paths

INDEX_KEY = "__packed__"
INDEX_VERSION = 1
ARROW_SCHEMA = "ARROW:schema"
"""Where Arrow looks in a Parquet file for the types that its columns had: a serialized schema, in base64."""
MAX_PARTITIONS_A_FILE = 64
"""A reader of one partition parses the footers of all: with 256 partitions of three columns opening a file took 0.56 ms, with 64 it takes 0.17,
and there are still 64 times as many files opened as made."""

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


class PartitionWriter(Protocol):
    """Writes rows that are ordered by partition."""

    def append(self, table: pa.Table, counts: Sequence[int]) -> None:
        """Add rows, `counts[p]` of them in partition p."""
        ...

    def close(self) -> PackedOutput:
        """Finish, and tell what is where."""
        ...


class PartitionReader(Protocol):
    """Finds the rows of a partition."""

    def ranges(self, partition: int) -> list[RowRange]:
        """The rows of a partition, by file."""
        ...

    def num_rows(self, partition: int) -> int:
        """How many rows a partition has."""
        ...

    def num_bytes(self, partition: int) -> int:
        """How many uncompressed bytes a partition has."""
        ...


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How partitions are written. `encodings` are of columns without a dictionary; `kv_metadata` goes into every file (keys with their prefix).

    `schema` is what readers are to take the columns for, if the tables that are written hold them otherwise (numbers into dictionaries).
    """

    compression: str = "LZ4"
    compression_level: int | None = None
    use_dictionary: bool | list[str] = False
    row_group_size: int = DEFAULT_ROW_GROUP_SIZE
    kv_metadata: Mapping[str, str] = field(default_factory=dict)
    encodings: Mapping[str, str] = field(default_factory=dict)
    schema: pa.Schema | None = None


class PackedWriter:
    """One Parquet file an append (more only beyond MAX_PARTITIONS_A_FILE partitions with rows); a partition is a run of row groups in it.

    `dimension` names the partitioning in the file's own index.
    """

    def __init__(
        self,
        output_dir: str,
        filename: str,
        npartitions: int,
        dimension: str = DATA_PARTITION_COLUMN_NAME,
        options: WriteOptions | None = None,
    ) -> None:
        self._prefix = os.path.join(output_dir, filename)
        self._npartitions = npartitions
        self._dimension = dimension
        self._options = options or WriteOptions()
        self._segments: list[Segment] = []

    def append(self, table: pa.Table, counts: Sequence[int]) -> None:
        """Add rows, `counts[p]` of them in partition p."""
        rows = checked_counts(table, counts, self._npartitions)
        self._segments.append(self._write_segment(table, rows))

    def close(self) -> PackedOutput:
        """Finish, and tell what is where."""
        return PackedOutput(self._npartitions, self._segments)

    def _write_segment(self, table: pa.Table, rows: Int64s) -> Segment:
        maker = SegmentMaker(rows)
        for number, (first, stop) in enumerate(split_files(rows, MAX_PARTITIONS_A_FILE)):
            path = f"{self._prefix}-{len(self._segments)}-{number}.parquet"
            maker.write_file(path, table, first, stop, self._options, self._index)
        return maker.segment()

    def _index(self, partitions: Sequence[int], rows: Sequence[int], groups: Sequence[int]) -> dict[str, str]:
        index = PackedIndex(self._dimension, self._npartitions, tuple(partitions), tuple(rows), tuple(groups))
        return {PARQUET_METADATA_KEY_PREFIX + INDEX_KEY: index.to_json()}


class PartitionFileWriter:
    """One Parquet file a partition that has rows (and append), `{filename}-{partition}.parquet`, or under `{dimension}={partition}/`.

    A producer without any rows writes one empty file, which tells the schema.
    """

    def __init__(
        self,
        output_dir: str,
        filename: str,
        npartitions: int,
        dimension: str = DATA_PARTITION_COLUMN_NAME,
        options: WriteOptions | None = None,
        hive_partitioning: bool = False,
    ) -> None:
        self._output_dir = output_dir
        self._filename = filename
        self._npartitions = npartitions
        self._dimension = dimension
        self._options = options or WriteOptions()
        self._hive = hive_partitioning
        self._segments: list[Segment] = []

    def append(self, table: pa.Table, counts: Sequence[int]) -> None:
        """Add rows, `counts[p]` of them in partition p."""
        rows = checked_counts(table, counts, self._npartitions)
        maker = SegmentMaker(rows)
        for partition in np.flatnonzero(rows).tolist() or [0]:
            path = self._path(partition)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            maker.write_file(path, table, partition, partition + 1, self._options, self._index)
        self._segments.append(maker.segment())

    def close(self) -> PackedOutput:
        """Finish, and tell what is where."""
        return PackedOutput(self._npartitions, self._segments)

    def _path(self, partition: int) -> str:
        batch = f"-{len(self._segments)}" if self._segments else ""
        if self._hive:
            directory = f"{quote(self._dimension, safe='')}={partition}"
            return os.path.join(self._output_dir, directory, f"{self._filename}{batch}.parquet")
        return os.path.join(self._output_dir, f"{self._filename}-{partition}{batch}.parquet")

    def _index(self, partitions: Sequence[int], rows: Sequence[int], groups: Sequence[int]) -> dict[str, str]:
        key = PARQUET_METADATA_KEY_PREFIX + self._dimension
        return {key: str(partitions[0])} if partitions else {}


def checked_counts(table: pa.Table, counts: Sequence[int], npartitions: int) -> Int64s:
    """The counts as an array, if they fit the table and the partitions."""
    rows: Int64s = np.asarray(counts, np.int64)
    if len(rows) != npartitions or int(rows.sum()) != table.num_rows or (rows < 0).any():
        raise InvalidArgument(
            f"{len(rows)} counts of {int(rows.sum())} rows do not fit {npartitions} partitions of {table.num_rows} rows"
        )
    return rows


def split_files(rows: Int64s, max_partitions: int) -> list[tuple[int, int]]:
    """Ranges of partitions (first, stop), one a file: at most `max_partitions` that have rows in each."""
    filled = np.flatnonzero(rows)
    if not len(filled):
        return [(0, len(rows))]
    firsts = [0, *filled[max_partitions::max_partitions].tolist()]
    return list(zip(firsts, [*firsts[1:], len(rows)], strict=True))


IndexOf = Callable[[Sequence[int], Sequence[int], Sequence[int]], dict[str, str]]


class SegmentMaker:
    """Writes the files of one append and notes what is where."""

    def __init__(self, rows: Int64s) -> None:
        self._rows = rows
        self._row_offsets: Int64s = np.concatenate(([0], np.cumsum(rows))).astype(np.int64)
        self._num_groups: Int32s = np.zeros(len(rows), np.int32)
        self._num_bytes: Int64s = np.zeros(len(rows), np.int64)
        self._file_index: Int32s = np.zeros(len(rows), np.int32)
        self._files: list[PackedFile] = []
        self._groups_written = 0

    def write_file(
        self, path: str, table: pa.Table, first: int, stop: int, options: WriteOptions, index_of: IndexOf
    ) -> None:
        """Write partitions first..stop-1 as one file whose row groups end where partitions end."""
        filled = (first + np.flatnonzero(self._rows[first:stop])).tolist()
        rows = self._rows[filled].tolist()
        groups = [-(-count // options.row_group_size) for count in rows]
        written: list[pq.FileMetaData] = []
        with pq.ParquetWriter(path, table.schema, metadata_collector=written, **writer_arguments(options)) as writer:
            for partition, count, parts in zip(filled, rows, groups, strict=True):
                piece = table.slice(int(self._row_offsets[partition]), count)
                writer.write_table(piece, row_group_size=-(-count // parts))
            # a hive directory holds one partition, also one without rows
            noted = filled or ([first] if stop - first == 1 else [])
            writer.add_key_value_metadata({**options.kv_metadata, **index_of(noted, rows, groups)})
            if options.schema is not None:
                writer.add_key_value_metadata({ARROW_SCHEMA: b64encode(options.schema.serialize()).decode()})
        self._note(path, options.schema or table.schema, written[0], first, stop, filled, groups)

    def _note(
        self,
        path: str,
        schema: pa.Schema,
        metadata: pq.FileMetaData,
        first: int,
        stop: int,
        filled: list[int],
        groups: list[int],
    ) -> None:
        self._num_groups[filled] = groups
        self._file_index[first:stop] = len(self._files)
        sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        starts = np.cumsum([0, *groups])[:-1]
        if filled:
            self._num_bytes[filled] = np.add.reduceat(np.array(sizes, np.int64), starts)
        self._files.append(
            PackedFile(
                path,
                metadata.num_rows,
                sum(sizes),
                os.path.getsize(path),
                int(self._row_offsets[first]),
                self._groups_written,
                digest_of(schema),
            )
        )
        self._groups_written += sum(groups)

    def segment(self) -> Segment:
        """What was written."""
        group_offsets = np.concatenate(([0], np.cumsum(self._num_groups))).astype(np.int32)
        return Segment(self._files, self._row_offsets, group_offsets, self._num_bytes, self._file_index)


def digest_of(schema: pa.Schema) -> int:
    """63 bits that tell schemas apart: names, types, and what Arrow notes of columns."""
    digest = hashlib.blake2b(schema.remove_metadata().serialize(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def writer_arguments(options: WriteOptions) -> dict[str, Any]:
    """Options as pyarrow's ParquetWriter takes them."""
    arguments: dict[str, Any] = {
        "compression": options.compression,
        "use_dictionary": options.use_dictionary,
        # Half the bytes of most decimals, and a third less time to read them.
        "store_decimal_as_integer": True,
        "write_statistics": False,
        "store_schema": options.schema is None,
    }
    if options.encodings:
        arguments["column_encoding"] = dict(options.encodings)
    if options.compression_level is not None and options.compression.upper() in CODECS_WITH_LEVELS:
        arguments["compression_level"] = options.compression_level
    return arguments


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


@dataclass(frozen=True, slots=True)
class PackedIndex:
    """What a packed file says of itself: the partitions that have rows in it, their rows and their row groups, in order."""

    dimension: str
    npartitions: int
    partitions: tuple[int, ...]
    rows: tuple[int, ...]
    groups: tuple[int, ...]

    def to_json(self) -> str:
        """As it stands in the file's key-value metadata."""
        return json.dumps(
            {
                "version": INDEX_VERSION,
                "dimension": self.dimension,
                "npartitions": self.npartitions,
                "partitions": self.partitions,
                "rows": self.rows,
                "groups": self.groups,
            },
            separators=(",", ":"),
        )

    def cut(self, item: RowRange) -> Iterator[tuple[int, RowRange]]:
        """The rows of a range of this file by partition."""
        if sum(self.rows) != item.file_num_rows:
            raise CorruptInput(
                f"the partition index of {item.path!r} tells {sum(self.rows)} rows, not {item.file_num_rows}"
            )
        row, group = 0, 0
        for partition, rows, groups in zip(self.partitions, self.rows, self.groups, strict=True):
            begin, end = max(row, item.begin), min(row + rows, item.end)
            if begin < end:
                hint = (group, groups) if end - begin == rows else None
                yield partition, replace(item, begin=begin, end=end, row_groups=hint)
            row, group = row + rows, group + groups


def index_of_packed(metadata: Mapping[str, str], dimension: str) -> PackedIndex | None:
    """The index in a file's own metadata, if the file is packed along this dimension."""
    text = metadata.get(INDEX_KEY)
    if text is None:
        return None
    index = json.loads(text)
    if index["version"] != INDEX_VERSION:
        raise CorruptInput(f"a packed file of version {index['version']}: this is {INDEX_VERSION}")
    if index["dimension"] != dimension:
        return None
    return PackedIndex(
        dimension, index["npartitions"], tuple(index["partitions"]), tuple(index["rows"]), tuple(index["groups"])
    )
