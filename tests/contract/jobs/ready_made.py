"""The nodes of contrib in one plan: what goes in comes out, and its first rows stand in the log.

python ready_made.py DATA_ROOT FACTS.json
"""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
from engine import run_plan

import smallpond_mpi as sp
from smallpond_mpi.contrib.copy_table import CopyArrowTable, StreamCopy
from smallpond_mpi.contrib.log_dataset import LogDataSet
from smallpond_mpi.logical.dataset import ArrowTableDataSet
from smallpond_mpi.logical.node import Context, DataSourceNode, EvenlyDistributedPartitionNode, SqlEngineNode


def main(data_root: str, facts_path: str) -> None:
    session = sp.init(data_root=data_root, progress="none")
    ctx = Context()
    table = pa.table({"a": range(100), "b": [f"row {i}" for i in range(100)]})
    parts = EvenlyDistributedPartitionNode(
        ctx, (DataSourceNode(ctx, ArrowTableDataSet(table)),), 2, partition_by_rows=True
    )
    logged = LogDataSet(ctx, (parts,), num_rows=3)
    copied = StreamCopy(
        ctx, (CopyArrowTable(ctx, (logged,)),), streaming_batch_size=30, output_path=f"{data_root}/mine"
    )
    nothing = StreamCopy(ctx, (SqlEngineNode(ctx, (logged,), "SELECT * FROM {0} WHERE a < 0"),))
    told = {
        "rows": run_plan(session, copied).final_output.to_arrow_table().to_pylist(),
        "nothing": run_plan(session, nothing).final_output.to_arrow_table().schema.names,
        "log": Path(session._runtime_ctx.job_root, "log", "rank-0.log").read_text(),
    }
    session.shutdown()
    told["left"] = sorted(os.listdir(f"{data_root}/mine"))
    told["job"] = sorted(os.listdir(session._runtime_ctx.job_root))
    told["status"] = Path(session._runtime_ctx.job_status_path).read_text()
    Path(facts_path).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
