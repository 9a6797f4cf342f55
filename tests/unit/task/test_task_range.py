"""RangePartition: each row in the partition whose range its key is in, at points that are given or found in a sample."""

import datetime as dt
import itertools
import math
import random
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from smallpond_mpi.common import ColumnNotFound, InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.task import RangePartitionTask, SplitPointsTask
from smallpond_mpi.execution.task.key_search import points_at_or_before
from smallpond_mpi.execution.task.sort_key import SortKey
from smallpond_mpi.execution.task.split_points import choose_points
from smallpond_mpi.logical.dataset import CsvDataSet, ParquetDataSet, SqlQueryDataSet
from tests.unit.task.task_builders import TOP, attempt, given, rows, run, values

blobs = st.lists(
    st.binary(max_size=20) | st.sampled_from([b"", b"\0", b"aaaaaaaa", b"aaaaaaaab", b"\xff" * 17]), max_size=12
)


@drawn(
    keys=blobs,
    points=blobs,
    common=st.sampled_from([b"", b"https://", b"x" * 21, b"x" * 505, b"x" * 600]),
    cut=st.integers(0, 3),
)
@settings(max_examples=200)
def test_search_of_blobs_is_that_of_lists(keys: list[bytes], points: list[bytes], common: bytes, cut: int) -> None:
    # No key is the beginning of another, as create_sort_key promises: an escape for zero and a terminator make it so.
    def code(blob: bytes) -> bytes:
        return common + blob.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1") + b"\0"

    mine, theirs = [code(blob) for blob in keys], sorted(code(blob) for blob in points)
    array = pa.array(mine, pa.large_binary())[cut:]
    found = points_at_or_before(array, pa.array(theirs, pa.large_binary()))
    assert found.tolist() == [sum(point <= key for point in theirs) for key in mine[cut:]]


def test_search_of_numbers() -> None:
    found = points_at_or_before(pa.array([5, -1, 3, 4], pa.int64()), pa.array([3, 3, 5], pa.int64()))
    assert found.tolist() == [3, 0, 2, 2]


def ranged(ctx: RuntimeContext, dataset: Any, points: list[Any], *keys: SortKey, **options: Any) -> RangePartitionTask:
    return RangePartitionTask(ctx, given(ctx, dataset), TOP, points, "range", keys, **options)


def parts(task: RangePartitionTask, column: str = "k") -> list[list[Any]]:
    output = run(task)
    return [list(values(output[p], column)) for p in range(task.npartitions)]


def test_a_key_that_is_a_point_begins_a_partition(ctx, parquet) -> None:
    task = ranged(ctx, parquet({"k": [5, 1, 10, None, 7, 11, 10, 4]}), [5, 10])
    assert parts(task) == [[1, 4], [5, 7], [10, None, 11, 10]]
    assert task.perf_metrics["num output rows"] == 8


def test_without_points_there_is_one_partition(ctx, parquet) -> None:
    task = RangePartitionTask(ctx, given(ctx, parquet({"k": [2, 1]})), TOP)
    assert parts(task) == [[2, 1]]


def test_null_first_and_descending(ctx, parquet) -> None:
    dataset = parquet({"k": [5, 1, 10, None, 7]})
    assert parts(ranged(ctx, dataset, [5], SortKey("k", nulls_last=False))) == [[1, None], [5, 10, 7]]
    assert parts(ranged(ctx, dataset, [7, 5], SortKey("k", True))) == [[10], [7], [5, 1, None]]
    assert parts(ranged(ctx, dataset, [7], SortKey("k", True, False))) == [[10, None], [5, 1, 7]]


def test_several_columns(ctx, parquet) -> None:
    dataset = parquet({"v": [0, 1, 2, 3, 4], "a": ["x", "x", "y", "y", "z"], "k": [1, 2, 1, 2, 1]})
    keys = (SortKey("a"), SortKey("k", True))
    assert parts(ranged(ctx, dataset, [("x", 1), ("y", 1)], *keys), "v") == [[1], [0, 3], [2, 4]]


DAYS = [dt.datetime(2020, 1, 1), dt.datetime(2021, 1, 1), dt.datetime(2022, 1, 1)]
TYPES = [
    (pa.array([1.5, math.nan, -math.inf, -0.0, 0.0, None, math.inf]), [0.0, math.nan], [2], [0, 3, 4, 6], [1, 5]),
    (pa.array([1, 2, 3], pa.uint8()), [1.5, 3], [0], [1], [2]),
    (pa.array(["b", "", "ab", "é", None]), ["ab", "c"], [1], [0, 2], [3, 4]),
    (pa.array([b"b", b"", b"\0", b"\xff"]), [b"\0", b"c"], [1], [0, 2], [3]),
    (pa.array(DAYS, pa.timestamp("ms")), ["2020-06-01", "2022-01-01"], [0], [1], [2]),
    (pa.array(DAYS, pa.timestamp("us")), [dt.date(2020, 6, 1), dt.date(2021, 6, 1)], [0], [1], [2]),
    (pa.array(DAYS, pa.timestamp("us", "UTC")), [day.replace(tzinfo=dt.UTC) for day in DAYS[1:]], [0], [1], [2]),
    (pa.array([Decimal("1.10"), Decimal("12345678901234567890.12")]), [Decimal("1.105"), 9], [0], [], [1]),
    (pa.array(["b", "a", "c", "a"]).dictionary_encode(), ["b", "bb"], [1, 3], [0], [2]),
    (pa.array([True, False, None]), [True, None], [1], [0], [2]),
    (
        pa.array([5, -3, 10**12, None, 4], pa.duration("us")),
        [dt.timedelta(0), dt.timedelta(days=1)],
        [1],
        [0, 4],
        [2, 3],
    ),
    (pa.array([5, -3, 10**9], pa.duration("ms")), [5_000, 10**11], [1], [0], [2]),
    (pa.array([2_999, -1, 3_000, 10**12], pa.duration("ns")), [3, 10**9], [0, 1], [2], [3]),
    (
        pa.array([[-1], [3, 1], [5]], pa.list_(pa.duration("s"))),
        [[dt.timedelta(0)], [dt.timedelta(seconds=4)]],
        [0],
        [1],
        [2],
    ),
    (pa.array([[1, 2], [1], [0, 5], None]), [[1], [1, 1]], [2], [1], [0, 3]),
]


@pytest.mark.parametrize(
    ("column", "points", "first", "second", "third"), TYPES, ids=[str(one[0].type) for one in TYPES]
)
def test_types_are_compared_as_order_by_does(ctx, parquet, column, points, first, second, third) -> None:
    dataset = parquet(pa.table({"k": column, "row": list(range(len(column)))}))
    assert parts(ranged(ctx, dataset, points), "row") == [first, second, third]


def test_durations_of_different_units_are_cut_at_the_same_points(ctx, parquet) -> None:
    for unit, factor in (("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)):
        dataset = parquet(pa.table({"k": pa.array([n * factor for n in range(4)], pa.duration(unit)), "row": range(4)}))
        assert parts(ranged(ctx, dataset, [2_000_000]), "row") == [[0, 1], [2, 3]], unit


def test_files_of_different_types_are_cut_at_the_same_points(ctx, parquet) -> None:
    small = ranged(ctx, parquet({"k": pa.array([1, 2, 3], pa.int8())}), [2])
    large = ranged(ctx, parquet({"k": pa.array([1.0, 2.0, 2.5], pa.float64())}), [2])
    assert parts(small) == [[1], [2, 3]]
    assert parts(large) == [[1.0], [2.0, 2.5]]


@pytest.mark.parametrize(
    ("points", "keys", "said"),
    [
        ([3, 1], (), "split points must be in the order of the partitions: 3 comes before 1"),
        ([1, 3], (SortKey("k", True),), "1 comes before 3"),
        ([(1, 2)], (SortKey("k"),), "2 values and there are 1 columns"),
        ([1, "a"], (), "must have one type"),
        (["a"], (SortKey("k"),), "can't be compared with keys of type BIGINT"),
    ],
)
def test_points_that_do_not_fit(ctx, parquet, points: list[Any], keys: tuple[SortKey, ...], said: str) -> None:
    task = ranged(ctx, parquet({"k": [1, 2]}), points, *keys)
    assert attempt(task) is WorkStatus.CRASHED
    assert isinstance(task.exception, InvalidArgument)
    assert said in str(task.exception)


def test_unknown_column(ctx, parquet) -> None:
    task = ranged(ctx, parquet({"k": [1]}), [1], SortKey("nope"))
    attempt(task)
    assert isinstance(task.exception, ColumnNotFound)
    assert "no column 'nope' to sort by; the columns: k" in str(task.exception)


def test_expressions_and_the_direction_in_the_text(ctx, parquet) -> None:
    dataset = parquet({"k": [1, 2, 3, 4], "odd name": [1, 2, 3, 4]})
    assert parts(ranged(ctx, dataset, [0, 2], SortKey("k % 3"))) == [[], [1, 3, 4], [2]]
    assert parts(ranged(ctx, dataset, [2], SortKey("k desc"))) == [[3, 4], [1, 2]]
    assert parts(ranged(ctx, dataset, [2], SortKey("odd name", True))) == [[3, 4], [1, 2]]


def test_no_rows_keep_the_schema(ctx, parquet) -> None:
    output = run(ranged(ctx, parquet({"k": pa.array([], pa.int32())}), [1, 2]))
    assert len(output) == 3
    assert output[1].to_arrow_table().schema == pa.schema([("k", pa.int32())])
    assert run(ranged(ctx, ParquetDataSet([]), [1]))[1].empty


def test_more_than_fits_is_written_in_batches(ctx, parquet) -> None:
    dataset = parquet({"k": list(range(50_000))}, row_group_size=5_000)
    task = ranged(ctx, dataset, [10_000, 45_000])
    task.__class__ = type("Small", (type(task),), {"max_batch_size": 100_000, "chunk_rows": 7_000})
    assert parts(task) == [list(range(10_000)), list(range(10_000, 45_000)), list(range(45_000, 50_000))]


# finding points


@drawn(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 20))
@settings(max_examples=200)
def test_chosen_points_leave_no_partition_far_too_large(counts: list[int], npartitions: int) -> None:
    points = choose_points(counts, npartitions)
    assert len(points) < npartitions
    assert points == sorted(set(points))
    assert all(0 < point < len(counts) for point in points)
    borders = [0, *points, len(counts)]
    sizes = [sum(counts[begin:end]) for begin, end in itertools.pairwise(borders)]
    assert all(
        size <= sum(counts) / npartitions + max(counts[begin:end])
        for size, begin, end in zip(sizes, borders, borders[1:], strict=False)
        if size
    )


def test_a_hot_key_costs_one_partition() -> None:
    counts = [1] * 40 + [1000] + [1] * 40
    points = choose_points(counts, 9)
    borders = [0, *points, len(counts)]
    sizes = [sum(counts[begin:end]) for begin, end in itertools.pairwise(borders)]
    assert max(sizes) == 1000
    assert len(sizes) == 9


def points_of(ctx: RuntimeContext, dataset: Any, n: int, *keys: SortKey, min_rows: int = 1) -> list[tuple[Any, ...]]:
    task = SplitPointsTask(ctx, given(ctx, dataset), TOP, n, keys or (SortKey("k"),), min_rows)
    return rows(run(task))


def test_points_of_few_rows_are_exact(ctx, parquet) -> None:
    assert points_of(ctx, parquet({"k": list(range(100))}), 4) == [(25,), (50,), (75,)]
    assert points_of(ctx, parquet({"k": list(range(100))}), 4, SortKey("k", True)) == [(74,), (49,), (24,)]
    assert points_of(ctx, parquet({"k": list(range(100))}), 4, min_rows=50) == [(50,)]
    assert points_of(ctx, parquet({"k": [7] * 100}), 4) == []
    assert points_of(ctx, parquet({"k": pa.array([], pa.int8())}), 4) == []
    assert points_of(ctx, parquet({"k": [1, None]}), 4) == [(None,)]


def test_points_of_durations_are_microseconds(ctx, parquet) -> None:
    for unit, factor in (("s", 1_000_000), ("ms", 1_000), ("us", 1)):
        dataset = parquet({"k": pa.array(range(-50, 50), pa.duration(unit))})
        assert points_of(ctx, dataset, 4) == [(-25 * factor,), (0,), (25 * factor,)]
    assert points_of(ctx, parquet({"k": pa.array(range(100), pa.duration("ns"))}), 4) == []


@pytest.mark.parametrize("order", ["sorted", "random"])
def test_points_of_a_sample_make_partitions_of_about_one_size(ctx, parquet, order: str) -> None:
    numbers = list(range(100_000))
    if order == "random":
        random.Random(1).shuffle(numbers)
    dataset = parquet({"k": numbers[:30_000]}, {"k": numbers[30_000:]}, row_group_size=1_000)
    found = [point for (point,) in points_of(ctx, dataset, 10)]
    sizes = np.diff([0, *found, 100_000])
    assert len(found) == 9
    assert sizes.min() > 6_000
    assert sizes.max() < 15_000


def test_only_some_row_groups_and_only_the_key_are_read(ctx, parquet, monkeypatch) -> None:
    from smallpond_mpi.execution.task import split_points

    seen: list[Any] = []
    read = split_points.read_range

    def watched(item: Any, columns: Any) -> Any:
        seen.append((item.num_rows, columns))
        return read(item, columns)

    monkeypatch.setattr(split_points, "read_range", watched)
    dataset = parquet({"k": list(range(100_000)), "v": ["x"] * 100_000}, row_group_size=100)
    points_of(ctx, dataset, 10)
    assert len(seen) <= 20
    assert set(seen[0][1]) == {"k"}
    assert all(count == 100 for count, _ in seen)


@pytest.mark.parametrize("kind", ["csv", "sql", "union"])
def test_what_has_no_row_groups_is_sampled_too(ctx, parquet, tmp_path, kind: str) -> None:
    dataset: Any
    if kind == "csv":
        path = tmp_path / "in.csv"
        path.write_text("\n".join(map(str, range(100))))
        dataset = CsvDataSet([str(path)], {"k": "bigint"})
    elif kind == "sql":
        dataset = SqlQueryDataSet("select range as k from range(100)")
    else:
        dataset = parquet({"x": [1]}, {"k": list(range(100))})
        dataset._union_by_name = True
        assert points_of(ctx, dataset, 3) == [(34,), (67,)]
        return
    assert points_of(ctx, dataset, 4) == [(25,), (50,), (75,)]


def test_points_from_a_sample_are_a_second_input(ctx, parquet) -> None:
    dataset = parquet({"k": list(range(100))})
    points = SplitPointsTask(ctx, given(ctx, dataset), TOP, 4, [SortKey("k")])
    run(points)
    task = RangePartitionTask(
        ctx, [*given(ctx, dataset), points], TOP, sort_keys=[SortKey("k")], npartitions=4, dimension="range"
    )
    assert [len(part) for part in parts(task)] == [25, 25, 25, 25]


def test_all_keys_equal_are_one_partition_though_empty_inputs_are_skipped(ctx, parquet) -> None:
    ctx.skip_task_with_empty_input = True
    dataset = parquet({"k": [1, 1, 1]})
    points = SplitPointsTask(ctx, given(ctx, dataset), TOP, 4, [SortKey("k")])
    run(points)
    task = RangePartitionTask(ctx, [*given(ctx, dataset), points], TOP, sort_keys=[SortKey("k")], npartitions=4)
    assert parts(task) == [[1, 1, 1], [], [], []]
