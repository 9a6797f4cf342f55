"""What the doctor makes of facts."""

from collections.abc import Iterable
from typing import Any

from smallpond_mpi.cli.doctor import verdicts
from smallpond_mpi.cli.doctor.verdicts import MB, Verdict


def rank(number: int = 0, **facts: Any) -> dict[str, Any]:
    return {
        "rank": number,
        "host": "n1",
        "cpus": [number],
        "allowed_cpus": [number],
        "cpuset": [0, 1],
        "job_cpus": None,
        "job_nodes": None,
        "gpus": [],
        "memory_bytes": 4000 * MB,
        "memory_limits": [{"bytes": 8000 * MB, "source": "granted by Slurm"}],
        "launcher": "srun",
        "library": "Open MPI v5",
        "python": "3.11.2",
        "versions": {"duckdb": "2.0.0"},
        "open_files": 4096,
        "processes": -1,
        **facts,
    }


FILES = {
    "free_bytes": 1 << 40,
    "free_inodes": None,
    "small_files_per_sec": 1e4,
    "write_bytes_per_sec": 1e9,
    "rename": True,
    "rename_directory": True,
    "exclusive": True,
    "link": True,
}


def bad(found: Iterable[Verdict]) -> dict[str, str]:
    """Check → level, of what is not all right; each of these says what to do."""
    wrong = [one for one in found if one.level != "ok"]
    assert all(one.advice for one in wrong)
    return {one.check: one.level for one in wrong}


def test_two_ranks_of_one_node_are_fine() -> None:
    ranks = [rank(0), rank(1)]
    assert bad(verdicts.world(ranks, 2)) == bad(verdicts.placement(ranks)) == bad(verdicts.memory(ranks)) == {}
    assert bad(verdicts.processes(ranks)) == bad(verdicts.messages({1: 0.001}, {1: 1e9})) == {}
    assert bad(verdicts.data_root("/d", {1: {"seen_secs": 0.0}}, FILES, {0: "n1", 1: "n1"})) == {}


def test_the_world() -> None:
    assert bad(verdicts.world([rank(0)], 2)) == {"world": "fail"}
    assert bad(verdicts.world([rank(0), rank(1, versions={"duckdb": "1.4.0"})], 2)) == {"versions": "fail"}
    assert bad(verdicts.world([rank(0), rank(1, python="3.12.1")], 2)) == {"versions": "fail"}


def test_what_two_ranks_share() -> None:
    assert bad(verdicts.placement([rank(1, cpus=[0]), rank(2, cpus=[0])])) == {"placement": "fail"}
    assert bad(verdicts.placement([rank(1, cpus=[0]), rank(2, cpus=[0], host="n2")])) == {}
    assert bad(verdicts.placement([rank(1, gpus=["GPU-a"]), rank(2, gpus=["GPU-a"])])) == {"placement": "fail"}
    assert bad(verdicts.placement([rank(0, cpus=[]), rank(1)])) == {}, "rank 0 schedules"
    assert bad(verdicts.placement([rank(0), rank(1, cpus=[])])) == {"placement": "fail"}


def test_ranks_that_are_bound_to_the_same_cpus_while_others_are_left() -> None:
    """`srun --cpu-bind=map_cpu:0,0`: the second rank computes, the first schedules on the same CPU."""
    same = [rank(0, cpus=[], allowed_cpus=[0]), rank(1, cpus=[0], allowed_cpus=[0])]
    assert bad(verdicts.placement(same)) == {"binding": "fail"}
    one_core = [rank(0, cpus=[], allowed_cpus=[0], cpuset=[0]), rank(1, cpus=[0], allowed_cpus=[0], cpuset=[0])]
    assert bad(verdicts.placement(one_core)) == {}, "nobody bound them: there is one CPU"
    node = {"allowed_cpus": [0, 1], "cpuset": [0, 1, 2, 3]}
    assert bad(verdicts.placement([rank(0, cpus=[0], **node), rank(1, cpus=[1], **node)])) == {}, "two to a NUMA node"
    assert bad(verdicts.placement([rank(0, allowed_cpus=[0], cpuset=[]), rank(1)])) == {}, "a kernel without cpusets"


def test_what_the_job_has_and_nobody_uses() -> None:
    assert bad(verdicts.placement([rank(0, job_cpus=2)])) == {"binding": "warn"}
    assert bad(verdicts.placement([rank(0, job_cpus=2), rank(1, job_cpus=2)])) == {}
    assert bad(verdicts.placement([rank(0, job_cpus=1, job_nodes=3)])) == {"nodes": "warn"}
    assert bad(verdicts.placement([rank(0, job_nodes=2), rank(1, job_nodes=2, host="n2")])) == {}


def test_a_job_that_nothing_holds_to_its_cpus() -> None:
    unheld = rank(0, job_cpus=1, allowed_cpus=[0, 1, 2])
    assert bad(verdicts.placement([unheld])) == {"binding": "warn"}


def saw(*cpus: int, **facts: Any) -> dict[str, Any]:
    """A task that found itself on these CPUs, held to 1000 MB."""
    n = len(cpus)
    memory = {"memory_bytes": 897 * MB, "memory_wanted": 900 * MB, "memory_limit": 1000 * MB}
    return {"secs": 0.5, "cpus": list(cpus), "gpus": [], "threads": n, "threads_of_own": n, **memory, **facts}


def test_what_a_task_saw() -> None:
    ranks = [rank(0), rank(1, cpus=[1, 2], gpus=["GPU-a"])]
    right = saw(1, 2, gpus=["GPU-a"])
    assert bad(verdicts.tasks({0: saw(0), 1: right}, ranks)) == {}
    assert bad(verdicts.tasks({}, ranks)) == {}, "not tried: the data root can't be used, which is said elsewhere"
    assert bad(verdicts.tasks({0: {"error": "OutOfMemory: no"}, 1: right}, ranks)) == {"task": "fail"}
    assert bad(verdicts.tasks({1: saw(1, 3, gpus=["GPU-a"])}, ranks)) == {"binding": "fail"}
    assert bad(verdicts.tasks({1: saw(1, 2)}, ranks)) == {"binding": "fail"}, "its GPU is not visible"
    assert bad(verdicts.tasks({0: saw(0, threads=64)}, ranks)) == {"DuckDB": "fail"}
    assert bad(verdicts.tasks({0: saw(0, threads_of_own=64)}, ranks)) == {"DuckDB": "fail"}
    assert bad(verdicts.tasks({0: saw(0, memory_bytes=8000 * MB)}, ranks)) == {"DuckDB": "fail"}


def test_ranks_at_rest() -> None:
    hosts = {0: "n1", 1: "n2"}
    resting = {"own_share": 0.01, "busy_share": 0.02}
    assert bad(verdicts.idle({0: resting, 1: resting}, hosts)) == {}
    assert bad(verdicts.idle({0: resting, 1: {**resting, "own_share": 0.98}}, hosts)) == {"idle CPU": "warn"}
    assert bad(verdicts.idle({0: resting, 1: {**resting, "busy_share": 0.9}}, hosts)) == {"other work": "warn"}


def test_memory_and_processes() -> None:
    assert bad(verdicts.memory([rank(0), rank(1, memory_bytes=300 * MB)])) == {"memory": "warn"}
    assert bad(verdicts.memory([rank(0), rank(1, memory_bytes=100 * MB)])) == {"memory": "fail"}
    assert bad(verdicts.processes([rank(0, cpus=[0, 1], processes=100)])) == {"limits": "warn"}
    assert bad(verdicts.processes([rank(0, open_files=256)])) == {"limits": "warn"}
    assert bad(verdicts.processes([rank(0, open_files=-1)])) == {}, "no limit"
    assert bad(verdicts.processes([rank(0), rank(1, clock_offset=-7.0)])) == {"clocks": "warn"}


def test_messages_and_the_data_root() -> None:
    assert bad(verdicts.messages({1: 0.5}, {})) == {"messages": "warn"}
    hosts = {0: "n1", 1: "n2"}
    assert bad(verdicts.data_root("/d", {1: {"error": "not seen"}}, FILES, hosts)) == {"data root": "fail"}
    assert bad(verdicts.data_root("/d", {1: {"seen_secs": 3.0}}, FILES, hosts)) == {"data root": "warn"}
    assert bad(verdicts.data_root("/d", {1: {"seen_secs": 0.0, "unwritable": "Read-only"}}, FILES, hosts)) == {
        "data root": "fail"
    }
    assert bad(verdicts.data_root("/d", {}, {**FILES, "exclusive": False}, hosts)) == {"exclusive creation": "fail"}
    assert bad(verdicts.data_root("/d", {}, {**FILES, "rename_directory": False}, hosts)) == {"rename": "fail"}
    assert bad(verdicts.data_root("/d", {}, {"error": "Read-only file system"}, hosts)) == {"data root": "fail"}
    assert bad(verdicts.data_root("/d", {}, {**FILES, "link": False, "free_bytes": 5}, hosts)) == {
        "links": "warn",
        "space": "warn",
    }
