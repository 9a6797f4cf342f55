"""How a node is divided among its ranks, and what launchers' variables mean."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank
from smallpond_mpi.platform.binding import (
    LocalRank,
    divide_cpus,
    divide_gpus,
    divide_memory,
    launched_by_mpi,
    launched_size,
    launcher_of,
)


def ranks(*cpus: tuple[int, ...], first: int = 0) -> list[LocalRank]:
    return [LocalRank(Rank(first + place), own) for place, own in enumerate(cpus)]


def test_a_world_of_one_has_everything() -> None:
    assert divide_cpus(ranks((0, 1, 2)), 1) == {0: (0, 1, 2)}


def test_a_cpu_of_one_rank_is_its() -> None:
    assert divide_cpus(ranks((0,), (1,), (2, 3)), 3) == {0: (0,), 1: (1,), 2: (2, 3)}


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
    assert divide_memory({Rank(0): (), Rank(1): (0, 1, 2)}, 400) == {0: 100, 1: 300}


def test_gpus_have_one_owner_each() -> None:
    local = [LocalRank(Rank(rank), (0, 1), ("a", "b", "c")) for rank in range(3)]
    cpus: dict[Rank, tuple[int, ...]] = {Rank(0): (), Rank(1): (0,), Rank(2): (1,)}
    assert divide_gpus(local, cpus) == {0: (), 1: ("a", "c"), 2: ("b",)}
    own = [LocalRank(Rank(1), (0,), ("a",)), LocalRank(Rank(2), (1,), ("b",))]
    assert divide_gpus(own, cpus) == {1: ("a",), 2: ("b",)}


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
    assert launcher_of({}) == "the launcher"
