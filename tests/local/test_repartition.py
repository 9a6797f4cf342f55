"""Ways to cut a DataFrame, over tables and files that have something odd about them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smallpond_mpi as sp
from smallpond_mpi.common import InvalidArgument, InvalidQuery, WrongType

ROWS = 30


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sp.Session]:
    made = sp.init(data_root=str(tmp_path_factory.mktemp("root")), progress="none")
    yield made
    made.shutdown()


@pytest.fixture
def partitioned_before(session: sp.Session) -> sp.DataFrame:
    """A table with the numbers of an earlier job's partitions in it."""
    numbers = range(ROWS)
    return session.from_arrow(
        pa.table({"a": numbers, "g": [n % 3 for n in numbers], "__data_partition__": [n % 2 for n in numbers]})
    )


def parts(df: sp.DataFrame, column: str = "a") -> list[list[Any]]:
    """The values of a column, partition by partition."""
    lists = df.session.partial_sql(f"select list({column}) as found, {{__data_partition__}} as part from {{0}}", df)
    return [sorted(row["found"] or ()) for row in sorted(lists.take_all(), key=lambda row: row["part"])]


@pytest.mark.parametrize("after_python", [False, True])
@pytest.mark.parametrize("engine", ["duckdb", "arrow"])
def test_numbers_of_an_earlier_job_are_data(partitioned_before: sp.DataFrame, engine: str, after_python: bool) -> None:
    df = partitioned_before.map(lambda row: row) if after_python else partitioned_before
    by_number = df.repartition(3, by="g", engine_type=engine)
    assert parts(by_number) == [[n for n in range(ROWS) if n % 3 == part] for part in range(3)]
    for cut in (by_number, df.repartition(3, hash_by="a", engine_type=engine), df.random_shuffle(engine_type=engine)):
        table = cut.to_arrow()
        assert sorted(table.column_names) == ["__data_partition__", "a", "g"]
        assert all(row["__data_partition__"] == row["a"] % 2 for row in table.to_pylist())


def test_a_column_of_that_name_is_not_lost(partitioned_before: sp.DataFrame) -> None:
    with pytest.raises(InvalidArgument, match="there is a column 'g' already"):
        partitioned_before.repartition(3, hash_by="a", data_partition_column="g")
    with pytest.raises(InvalidArgument, match="there is a column '__data_partition__' already"):
        partitioned_before.repartition(3, by="g", drop_partition_column=False)
    seen = partitioned_before.repartition(3, by="g", drop_partition_column=False, data_partition_column="p")
    assert all(row["p"] == row["g"] for row in seen.take_all())
    assert parts(partitioned_before.repartition(2, by="__data_partition__")) == [
        list(range(0, ROWS, 2)),
        list(range(1, ROWS, 2)),
    ]


def test_by_rows_is_no_number_of_rows(partitioned_before: sp.DataFrame) -> None:
    with pytest.raises(WrongType, match="by_rows must be True or False, not 100"):
        partitioned_before.repartition(3, by_rows=100)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_text_by_rows(session: sp.Session, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    lines = (json.dumps({"a": n}) if suffix == ".json" else str(n) for n in range(10))
    path.write_text("".join(f"{line}\n" for line in lines))
    read = session.read_json if suffix == ".json" else session.read_csv
    cut = read(str(path), {"a": "bigint"}).repartition(3, by_rows=True)
    assert parts(cut) == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize("name", ["q[1]", "star*x", "que?st"])
def test_a_directory_that_looks_like_a_pattern(session: sp.Session, tmp_path: Path, name: str) -> None:
    session.from_items([1, 2, 3]).write_parquet(str(tmp_path / name))
    assert session.read_parquet(str(tmp_path / name)).map("item").count() == 3


def test_one_file_of_many_lacks_a_column(session: sp.Session, tmp_path: Path) -> None:
    for number in range(5):
        columns = {"a": [number], "b": ["x"]} if number != 3 else {"a": [number]}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    with pytest.raises(InvalidQuery, match=r"3\.parquet' \(if .*union_by_name=True"):
        session.read_parquet(str(tmp_path)).repartition(5).map("a, b").to_arrow()
