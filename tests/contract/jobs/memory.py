"""A job whose tasks take more memory than they were granted: each is tried again with twice as much.

python memory.py DATA_ROOT FACTS.json watched|enforced
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from engine import run_tasks

import smallpond_mpi as sp
from smallpond_mpi.execution.task import PartitionInfo, SqlEngineTask, Task

MB = 1 << 20


class Queries(SqlEngineTask):
    """Sorts some 100 MB in DuckDB, whose threads and allocations meet the limit as well."""

    def __init__(self, ctx: Any, memory_limit: int) -> None:
        query = "SELECT i, row_number() OVER (ORDER BY hash(i)) AS n FROM range(2_000_000) t(i)"
        super().__init__(ctx, [], [PartitionInfo()], [query], memory_limit=memory_limit)


class Takes(Task):
    """Takes so many bytes, and holds them for a while."""

    def __init__(self, ctx: Any, facts: str, nbytes: int, memory_limit: int | None) -> None:
        super().__init__(ctx, [], [PartitionInfo()], memory_limit=memory_limit)
        self.facts = facts
        self.nbytes = nbytes

    def run(self) -> bool:
        facts = {
            "memory_limit": self.memory_limit,
            "boosts": [self._cpu_boost, self._memory_boost],
            "rlimit": resource.getrlimit(resource.RLIMIT_DATA),
            "fail_count": self.fail_count,
            "share": self.share_of_memory(),
        }
        Path(f"{self.facts}.{self.retry_count}").write_text(json.dumps(facts))
        held = []
        for _ in range(self.nbytes // MB):
            held.append(bytearray(os.urandom(4096) * 256))  # touched, page by page
        time.sleep(0.5)  # the guard looks every 20 ms: an attempt that may not hold this does not get here
        return len(held) == self.nbytes // MB


def main(data_root: str, facts_path: str, how: str) -> None:
    session = sp.init(data_root=data_root, enforce_memory_limit=how == "enforced", progress="none")
    stem = os.path.splitext(facts_path)[0]
    limit = 400 * MB if how == "enforced" else 40 * MB
    nbytes = 700 * MB if how == "enforced" else 100 * MB
    tasks = {
        "greedy": Takes(session._runtime_ctx, f"{stem}.greedy", nbytes, limit),
        "modest": Takes(session._runtime_ctx, f"{stem}.modest", 5 * MB, limit),
        "unlimited": Takes(session._runtime_ctx, f"{stem}.unlimited", 50 * MB, None),
        "query": Queries(session._runtime_ctx, 60 * MB),
        "tiny": Takes(session._runtime_ctx, f"{stem}.tiny", 10 * MB, 3 * MB),
    }
    run_tasks(session, list(tasks.values()))
    told = {
        name: {
            "status": task.status.name,
            "memory_limit": task.memory_limit,
            "boost": task._memory_boost,
            "retry_count": task.retry_count,
            "fail_count": task.fail_count,
            "rows": task.output.num_rows,
        }
        for name, task in tasks.items()
    }
    Path(facts_path).write_text(json.dumps(told))
    session.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
