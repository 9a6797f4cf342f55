"""Which CPUs, GPUs and memory a grant is made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi.common import GB
from smallpond_mpi.execution.model import Capacity, Grant
from smallpond_mpi.execution.slots import Layout, Slots, usable_memory
from smallpond_mpi.testing import rank


def slots(capacity: Capacity) -> Slots:
    return Slots(Layout(capacity))


def test_the_lowest_free_cpus_come_first_and_come_back() -> None:
    free = slots(Capacity((4, 5, 8, 9), 10 * GB))
    first, second = free.take(1, GB, 0), free.take(1, GB, 0)
    assert (first.cpus, second.cpus) == ((4,), (5,))
    free.give(first)
    assert free.take(1, GB, 0) is first, "the same mask: its warm child is used again"


def test_cpus_of_one_grant_are_of_one_numa_node_if_possible() -> None:
    free = slots(rank(cpus=8, numa_nodes=2))
    free.take(1, 0, 0)
    whole_node = free.take(4, 0, 0)
    assert (whole_node.cpus, whole_node.numa_node) == ((4, 5, 6, 7), 1)
    free.give(whole_node)
    assert free.take(6, 0, 0).numa_node is None


def test_fractions_pack_on_one_gpu_and_whole_ones_stay_whole() -> None:
    free = slots(rank(cpus=8, gpus=2))
    assert [free.take(1, 0, 0.5).gpus, free.take(1, 0, 0.25).gpus] == [((0, 0.5),), ((0, 0.25),)]
    assert free.take(1, 0, 1.0).gpus == ((1, 1.0),)
    assert not free.fits(1, 0, 0.5)
    assert free.take(1, 0, 0.25).gpus == ((0, 0.25),)


def test_gpus_of_one_grant_and_its_cpus_are_of_one_numa_node_if_possible() -> None:
    free = slots(rank(cpus=8, gpus=4, numa_nodes=2))
    free.take(1, 0, 0.1)
    grant = free.take(2, 0, 2.0)
    assert (grant.gpus, grant.cpus, grant.numa_node) == (((2, 1.0), (3, 1.0)), (4, 5), 1)


@pytest.mark.parametrize("parts", [3, 6, 7, 49, 100])
def test_n_shares_of_1_over_n_fit_on_a_gpu_and_no_more(parts: int) -> None:
    free = slots(rank(cpus=200, gpus=1))
    for _ in range(parts):
        assert free.fits(1, 0, 1 / parts)
        free.take(1, 0, 1 / parts)
    assert not free.fits(1, 0, 1 / parts)


def test_a_tenth_of_the_memory_is_held_back_and_the_rest_goes_with_the_cpus() -> None:
    layout = Layout(rank(4, 10 * GB))
    assert layout.usable_bytes == usable_memory(layout.capacity) == 9 * GB
    assert layout.share_bytes(1) * 4 <= 9 * GB
    assert not Slots(layout).fits(1, 9 * GB + 1, 0)


requests = st.tuples(
    st.integers(1, 9), st.sampled_from([0, GB, 3 * GB]), st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0, 1.5, 2.0])
)


@given(
    st.builds(rank, cpus=st.integers(0, 8), gpus=st.integers(0, 3), numa_nodes=st.integers(1, 3)),
    st.lists(st.tuples(st.booleans(), requests), max_size=30),
)
def test_whatever_is_taken_and_given_back_no_two_grants_overlap(
    capacity: Capacity, moves: list[tuple[bool, tuple[int, int, float]]]
) -> None:
    free = slots(capacity)
    held: list[Grant] = []
    for gives_back, request in moves:
        if gives_back and held:
            free.give(held.pop(0))
        elif free.fits(*request):
            grant = free.take(*request)
            assert len(grant.cpus) == request[0]
            assert sum(quota for _, quota in grant.gpus) == pytest.approx(request[2])
            held.append(grant)
        cpus = [cpu for grant in held for cpu in grant.cpus]
        assert len(set(cpus)) == len(cpus)
        assert set(cpus) <= set(capacity.cpus)
        assert sum(grant.memory_bytes for grant in held) <= usable_memory(capacity)
        for index in range(len(capacity.gpus)):
            assert sum(quota for grant in held for number, quota in grant.gpus if number == index) <= 1.0 + 1e-9
    for grant in held:
        free.give(grant)
    assert free.is_idle()
