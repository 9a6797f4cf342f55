"""A job whose tasks take more memory than they asked for at first: `python memory.py TASKS ASKED_MB TAKEN_MB`. Prints how many rows there are."""

import os
import sys
import time

import pyarrow as pa

import smallpond_mpi

N_TASKS, ASKED_MB, TAKEN_MB = map(int, sys.argv[1:])


def take(table: pa.Table) -> pa.Table:
    held = []
    for _ in range(TAKEN_MB // 10):  # as fast as this machine can
        held.append(b"\x01" * (10 << 20))
    time.sleep(0.05)
    return table


sp = smallpond_mpi.init(data_root=os.path.abspath("root"))
items = sp.from_arrow(pa.table({"n": list(range(N_TASKS))})).repartition(N_TASKS, by_rows=True)
print("rows:", items.map_batches(take, memory_limit=ASKED_MB << 20).count())
