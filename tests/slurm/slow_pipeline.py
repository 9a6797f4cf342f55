"""A job of tasks that each take until `go` exists, but for the first few. `python slow_pipeline.py IN OUT FIRST`; each run of a task is a line in `runs`."""

import os
import sys
import time

import pyarrow as pa

import smallpond_mpi


def work(table: pa.Table) -> pa.Table:
    with open("runs", "a") as file:
        file.write(f"{table['n'][0]}\n")
    if table["n"][0].as_py() >= FIRST * 500:
        while not os.path.exists("go"):
            time.sleep(0.05)
    return table


FIRST = int(sys.argv[3])
sp = smallpond_mpi.init()
sp.read_parquet(f"{sys.argv[1]}/*.parquet").repartition(20).map_batches(work).write_parquet(
    os.path.abspath(sys.argv[2])
)
