"""How the jobs of this directory hand tasks and plans to the engine, below the DataFrame: in one place, as it is no public way."""

from collections.abc import Sequence
from typing import Any

from smallpond_mpi.execution.task import ExecutionPlan, Task
from smallpond_mpi.logical.node import LogicalPlan, Node
from smallpond_mpi.logical.planner import Planner


def run_tasks(session: Any, tasks: Sequence[Task]) -> None:
    """Bring tasks made by hand, and what they need, to success."""
    session._job.loop.run(list(tasks))


def run_plan(session: Any, node: Node) -> ExecutionPlan:
    """Plan a node with all that it needs, and run it."""
    plan = Planner(session._runtime_ctx).create_exec_plan(LogicalPlan(node.ctx, node))
    run_tasks(session, [plan.root_task])
    return plan
