"""How a node is divided among its ranks, and what launchers' variables mean."""

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smallpond_mpi.execution.model import SCHEDULER_RANK, GpuSlot, Rank
from smallpond_mpi.platform.binding import (
    OWN_BYTES,
    LocalRank,
    divide_cpus,
    divide_gpus,
    divide_memory,
    has_long_addresses,
    launched_by_mpi,
    launched_size,
    launcher_of,
    spread,
    unbound,
)
from smallpond_mpi.platform.topology import Topology


def ranks(*cpus: tuple[int, ...], first: int = 0) -> list[LocalRank]:
    return [LocalRank(Rank(first + place), own) for place, own in enumerate(cpus)]


def test_a_world_of_one_has_everything() -> None:
    assert divide_cpus(ranks((0, 1, 2)), 1) == {0: (0, 1, 2)}


def test_a_cpu_of_one_rank_is_its() -> None:
    assert divide_cpus(ranks((0,), (1,), (2, 3)), 3) == {0: (0,), 1: (1,), 2: (2, 3)}


def test_a_cpu_that_only_some_share_goes_to_who_has_no_other() -> None:
    """As `srun --cpu-bind=mask_cpu:0x1,0x3` binds: no CPU is two ranks'."""
    assert divide_cpus(ranks((0,), (0, 1), first=1), 3) == {1: (0,), 2: (1,)}
    assert divide_cpus(ranks((0,), (0, 1)), 2) == {0: (0,), 1: (1,)}


def test_a_gpu_that_one_rank_sees_is_its_and_others_go_to_who_has_fewer() -> None:
    """As `srun --gpu-bind=mask_gpu:0x1,0x3` shows them."""
    both = (GpuSlot("GPU-a"), GpuSlot("GPU-b"))
    local = [LocalRank(Rank(0), (0,), both[:1]), LocalRank(Rank(1), (1,), both)]
    assert divide_gpus(local, {Rank(0): (0,), Rank(1): (1,)}) == {0: ("GPU-a",), 1: ("GPU-b",)}


def test_shared_cpus_are_divided_evenly_and_contiguously() -> None:
    everything = tuple(range(9))
    assert divide_cpus(ranks(everything, everything, everything, everything), 4) == {
        1: (0, 1, 2),
        2: (3, 4),
        3: (5, 6),
        0: (7, 8),
    }


def test_workers_come_first_where_cpus_are_few() -> None:
    assert divide_cpus(ranks((0, 1), (0, 1), (0, 1)), 3) == {0: (), 1: (0,), 2: (1,)}
    assert divide_cpus(ranks((0, 1), (0, 1)), 2) == {0: (1,), 1: (0,)}
    assert divide_cpus(ranks((0, 1), (0, 1), (0, 1), (0, 1)), 4) == {0: (), 1: (0,), 2: (1,), 3: (0,)}


def test_a_node_without_rank_0_is_all_workers() -> None:
    assert divide_cpus(ranks((0, 1, 2), (0, 1, 2), first=4), 6) == {4: (0, 1), 5: (2,)}


@given(
    st.lists(st.frozensets(st.integers(0, 15), min_size=1), min_size=1, max_size=8),
    st.booleans(),
    st.integers(0, 3),
)
def test_whatever_the_launcher_bound(masks: list[frozenset[int]], has_scheduler: bool, elsewhere: int) -> None:
    local = ranks(*(tuple(sorted(mask)) for mask in masks), first=0 if has_scheduler else 1)
    own = divide_cpus(local, len(local) + elsewhere + (not has_scheduler))
    seers = Counter(cpu for one in local for cpu in one.cpus)
    takers = Counter(cpu for cpus in own.values() for cpu in cpus)
    for one in local:
        assert set(own[one.rank]) <= set(one.cpus), "a rank has a CPU that its launcher does not let it use"
        assert own[one.rank] == tuple(sorted(set(own[one.rank])))
        assert own[one.rank] or one.rank == SCHEDULER_RANK, "a worker has nothing"
        assert all(cpu in own[one.rank] for cpu in one.cpus if seers[cpu] == 1)
    assert takers.keys() == seers.keys(), "a CPU is nobody's"
    if len(seers) >= len(local) and len(set(masks)) == 1:
        assert set(takers.values()) == {1}, "a CPU has two owners though there are enough"


def test_memory_goes_by_cpus() -> None:
    gb = 1 << 30
    assert divide_memory({Rank(0): (), Rank(1): (0, 1, 2)}, 4 * gb) == {0: gb - OWN_BYTES, 1: 3 * gb - OWN_BYTES}
    assert divide_memory({Rank(0): (0,)}, 100) == {0: 50}, "never more than half for the rank itself"


def slots(*tokens: str) -> tuple[GpuSlot, ...]:
    return tuple(GpuSlot(token) for token in tokens)


def test_gpus_have_one_owner_each() -> None:
    local = [LocalRank(Rank(rank), (0, 1), slots("a", "b", "c")) for rank in range(3)]
    cpus: dict[Rank, tuple[int, ...]] = {Rank(0): (), Rank(1): (0,), Rank(2): (1,)}
    assert divide_gpus(local, cpus) == {0: (), 1: ("a", "c"), 2: ("b",)}
    own = [LocalRank(Rank(1), (0,), slots("a")), LocalRank(Rank(2), (1,), slots("b"))]
    assert divide_gpus(own, cpus) == {1: ("a",), 2: ("b",)}


@given(
    st.lists(st.integers(0, 3) | st.none(), max_size=9),
    st.lists(st.frozensets(st.integers(0, 15), max_size=5), min_size=1, max_size=6),
)
@example(
    [0] * 7 + [None, 0], [frozenset({0})] * 3 + [frozenset({4})]
)  # the near ones had taken all that one may have more
def test_gpus_are_shared_evenly(nodes: list[int | None], masks: list[frozenset[int]]) -> None:
    gpus = tuple(GpuSlot(f"GPU-{index}", node) for index, node in enumerate(nodes))
    local = [LocalRank(Rank(rank), tuple(sorted(mask)), gpus) for rank, mask in enumerate(masks)]
    cpus = {one.rank: one.cpus for one in local}
    own = divide_gpus(local, cpus, Topology({cpu: cpu // 4 for cpu in range(16)}))
    assert sorted(token for tokens in own.values() for token in tokens) == sorted(gpu.token for gpu in gpus)
    counts = [len(own[one.rank]) for one in local if one.cpus or not any(masks)]
    assert max(counts) - min(counts) <= 1


def test_hardware_threads_of_a_core_stay_together() -> None:
    cores = Topology(siblings={cpu: (cpu % 4, cpu % 4 + 4) for cpu in range(8)})
    everything = tuple(range(8))
    assert divide_cpus(ranks(everything, everything, first=1), 3, cores) == {1: (0, 1, 4, 5), 2: (2, 3, 6, 7)}
    assert divide_cpus(ranks(*[everything] * 6, first=1), 7, cores) == {
        1: (0, 4),
        2: (1, 5),
        3: (2,),
        4: (6,),
        5: (3,),
        6: (7,),
    }
    assert spread((0, 1, 4, 6), cores) == (0, 1, 6, 4)


def test_a_launchers_own_binding_gives_way_where_it_leaves_cpus_to_nobody() -> None:
    job = (0, 1, 2, 3)
    one_core_each = [LocalRank(Rank(1), (0,), (), job), LocalRank(Rank(2), (1,), (), job)]
    assert [one.cpus for one in unbound(one_core_each)] == [job, job]
    halves = [LocalRank(Rank(1), (0, 1), (), job), LocalRank(Rank(2), (2, 3), (), job)]
    assert unbound(halves) == halves
    not_told = [LocalRank(Rank(1), (0,)), LocalRank(Rank(2), (1,))]
    assert unbound(not_told) == not_told


@pytest.mark.parametrize(
    ("env", "size"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "3", "PMI_RANK": "0"}, 3),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "16"}, 8),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, 1),  # the batch script itself
        ({"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "4"}, 1),  # salloc's interactive step
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 1),  # srun --pty bash
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1),
        ({"PMI_SIZE": ""}, 1),
    ],
)
def test_launchers_say_how_many(env: dict[str, str], size: int) -> None:
    assert launched_size(env) == size
    assert launched_by_mpi(env) == (size > 1)


def test_launchers_are_named() -> None:
    assert launcher_of({"OMPI_COMM_WORLD_SIZE": "2", "SLURM_STEP_ID": "0"}) == "Open MPI's mpirun"
    assert launcher_of({"PMI_FD": "2"}) == "MPICH's mpirun"
    assert launcher_of({"SLURM_STEP_ID": "0"}) == "srun"
    assert launcher_of({"SLURM_STEP_ID": "0", "PMI_FD": "12", "PMI_SIZE": "4"}) == "srun"
    assert launcher_of({"SLURM_STEP_ID": "0", "MPI_LOCALNRANKS": "2", "PMI_FD": "9"}) == "MPICH's mpirun"
    assert launcher_of({"SLURM_STEP_ID": "0", "OMPI_COMM_WORLD_SIZE": "2"}) == "Open MPI's mpirun"
    assert launcher_of({}) == "the launcher"


@pytest.mark.parametrize(
    ("device", "env", "is_long"),
    [
        ("ch4:ucx ofi", {"PMI_FD": "9", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}, True),
        ("ch4:ucx", {"PMI_FD": "9", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}, False),  # there is no other way
        ("ch4:ofi", {"PMI_FD": "9", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}, False),
        ("ch4:ucx ofi", {"PMI_FD": "9", "MPI_LOCALNRANKS": "3"}, False),  # its own mpirun
        ("ch4:ucx ofi", {"PMIX_RANK": "0", "SLURM_STEP_ID": "0"}, False),
    ],
)
def test_an_mpich_whose_addresses_slurm_damages(device: str, env: dict[str, str], is_long: bool) -> None:
    library = f"MPICH Version:      5.0.2\nMPICH ABI:          18:2:6\nMPICH Device:       {device}\nMPICH CC: cc\n"
    assert has_long_addresses(env, library) is is_long
    assert not has_long_addresses(env, "Open MPI v5.0.11, package: Open MPI root@b Distribution")
