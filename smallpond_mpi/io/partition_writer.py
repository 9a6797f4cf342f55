"""Writes what a partition producer has cut: the seam between those who split rows and those who read a partition.

    writer.append(table, counts)   rows ordered by partition, counts[p] of them in partition p; any number of times
    writer.close() -> PackedOutput what to send to rank 0 (packed.py)

Two writers: PackedWriter puts the partitions of a producer into one Parquet file, as consecutive row groups that end where a partition
ends; PartitionFileWriter writes a file a partition, where users get to see the files. Files = producers, not producers x partitions: metadata
servers are what breaks first on a parallel file system. At most 64 non-empty partitions share a file, because each reader of one partition
parses the footer of all.
"""

import hashlib
import os
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smallpond_mpi.common import (
    DATA_PARTITION_COLUMN_NAME,
    DEFAULT_ROW_GROUP_SIZE,
    PARQUET_METADATA_KEY_PREFIX,
    InvalidArgument,
)
from smallpond_mpi.io.arrow import CODECS_WITH_LEVELS
from smallpond_mpi.io.packed import Int32s, Int64s, PackedFile, PackedOutput, Segment
from smallpond_mpi.io.packed_index import INDEX_KEY, PackedIndex

ARROW_SCHEMA = "ARROW:schema"
"""Where Arrow looks in a Parquet file for the types that its columns had: a serialized schema, in base64."""
MAX_PARTITIONS_A_FILE = 64
"""A reader of one partition parses the footers of all: with 256 partitions of three columns opening a file took 0.56 ms, with 64 it takes 0.17,
and there are still 64 times as many files opened as made."""


class PartitionWriter(Protocol):
    """Writes rows that are ordered by partition."""

    def append(self, table: pa.Table, counts: Sequence[int]) -> None:
        """Add rows, `counts[p]` of them in partition p."""
        ...

    def close(self) -> PackedOutput:
        """Finish, and tell what is where."""
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
