"""A plan whose tasks Ray runs: what it gives, which attempts were made, and that nothing is run twice.

python on_ray.py DATA_ROOT FACTS.json
"""

import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from smallpond_mpi.common import ResourcesUnavailable
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.task import ExecutionPlan, PartitionInfo, Task
from smallpond_mpi.logical.dataset import ArrowTableDataSet
from smallpond_mpi.logical.node import (
    ArrowComputeNode,
    Context,
    DataSourceNode,
    HashPartitionNode,
    LogicalPlan,
    SqlEngineNode,
)
from smallpond_mpi.logical.planner import Planner


class Never(Task):
    """Fails each time; `how` says with what."""

    def __init__(self, ctx: Any, how: str) -> None:
        super().__init__(ctx, [], [PartitionInfo()])
        self.how = how

    def run(self) -> bool:
        if self.how == "dies":
            os._exit(3)
        if self.how == "bad query":
            from smallpond_mpi.common import InvalidQuery

            raise InvalidQuery("SELEC 1")
        raise ZeroDivisionError("every time")


def planned(ctx: RuntimeContext, log: str) -> ExecutionPlan:
    """Sources, a shuffle, SQL and a function that fails at first. The same ids each time."""

    def note(runtime_ctx: RuntimeContext, tables: list[pa.Table]) -> pa.Table:
        task = runtime_ctx.task
        with open(log, "a") as file:
            file.write(f"{task.key} {task.retry_count} {task.fail_count}\n")
        if task.retry_count == 0:
            raise ValueError("the first attempt fails")
        return tables[0]

    nodes = Context()
    source = DataSourceNode(nodes, ArrowTableDataSet(pa.table({"a": range(100)})))
    parts = HashPartitionNode(nodes, (source,), 3, ["a"])
    doubled = SqlEngineNode(nodes, (parts,), "SELECT a, a * 2 AS b FROM {0}")
    noted = ArrowComputeNode(nodes, (doubled,), process_func=note)
    return Planner(ctx).create_exec_plan(LogicalPlan(nodes, noted))


def error_of(task: Task) -> list[str]:
    """What comes out when the task's ref is asked for."""
    try:
        ray.get(task.run_on_ray())
    except Exception as error:  # noqa: BLE001 - what comes out is what is looked at
        return [type(error).__name__, str(error)]
    return []


def attempts(task: Task) -> int:
    """How many attempts of a task were started."""
    stem = os.path.basename(task.ray_marker_path).rpartition(".")[0]
    return sum(name.rpartition(".")[0] == stem for name in os.listdir(task.ctx.started_task_dir))


def main(data_root: str, facts_path: str) -> None:
    job_id, log = JobId.new(), f"{facts_path}.log"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    def context() -> RuntimeContext:
        ctx = RuntimeContext(job_id, datetime.now(), data_root)
        ctx.initialize("ray")
        return ctx

    ctx = context()
    plan = planned(ctx, log)
    ref = plan.root_task.run_on_ray()
    told: dict[str, Any] = {"rows": sorted(ray.get(ref).to_arrow_table()["b"].to_pylist())}
    told["same ref"] = plan.root_task.run_on_ray() is ref
    told["noted"] = sorted(Path(log).read_text().splitlines())
    told["tasks"] = {key: [attempts(task), os.path.exists(task.ray_dataset_path)] for key, task in plan.tasks.items()}
    told["paths"] = {
        key: [task.ray_marker_path, task.ray_dataset_path, task.node_id] for key, task in plan.tasks.items()
    }
    told["dirs"] = [ctx.started_task_dir, ctx.completed_task_dir]

    # Another process would plan the same again: what is done is not run again, nor what only that depends on.
    again = planned(context(), log)
    shutil.rmtree(os.path.join(ctx.completed_task_dir, "1"))
    told["rows again"] = sorted(ray.get(again.root_task.run_on_ray()).to_arrow_table()["b"].to_pylist())
    told["noted again"] = sorted(Path(log).read_text().splitlines())
    told["attempts again"] = {key: attempts(task) for key, task in again.tasks.items()}

    ctx.max_fail_count = 2
    for how in ("fails", "dies", "bad query"):
        task = Never(ctx, how)
        told[how] = [*error_of(task), attempts(task), os.path.exists(task.ray_dataset_path)]
    try:
        Task(ctx, [], [PartitionInfo()], cpu_limit=1000).run_on_ray()
    except ResourcesUnavailable as error:
        told["too much"] = str(error)
    ray.shutdown()
    Path(facts_path).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
