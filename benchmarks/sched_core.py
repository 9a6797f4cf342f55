"""How many events a second the scheduler core takes in, and what a task costs it in memory, from small jobs to very large ones.

    python benchmarks/sched_core.py [--small] [--json]

Each row is a job of two stages with a barrier between them (a shuffle), on ranks of 4 CPUs; an event is the success of an attempt, and
the core's answer to it accepts it and starts the next. Only `handle` is timed, in CPU time, the making of events is not. Specs are made on
the fly and dropped: the planner's are not the core's. The cyclic garbage collector is off meanwhile: the core leaves it nothing to collect
(a test holds that), and its passes over millions of live objects cost as much as the core itself. Memory is the highest of a whole run, with
the commands and events in flight, less what the ranks cost before there was a job. The figure to compare is the ratio of the largest row to
the smallest one, from one run.
"""

import argparse
import gc
import json
import sys
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from time import process_time
from typing import overload

from smallpond_mpi.common import GB
from smallpond_mpi.execution.model import Capacity, Rank, SpecKind, TaskId, TaskSpec
from smallpond_mpi.execution.scheduler.commands import Command, StartAttempt
from smallpond_mpi.execution.scheduler.core import SchedulerCore
from smallpond_mpi.execution.scheduler.events import AttemptEnded, JobSubmitted, RankJoined

CPUS = 4
SIZES = [(10_000, 100), (100_000, 1_000), (2_000_000, 100_000)]
SMALL_SIZES = [(2_000, 20), (20_000, 200)]
LONG_SECS = 1.0
SHORT_SECS = 0.0005
BATCH = 200
"""Events that are made before the clock starts for them."""

MEASURED_TASKS = 200_000
"""Memory is measured (tracemalloc makes everything slower) in a run of its own, on at most so many tasks and as many ranks a task."""


class Shuffle(Sequence[TaskSpec]):
    """Specs of producers, a barrier, consumers: made when asked for."""

    def __init__(self, n_tasks: int) -> None:
        self._n_tasks = n_tasks
        self._barrier = n_tasks // 2

    def __len__(self) -> int:
        return self._n_tasks

    @overload
    def __getitem__(self, index: int) -> TaskSpec: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TaskSpec]: ...
    def __getitem__(self, index: int | slice) -> TaskSpec | Sequence[TaskSpec]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < self._n_tasks:
            raise IndexError(index)
        id = TaskId(index + 1)
        if id < self._barrier:
            return TaskSpec(id, stage=1)
        if id == self._barrier:
            return TaskSpec(id, tuple(TaskId(dep) for dep in range(1, id)), kind=SpecKind.BARRIER)
        return TaskSpec(id, (TaskId(self._barrier),), stage=2)

    def __iter__(self) -> Iterator[TaskSpec]:
        return (self[index] for index in range(self._n_tasks))


def with_ranks(n_ranks: int) -> SchedulerCore:
    """A core whose ranks have joined."""
    core = SchedulerCore(epoch=0)
    capacity = Capacity(tuple(range(CPUS)), 64 * GB)
    for number in range(n_ranks):
        core.handle(RankJoined(Rank(number), "node", capacity), 0.0)
    return core


def run(
    core: SchedulerCore, n_tasks: int, task_secs: float, after_batch: Callable[[], None]
) -> tuple[float, float, int]:
    """Submit and run a job; CPU seconds in `handle` for its submission and for its events, and how many events there were."""
    begin = process_time()
    out = core.handle(JobSubmitted(Shuffle(n_tasks)), 0.0)
    submit_secs = process_time() - begin
    running: deque[StartAttempt] = deque()
    event_secs, n_events, now = 0.0, 0, 0.0
    keep_starts(out, running)
    del out
    after_batch()
    while running:
        batch = [ended(running.popleft(), task_secs) for _ in range(min(BATCH, len(running)))]
        now += task_secs * len(batch) / (len(running) + len(batch))
        outs = []
        begin = process_time()
        for event in batch:
            outs.append(core.handle(event, now))
        event_secs += process_time() - begin
        n_events += len(batch)
        for commands in outs:
            keep_starts(commands, running)
        after_batch()
    assert core.n_unfinished == 0
    return submit_secs, event_secs, n_events


def ended(start: StartAttempt, task_secs: float) -> AttemptEnded:
    """The success of an attempt."""
    return AttemptEnded(start.rank, start.attempt, None, task_secs, 1)


def keep_starts(out: list[Command], running: deque[StartAttempt]) -> None:
    """The attempts that were started are those that end later, in this order."""
    running.extend(command for command in out if type(command) is StartAttempt)


def bytes_a_task(n_tasks: int, n_ranks: int) -> float:
    """Memory of the core above that of its idle ranks, at its highest over a run, by task. What the benchmark itself holds counts too."""
    gc.collect()
    tracemalloc.start()
    core = with_ranks(n_ranks)
    before = tracemalloc.get_traced_memory()[0]
    highest = 0

    def look() -> None:
        nonlocal highest
        highest = max(highest, tracemalloc.get_traced_memory()[0])

    run(core, n_tasks, LONG_SECS, look)
    tracemalloc.stop()
    return (highest - before) / n_tasks


def planned_bytes_a_task(n_tasks: int) -> float:
    """Memory of a plan by task, at its highest: the planner's own, tasks that read a part of a table and compute on it, and all their specs at once."""
    import pyarrow as pa

    from smallpond_mpi.execution.context import JobId, RuntimeContext
    from smallpond_mpi.execution.journal import Restored
    from smallpond_mpi.execution.scheduler.intake import Lineage, inputs_first, take_in
    from smallpond_mpi.logical.dataset import ArrowTableDataSet
    from smallpond_mpi.logical.node import Context, DataSourceNode, EvenlyDistributedPartitionNode, SqlEngineNode
    from smallpond_mpi.logical.planner import Planner

    ctx = Context()
    source = DataSourceNode(ctx, ArrowTableDataSet(pa.table({"a": pa.array(range(n_tasks), pa.int64())})))
    parts = EvenlyDistributedPartitionNode(ctx, (source,), npartitions=n_tasks // 2, partition_by_rows=True)
    node = SqlEngineNode(ctx, (parts,), "select a + 1 as a from {0}")
    job = RuntimeContext(JobId.new(), datetime.now(), "/nowhere", random_seed=1)
    gc.collect()
    tracemalloc.start()
    planner = Planner(job)
    targets = list(planner.plan_node(node))
    ids = iter(range(1 << 40, 1 << 41))
    specs = take_in(targets, Restored(), Lineage(), lambda: TaskId(next(ids)), _nothing, _nothing).specs
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(specs) >= len(inputs_first(targets)) >= n_tasks
    return highest / len(specs)


def _nothing(*_: object) -> bool:
    raise AssertionError("nothing is taken up")


def measure(n_tasks: int, n_ranks: int) -> dict[str, float]:
    """One row."""
    row: dict[str, float] = {"tasks": n_tasks, "ranks": n_ranks}
    for name, secs in (("long", LONG_SECS), ("short", SHORT_SECS)):
        core = with_ranks(n_ranks)
        gc.collect()
        gc.disable()
        submit_secs, event_secs, n_events = run(core, n_tasks, secs, lambda: None)
        gc.enable()
        row[f"{name}_events_per_sec"] = n_events / event_secs
        row["submitted_per_sec"] = n_tasks / submit_secs
    scale = max(1, n_tasks // MEASURED_TASKS)
    row["bytes_per_task"] = bytes_a_task(n_tasks // scale, n_ranks // scale)
    return row


def main() -> int:
    """Measure and print; 1 if a target is missed (except in --small, which only shows that it works)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--small", action="store_true", help="small sizes, for CI")
    args = parser.parse_args()
    rows = [measure(*size) for size in (SMALL_SIZES if args.small else SIZES)]
    ratios = {
        f"{name}_largest_to_smallest": rows[-1][f"{name}_events_per_sec"] / rows[0][f"{name}_events_per_sec"]
        for name in ("long", "short")
    }
    slowest = min(row[f"{name}_events_per_sec"] for row in rows for name in ("long", "short"))
    most_bytes = max(row["bytes_per_task"] for row in rows)
    planned = planned_bytes_a_task(2_000 if args.small else MEASURED_TASKS)
    is_met = slowest >= 100_000 and most_bytes < 600 and planned < 3000 and min(ratios.values()) >= 0.7
    if args.json:
        print(
            json.dumps(
                {
                    "rows": rows,
                    **ratios,
                    "slowest_events_per_sec": slowest,
                    "bytes_per_task": most_bytes,
                    "planned_bytes_per_task": planned,
                    "met": is_met,
                }
            )
        )
    else:
        print(
            f"{'tasks':>10} {'ranks':>8} {'submitted/s':>12} {'events/s long':>14} {'events/s short':>15} {'bytes/task':>11}"
        )
        for row in rows:
            print(
                f"{row['tasks']:>10,} {row['ranks']:>8,} {row['submitted_per_sec']:>12,.0f} {row['long_events_per_sec']:>14,.0f}"
                f" {row['short_events_per_sec']:>15,.0f} {row['bytes_per_task']:>11,.0f}"
            )
        print(", ".join(f"{name.replace('_', ' ')}: {ratio:.2f}" for name, ratio in ratios.items()))
        print(f"planner, Task and spec: {planned:,.0f} bytes a task")
        print(
            "targets (100,000 events/s, 600 bytes a task in the core, 3,000 planned, flat within 30%): "
            f"{'met' if is_met else 'missed'}"
        )
    return 0 if is_met or args.small else 1


if __name__ == "__main__":
    sys.exit(main())
