"""What functions of rows return, and rows in memory: values and types come through, also those that Python says less of than Arrow."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smallpond_mpi as sp
from smallpond_mpi.common import BadInput, InvalidArgument, SchemaMismatch

HARD = {
    "map": "map {'a': 1, 'b': NULL}",
    "map_of_structs": "map {1: {'x': 1}}",
    "struct_with_map": "{'m': map {'k': [1]}}",
    "list_of_maps": "[map {'a': 1}, NULL]",
    "empty_list": "[]::int[]",
    "null_list": "NULL::int[]",
    "decimal": "1.5::decimal(10, 4)",
    "nanoseconds": "timestamp_ns '2020-01-01 00:00:00.123456789'",
    "zone": "'2020-01-01 00:00:00+00'::timestamptz",
    "large": "18446744073709551615::ubigint",
    "tiny": "1::tinyint",
    "float": "1.5::float",
    "uuid": "uuid '00000000-0000-0000-0000-000000000001'",
}


@pytest.mark.parametrize(
    "through",
    [
        lambda df: df.map(lambda row: row),
        lambda df: df.flat_map(lambda row: [row]),
        lambda df: df.filter(lambda row: True),
        lambda df: df.map_batches(lambda table: table),
    ],
)
def test_rows_handed_on_keep_values_and_types(session: sp.Session, through: Callable[[Any], Any]) -> None:
    given = session.from_items([1, 2]).select(**HARD).repartition(2, by_rows=True)
    expected, found = given.to_arrow(), through(given).to_arrow()
    assert found.schema.types == expected.schema.types
    assert found.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("count", [0, 2, 5, 100])
def test_first_rows_are_as_all_rows(session: sp.Session, parts: int, count: int) -> None:
    given = session.from_arrow(
        pa.table(
            {
                "wait": pa.array([1, None, 3, 4, 5], pa.duration("us")),
                "Wait": pa.array(["x", "y", "x", None, "z"]).dictionary_encode(),
                "at": pa.array([0, 1, 2, 3, None], pa.timestamp("ms", "Europe/Berlin")),
                "pair": pa.array([[1, 2]] * 5, pa.list_(pa.int8(), 2)),
                "half": pa.array([1.5] * 5, pa.float16()),
            }
        )
    ).repartition(parts, by_rows=True)
    every, first = given.to_arrow(), given.limit(count).to_arrow()
    assert first.schema.equals(every.schema)
    assert first.to_pylist() == given.take(count) == every.to_pylist()[:count]


def test_a_map_stays_a_map_when_it_is_changed(session: sp.Session) -> None:
    maps = session.from_items([1, 2]).select(m="map {'a': item}")
    more = maps.map(lambda row: {"m": [*row["m"], ("b", 7)]})
    assert more.select(b="m['b']").to_arrow()["b"].to_pylist() == [7, 7]
    assert maps.map(lambda row: {"m": dict(row["m"])}).select(a="m['a']").to_arrow()["a"].to_pylist() == [1, 2]
    assert maps.map(lambda row: {"m": "none"}).take(1) == [{"m": "none"}]


def test_new_values_say_their_type(session: sp.Session) -> None:
    halves = session.from_arrow(pa.table({"a": pa.array([2, 3], pa.int8())})).map(lambda row: {"a": row["a"] / 2})
    assert halves.to_arrow().equals(pa.table({"a": [1.0, 1.5]}))

    def with_more(row: dict[str, Any]) -> dict[str, Any]:
        row["s"]["y"] = 2
        return row

    structs = session.from_items([{"s": {"x": 1}}]).map(with_more)
    assert structs.take_all() == [{"s": {"x": 1, "y": 2}}]


def test_what_fits_no_type_names_its_column(session: sp.Session) -> None:
    with pytest.raises(SchemaMismatch, match=r"as 'b' does not fit one type[\s\S]*test_row_functions.py:"):
        session.from_items([1, 2]).map(lambda row: {"a": 1, "b": "x" if row["item"] == 1 else 2}).count()
    with pytest.raises(SchemaMismatch, match=r"as 'b' does not fit the schema \(int64\)"):
        session.from_items([1]).map(lambda row: {"b": "x"}, schema=pa.schema({"b": pa.int64()})).count()
    with pytest.raises(BadInput, match="names of columns must be texts"):
        session.from_items([1]).map(lambda row: {1: 2}).count()


def test_durations_are_durations_to_python_and_microseconds_to_sql(session: sp.Session) -> None:
    waits = session.from_items([1, 2]).map(lambda row: {"wait": dt.timedelta(seconds=row["item"])})
    assert waits.take_all() == [{"wait": dt.timedelta(seconds=1)}, {"wait": dt.timedelta(seconds=2)}]
    assert waits.filter("to_microseconds(wait) > interval 1 second").take_all() == [{"wait": 2_000_000}]
    for unit, value in {"s": 5, "ms": 5000, "us": 5_000_000, "ns": 5_000_000_000}.items():
        table = pa.table({"wait": pa.array([value, None], pa.duration(unit)), "l": [[dt.timedelta(1)], None]})
        given = session.from_arrow(table)
        batches = session.from_items([1]).map_batches(lambda _, table=table: table)
        for df in (given, batches):
            assert df.select("wait", d="l[1]").take(1) == [{"wait": 5_000_000, "d": 86_400_000_000}]
    fine = session.from_arrow(pa.table({"wait": pa.array([1], pa.duration("ns"))}))
    with pytest.raises(InvalidArgument, match="durations are kept in microseconds"):
        fine.select("wait").count()


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_durations_are_sorted(session: sp.Session, tmp_path: Path, unit: str) -> None:
    numbers = [5000, None, -3000, 10**9, 7000, 2_000_000_000]
    table = pa.table({"wait": pa.array(numbers, pa.duration(unit)), "row": range(6)})
    pq.write_table(table, tmp_path / "waits.parquet")
    for df in (session.from_arrow(table), session.read_parquet(f"{tmp_path}/*.parquet")):
        for npartitions in (1, 3):
            assert df.sort("wait", npartitions=npartitions).to_arrow()["row"].to_pylist() == [2, 0, 4, 3, 5, 1]
        assert df.sort("wait desc", npartitions=2).to_arrow()["row"].to_pylist() == [5, 3, 4, 0, 2, 1]


def test_items_keep_the_keys_of_all_rows(session: sp.Session) -> None:
    assert session.from_items([{"a": 1}, {"b": 2}]).take_all() == [{"a": 1, "b": None}, {"a": None, "b": 2}]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda s: s.from_items([{1: 2}]), "names of columns"),
        (lambda s: s.from_items([{}]), "no columns"),
        (lambda s: s.from_items([{"a": 1}, {"a": "x"}]), "column 'a'"),
        (lambda s: s.from_pandas(pd.DataFrame()), "no columns"),
        (lambda s: s.from_pandas(pd.DataFrame({"o": [1, "a"]}, dtype=object)), "column 'o'"),
        (lambda s: s.from_pandas(pd.DataFrame([[1, 2]], columns=["a", "a"])), "'a'"),
    ],
)
def test_rows_that_make_no_table_are_told_at_once(
    session: sp.Session, make: Callable[[sp.Session], object], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        make(session)


def test_urls_of_files_are_paths(session: sp.Session, tmp_path: Path) -> None:
    session.from_items([1, 2]).write_parquet(f"file://{tmp_path}/rows")
    for url in (
        f"file://{tmp_path}/rows",
        f"file:{tmp_path}/rows/*.parquet",
        f"file://localhost{tmp_path}/r*/*.parquet",
    ):
        assert session.read_parquet(url).count() == 2, url
    (tmp_path / "a.csv").write_text("1\n2\n")
    assert session.read_csv(f"file://{tmp_path}/*.csv", {"a": "int"}).count() == 2


def test_csv_without_a_schema_is_read_as_it_is_written(session: sp.Session, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text(f"Made by hand\n\na,b\n{number},'x,y'\n")
    found = session.read_csv(f"{tmp_path}/*.csv").repartition(2).sort("a").take_all()
    assert found == [{"a": number, "b": "x,y"} for number in range(3)]


@pytest.mark.parametrize(
    "text",
    ['{"a": 1}\n{"a": 2}\n', '[{"a": 1}, {"a": 2}]', '[\n  {"a": 1},\n  {"a": 2}\n]\n', '{\n"a": 1\n}\n{"a": 2}'],
)
def test_json_objects_in_any_layout(session: sp.Session, tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert session.read_json(str(path)).take_all() == [{"a": 1}, {"a": 2}]
