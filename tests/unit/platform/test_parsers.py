"""The parsers of /proc, /sys and Slurm's variables, each alone."""

import pytest

from smallpond_mpi.platform import cgroup, slurm
from smallpond_mpi.platform.topology import FAR, Ticks, Topology, allowed_cpus, cpu_ticks, distances, parse_cpu_list

GB = 1 << 30
MB = 1 << 20


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8\n", (0, 1, 2, 3, 8)), ("", ()), ("\n", ()), ("5", (5,)), ("2-2,0", (0, 2)), ("0-1,4-5", (0, 1, 4, 5))],
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


def test_affinity() -> None:
    assert allowed_cpus("Cpus_allowed:\tff\nCpus_allowed_list:\t0,4-5\nMems_allowed_list:\t0-1\n") == (0, 4, 5)
    assert allowed_cpus("") == ()


def test_cores_are_in_the_order_of_nodes() -> None:
    here = Topology({0: 1, 1: 1, 2: 0, 3: 0}, {0: (0, 1), 1: (0, 1)})
    assert here.cores((3, 1, 0, 2)) == [(2,), (3,), (0, 1)]
    assert here.cores((1,)) == [(1,)], "a thread whose sibling is somebody else's is a core of one"
    assert here.node_of_all((0, 1)) == 1
    assert here.node_of_all((0, 2)) is None


def test_distances() -> None:
    found = distances({0: "10 21\n", 2: "21 10\n", 3: ""})
    assert found == {(0, 0): 10, (0, 2): 21, (2, 0): 21, (2, 2): 10}
    here = Topology({0: 0, 1: 2}, {}, found)
    assert here.distance(0, (0,)) == 0
    assert here.distance(0, (1,)) == 21
    assert here.distance(None, (1,)) == here.distance(0, ()) == here.distance(7, (0,)) == FAR


@pytest.mark.parametrize(
    ("text", "limit"), [("max\n", None), ("9223372036854771712\n", None), ("1073741824\n", GB), ("", None)]
)
def test_memory_limits(text: str, limit: int | None) -> None:
    assert cgroup.memory_limit(text) == limit


def test_oom_kills_of_both_versions() -> None:
    assert cgroup.oom_kill_count("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n") == 2
    assert cgroup.oom_kill_count("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n") == 5
    assert cgroup.oom_kill_count("") is None


def test_available_memory() -> None:
    assert cgroup.available_memory("MemTotal: 100 kB\nMemAvailable:   50 kB\n") == 50 * 1024
    assert cgroup.available_memory("") is None


V1 = "30 25 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
V2 = "35 25 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("membership", "mounts", "found"),
    [
        ("4:memory:/slurm/job_2\n", V1, ["memory/slurm/job_2", "memory/slurm", "memory"]),
        ("4:cpu,memory:/a\n", V1.replace("rw,memory", "rw,cpu,memory"), ["memory/a", "memory"]),
        ("0::/job_2\n", V2, ["unified/job_2", "unified"]),
        ("4:memory:/a\n0::/\n", V1 + V2, ["memory/a", "memory", "unified"]),
        ("3:cpuset:/a\n", V1, []),
        # only a part of the hierarchy is mounted: the process is in it, or not
        ("4:memory:/docker/1/a\n", V1.replace(" / /", " /docker/1 /"), ["memory/a", "memory"]),
        ("4:memory:/elsewhere\n", V1.replace(" / /", " /docker/1 /"), ["memory"]),
        # the process is outside of the cgroup namespace
        ("4:memory:/../other\n", V1, ["memory"]),
        # a later mount hides an earlier one
        ("4:memory:/a\n", V1.replace(" / /", " /.. /") + V1, ["memory/a", "memory"]),
        ("4:memory:/a\n", V1 + "31 25 0:9 / /sys/fs/cgroup/memory rw - tmpfs none rw\n", []),
        ("", V1, []),
        ("4:memory:/a\n", "", []),
    ],
)
def test_every_ancestor_of_a_cgroup(membership: str, mounts: str, found: list[str]) -> None:
    assert cgroup.directories(membership, mounts, "memory") == [f"/sys/fs/cgroup/{path}" for path in found]


@pytest.mark.parametrize(
    ("text", "counts"), [("2(x3)", [2, 2, 2]), ("4(x2),3", [4, 4, 3]), ("16", [16]), ("6,2", [6, 2]), ("", [])]
)
def test_counts_of_nodes(text: str, counts: list[int]) -> None:
    assert slurm.expand_counts(text) == counts


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[1-2,07-09],login", ["n1", "n2", "n07", "n08", "n09", "login"]),
        ("rack[1-2]-n[3,5]", ["rack1-n3", "rack1-n5", "rack2-n3", "rack2-n5"]),
        ("n[099-101]", ["n099", "n100", "n101"]),
        ("node-a,node-b", ["node-a", "node-b"]),
        ("n1[1-2]x", ["n11x", "n12x"]),
        ("", []),
    ],
)
def test_host_lists(text: str, hosts: list[str]) -> None:
    assert slurm.expand_hosts(text) == hosts


def test_the_cpus_of_this_node() -> None:
    job = {"SLURM_JOB_CPUS_PER_NODE": "4(x2),2", "SLURM_JOB_NODELIST": "n[1-3]", "SLURMD_NODENAME": "n3"}
    assert slurm.job_cpus(job) == 2
    assert slurm.job_cpus({**job, "SLURMD_NODENAME": "elsewhere"}) is None
    assert slurm.job_cpus({"SLURM_JOB_CPUS_PER_NODE": "4(x3)"}) == 4
    assert slurm.job_cpus({}) is None


@pytest.mark.parametrize(
    ("env", "by_srun", "megabytes"),
    [
        ({"SLURM_MEM_PER_NODE": "1000"}, True, 1000),
        ({"SLURM_MEM_PER_NODE": "0"}, True, None),  # --mem=0: the whole node
        ({"SLURM_MEM_PER_CPU": "300", "SLURM_CPUS_ON_NODE": "1", "SLURM_JOB_CPUS_PER_NODE": "2"}, True, 300),
        ({"SLURM_MEM_PER_CPU": "300", "SLURM_CPUS_ON_NODE": "1", "SLURM_JOB_CPUS_PER_NODE": "2"}, False, 600),
        ({"SLURM_MEM_PER_CPU": "300"}, False, None),
        ({"SLURM_MEM_PER_GPU": "4000", "SLURM_GPUS_ON_NODE": "2"}, True, 8000),
        ({}, False, None),
    ],
)
def test_memory_granted(env: dict[str, str], by_srun: bool, megabytes: int | None) -> None:
    assert slurm.memory_bytes(env, by_srun=by_srun) == (megabytes and megabytes * MB)


@pytest.mark.parametrize(
    ("env", "indices"),
    [
        ({}, None),
        ({"SLURM_JOB_GPUS": "0"}, None),  # no job
        ({"SLURM_JOB_ID": "7"}, ()),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "2,3"}, ("2", "3")),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "2,3", "SLURM_STEP_GPUS": "3"}, ("3",)),
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2"}, None),
    ],
)
def test_gpus_granted(env: dict[str, str], indices: tuple[str, ...] | None) -> None:
    assert slurm.gpu_indices(env) == indices


def test_the_time_of_cpus() -> None:
    """A /proc/stat made up after proc(5): the second CPU waited for a disk, and its hypervisor had others to serve."""
    text = (
        "cpu  300 0 100 1500 50 0 10 40 0 0\n"
        "cpu0 200 0 100 700 0 0 0 0 0 0\n"
        "cpu11 100 0 0 800 50 0 10 40 7 7\n"
        "intr 12 0 0\nctxt 5\n"
    )
    assert cpu_ticks(text) == {0: Ticks(300, 1000), 11: Ticks(150, 1000)}
    assert cpu_ticks("") == {}
