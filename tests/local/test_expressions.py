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
from smallpond_mpi.common import InvalidArgument, WrongType
from smallpond_mpi.logical import lowering

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
