"""INTERVAL columns: Parquet's lose microseconds and can't be negative, so they live within a query, and one that would be stored is told early."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import smallpond_mpi as sp
from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.logical import lowering


@pytest.fixture
def df(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sp.DataFrame]:
    """0 to 49, and the negative interval of so many microseconds."""
    monkeypatch.setenv("SP_PROGRESS", "none")
    session = sp.init(data_root=str(tmp_path))
    numbers = session.from_items([{"a": number} for number in range(50)]).repartition(3, by_rows=True)
    yield numbers.with_columns(wait="to_microseconds(-a)")
    session.shutdown()


@pytest.mark.parametrize("one_task_bytes", [1, 1 << 40])
def test_within_a_query_they_are_exact(df: sp.DataFrame, monkeypatch: pytest.MonkeyPatch, one_task_bytes: int) -> None:
    monkeypatch.setattr(lowering, "ONE_TASK_BYTES", one_task_bytes)
    assert df.select(us="epoch_us(wait)").take(3) == [{"us": 0}, {"us": -1}, {"us": -2}]
    assert df.filter("wait < to_microseconds(-47)").select("a").to_arrow()["a"].to_pylist() == [48, 49]
    whole = df.session.from_items([{"a": number} for number in range(50)]).with_columns(wait="to_microseconds(-a)")
    groups = whole.group_by(odd="a % 2").agg(least="epoch_us(min(wait))").sort("odd")
    assert groups.take_all() == [{"odd": 0, "least": -48}, {"odd": 1, "least": -49}]


def test_one_that_would_be_stored_is_told_before_anything_runs(df: sp.DataFrame) -> None:
    waits = (
        "column '(wait|x)' is of type .*INTERVAL.*, which files .* can't hold exactly: .*epoch_us.*test_intervals.py:"
    )
    for stored in (df, df.repartition(2, hash_by="a"), df.map("[{'x': wait}] as x"), df.sort("a", npartitions=2)):
        with pytest.raises(InvalidArgument, match=waits):
            stored.to_arrow()
    with pytest.raises(InvalidArgument, match=waits):
        df.write_parquet("/nowhere/at/all")


def test_what_a_function_returns_is_told_after_one_attempt(df: sp.DataFrame) -> None:
    def with_interval(table: pa.Table) -> pa.Table:
        return pa.table({"i": pa.array([pa.scalar((1, 2, 3), pa.month_day_nano_interval())])})

    with pytest.raises(InvalidArgument, match=r"Parquet can't hold the output: .*interval[\s\S]*failed on rank 0"):
        df.select("a").map_batches(with_interval).count()


def test_durations_are_numbers_to_sql_and_known_to_be(df: sp.DataFrame) -> None:
    """As of any Parquet file that Arrow or pandas wrote."""
    times = df.session.from_arrow(pa.table({"d": pa.array([5, None], pa.duration("us"))}))
    assert times.map("d").schema.field("d").type == pa.int64()
    assert times.select(half="d // 5").take_all() == [{"half": 1}, {"half": None}]


def test_a_sort_by_one_is_refused_whatever_the_number_of_rows(df: sp.DataFrame) -> None:
    with pytest.raises(InvalidArgument, match=r"epoch_us.*test_intervals.py:"):
        df.sort("to_microseconds(a) - to_microseconds(1)")
