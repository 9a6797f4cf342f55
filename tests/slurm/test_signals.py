"""Ends that Slurm brings about, and jobs whose ranks are not what they seem."""

import shutil
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.executor_bench import wait_until
from tests.launch import is_open_mpi, launcher
from tests.slurm.cluster.cluster import Cluster
from tests.slurm.jobs import END_SECS, batch, submit, wait
from tests.slurm.test_batch_files import FILES, field, is_over, sbatch
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
    wait_until(lambda: "terminated (SIGTERM)" in (shared / f"{first}.out").read_text())
    output = (shared / f"{first}.out").read_text()
    assert "start the script with SP_JOBID=" in output
    wait_until(lambda: cluster.run(["squeue", "-h", "-j", str(first), "-t", "COMPLETING"]).stdout == "")
    (shared / "go").touch()
    again = batch(cluster, shared, body, options, env)
    assert "taken up from an earlier run" in again.output
    runs = (shared / "runs").read_text().split()
    assert all(runs.count(str(part * 500)) == 1 for part in range(3)), "what was done stayed done"
    assert sorted(pq.read_table(shared / "out").column("n").to_pylist()) == list(range(10_000))


def slow_job(directory: Path) -> None:
    """The program whose tasks take until `go` is there, and its input."""
    directory.mkdir()
    prepare(directory)
    shutil.copy(Path(__file__).with_name("slow_pipeline.py"), directory)


def is_in_the_midst(directory: Path) -> bool:
    """Whether tasks run that wait."""
    runs = directory / "runs"
    return runs.exists() and len(runs.read_text().split()) > 3


def goes_on(cluster: Cluster, directory: Path, job: str, name: str) -> None:
    """After an orderly stop: job.sbatch with the same job id does the rest."""
    (directory / "go").touch()
    words = [f"--export=ALL,SP_JOBID={name}", f"--job-name=again-{job}", str(FILES / "job.sbatch")]
    again = sbatch(cluster, directory, *words, "slow_pipeline.py", "in", "out", "3")
    wait_until(lambda: is_over(cluster, again), deadline_secs=END_SECS)
    output = (directory / f"again-{job}.out").read_text()
    assert field(cluster, again, "JobState") == "COMPLETED", output
    assert "taken up from an earlier run" in output
    assert set(Counter((directory / "runs").read_text().split()).values()) == {1}, "what was done stayed done"
    assert sorted(pq.read_table(directory / "out").column("n").to_pylist()) == list(range(10_000))


@pytest.mark.parametrize("how", ["--batch", "--full"])
def test_a_warning_stops_a_job_in_order(cluster: Cluster, shared: Path, how: str) -> None:
    """The batch script is warned, or it and every step (mpirun's own on the other node too)."""
    directory = shared / "warned"
    slow_job(directory)
    job = sbatch(cluster, directory, str(FILES / "job.sbatch"), "slow_pipeline.py", "in", "out", "3")
    output = directory / "job.sbatch.out"
    wait_until(lambda: is_in_the_midst(directory))
    cluster.run(["scancel", how, "--signal=USR1", job])
    wait_until(lambda: "nothing new is started" in output.read_text(), output.read_text())
    (directory / "go").touch()
    wait_until(lambda: is_over(cluster, job), deadline_secs=END_SECS)
    assert field(cluster, job, "JobState") == "FAILED", output.read_text()
    assert field(cluster, job, "ExitCode") == "75:0"
    assert "stopped in order" in output.read_text()
    assert "start the script with SP_JOBID=" in output.read_text()
    assert not (directory / "out").exists()
    goes_on(cluster, directory, job, f"job-{job}")


@pytest.mark.skipif(not is_open_mpi(), reason="MPICH over UCX, without libfabric, does not start by srun every time")
def test_slurm_warns_the_steps_where_nobody_asked_for_the_batch_script(cluster: Cluster, shared: Path) -> None:
    """`--signal=USR1@50` without `B:`, in a job of one minute: every task gets it, and rank 0 answers for all."""
    directory = shared / "steps"
    slow_job(directory)
    env = {"SP_JOBID": "steps", "SP_DATA_ROOT": f"{directory}/smallpond_data"}
    options = ["--time=1", "--signal=USR1@50", "-N2", "--ntasks-per-node=1", "--mem-per-cpu=1000"]
    job = submit(cluster, directory, f"exec {SRUN} python slow_pipeline.py in out 3", options, env)
    output = directory / f"{job}.out"
    wait_until(lambda: is_in_the_midst(directory), deadline_secs=50)
    wait_until(lambda: "nothing new is started" in output.read_text(), deadline_secs=90)
    (directory / "go").touch()
    ended = wait(cluster, job, directory)
    assert (ended.state, ended.exit_code) == ("FAILED", "75:0"), ended.output
    assert ended.output.count("SIGUSR1: what runs is finished, nothing new is started") == 1
    assert "stopped in order" in ended.output
    assert "start the script with SP_JOBID=" in ended.output
    goes_on(cluster, directory, str(job), "steps")


def test_the_time_limit(cluster: Cluster, shared: Path) -> None:
    """Slurm's own doing in two jobs of one minute, side by side: one asked to be warned, and is requeued; the other runs into its limit."""
    warned, late = shared / "warned", shared / "late"
    slow_job(warned)
    slow_job(late)
    options = ["--time=1", "--signal=B:USR1@50", "-N1", "-n1", "-c1"]
    requeued = sbatch(cluster, warned, *options, str(FILES / "requeue.sbatch"), "slow_pipeline.py", "in", "out", "3")
    env = {"SP_JOBID": "late", "SP_DATA_ROOT": f"{shared}/root"}
    ended = submit(
        cluster, late, f"exec {SRUN} python slow_pipeline.py in out 3", ["--time=1", "-n2", "--mem-per-cpu=1000"], env
    )
    wait_until(lambda: is_in_the_midst(warned) and is_in_the_midst(late), deadline_secs=50)
    limit = time.strftime("%FT%T", time.localtime(time.time() + 1))
    cluster.run(
        ["scontrol", "update", f"JobId={ended}", f"EndTime={limit}"]
    )  # Slurm knows whole minutes only, and looks every 30 s

    wait_until(lambda: "nothing new is started" in (warned / "requeue.sbatch.out").read_text(), deadline_secs=90)
    (warned / "go").touch()
    over = wait(cluster, ended, late)
    assert over.state == "TIMEOUT"
    (root,) = [path.parent for path in (shared / "root").glob("*/journal")]
    wait_until((root / "status").exists)
    assert (root / "status").read_text() == "failure: terminated (SIGTERM)\n"
    wait_until(lambda: "start the script with SP_JOBID=" in (late / f"{ended}.out").read_text())

    wait_until(lambda: is_over(cluster, requeued), deadline_secs=END_SECS)
    output = (warned / "requeue.sbatch.out").read_text()
    assert int(field(cluster, requeued, "Restarts")) >= 1, output
    assert field(cluster, requeued, "JobState") == "COMPLETED", output
    assert "taken up from an earlier run" in output
    assert set(Counter((warned / "runs").read_text().split()).values()) == {1}, "what was done stayed done"
    assert sorted(pq.read_table(warned / "out").column("n").to_pylist()) == list(range(10_000))


@pytest.mark.fault
@pytest.mark.skipif(not is_open_mpi(), reason="Open MPI's mpirun ends with 0 then, at once")
def test_a_node_that_is_lost_in_the_midst(cluster: Cluster, shared: Path) -> None:
    """mpirun ends with 0 long before Slurm knows that the node is dead: the job is requeued all the same, and goes on elsewhere."""
    directory = shared / "crash"
    slow_job(directory)
    job = sbatch(cluster, directory, str(FILES / "requeue.sbatch"), "slow_pipeline.py", "in", "out", "3")
    wait_until(lambda: is_in_the_midst(directory))
    (victim,) = {
        name
        for name in cluster.nodes
        if name != field(cluster, job, "BatchHost")
        and cluster.run(["squeue", "-h", "-w", name, "-o", "%i"]).stdout.strip()
    }
    cluster.crash(victim)
    output = directory / "requeue.sbatch.out"
    try:
        wait_until(lambda: "a node was lost" in output.read_text())
        (directory / "go").touch()
        # Slurm would find out after half a minute
        cluster.run(["scontrol", "update", f"nodename={victim}", "state=down", "reason=crash"])
        wait_until(lambda: is_over(cluster, job), deadline_secs=END_SECS)
    finally:
        cluster.start_node(victim)
        cluster.wait_until_idle()
    assert field(cluster, job, "JobState") == "COMPLETED", output.read_text()
    assert field(cluster, job, "Restarts") == "1"
    assert "taken up from an earlier run" in output.read_text()
    assert sorted(pq.read_table(directory / "out").column("n").to_pylist()) == list(range(10_000))


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
