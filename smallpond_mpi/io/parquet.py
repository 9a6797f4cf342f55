"""What is known about Parquet files without reading their rows: facts told by writers, footers, row ranges, row groups.

A RowRange is a run of rows of one file; a dataset that was cut is a list of them. Facts travel with datasets, so that a footer is opened
once, where the file is written, and not again by everybody who asks how many rows there are.
"""

import errno
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from smallpond_mpi.common import (
    PARQUET_METADATA_KEY_PREFIX,
    ColumnNotFound,
    CorruptInput,
    OutOfMemory,
    SmallpondError,
)
from smallpond_mpi.io.filesystem import retry_missing
from smallpond_mpi.io.resolve import not_there

A = TypeVar("A")
B = TypeVar("B")

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the writer of a Parquet file knows about it. Bytes: of the columns before compression, and of the file on disk."""

    path: str
    num_rows: int
    num_bytes: int
    file_bytes: int = UNKNOWN


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows begin..end-1 of a Parquet file of `file_num_rows` rows and `data_size` uncompressed bytes.

    `file_bytes` (size on disk) is known if the file's writer told about it. `row_groups` (first, count) is a hint: the row groups that
    hold exactly these rows.
    """

    path: str
    data_size: int
    file_num_rows: int
    begin: int
    end: int
    file_bytes: int = field(default=UNKNOWN, compare=False)
    row_groups: tuple[int, int] | None = field(default=None, compare=False)

    @property
    def num_rows(self) -> int:
        return self.end - self.begin

    @property
    def estimated_data_size(self) -> int:
        """Uncompressed bytes of these rows, as if all rows of the file were of one size."""
        return self.data_size * self.num_rows // self.file_num_rows if self.file_num_rows else 0

    @property
    def is_known(self) -> bool:
        """Whether anything is known of the file but its path."""
        return self.file_num_rows != UNKNOWN

    @property
    def is_whole_file(self) -> bool:
        return self.begin == 0 and self.end == self.file_num_rows

    @property
    def is_promised(self) -> bool:
        """Whether the file's writer told of it: then it exists, though this node may not see it at once."""
        return self.file_bytes != UNKNOWN

    def take(self, num_rows: int) -> "RowRange":
        """The first `num_rows` rows of this range, or all if it has fewer."""
        return self.cut(0, num_rows)

    def cut(self, begin: int, end: int) -> "RowRange":
        """Rows begin..end-1, counted within this range and held to it."""
        begin, end = max(0, min(begin, self.num_rows)), max(0, min(end, self.num_rows))
        if (begin, end) == (0, self.num_rows):
            return self
        return replace(self, begin=self.begin + begin, end=self.begin + max(begin, end), row_groups=None)

    @staticmethod
    def partition_by_rows(row_ranges: "list[RowRange]", npartition: int) -> "list[list[RowRange]]":
        """Contiguous runs of rows whose row counts differ by at most 1. Ranges without rows are left out."""
        total = sum(item.num_rows for item in row_ranges)
        bounds = [n * (total // npartition) + min(n, total % npartition) for n in range(npartition + 1)]
        return cut_at(row_ranges, bounds)

    @staticmethod
    def of_file(facts: FileFacts) -> "RowRange":
        """All rows of a file."""
        return RowRange(facts.path, facts.num_bytes, facts.num_rows, 0, facts.num_rows, facts.file_bytes)


def cut_at(row_ranges: Iterable[RowRange], bounds: Sequence[int]) -> list[list[RowRange]]:
    """The rows between each two neighbours of `bounds` (ascending, counted over all ranges together)."""
    parts: list[list[RowRange]] = [[] for _ in range(len(bounds) - 1)]
    part, passed = 0, 0
    for item in row_ranges:
        begin, end = passed, passed + item.num_rows
        passed = end
        while begin < end:
            while bounds[part + 1] <= begin:
                part += 1
            stop = min(end, bounds[part + 1])
            parts[part].append(item.cut(begin - (end - item.num_rows), stop - (end - item.num_rows)))
            begin = stop
    return parts


def unknown_range(path: str) -> RowRange:
    """Stands for all rows of a file of which nothing is known yet."""
    return RowRange(path, UNKNOWN, UNKNOWN, 0, UNKNOWN)


PackedRanges = tuple[int, str, str, bytes]


def pack_ranges(row_ranges: Sequence[RowRange]) -> PackedRanges:
    """Ranges as a few flat strings, for a message: the common start of all paths, the rest of each, and 7 numbers a range."""
    prefix, rest = pack_paths([item.path for item in row_ranges])
    numbers = array("q")
    for item in row_ranges:
        groups = item.row_groups or (UNKNOWN, UNKNOWN)
        numbers.extend((item.data_size, item.file_num_rows, item.begin, item.end, item.file_bytes, *groups))
    return len(row_ranges), prefix, rest, numbers.tobytes()


def unpack_ranges(packed: PackedRanges) -> list[RowRange]:
    """What `pack_ranges` packed."""
    count, prefix, rest, content = packed
    numbers = array("q")
    numbers.frombytes(content)
    ranges = []
    for path, start in zip(unpack_paths(prefix, rest, count), range(0, 7 * count, 7), strict=True):
        size, rows, begin, end, file_bytes, first, groups = numbers[start : start + 7]
        hint = None if first == UNKNOWN else (first, groups)
        ranges.append(RowRange(path, size, rows, begin, end, file_bytes, hint))
    return ranges


def moved_path(path: str, source_dir: str, target_dir: str) -> str:
    """A path after the directory it lies under was renamed."""
    source_dir = source_dir.rstrip("/") + "/"
    return os.path.join(target_dir, path[len(source_dir) :]) if path.startswith(source_dir) else path


def pack_paths(paths: Sequence[str]) -> tuple[str, str]:
    """The common start of all paths, and what follows it in each, joined by NUL (which no path can hold)."""
    prefix = os.path.commonprefix([min(paths), max(paths)]) if paths else ""  # noqa: RUF071 - characters are meant
    return prefix, "\0".join(path[len(prefix) :] for path in paths)


def unpack_paths(prefix: str, rest: str, count: int) -> list[str]:
    """What `pack_paths` packed."""
    return [prefix + path for path in rest.split("\0")] if count else []


def arrow_filesystem(filesystem: AbstractFileSystem | None) -> Any:
    """An fsspec file system as Arrow takes it; None is the local one."""
    return None if filesystem is None else PyFileSystem(FSSpecHandler(filesystem))


CORRUPT_ADVICE = "make or copy the file again, or leave it out"


def translate_arrow(error: Exception, path: str) -> SmallpondError:
    """What went wrong with a file, in words that name it. `error` came from Arrow or the operating system."""
    if isinstance(error, SmallpondError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return OutOfMemory(f"no memory is left to read {path!r}: {error}")
    if isinstance(error, FileNotFoundError):
        return not_there(path)
    if isinstance(error, IsADirectoryError):
        return CorruptInput(f"{path!r} is a directory, not a Parquet file")
    text = str(error).strip().splitlines()
    reason = "".join(filter(str.isprintable, text[0])).strip(" .:") if text else type(error).__name__
    return CorruptInput(f"can't read {path!r} as Parquet: {reason}; {CORRUPT_ADVICE}")


def open_parquet(
    path: str, filesystem: AbstractFileSystem | None = None, promised: bool = False, at_once: bool = True
) -> pq.ParquetFile:
    """A Parquet file with its footer read.

    Args:
        promised: its writer told of it, so that it is late at worst, not missing.
        at_once: what is asked for will be read into memory as a whole; False reads it a row group at a time.
    """

    def open_file() -> pq.ParquetFile:
        return pq.ParquetFile(path, filesystem=arrow_filesystem(filesystem), pre_buffer=at_once)

    try:
        return open_file() if filesystem is not None else retry_missing(open_file, path, promised)
    except (pa.ArrowException, OSError) as error:
        is_directory = filesystem is None and os.path.isdir(path)
        cause = IsADirectoryError(path) if is_directory else error
        raise translate_arrow(cause, path) from cause


FOOTER_TAIL_BYTES = 8  # its length and the magic


MAX_COLUMNS_LOOKED_AT = 256
"""Columns of row groups, of one file. Each look is a read somewhere else."""


def check_not_cut(file: pq.ParquetFile, path: str) -> None:
    """Raise CorruptInput if bytes of a local file were lost, as far as that is seen without reading it.

    Its footer tells of columns that would lie behind its own beginning, or there is nothing where one begins: a copy that was not finished, or a
    crash of the machine, leaves zeros, which no page's header begins with.
    """
    metadata = file.metadata
    data_end = os.path.getsize(path) - FOOTER_TAIL_BYTES - metadata.serialized_size
    begins: list[tuple[int, str, int]] = []
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            begin = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
            if begin + column.total_compressed_size > data_end:
                raise CorruptInput(
                    f"{path!r} is not whole: column {column.path_in_schema!r} of row group {group} should end at byte "
                    f"{begin + column.total_compressed_size}, but the data end at byte {data_end}; {CORRUPT_ADVICE}"
                )
            if column.num_values:
                begins.append((begin, column.path_in_schema, group))
    with open(path, "rb", buffering=0) as content:
        for begin, name, group in begins[:: 1 + len(begins) // MAX_COLUMNS_LOOKED_AT]:
            if os.pread(content.fileno(), 1, begin) == b"\0":
                raise CorruptInput(
                    f"{path!r} is not whole: there are zeros at byte {begin}, where column {name!r} of row group {group} should begin; {CORRUPT_ADVICE}"
                )


def whole_schema(item: RowRange) -> pa.Schema:
    """The schema of a local file. Of one that no writer of ours told of, its footer must fit its size."""
    with open_parquet(item.path, promised=item.is_promised) as file:
        if not item.is_promised:
            check_not_cut(file, item.path)
        return file.schema_arrow


@dataclass(frozen=True, slots=True)
class FileKind:
    """The first of the files of a dataset that have one schema: which it is, what to call it in an error, the schema's digest."""

    index: int
    name: str
    digest: int


@dataclass(frozen=True, slots=True)
class Footer:
    """What a footer says: facts of the file, its schema as Arrow reads it, and our own entries of the key-value metadata."""

    facts: FileFacts
    schema: pa.Schema
    kv_metadata: dict[str, str]


def read_footer(path: str, filesystem: AbstractFileSystem | None = None) -> Footer:
    """Open one file's footer."""
    with open_parquet(path, filesystem) as file:
        metadata = file.metadata
        num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        facts = FileFacts(path, metadata.num_rows, num_bytes)
        return Footer(facts, file.schema_arrow, own_metadata(metadata.metadata))


def map_in_threads(func: Callable[[A], B], items: Sequence[A], max_workers: int) -> list[B]:
    """The function of each item, in order, up to `max_workers` at a time; without a thread where one is enough."""
    if max_workers <= 1 or len(items) <= 1:
        return [func(item) for item in items]
    with ThreadPoolExecutor(min(max_workers, len(items))) as pool:
        return list(pool.map(func, items))


def read_footers(
    paths: Sequence[str], filesystem: AbstractFileSystem | None = None, max_workers: int = 16
) -> list[Footer]:
    """Open the footers of many files, some at a time; a path that is listed twice is opened once."""
    distinct = list(dict.fromkeys(paths))
    found = map_in_threads(lambda path: read_footer(path, filesystem), distinct, max_workers)
    by_path = dict(zip(distinct, found, strict=True))
    return [by_path[path] for path in paths]


def own_metadata(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    """The entries that this package wrote into a file's key-value metadata, keys without the prefix."""
    prefix = PARQUET_METADATA_KEY_PREFIX.encode()
    return {
        key[len(prefix) :].decode(): value.decode() for key, value in (metadata or {}).items() if key.startswith(prefix)
    }


def without_own_metadata(schema: pa.Schema) -> pa.Schema:
    """A schema as a user knows it: what was noted in a file of ours (partition, task, columns that happen to hold no NULL: DuckDB marks
    them) is true of that file, not of what is made from it."""
    prefix = PARQUET_METADATA_KEY_PREFIX.encode()
    kept = {key: value for key, value in (schema.metadata or {}).items() if not key.startswith(prefix)}
    if len(kept) == len(schema.metadata or {}):
        return schema
    return pa.schema([field.with_nullable(True) for field in schema], metadata=kept or None)


def check_columns(columns: Sequence[str] | None, schema: pa.Schema, where: str) -> None:
    """Raise ColumnNotFound for the first column that the schema doesn't have."""
    for name in columns or ():
        if name not in schema.names:
            raise ColumnNotFound(f"no column {name!r} in {where}; its columns: {', '.join(schema.names)}")


def row_groups_of(file: pq.ParquetFile, item: RowRange) -> tuple[list[int], int]:
    """The row groups that hold the rows of a range, and how many rows of the first come before the range."""
    if item.row_groups is not None:
        first, count = item.row_groups
        return list(range(first, first + count)), 0
    metadata = file.metadata
    if item.end > metadata.num_rows:
        raise CorruptInput(
            f"{item.path!r} has {metadata.num_rows} rows, not the {item.file_num_rows} it was known to have"
        )
    groups: list[int] = []
    start, skipped = 0, 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if rows and start < item.end and start + rows > item.begin:
            if not groups:
                skipped = max(0, item.begin - start)
            groups.append(group)
        start += rows
    return groups, skipped
