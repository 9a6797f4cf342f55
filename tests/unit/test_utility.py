"""A profile as text; an iterator that works ahead."""

import cProfile
import pstats
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


def test_a_profile_is_ordered_and_cut():
    profile = cProfile.Profile()
    profile.runcall(lambda: [sorted([2, 1]) for _ in range(5)] + [max(1, 2) for _ in range(3)])
    by_calls = cprofile_to_string(profile, pstats.SortKey.CALLS, top_k=1)
    assert "sorted" in by_calls
    assert "builtins.max" not in by_calls


@pytest.mark.parametrize("ahead", [1, 3])
def test_it_works_no_further_ahead_than_told(ahead):
    """The reader has the first item, `ahead` more are kept, and one is in the thread's hand."""
    made = []
    at_limit = threading.Event()

    def source():
        for number in range(100):
            made.append(number)
            if number == ahead + 1:
                at_limit.set()
            yield number

    with ConcurrentIter(source(), ahead) as items:
        assert next(iter(items)) == 0
        assert at_limit.wait(30)
        assert made == list(range(ahead + 2))


def test_what_is_cleared_is_not_seen():
    made = threading.Event()

    def source():
        yield 1
        made.set()  # 1 has been taken into the buffer by then
        yield 2

    with ConcurrentIter(source(), 5) as items:
        assert made.wait(30)
        items.clear()
        assert 1 not in list(items)


def test_leaving_early_ends_the_thread():
    before = set(threading.enumerate())
    with ConcurrentIter(iter(int, 1), 2) as items:
        assert next(iter(items)) == 0
    assert set(threading.enumerate()) <= before
    unused = ConcurrentIter(range(3))
    unused.join()
