"""A stream that is interrupted as often as it is told, with a checkpoint after each fifth batch: which batches are worked in, by which attempt.

    python stream.py DATA_ROOT FACTS.json  child|job  NUMBER_OF_KILLS

`child` kills the process of the attempt, `job` the whole job, which is then to be started again.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from engine import run_plan

import smallpond_mpi as sp
from smallpond_mpi.execution.task import StreamOutput
from smallpond_mpi.logical.dataset import ArrowTableDataSet
from smallpond_mpi.logical.node import ArrowStreamNode, Context, DataSourceNode

NUM_BATCHES, BATCH_ROWS, EVERY, KILL_EVERY = 40, 10, 5, 12


def main(data_root: str, facts_path: str, victim: str, kills: str) -> None:
    session = sp.init(data_root=data_root, job_id="stream", progress="none")
    log = f"{facts_path}.log"
    # In a file: a number that is another each time would be another function, whose checkpoints are not for this one.
    Path(f"{log}.pid").write_text(str(os.getpid()))

    def work(runtime_ctx: Any, readers: list[pa.RecordBatchReader]) -> Any:
        task = runtime_ctx.task
        for index, batch in enumerate(readers[0]):
            if index == KILL_EVERY and killed(log) < int(kills):
                if victim == "job":
                    wait_for_the_journal(runtime_ctx)
                Path(f"{log}.{killed(log)}.killed").touch()
                os.kill(int(Path(f"{log}.pid").read_text()) if victim == "job" else os.getpid(), signal.SIGKILL)
                signal.pause()
            with open(log, "a") as file:
                number = batch.column("a")[0].as_py() // BATCH_ROWS
                file.write(f"{task.sched_epoch} {task.retry_count} {task.fail_count} {number}\n")
            table = pa.Table.from_batches([batch])
            yield StreamOutput(table, [index], force_checkpoint=index % EVERY == EVERY - 1)

    ctx = Context()
    source = DataSourceNode(ctx, ArrowTableDataSet(pa.table({"a": range(NUM_BATCHES * BATCH_ROWS)})))
    stream = ArrowStreamNode(ctx, (source,), process_func=work, streaming_batch_size=BATCH_ROWS, output_name="kept")
    plan = run_plan(session, stream)
    (task,) = [task for task in plan.tasks.values() if task.output_name == "kept"]
    told = {
        "rows": plan.final_output.to_arrow_table()["a"].to_pylist(),
        "attempt": [task.sched_epoch, task.retry_count, task.fail_count],
        "worked": [list(map(int, line.split())) for line in Path(log).read_text().splitlines()],
    }
    Path(facts_path).write_text(json.dumps(told))
    session.shutdown()


def wait_for_the_journal(ctx: Any) -> None:
    """Until rank 0 has written both checkpoints of this attempt: it would not miss them if batches took longer than no time."""
    newest = max(Path(ctx.job_root, "journal").iterdir())
    deadline = time.monotonic() + 30
    while newest.read_bytes().count(b"RuntimeState") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)


def killed(log: str) -> int:
    """How often something was killed so far."""
    directory, name = os.path.split(log)
    return sum(other.startswith(f"{name}.") and other.endswith(".killed") for other in os.listdir(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
