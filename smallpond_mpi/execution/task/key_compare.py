"""In which type keys are compared, with each other and with split points.

Files of one table may hold a column in several types, and points may be given in yet another: each reader compares the two as values, in the
type that DuckDB compares them in, so that all come to the same answer.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import duckdb
import pyarrow as pa

from smallpond_mpi.common import InvalidArgument, InvalidQuery
from smallpond_mpi.execution.task.engine import connect, translate_duckdb
from smallpond_mpi.execution.task.partition_key import TEXTS
from smallpond_mpi.execution.task.sort_key import InputKeys, SortKey
from smallpond_mpi.io.arrow_types import durations_as_numbers
from smallpond_mpi.logical.dataset.quoting import quote_name

POINTS = "__split_points"


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
    return durations_as_numbers(pa.Table.from_arrays(columns, [f"p{number}" for number in range(len(columns))]))


def compared_as(
    conn: duckdb.DuckDBPyConnection,
    values: Sequence[str],
    names: Sequence[str],
    types: Sequence[Any],
    points: pa.Table | None = None,
) -> list[str]:
    """The type in which each value (an expression of columns with these names and types) is compared with the points' column.

    It is the one that DuckDB compares the two in, unless that is text and the value is none: then it is the value's own, so that a date may be
    given as text. Categories are compared as text: their numbers mean something in their own file only.
    """
    row = ", ".join(f"CAST(NULL AS {kind}) AS {quote_name(name)}" for name, kind in zip(names, types, strict=True))
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


def cast_to(forms: Iterable[str], values: Iterable[str]) -> list[str]:
    """The values in these types."""
    return [f"CAST({value} AS {form})" for form, value in zip(forms, values, strict=True)]


def _types(conn: duckdb.DuckDBPyConnection, query: str) -> list[Any]:
    try:
        types: list[Any] = conn.sql(query).types
    except duckdb.Error as error:
        raise translate_duckdb(error, query) from error
    return types


def _comparable_type(kind: Any) -> str:
    return "VARCHAR" if kind.id == "enum" else str(kind)


def compared_points(
    conn: duckdb.DuckDBPyConnection, points: pa.Table, forms: Sequence[str], keys: InputKeys
) -> pa.Array:
    """The points in the form that keys are compared in.

    Raises:
        InvalidArgument: one can't be brought to the type of the keys.
    """
    if not points.num_rows:
        return pa.array([], pa.int64())
    values = cast_to(forms, points.column_names)
    conn.register(POINTS, points)
    try:
        found = conn.sql(f"SELECT {keys.comparable(values)} FROM {POINTS}").to_arrow_table().column(0)
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
    among = InputKeys(list(keys) or [SortKey(name) for name in table.column_names], True, table.column_names)
    check_width(table, among)
    with connect() as conn:
        conn.register(POINTS, table)
        types = conn.sql(f"FROM {POINTS}").types
        check_ascending(compared_points(conn, table, [_comparable_type(kind) for kind in types], among), split_points)


def check_width(points: pa.Table, keys: InputKeys) -> None:
    """Raise InvalidArgument if points have more or fewer values than there are keys."""
    if points.num_rows and points.num_columns != len(keys.keys):
        raise InvalidArgument(
            f"split points have {points.num_columns} values and there are {len(keys.keys)} columns to compare"
        )


def check_ascending(points: pa.Array, given: Sequence[Any]) -> None:
    """Raise InvalidArgument for the first point that comes before the one before it."""
    for (before, first), (after, second) in pairwise(zip(points.to_pylist(), given, strict=True)):
        if after < before:
            raise InvalidArgument(
                f"split points must be in the order of the partitions: {first!r} comes before {second!r}"
            )
