"""What scripts of these tests begin with: plans, and a way to say what became of them. Run as scripts, also under mpirun."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task import ExecutionPlan
from smallpond_mpi.logical.dataset import ArrowTableDataSet
from smallpond_mpi.logical.node import (
    ArrowComputeNode,
    Context,
    DataSourceNode,
    EvenlyDistributedPartitionNode,
    HashPartitionNode,
    LogicalPlan,
    Node,
    SqlEngineNode,
)

ROWS = 1000


def numbers(ctx: Context, npartitions: int = 4) -> Node:
    """Rows a = 0 … 999, in partitions."""
    source = DataSourceNode(ctx, ArrowTableDataSet(pa.table({"a": range(ROWS)})))
    return EvenlyDistributedPartitionNode(ctx, (source,), npartitions=npartitions, partition_by_rows=True)


def sum_plan() -> LogicalPlan:
    """Shuffled and summed: two stages of four tasks; the sums have a name."""
    ctx = Context()
    hashed = HashPartitionNode(ctx, (numbers(ctx),), npartitions=3, hash_columns=["a"])
    sums = SqlEngineNode(ctx, (hashed,), "select sum(a) as s, count(*) as n from {0}", output_name="sums")
    return LogicalPlan(ctx, sums)


def compute_plan(func: Any, npartitions: int = 4, **settings: Any) -> LogicalPlan:
    """A Python function on each partition of the numbers."""
    ctx = Context()
    return LogicalPlan(ctx, ArrowComputeNode(ctx, (numbers(ctx, npartitions),), process_func=func, **settings))


def first_time(marks: str, ctx: RuntimeContext) -> bool:
    """Whether this task has not been tried before. (In a task.)"""
    try:
        Path(marks, ctx.task.key).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def told(plan: ExecutionPlan) -> dict[str, Any]:
    """A finished plan, as plain data."""
    tasks = [task for task in plan.tasks.values() if task.exec_id is not None]
    return {
        "successful": plan.successful,
        "rows": plan.final_output.to_arrow_table().to_pylist() if plan.successful else None,
        "path": plan.final_output_path,
        "named": sorted(plan.named_outputs) if plan.successful else None,
        "ranks": sorted({int(task.exec_id.rpartition(".")[2]) for task in tasks if task.exec_id}),
        "retries": sum(task.retry_count for task in tasks),
        "fails": sum(task.fail_count for task in plan.tasks.values()),
        "error": str(plan.root_task.exception) if plan.root_task.exception is not None else None,
        "statuses": sorted({task.status.name for task in plan.tasks.values()}),
    }


def say(value: Any) -> None:
    """One line that the test reads."""
    sys.stdout.write(f"TOLD {json.dumps(value, default=str)}\n")
    sys.stdout.flush()


def here(name: str) -> str:
    """A path in the test's own directory."""
    return os.path.join(os.environ["PLACE"], name)


__all__ = [
    "Any",
    "Context",
    "ExecutionPlan",
    "LogicalPlan",
    "compute_plan",
    "first_time",
    "here",
    "json",
    "numbers",
    "os",
    "pa",
    "say",
    "sum_plan",
    "sys",
    "time",
    "told",
]
