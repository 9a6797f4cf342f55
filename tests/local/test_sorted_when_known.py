"""A sort of groups or joins is planned when it is known how many rows there are; what is wrong is still told before anything runs."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smallpond_mpi as sp
from smallpond_mpi.common import BadInput, OutputExists
from smallpond_mpi.execution.task.sort import SortTask
from smallpond_mpi.logical import lowering


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sp.Session]:
    made = sp.init(data_root=str(tmp_path / "root"), progress="none")
    monkeypatch.setattr(lowering, "ONE_TASK_BYTES", 200)
    yield made
    made.shutdown()


@pytest.fixture
def frame(session: sp.Session, tmp_path: Path) -> sp.DataFrame:
    pq.write_table(pa.table({"k": [i % 7 for i in range(1000)], "v": range(1000)}), tmp_path / "numbers.parquet")
    return session.read_parquet(str(tmp_path / "numbers.parquet"))


def num_sort_tasks(session: sp.Session, df: sp.DataFrame) -> int:
    return sum(isinstance(task, SortTask) for task in session._planner.plan_node(df.plan))


def test_few_groups_are_sorted_in_one_task(session: sp.Session, frame: sp.DataFrame) -> None:
    few = frame.group_by("k").agg(n="count(*)").sort("k desc")
    assert [row["k"] for row in few.take_all()] == [6, 5, 4, 3, 2, 1, 0]
    assert num_sort_tasks(session, few) == 1
    many = frame.group_by("v").agg(n="count(*)").sort("v desc")
    assert [row["v"] for row in many.take_all()] == list(range(999, -1, -1))
    assert num_sort_tasks(session, many) > 1


def test_a_sort_of_what_was_sorted_and_joined(frame: sp.DataFrame) -> None:
    sums = frame.group_by("k").agg(s="sum(v)").sort("s")
    joined = frame.join(sums, on="k").group_by("k", "s").agg(n="count(*)").sort(["n desc", "k"])
    assert [row["k"] for row in joined.take_all()] == [0, 1, 2, 3, 4, 5, 6]


def test_files_of_others_are_found_before_anything_runs(frame: sp.DataFrame, tmp_path: Path) -> None:
    groups = frame.group_by("k").agg(n="count(*)")
    place = tmp_path / "place"
    place.mkdir()
    (place / "theirs.txt").write_text("not ours")
    with pytest.raises(OutputExists):
        groups.sort("k").write_parquet(str(place))
    assert not groups.is_computed()


def test_a_missing_file_is_found_before_anything_runs(session: sp.Session, frame: sp.DataFrame, tmp_path: Path) -> None:
    groups = frame.group_by("k").agg(n="count(*)").sort("n")
    missing = session.read_parquet(str(tmp_path / "missing.parquet"))
    with pytest.raises(BadInput, match=r"missing\.parquet"):
        groups.join(missing, on="k").to_arrow()
    assert not groups.is_computed()
