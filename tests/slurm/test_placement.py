"""Who runs where: tasks are looked at from outside while they run, by every thread's affinity, their environment and their cgroup."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from smallpond_mpi.execution.executor.child import THREAD_VARIABLES
from tests.executor_bench import wait_until
from tests.launch import is_open_mpi, launcher
from tests.slurm.cluster import remains
from tests.slurm.cluster.cluster import Cluster
from tests.slurm.jobs import end_of, submit, wait

pytestmark = pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")

SRUN = "srun --mpi=pmix" if is_open_mpi() else "srun --mpi=pmi2"


def processes_on(cluster: Cluster) -> dict[tuple[str, int], int]:
    """(host, process id there) → this machine's process id, of all processes of the cluster."""
    networks = {os.readlink(f"/proc/{cluster.pid(name)}/ns/net"): name for name in cluster.nodes}
    found = {}
    for pid in remains.processes_of(cluster.box):
        try:
            host = networks.get(os.readlink(f"/proc/{pid}/ns/net"))
            inner = re.search(r"^NSpid:.*\s(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        except OSError:  # ended meanwhile
            continue
        if host and inner:
            found[host, int(inner[1])] = pid
    return found


class Seen:
    """A task's child: what it says of itself, and what the kernel says of it."""

    def __init__(self, host: str, pid: int, helper: int, report: dict[str, Any]) -> None:
        self.host = host
        self.report = report
        variables = Path(f"/proc/{helper}/environ").read_text().split("\0")
        self.variables = dict(variable.split("=", 1) for variable in variables if variable)
        statuses = [Path(f"/proc/{pid}/task/{thread}/status").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
        self.threads = [re.search(r"Cpus_allowed_list:\s*(\S+)", status)[1] for status in statuses]  # type: ignore[index]
        self.cgroups = Path(f"/proc/{pid}/cgroup").read_text()
        self.stdin = os.readlink(f"/proc/{pid}/fd/0")
        maps = Path(f"/proc/{pid}/numa_maps")  # not there in a kernel without NUMA
        self.memory_policies = {line.split()[1] for line in maps.read_text().splitlines()} if maps.exists() else set()

    @property
    def cpus(self) -> str:
        """The CPUs of all its threads, which must agree."""
        assert len(set(self.threads)) == 1, self.threads
        return self.threads[0]


def look_at(
    cluster: Cluster,
    shared: Path,
    launch: str,
    options: list[str],
    *,
    tasks: int,
    cpus: int = 1,
    gpus: float = 0,
    env: dict[str, str] | None = None,
) -> list[Seen]:
    """Run the job and look at its tasks when all of them are at work at the same time."""
    shutil.copy(Path(__file__).with_name("placement.py"), shared)
    reports = shared / "reports"
    reports.mkdir()
    body = f"{launch} python placement.py {tasks} {cpus} {gpus}"
    job = submit(cluster, shared, body, [*options, "--mem-per-cpu=1000"], env)
    output = shared / f"{job}.out"
    try:
        wait_until(lambda: len(list(reports.glob("*.json"))) == tasks or end_of(cluster, job) is not None)
        assert len(list(reports.glob("*.json"))) == tasks, "not all tasks run at once"
        pids = processes_on(cluster)
        seen = []
        for path in sorted(reports.glob("*.json")):
            host, _, pid = path.stem.partition("-")
            report = json.loads(path.read_text())
            seen.append(Seen(host, pids[host, int(pid)], pids[host, report["helper"]], report))
    except AssertionError as error:
        raise AssertionError(f"{[path.name for path in reports.iterdir()]}\n{output.read_text()}") from error
    finally:
        (shared / "go").touch()
        ended = wait(cluster, job, shared)
    assert ended.state == "COMPLETED", ended.output
    for one in seen:
        assert f"/job_{job}/" in one.cgroups
        assert one.stdin == "/dev/null"
        # of the task: its NUMA node first (the stack of a fork server's child stays "local")
        assert one.memory_policies <= {"prefer:0", "local"}, one.memory_policies
        assert one.report["launch"] == [], "a task must not be able to join the job's MPI"
        threads = one.report["threads of DuckDB"], one.report["threads of Arrow"]
        assert threads == (cpus, cpus)
        assert one.report["threads of BLAS"] == [cpus]
        assert {name: one.variables[name] for name in THREAD_VARIABLES} == dict.fromkeys(THREAD_VARIABLES, str(cpus))
        assert one.variables["CUDA_VISIBLE_DEVICES"] == one.report["gpus"]
    return seen


@pytest.mark.parametrize(
    ("launch", "options", "nodes"),
    [
        (SRUN, ["-N3", "--ntasks-per-node=1", "-c2"], 3),  # one rank a node
        (f"{SRUN} --cpu-bind=none", ["-N2", "--ntasks-per-node=2"], 2),  # two that may use the same cores
        (SRUN, ["-N2", "--ntasks-per-node=2"], 2),  # one a core, bound by srun
        ("mpirun", ["-N2", "--ntasks-per-node=2"], 2),  # one a core, bound by Open MPI
        ("mpirun", ["-N2", "--ntasks-per-node=1", "-c2"], 2),  # which Open MPI binds to one core each of the job's two
    ],
)
def test_every_core_of_the_job_has_one_task(
    cluster: Cluster, shared: Path, launch: str, options: list[str], nodes: int
) -> None:
    seen = look_at(cluster, shared, launch, options, tasks=2 * nodes)
    hosts = {one.host for one in seen}
    assert len(hosts) == nodes
    assert Counter((one.host, one.cpus) for one in seen) == Counter((host, cpu) for host in hosts for cpu in ("0", "1"))


def test_a_task_of_two_cores_has_both(cluster: Cluster, shared: Path) -> None:
    seen = look_at(cluster, shared, SRUN, ["-N2", "--ntasks-per-node=1", "-c2"], tasks=2, cpus=2)
    assert len({one.host for one in seen}) == 2
    assert {one.cpus for one in seen} == {"0-1"}
    assert all(len(one.threads) > 1 for one in seen)


def test_a_job_of_one_core_of_a_node_stays_on_it(cluster: Cluster, shared: Path) -> None:
    """Without a launcher: one process, as a user's first try."""
    (seen,) = look_at(cluster, shared, "", ["-N1", "-n1"], tasks=1)
    assert seen.cpus in ("0", "1")
    assert f"[{seen.cpus}]" == str(seen.report["affinity"])


@pytest.mark.parametrize(
    ("launch", "options"),
    [
        (SRUN, ["-N2", "--ntasks-per-node=2", "--gpus-per-node=2"]),  # each rank sees both
        (SRUN, ["-N2", "-n4", "--ntasks-per-node=2", "--gpus-per-task=1"]),  # each sees its own, and both call it 0
        ("mpirun --bind-to none", ["-N2", "--ntasks-per-node=2", "--gpus-per-node=2"]),
    ],
)
def test_every_gpu_has_one_task(
    cluster: Cluster, shared: Path, gpus: dict[str, str], launch: str, options: list[str]
) -> None:
    seen = look_at(cluster, shared, launch, options, tasks=4, gpus=1, env=gpus)
    hosts = {one.host for one in seen}
    assert len(hosts) == 2
    assert sorted((one.host, one.report["gpus"]) for one in seen) == sorted(
        (host, f"GPU-{host}-{index}") for host in hosts for index in (0, 1)
    )


def test_shares_of_a_gpu(cluster: Cluster, shared: Path, gpus: dict[str, str]) -> None:
    """An eighth, which brings one CPU; both of a node go to one GPU and leave the other whole."""
    options = ["-N2", "--ntasks-per-node=1", "-c2", "--gres=gpu:2"]
    seen = look_at(cluster, shared, SRUN, options, tasks=4, gpus=0.125, env=gpus)
    assert Counter((one.host, one.report["gpus"]) for one in seen) == {
        (one.host, f"GPU-{one.host}-0"): 2 for one in seen
    }


def test_a_job_without_gpus_has_none(cluster: Cluster, shared: Path, gpus: dict[str, str]) -> None:
    (seen,) = look_at(cluster, shared, SRUN, ["-N1", "-n1"], tasks=1, env=gpus)
    assert seen.report["gpus"] == "-1"
