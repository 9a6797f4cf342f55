"""A job: numbers by their remainder, counted and summed over a shuffle. `python pipeline.py IN OUT`; also notes which hosts its tasks ran on.

Its first tasks take until each node of the job has one: otherwise the first node might have done them all before the last one is up.
"""

import os
import sys
import time
from pathlib import Path

import pyarrow as pa

import smallpond_mpi


def note_host(table: pa.Table) -> pa.Table:
    with open("hosts", "a") as file:
        file.write(os.uname().nodename + "\n")
    while len(set(Path("hosts").read_text().split())) < N_NODES and time.time() < DEADLINE:
        time.sleep(0.02)
    return table


DEADLINE = time.time() + 60
N_NODES = int(os.environ["SLURM_JOB_NUM_NODES"])
sp = smallpond_mpi.init(data_root=os.path.abspath("root"))
numbers = sp.read_parquet(f"{sys.argv[1]}/*.parquet").repartition(20)
keyed = numbers.map_batches(note_host).map("n, n % 7 as k").repartition(7, hash_by="k")
counted = sp.partial_sql("select k, count(*) as count, sum(n)::bigint as total from {0} group by k", keyed)
counted.write_parquet(os.path.abspath(sys.argv[2]))
