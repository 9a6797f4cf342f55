"""What all datasets share: which files they are, how they are cut into parts, and how they travel.

Listed paths are not looked at until rows, sizes or data are asked for. A dataset is pickled into every message that hands data on, so its state
is a few flat strings, never a handle.
"""

import copy
import logging
import os
import random
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from smallpond_mpi.common import DEFAULT_BATCH_SIZE, InvalidArgument, split_into_rows
from smallpond_mpi.io.arrow_types import cast_columns_to_large_string, convert_types_to_large_string
from smallpond_mpi.io.memory import duckdb_limits
from smallpond_mpi.io.parquet import map_in_threads, moved_path, pack_paths, unpack_paths
from smallpond_mpi.io.resolve import absolute, files_in, has_magic, is_url, resolve
from smallpond_mpi.logical.dataset.errors import translate

if TYPE_CHECKING:
    import pandas as pd

    from smallpond_mpi.io.parquet import FileKind

__all__ = ["DataSet", "FileSet", "has_magic"]

logger = logging.getLogger(__name__)

D = TypeVar("D", bound="DataSet")

NOT_PARTS = frozenset(
    {
        "paths",
        "root_dir",
        "_base_dir",
        "_resolved",
        "_resolved_from",
        "_known",
        "_known_files",
        "_is_promoted",
        "_column_files",
        "kinds",
    }
)
"""Attributes of datasets that hold the paths as they were given, or what was found out about the files."""


class DataSet:
    """A set of files, given as paths, patterns or directories, relative to `root_dir` ('' is the working directory, None leaves them as they are)."""

    kinds: "Sequence[FileKind] | None" = None
    """Of Parquet files that a sink has collected: one of each schema. None: not looked for."""

    def __init__(
        self,
        paths: str | list[str],
        root_dir: str | None = "",
        recursive: bool = False,
        columns: list[str] | None = None,
        union_by_name: bool = False,
    ) -> None:
        self.columns = columns
        self._union_by_name = union_by_name
        self._udfs: list[Any] = []
        DataSet.reset(self, [paths] if isinstance(paths, str) else paths, root_dir, recursive)

    def reset(self, paths: list[str] | None = None, root_dir: str | None = "", recursive: bool | None = None) -> None:
        """Make this the dataset of other paths (None: of no paths); `recursive` of None keeps what was set."""
        self.paths = paths if paths is not None else []
        self.root_dir = root_dir
        # The working directory of today: the dataset may be resolved in another process.
        self._base_dir = None if root_dir is None else os.path.abspath(root_dir)
        if recursive is not None:
            self.recursive = recursive
        self._resolved: list[str] | None = None
        self._resolved_from: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["paths"] = (len(self.paths), *pack_paths(self.paths))
        resolved = state.pop("_resolved")
        stale = resolved is None or self._resolved_from != self.paths
        state.pop("_resolved_from")
        if not stale and resolved != self.paths:
            # What a pattern matched once is what it means on every node and in every attempt.
            state["_resolved"] = (len(resolved), *pack_paths(resolved))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        count, prefix, rest = state["paths"]
        resolved = state.pop("_resolved", None)
        self.__dict__.update(state)
        self.paths = unpack_paths(prefix, rest, count)
        self._resolved, self._resolved_from = None, []
        if resolved is not None:
            count, prefix, rest = resolved
            self._resolved, self._resolved_from = unpack_paths(prefix, rest, count), list(self.paths)

    def __copy__(self: D) -> D:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.paths[:3])) + (", ..." if len(self.paths) > 3 else "")
        return f"{type(self).__name__}([{shown}], {len(self.paths)} paths)"

    @property
    def union_by_name(self) -> bool:
        """Whether files may have different columns, matched by name."""
        return self._union_by_name

    @property
    def udfs(self) -> list[Any]:
        """User-defined functions that reading this dataset needs."""
        return self._udfs

    @property
    def absolute_paths(self) -> list[str]:
        """The paths and patterns, made absolute; with a `root_dir` of None as they are."""
        if self._base_dir is None:
            return list(self.paths)
        return [absolute(path, self._base_dir) for path in self.paths]

    @property
    def resolved_paths(self) -> list[str]:
        """The files: patterns and directories replaced by what they hold, sorted; listed paths in their order."""
        # `paths` is the user's to append to: the cache is good for the paths it was made from.
        if self._resolved is None or self._resolved_from != self.paths:
            self._resolved = resolve(self.absolute_paths, self.recursive)
            self._resolved_from = list(self.paths)
        return self._resolved

    def unreadable_file(self) -> str | None:
        """The first file whose content is broken, if such can be found out. Reads all: only asked after an error that does not say."""
        return None

    @property
    def recorded_file_sizes(self) -> dict[str, int]:
        """Size on disk of each file whose writer told it: what must still be there for this dataset to be good."""
        return {}

    def fingerprint_parts(self) -> list[object]:
        """What this dataset is: which files, read how. Looks at no file; what is in them is told by `content_stamp`."""
        settings = {name: value for name, value in vars(self).items() if name not in NOT_PARTS}
        return [self.absolute_paths, *(part for name in sorted(settings) for part in (name, settings[name]))]

    def content_stamp(self) -> object:
        """(path, bytes, time of change in ns) of each file, so that a change can be seen; a file that isn't there has no numbers.

        `protocol://` paths stand for themselves.
        """
        try:
            files = copy.copy(self).resolved_paths
        except OSError:  # whoever reads it says what is wrong
            files = self.absolute_paths
        return [stamp for stamps in map_in_threads(partial(stamps_of, self.recursive), files, 16) for stamp in stamps]

    @property
    def num_files(self) -> int:
        """Number of files that the paths and patterns stand for."""
        return len(self.resolved_paths)

    @property
    def num_rows(self) -> int:
        """Number of rows; counts them where nothing else is known."""
        with closing(connect()) as conn:
            query = f"SELECT count(*) FROM {self.sql_query_fragment(conn=conn)}"
            (count,) = run_sql(conn, query, self).fetchall()[0]
        return int(count)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read. Files of unknown content are not opened to find out: they count as something."""
        return self.num_files == 0

    def sql_query_fragment(
        self, filesystem: AbstractFileSystem | None = None, conn: duckdb.DuckDBPyConnection | None = None
    ) -> str:
        """A parenthesised SQL query that reads this dataset, on `conn` if that is given."""
        raise NotImplementedError(f"{type(self).__name__} can't be read by SQL")

    def log(self, num_rows: int = 200) -> None:
        """Write the first rows to the log."""
        reader = self.to_batch_reader(batch_size=num_rows)
        first: list[pa.RecordBatch] = []
        for batch in reader:  # a batch may be shorter than was asked for
            first.append(batch)
            if sum(taken.num_rows for taken in first) >= num_rows:
                break
        table = pa.Table.from_batches(first, reader.schema).slice(0, num_rows)
        logger.info("%r:\n%s", self, table.to_pandas().to_string(max_rows=num_rows))

    def to_pandas(self) -> "pd.DataFrame":
        """All rows, in memory."""
        return self.to_arrow_table().to_pandas()

    def to_arrow_table(
        self,
        max_workers: int = 16,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.Table:
        """All rows, in memory, strings and binaries as large types; through `conn` if that is given."""
        if conn is None:
            with closing(connect(max_workers)) as own:
                return self.to_arrow_table(max_workers, filesystem, own)
        query = f"SELECT * FROM {self.sql_query_fragment(filesystem, conn)}"
        try:
            table = conn.sql(query).to_arrow_table()
        except duckdb.Error as error:
            raise translate(error, query, [self]) from error
        return cast_columns_to_large_string(table)

    def to_batch_reader(
        self,
        batch_size: int = DEFAULT_BATCH_SIZE,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.RecordBatchReader:
        """All rows, in order, as batches of at most `batch_size` rows."""
        check_batch_size(batch_size)
        used = connect() if conn is None else conn
        query = f"SELECT * FROM {self.sql_query_fragment(filesystem, used)}"
        try:
            reader = used.sql(query).to_arrow_reader(batch_size)
        except duckdb.Error as error:
            raise translate(error, query, [self]) from error
        schema = convert_types_to_large_string(reader.schema)
        batches = self._batches(reader, batch_size, query, used if conn is None else None)
        return pa.RecordBatchReader.from_batches(schema, batches)

    def _batches(
        self, reader: pa.RecordBatchReader, batch_size: int, query: str, own: duckdb.DuckDBPyConnection | None
    ) -> Iterator[pa.RecordBatch]:
        """The batches of a query, cast and cut; `own` is the connection to close at the end."""
        try:
            for batch in reader:
                yield from cast_columns_to_large_string(pa.Table.from_batches([batch])).to_batches(batch_size)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise translate(error, query, [self]) from error
        finally:
            if own is not None:
                own.close()

    def partition_by_files(self: D, npartition: int, random_shuffle: bool = False) -> list[D]:
        """`npartition` datasets of neighbouring files, whose numbers of files differ by at most 1."""
        check_npartition(npartition)
        files = self.resolved_paths
        if random_shuffle:
            files = random.sample(files, len(files))
        return [self._of_files(list(part)) for part in split_into_rows(files, npartition)]

    def _of_files(self: D, files: list[str]) -> D:
        """A dataset of the same kind and settings over these files (resolved paths)."""
        part = copy.copy(self)
        DataSet.reset(part, files, None, False)
        part._mark_resolved()
        return part

    def renamed(self: D, files: Sequence[str]) -> D:
        """The same dataset after its files, in their order, got these paths."""
        return self._of_files(list(files))

    def moved(self: D, source_dir: str, target_dir: str) -> D:
        """The same dataset after the directory of its files was renamed."""
        return self.renamed([moved_path(path, source_dir, target_dir) for path in self.resolved_paths])

    def _mark_resolved(self) -> None:
        """Take the paths for files: a name with `[` in it that is already resolved is no pattern."""
        self._resolved, self._resolved_from = self.paths, list(self.paths)

    def project(
        self: D,
        columns: list[str] | None = None,
        generated_columns: list[str] | None = None,
        union_by_name: bool | None = None,
    ) -> D:
        """The same rows with other columns; None keeps what is set."""
        projected = copy.copy(self)
        if columns is not None:
            projected.columns = columns
        if union_by_name is not None:
            projected._union_by_name = union_by_name
        if generated_columns is not None:
            projected._generate(generated_columns)
        return projected

    def _generate(self, generated_columns: list[str]) -> None:
        if generated_columns:
            raise InvalidArgument(f"{type(self).__name__} has no generated columns")

    @staticmethod
    def merge(datasets: "list[DataSet]") -> "DataSet":
        """One dataset with all that the given ones have, in order. They must be of one kind and have the same columns."""
        return merge_datasets(datasets)

    def _merge_with(self: D, others: "list[D]") -> D:
        """This dataset and others of its kind as one."""
        merged = self._of_files([path for dataset in [self, *others] for path in dataset.resolved_paths])
        merged._union_by_name = any(dataset.union_by_name for dataset in [self, *others])
        merged._udfs = merge_udfs([self, *others])
        return merged


class FileSet(DataSet):
    """Any files, of which only the paths matter; as a table: one column `resolved_paths`."""

    @property
    def num_rows(self) -> int:
        return self.num_files

    def to_arrow_table(
        self,
        max_workers: int = 16,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.Table:
        """The paths, as a table."""
        return pa.table({"resolved_paths": pa.array(self.resolved_paths, pa.large_string())})

    def to_batch_reader(
        self,
        batch_size: int = DEFAULT_BATCH_SIZE,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.RecordBatchReader:
        """The paths, as batches."""
        check_batch_size(batch_size)
        table = self.to_arrow_table()
        return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(batch_size))

    @staticmethod
    def merge(datasets: "list[FileSet]") -> "FileSet":  # type: ignore[override]
        """One set of all files."""
        return merge_datasets(datasets, FileSet)


def stamps_of(recursive: bool, path: str) -> list[tuple[str, int, int]]:
    """The stamp of a file, or of those in a directory."""
    if is_url(path):
        return [(path, 0, 0)]
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return [(path, status.st_size, status.st_mtime_ns)]
        return [stamp for file in files_in(path, recursive) for stamp in stamps_of(recursive, file)]
    except OSError:
        return [(path, -1, -1)]


def merge_datasets(datasets: Sequence[D], kind: type[Any] | None = None) -> D:
    """The datasets as one of their common kind. Those of no files at all say nothing of the kind and are left out."""
    if not datasets:
        raise InvalidArgument("there is no dataset to merge")
    merged = [dataset for dataset in datasets if dataset.paths or not _is_of_files(dataset)] or [datasets[0]]
    first = merged[0]
    kind = kind or next(base for base in type(first).__mro__ if "merge" in vars(base))
    for dataset in merged:
        if not isinstance(dataset, kind):
            raise InvalidArgument(
                f"can't merge {dataset!r} with {first!r}: they are of different kinds; read each by a query first (select * from {{0}})"
            )
        if dataset.columns != first.columns and (dataset.columns and first.columns):
            raise InvalidArgument(
                f"can't merge columns {dataset.columns} of {dataset!r} with {first.columns} of {first!r}"
            )
    if len(merged) == 1:
        return first
    made = first._merge_with(list(merged[1:]))
    # those that leave out none have no others
    made.columns = next((dataset.columns for dataset in merged if dataset.columns is not None), None)
    return made


def _is_of_files(dataset: DataSet) -> bool:
    return getattr(dataset, "is_of_files", True)


def merge_udfs(datasets: Iterable[DataSet]) -> list[Any]:
    """The functions that any of the datasets needs, each once, in order of first mention."""
    found: list[Any] = []
    for dataset in datasets:
        found.extend(function for function in dataset.udfs if function not in found)
    return found


def connect(threads: int = 16) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with no more threads and memory than this process may use: Arrow's pool was set to that (DuckDB itself reads Slurm's variables)."""
    config: dict[str, str | bool | int | float | list[str]] = {"threads": max(1, min(threads, pa.cpu_count()))}
    return duckdb.connect(config=config | duckdb_limits())


def run_sql(conn: duckdb.DuckDBPyConnection, query: str, dataset: DataSet) -> duckdb.DuckDBPyConnection:
    """Execute a query that reads a dataset; its errors name the dataset's files."""
    try:
        return conn.execute(query)
    except duckdb.Error as error:
        raise translate(error, query, [dataset]) from error


def use_filesystem(conn: duckdb.DuckDBPyConnection | None, filesystem: AbstractFileSystem | None) -> None:
    """Let DuckDB read `protocol://` paths through an fsspec file system. Local ones it reads itself."""
    if conn is None or filesystem is None:
        return
    protocols = [filesystem.protocol] if isinstance(filesystem.protocol, str) else list(filesystem.protocol)
    if not {"file", "local"} & set(protocols) and not any(conn.filesystem_is_registered(name) for name in protocols):
        conn.register_filesystem(filesystem)


def check_npartition(npartition: int) -> None:
    if not isinstance(npartition, int) or npartition < 1:
        raise InvalidArgument(f"the number of partitions must be at least 1, not {npartition!r}")


def check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidArgument(f"batch_size must be at least 1, not {batch_size!r}")
