"""One real task for each rank, with all that the rank has for tasks: packed by rank 0, run as any task is, and what it saw from within.

It goes the way of every task (fork server, child, binding, limits, DuckDB's settings), but for the scheduler: each rank is to run its own.
"""

import base64
import importlib
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import cloudpickle
import duckdb

from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.model import Capacity, GpuSlot, Grant, TaskRuntimeId
from smallpond_mpi.execution.payload import Packer
from smallpond_mpi.execution.protocol import Blob, Message, RunTask, Welcome, encode
from smallpond_mpi.execution.slots import Layout, Slots
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.platform import gpu
from smallpond_mpi.platform.topology import allowed_cpus

WORK_OF_ALL_THREADS = "select sum(i) from range(2_000_000) t(i)"
UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
HEARTBEAT_SECS = 60.0


class GrantTask(ExecSqlQueryMixin):
    """Looks at what it was given."""

    memory_overcommit_ratio = 0.9

    def run(self) -> bool:
        with self.connection([WORK_OF_ALL_THREADS]) as conn:
            conn.sql(WORK_OF_ALL_THREADS).fetchall()
            threads, memory = settings_of(conn)
            self.seen: dict[str, Any] = {
                "threads": threads,
                "memory_bytes": memory,
                "memory_wanted": self.engine_memory,
                "memory_limit": self.memory_limit,
                "cpus": sorted(set(_cpus_of_threads())),
                "gpus": gpu.shown(os.environ),
            }
        with duckdb.connect() as own:  # as a user's function may
            self.seen["threads_of_own"] = settings_of(own)[0]
        return True


def settings_of(conn: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """(threads, bytes of memory) that DuckDB says it may use."""
    [(threads, memory)] = conn.sql("select current_setting('threads'), current_setting('memory_limit')").fetchall()
    number, unit = re.fullmatch(r"([\d.]+) (\w+)", memory).groups()  # type: ignore[union-attr] # DuckDB's own format
    return int(threads), round(float(number) * UNITS[unit])


def _cpus_of_threads() -> Iterator[int]:
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/status") as file:
            yield from allowed_cpus(file.read())


def capacity_of(rank: Mapping[str, Any]) -> Capacity:
    """What a rank may hand out, from the facts that it told."""
    gpus = zip(rank["gpus"], rank["numa_node_of_gpu"], strict=True)
    return Capacity(
        tuple(rank["cpus"]),
        rank["memory_bytes"],
        tuple(GpuSlot(token, node) for token, node in gpus),
        tuple(rank["numa_node_of_cpu"]),
    )


def whole(capacity: Capacity) -> Grant:
    """A grant of all that a rank has."""
    slots = Slots(Layout(capacity))
    return slots.take(len(capacity.cpus), slots.layout.usable_bytes, len(capacity.gpus))


@contextmanager
def frames(ranks: Sequence[Mapping[str, Any]], data_root: str) -> Iterator[dict[int, str]]:
    """Rank → what its executor is to be sent, as text, for every rank that has CPUs. The job's directory goes at the end.

    Raises:
        OSError: its directories can't be made.
    """
    importlib.import_module("smallpond_mpi.execution.task")
    ctx = RuntimeContext(JobId.new(), datetime.now(), data_root, console_log_level="ERROR")
    try:
        ctx.initialize("0")
        packer = Packer(ctx)
        yield {int(rank["rank"]): _frame(ctx, packer, capacity_of(rank)) for rank in ranks if rank["cpus"]}
    finally:
        ctx.cleanup_root()


def _frame(ctx: RuntimeContext, packer: Packer, capacity: Capacity) -> str:
    grant = whole(capacity)
    task = GrantTask(ctx, [], [PartitionInfo()], cpu_limit=len(grant.cpus), gpu_limit=len(grant.gpus))
    attempt = TaskRuntimeId(task.id, 0, 0)
    packed = packer.pack(task, attempt, 0, capacity, [], None)
    blobs: list[Message] = [Blob(digest, content) for digest, content in packed.blobs]
    welcome = Welcome(0, cloudpickle.dumps(ctx, protocol=5), ctx.paths.log, HEARTBEAT_SECS)
    run = RunTask(
        attempt, grant, packed.header, packed.payload, tuple(digest for digest, _ in packed.blobs), fresh=True
    )
    return base64.b64encode(encode([welcome, *blobs, run])).decode()


def opened(answer: dict[str, Any]) -> dict[str, Any]:
    """A rank's answer with what the task saw in place of its packed state."""
    state = answer.pop("state", None)
    return answer if state is None else {**answer, **pickle.loads(base64.b64decode(state))["seen"]}
