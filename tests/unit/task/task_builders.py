"""Builders for tests that run a task in this process."""

from collections.abc import Sequence
from typing import Any

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.task import HashPartitionTask
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.logical.dataset import DataSet

TOP = [PartitionInfo()]


def given(ctx: RuntimeContext, *datasets: DataSet) -> list[Task]:
    """Tasks whose outputs the datasets are: what a task under test depends on."""
    tasks = []
    for dataset in datasets:
        task = Task(ctx, [], TOP)
        task.dataset = dataset
        tasks.append(task)
    return tasks


def hashed(
    ctx: RuntimeContext, engine: str, dataset: Any, *columns: str, n: int = 8, **options: Any
) -> HashPartitionTask:
    """A task that cuts a dataset into `n` partitions by the hash of columns."""
    options.setdefault("data_partition_column", "__data_partition__")
    return HashPartitionTask.create(
        engine, ctx, given(ctx, dataset), TOP, npartitions=n, dimension="part", hash_columns=list(columns), **options
    )


def run(task: Task) -> Any:
    """Run an attempt of a task over the outputs of what it depends on, as a child would; returns its output."""
    attempt(task)
    if task.exception is not None:
        raise task.exception
    assert task.status is WorkStatus.SUCCEED
    return task.output


def attempt(task: Task) -> WorkStatus:
    """Run an attempt and return how it ended."""
    task.input_datasets = [dep.output for dep in task._deps.tasks]
    status: WorkStatus = task.exec()
    return status


def rows(dataset: DataSet, *columns: str) -> list[tuple[Any, ...]]:
    """All rows, in order."""
    table = dataset.to_arrow_table()
    return list(zip(*(table.column(name).to_pylist() for name in columns or table.column_names), strict=True))


def values(dataset: DataSet, column: str) -> Sequence[Any]:
    """One column, in order."""
    return [row[0] for row in rows(dataset, column)]
