"""Datasets in memory: Arrow tables and pandas frames. They travel whole, so the planner writes large ones to Parquet first."""

import itertools
import os
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
from fsspec import AbstractFileSystem

from smallpond_mpi.common import DEFAULT_BATCH_SIZE, ColumnNotFound, InvalidArgument
from smallpond_mpi.io.arrow_types import unify
from smallpond_mpi.logical.dataset.base import DataSet, check_batch_size, check_npartition, merge_datasets, merge_udfs
from smallpond_mpi.logical.dataset.quoting import quote_name, quote_names

if TYPE_CHECKING:
    import pandas as pd

M = TypeVar("M", bound="InMemoryDataSet")

_numbers = itertools.count()


def register(conn: duckdb.DuckDBPyConnection, rows: Any, kind: str) -> str:
    """Make Arrow data a view of a connection; returns the view's name, which nothing else has."""
    name = f"__{kind}_{os.getpid()}_{next(_numbers)}"
    conn.register(name, rows)
    return name


class InMemoryDataSet(DataSet):
    """Rows in memory, as an Arrow table when asked for."""

    is_of_files = False

    def __init__(self) -> None:
        super().__init__([])

    def _rows(self) -> pa.Table:
        raise NotImplementedError

    def content_stamp(self) -> object:
        """There is no file."""
        return None

    def _of_rows(self: M, table: pa.Table) -> M:
        raise NotImplementedError

    @property
    def num_rows(self) -> int:
        return int(self._rows().num_rows)

    @property
    def empty(self) -> bool:
        return self.num_rows == 0

    def to_arrow_table(
        self,
        max_workers: int = 16,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.Table:
        """The table itself, types as they were given."""
        table = self._rows()
        if self.columns is None:
            return table
        for name in self.columns:
            if name not in table.column_names:
                raise ColumnNotFound(f"no column {name!r}; the columns: {', '.join(table.column_names)}")
        return table.select(self.columns)

    def to_batch_reader(
        self,
        batch_size: int = DEFAULT_BATCH_SIZE,
        filesystem: AbstractFileSystem | None = None,
        conn: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.RecordBatchReader:
        """The rows, as batches."""
        check_batch_size(batch_size)
        table = self.to_arrow_table()
        return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(batch_size))

    def sql_query_fragment(
        self, filesystem: AbstractFileSystem | None = None, conn: duckdb.DuckDBPyConnection | None = None
    ) -> str:
        """The rows as a view of `conn`."""
        if conn is None:
            raise InvalidArgument(f"SQL over {self!r} needs the connection that it is to run on")
        view = register(conn, self._rows(), "memory")
        return f"(SELECT {quote_names(self.columns)} FROM {quote_name(view)})"

    def moved(self: M, source_dir: str, target_dir: str) -> M:
        """Itself: it is in no directory."""
        return self

    def partition_by_files(self: M, npartition: int, random_shuffle: bool = False) -> list[M]:
        """Rows in memory are in no file: they are cut by rows."""
        return self.partition_by_rows(npartition, random_shuffle)

    def partition_by_rows(self: M, npartition: int, random_shuffle: bool = False) -> list[M]:
        """`npartition` runs of rows whose lengths differ by at most 1."""
        check_npartition(npartition)
        table = self._rows()
        if random_shuffle:
            table = table.take(np.random.default_rng().permutation(table.num_rows))
        size, longer = divmod(table.num_rows, npartition)
        bounds = [n * size + min(n, longer) for n in range(npartition + 1)]
        return [self._of_rows(table.slice(begin, end - begin)) for begin, end in itertools.pairwise(bounds)]

    def _merge_with(self: M, others: list[M]) -> M:
        tables = [dataset.to_arrow_table() for dataset in [self, *others]]
        by_name = any(dataset.union_by_name for dataset in [self, *others])
        if any(table.schema != tables[0].schema for table in tables):
            unify([(repr(self), table.schema) for table in tables], by_name)
        merged = self._of_rows(pa.concat_tables(tables, promote_options="permissive"))
        merged._udfs = merge_udfs([self, *others])
        return merged


class ArrowTableDataSet(InMemoryDataSet):
    """An Arrow table."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__()
        self.table = table

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        # pickle takes whole buffers of a slice; a copy by IPC takes its rows
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as writer:
            writer.write_table(self.table)
        state["table"] = sink.getvalue()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        with pa.ipc.open_stream(state["table"]) as reader:
            self.table = reader.read_all()

    def __repr__(self) -> str:
        return f"ArrowTableDataSet({self.table.num_rows} rows, {self.table.num_columns} columns)"

    def _rows(self) -> pa.Table:
        return self.table

    def _of_rows(self, table: pa.Table) -> "ArrowTableDataSet":
        return ArrowTableDataSet(table)

    @staticmethod
    def merge(datasets: "list[ArrowTableDataSet]") -> "ArrowTableDataSet":  # type: ignore[override]
        """All rows, one table below the other."""
        return merge_datasets(datasets, ArrowTableDataSet)


class PandasDataSet(InMemoryDataSet):
    """A pandas frame."""

    def __init__(self, df: "pd.DataFrame") -> None:
        super().__init__()
        self.df = df

    def __repr__(self) -> str:
        return f"PandasDataSet({len(self.df)} rows, {len(self.df.columns)} columns)"

    @property
    def num_rows(self) -> int:
        return len(self.df)

    def to_pandas(self) -> "pd.DataFrame":
        """The frame itself."""
        return self.df if self.columns is None else self.df[self.columns]

    def _rows(self) -> pa.Table:
        # The index is a label of rows, not data: SQL over a frame doesn't see it either.
        return pa.Table.from_pandas(self.df, preserve_index=False)

    def _of_rows(self, table: pa.Table) -> "PandasDataSet":
        # The types of the frame, where a column's values alone would say another one (integers with gaps, all NULL).
        return PandasDataSet(table.to_pandas().astype(self.df.dtypes.to_dict(), errors="ignore"))

    @staticmethod
    def merge(datasets: "list[PandasDataSet]") -> "PandasDataSet":  # type: ignore[override]
        """All rows, one frame below the other."""
        return merge_datasets(datasets, PandasDataSet)
