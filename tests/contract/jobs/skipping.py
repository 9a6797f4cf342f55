"""A job told to skip tasks with an empty input, or not: how many rows a count of nothing has.

python skipping.py DATA_ROOT FACTS.json yes|no
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
from engine import run_plan

import smallpond_mpi as sp
from smallpond_mpi.logical.dataset import ArrowTableDataSet
from smallpond_mpi.logical.node import ArrowComputeNode, Context, DataSourceNode, SqlEngineNode


def main(data_root: str, facts_path: str, skip: str) -> None:
    session = sp.init(data_root=data_root, progress="none", skip_task_with_empty_input=skip == "yes")
    ctx = Context()
    nothing = DataSourceNode(ctx, ArrowTableDataSet(pa.table({"i": pa.array([], pa.int64())})))
    log = f"{facts_path}.log"

    def note(runtime_ctx: object, tables: list[pa.Table]) -> pa.Table:
        Path(log).write_text(f"called with {tables[0].num_rows} rows")
        return tables[0]

    counted = SqlEngineNode(ctx, (nothing,), "SELECT count(*) AS n FROM {0}")
    noted = ArrowComputeNode(ctx, (nothing,), process_func=note)
    told = {"counted": run_plan(session, counted).final_output.num_rows}
    told["noted"] = run_plan(session, noted).final_output.num_rows
    told["called"] = Path(log).exists()
    Path(facts_path).write_text(json.dumps(told))
    session.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
