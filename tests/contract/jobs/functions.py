"""Functions of the user in SQL, in all four forms, together in one query; and the queries of a fused plan that call some.

python functions.py DATA_ROOT FACTS.json EXTENSION MODULE
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
    Context,
    DataSourceNode,
    EvenlyDistributedPartitionNode,
    HashPartitionNode,
    SqlEngineNode,
)
from smallpond_mpi.logical.optimizer import Optimizer
from smallpond_mpi.logical.udf import UDFListType, UDFType, udf


@udf([UDFType.BIGINT], UDFType.BIGINT)
def native(x: int) -> int:
    return x + 1


@udf([UDFType.BIGINT], UDFType.BIGINT, use_arrow_type=True)
def on_arrow(x: pa.ChunkedArray) -> pa.Array:
    return pc.multiply(x, 10)


@udf([UDFType.VARCHAR], UDFListType(UDFType.VARCHAR), name="words")
def split(text: str) -> list[str]:
    return text.split()


def main(data_root: str, facts_path: str, extension: str, module: str) -> None:
    session = sp.init(data_root=data_root, progress="none")
    ctx = Context()
    table = pa.table({"i": range(20), "text": [f"a{i} b" for i in range(20)]})
    source = DataSourceNode(ctx, ArrowTableDataSet(table))
    parts = EvenlyDistributedPartitionNode(ctx, (source,), 2, partition_by_rows=True)
    ctx.create_function("halved", lambda x: x / 2, [UDFType.DOUBLE], UDFType.DOUBLE)
    told = {}
    every = SqlEngineNode(
        ctx,
        (parts,),
        "SELECT i, native(i), on_arrow(i), halved(i), tripled(i)::BIGINT, plus_seven(i), words(text) FROM {0}",
        udfs=[native, on_arrow, "halved", split],
        extension_paths=[extension],
        udf_module_paths=[module],
    )
    told["every"] = [list(row.values()) for row in run_plan(session, every).final_output.to_arrow_table().to_pylist()]
    named = [ctx.create_duckdb_extension(extension), ctx.create_external_module(module, "seven")]
    by_name = SqlEngineNode(ctx, (parts,), "SELECT tripled(plus_seven(i))::BIGINT AS n FROM {0}", udfs=named)
    told["by name"] = run_plan(session, by_name).final_output.to_arrow_table()["n"].to_pylist()
    inner = SqlEngineNode(ctx, (parts,), "SELECT native(i) AS i FROM {0}", udfs=[native])
    outer = SqlEngineNode(ctx, (inner,), "SELECT on_arrow(i) AS i FROM {0}", udfs=[on_arrow])
    plan = run_plan(session, Optimizer(set()).visit(outer))
    told["fused"] = plan.final_output.to_arrow_table()["i"].to_pylist()
    told["fused tasks"] = sum(type(task).__name__ == "SqlEngineTask" for task in plan.tasks.values())
    hashed = HashPartitionNode(ctx, (by_name,), 3, ["n"])
    behind = SqlEngineNode(ctx, (hashed,), "SELECT count(*) AS c FROM {0}")
    told["behind"] = sum(run_plan(session, behind).final_output.to_arrow_table()["c"].to_pylist())
    Path(facts_path).write_text(json.dumps(told))
    session.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
