"""A column that is not there is told where it is named, before anything runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import smallpond_mpi as sp
from smallpond_mpi.common import BadInput, InvalidArgument, InvalidQuery


@pytest.fixture
def df(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sp.DataFrame]:
    monkeypatch.setenv("SP_PROGRESS", "none")
    session = sp.init(data_root=str(tmp_path))
    yield session.from_items([{"Number": number, "b c": number % 3} for number in range(9)])
    session.shutdown()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda df: df.repartition(2, hash_by="nuber"),
        lambda df: df.repartition(2, hash_by=["Number", "nuber"]),
        lambda df: df.sort("nuber"),
        lambda df: df.sort(["Number desc", "nuber desc nulls first"]),
        lambda df: df.sort("nuber + 1"),
        lambda df: df.partial_sort("nuber"),
        lambda df: df.repartition(2, by="nuber"),
        lambda df: df.select("nuber"),
        lambda df: df.drop("nuber"),
        lambda df: df.rename(nuber="n"),
        lambda df: df.distinct("nuber"),
        lambda df: df.join(df, "nuber"),
        lambda df: df.group_by("nuber").count(),
        lambda df: df.group_by("Number").agg("sum(nuber)"),
        lambda df: df.with_columns(r="row_number() over (partition by nuber)"),
        lambda df: df.write_parquet("/nowhere", partition_by="nuber"),
        lambda df: df.session.partial_sql("select nuber from {0}", df),
    ],
)
def test_told_where_it_is_named(df: sp.DataFrame, wrong: Callable[[Any], Any]) -> None:
    with pytest.raises(BadInput, match=r"nuber.*Number") as raised:
        wrong(df)
    assert "Task" not in str(raised.value)
    assert "test_columns_early.py:" in str(raised.value)


def test_files_are_asked_for_the_columns_that_are_wanted(df: sp.DataFrame, tmp_path: Path) -> None:
    df.write_parquet(str(tmp_path / "rows"))
    with pytest.raises(BadInput, match=r"nuber.*Number.*test_columns_early.py:"):
        df.session.read_parquet(str(tmp_path / "rows"), columns=["nuber"])
    assert df.session.read_parquet(str(tmp_path / "rows"), columns=["b c", "number"]).columns == ["b c", "Number"]


def test_an_input_that_is_not_there_is_told_where_it_is_named(df: sp.DataFrame) -> None:
    with pytest.raises(InvalidQuery, match=r"\{1\} is no input: there are 1[\s\S]*test_columns_early.py:"):
        df.session.partial_sql("select * from {0} join {1} using (Number)", df)


def test_names_that_a_chain_of_joins_would_use_twice_point_to_suffix(df: sp.DataFrame) -> None:
    with pytest.raises(InvalidArgument, match=r"'b c'.*suffix="):
        df.join(df, "Number").join(df, "Number")
    twice = df.join(df, "Number").join(df, "Number", suffix="_3")
    assert twice.columns == ["Number", "b c", "b c_right", "b c_3"]


def test_columns_are_found_whatever_their_case(df: sp.DataFrame) -> None:
    assert df.repartition(2, hash_by="number").to_arrow().column_names == ["Number", "b c"]
    assert df.sort(["b c desc", "number"]).take(2) == [{"Number": 2, "b c": 2}, {"Number": 5, "b c": 2}]
    assert df.sort("number % 2").count() == 9


def test_a_group_without_keys_points_to_agg(df: sp.DataFrame) -> None:
    with pytest.raises(InvalidArgument, match=r"agg\(...\) of the DataFrame"):
        df.group_by()
    assert df.agg(n="count(*)").take_all() == [{"n": 9}]


def test_columns_that_differ_in_case_only_are_never_mistaken(df: sp.DataFrame, tmp_path: Path) -> None:
    """Of `A` SQL would read `a`."""
    given = df.session.from_arrow(pa.table({"a": [3, 1], "A": ["x", "y"], "b": [1, 2]}))
    given.write_parquet(str(tmp_path / "twins"))
    moved = (given.repartition(2, by_rows=True), given.repartition(2, hash_by="a"))
    for twins in (given, df.session.read_parquet(str(tmp_path / "twins")), *moved):
        for wrong in (twins.select, twins.filter, twins.map, twins.distinct, twins.drop):
            with pytest.raises(InvalidArgument, match=r"'a', 'A' differ in case only[\s\S]*test_columns_early.py:"):
                wrong("A")
        assert sorted(row["b"] for row in twins.select("b").take_all()) == [1, 2]
        assert twins.repartition(2, hash_by="A").sort("A", descending=True).to_arrow().to_pylist()[0] == {
            "a": 1,
            "A": "y",
            "b": 2,
        }
        renamed = twins.map_batches(lambda table: table.rename_columns(["a", "c", "b"]))
        assert sorted(renamed.select("c").to_arrow()["c"].to_pylist()) == ["x", "y"]
