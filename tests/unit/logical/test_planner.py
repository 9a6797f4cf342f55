"""What tasks the planner makes of a plan."""

import pytest

from builders import hashed, inputs, kinds, partitions, source, sql, upstream
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task import MergeDataSetsTask, SplitDataSetTask
from smallpond_mpi.logical.node import Context, LimitNode, LogicalPlan, RootNode
from smallpond_mpi.logical.planner import Planner


def test_a_pipeline_from_source_to_root(ctx: Context, job: RuntimeContext) -> None:
    query = sql(ctx, hashed(ctx, source(ctx), 3))
    plan = Planner(job).create_exec_plan(LogicalPlan(ctx, RootNode(ctx, (LimitNode(ctx, query, 10),))))
    by_kind = {}
    for task in plan.tasks.values():
        by_kind[type(task).__name__] = by_kind.get(type(task).__name__, 0) + 1
    assert by_kind == {
        "DataSourceTask": 1,
        "SplitDataSetTask": 8,
        "HashPartitionDuckDbTask": 8,
        "PartitionConsumerTask": 3,
        "SqlEngineTask": 3 + 3 + 1,
        "MergeDataSetsTask": 1,
        "DataSinkTask": 1,
        "RootTask": 1,
    }
    assert all(task.location.startswith(__file__) for task in plan.tasks.values() if task.node_id <= 5)
