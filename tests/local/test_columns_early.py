"""A column that is not there is told where it is named, before anything runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import smallpond_mpi as sp
from smallpond_mpi.common import BadInput, InvalidArgument


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
    ],
)
def test_told_where_it_is_named(df: sp.DataFrame, wrong: Callable[[Any], Any]) -> None:
    with pytest.raises(BadInput, match=r"nuber.*Number") as raised:
        wrong(df)
    assert "Task" not in str(raised.value)


def test_columns_are_found_whatever_their_case(df: sp.DataFrame) -> None:
    assert df.repartition(2, hash_by="number").to_arrow().column_names == ["Number", "b c"]
    assert df.sort(["b c desc", "number"]).take(2) == [{"Number": 2, "b c": 2}, {"Number": 5, "b c": 2}]
    assert df.sort("number % 2").count() == 9


def test_a_group_without_keys_points_to_agg(df: sp.DataFrame) -> None:
    with pytest.raises(InvalidArgument, match=r"agg\(...\) of the DataFrame"):
        df.group_by()
    assert df.agg(n="count(*)").take_all() == [{"n": 9}]
