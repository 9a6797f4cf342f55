"""Whatever the rows and the keys, a sort over several partitions is ORDER BY, and no row is lost."""

import itertools
import tempfile
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.task import PartitionInfo, RangePartitionTask, SortTask, SplitPointsTask
from smallpond_mpi.execution.task.sort_key import sort_keys
from smallpond_mpi.logical.dataset import ParquetDataSet
from tests.unit.task.task_builders import TOP, given, rows, run

COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "i": (pa.int64(), st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1)),
    "t": (pa.int8(), st.integers(-2, 2)),
    "f": (pa.float64(), st.sampled_from([0.0, -0.0, 1.5, float("nan"), float("inf"), -float("inf")]) | st.floats()),
    "s": (pa.string(), st.sampled_from(["", "a", "ab", "https://example.com/"]) | st.text(st.characters(codec="utf-8"), max_size=20)),
    "b": (pa.binary(), st.binary(max_size=12)),
    "d": (pa.decimal128(20, 2), st.decimals(-1000, 1000, places=2)),
    "w": (pa.timestamp("us"), st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))),
    "y": (pa.bool_(), st.booleans()),
    "l": (pa.list_(pa.int32()), st.lists(st.integers(-2, 2), max_size=3)),
}  # fmt: skip


@st.composite
def sorts(draw: st.DrawFn) -> tuple[pa.Table, list[str], list[bool], list[bool], int, list[int]]:
    """A table, keys with their directions, a number of partitions, and where the table is cut into files."""
    by = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=3, unique=True))
    count = draw(st.integers(0, 40))
    columns = {}
    for name in by:
        kind, values = COLUMNS[name]
        columns[name] = pa.array(draw(st.lists(values | st.none(), min_size=count, max_size=count)), kind)
    flags = st.lists(st.booleans(), min_size=len(by), max_size=len(by))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=3)))
    table = pa.table({**columns, "row": pa.array(range(count), pa.int32())})
    return table, by, draw(flags), draw(flags), draw(st.integers(1, 5)), [0, *cuts, count]


@pytest.fixture(scope="module")
def ctx():
    with tempfile.TemporaryDirectory() as root:
        context = RuntimeContext(JobId.new(), datetime(2026, 1, 1), root, random_seed=7)
        context.initialize("test")
        yield context


def in_order(table: pa.Table, order: str, limit: str = "") -> list[tuple[Any, ...]]:
    """The rows as DuckDB orders them."""
    with duckdb.connect() as conn:
        conn.register("given_rows", table)
        return list(conn.sql(f"FROM given_rows ORDER BY {order} {limit}").fetchall())


def compared(found: list[tuple[Any, ...]]) -> list[str]:
    """The keys of rows, those that compare equal alike."""
    return [repr(tuple(0.0 if value == 0 else value for value in row[:-1])) for row in found]


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@drawn(sorts(), st.booleans(), st.booleans())
def test_a_sort_is_order_by(ctx: RuntimeContext, case: Any, spills: bool, is_sampled: bool) -> None:
    table, by, down, last, npartitions, cuts = case
    keys = sort_keys(by, down, last)
    order = ", ".join(f'"{key.by}" {key.direction}' for key in keys)
    files = []
    for begin, end in itertools.pairwise(cuts):
        files.append(f"{ctx.job_root}/{ctx.new_task_id()}.parquet")
        pq.write_table(table.slice(begin, end - begin), files[-1])
    options: dict[str, Any] = {"sort_keys": keys, "dimension": "part"}
    points: list[Any] = []
    if is_sampled:
        points = [SplitPointsTask(ctx, given(ctx, ParquetDataSet(files)), TOP, npartitions, keys)]
        run(points[0])
        options["npartitions"] = npartitions
    else:
        # Any rows in order will do as points, though partitions may be of any size.
        ordered = in_order(table, order, f"LIMIT {npartitions - 1}")
        options["split_points"] = [row[:-1] for row in ordered]
        npartitions = len(ordered) + 1

    producers = []
    for share in (files[::2], files[1::2]):
        if share:
            task = RangePartitionTask(ctx, [*given(ctx, ParquetDataSet(share)), *points], TOP, **options)
            producers.append(run(task))
    found = []
    for number in range(npartitions):
        part = ParquetDataSet.merge([producer[number] for producer in producers])
        sort = SortTask(ctx, given(ctx, part), [PartitionInfo(), PartitionInfo(number, npartitions, "part")], keys)
        if spills:
            sort._sort_in_memory = lambda dataset, room: None  # type: ignore[method-assign]
        found += rows(run(sort))
    assert sorted(row[-1] for row in found) == list(range(table.num_rows))
    assert compared(found) == compared(in_order(table, order))
