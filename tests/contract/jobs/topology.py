"""A job on a rank that is told to have two NUMA nodes and three GPUs: what the tasks that ask for GPUs are granted.

python topology.py DATA_ROOT FACTS.json
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from engine import run_tasks

import smallpond_mpi as sp
from smallpond_mpi.execution.model import Capacity, GpuSlot
from smallpond_mpi.execution.task import PartitionInfo, Task
from smallpond_mpi.platform import discover

TOKENS = ("GPU-a", "GPU-b", "GPU-c")


class OnGpu(Task):
    """Tells what it was granted, and from when to when it had it."""

    def __init__(self, ctx: Any, facts: str, gpu_limit: float, cpu_limit: int = 1) -> None:
        super().__init__(ctx, [], [PartitionInfo()], gpu_limit=gpu_limit, cpu_limit=cpu_limit)
        self.facts = facts

    def run(self) -> bool:
        began = time.monotonic()
        time.sleep(0.1)
        facts = {
            "gpu_limit": self.gpu_limit,
            "local_gpu": self.local_gpu,
            "local_gpu_ranks": self.local_gpu_ranks,
            "local_rank": self.local_rank,
            "numa_node": self.numa_node,
            "visible": os.environ["CUDA_VISIBLE_DEVICES"],
            "usable_gpu_count": self.ctx.usable_gpu_count,
            "get_local_gpus": self.ctx.get_local_gpus(),
            "cpus": sorted(os.sched_getaffinity(0)),
        }
        Path(f"{self.facts}.0").write_text(json.dumps(facts | {"began": began, "ended": time.monotonic()}))
        return True


def main(data_root: str, facts_path: str) -> None:
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    gpus = tuple(GpuSlot(token, node) for token, node in zip(TOKENS, (0, 1, 1), strict=True))
    nodes = tuple(place % 2 for place, _ in enumerate(cpus))
    discover.capacity = lambda *args, **kwargs: Capacity(cpus, 8 << 30, gpus, nodes)
    session = sp.init(data_root=data_root, progress="none")
    stem = os.path.splitext(facts_path)[0]
    shares = [0.5, 0.5, 0.5, 0.3, 0.7, 0.25, 1, 1, 2, 1.5, 0, 1 / 3, 1 / 3, 1 / 3]
    tasks: list[Task] = [OnGpu(session._runtime_ctx, f"{stem}.{number}", share) for number, share in enumerate(shares)]
    tasks.append(OnGpu(session._runtime_ctx, f"{stem}.all", 0, cpu_limit=len(cpus)))
    run_tasks(session, tasks)
    told = {
        "shares": shares,
        "nodes": dict(zip(map(str, cpus), nodes, strict=True)),
        "statuses": [task.status.name for task in tasks],
    }
    Path(facts_path).write_text(json.dumps(told))
    session.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
