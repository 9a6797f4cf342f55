"""Readers of rows with their keys, batch by batch: for tasks that send rows to partitions, or sort them.

DuckDB computes the keys on the way, but does not give every type back as Arrow reads it. Read by Arrow, DuckDB sees only what it needs for the
keys. (Reading alone costs about the same; whole sorts of records took a tenth more processor time with Arrow.)
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin, translate_duckdb
from smallpond_mpi.io.arrow import schema_of
from smallpond_mpi.io.arrow_types import durations_as_numbers
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.dataset.parquet_sql import reads_alike
from smallpond_mpi.logical.dataset.quoting import quote_name

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

KEYS = "__keys"
NARROW_DECIMALS = "SET SESSION arrow_output_version = '1.5'"
"""For this cursor: decimals of up to 18 digits as Arrow's of 4 and 8 bytes, which is how DuckDB and Parquet hold them; and blobs as views."""

KeyedRows = Generator[tuple[pa.RecordBatch, pa.Array | None], None, None]
"""Batches with the key of each row; at least one, for its schema. None: there are no key columns."""


class KeyedTask(ExecSqlQueryMixin):
    """Base of tasks that look at a key of each row."""

    @property
    def is_packed(self) -> bool:
        """Whether only tasks read what becomes of the rows, so that they may be held in fewer bytes than their types say."""
        return False

    @property
    def chunk_rows(self) -> int:
        """Rows that are read at a time."""
        raise NotImplementedError(f"{type(self).__name__} does not define chunk_rows")

    def key_columns(self, columns: Sequence[str]) -> list[str]:
        """The columns that the key follows from, all of which are in `columns`; none if there is no key.

        Raises:
            ColumnNotFound: one is not there.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define key_columns()")

    def key_expression(self, conn: duckdb.DuckDBPyConnection, names: Sequence[str], types: Sequence[Any]) -> str:
        """The key of a row in SQL, given the names and DuckDB types that the key columns have on this connection. Asked for once an input."""
        raise NotImplementedError(f"{type(self).__name__} does not define key_expression()")


def keyed_rows(task: KeyedTask, dataset: "DataSet") -> KeyedRows:
    """The rows of a dataset by whoever reads them faster without changing a type."""
    if isinstance(dataset, ParquetDataSet) and not survives_duckdb(dataset):
        return read_by_arrow(task, dataset)
    return read_by_duckdb(task, dataset)


def read_by_duckdb(task: KeyedTask, dataset: "DataSet") -> KeyedRows:
    """The rows of a dataset, read by DuckDB."""
    with task.connection() as conn:
        (view,) = task.create_input_views(conn, [dataset])
        source = conn.sql(f"FROM {view}")
        names = task.key_columns(source.columns)
        kinds = dict(zip(source.columns, source.types, strict=True))
        key = ""
        if names:
            # The last column of all; its name need only be none of the others'.
            expression = task.key_expression(conn, names, [kinds[name] for name in names])
            key = f", {expression} AS {quote_name('#' + max(source.columns))}"
        query = f"SELECT *{key} FROM {view}"
        try:
            selected = conn.sql(query)
            has_functions = bool(task.udfs or task.input_udfs)  # which would be given what they don't expect
            if task.is_packed and not has_functions and gains_by_narrow_decimals(list(map(str, selected.types))):
                conn.execute(NARROW_DECIMALS)
            reader = selected.to_arrow_reader(task.chunk_rows)
            found = False
            for rows in reader:
                found = True
                yield _apart(rows, bool(names))
            if not found:
                yield _apart(pa.RecordBatch.from_pylist([], reader.schema), bool(names))
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise translate_duckdb(error, query, [dataset]) from error


def gains_by_narrow_decimals(types: Sequence[str]) -> bool:
    """Whether columns of these DuckDB types take fewer bytes with NARROW_DECIMALS. Arrow can't pick rows out of views."""
    has_blob = any("BLOB" in kind or "BIT" in kind for kind in types)
    return not has_blob and any(kind.startswith("DECIMAL") for kind in types)


def _apart(rows: pa.RecordBatch, has_key: bool) -> tuple[pa.RecordBatch, pa.Array | None]:
    if not has_key:
        return rows, None
    last = rows.num_columns - 1
    return rows.select(list(range(last))), rows.column(last)


def read_by_arrow(task: KeyedTask, dataset: "DataSet") -> KeyedRows:
    """The rows of a dataset, read by Arrow."""
    reader = dataset.to_batch_reader(task.chunk_rows)
    names = task.key_columns(reader.schema.names)
    with task.connection() as conn:
        keys = _Keys(task, conn, names, reader.schema) if names else None
        found = False
        for rows in reader:
            found = True
            yield rows, keys and keys.of(rows)
        if not found:
            empty = pa.RecordBatch.from_pylist([], reader.schema)
            yield empty, keys and keys.of(empty)


class _Keys:
    """Computes the keys of batches that Arrow read."""

    def __init__(self, task: KeyedTask, conn: duckdb.DuckDBPyConnection, names: list[str], schema: pa.Schema) -> None:
        self._conn = conn
        self._names = names
        # To DuckDB columns that differ in case only are one.
        is_clear = len({name.lower() for name in names}) == len(names)
        self._aliases = names if is_clear else [f"k{number}" for number in range(len(names))]
        empty = pa.Table.from_batches([], schema).select(names).rename_columns(self._aliases)
        expression = task.key_expression(conn, self._aliases, self._types(empty))
        self._query = f"SELECT {expression} FROM {KEYS}"

    def _types(self, empty: pa.Table) -> list[Any]:
        """What DuckDB makes of the columns' types.

        Raises:
            InvalidArgument: it has none for one of them (a decimal of more than 38 digits, a float of 16 bits).
        """
        try:
            self._conn.register(KEYS, durations_as_numbers(empty))
            types: list[Any] = self._conn.sql(f"FROM {KEYS}").types
        except duckdb.Error as error:
            columns = ", ".join(
                f"{name!r} ({field.type})" for name, field in zip(self._names, empty.schema, strict=True)
            )
            raise InvalidArgument(
                f"rows can't be told apart by {columns}: {error}; cast such a column to a type that DuckDB has"
            ) from error
        finally:
            self._conn.unregister(KEYS)
        return types

    def of(self, rows: pa.RecordBatch) -> pa.Array:
        """The key of each row."""
        table = pa.Table.from_batches([rows.select(self._names).rename_columns(self._aliases)])
        self._conn.register(KEYS, durations_as_numbers(table))
        try:
            keys = self._conn.sql(self._query).to_arrow_table().column(0)
        except duckdb.Error as error:
            raise translate_duckdb(error, self._query) from error
        finally:
            self._conn.unregister(KEYS)
        return keys.combine_chunks() if keys.num_chunks != 1 else keys.chunk(0)


def survives_duckdb(dataset: ParquetDataSet) -> bool:
    """Whether all columns come out of DuckDB with the names and types that Arrow reads: not nested, without a time
    zone, not unified by name, and with names, which differ in more than case."""
    if dataset.union_by_name:
        return False
    (first, *_) = dataset.resolved_row_ranges
    schema = schema_of(first, dataset.columns)
    if not all(schema.names) or len({name.lower() for name in schema.names}) < len(schema):
        return False
    return all(
        reads_alike(field.type) and not pa.types.is_nested(field.type) and getattr(field.type, "tz", None) is None
        for field in schema
    )
