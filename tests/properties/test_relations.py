"""Each relational operation of a DataFrame gives DuckDB's rows, on random tables, however they are cut and brought together.

A real session runs them. The ways to bring rows together (all in one task, broadcast, shuffle) are forced one after the other: what is guessed
of sizes must never change a result.
"""

import math
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import smallpond_mpi as sp
from smallpond_mpi.logical import lowering

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # each example runs a job: shrinking one would take minutes
common = settings(
    max_examples=max(1, int(os.environ.get("SP_TEST_EXAMPLES", "100")) // 20),
    suppress_health_check=list(HealthCheck),
    phases=PHASES,
)

WAYS = {
    "one task": {"ONE_TASK_BYTES": 1 << 40},
    "broadcast": {"ONE_TASK_BYTES": 1, "SHUFFLE_COST": 1 << 40},
    "shuffle": {"ONE_TASK_BYTES": 1, "SHUFFLE_COST": 0},
}

SCHEMA = pa.schema(
    [
        ("k", pa.int64()),
        ("a b", pa.string()),
        ('it"s {0}', pa.float64()),
        ("d", pa.decimal128(20, 3)),
        ("ts", pa.timestamp("us", "UTC")),
        ("l", pa.list_(pa.int32())),
        ("r", pa.struct([("x", pa.int32()), ("y", pa.string())])),
    ]
)
long_texts = st.builds(lambda text, times: text * times, st.sampled_from(["x", "long ", "ö"]), st.integers(300, 5000))
COLUMNS = SCHEMA.names
row = st.fixed_dictionaries(
    {
        "k": st.none() | st.integers(-2, 4),
        "a b": st.none()
        | st.sampled_from(["", "a", "A", "ä\N{GRINNING FACE}", "it's", "{1}"])
        | st.text(max_size=3)
        | long_texts,
        'it"s {0}': st.none() | st.sampled_from([math.nan, math.inf, -0.0, 0.0, 1.25, -3.5, 1e12]),
        "d": st.none() | st.decimals(-1000, 1000, places=3),
        "ts": st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1)),
        "l": st.none() | st.lists(st.none() | st.integers(0, 2), max_size=2),
        "r": st.none() | st.fixed_dictionaries({"x": st.none() | st.integers(0, 1), "y": st.none() | st.just("é")}),
    }
)
tables = st.lists(row, max_size=12).map(lambda rows: pa.Table.from_pylist(rows, schema=SCHEMA))
cuts = st.sampled_from([0, 1, 3, -3])
"""How a table is cut: not at all, by rows, or (negative) by hash, which leaves partitions empty."""


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WAYS[request.param].items():
            patch.setattr(lowering, name, value)
        yield


def frame(session: sp.Session, table: pa.Table, cut: int) -> sp.DataFrame:
    made = session.from_arrow(table)
    if cut > 0:
        return made.repartition(cut, by_rows=True)
    return made.repartition(-cut, hash_by="k") if cut else made


def plain(value: Any) -> Any:
    """A value that compares: NaN equals itself, -0.0 is 0.0, what floats round is cut off."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else float(f"{value + 0.0:.9g}")
    if isinstance(value, list):
        return [plain(part) for part in value]
    return {name: plain(part) for name, part in value.items()} if isinstance(value, dict) else value


def rows_of(table: pa.Table) -> list[str]:
    return sorted(repr([plain(value) for value in line.values()]) for line in table.to_pylist())


def check(df: sp.DataFrame, query: str, **given_tables: pa.Table) -> None:
    """The frame has the rows of the query, and the columns that were known before."""
    known = df.columns
    with duckdb.connect() as conn:
        conn.execute("SET TimeZone = 'UTC'").fetchall()
        for name, table in given_tables.items():
            conn.register(name, table)
        expected = conn.sql(query).to_arrow_table()
    found = df.to_arrow()
    assert found.column_names == expected.column_names == known
    assert rows_of(found) == rows_of(expected)


@common
@given(t=tables, cut=cuts)
def test_columns(session: sp.Session, t: pa.Table, cut: int) -> None:
    df = frame(session, t, cut)
    check(df.select("a b", 'it"s {0}', m="k * 2"), 'select "a b", "it""s {0}", k * 2 as m from t', t=t)
    check(df.select(duckdb.ColumnExpression("k") + 1, "{'a': k} as s"), "select k + 1, {'a': k} as s from t", t=t)
    check(df.with_columns(K="k + 1", n="len(l)"), 'select k + 1 as "K", * exclude (k), len(l) as n from t', t=t)
    check(df.rename({"a b": 'x"y', "K": "key"}), 'select * rename ("a b" as "x""y", k as key) from t', t=t)
    check(df.drop("a b", "L").filter("k > 0"), 'select * exclude ("a b", l) from t where k > 0', t=t)


@common
@given(
    t=tables,
    u=tables,
    cut=cuts,
    other_cut=cuts,
    how=st.sampled_from(["inner", "left", "right", "full", "semi", "anti"]),
)
def test_joins(session: sp.Session, t: pa.Table, u: pa.Table, cut: int, other_cut: int, how: str) -> None:
    u = u.select(["k", "a b", "l"])
    left, right = frame(session, t, cut).select("k", "a b", "d"), frame(session, u, other_cut)
    if how in ("semi", "anti"):
        check(left.join(right, on=["k"], how=how), f'select k, "a b", d from t {how} join u using (k)', t=t, u=u)
        return
    key = {"right": "u.k", "full": "coalesce(t.k, u.k)"}.get(how, "t.k")
    check(
        left.join(right, on="k", how=how),
        f'select {key} as k, t."a b", d, u."a b" as "a b_right", u.l from t {how} join u on t.k = u.k',
        t=t,
        u=u,
    )
    check(
        left.rename(k="x").join(right.select("k", "a b"), on=["a b", ("x", "k")], how=how),
        f'select t.k as x, {key.replace(".k", chr(46) + chr(34) + "a b" + chr(34))} as "a b", d, u.k from t {how} join u on t.k = u.k and t."a b" = u."a b"',
        t=t,
        u=u,
    )


@common
@given(t=tables, u=tables, cut=cuts, key=st.sampled_from(COLUMNS), how=st.sampled_from(["inner", "left", "full"]))
def test_joins_on_any_column(session: sp.Session, t: pa.Table, u: pa.Table, cut: int, key: str, how: str) -> None:
    quoted = '"' + key.replace('"', '""') + '"'
    left, right = frame(session, t, cut).select(key, x="k"), frame(session, u, 1).select(key, y="d")
    check(
        left.join(right, on=key, how=how),
        f"select coalesce(t.{quoted}, u.{quoted}) as {quoted}, t.k as x, u.d as y from t {how} join u on t.{quoted} = u.{quoted}",
        t=t,
        u=u,
    )


@common
@given(t=tables, u=tables, cut=cuts)
def test_cross_joins(session: sp.Session, t: pa.Table, u: pa.Table, cut: int) -> None:
    left, right = frame(session, t, cut).select("k"), frame(session, u, 2).select("d")
    check(left.join(right, how="cross"), "select t.k, u.d from t, u", t=t, u=u)


@common
@given(
    t=tables,
    cut=cuts,
    keys=st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=2, unique=True),
    descending=st.booleans(),
    nulls_last=st.booleans(),
    npartitions=st.sampled_from([1, 3]),
)
def test_sorts(
    session: sp.Session,
    t: pa.Table,
    cut: int,
    keys: list[str],
    descending: bool,
    nulls_last: bool,
    npartitions: int,
) -> None:
    """In order over all partitions; the first rows too."""
    df = frame(session, t, cut).sort(keys, descending=descending, nulls_last=nulls_last, npartitions=npartitions)
    how = f"{'desc' if descending else 'asc'} nulls {'last' if nulls_last else 'first'}"
    quoted = ['"' + key.replace('"', '""') + '"' for key in keys]
    with duckdb.connect() as conn:
        conn.execute("SET TimeZone = 'UTC'").fetchall()
        order = ", ".join(f"{key} {how}" for key in quoted)
        expected = conn.sql(f"select {', '.join(quoted)} from t order by {order}").to_arrow_table().to_pylist()
    found = df.to_arrow()
    assert rows_of(found) == rows_of(t)
    assert plain(found.select(keys).to_pylist()) == plain(expected)
    assert plain([{key: line[key] for key in keys} for line in df.head(3).take_all()]) == plain(expected[:3])


@common
@given(t=tables, cut=cuts, key=st.sampled_from(["k", "a b", 'it"s {0}', "ts", "l", "r"]))
def test_groups(session: sp.Session, t: pa.Table, cut: int, key: str) -> None:
    quoted = '"' + key.replace('"', '""') + '"'
    df = frame(session, t, cut)
    split = "count(*) as n, count(d) as c, sum(k) as s, sum(d) as sd, min(ts) as lo, max(l) as hi, avg(k) as m, bool_or(k > 1) as b"
    more = "stddev(k) as sd1, var_pop(k) as vp, avg(d) as ad, count(*) filter (k > 0) as f, sum(k) + count(*) as x"
    select = f"{quoted}, {split}, {more}".replace("sum(k) as", "sum(k)::bigint as").replace(
        "sum(k) +", "sum(k)::bigint +"
    )
    check(df.group_by(key).agg(split, more), f"select {select} from t group by 1", t=t)
    whole = "count(distinct k) as n, median(k) as m, mode(k % 1) as o"
    check(df.group_by(key).agg(whole, c="count(*)"), f"select {quoted}, {whole}, count(*) as c from t group by 1", t=t)
    check(df.agg(split, more), f"select {select.removeprefix(quoted + ', ')} from t", t=t)
    check(df.agg(whole), f"select {whole} from t", t=t)
    check(
        df.group_by("k % 2 as p", key).agg(n="count(*)"),
        f"select k % 2 as p, {quoted}, count(*) as n from t group by 1, 2",
        t=t,
    )


@common
@given(t=tables, u=tables, cut=cuts, other_cut=cuts)
def test_distinct_rows_and_unions(session: sp.Session, t: pa.Table, u: pa.Table, cut: int, other_cut: int) -> None:
    one, other = frame(session, t, cut), frame(session, u, other_cut)
    check(one.distinct(), "select distinct * from t", t=t)
    check(one.select("k", "l").distinct(), "select distinct k, l from t", t=t)
    check(one.distinct("k", "a b").select("k", "a b"), 'select distinct k, "a b" from t', t=t)
    check(one.union(other), "from t union all from u", t=t, u=u)
    by_place = one.select("k", "d").union(other.select(x="k + 1", y="d"), by_name=False)
    check(by_place, "select k, d from t union all select k + 1, d from u", t=t, u=u)
    reordered = other.select("d", "k").union(one.select("k", d="d::double"))
    check(reordered, "select d::double as d, k from u union all select d::double, k from t", t=t, u=u)


@common
@given(t=tables, cut=cuts)
def test_windows(session: sp.Session, t: pa.Table, cut: int) -> None:
    df = frame(session, t, cut)
    window = "count(*) over (partition by k)"
    check(df.with_columns(n=window), f"select *, {window} as n from t", t=t)
    check(
        df.with_columns(n="sum(d) over (partition by k, l)", key="k"),
        "select *, sum(d) over (partition by k, l) as n from t",
        t=t,
    )
    ordered = "rank() over (partition by k order by d desc nulls last), sum(d) over (partition by k order by ts)"
    first, second = ordered.split("), ")
    check(df.with_columns(n=first + ")", s=second), f"select *, {first}) as n, {second} as s from t", t=t)
    check(df.with_columns(n="count(*) over ()", key=[]), "select *, count(*) over () as n from t", t=t)
