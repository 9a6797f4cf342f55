"""Short ways to say what plans in these tests look like."""

from collections.abc import Callable, Iterable
from typing import Any

from smallpond_mpi.execution.task import Task
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.node import (
    Context,
    DataSourceNode,
    EvenlyDistributedPartitionNode,
    HashPartitionNode,
    LoadPartitionedDataSetNode,
    Node,
    SqlEngineNode,
)


def source(ctx: Context, *paths: str) -> DataSourceNode:
    return DataSourceNode(ctx, ParquetDataSet(list(paths or ["/data/a.parquet"]), root_dir=None))


def hashed(ctx: Context, dep: Node, npartitions: int, **kwargs: Any) -> HashPartitionNode:
    return HashPartitionNode(ctx, (dep,), npartitions, ["k"], **kwargs)


def evenly(
    ctx: Context, dep: Node, npartitions: int, *, extra: tuple[Node, ...] = (), **kwargs: Any
) -> EvenlyDistributedPartitionNode:
    return EvenlyDistributedPartitionNode(ctx, (dep, *extra), npartitions, **kwargs)


def loaded(ctx: Context, dep: Node, npartitions: int, **kwargs: Any) -> LoadPartitionedDataSetNode:
    return LoadPartitionedDataSetNode(ctx, (dep,), npartitions, **kwargs)


def sql(ctx: Context, *deps: Node, query: str = "SELECT * FROM {0}", **kwargs: Any) -> SqlEngineNode:
    return SqlEngineNode(ctx, deps, query, **kwargs)


def partitions(tasks: Iterable[Task]) -> list[str]:
    """Where the tasks stand, without the top-level dimension if that is not cut."""
    return [
        " ".join(str(info) for info in task.partition_infos if not info.is_toplevel or info.npartitions > 1)
        for task in tasks
    ]


def inputs(task: Task) -> list[Task]:
    return list(task._deps.tasks)


def kinds(tasks: Iterable[Task]) -> list[str]:
    return [type(task).__name__ for task in tasks]


def upstream(tasks: Iterable[Task], wanted: Callable[[Task], bool] = lambda task: True) -> list[Task]:
    """The tasks and all that they need, each once, by id."""
    found: dict[int, Task] = {}
    stack = list(tasks)
    while stack:
        task = stack.pop()
        if task.id not in found:
            found[task.id] = task
            stack.extend(task._deps.tasks)
    return [found[number] for number in sorted(found) if wanted(found[number])]
