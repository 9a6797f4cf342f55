"""Tables of thousands of columns, and what describe() says of columns of every type."""

from collections.abc import Callable
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import smallpond_mpi as sp
from smallpond_mpi.logical import expressions, lowering, query_columns, schema

WIDTH = 2000
OF_ALL_TYPES = """
    SELECT i, i % 7 AS "m m", (i % 3) / 2.0 AS f, CASE WHEN i % 2 = 0 THEN i::varchar END AS s, [i % 2] AS l, {'a': i % 5} AS st, i % 2 = 0 AS b,
    DATE '2020-01-01' + i::int AS d, (i / 10)::decimal(10, 2) AS dec, NULL::int AS n, map {'a': i % 3} AS ma, i::varchar::blob AS bl,
    CASE i % 4 WHEN 0 THEN 'nan'::double WHEN 1 THEN 0.0 WHEN 2 THEN '-0.0'::double END AS z, CASE WHEN i = 3 THEN 'inf'::float ELSE 1 END AS "{inf}"
    FROM range(100) t(i)
"""


@pytest.mark.parametrize("one_task_bytes", [1, 1 << 40])
def test_describe(session: sp.Session, monkeypatch: pytest.MonkeyPatch, one_task_bytes: int) -> None:
    monkeypatch.setattr(lowering, "ONE_TASK_BYTES", one_task_bytes)
    table = duckdb.sql(OF_ALL_TYPES).to_arrow_table()
    rows = session.from_arrow(table).repartition(3, by_rows=True).describe().take_all()
    assert [row["column"] for row in rows] == table.column_names
    with duckdb.connect() as conn:
        conn.register("t", table)
        for row in rows:
            name = '"' + row["column"] + '"'
            ((count, nulls, distinct),) = conn.sql(
                f"SELECT count({name}), count(*) - count({name}), count(DISTINCT {name}) FROM t"
            ).fetchall()
            assert (row["count"], row["nulls"], row["num_distinct"]) == (count, nulls, distinct), row
        ((mean, std),) = conn.sql("SELECT avg(dec), stddev(dec) FROM t").fetchall()
    of = {row["column"]: row for row in rows}
    assert (of["dec"]["mean"], of["dec"]["std"]) == pytest.approx((mean, std))
    assert (of["dec"]["min"], of["dec"]["max"], of["s"]["max"]) == ("0.00", "9.90", "98")
    assert (of["l"]["min"], of["s"]["mean"], of["n"]["std"]) == (None, None, None)
    assert repr(of["z"]["mean"]) == repr(of["z"]["std"]) == repr(of["{inf}"]["std"]) == "nan"
    assert of["{inf}"]["max"] == "inf"


def test_describe_of_no_rows(session: sp.Session) -> None:
    nothing = session.from_arrow(duckdb.sql(OF_ALL_TYPES).to_arrow_table()).filter("i > 1000").describe().take_all()
    assert len(nothing) == 14
    assert all((row["count"], row["nulls"], row["num_distinct"], row["max"]) == (0, 0, 0, None) for row in nothing)


COLUMNS = [f"c{number}" for number in range(WIDTH)]


@pytest.mark.parametrize(
    "operation",
    [
        lambda df: df.select(*COLUMNS),
        lambda df: df.select(*(f"{name} + 1 AS {name}" for name in COLUMNS)),
        lambda df: df.with_columns(**{f"{name}x": f"{name} + 1" for name in COLUMNS}),
        lambda df: df.rename({name: f"{name}x" for name in COLUMNS}),
        lambda df: df.drop(*COLUMNS[1:]),
        lambda df: df.group_by("k").agg(**{name: f"avg({name})" for name in COLUMNS}),
        lambda df: df.join(df, "k"),
        lambda df: df.sort(["k", "c7 desc", "c8 + 1"]),
        lambda df: df.with_columns(r="row_number() over (partition by k)"),
        lambda df: df.distinct(),
    ],
)
def test_duckdb_is_asked_once_for_all_columns(
    session: sp.Session, monkeypatch: pytest.MonkeyPatch, operation: Callable[[Any], Any]
) -> None:
    """Not once a column: what is asked, not how long it takes, is counted."""
    df = session.from_arrow(pa.table({**{name: [1, 2] for name in COLUMNS}, "k": [1, 1]}))
    asked = []
    scratch = query_columns.scratch

    def counted(alone: bool = False) -> Any:
        asked.append(alone)
        return scratch(alone)

    for module in (schema, query_columns, expressions):
        monkeypatch.setattr(module, "scratch", counted)
    operation(df)
    assert len(asked) < 60


def test_wide_rows_come_through(session: sp.Session) -> None:
    df = session.from_arrow(pa.table({**{name: [1, 2, 3] for name in COLUMNS}, "k": [1, 1, 2]}))
    sums = df.group_by("k").agg(**{name: f"sum({name})" for name in COLUMNS}).sort("k").take_all()
    assert sums == [{"k": 1, **dict.fromkeys(COLUMNS, 3)}, {"k": 2, **dict.fromkeys(COLUMNS, 3)}]
    joined = df.sort("c5", descending=True, npartitions=2).select(*COLUMNS, twice="c1 * 2")
    assert joined.take(1) == [{**dict.fromkeys(COLUMNS, 3), "twice": 6}]
