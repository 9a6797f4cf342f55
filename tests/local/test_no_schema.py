"""Partitions without rows, of which nobody can tell the columns: a function that was called for no row says nothing of what it returns."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import smallpond_mpi as sp
from smallpond_mpi.common import InvalidArgument


@pytest.fixture
def df(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """0 to 99 in four partitions."""
    monkeypatch.setenv("SP_PROGRESS", "none")
    session = sp.init(data_root=str(tmp_path))
    yield session.from_arrow(pa.table({"a": range(100)})).repartition(4, by_rows=True)
    session.shutdown()


def double(row: dict[str, Any]) -> dict[str, Any]:
    return {"b": row["a"] * 2}


def test_partitions_without_rows_are_no_hindrance(df: Any) -> None:
    few = df.filter("a < 30").map(double)  # two of four partitions have no rows
    assert few.to_arrow()["b"].to_pylist() == list(range(0, 60, 2))
    assert few.filter("b > 10").count() == 24
    assert few.repartition(3, hash_by="b").partial_sort("b").count() == 30
    assert few.map(lambda row: {"c": row["b"]}).count() == 30
    assert few.map_batches(lambda table: table.append_column("c", table["b"])).filter("c >= 40").count() == 10
    assert few.sort("b desc").take(2) == [{"b": 58}, {"b": 56}]
    assert df.flat_map(lambda row: [{"q": 1}] * (row["a"] == 99)).filter("q = 1").to_arrow().num_rows == 1


def test_no_partition_has_rows(df: Any) -> None:
    none = df.filter("a < 0").map(double)
    assert none.count() == none.filter("b > 1").count() == 0
    assert none.to_arrow().num_rows == none.repartition(3, hash_by="b").to_arrow().num_rows == 0
    assert none.take(3) == none.take_all() == []
    assert none.to_pandas().shape == (0, 0)


def test_a_schema_says_it(df: Any) -> None:
    none = df.filter("a < 0").map(double, schema=pa.schema({"b": pa.int64()}))
    assert none.to_arrow().schema == pa.schema({"b": pa.int64()})
    left = df.repartition(3, hash_by="a")
    joined = df.session.partial_sql(
        "select a, b from {0} left join {1} on a = b", left, none.repartition(3, hash_by="b")
    )
    assert joined.filter("b is null").count() == 100


def test_rows_of_another_input_are_not_lost(df: Any) -> None:
    """Of a left join with such a partition the left rows would be missing, and nobody would see it."""
    none = df.filter("a < 0").map(double)
    for right in (none, none.repartition(4, hash_by="b"), none.filter("b > 0").repartition(4, hash_by="b")):
        left = df.repartition(4, hash_by="a") if right is not none else df
        with pytest.raises(InvalidArgument, match=r"input 1 has no rows .* schema=") as raised:
            df.session.partial_sql("select a, b from {0} left join {1} on a = b", left, right).count()
        assert "test_no_schema.py:" in str(raised.value)


def test_two_such_inputs_have_nothing_to_lose(df: Any) -> None:
    none = df.filter("a < 0")
    one, other = none.map(double), none.map(double)
    assert df.session.partial_sql("select {0}.b from {0} join {1} using (b)", one, other).count() == 0


def test_a_job_that_skips_tasks_with_empty_inputs_skips_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_PROGRESS", "none")
    session = sp.init(data_root=str(tmp_path), skip_task_with_empty_input=True)
    df = session.from_arrow(pa.table({"a": range(100)})).repartition(4, by_rows=True)
    few = df.filter("a < 30").map(double)  # two of four partitions have rows
    assert session.partial_sql("select a, b from {0} left join {1} on a = b", df, few).count() == 50
    session.shutdown()
