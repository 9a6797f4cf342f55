"""Files with different columns, united by name: every task has all columns, whichever files it reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smallpond_mpi as sp
from smallpond_mpi.logical import lowering
from smallpond_mpi.logical.dataset import DataSet, ParquetDataSet

COLUMNS = ["k", "id", "b", "c", "z"]


def write_files(place: Path, copies: int = 1) -> str:
    """Seven files: `b` in every second, `c` in one, `k` of two types, `z` only in one without rows."""
    place.mkdir()
    for number in range(6 * copies):
        ids = list(range(4 * number, 4 * number + 4))
        columns: dict[str, Any] = {"k": pa.array([i % 3 for i in ids], pa.int32() if number < 3 else pa.int64())}
        if number % 2:
            columns["b"] = [str(i) for i in ids]
        if number == 4:
            columns["c"] = [1.5] * 4
        pq.write_table(pa.table({**columns, "id": ids}), place / f"{number:03}.parquet")
    nothing = {"k": pa.array([], pa.int32()), "id": pa.array([], pa.int64()), "z": pa.array([], pa.date32())}
    pq.write_table(pa.table(nothing), place / "999.parquet")
    return str(place / "*.parquet")


def expected(copies: int = 1) -> list[dict[str, Any]]:
    return [
        {"k": i % 3, "id": i, "b": str(i) if i // 4 % 2 else None, "c": 1.5 if i // 4 == 4 else None, "z": None}
        for i in range(24 * copies)
    ]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sp.Session]:
    monkeypatch.setenv("SP_PROGRESS", "none")
    made = sp.init(data_root=str(tmp_path / "root"))
    made._ctx.num_slots = made._runtime_ctx.num_slots = 3
    yield made
    made.shutdown()


def check(df: sp.DataFrame, copies: int = 1) -> None:
    table = df.to_arrow()
    assert sorted(table.column_names) == sorted(COLUMNS)
    assert sorted(table.select(COLUMNS).to_pylist(), key=lambda row: row["id"]) == expected(copies)


@pytest.mark.parametrize("copies", [1, 12])
def test_whichever_way_rows_go(session: sp.Session, tmp_path: Path, copies: int) -> None:
    """With 73 files the columns are not known on rank 0 before anything runs."""
    df = session.read_parquet(write_files(tmp_path / "in", copies), union_by_name=True)
    ways = (
        df,
        df.repartition(3, hash_by="k"),
        df.repartition(5, hash_by=["b", "c"]),
        df.repartition(3, by="k"),
        df.repartition(2).map("*"),
        df.repartition(30, by_rows=True).filter("id >= 0"),
        df.repartition(3).filter(lambda row: True),
        df.repartition(3).map_batches(lambda table: table, batch_size=5),
        df.sort(["c", "b"], npartitions=4),
        df.repartition(4).random_shuffle(),
    )
    for way in ways if copies == 1 else ways[1:-1:4]:
        check(way, copies)


def test_queries(session: sp.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "ONE_TASK_BYTES", 1)
    monkeypatch.setattr(lowering, "SHUFFLE_COST", 0)
    df = session.read_parquet(write_files(tmp_path / "in"), union_by_name=True)
    assert df.columns == COLUMNS
    groups = df.group_by("k").agg(n="count(*)", most="max(c)", z="max(z)").sort("k").take_all()
    assert groups == [{"k": k, "n": 8, "most": 1.5, "z": None} for k in range(3)]
    check(df.join(df.select("id"), on="id"))
    assert df.select("c", "z").repartition(4).filter("c is not null").to_arrow().column_names == ["c", "z"]


def test_what_is_written_has_all_columns(session: sp.Session, tmp_path: Path) -> None:
    df = session.read_parquet(write_files(tmp_path / "in"), union_by_name=True)
    for number, frame in enumerate([df, df.repartition(3)]):
        frame.write_parquet(str(tmp_path / str(number)))
        check(session.read_parquet(str(tmp_path / str(number))))


def test_columns_in_the_order_asked_for(session: sp.Session, tmp_path: Path) -> None:
    asked = ["z", "c", "k", "b"]
    df = session.read_parquet(write_files(tmp_path / "in"), columns=asked, union_by_name=True)
    for frame in (df, df.repartition(3).map("*"), df.repartition(3, hash_by="b")):
        table = frame.to_arrow()
        assert (table.column_names, table.num_rows) == (asked, 24)
    assert next(df.iter_batches()).schema.names == asked


def test_parts_know_the_columns_of_the_whole(tmp_path: Path) -> None:
    whole = ParquetDataSet([write_files(tmp_path / "in")], union_by_name=True)
    for parts in (whole.partition_by_files(7), whole.partition_by_rows(30), whole.partition_by_size(40)):
        for part in parts:
            assert part.to_arrow_table().schema == whole.to_arrow_table().schema
            assert list(part.to_batch_reader().schema.names) == COLUMNS
        merged = DataSet.merge([parts[1], parts[0]])
        assert merged.to_arrow_table().schema == whole.to_arrow_table().schema
        assert merged.num_rows == parts[0].num_rows + parts[1].num_rows


def test_a_path_that_is_added_later_is_looked_at(tmp_path: Path) -> None:
    write_files(tmp_path / "in")
    dataset = ParquetDataSet([str(tmp_path / "in" / "000.parquet")], union_by_name=True)
    dataset.learn_columns()
    dataset.paths.append(str(tmp_path / "in" / "004.parquet"))
    (first, _) = dataset.partition_by_files(2)
    assert first.to_arrow_table().column_names == ["k", "id", "c"]
