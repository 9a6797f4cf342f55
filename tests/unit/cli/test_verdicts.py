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
        "gpus": [],
        "memory_bytes": 4000 * MB,
        "memory_limits": [{"bytes": 8000 * MB, "source": "granted by Slurm"}],
        "launcher": "srun",
        "library": "Open MPI v5",
        "python": "3.11.2",
        "versions": {"duckdb": "2.0.0"},
        "open_files": 4096,
        "fork_server": True,
        **facts,
    }


FILES = {
    "free_bytes": 1 << 40,
    "free_inodes": None,
    "small_files_per_sec": 1e4,
    "write_bytes_per_sec": 1e9,
    "rename": True,
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


def test_memory_and_processes() -> None:
    assert bad(verdicts.memory([rank(0), rank(1, memory_bytes=300 * MB)])) == {"memory": "warn"}
    assert bad(verdicts.memory([rank(0), rank(1, memory_bytes=100 * MB)])) == {"memory": "fail"}
    assert bad(verdicts.processes([rank(0, fork_server=False)])) == {"fork server": "fail"}
    assert bad(verdicts.processes([rank(0, open_files=256)])) == {"limits": "warn"}
    assert bad(verdicts.processes([rank(0, open_files=-1)])) == {}, "no limit"
    assert bad(verdicts.processes([rank(0), rank(1, clock_offset=-7.0)])) == {"clocks": "warn"}


def test_messages_and_the_data_root() -> None:
    assert bad(verdicts.messages({1: 0.5}, {})) == {"messages": "warn"}
    hosts = {0: "n1", 1: "n2"}
    assert bad(verdicts.data_root("/d", {1: {"error": "not seen"}}, FILES, hosts)) == {"data root": "fail"}
    assert bad(verdicts.data_root("/d", {1: {"seen_secs": 3.0}}, FILES, hosts)) == {"data root": "warn"}
    assert bad(verdicts.data_root("/d", {}, {"error": "Read-only file system"}, hosts)) == {"data root": "fail"}
    assert bad(verdicts.data_root("/d", {}, {**FILES, "link": False, "free_bytes": 5}, hosts)) == {
        "links": "warn",
        "space": "warn",
    }
