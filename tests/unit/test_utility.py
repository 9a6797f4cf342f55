"""A profile as text; an iterator that works ahead."""

import cProfile
import threading

import pytest

from smallpond_mpi.utility import ConcurrentIter, ConcurrentIterError, cprofile_to_string


def test_a_profile_as_text():
    profile = cProfile.Profile()
    profile.runcall(sorted, [3, 1, 2])
    assert "sorted" in cprofile_to_string(profile)


@pytest.mark.parametrize("size", [1, 5])
def test_all_items_in_order(size):
    with ConcurrentIter(range(100), size) as items:
        assert list(items) == list(range(100))
        assert list(items) == []
    assert list(ConcurrentIter([])) == []


def test_an_error_comes_after_the_items_before_it():
    def broken():
        yield 1
        raise ValueError("no more")

    seen = []
    with pytest.raises(ConcurrentIterError, match="no more") as raised, ConcurrentIter(broken()) as items:
        seen.extend(items)
    assert isinstance(raised.value.__cause__, ValueError)
    items = iter(ConcurrentIter(broken()))
    assert next(items) == 1


def test_leaving_early_ends_the_thread():
    before = set(threading.enumerate())
    with ConcurrentIter(iter(int, 1), 2) as items:
        assert next(iter(items)) == 0
    assert set(threading.enumerate()) <= before
    unused = ConcurrentIter(range(3))
    unused.join()
