"""Writing into directories that hold something already: what each mode makes of it, again and again in one session."""

import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smallpond_mpi as sp
from smallpond_mpi.common import InputNotFound, InvalidArgument, OutputExists, SchemaMismatch


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sp.Session]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SP_PROGRESS", "none")
        made = sp.init(data_root=str(tmp_path_factory.mktemp("root")))
        yield made
        made.shutdown()


@pytest.fixture
def five(session: sp.Session) -> sp.DataFrame:
    """0 to 4 in two partitions."""
    return session.from_items([{"a": number} for number in range(5)]).repartition(2, by_rows=True)


def times(path: Path) -> set[int]:
    """How often each of the five is in the files, which the manifest must list."""
    files = sorted(map(str, path.rglob("*.parquet")))
    assert sorted((path / ".MANIFEST.txt").read_text().splitlines()) == files
    found = Counter(value for file in files for value in pq.ParquetFile(file).read()["a"].to_pylist())
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert not [name for name in os.listdir(path.parent) if name.endswith(".staging")]
    return set(found.values())


@pytest.mark.parametrize("first", [None, "error", "overwrite", "append"])
def test_two_appends_of_one_frame_are_two(five: sp.DataFrame, tmp_path: Path, first: Any) -> None:
    path = tmp_path / "out"
    five.write_parquet(str(path), mode=first)
    assert times(path) == {1}
    five.write_parquet(str(path), mode="append")
    five.write_parquet(str(path), mode="append")
    assert times(path) == {3}
    five.write_parquet(str(path))
    assert times(path) == {1}


def test_side_by_side(five: sp.DataFrame, tmp_path: Path) -> None:
    """Sinks of one path have staging of their own, and the manifest lists what all of them wrote."""
    path = tmp_path / "out"
    five.session.wait(*[five.write_parquet_lazy(str(path), mode="append") for _ in range(4)])
    assert times(path) == {4}


def test_of_files_that_others_named(five: sp.DataFrame, tmp_path: Path) -> None:
    """Files of one name from two directories don't take each other's place."""
    path = tmp_path / "out"
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        pq.write_table(pa.table({"a": range(5)}), tmp_path / day / "part-0.parquet")
        five.session.read_parquet(str(tmp_path / day)).write_parquet(str(path), mode="append")
    assert times(path) == {2}


def test_directories_by_values(five: sp.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "out"
    rows = five.with_columns(k="a % 2", b="a")
    for _ in range(2):
        rows.write_parquet(str(path), partition_by="k", mode="append")
    assert times(path) == {2}
    assert sorted(place.name for place in path.iterdir() if place.is_dir()) == ["k=0", "k=1"]
    with pytest.raises(OutputExists, match="mode='error' was given"):
        rows.write_parquet(str(path), partition_by="k", mode="error")


def test_directories_by_values_take_the_place_of_earlier_ones(five: sp.DataFrame, tmp_path: Path) -> None:
    """Also where files are moved in, for nothing can be renamed to a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    rows = five.with_columns(k="a % 2", b="a")
    for path in (tmp_path / "out", tmp_path / "link"):
        for key in ("k", "b", "k"):
            rows.write_parquet(str(path), partition_by=key)
            assert times(path) == {1}
        assert sorted(place.name for place in path.iterdir() if place.is_dir()) == ["k=0", "k=1"]


def test_no_rows_take_the_place_of_earlier_ones(five: sp.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "out"
    rows = five.with_columns(k="a % 2", b="a")
    for earlier in (None, "k"):
        rows.write_parquet(str(path), partition_by=earlier)
        rows.filter("a > 9").write_parquet(str(path), partition_by="k")
        assert os.listdir(path) == [".MANIFEST.txt"]
        assert (path / ".MANIFEST.txt").read_text() == ""


def test_error_means_what_this_job_wrote_too(five: sp.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    five.write_parquet(str(path), mode="error")
    assert times(path) == {1}
    for write in (five.write_parquet, five.filter("a > 1").write_parquet, five.write_json):
        with pytest.raises(OutputExists, match=r"holds files already .*mode='error' was given[\s\S]*test_writing.py:"):
            write(str(path), mode="error")
    assert times(path) == {1}


def test_partitions_that_do_not_fit_together_are_not_written(five: sp.DataFrame, tmp_path: Path) -> None:
    def renamed(rows: pa.Table) -> pa.Table:
        return rows.rename_columns(["b"]) if rows["a"][0].as_py() == 0 else rows

    def narrow(rows: pa.Table) -> pa.Table:
        return rows.cast(pa.schema({"a": pa.int32()})) if rows["a"][0].as_py() == 0 else rows

    path, bad = tmp_path / "out", tmp_path / "bad" / "out"
    with pytest.raises(
        SchemaMismatch, match=r"test_writing.py:\d+' and .* differ: 'b' is only in the first; 'a' is only"
    ):
        five.map_batches(renamed).write_parquet(str(bad))
    assert not bad.exists()
    five.map_batches(narrow).write_parquet(str(path))
    assert times(path) == {1}


def test_a_frame_is_written_over_what_it_was_read_from(five: sp.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "out"
    five.write_parquet(str(path))
    five.session.read_parquet(str(path)).map("4 - a as a").write_parquet(str(path), mode="overwrite")
    assert times(path) == {1}
    five.session.read_parquet(str(path)).write_parquet(str(path), mode="overwrite")
    assert times(path) == {1}
    five.session.read_parquet(str(path)).write_parquet(str(path), mode="append")
    assert times(path) == {2}


def test_a_frame_whose_files_were_replaced_says_so(five: sp.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "out"
    five.write_parquet(str(path))
    early = five.session.read_parquet(str(path))
    assert early.count() == 5
    five.filter("a > 2").write_parquet(str(path), mode="overwrite")
    with pytest.raises(InputNotFound, match=r"out/.*parquet' does not exist[\s\S]*test_writing.py:"):
        early.map("a + 1 as a").to_arrow()
    assert five.session.read_parquet(str(path)).count() == 2


def test_directories_are_columns_again(session: sp.Session, tmp_path: Path) -> None:
    keys = ["a/b", "c=d", "x y", None, "ü", "%41", "..", "q'q"]
    rows = [{"k": key, "n n": number or None, "007": f"00{number}", "v": number} for number, key in enumerate(keys)]
    path = str(tmp_path / "by")
    session.from_items(rows).write_parquet(path, partition_by=["k", "n n", "007"])
    found = session.read_parquet(path, hive_partitioning=True)
    assert found.columns == ["v", "k", "n n", "007"]
    assert [str(field.type) for field in found.schema][1:] == ["string", "int64", "string"]
    assert sorted(found.take_all(), key=lambda row: row["v"]) == [
        {name: row[name] for name in ("v", "k", "n n", "007")} for row in rows
    ]
    assert found.filter("k = 'ü'").repartition(2, by_rows=True).select("v").take_all() == [{"v": 4}]
    few = session.read_parquet(f"{path}/*/*/*/*.parquet", columns=["k"], hive_partitioning=True)
    assert few.group_by("k").count().count() == len(keys)
    with pytest.raises(InputNotFound, match=r"directories and no files[\s\S]*recursive=True"):
        session.read_parquet(path).count()
    with pytest.raises(InvalidArgument, match="in no directories name=value"):
        session.read_parquet(f"{path}/../x", hive_partitioning=True)


def test_text_files_hold_what_was_written(session: sp.Session, tmp_path: Path) -> None:
    """DuckDB reads them as what they were, and so do we."""
    rows = [
        {"n": 1, "text": "plain", "d": Decimal("1.25"), "at": datetime(2024, 2, 29, 12, 30, tzinfo=UTC), "b": True},
        {
            "n": 2,
            "text": 'a "quoted", word',
            "d": Decimal("-0.01"),
            "at": datetime(1999, 12, 31, tzinfo=UTC),
            "b": False,
        },
        {"n": 3, "text": "two\nlines, ö", "d": None, "at": None, "b": None},
        {"n": None, "text": None, "d": Decimal("12345.67"), "at": datetime(2030, 1, 1, tzinfo=UTC), "b": True},
    ]
    schema = pa.schema(
        [
            ("n", pa.int64()),
            ("text", pa.string()),
            ("d", pa.decimal128(10, 2)),
            ("at", pa.timestamp("us", "UTC")),
            ("b", pa.bool_()),
        ]
    )
    df = session.from_arrow(pa.Table.from_pylist(rows, schema=schema)).repartition(2, by_rows=True)
    df.write_csv(str(tmp_path / "csv"))
    nested = df.with_columns(parts="[n, n + 1]", pair="{'a': n, 'b': text}")
    nested.write_json(str(tmp_path / "json"))
    types = {"n": "BIGINT", "text": "VARCHAR", "d": "DECIMAL(10, 2)", "at": "TIMESTAMPTZ", "b": "BOOLEAN"}
    listed = ", ".join(f"'{name}': '{kind}'" for name, kind in types.items())
    more = f"{listed}, 'parts': 'BIGINT[]', 'pair': 'STRUCT(a BIGINT, b VARCHAR)'"
    with duckdb.connect() as conn:
        conn.execute("SET TimeZone = 'UTC'").fetchall()
        csv = conn.sql(f"from read_csv('{tmp_path}/csv/*.csv', header = true, columns = {{{listed}}})").to_arrow_table()
        json = conn.sql(f"from read_json('{tmp_path}/json/*.json', columns = {{{more}}})").to_arrow_table()
    assert csv.to_pylist() == rows
    assert json.to_pylist() == nested.take_all()
    assert session.read_csv(f"{tmp_path}/csv/*.csv").to_arrow().to_pylist() == [
        {**row, "d": None if row["d"] is None else float(row["d"])} for row in rows
    ]
    assert session.read_json(f"{tmp_path}/json/*.json").select("n", "parts", "pair").to_arrow().to_pylist() == [
        {name: row[name] for name in ("n", "parts", "pair")} for row in nested.take_all()
    ]
