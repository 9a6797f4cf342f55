"""Pairing, for any inputs: each combination of indices once, each side agreeing with the pair."""

from collections import Counter
from datetime import datetime
from itertools import product
from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.task import PartitionInfo
from smallpond_mpi.logical.node import ConsolidateNode, Context, LimitNode, Node, ProjectionNode, UnionNode
from smallpond_mpi.logical.node.pairing import CannotPair, Cell, merged_cells, paired
from smallpond_mpi.logical.planner import Planner
from tests.unit.logical.plan_builders import evenly, source, sql

COUNTS = {"a": 2, "b": 3, "c": 1, "@toplevel@": 2}


def cells(dims: tuple[str, ...], name: str, copies: int = 1) -> list[Cell]:
    """All partitions along the dimensions; what stands for a task is (name, copy, indices)."""
    toplevel = () if "@toplevel@" in dims else (PartitionInfo(),)
    made = []
    for copy in range(copies):
        for indices in product(*(range(COUNTS[dim]) for dim in dims)):
            infos = [PartitionInfo(index, COUNTS[dim], dim) for index, dim in zip(indices, dims, strict=True)]
            task: Any = (name, copy, dict(zip(dims, indices, strict=True)))
            made.append(Cell(tuple(sorted((*toplevel, *infos))), (task,)))
    return made


SIDES = st.lists(
    st.tuples(st.lists(st.sampled_from(sorted(COUNTS)), unique=True).map(tuple), st.integers(1, 2)),
    min_size=1,
    max_size=4,
)


@given(SIDES)
def test_each_combination_comes_once(sides: list[tuple[tuple[str, ...], int]]) -> None:
    joined = paired([cells(dims, str(number), copies) for number, (dims, copies) in enumerate(sides)])
    all_dims = sorted({dim for dims, _ in sides for dim in dims})
    copies = prod(copies for _, copies in sides)
    assert len(joined) == copies * prod(COUNTS[dim] for dim in all_dims)
    indices = Counter(tuple(info.index for info in cell.infos if info.dimension in all_dims) for cell in joined)
    assert set(indices.values()) == {copies}
    for cell in joined:
        assert len(cell.tasks) == len(sides)
        of_pair = {info.dimension: info.index for info in cell.infos}
        assert "@toplevel@" in of_pair
        for number, task in enumerate(cell.tasks):
            name, _, own = task  # type: ignore[misc]
            assert name == str(number)
            assert own.items() <= of_pair.items()


@given(SIDES)
def test_the_order_is_that_of_the_first_side(sides: list[tuple[tuple[str, ...], int]]) -> None:
    inputs = [cells(dims, str(number), copies) for number, (dims, copies) in enumerate(sides)]
    first = [cell.tasks[0] for cell in inputs[0]]
    positions = [first.index(cell.tasks[0]) for cell in paired(inputs)]
    assert positions == sorted(positions)


def test_counts_that_differ() -> None:
    other = [Cell((PartitionInfo(), PartitionInfo(index, 4, "a")), ()) for index in range(4)]
    with pytest.raises(CannotPair, match="'a' has 2 partitions in input 0 and 4 in input 2"):
        paired([cells(("a",), "x"), cells((), "y"), other])


def test_cells_are_merged_in_the_order_in_which_they_come(ctx: Context, job: RuntimeContext) -> None:
    tasks = Planner(job).plan_node(
        evenly(ctx, evenly(ctx, source(ctx), 2, dimension="a"), 2, dimension="b", nested=True)
    )
    assert [[tasks.index(task) for task in cell.tasks] for cell in merged_cells(tasks, ["b"])] == [[0, 2], [1, 3]]
    assert [len(cell.tasks) for cell in merged_cells(tasks)] == [1, 1, 1, 1]


@st.composite
def plans(draw: st.DrawFn) -> Node:
    """A node on top of others, of any kind that changes how data is cut."""
    ctx = Context()
    nodes: list[Node] = [source(ctx)]
    for _ in range(draw(st.integers(1, 8))):
        dep, other = (draw(st.sampled_from(nodes)) for _ in range(2))
        kind = draw(st.sampled_from(["even", "nest", "sql", "join", "union", "consolidate", "limit", "project"]))
        name = draw(st.sampled_from("abc"))
        match kind:
            case "even":
                node: Node = evenly(ctx, dep, COUNTS[name], dimension=name)
            case "nest":
                node = evenly(ctx, dep, COUNTS[name], dimension=name, nested=True)
            case "sql":
                node = sql(ctx, dep)
            case "join":
                node = sql(ctx, dep, other)
            case "union":
                node = UnionNode(ctx, (dep, other))
            case "consolidate":
                node = ConsolidateNode(ctx, dep, [name])
            case "limit":
                node = LimitNode(ctx, dep, 3)
            case _:
                node = ProjectionNode(ctx, dep)
        nodes.append(node)
    return nodes[-1]


@settings(max_examples=200)
@given(plans())
def test_any_plan_is_planned_as_its_nodes_say_or_refused_with_the_place(node: Node) -> None:

    job = RuntimeContext(JobId.of("planned"), datetime(2026, 1, 1), "/nowhere", random_seed=1)
    job.num_slots = 2
    refused = ""
    tasks = []
    try:
        tasks = Planner(job).plan_node(node)
    except ValueError as error:
        refused = str(error)
    if not tasks:
        assert "at /" in refused
        return
    assert len(tasks) == node.num_partitions
    dims = {task.partition_dims for task in tasks}
    assert len(dims) == 1, "all partitions of a node are cut along the same dimensions"
    by_count = {(info.dimension, info.npartitions) for task in tasks for info in task.partition_infos}
    assert len(by_count) == len({dimension for dimension, _ in by_count})
