"""Parquet files, whole or in row ranges: the dataset that nearly everything in the engine reads and writes."""

import copy
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from smallpond_mpi.common import (
    DEFAULT_BATCH_SIZE,
    GENERATED_COLUMNS,
    CorruptInput,
    InvalidArgument,
    get_nth_partition,
)
from smallpond_mpi.io.arrow import batch_reader, dump_to_parquet_files, load_ranges, schema_of
from smallpond_mpi.io.arrow_types import unify
from smallpond_mpi.io.parquet import (
    UNKNOWN,
    FileFacts,
    RowRange,
    map_in_threads,
    open_parquet,
    pack_ranges,
    read_footer,
    read_footers,
    row_groups_of,
    unknown_range,
    unpack_ranges,
)
from smallpond_mpi.io.resolve import files_in
from smallpond_mpi.logical.dataset.base import (
    DataSet,
    check_batch_size,
    check_npartition,
    merge_datasets,
    merge_udfs,
    use_filesystem,
)
from smallpond_mpi.logical.dataset.parquet_sql import fits_a_view, parquet_query, view_of_rows
from smallpond_mpi.logical.dataset.partition_index import partitions_of_file

P = TypeVar("P", bound="ParquetDataSet")


class ParquetDataSet(DataSet):
    """Parquet files, or ranges of their rows. What their writers told about them is known without opening them."""

    def __init__(
        self,
        paths: str | list[str],
        root_dir: str | None = "",
        recursive: bool = False,
        columns: list[str] | None = None,
        generated_columns: list[str] | None = None,
        union_by_name: bool = False,
    ) -> None:
        super().__init__(paths, root_dir, recursive, columns, union_by_name)
        self.generated_columns: list[str] | None = None
        self._generate(generated_columns or [])
        self._forget()

    def _generate(self, generated_columns: list[str]) -> None:
        for name in generated_columns:
            if name not in GENERATED_COLUMNS:
                raise InvalidArgument(f"{name!r} is no generated column; there are: {', '.join(GENERATED_COLUMNS)}")
        self.generated_columns = generated_columns or None

    def _forget(self) -> None:
        # One entry a resolved file (UNKNOWN ones are opened when needed); good as long as the files are `_known_files`.
        self._known: list[RowRange] = []
        self._known_files: list[str] = []
        self._is_promoted: bool | None = None
        # United by name: files that have all columns together; a part of a dataset keeps those of the whole. None: not looked for.
        self._column_files: list[str] | None = None

    needs_schema_at: str | None = None
    """Of no files, because a function of the user's (this line of the script) was given no rows, so that nothing says what it returns."""

    @classmethod
    def of_files(cls, files: Sequence[FileFacts]) -> "ParquetDataSet":
        """A dataset of files whose writers told what is in them: none of them is opened to learn it."""
        return cls.of_ranges([RowRange.of_file(facts) for facts in files])

    @classmethod
    def of_ranges(cls, ranges: Sequence[RowRange]) -> "ParquetDataSet":
        """A dataset of exactly these rows, in this order."""
        dataset = ParquetDataSet([], None)
        dataset._take_ranges(list(ranges))
        return dataset

    def _take_ranges(self, ranges: list[RowRange]) -> None:
        DataSet.reset(self, [item.path for item in ranges], None, False)
        self._mark_resolved()
        self._known, self._known_files = ranges, list(self.paths)
        self.__dict__.pop("kinds", None)

    def _with_ranges(self: P, ranges: list[RowRange]) -> P:
        """A dataset with the settings of this one over other rows of the same files."""
        part = copy.copy(self)
        part._take_ranges(ranges)
        return part

    def __getstate__(self) -> dict[str, Any]:
        known = self._files_if_known()
        state = super().__getstate__()
        state.pop("_known"), state.pop("_known_files")
        if known is not None:
            state["_ranges"] = pack_ranges(self._known)
            state.pop("_resolved", None)
            if known == self.paths:
                del state["paths"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        ranges = unpack_ranges(state.pop("_ranges")) if "_ranges" in state else []
        files = [item.path for item in ranges]
        if "paths" in state:
            super().__setstate__(state)
        else:
            self.__dict__.update(state)
            self.paths = files
        if ranges:
            self._resolved, self._resolved_from = files, list(self.paths)
        elif "paths" not in state:
            self._mark_resolved()
        self._known, self._known_files = ranges, list(files)

    def _files_if_known(self) -> list[str] | None:
        """The files, if something is known of them and no pattern has to be resolved to say which they are."""
        is_resolved = self._resolved is not None and self._resolved_from == self.paths
        return self._resolved if is_resolved and self._known_files and self._known_files == self._resolved else None

    def reset(self, paths: list[str] | None = None, root_dir: str | None = "", recursive: bool | None = None) -> None:
        """Make this the dataset of other paths; what was known is forgotten, row ranges too."""
        super().reset(paths, root_dir, recursive)
        self._forget()

    def _ranges_as_known(self) -> list[RowRange]:
        """One range a resolved file, UNKNOWN for those not yet opened. Opens nothing."""
        files = self.resolved_paths
        if self._known_files != files:
            # Paths were added or taken away since: what is known of the others stays.
            known: dict[str, list[RowRange]] = defaultdict(list)
            for item in reversed(self._known):
                known[item.path].append(item)
            self._known = [known[path].pop() if known[path] else unknown_range(path) for path in files]
            if not set(files) <= set(self._known_files):
                self._column_files = None
            self._known_files = list(files)
            self._is_promoted = None
        return self._known

    @property
    def resolved_row_ranges(self) -> list[RowRange]:
        """The rows of this dataset by file. Opens the footers of files of which nothing is known yet."""
        return self._row_ranges(None)

    def _row_ranges(self, filesystem: AbstractFileSystem | None) -> list[RowRange]:
        """As above, of files that lie in `filesystem`."""
        ranges = self._ranges_as_known()
        unknown = [item.path for item in ranges if not item.is_known]
        if not unknown:
            return ranges
        try:
            footers = read_footers(unknown, filesystem)
        except CorruptInput as error:
            if not isinstance(error.__cause__, IsADirectoryError) or not self._go_into_directories():
                raise
            return self._row_ranges(filesystem)
        if len(unknown) == len(ranges):
            schemas = [(item.facts.path, item.schema) for item in footers]
            self._is_promoted = self._types_differ(schemas)
            if self.union_by_name:
                self._column_files = files_of_all_columns(schemas)
        found = iter(footers)
        self._known = [item if item.is_known else RowRange.of_file(next(found).facts) for item in ranges]
        return self._known

    def _go_into_directories(self) -> bool:
        """Replace directories, which were not looked at so far, by their files; whether there were any."""
        files = self.resolved_paths
        replaced: list[str] = []
        for item in self._ranges_as_known():
            is_directory = not item.is_known and os.path.isdir(item.path)
            replaced.extend(files_in(item.path, self.recursive) if is_directory else [item.path])
        if replaced == files:
            return False
        self._resolved = replaced
        return True

    def _types_differ(self, schemas: Sequence[tuple[str, pa.Schema]]) -> bool:
        """Whether files must be read by the names of their columns: these stand in another order in some, or one has several types, which fit one.

        Raises:
            SchemaMismatch: files don't fit together.
        """
        if not schemas:
            return False
        if self.columns is not None and not self.union_by_name:  # what is not read may be anything
            wanted = frozenset(self.columns)
            schemas = [
                (path, pa.schema([field for field in schema if field.name in wanted])) for path, schema in schemas
            ]
        unified = unify(schemas, self.union_by_name)
        return any(schema.names != unified.names for _, schema in schemas) or any(
            unified.field(field.name).type != field.type and not _is_text(field.type)
            for _, schema in schemas
            for field in schema
        )

    def _check_schemas(self, filesystem: AbstractFileSystem | None = None) -> bool:
        """Hold the files' schemas against each other, once; whether types differ (but fit)."""
        ranges = self._row_ranges(filesystem)
        if self._is_promoted is None:
            distinct = list({item.path: item for item in ranges}.values())
            schemas: list[tuple[str, pa.Schema]] = []
            if len(distinct) > 1:
                schemas = map_in_threads(lambda item: (item.path, schema_of(item, None, filesystem)), distinct, 4)
            self._is_promoted = self._types_differ(schemas)
        return self._is_promoted

    def files_are_alike(self) -> None:
        """Take it from their writer that all files have the same columns: none has to be opened to see."""
        self._is_promoted = False

    def learn_columns(self) -> None:
        """Find out which columns all files have together, if they are united by name: parts that are cut off from now on have all of them."""
        if self.union_by_name:
            ranges = self._row_ranges(None)
            if self._column_files is None:
                distinct = list({item.path: item for item in ranges}.values())
                schemas = map_in_threads(lambda item: (item.path, schema_of(item)), distinct, 16)
                self._column_files = files_of_all_columns(schemas)

    @property
    def has_columns_of_others(self) -> bool:
        """Whether some of its columns may be missing in some of its files."""
        return self.union_by_name and (self._column_files is None or len(self._column_files) > 1)

    def _with_columns(self, ranges: list[RowRange]) -> list[RowRange]:
        """Ranges, after some without rows that have all columns."""
        if not self.union_by_name or self._column_files is None:
            return ranges
        return [*(RowRange(path, 0, UNKNOWN, 0, 0) for path in self._column_files), *ranges]

    def fingerprint_parts(self) -> list[object]:
        """Also which rows, where they are not all of a file."""
        ranges = [] if self._files_if_known() is None or self.is_of_whole_files else pack_ranges(self._known)
        return [*super().fingerprint_parts(), ranges]

    @property
    def num_rows(self) -> int:
        return sum(item.num_rows for item in self.resolved_row_ranges)

    @property
    def empty(self) -> bool:
        """Whether there are no rows. Files are opened one by one, only while all known ones have none."""
        ranges = self._ranges_as_known()
        if any(item.is_known and item.num_rows for item in ranges):
            return False
        for item in ranges:
            if not item.is_known:
                if os.path.isdir(item.path):
                    return self.num_rows == 0
                if read_footer(item.path).facts.num_rows:
                    return False
        return True

    def unreadable_file(self) -> str | None:
        for item in self.resolved_row_ranges:
            try:
                with open_parquet(item.path) as file:
                    for _ in file.iter_batches(row_groups=row_groups_of(file, item)[0], columns=self.columns):
                        pass
            except (pa.ArrowException, OSError, CorruptInput):
                return item.path
        return None

    @property
    def estimated_data_size(self) -> int:
        """Uncompressed bytes of the rows, in proportion where only a part of a file's rows is meant."""
        return sum(item.estimated_data_size for item in self.resolved_row_ranges)

    @property
    def recorded_file_sizes(self) -> dict[str, int]:
        """Size on disk of each file whose writer told it: what must still be there for this dataset to be good."""
        return {item.path: item.file_bytes for item in self._ranges_as_known() if item.is_promised}

    @property
    def is_of_whole_files(self) -> bool:
        """Whether all rows of all its files are meant. Opens nothing."""
        return all(item.is_whole_file for item in self._ranges_as_known())

    def renamed(self: P, files: Sequence[str]) -> P:
        ranges = [replace(item, path=path) for item, path in zip(self._ranges_as_known(), files, strict=True)]
        return self._with_ranges(ranges)

    def sql_query_fragment(
        self, filesystem: AbstractFileSystem | None = None, conn: duckdb.DuckDBPyConnection | None = None
    ) -> str:
        """A parenthesised query of exactly these rows. With `conn`, small ranges of many files are read once and become a view of it."""
        use_filesystem(conn, filesystem)
        ranges = self._row_ranges(filesystem)
        generated = self.generated_columns or []
        if conn is not None and not self.union_by_name and fits_a_view(ranges, generated):
            return view_of_rows(ranges, self.columns, conn)
        by_name = self._check_schemas(filesystem) or self.union_by_name
        column_files = (self._column_files or []) if self.union_by_name else []
        return parquet_query(ranges, self.columns, generated, by_name, column_files)

    def to_arrow_table(
        self,
        max_workers: int = 16,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.Table:
        """All rows, in memory, read by Arrow, or by `conn` if that is given."""
        if conn is not None and self.num_files:
            return super().to_arrow_table(max_workers, filesystem, conn)
        ranges = self._with_columns(self._row_ranges(filesystem))
        generated = self.generated_columns or []
        return load_ranges(ranges, self.columns, max_workers, filesystem, self.union_by_name, generated)

    def to_batch_reader(
        self,
        batch_size: int = DEFAULT_BATCH_SIZE,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.RecordBatchReader:
        """All rows, in order, as batches of at most `batch_size` rows."""
        check_batch_size(batch_size)
        if conn is not None and self.num_files:
            return super().to_batch_reader(batch_size, filesystem, conn)
        ranges = self._with_columns(self._row_ranges(filesystem))
        generated = self.generated_columns or []
        return batch_reader(ranges, self.columns, batch_size, filesystem, self.union_by_name, generated)

    def partition_by_files(self: P, npartition: int, random_shuffle: bool = False) -> list[P]:
        """`npartition` datasets of neighbouring files, whose numbers of files differ by at most 1. Opens nothing, unless they are united by name."""
        check_npartition(npartition)
        self.learn_columns()
        if not self._known:
            # Nothing is known of a million listed paths: nothing but the paths is kept for them.
            return super().partition_by_files(npartition, random_shuffle)
        ranges = _shuffled(self._ranges_as_known(), random_shuffle)
        return [self._with_ranges(list(get_nth_partition(ranges, n, npartition))) for n in range(npartition)]

    def partition_by_rows(self: P, npartition: int, random_shuffle: bool = False) -> list[P]:
        """`npartition` datasets of neighbouring rows, whose numbers of rows differ by at most 1 (shuffled: of files in random order)."""
        check_npartition(npartition)
        self.learn_columns()
        ranges = _shuffled(self.resolved_row_ranges, random_shuffle)
        parts = RowRange.partition_by_rows(ranges, npartition)
        return [self._with_ranges(part) if part else self._without_rows() for part in parts]

    def _without_rows(self: P) -> P:
        """No rows of the first file: empty, with its schema."""
        return self._with_ranges([item.take(0) for item in self.resolved_row_ranges[:1]])

    def partition_by_size(self: P, max_partition_size: int) -> list[P]:
        """Datasets of neighbouring rows of at most `max_partition_size` uncompressed bytes each, as estimated, and of one row at least."""
        if max_partition_size < 1:
            raise InvalidArgument(f"the size of a partition must be at least 1 byte, not {max_partition_size!r}")
        self.learn_columns()
        parts: list[list[RowRange]] = [[]]
        room = max_partition_size
        for item in self.resolved_row_ranges:
            row_bytes = max(1, -(-item.data_size // max(1, item.file_num_rows)))
            while item.num_rows:
                rows = min(item.num_rows, max(0, room // row_bytes))
                if not rows and parts[-1]:
                    parts.append([])
                    room = max_partition_size
                    continue
                taken = item.take(max(1, rows))
                parts[-1].append(taken)
                room -= taken.num_rows * row_bytes
                item = item.cut(taken.num_rows, item.num_rows)
        return [self._with_ranges(part) if part else self._without_rows() for part in parts]

    def first_rows(self: P, count: int) -> P:
        """The first `count` rows, or all if there are fewer."""
        self.learn_columns()
        taken: list[RowRange] = []
        for item in self.resolved_row_ranges:
            if not count:
                break
            taken.append(item.take(count))
            count -= taken[-1].num_rows
        return self._with_ranges(taken) if taken else self._without_rows()

    def load_partitioned_datasets(
        self: P, npartition: int, data_partition_column: str, hive_partitioning: bool = False
    ) -> list[P]:
        """The rows by partition number, as it stands in the files' metadata (packed ones too), their hive path, or else the column."""
        check_npartition(npartition)
        self.learn_columns()
        parts: list[list[RowRange]] = [[] for _ in range(npartition)]
        for item in self.resolved_row_ranges:
            for partition, rows in partitions_of_file(item, npartition, data_partition_column, hive_partitioning):
                parts[partition].append(rows)
        return [self._with_ranges(part) if part else self._without_rows() for part in parts]

    def remove_empty_files(self) -> None:
        """Drop the files (or ranges) that have no rows."""
        self.learn_columns()
        self._take_ranges([item for item in self.resolved_row_ranges if item.num_rows])

    @staticmethod
    def create_from(table: pa.Table, output_dir: str, filename: str = "data") -> "ParquetDataSet":
        """Write a table under `output_dir` and return it as a dataset."""
        return ParquetDataSet.of_files(dump_to_parquet_files(table, output_dir, filename))

    @staticmethod
    def merge(datasets: "list[ParquetDataSet]") -> "ParquetDataSet":  # type: ignore[override]
        """All rows of all datasets, in order. Row ranges survive, and nothing is opened."""
        return merge_datasets(datasets, ParquetDataSet)

    def _merge_with(self: P, others: "Sequence[P]") -> P:
        every = [self, *others]
        if not any(dataset._known for dataset in every):
            merged = super()._merge_with(list(others))
        else:
            merged = self._with_ranges([item for dataset in every for item in dataset._ranges_as_known()])
        merged._union_by_name = any(dataset.union_by_name for dataset in every)
        merged._udfs = merge_udfs(every)
        merged._is_promoted = None
        merged._column_files = _columns_of_all(every)
        return merged


def files_of_all_columns(schemas: Sequence[tuple[str, pa.Schema]]) -> list[str]:
    """The fewest files, given as (path, schema), in their order, that have all columns in their widest types; of files that are alike the first."""
    found = [path for path, _ in schemas[:1]]
    united = schemas[0][1] if schemas else None
    for path, schema in schemas[1:]:
        wider = unify([(found[0], united), (path, schema)], by_name=True)
        if not wider.equals(united):
            found.append(path)
            united = wider
    return found


def _columns_of_all(datasets: Sequence[ParquetDataSet]) -> list[str] | None:
    """What a dataset of these has to know, if one of them is cut off from one that had more columns."""
    if all(dataset._column_files is None for dataset in datasets):
        return None
    found: dict[str, None] = {}
    for dataset in datasets:
        dataset.learn_columns()
        found.update(
            dict.fromkeys(dataset.resolved_paths[:1] if dataset._column_files is None else dataset._column_files)
        )
    return list(found)


def _shuffled(items: list[RowRange], random_shuffle: bool) -> list[RowRange]:
    return random.sample(items, len(items)) if random_shuffle else items


def _is_text(type_: pa.DataType) -> bool:
    """Types that tools write in several ways and all readers take for one."""
    return any(
        is_type(type_)
        for is_type in (
            pa.types.is_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_binary_view,
        )
    )
