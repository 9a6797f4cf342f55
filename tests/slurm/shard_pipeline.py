"""An element of an array: its share of the numbers, with their remainders. `python shard_pipeline.py IN OUT [SHARDS]`; SHARDS notes whose files are whose."""

import json
import os
import sys

import smallpond_mpi

sp = smallpond_mpi.init()
files = sp.shard(f"{sys.argv[1]}/*.parquet")
if len(sys.argv) > 3:
    with open(f"{sys.argv[3]}-{os.environ['SLURM_ARRAY_TASK_ID']}.json", "w") as file:
        json.dump(files, file)
if os.path.exists(f"fail-{os.environ['SLURM_ARRAY_TASK_ID']}"):
    raise ValueError("this element was told to fail")
sp.read_parquet(files).repartition(2).map("n, n % 7 as k").write_parquet(sys.argv[2])
