"""A job whose tasks tell what they have, and stay until all have told: `python placement.py TASKS CPUS GPUS`.

Each writes reports/HOST-PID.json (the process id of its node) and goes on when all TASKS reports are there and the file `go` has been made.
"""

import json
import os
import subprocess
import sys
import threading
import time

import pyarrow as pa

import smallpond_mpi

WAIT_SECS = 60.0
N_TASKS, CPUS, GPUS = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


def look(table: pa.Table) -> pa.Table:
    import duckdb
    import numpy
    import pyarrow.compute as pc
    import threadpoolctl

    # From outside a child shows the environment of its fork server, and what it starts shows the child's own.
    helper = subprocess.Popen(["sleep", "600"])
    connection = duckdb.connect()
    busy = threading.Thread(target=lambda: connection.sql("select sum(i) from range(200_000) t(i)").fetchall())
    busy.start()
    numpy.ones((400, 400)) @ numpy.ones((400, 400))
    pc.sum(pa.array(range(100_000)))
    busy.join()
    [(threads,)] = connection.sql("select current_setting('threads')").fetchall()
    report = {
        "affinity": sorted(os.sched_getaffinity(0)),
        "threads of DuckDB": threads,
        "threads of Arrow": pa.cpu_count(),
        "threads of BLAS": sorted({pool["num_threads"] for pool in threadpoolctl.threadpool_info()}),
        "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
        "helper": helper.pid,
        "launch": sorted(name for name in os.environ if name.startswith(("PMI", "OMPI_COMM", "SLURM_STEP_"))),
    }
    path = f"reports/{os.uname().nodename}-{os.getpid()}.json"
    with open(path + ".new", "w") as file:
        json.dump(report, file)
    os.rename(path + ".new", path)
    deadline = time.monotonic() + WAIT_SECS
    while not os.path.exists("go"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(os.listdir('reports'))} of {N_TASKS} tasks run")
        time.sleep(0.05)
    helper.kill()
    helper.wait()
    return table


os.makedirs("reports", exist_ok=True)
sp = smallpond_mpi.init(data_root=os.path.abspath("root"))
items = sp.from_arrow(pa.table({"n": list(range(N_TASKS))})).repartition(N_TASKS, by_rows=True)
settings = {"gpu_limit": GPUS} if GPUS else {}
assert items.map_batches(look, cpu_limit=CPUS, **settings).count() == N_TASKS
