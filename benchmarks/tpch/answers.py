"""DuckDB's answers to the queries as SQL, and whether ours are the same."""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SQL = Path(__file__).parent / "sql"
RELATIVE_ERROR = 1e-9
"""Of what is computed in floating point (averages, quotients): the order of summing is nobody's promise."""


def sql_of(name: str, scale: float) -> str:
    """The text of a query."""
    return (SQL / f"{name}.sql").read_text().replace("$fraction", f"{0.0001 / scale:.10f}")


def create_views(conn: "duckdb.DuckDBPyConnection", files: Mapping[str, Sequence[str]]) -> None:
    """The tables as views of their files."""
    for name, paths in files.items():
        conn.execute(f"CREATE OR REPLACE VIEW {name} AS FROM read_parquet({list(paths)})")


def difference(ours: "pa.Table", theirs: "pa.Table", query: str) -> str | None:
    """What is different between two answers, None if nothing is: columns, rows, and their order as far as the query gives one."""
    if ours.column_names != theirs.column_names:
        return f"columns {ours.column_names} instead of {theirs.column_names}"
    if ours.num_rows != theirs.num_rows:
        return f"{ours.num_rows} rows instead of {theirs.num_rows}"
    for one, other in zip(_sorted_rows(ours), _sorted_rows(theirs), strict=True):
        if not _same(one, other):
            return f"a row {one} instead of {other}"
    keys = order_of(query)
    if not keys:
        return None
    for number, (one, other) in enumerate(zip(_rows(ours.select(keys)), _rows(theirs.select(keys)), strict=True)):
        if not _same(one, other):
            return f"row {number} has {one} instead of {other} in {', '.join(keys)}"
    return None


def order_of(query: str) -> list[str]:
    """The columns that a query's result is ordered by."""
    found = re.findall(r"^ORDER BY (.*)$", query, re.MULTILINE)
    return [key.split()[0] for key in found[-1].split(",")] if found else []


def _rows(table: "pa.Table") -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _sorted_rows(table: "pa.Table") -> list[tuple[Any, ...]]:
    """Floats last: they may differ a little."""
    return sorted(_rows(table), key=lambda row: ([v for v in row if not isinstance(v, float)], row))


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(map(_equal, one, other))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return one is not None and other is not None and math.isclose(one, other, rel_tol=RELATIVE_ERROR)
    number = (int, Decimal)
    return bool(one == other) and (isinstance(one, number) == isinstance(other, number))
