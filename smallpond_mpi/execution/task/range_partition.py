"""Every row to the partition whose range its key is in.

    split points   p0  p1  ..  pn-1     ascending in the order of the keys' directions
    partition      0   1   2   ..  n    partition i has the keys from p(i-1) on and before p(i)

A key that equals a split point is in the partition that begins there, so that rows with equal keys are in one partition, whatever types
they have in their files: a key is compared with the points as values, in the type that DuckDB compares the two in. The points are given, or come
from a task that sampled the input (split_points.py), as a second input of each task.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from smallpond_mpi.common import DEFAULT_ROW_GROUP_SIZE, InvalidArgument, InvalidQuery
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.engine import connect, translate_duckdb
from smallpond_mpi.execution.task.key_search import points_at_or_before
from smallpond_mpi.execution.task.partition import Inputs
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.partition_key import TEXTS
from smallpond_mpi.execution.task.row_chunks import chunks_of
from smallpond_mpi.execution.task.row_partition import Chunk, RowPartitionTask
from smallpond_mpi.execution.task.sort_key import SortKey, comparable
from smallpond_mpi.io.packed import Int64s
from smallpond_mpi.logical.dataset.quoting import quote_name

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

POINTS = "__split_points"


class RangePartitionTask(RowPartitionTask):
    """Cuts its first input at split points: those given, or the rows of its second input.

    Args:
        split_points: ascending; a tuple a point, or a value if there is one key.
        sort_keys: what is compared; none: the first columns, as many as a point has values, ascending.
        npartitions: of None one more than there are split points. More are partitions without rows.
    """

    memory_overcommit_ratio = 0.9

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        split_points: Sequence[Any] = (),
        dimension: str = "range",
        sort_keys: Sequence[SortKey] = (),
        npartitions: int | None = None,
        use_parquet_writer: bool = False,
        parquet_row_group_size: int = DEFAULT_ROW_GROUP_SIZE,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str | None = "ZSTD",
        parquet_compression_level: int | None = 3,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx,
            input_deps,
            partition_infos,
            len(split_points) + 1 if npartitions is None else npartitions,
            dimension,
            use_parquet_writer,
            False,
            parquet_row_group_size,
            parquet_dictionary_encoding,
            parquet_compression,
            parquet_compression_level,
            output_name,
            output_path,
            cpu_limit,
            memory_limit,
        )
        self.split_points = list(split_points)
        self.sort_keys = list(sort_keys)

    # Of the running attempt: the keys among the input's columns, the points, and these in the form that keys are compared in.
    _keys: list[SortKey] = []
    _is_of_columns = True
    _table: pa.Table | None = None
    _points: pa.Array | None = None

    def cleanup(self) -> None:
        for name in ("_keys", "_is_of_columns", "_table", "_points"):
            self.__dict__.pop(name, None)
        self.input_view_index = 0
        super().cleanup()

    def partition(self, batch_index: int, input_dataset: "DataSet") -> Generator[Chunk, None, None]:
        return chunks_of(self, input_dataset)

    def key_columns(self, columns: Sequence[str]) -> list[str]:
        """The columns of the key; all columns if it has expressions, which may be of any of them."""
        given = len(self.input_datasets) < 2
        self._table = table = points_table(self.split_points) if given else self.input_datasets[1].to_arrow_table()
        self._keys = [key.among(columns) for key in self.sort_keys]
        if not self._keys:
            self._keys = [SortKey(name) for name in columns[: max(1, table.num_columns)]]
        check_width(table, self._keys)
        self._is_of_columns = all(key.by in columns for key in self._keys)
        return [key.by for key in self._keys] if self._is_of_columns else list(columns)

    def key_expression(self, conn: duckdb.DuckDBPyConnection, names: Sequence[str], types: Sequence[Any]) -> str:
        """What compares as the key does; the split points are brought into the same form."""
        values = [quote_name(name) for name in names]
        if not self._is_of_columns:
            values = [key.expression(names) for key in self._keys]
        forms = compared_as(conn, values, zip(names, types, strict=True), self._table)
        self._points = compared_points(conn, self._table, forms, self._keys)
        if len(self.input_datasets) < 2:
            check_ascending(self._points, self.split_points)
        return comparable([f"CAST({value} AS {form})" for value, form in zip(values, forms, strict=True)], self._keys)

    def partitions_of(self, keys: pa.Array | None, num_rows: int) -> Int64s:
        assert keys is not None, "there is always a key"
        assert self._points is not None, "its expression was asked for"
        return points_at_or_before(keys, self._points)


def points_table(split_points: Sequence[Any]) -> pa.Table:
    """Points as a table: a tuple is a point of several columns, any other value one of a single column.

    Raises:
        InvalidArgument: points have different numbers of values, or the values of a column no common type.
    """
    rows = [point if isinstance(point, tuple) else (point,) for point in split_points]
    widths = {len(row) for row in rows}
    if len(widths) > 1 or 0 in widths:
        raise InvalidArgument(f"split points must all have as many values as there are columns, not {sorted(widths)}")
    try:
        columns = [pa.array(values) for values in zip(*rows, strict=True)]
    except (pa.ArrowException, OverflowError) as error:
        raise InvalidArgument(f"the values of a column of the split points must have one type: {error}") from error
    return pa.Table.from_arrays(columns, [f"p{number}" for number in range(len(columns))])


def compared_as(
    conn: duckdb.DuckDBPyConnection,
    values: Sequence[str],
    columns: Iterable[tuple[str, Any]],
    points: pa.Table | None = None,
) -> list[str]:
    """The type in which each value (an expression of `columns`, names with types) is compared with the points' column.

    It is the one that DuckDB compares the two in, unless that is text and the value is none: then it is the value's own, so that a date may be
    given as text. Categories are compared as text: their numbers mean something in their own file only.
    """
    row = ", ".join(f"CAST(NULL AS {kind}) AS {quote_name(name)}" for name, kind in columns)
    own = _types(conn, f"SELECT {', '.join(values)} FROM (SELECT {row})")
    if points is None or not points.num_rows:
        return [_comparable_type(kind) for kind in own]
    conn.register(POINTS, points)
    try:
        forms = []
        for value, kind, name in zip(values, own, points.column_names, strict=True):
            try:
                (common,) = _types(conn, f"SELECT {value} FROM (SELECT {row}) UNION ALL SELECT {name} FROM {POINTS}")
            except InvalidQuery:  # the two have no common type
                common = kind
            is_text = common.id == "varchar" and kind.id not in TEXTS
            forms.append(_comparable_type(kind if is_text else common))
        return forms
    finally:
        conn.unregister(POINTS)


def _types(conn: duckdb.DuckDBPyConnection, query: str) -> list[Any]:
    try:
        types: list[Any] = conn.sql(query).types
    except duckdb.Error as error:
        raise translate_duckdb(error, query) from error
    return types


def _comparable_type(kind: Any) -> str:
    return "VARCHAR" if kind.id == "enum" else str(kind)


def compared_points(
    conn: duckdb.DuckDBPyConnection, points: pa.Table, forms: Sequence[str], keys: Sequence[SortKey]
) -> pa.Array:
    """The points in the form that keys are compared in.

    Raises:
        InvalidArgument: one can't be brought to the type of the keys.
    """
    if not points.num_rows:
        return pa.array([], pa.int64())
    values = [f"CAST({name} AS {form})" for name, form in zip(points.column_names, forms, strict=True)]
    conn.register(POINTS, points)
    try:
        found = conn.sql(f"SELECT {comparable(values, keys)} FROM {POINTS}").to_arrow_table().column(0)
    except duckdb.Error as error:
        raise InvalidArgument(
            f"the split points can't be compared with keys of type {', '.join(forms)}: {error}"
        ) from error
    finally:
        conn.unregister(POINTS)
    return found.combine_chunks() if found.num_chunks != 1 else found.chunk(0)


def check_points(split_points: Sequence[Any], keys: Sequence[SortKey]) -> None:
    """Raise InvalidArgument unless points are as many values as there are keys, and in order; without keys they ascend."""
    table = points_table(split_points)
    if not table.num_rows:
        return
    keys = keys or [SortKey(name) for name in table.column_names]
    check_width(table, keys)
    with connect() as conn:
        conn.register(POINTS, table)
        types = conn.sql(f"FROM {POINTS}").types
        check_ascending(compared_points(conn, table, [_comparable_type(kind) for kind in types], keys), split_points)


def check_width(points: pa.Table, keys: Sequence[SortKey]) -> None:
    """Raise InvalidArgument if points have more or fewer values than there are keys."""
    if points.num_rows and points.num_columns != len(keys):
        raise InvalidArgument(
            f"split points have {points.num_columns} values and there are {len(keys)} columns to compare"
        )


def check_ascending(points: pa.Array, given: Sequence[Any]) -> None:
    """Raise InvalidArgument for the first point that comes before the one before it."""
    found = points.to_pylist()
    for before, after, first, second in zip(found, found[1:], given, given[1:], strict=False):
        if after < before:
            raise InvalidArgument(
                f"split points must be in the order of the partitions: {first!r} comes before {second!r}"
            )
