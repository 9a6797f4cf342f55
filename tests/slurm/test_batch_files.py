"""The batch files of slurm/, as a user submits them, and the commands about jobs: submit, status, collect."""

import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.executor_bench import wait_until
from tests.launch import is_open_mpi, launcher
from tests.slurm.cluster.cluster import Cluster
from tests.slurm.jobs import BIN, END_SECS, MPI
from tests.slurm.test_launches import EXPECTED, prepare, rows

pytestmark = pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")

FILES = Path(__file__).parents[2] / "slurm"
ENV = {**MPI, "PATH": f"{BIN}:{os.environ['PATH']}", "PMI": "pmix" if is_open_mpi() else "pmi2", "SP_PROGRESS": "lines"}
OURS = [sys.executable, "-m", "smallpond_mpi"]


def sbatch(cluster: Cluster, directory: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
    """The id of a job that runs one of the files, below `directory`."""
    options = ["--chdir", str(directory), "--parsable", "-o", str(directory / "%x.out"), "--open-mode=append"]
    return cluster.run(["sbatch", *options, *words], env={**ENV, **(env or {})}).stdout.strip()


def is_over(cluster: Cluster, job: str) -> bool:
    """Whether Slurm runs none of a job any more."""
    alive = "PENDING,RUNNING,CONFIGURING,COMPLETING,REQUEUED"
    return cluster.run(["squeue", "-h", "-r", "-j", job, "-t", alive, "-o", "%T"], env=ENV).stdout == ""


def field(cluster: Cluster, job: str, name: str) -> str:
    """A field of a job, as scontrol has it."""
    words = cluster.run(["scontrol", "show", "job", "-o", job]).stdout.split()
    return dict(word.partition("=")[::2] for word in words)[name]


def wait(cluster: Cluster, directory: Path, job: str, state: str = "COMPLETED") -> str:
    """What a job had printed when it had ended in this state."""
    wait_until(lambda: is_over(cluster, job), deadline_secs=END_SECS)
    output = "".join(path.read_text() for path in directory.glob("*.out"))
    assert field(cluster, job, "JobState") == state, output
    return output


@pytest.mark.parametrize(
    ("name", "nodes"), [("job.sbatch", 2), ("gpu_numa.sbatch", 1)], ids=["job.sbatch", "gpu_numa.sbatch"]
)
def test_a_file_runs_as_it_is(cluster: Cluster, shared: Path, name: str, nodes: int) -> None:
    prepare(shared)
    output = wait(cluster, shared, sbatch(cluster, shared, str(FILES / name), "pipeline.py", "in", "out"))
    assert rows(shared) == EXPECTED
    assert len(set((shared / "hosts").read_text().split())) == nodes
    assert "on 2 ranks" in output
    assert (shared / "smallpond_data").is_dir(), "the data root lies where the job runs"


def test_an_array_with_gaps_is_run_again_in_part_and_collected(cluster: Cluster, shared: Path) -> None:
    prepare(shared)
    shutil.copy(Path(__file__).with_name("shard_pipeline.py"), shared)
    (shared / "fail-7").touch()
    arguments = ["shard_pipeline.py", "in", "out", "files"]
    array = sbatch(cluster, shared, "--array=1,3,7-9%2", str(FILES / "array.sbatch"), *arguments)
    wait_until(lambda: is_over(cluster, array), deadline_secs=END_SECS)
    shares = [json.loads((shared / f"files-{index}.json").read_text()) for index in (1, 3, 7, 8, 9)]
    assert [Path(path).name for share in shares for path in share] == sorted(os.listdir(shared / "in"))
    assert {len(share) for share in shares} == {4}

    collect = [*OURS, "collect", array, "--data-root", str(shared / "smallpond_data")]
    early = cluster.run(collect, env=ENV, check=False)
    assert early.returncode == 1
    assert "4 of 5 elements have succeeded" in early.stdout
    assert "element 7: failed" in early.stdout
    assert "this element was told to fail" in early.stdout
    assert not (shared / "out").exists()

    (line,) = [line for line in early.stdout.splitlines() if "sbatch --array=7 " in line]
    (shared / "fail-7").unlink()
    again = cluster.run(["bash", "-c", line], env=ENV).stdout.split()[-1]
    wait(cluster, shared, again)
    assert json.loads((shared / "files-7.json").read_text()) == shares[2], "the same share as before"

    done = cluster.run(collect, env=ENV)
    assert "5 elements" in done.stdout
    numbers = pq.read_table(shared / "out").column("n").to_pylist()
    assert sorted(numbers) == list(range(10_000))
    listed = (shared / "out" / ".MANIFEST.txt").read_text().splitlines()
    assert sorted(listed) == sorted(str(path) for path in (shared / "out").glob("*.parquet"))
    assert not (shared / "out.elements").exists()
    assert "was collected before" in cluster.run(collect, env=ENV).stdout


def test_a_job_that_is_warned_goes_on_after_its_requeue(cluster: Cluster, shared: Path) -> None:
    """Each task runs once: what ran at the warning was finished and recorded, and nothing new was started."""
    prepare(shared)
    shutil.copy(Path(__file__).with_name("slow_pipeline.py"), shared)
    job = sbatch(cluster, shared, str(FILES / "requeue.sbatch"), "slow_pipeline.py", "in", "out", "3")
    wait_until(lambda: (shared / "runs").exists() and len((shared / "runs").read_text().split()) > 3)
    cluster.run(["scancel", "--batch", "--signal=USR1", job])
    wait_until(lambda: "nothing new is started" in (shared / "requeue.sbatch.out").read_text())
    (shared / "go").touch()
    output = wait(cluster, shared, job)
    assert field(cluster, job, "Restarts") == "1", output
    assert "stopped in order" in output
    assert "SP_JOBID=" in output
    assert "taken up from an earlier run" in output
    assert Counter((shared / "runs").read_text().split()) == Counter(str(part * 500) for part in range(20))
    assert sorted(pq.read_table(shared / "out").column("n").to_pylist()) == list(range(10_000))


def test_submit_status_and_what_they_say(cluster: Cluster, shared: Path) -> None:
    prepare(shared)
    submit = [*OURS, "submit", str(shared / "pipeline.py"), "-N2", "--ntasks-per-node", "1", "-c2", "--mem-per-cpu=1G"]
    options = [f"--chdir={shared}", f"--output={shared}/log.out", f"--data-root={shared}/root"]
    dry = cluster.run([*submit, *options, "--dry-run", "--", "in", "out"], env=ENV).stdout
    assert "#SBATCH --ntasks-per-node 1\n" in dry
    assert not (shared / "root").exists()

    done = cluster.run([*submit, *options, "--wait", "--", "in", "out"], env=ENV)
    assert f"log      {shared}/log.out" in done.stdout
    assert rows(shared) == EXPECTED
    assert len(set((shared / "hosts").read_text().split())) == 2
    job = done.stdout.partition("submitted: Slurm job ")[2].split()[0]
    status = cluster.run([*OURS, "status", job, "--data-root", f"{shared}/root"], env=ENV).stdout
    assert f"slurm job {job} pipeline.py: COMPLETED" in status
    assert ": success" in status
    assert "tasks done" in status

    failing = cluster.run([*submit, *options, "--wait", "--", "nowhere", "out2"], env=ENV, check=False)
    assert failing.returncode == 1
    assert "FAILED" in failing.stdout
    refused = cluster.run([*submit, *options, "--partition=none", "--", "in", "out"], env=ENV, check=False)
    assert refused.returncode == 2
    assert "Invalid partition" in refused.stderr


def test_the_gpus_of_gpu_numa(cluster: Cluster, shared: Path, gpus: dict[str, str]) -> None:
    """The two that the job has of the node's four: each of its two tasks, which run at the same time, has one, by its UUID."""
    shutil.copy(Path(__file__).with_name("placement.py"), shared)
    words = [str(FILES / "gpu_numa.sbatch"), "placement.py", "2", "1", "1"]
    job = sbatch(cluster, shared, *words, env=gpus)
    wait_until(lambda: len(list((shared / "reports").glob("*.json"))) == 2 or is_over(cluster, job))
    reports = {path.stem: json.loads(path.read_text()) for path in (shared / "reports").glob("*.json")}
    (shared / "go").touch()
    output = wait(cluster, shared, job)
    host = field(cluster, job, "BatchHost")
    assert sorted(report["gpus"] for report in reports.values()) == [f"GPU-{host}-0", f"GPU-{host}-1"], output
    assert sorted(report["affinity"] for report in reports.values()) == [[0], [1]]


def test_status_lists_all_and_tells_of_a_failed_job(cluster: Cluster, shared: Path) -> None:
    prepare(shared)
    submit = [*OURS, "submit", str(shared / "pipeline.py"), "-n1", "--mem-per-cpu=1G", f"--chdir={shared}"]
    options = [f"--output={shared}/%j.out", f"--data-root={shared}/root", "--job-name=mine"]
    jobs = []
    for words in (["--wait", "--", "in", "out"], ["--wait", "--", "nowhere", "out2"], ["--hold", "--", "in", "out3"]):
        said = cluster.run([*submit, *options, *words], env=ENV, check=False).stdout
        jobs.append(said.partition("submitted: Slurm job ")[2].split()[0])
    good, bad, held = jobs
    status = [*OURS, "status", "--data-root", f"{shared}/root"]
    lines = cluster.run(status, env=ENV).stdout.splitlines()
    assert len(lines) == 3, "a line each"
    assert [line.split()[1:3] for line in lines[:2]] == [["failure", bad], ["success", good]], lines
    assert f"slurm job {held} mine: PENDING (JobHeldUser), UNLIMITED left" in lines
    assert not [line for line in lines if line.startswith((f"slurm job {good} ", f"slurm job {bad} "))], (
        "these are over"
    )

    told = cluster.run([*status, bad], env=ENV).stdout
    assert f"slurm job {bad} mine: FAILED" in told
    assert ": failure (" in told
    assert "nowhere" in told, "the error is in it"
    assert "go on     start the script with SP_JOBID=" in told
    unknown = cluster.run([*status, "999999"], env=ENV, check=False)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "nothing of job 999999 below data root" in unknown.stderr


@pytest.mark.parametrize("what", ["no commands", "no controller"])
def test_where_slurm_can_not_be_asked(cluster: Cluster, shared: Path, what: str) -> None:
    """One line says so; status goes by the files, submit can't go on."""
    prepare(shared)
    script = f"cd {shared} && SLURM_JOB_NUM_NODES=1 SP_DATA_ROOT={shared}/root python pipeline.py in out"
    cluster.run(["bash", "-c", script], env=ENV)
    if what == "no commands":
        without, reason = ["env", f"PATH={BIN}"], "there is no {} on the PATH: is this a login node of a Slurm cluster?"
    else:
        conf = (cluster.box / "etc" / "slurm.conf").read_text() + "SlurmctldPort=1\n"  # where nobody listens
        (shared / "slurm.conf").write_text(re.sub(r"(?m)^MessageTimeout=.*$", "MessageTimeout=2", conf))
        without, reason = (
            ["env", f"SLURM_CONF={shared}/slurm.conf"],
            "Unable to contact slurm controller (connect failure)",
        )
    status = cluster.run([*without, *OURS, "status", "--data-root", f"{shared}/root"], env=ENV)
    assert status.stderr.count("\n") == 1, status.stderr
    assert reason.format("squeue") in status.stderr
    assert "going by what lies below the data root" in status.stderr
    assert " success " in status.stdout
    submit = [*without, *OURS, "submit", str(shared / "pipeline.py"), f"--data-root={shared}/root"]
    refused = cluster.run(submit, env=ENV, check=False, timeout=120)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert reason.format("sbatch") in refused.stderr


def test_the_line_that_reruns_failed_and_missing_elements(cluster: Cluster, shared: Path) -> None:
    """Of an array that `submit` made, it brings all options: they stand in the batch script. Those of sbatch's command line it can't know, and says so."""
    prepare(shared)
    shutil.copy(Path(__file__).with_name("shard_pipeline.py"), shared)
    (shared / "fail-0").touch()
    submit = [*OURS, "submit", str(shared / "shard_pipeline.py"), f"--chdir={shared}", f"--output={shared}/%A_%a.out"]
    options = ["--array=0-3%1", "-n1", "-c2", "--mem-per-cpu=900", f"--data-root={shared}/root"]
    said = cluster.run([*submit, *options, "--", "in", "out"], env=ENV).stdout
    array = said.partition("submitted: Slurm job ")[2].split()[0]
    cluster.run(["scancel", f"{array}_3"])
    wait_until(lambda: is_over(cluster, array), deadline_secs=END_SECS)
    collect = [*OURS, "collect", array, "--data-root", str(shared / "root")]
    early = cluster.run(collect, env=ENV, check=False).stdout
    assert "2 of 4 elements have succeeded" in early
    assert "element 0: failed" in early
    assert "element 3: missing: it never began" in early
    assert "with the options that sbatch got on its command line before" in early
    (line,) = [line for line in early.splitlines() if "sbatch --array=0,3 " in line]
    (shared / "fail-0").unlink()
    again = cluster.run(["bash", "-c", line], env=ENV).stdout.split()[-1]
    wait_until(lambda: is_over(cluster, again), deadline_secs=END_SECS)
    assert field(cluster, again, "CPUs/Task") == "2"
    assert field(cluster, again, "MinMemoryCPU") == "900M"
    done = cluster.run(collect, env=ENV)
    assert "4 elements" in done.stdout
    assert sorted(pq.read_table(shared / "out").column("n").to_pylist()) == list(range(10_000))
