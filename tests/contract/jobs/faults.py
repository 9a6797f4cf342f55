"""A pipeline of hundreds of tasks, with or without injected faults: its result, and how many attempts failed.

python faults.py DATA_ROOT FACTS.json PROBABILITY
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from engine import run_plan

import smallpond_mpi as sp
from smallpond_mpi.logical.dataset import ArrowTableDataSet
from smallpond_mpi.logical.node import (
    ArrowComputeNode,
    Context,
    DataSourceNode,
    EvenlyDistributedPartitionNode,
    HashPartitionNode,
    SqlEngineNode,
)


def main(data_root: str, facts_path: str, probability: str) -> None:
    session = sp.init(
        data_root=data_root, fault_inject_prob=float(probability), progress="none", keep_intermediate=True
    )
    ctx = Context()
    table = pa.table({"item": range(2000)})
    source = DataSourceNode(ctx, ArrowTableDataSet(table))
    parts = EvenlyDistributedPartitionNode(ctx, (source,), 60, partition_by_rows=True)
    squares = ArrowComputeNode(
        ctx,
        (parts,),
        process_func=lambda _, tables: tables[0].append_column(
            "square", pc.multiply(tables[0]["item"], tables[0]["item"])
        ),
        output_name="squares",
    )
    by_key = HashPartitionNode(ctx, (squares,), 40, ["item"])
    sums = SqlEngineNode(ctx, (by_key,), "SELECT item % 7 AS key, sum(square)::BIGINT AS total FROM {0} GROUP BY key")
    plan = run_plan(session, sums)
    rows = plan.final_output.to_arrow_table()
    squared = plan.get_output("squares").to_arrow_table()
    told = {
        "rows": sorted(zip(rows["key"].to_pylist(), rows["total"].to_pylist(), strict=True)),
        "squares": sorted(squared["square"].to_pylist()),
        "tasks": len(plan.tasks),
        "failed attempts": sum(task.fail_count for task in plan.tasks.values()),
        "causes": sorted({type(task.exception).__name__ for task in plan.tasks.values()}),
    }
    Path(facts_path).write_text(json.dumps(told))
    session.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
