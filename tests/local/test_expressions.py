"""SQL expressions in DataFrames: what they may be, and that what is planned for them gives the rows of one query."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from duckdb import ColumnExpression

import smallpond_mpi as sp
from smallpond_mpi.common import InvalidArgument, InvalidQuery, WrongType
from smallpond_mpi.logical import lowering
from smallpond_mpi.logical.expressions import is_by_row, parse_all

DAY = dt.date(2020, 1, 1)
NOON = dt.datetime(2020, 1, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sp.Session]:
    monkeypatch.setenv("SP_PROGRESS", "none")
    opened = sp.init(data_root=str(tmp_path / "root"))
    yield opened
    opened.shutdown()


@pytest.fixture
def df(session: sp.Session, monkeypatch: pytest.MonkeyPatch) -> sp.DataFrame:
    """120 rows in three partitions; whatever needs rows together moves them."""
    monkeypatch.setattr(lowering, "ONE_TASK_BYTES", 1)
    monkeypatch.setattr(lowering, "SHUFFLE_COST", 0)
    rows = [
        {"a": i % 3, "s": {"a": i % 4}, "d": DAY + dt.timedelta(days=i), "z": NOON + dt.timedelta(hours=i)}
        for i in range(120)
    ]
    return session.from_items(rows).repartition(3, by_rows=True)


def test_a_field_of_a_struct_is_no_key_of_a_window(df: sp.DataFrame) -> None:
    """Rows would be brought together by the column of that name."""
    with pytest.raises(InvalidArgument, match=r"common column.*key=\[\].*test_expressions.py:"):
        df.with_columns(n="count(*) over (partition by s.a)")
    with pytest.raises(InvalidArgument, match="not partitioned by its key"):
        df.with_columns(n="count(*) over (partition by s.a)", key="a")
    found = df.with_columns(n="count(*) over (partition by s.a)", key=[])
    assert set(found.to_arrow()["n"].to_pylist()) == {30}


def test_keys_of_windows_are_columns_whatever_their_case(df: sp.DataFrame) -> None:
    found = df.with_columns(n="count(*) over (partition by a, d)", m="sum(a) over (partition by A)").to_arrow()
    assert set(found["n"].to_pylist()) == {1}
    assert set(found["m"].to_pylist()) == {0, 40, 80}


def test_means_of_days_and_times(df: sp.DataFrame) -> None:
    found = df.group_by("a").agg(day="avg(d)", time="avg(z)", n="count(*)").sort("a").take_all()
    noon = dt.datetime(2020, 1, 1)
    assert [row["day"] for row in found] == [noon + dt.timedelta(days=a + 58.5) for a in range(3)]
    assert [row["time"] for row in found] == [NOON + dt.timedelta(hours=a + 58.5) for a in range(3)]


def test_duckdbs_own_expressions(df: sp.DataFrame) -> None:
    assert df.filter(ColumnExpression("a") > 1).count() == 40
    assert df.map((ColumnExpression("a") + 1).alias("b")).distinct().sort("b").take_all() == [
        {"b": 1},
        {"b": 2},
        {"b": 3},
    ]
    with pytest.raises(WrongType, match="by must be a text"):
        df.sort(ColumnExpression("a").desc())  # type: ignore[arg-type] # its text would not tell that it descends


def test_comments(df: sp.DataFrame) -> None:
    assert df.filter("a = 1 -- the ones").count() == 40
    assert df.map("a + 1 as b -- the next").columns == ["b"]


def test_the_time_is_the_same_for_all_readers_of_a_frame(df: sp.DataFrame) -> None:
    stamped = df.select("d", t="now()")
    both = stamped.join(stamped.select("d", u="t"), "d")
    assert both.filter("t <> u").count() == 0


@pytest.mark.parametrize(("aggregate", "in_parts"), [("sum(a)", True), ("stddev(a)", True), ("median(a)", False)])
def test_sums_are_taken_before_rows_move_where_they_can_be(df: sp.DataFrame, aggregate: str, in_parts: bool) -> None:
    plan = df.group_by("s").agg(x=aggregate).explain()
    assert "HashPartition" in plan
    assert ("count(" in plan or "sum(" in plan.partition("HashPartition")[2]) == in_parts, plan


def test_small_tables_are_joined_where_they_are_needed(session: sp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    large = session.from_arrow(pa.table({"k": rng.integers(0, 1000, 400_000), "v": rng.random(400_000)}))
    small = session.from_items([{"k": k, "w": k} for k in range(1000)])
    monkeypatch.setattr(lowering, "ONE_TASK_BYTES", 1 << 20)
    assert "HashPartition" not in large.join(small, "k").explain()
    monkeypatch.setattr(lowering, "SHUFFLE_COST", 0)
    assert large.join(large.select("k", u="v"), "k").explain().count("HashPartition") == 2


def test_a_plan_tells_what_was_measured_of_what_ran(df: sp.DataFrame) -> None:
    some = df.filter("a > 0")
    assert "num output rows" not in some.explain()
    some.compute()
    (measured,) = [line for line in some.explain().splitlines()[:5] if "num output rows" in line]
    assert measured.strip().startswith("num output rows: sum 80, ")
    assert "num output rows: sum 80, " in some.select("a").explain(), "below what is still to run"


def test_show(df: sp.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    df.select("a", text="if(a = 1, null, repeat('long', 100))").show(2)
    shown = capsys.readouterr().out
    assert "text" in shown
    assert "longlong" in shown
    assert "NULL" in shown
    assert "long" * 100 not in shown
    df.filter("a > 5").select("a").show()
    assert "a" in capsys.readouterr().out


def test_batches_are_read_a_row_group_at_a_time(session: sp.Session, tmp_path: Path) -> None:
    """Rank 0 may have less memory than a file has bytes."""
    rng = np.random.default_rng(1)
    path = str(tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"x": rng.random(4_000_000)}), path, row_group_size=100_000, compression="none")
    before = pa.total_allocated_bytes()
    most = 0
    for batch in session.read_parquet(path).iter_batches(50_000):
        assert batch.num_rows == 50_000
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 8_000_000, "of 32 MB"


@pytest.mark.parametrize(
    "text", ["distinct a", "a order by a", "a limit 3", "a group by a", "a qualify true", "a using sample 3"]
)
def test_what_concerns_all_rows_is_no_expression(df: sp.DataFrame, text: str) -> None:
    with pytest.raises(InvalidQuery, match="is a query"):
        df.select(text)


def test_a_query_of_all_rows_in_a_map_gets_all_rows_of_a_partition(df: sp.DataFrame) -> None:
    assert df.repartition(1).map("distinct a").count() == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + 1", True),
        ("year(d) - 2000", True),
        ("date_trunc('day', z)", True),
        ("random()", False),
        ("uuid()", False),
        ("now()", False),
        ("current_timestamp", False),
        ("a + date_part('day', current_date)", False),
        ("age(z)", False),
    ],
)
def test_what_follows_from_a_row_alone(text: str, expected: bool) -> None:
    assert is_by_row(parse_all([text])) == expected


def test_a_window_over_groups_is_refused(df: sp.DataFrame) -> None:
    """Each partition of groups would rank its own."""
    with pytest.raises(InvalidArgument, match=r"several groups.*with_columns.*test_expressions.py:"):
        df.group_by("d").agg(n="sum(a)", place="rank() over (order by sum(a) desc)")
    places = df.group_by("d").agg(n="sum(a)").with_columns(place="rank() over (order by n desc)", key=[])
    assert sorted(places.to_arrow()["place"].to_pylist()) == [1] * 40 + [41] * 40 + [81] * 40


def test_a_new_column_of_another_new_one(df: sp.DataFrame) -> None:
    more = df.with_columns(x="a + 1", y="x * 2")
    assert more.select("y").group_by("y").agg(n="count(*)").sort("y").take_all() == [
        {"y": 2, "n": 40},
        {"y": 4, "n": 40},
        {"y": 6, "n": 40},
    ]


def test_a_small_table_with_random_content_is_the_same_for_all_partitions(session: sp.Session, tmp_path: Path) -> None:
    pq.write_table(pa.table({"k": [i % 5 for i in range(4000)]}), tmp_path / "large.parquet", row_group_size=1000)
    large = session.read_parquet(str(tmp_path / "large.parquet")).repartition(4, by_rows=True)
    named = session.from_items([{"k": k} for k in range(5)]).with_columns(name="uuid()")
    assert len(set(large.join(named, on="k").to_arrow()["name"].to_pylist())) == 5


def test_the_first_rows_of_a_sort_are_those_of_the_whole_sort(session: sp.Session) -> None:
    twins = session.from_arrow(pa.table({"a": [3, 1], "A": ["x", "y"], "b": [1, 2]}))
    assert twins.sort("A", descending=True).take(1) == [{"a": 1, "A": "y", "b": 2}]
    zone = pa.timestamp("us", "Europe/Berlin")
    table = pa.table({"wait": pa.array([2, 1], pa.duration("us")), "at": pa.array([NOON, NOON], zone), "n": [0, 1]})
    first = session.from_arrow(table).sort("wait").limit(1).to_arrow()
    assert first.schema.types == table.schema.types
    assert first.to_pylist() == table.slice(1).to_pylist()
    made = session.from_items([2, 1]).map_batches(
        lambda batch: pa.table({"wait": batch["item"].cast(pa.duration("s"))})
    )
    assert made.columns == ["wait"]  # known to SQL, as numbers
    assert made.sort("wait").take(1) == [{"wait": dt.timedelta(microseconds=1_000_000)}]
