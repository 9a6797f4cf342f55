"""A job of tasks made by hand: what each sees in its child, and what comes back to rank 0, written as JSON.

python probe.py DATA_ROOT FACTS.json
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from engine import run_tasks

import smallpond_mpi as sp
from smallpond_mpi.execution.task import PartitionInfo, Task
from smallpond_mpi.logical.dataset import ParquetDataSet

SEEN = [
    "id",
    "key",
    "node_id",
    "sched_epoch",
    "retry_count",
    "fail_count",
    "runtime_id",
    "location",
    "exec_id",
    "exec_on_scheduler",
    "partition_dims",
    "partition_infos_as_dict",
    "any_input_empty",
    "skip_when_any_input_empty",
    "self_contained_output",
    "temp_output",
    "cpu_limit",
    "gpu_limit",
    "memory_limit",
    "local_gpu",
    "local_gpu_ranks",
    "local_rank",
    "numa_node",
    "default_output_name",
    "output_name",
    "output_root",
    "output_dirname",
    "output_filename",
    "staging_root",
    "runtime_output_abspath",
    "final_output_abspath",
    "temp_abspath",
    "random_seed_bytes",
    "uniform_failure_prob",
    "allow_speculative_exec",
    "start_time",
    "finish_time",
    "elapsed_time",
    "status",
    "exception",
    "ray_dataset_path",
    "ray_marker_path",
    "perf_metrics",
]


def seen(task: Task) -> dict[str, Any]:
    """The task's attributes as text, or as they are where JSON knows them."""
    facts = {}
    for name in SEEN:
        value = getattr(task, name)
        facts[name] = value if isinstance(value, (int, float, str, list, dict, type(None))) else str(value)
    facts["id"] = str(task.id)
    facts["partition_infos"] = [str(info) for info in task.partition_infos]
    facts["input_deps"] = {key: None if dep is None else dep.key for key, dep in task.input_deps.items()}
    facts["output_deps"] = sorted(task.output_deps)
    facts["oom"] = task.oom()
    facts["own attributes"] = sorted(name for name in task.__dict__ if name.startswith("my_"))
    return facts


class Probe(Task):
    """Writes its rows and what it sees; fails the first attempt if it is told to."""

    def __init__(
        self, ctx: Any, deps: Any, infos: Any, facts: str, *, fail_first: bool = False, rows: int = 3, **kw: Any
    ):
        super().__init__(ctx, deps, infos, **kw)
        self.my_facts = facts
        self.my_rows = rows
        self.my_fail_first = fail_first
        self.my_function = lambda: facts

    def run(self) -> bool:
        self.add_elapsed_time()
        where = self.runtime_output_abspath
        facts = seen(self) | {
            "ctx.task is self": self.ctx.task is self,
            "exec_cq": self.exec_cq is not None,
            "rows of inputs": [dataset.num_rows for dataset in self.input_datasets],
            "usable memory": self.ctx.usable_memory_size,
            "usable cpus": self.ctx.usable_cpu_count,
            "runtime directory is there": os.path.isdir(self.runtime_output_abspath),
            "final directory is there": os.path.isdir(self.final_output_abspath),
            "temp directory is there": os.path.isdir(self.temp_abspath),
            "random": [
                self.random_uint32(),
                self.random_float(),
                self.python_random_gen.random(),
                float(self.numpy_random_gen.random()),
            ],
            "affinity": len(os.sched_getaffinity(0)),
            "profile": self.perf_profile is not None,
        }
        Path(f"{self.my_facts}.{self.retry_count}").write_text(json.dumps(facts))
        if self.my_fail_first and self.retry_count == 0:
            raise ValueError("the first attempt fails")
        table = pa.table({"a": range(self.my_rows)}).replace_schema_metadata(self.parquet_kv_metadata_bytes())
        pq.write_table(table, os.path.join(where, f"{self.output_filename}.parquet"))
        self.dump()
        Path(self.temp_abspath, "scratch").write_text("x")
        self.my_plain = {"list": [1, 2.5, "x", None, True], "tuple": (1, 2)}
        self.my_generator = (i for i in range(3))
        self.my_closure = lambda: self
        self.add_elapsed_time("own metric (secs)")
        self.merge_metrics({"merged": 2})
        self.merge_metrics({"merged": 3})
        return True


class ByHand(Probe):
    """Sets its dataset itself, and overrides the hooks without calling super()."""

    def initialize(self) -> None:
        self.my_hooks = ["initialize"]

    def run(self) -> bool:
        done = super().run()
        self.my_hooks.append("run")
        self.dataset = ParquetDataSet([f"{self.output_filename}.parquet"], root_dir=self.runtime_output_abspath)
        return done

    def finalize(self) -> None:
        self.my_hooks.append("finalize")

    def cleanup(self) -> None:
        self.my_hooks.append("cleanup")


def main(data_root: str, facts_path: str) -> None:
    session = sp.init(
        data_root=data_root,
        job_id="probe",
        random_seed=7,
        keep_intermediate=True,
        enable_diagnostic_metrics=True,
        enable_profiling=True,
        progress="none",
    )
    ctx = session._runtime_ctx
    top = PartitionInfo()
    facts = os.path.splitext(facts_path)[0]
    first = Probe(ctx, [], [top], f"{facts}.first")
    empty = Probe(ctx, [], [top], f"{facts}.empty", rows=0)
    named = Probe(
        ctx,
        [first, empty],
        [PartitionInfo(1, 4, "part"), top],
        f"{facts}.named",
        fail_first=True,
        output_name="result",
        cpu_limit=1,
        memory_limit=200 << 20,
    )
    placed = ByHand(
        ctx, [named], [top], f"{facts}.placed", output_path=os.path.join(data_root, "users"), output_name="mine"
    )
    before = {"first": seen(first), "named": seen(named)}
    run_tasks(session, [placed])
    after = {}
    for name, task in (("first", first), ("empty", empty), ("named", named), ("placed", placed)):
        rows = {"rows": task.output.num_rows, "files": task.output.resolved_paths, "type": type(task).__name__}
        after[name] = seen(task) | rows
    job = {name: str(getattr(ctx, name)) for name in ("job_id", "job_root", "output_root", "staging_root", "temp_root")}
    Path(facts_path).write_text(json.dumps({"before": before, "after": after, "job": job}))
    session.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
