"""Ends that Slurm brings about, and jobs whose ranks are not what they seem."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.executor_bench import wait_until
from tests.launch import is_open_mpi, launcher
from tests.slurm.cluster.cluster import Cluster
from tests.slurm.jobs import batch, submit, wait
from tests.slurm.test_launches import EXPECTED, SRUN, prepare, rows

pytestmark = pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")


def test_what_srun_ends_at_all_ranks_ends_in_order(cluster: Cluster, shared: Path) -> None:
    """scancel: SIGTERM to every task. Rank 0 says how to go on, and what was done is done."""
    prepare(shared)
    shutil.copy(Path(__file__).with_name("slow_pipeline.py"), shared)
    env = {"SP_JOBID": "a job", "SP_DATA_ROOT": f"{shared}/root"}
    body, options = f"exec {SRUN} python slow_pipeline.py in out 3", ["-N2", "-n2", "--mem-per-cpu=1000"]
    first = submit(cluster, shared, body, options, env)
    wait_until(lambda: (shared / "runs").exists() and len((shared / "runs").read_text().split()) > 4)
    cluster.run(["scancel", str(first)])
    assert wait(cluster, first, shared).state == "CANCELLED"
    (root,) = [path.parent for path in (shared / "root").glob("*/journal")]
    wait_until((root / "status").exists)  # Slurm calls a job over when it has told it to end
    assert (root / "status").read_text() == "failure: terminated (SIGTERM)\n"
    output = (shared / f"{first}.out").read_text()
    assert "terminated (SIGTERM)" in output
    assert "start the script with SP_JOBID=" in output
    wait_until(lambda: cluster.run(["squeue", "-h", "-j", str(first), "-t", "COMPLETING"]).stdout == "")
    (shared / "go").touch()
    again = batch(cluster, shared, body, options, env)
    assert "taken up from an earlier run" in again.output
    runs = (shared / "runs").read_text().split()
    assert all(runs.count(str(part * 500)) == 1 for part in range(3)), "what was done stayed done"
    assert sorted(pq.read_table(shared / "out").column("n").to_pylist()) == list(range(10_000))


def test_a_heterogeneous_job_is_one_world_or_an_error(cluster: Cluster, shared: Path) -> None:
    """Two components: the batch script's options name them one after the other, with a colon between."""
    prepare(shared)
    body = "\n".join(
        [
            f"{SRUN} --het-group=0-1 python pipeline.py in out",
            "mpirun -n 1 python pipeline.py in out2" if is_open_mpi() else "mpiexec -n 1 python pipeline.py in out2",
            "smallpond-mpi run pipeline.py in out3",
        ]
    )
    components = ["-n1", "--mem-per-cpu=1000", ":", "-n2", "--mem-per-cpu=1000"]
    ended = wait(cluster, submit(cluster, shared, body, components), shared)
    assert rows(shared) == EXPECTED, ended.output
    assert "on 3 ranks" in ended.output
    assert ended.output.count("`srun --het-group=0-1 --mpi=pmix`") == 2, ended.output
    assert not (shared / "out2").exists()
    assert not (shared / "out3").exists()
