"""SortTask: one partition in order, whether it fits in memory or not, and its columns as they were."""

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from smallpond_mpi.common import ColumnNotFound, InvalidArgument, InvalidQuery
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.task import PartitionInfo, SortTask
from smallpond_mpi.execution.task.key_search import order_of
from smallpond_mpi.execution.task.sort_key import SortKey, sort_keys
from smallpond_mpi.logical.dataset import CsvDataSet, ParquetDataSet
from tests.unit.task.task_builders import TOP, attempt, given, rows, run, values

blobs = st.lists(st.binary(max_size=20) | st.sampled_from([b"", b"aaaaaaaa", b"aaaaaaaab", b"\xff" * 17]), max_size=30)


@drawn(blobs, st.sampled_from([b"", b"https://", b"x" * 21, b"x" * 505, b"x" * 600]), st.integers(0, 3))
@settings(max_examples=200)
def test_order_of_blobs_is_that_of_a_list(keys: list[bytes], common: bytes, cut: int) -> None:
    # as create_sort_key: none is the beginning of another
    coded = [common + key.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1") + b"\0" for key in keys]
    order = order_of(pa.array(coded, pa.large_binary())[cut:])
    assert sorted(order.tolist()) == list(range(len(coded[cut:])))
    assert [coded[cut:][row] for row in order] == sorted(coded[cut:])


def test_order_of_numbers() -> None:
    assert order_of(pa.array([5, -1, 3], pa.int64())).tolist() == [1, 2, 0]


def sorting(ctx: RuntimeContext, dataset: Any, *by: str, **options: Any) -> SortTask:
    down, last = options.pop("descending", False), options.pop("nulls_last", True)
    infos = options.pop("infos", TOP)
    return SortTask(ctx, given(ctx, dataset), infos, sort_keys(by, down, last), **options)


@pytest.fixture(params=["in memory", "spilled"])
def how(request, monkeypatch) -> str:
    """Both ways: nothing fits in memory for the second."""
    if request.param == "spilled":
        monkeypatch.setattr(SortTask, "_sort_in_memory", lambda self, dataset, room: None)
    return str(request.param)


def test_null_comes_where_it_is_wanted(ctx, parquet, how: str) -> None:
    dataset = parquet({"k": [2, None, 3, 1]})
    assert values(run(sorting(ctx, dataset, "k")), "k") == [1, 2, 3, None]
    assert values(run(sorting(ctx, dataset, "k", descending=True)), "k") == [3, 2, 1, None]
    assert values(run(sorting(ctx, dataset, "k", nulls_last=False)), "k") == [None, 1, 2, 3]
    assert values(run(sorting(ctx, dataset, "k desc nulls first")), "k") == [None, 3, 2, 1]


def test_several_keys_expressions_and_rows_of_equal_keys(ctx, parquet, how: str) -> None:
    dataset = parquet({"a": ["y", "x", "y", "x"], "b": [1, 2, 3, 4]}, {"a": ["x"], "b": [0]})
    assert rows(run(sorting(ctx, dataset, "a", "b", descending=[False, True]))) == [
        ("x", 4), ("x", 2), ("x", 0), ("y", 3), ("y", 1),
    ]  # fmt: skip
    assert values(run(sorting(ctx, dataset, "b % 3", "b")), "b") == [0, 3, 1, 4, 2]


def test_columns_keep_their_types(ctx, parquet, how: str) -> None:
    table = pa.table(
        {
            "k": pa.array([2, 1], pa.uint16()),
            "ms": pa.array([1, 2], pa.timestamp("ms")),
            "tz": pa.array([1, 2], pa.timestamp("us", "Europe/Berlin")),
            "d": pa.array(["a", "b"]).dictionary_encode(),
            "l": pa.array([[1], None], pa.large_list(pa.int8())),
            "m": pa.array([{"x": 1, "y": None}, {"x": 2, "y": "z"}], pa.struct([("x", pa.int8()), ("y", pa.string())])),
            "dec": pa.array([Decimal("1.5"), None], pa.decimal128(10, 2)),
            "t": pa.array([1, 2], pa.time64("us")),
            "day": pa.array([dt.date(2020, 1, 1), None]),
            "b": pa.array([b"x", b"y"], pa.binary(1)),
        }
    )
    dataset = parquet(table)
    output = run(sorting(ctx, dataset, "k"))
    read = dataset.to_arrow_table()
    assert output.to_arrow_table().schema == read.schema
    assert output.to_arrow_table().to_pylist() == read.to_pylist()[::-1]


texts = st.none() | st.text(max_size=30) | st.sampled_from(["", "twelve bytes", "thirteen byte"])
few_rows = st.lists(st.tuples(st.integers(0, 5), texts, st.none() | st.binary(max_size=30)), max_size=40)


@drawn(st.lists(few_rows, min_size=1, max_size=3))
@settings(max_examples=30)
def test_texts_and_blobs_of_several_files_stay_with_their_rows(tmp_path_factory, files) -> None:
    place = tmp_path_factory.mktemp("texts")
    context = RuntimeContext(JobId.new(), dt.datetime(2026, 1, 1), str(place / "root"), random_seed=7)
    context.initialize("test")
    schema = pa.schema([("k", pa.int64()), ("s", pa.string()), ("b", pa.binary())])
    paths = [str(place / f"{number}.parquet") for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        pq.write_table(pa.Table.from_pylist([dict(zip("ksb", row, strict=True)) for row in content], schema), path)
    output = run(sorting(context, ParquetDataSet(paths), "k"))
    found = pq.read_table(output.resolved_paths[0])
    assert found.schema.types == [pa.int64(), pa.large_string(), pa.large_binary()]
    rows_found = [tuple(row.values()) for row in found.to_pylist()]
    assert [row[0] for row in rows_found] == sorted(row[0] for row in rows_found)
    assert sorted(map(repr, rows_found)) == sorted(repr(row) for content in files for row in content)


def test_what_only_arrow_reads_as_it_is(ctx, parquet, how: str) -> None:
    table = pa.table({"u": pa.array([bytes([n] * 16) for n in (3, 1, 2)], pa.uuid()), "k": [1, 2, 3], "K": [3, 2, 1]})
    dataset = parquet(table)
    for by in ("u", "k", "K"):
        output = run(sorting(ctx, dataset, by)).to_arrow_table()
        assert output.schema == dataset.to_arrow_table().schema
        assert output.to_pylist() == sorted(table.to_pylist(), key=lambda row: row[by])


def test_files_of_different_types(ctx, parquet, how: str) -> None:
    dataset = parquet({"k": pa.array([3, 1], pa.int8())}, {"k": pa.array([2, 1 << 40], pa.int64())})
    assert values(run(sorting(ctx, dataset, "k")), "k") == [1, 2, 3, 1 << 40]


def test_no_rows_keep_the_schema(ctx, parquet, how: str) -> None:
    output = run(sorting(ctx, parquet({"k": pa.array([], pa.int32())}), "k"))
    assert output.to_arrow_table().schema == pa.schema([("k", pa.int32())])
    assert run(sorting(ctx, ParquetDataSet([]), "k")).empty


def test_text_files_are_sorted_too(ctx, tmp_path, how: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text("b,2\na,1\n")
    output = run(sorting(ctx, CsvDataSet([str(path)], {"s": "varchar", "k": "integer"}), "k"))
    assert rows(output) == [("a", 1), ("b", 2)]


def test_more_than_its_memory_is_sorted_on_disk(ctx, parquet, monkeypatch) -> None:
    rng = np.random.default_rng(1)
    count = 5_000_000
    table = pa.table({"k": rng.permutation(count), "v": rng.random(count), "w": rng.random(count)})
    assert table.nbytes == 120_000_000
    task = sorting(ctx, parquet(table, row_group_size=100_000, use_dictionary=False), "k", memory_limit=100_000_000)
    spilled: list[bool] = []
    write = SortTask._sort_on_disk
    monkeypatch.setattr(SortTask, "_sort_on_disk", lambda *given: (spilled.append(True), write(*given))[1])
    output = run(task)
    assert spilled == [True]
    assert np.array_equal(output.to_arrow_table().column("k").to_numpy(), np.arange(count))


def test_row_groups_fit_into_memory(ctx, parquet) -> None:
    table = pa.table({"k": list(range(1000)), "v": [f"{n:010}" * 5000 for n in range(1000)]})
    dataset = parquet(table, use_dictionary=False, row_group_size=100)
    output = run(sorting(ctx, dataset, "k", memory_limit=300_000_000))
    metadata = pq.read_metadata(output.resolved_paths[0])
    assert metadata.num_rows == 1000
    assert metadata.num_row_groups == 3, "of 300 MB / 16 at most"


def test_names_of_files_sort_as_partitions_do(ctx, parquet) -> None:
    dataset = parquet({"k": [1]})
    names = [
        sorting(ctx, dataset, "k", infos=[PartitionInfo(), PartitionInfo(index, 11, "part")]).output_filename
        for index in (10, 9, 0)
    ]
    assert sorted(names) == names[::-1]


def test_every_codec(ctx, parquet) -> None:
    for codec in ("ZSTD", "SNAPPY", "LZ4", None):
        assert values(run(sorting(ctx, parquet({"k": [2, 1]}), "k", parquet_compression=codec)), "k") == [1, 2]


@pytest.mark.parametrize(
    ("by", "kind", "said"),
    [
        ("nope", ColumnNotFound, "no column 'nope' to sort by; the columns: k, odd name"),
        ("nope desc", ColumnNotFound, "no column 'nope'"),
        ("k +", InvalidQuery, "syntax error"),
        ("other + 1", InvalidQuery, '"other" not found'),
    ],
)
def test_what_is_no_column(ctx, parquet, by: str, kind: type, said: str) -> None:
    task = sorting(ctx, parquet({"k": [1], "odd name": [1]}), by)
    attempt(task)
    assert isinstance(task.exception, kind), task.exception
    assert said in str(task.exception)


def test_directions_that_do_not_fit() -> None:
    with pytest.raises(InvalidArgument, match="descending has 1 values for 2 columns"):
        sort_keys(["a", "b"], [True], True)
    with pytest.raises(InvalidArgument, match="nulls_last must be a bool"):
        sort_keys(["a"], False, "first")  # type: ignore[arg-type]
    assert sort_keys(["a", "b"], [True, False], False) == [SortKey("a", True, False), SortKey("b", False, False)]
