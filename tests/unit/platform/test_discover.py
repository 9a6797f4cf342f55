"""What a rank may use, over machines captured here and synthetic ones (`machines` names their sources)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from smallpond_mpi.execution.model import Capacity, GpuSlot, Rank
from smallpond_mpi.platform import discover
from smallpond_mpi.platform.binding import OWN_BYTES, LocalRank
from tests.unit.platform import machines
from tests.unit.platform.machines import GB
from tests.unit.platform.trees import Machine, load

MB = 1 << 20


def capacities(
    machine: Machine, root: Path, ranks: int, *, first: int = 1, gpus: tuple[GpuSlot, ...] = ()
) -> list[Capacity]:
    """What each of `ranks` unbound ranks of this machine has."""
    here = machine.write(root)
    cpus = discover.allowed_cpus(here)
    local = [LocalRank(Rank(first + place), cpus, gpus) for place in range(ranks)]
    world = ranks + first
    return [discover.capacity(one.rank, local, machine.env, world_size=world, root=here) for one in local]


def test_one_rank_a_numa_node_of_an_epyc(tmp_path: Path) -> None:
    made = capacities(machines.dgx_a100(), tmp_path, 8)
    for node, capacity in enumerate(made):
        assert set(capacity.numa_nodes) == {node}
        first = range(node * 16, node * 16 + 16)
        assert capacity.cpus == (*first, *(cpu + 128 for cpu in first)), "one thread of each core, then the others"
        assert capacity.memory_bytes == 128 * GB - OWN_BYTES


def test_ranks_share_no_core(tmp_path: Path) -> None:
    """Five ranks of 128 cores: no core has threads of two of them."""
    made = capacities(machines.dgx_a100(), tmp_path, 5)
    owners: dict[int, set[int]] = {}
    for place, capacity in enumerate(made):
        for cpu in capacity.cpus:
            owners.setdefault(cpu % 128, set()).add(place)
    assert len(owners) == 128
    assert all(len(ranks) == 1 for ranks in owners.values())
    assert sorted(len(capacity.cpus) for capacity in made) == [50, 50, 52, 52, 52]


def test_gpus_go_where_their_cores_are(tmp_path: Path) -> None:
    gpus = tuple(GpuSlot(f"GPU-{index}", node) for index, node in enumerate(machines.DGX_GPU_NODES))
    eight = capacities(machines.dgx_a100(), tmp_path / "8", 8, gpus=gpus)
    assert [len(capacity.gpus) for capacity in eight] == [1] * 8
    for node, capacity in enumerate(eight):
        (gpu,) = capacity.gpus
        assert gpu.numa_node is not None
        assert gpu.numa_node // 4 == node // 4, "of the same socket"
        if node in machines.DGX_GPU_NODES:
            assert gpu.numa_node == node
    two = capacities(machines.dgx_a100(), tmp_path / "2", 2, gpus=gpus)
    assert [{gpu.numa_node for gpu in capacity.gpus} for capacity in two] == [{1, 3}, {5, 7}]
    four = capacities(machines.dgx_a100(), tmp_path / "4", 4, gpus=gpus)
    assert [{gpu.numa_node for gpu in capacity.gpus} for capacity in four] == [{1}, {3}, {5}, {7}]


def test_memory_only_nodes_have_no_cpus(tmp_path: Path) -> None:
    made = capacities(machines.grace_hopper(), tmp_path, 4)
    assert [set(capacity.numa_nodes) for capacity in made] == [{0}, {1}, {2}, {3}]
    assert [len(capacity.cpus) for capacity in made] == [72] * 4


def test_a_laptop(tmp_path: Path) -> None:
    (alone,) = capacities(machines.laptop(), tmp_path / "1", 1, first=0)
    assert alone.cpus == (0, 2, 4, 6, *range(8, 16), 1, 3, 5, 7)
    assert alone.memory_bytes == 16 * GB - OWN_BYTES
    made = capacities(machines.laptop(), tmp_path / "4", 4, first=0)
    assert [sorted(one.cpus) for one in made] == [[13, 14, 15], [0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12]]


def test_three_odd_cores(tmp_path: Path) -> None:
    (alone,) = capacities(machines.three_odd_cores(), tmp_path / "1", 1, first=0)
    assert alone.cpus == (2, 6, 10)
    assert alone.numa_nodes == (0, 0, 1)
    made = capacities(machines.three_odd_cores(), tmp_path / "3", 3)
    assert [one.cpus for one in made] == [(2,), (6,), (10,)]


@pytest.mark.parametrize(
    ("make", "limit", "source"),
    [
        (machines.container_v2, 2 * GB, "/sys/fs/cgroup/memory.max"),
        (machines.slurm_v2, 12 * GB, "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_71/step_0/user/memory.max"),
        (machines.docker_v1, 3 * GB, "/sys/fs/cgroup/memory/inner/memory.limit_in_bytes"),
        (machines.laptop, 16 * GB, "available on the machine"),
        (lambda: load("container_v1"), 22_456_864 * 1024, "available on the machine"),
        (
            lambda: load("slurm_srun"),
            600 * MB,
            "/sys/fs/cgroup/memory/slurm_n2/uid_0/job_3/step_0/memory.limit_in_bytes",
        ),
        (lambda: load("slurm_mpirun"), 900 * MB, "granted by Slurm"),
        (lambda: load("slurm_batch"), 900 * MB, "granted by Slurm"),
    ],
)
def test_memory_is_the_least_of_all(make: Callable[[], Machine], limit: int, source: str, tmp_path: Path) -> None:
    machine = make()
    found = discover.memory_limit(machine.env, machine.write(tmp_path))
    assert (found.bytes, found.source) == (limit, source)


def test_slurms_word_counts_where_no_cgroup_limits(tmp_path: Path) -> None:
    machine = machines.laptop()
    machine.env = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "2048"}
    assert discover.memory_limit(machine.env, machine.write(tmp_path)).bytes == 2 * GB


def test_what_the_test_cluster_gave(tmp_path: Path) -> None:
    """srun bound each of two ranks a node to its core; mpirun bound one of one to half of what the job has, which is all its own."""
    srun = load("slurm_srun")
    root = srun.write(tmp_path / "srun")
    me = discover.local_rank(Rank(3), srun.env, root)
    assert me == LocalRank(Rank(3), (1,))
    both = [LocalRank(Rank(2), (0,)), me]
    assert discover.capacity(Rank(3), both, srun.env, world_size=6, root=root) == Capacity((1,), 150 * MB, (), (0,))

    mpirun = load("slurm_mpirun")
    root = mpirun.write(tmp_path / "mpirun")
    me = discover.local_rank(Rank(1), mpirun.env, root)
    assert me == LocalRank(Rank(1), (0,), (GpuSlot("0"), GpuSlot("1")), (0, 1))
    capacity = discover.capacity(Rank(1), [me], mpirun.env, world_size=2, root=root)
    assert capacity == Capacity((0, 1), 900 * MB - OWN_BYTES, (GpuSlot("0"), GpuSlot("1")), (0, 0))

    batch = load("slurm_batch")
    root = batch.write(tmp_path / "batch")
    me = discover.local_rank(Rank(0), batch.env, root)
    assert (me.cpus, me.job_cpus) == ((0, 1), ()), "without mpirun a smaller affinity is the user's wish"


def test_a_cpuset_that_is_not_the_jobs_alone_is_not_taken(tmp_path: Path) -> None:
    """Where Slurm does not constrain cores the cpuset is the whole machine's: other jobs' cores are in it."""
    mpirun = load("slurm_mpirun")
    mpirun.env["SLURM_JOB_CPUS_PER_NODE"] = "1(x2)"
    assert discover.local_rank(Rank(1), mpirun.env, mpirun.write(tmp_path)).job_cpus == ()


def test_a_job_that_nothing_holds_to_its_cpus_takes_no_more_than_it_was_granted(tmp_path: Path) -> None:
    """Whole cores, and all ranks of the node agree which; another job begins elsewhere."""
    laptop = machines.laptop()
    laptop.env = {"SLURM_JOB_ID": "7", "SLURM_JOB_CPUS_PER_NODE": "4"}
    (alone,) = capacities(laptop, tmp_path, 1)
    assert len(alone.cpus) == 4
    one, other = capacities(laptop, tmp_path, 2)
    assert len(one.cpus) == len(other.cpus) == 2
    assert {*one.cpus, *other.cpus} == set(alone.cpus)
    laptop.env["SLURM_JOB_ID"] = "8"
    (next_job,) = capacities(laptop, tmp_path, 1)
    assert not set(next_job.cpus) & set(alone.cpus)
    laptop.env["SLURM_JOB_CPUS_PER_NODE"] = "16"
    assert len(capacities(laptop, tmp_path, 1)[0].cpus) == 16


@pytest.mark.parametrize("env", [{"SLURM_THREADS_PER_CORE": "1"}, {}])
def test_a_job_of_one_thread_a_core_has_all_its_cores(env: dict[str, str], tmp_path: Path) -> None:
    """Its cpuset has twice as many CPUs as Slurm counts."""
    node = machines.four_cores_of_two_threads(env)
    (alone,) = capacities(node, tmp_path, 1, first=0)
    assert alone.cpus == (1, 2, 3)
    assert [one.cpus for one in capacities(node, tmp_path, 3)] == [(1,), (2,), (3,)]
    cpuset = discover.cpuset(str(tmp_path))
    assert discover.counted_cpus(cpuset, node.env, str(tmp_path)) == (1, 2, 3)
    assert discover.counted_cpus(cpuset, {}, str(tmp_path)) == cpuset


def test_cores_of_one_thread_that_mpirun_bound_to_one(tmp_path: Path) -> None:
    """Open MPI gives a rank one core of the job's three, with both its threads."""
    node = machines.four_cores_of_two_threads({"SLURM_THREADS_PER_CORE": "1", "OMPI_COMM_WORLD_SIZE": "2"})
    node.files["/proc/self/status"] = "Cpus_allowed_list:\t1,5\n"
    root = node.write(tmp_path)
    me = discover.local_rank(Rank(1), node.env, root)
    assert me.job_cpus == (1, 2, 3)
    assert discover.capacity(Rank(1), [me], node.env, world_size=2, root=root).cpus == (1, 2, 3)


def test_a_job_that_asked_for_all_threads_has_them(tmp_path: Path) -> None:
    node = machines.four_cores_of_two_threads({"SLURM_THREADS_PER_CORE": "2", "SLURM_JOB_CPUS_PER_NODE": "6"})
    (alone,) = capacities(node, tmp_path, 1, first=0)
    assert alone.cpus == (1, 2, 3, 5, 6, 7)


def test_cpus_that_are_switched_off_are_nobodys(tmp_path: Path) -> None:
    laptop = machines.laptop()
    laptop.files[f"{discover.CPUS}/online"] = "0-3,8\n"
    assert discover.allowed_cpus(laptop.write(tmp_path)) == (0, 1, 2, 3, 8)


def test_the_cpus_of_a_container(tmp_path: Path) -> None:
    assert discover.allowed_cpus(machines.container_v2().write(tmp_path)) == (2, 3)
    assert discover.cpuset(machines.container_v2().write(tmp_path)) == (2, 3)
    assert discover.cpuset(machines.slurm_v2().write(tmp_path / "slurm")) == (4, 5, 6, 7)


@pytest.mark.parametrize(("make", "kills"), [(machines.container_v2, 1), (machines.docker_v1, 7), (machines.laptop, 0)])
def test_oom_kills(make: Callable[[], Machine], kills: int, tmp_path: Path) -> None:
    assert discover.oom_kills(make().write(tmp_path)) == kills


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    here = str(tmp_path)
    assert discover.numa_nodes(here) == {}
    assert discover.memory_limit({}, here).bytes > 0
    assert discover.allowed_cpus(here)
    one = LocalRank(Rank(0), (0, 1))
    assert discover.capacity(Rank(0), [one], {}, world_size=1, root=here).numa_nodes == (None, None)


@pytest.mark.parametrize(
    ("make", "cpus", "env", "part"),
    [
        (machines.laptop, range(4), {}, 1 / 4),
        (machines.laptop, range(16), {}, 1),
        (machines.container_v2, (2, 3), {}, 1),  # all that the container has
        (machines.container_v2, (3,), {}, 1 / 2),
        (machines.dgx_a100, range(8), {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "32"}, 1 / 4),
        (machines.dgx_a100, range(256), {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "32"}, 1),  # it binds nothing
    ],
)
def test_a_process_bound_to_a_part_of_a_node_has_that_part_of_its_memory(
    make: Callable[[], Machine], cpus: range | tuple[int, ...], env: dict[str, str], part: float, tmp_path: Path
) -> None:
    machine = make()
    machine.files["/sys/devices/system/cpu/online"] = machines.numbers(range(16))
    assert discover.memory_share(tuple(cpus), env, machine.write(tmp_path)) == part
