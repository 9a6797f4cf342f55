"""What is read from /proc and /sys, over directories as machines have them."""

from pathlib import Path

import pytest

from smallpond_mpi.execution.model import GpuSlot, Rank
from smallpond_mpi.platform.binding import LocalRank
from smallpond_mpi.platform.discover import capacity, node_memory_bytes, numa_nodes, oom_kills
from smallpond_mpi.platform.gpu import select
from smallpond_mpi.platform.topology import (
    available_memory,
    memory_cgroups,
    memory_limit,
    oom_kill_count,
    parse_cpu_list,
)

GB = 1 << 30


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8\n", (0, 1, 2, 3, 8)), ("", ()), ("\n", ()), ("5", (5,)), ("2-2,0", (0, 2)), ("0-1,4-5", (0, 1, 4, 5))],
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "limit"), [("max\n", None), ("9223372036854771712\n", None), ("1073741824\n", GB), ("", None)]
)
def test_memory_limits(text: str, limit: int | None) -> None:
    assert memory_limit(text) == limit


def test_oom_kills_of_both_versions() -> None:
    assert oom_kill_count("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n") == 2
    assert oom_kill_count("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n") == 5
    assert oom_kill_count("") is None


def test_available_memory() -> None:
    assert available_memory("MemTotal: 100 kB\nMemAvailable:   50 kB\n") == 50 * 1024
    assert available_memory("") is None


def test_every_ancestor_of_the_cgroup_counts() -> None:
    v1 = "12:cpu:/\n4:memory:/slurm/uid_1/job_2/step_0\n"
    assert memory_cgroups(v1, "/cg") == [
        "/cg/memory/slurm/uid_1/job_2/step_0",
        "/cg/memory/slurm/uid_1/job_2",
        "/cg/memory/slurm/uid_1",
        "/cg/memory/slurm",
        "/cg/memory",
    ]
    assert memory_cgroups("0::/system.slice/job_2\n", "/cg")[:3] == [
        "/cg/system.slice/job_2",
        "/cg/system.slice",
        "/cg",
    ]


class Machine:
    def __init__(self, root: Path) -> None:
        self.proc, self.sys = root / "proc", root / "sys"
        self.write("proc/meminfo", f"MemTotal: {64 * GB // 1024} kB\nMemAvailable: {32 * GB // 1024} kB\n")
        self.write("proc/self/cgroup", "0::/slurm/job_7/step_0\n")
        self.write("sys/devices/system/node/node0/cpulist", "0-1\n")
        self.write("sys/devices/system/node/node1/cpulist", "2-3\n")

    def write(self, path: str, text: str) -> None:
        file = self.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_memory_is_the_least_of_all(machine: Machine) -> None:
    assert node_memory_bytes(str(machine.proc), str(machine.sys)) == 32 * GB
    machine.write("sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n")
    machine.write("sys/fs/cgroup/slurm/job_7/memory.max", f"{8 * GB}\n")
    assert node_memory_bytes(str(machine.proc), str(machine.sys)) == 8 * GB


def test_oom_kills_are_those_of_the_innermost_cgroup(machine: Machine) -> None:
    assert oom_kills(str(machine.proc), str(machine.sys)) == 0
    machine.write("sys/fs/cgroup/slurm/job_7/memory.events", "oom_kill 3\n")
    assert oom_kills(str(machine.proc), str(machine.sys)) == 3


def test_numa(machine: Machine, tmp_path: Path) -> None:
    assert numa_nodes(str(machine.sys)) == {0: 0, 1: 0, 2: 1, 3: 1}
    assert numa_nodes(str(tmp_path / "nowhere")) == {}


def test_the_capacity_of_a_rank(machine: Machine) -> None:
    gpus = (GpuSlot("GPU-a", 0), GpuSlot("GPU-b", 1))
    local = [LocalRank(Rank(rank), (0, 1, 2, 3), ("GPU-a", "GPU-b")) for rank in (1, 2)]
    got = capacity(Rank(2), local, gpus, world_size=3, proc=str(machine.proc), sys=str(machine.sys))
    assert got.cpus == (2, 3)
    assert got.numa_nodes == (1, 1)
    assert got.gpus == (GpuSlot("GPU-b", 1),)
    assert got.memory_bytes == 16 * GB  # what is held back, the scheduler holds back


FOUND = [GpuSlot("GPU-aaaa"), GpuSlot("GPU-bbbb"), GpuSlot("GPU-abcd")]


@pytest.mark.parametrize(
    ("mask", "tokens"),
    [
        (None, ["GPU-aaaa", "GPU-bbbb", "GPU-abcd"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["GPU-bbbb"]),
        ("2,0", ["GPU-abcd", "GPU-aaaa"]),
        ("0,7,1", ["GPU-aaaa"]),
        ("GPU-b", ["GPU-bbbb"]),
        ("GPU-a", []),
        ("MIG-1234", ["MIG-1234"]),
        ("0, 0", ["GPU-aaaa"]),
    ],
)
def test_the_mask_of_gpus(mask: str | None, tokens: list[str]) -> None:
    assert [gpu.token for gpu in select(FOUND, mask)] == tokens
