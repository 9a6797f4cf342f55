"""RangePartition and sort as nodes: what is refused, what tasks they become, and what these give when they run."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import GB, InvalidArgument, ResourcesUnavailable
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.model import Capacity
from smallpond_mpi.execution.scheduler.limits import Limits
from smallpond_mpi.execution.task import RangePartitionTask, SplitPointsTask, Task, WorkStatus
from smallpond_mpi.execution.task.sort_key import SortKey
from smallpond_mpi.logical import lowering
from smallpond_mpi.logical.dataset import DataSet, ParquetDataSet
from smallpond_mpi.logical.node import (
    ConsolidateNode,
    Context,
    DataSourceNode,
    LimitNode,
    LogicalPlan,
    Node,
    RangePartitionNode,
    SortNode,
    UnionNode,
)
from smallpond_mpi.logical.node.sort import cut_for_sort
from smallpond_mpi.logical.optimizer import Optimizer
from smallpond_mpi.logical.planner import Planner
from tests.unit.logical.plan_builders import evenly, inputs, kinds, partitions, source, sql, upstream

KEY = SortKey("i")


@pytest.fixture
def rows(ctx: Context, tmp_path: Path) -> DataSourceNode:
    """300 rows (i descending, k) in three files."""
    paths = []
    for number in range(3):
        numbers = [299 - 100 * number - i for i in range(100)]
        paths.append(str(tmp_path / f"part-{number}.parquet"))
        pq.write_table(pa.table({"i": numbers, "k": [i % 3 for i in numbers]}), paths[-1], row_group_size=30)
    return DataSourceNode(ctx, ParquetDataSet(paths))


def ran(job: RuntimeContext, node: Node) -> list[list[dict[str, Any]]]:
    """The rows of each partition."""
    job.initialize("test", root_exist_ok=True)
    tasks = Planner(job).plan_node(Optimizer().visit(node))
    for task in upstream(tasks):
        task.input_datasets = [dep.output for dep in inputs(task)]
        assert task.exec() is WorkStatus.SUCCEED, f"{task}: {task.exception!r}"
    return [DataSet.merge([task.output]).to_arrow_table().to_pylist() for task in tasks]


def numbers(parts: list[list[dict[str, Any]]]) -> list[list[int]]:
    return [[row["i"] for row in part] for part in parts]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), [2, 1]), "2 comes before 1"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), [1, 2], by="i", descending=True), "1 comes before 2"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), [(1, 2), (3,)]), r"not \[1, 2\]"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), [(1, 2)], by="i"), "2 values and there are 1 columns"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), "abc"), "must be a list of values, not 'abc'"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), [1, "a"]), "must have one type"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), [1], npartitions=3), "1 split points make 2 partitions, not 3"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), None), "give by and npartitions"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), None, by="i", npartitions=0), "npartitions must be at least 1"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), None, by="i", npartitions=9**9), "at most 4,096,000"),
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), [1], by=[1]), "by must be a column"),  # type: ignore[list-item]
        (lambda ctx, dep: RangePartitionNode(ctx, (dep,), [1], by="i", descending=[True, False]), "2 values for 1 columns"),
        (lambda ctx, dep: SortNode(ctx, (dep,), []), "name what to sort by"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_line(ctx: Context, make: Callable[..., Node], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said + r".*test_range_nodes\.py:\d+\)"):
        make(ctx, source(ctx))


def test_given_points_need_no_sample(ctx: Context, job: RuntimeContext) -> None:
    consumers = Planner(job).plan_node(RangePartitionNode(ctx, (source(ctx),), [10, 20], dimension="range"))
    assert partitions(consumers) == ["range[0/3]", "range[1/3]", "range[2/3]"]
    assert "SplitPointsTask" not in kinds(upstream(consumers))


def test_each_producer_gets_its_share_and_the_points(ctx: Context, job: RuntimeContext) -> None:
    node = RangePartitionNode(ctx, (source(ctx), source(ctx, "/data/b")), None, by="i", npartitions=3)
    consumers = Planner(job).plan_node(node)
    producers = inputs(consumers[0])
    assert len(producers) == 8
    (points,) = {inputs(producer)[1] for producer in producers}
    assert isinstance(points, SplitPointsTask)
    assert kinds(inputs(points)) == ["DataSourceTask"] * 2
    assert len({inputs(producer)[0] for producer in producers}) == 8
    assert points.node_id != producers[0].node_id, "other tasks, other durations"


def test_rows_lie_between_their_points(ctx: Context, job: RuntimeContext, rows: Node) -> None:
    parts = numbers(ran(job, RangePartitionNode(ctx, (rows,), [100, 100, 290], cpu_limit=1, memory_limit=None)))
    assert [sorted(part) for part in parts] == [
        list(range(100)), [], list(range(100, 290)), list(range(290, 300)),
    ]  # fmt: skip


def test_sampled_partitions_of_several_inputs(ctx: Context, job: RuntimeContext, rows: Node) -> None:
    node = RangePartitionNode(ctx, (sql(ctx, rows), evenly(ctx, rows, 2)), None, by="i", npartitions=4)
    parts = numbers(ran(job, node))
    assert [len(part) for part in parts] == [150] * 4
    assert sorted(parts[1]) == sorted([*range(75, 150), *range(75, 150)])


def test_nested_partitions_have_points_of_their_own(ctx: Context, job: RuntimeContext, rows: Node) -> None:
    outer = RangePartitionNode(ctx, (rows,), [100], dimension="outer")
    node = RangePartitionNode(ctx, (outer,), None, "inner", nested=True, by="i", npartitions=2)
    assert node.num_partitions == 4
    parts = numbers(ran(job, node))
    assert [(min(part), max(part)) for part in parts] == [(0, 49), (50, 99), (100, 199), (200, 299)]


def test_nested_partitions_of_a_union_have_points_together(ctx: Context, job: RuntimeContext, rows: Node) -> None:
    one, other = (RangePartitionNode(ctx, (rows,), [100], dimension="outer") for _ in range(2))
    node = RangePartitionNode(ctx, (UnionNode(ctx, (one, other)),), None, "inner", nested=True, by="i", npartitions=2)
    assert [len(part) for part in ran(job, node)] == [100, 100, 200, 200]


@pytest.mark.parametrize("npartitions", [1, 2, 7, 400])
def test_a_sort_is_global(ctx: Context, job: RuntimeContext, rows: Node, npartitions: int) -> None:
    plan = evenly(ctx, rows, 2)
    parts = numbers(ran(job, SortNode(ctx, (cut_for_sort(plan, [KEY], npartitions, 4),), [KEY])))
    assert len(parts) == npartitions
    assert [i for part in parts for i in part] == list(range(300))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_how_many_partitions_a_sort_has(ctx: Context) -> None:
    assert cut_for_sort(source(ctx), [KEY], None, 8).num_partitions == 32
    assert cut_for_sort(evenly(ctx, source(ctx), 100), [KEY], None, 8).num_partitions == 100
    whole = source(ctx)
    assert cut_for_sort(whole, [KEY], 1, 8) is whole
    assert isinstance(cut_for_sort(evenly(ctx, whole, 3), [KEY], 1, 8), ConsolidateNode)


def test_few_rows_are_not_spread_over_many_partitions_unasked(
    ctx: Context, job: RuntimeContext, rows: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = SortNode(ctx, (cut_for_sort(rows, [KEY], None, 4),), [KEY])
    assert numbers(ran(job, node)) == [list(range(300))]
    monkeypatch.setattr(lowering, "ONE_TASK_BYTES", 1)  # as if they had been taken for many
    assert numbers(ran(job, node)) == [list(range(300)), *[[]] * 15]


def test_the_first_rows_of_a_sort_are_found_part_by_part(
    ctx: Context, job: RuntimeContext, rows: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering, "ONE_TASK_BYTES", 1)
    node = LimitNode(ctx, SortNode(ctx, (cut_for_sort(evenly(ctx, rows, 3), [KEY], None, 4),), [KEY]), 5)
    assert numbers(ran(job, node)) == [list(range(5))]
    assert not upstream(Planner(job).plan_node(Optimizer().visit(node)), lambda t: isinstance(t, RangePartitionTask))


def test_a_plan_says_what_it_sorts_by(ctx: Context, rows: Node) -> None:
    keys = [SortKey("k", True), SortKey("i", nulls_last=False)]
    text = LogicalPlan(ctx, SortNode(ctx, (cut_for_sort(rows, keys, 4, 1),), keys)).explain_str()
    assert text.count("by: k DESC NULLS LAST, i ASC NULLS FIRST") == 3


def checked(job: RuntimeContext, node: Node, cpus: int, memory_bytes: int) -> Task:
    """A producer of the node, held against a rank that has so much."""
    tasks = upstream(Planner(job).plan_node(node), lambda task: isinstance(task, RangePartitionTask))
    rank = Capacity(cpus=tuple(range(cpus)), gpus=(), memory_bytes=memory_bytes)
    Limits().check(tasks, {node.id: node}, [rank])
    return tasks[0]


def test_defaults_that_no_rank_meets_are_lowered_with_one_notice(
    ctx: Context, job: RuntimeContext, rows: Node, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        task = checked(job, RangePartitionNode(ctx, (rows,), [1, 2]), 2, 8 * GB)
    assert task.cpu_limit == 2
    assert task.memory_limit is not None
    assert task.memory_limit <= 8 * GB
    assert len(caplog.records) == 1
    assert "16 CPUs (using 2), 137,438,953,472 bytes of memory (using" in caplog.text
    task = checked(job, RangePartitionNode(ctx, (rows,), [1, 2]), 64, 512 * GB)
    assert (task.cpu_limit, task.memory_limit) == (16, 128 * GB)


@pytest.mark.parametrize("asked", [{"cpu_limit": 4}, {"memory_limit": 9 * GB}])
def test_what_a_user_asks_for_is_not_lowered(
    ctx: Context, job: RuntimeContext, rows: Node, asked: dict[str, Any]
) -> None:
    with pytest.raises(ResourcesUnavailable, match=r"test_range_nodes\.py"):
        checked(job, RangePartitionNode(ctx, (rows,), [1, 2], **asked), 2, 8 * GB)
