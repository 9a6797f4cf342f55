"""Job arrays: every range has its places, and every item one part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi.platform.arrays import (
    Element,
    element_of,
    indices_in,
    known_indices,
    parse_indices,
    script_in,
    shares,
    show_indices,
)


def env(first: int, last: int, step: int, count: int, index: int = 3, **more: str) -> dict[str, str]:
    """The variables of an element, as Slurm 22.05 sets them."""
    numbers = {"ID": index, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {
        "SLURM_ARRAY_JOB_ID": "40",
        **{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in numbers.items()},
        **more,
    }


def test_an_element_knows_itself() -> None:
    assert element_of(env(0, 4, 1, 5)) == Element("40", 3)
    assert element_of(env(0, 4, 1, 5, SP_ARRAY_OF="12")) == Element("12", 3)
    assert element_of({"SLURM_JOB_ID": "40"}) is None


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("0-4", (0, 1, 2, 3, 4)),
        ("7", (7,)),
        ("10-50:20%2", (10, 30, 50)),
        ("1,3,7-9%3", (1, 3, 7, 8, 9)),
        ("3,1", (1, 3)),
    ],
)
def test_lists_of_indices(text: str, indices: tuple[int, ...]) -> None:
    assert parse_indices(text) == indices
    assert parse_indices(show_indices(indices)) == indices


@pytest.mark.parametrize("text", ["", "a", "1-", "-3", "1;2"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no list of array indices"):
        parse_indices(text)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_shown_lists_are_understood(indices: set[int]) -> None:
    assert set(parse_indices(show_indices(indices))) == indices


def test_an_even_range_tells_all_its_elements() -> None:
    assert known_indices(env(0, 4, 1, 5)) == (0, 1, 2, 3, 4)
    assert known_indices(env(10, 50, 20, 3)) == (10, 30, 50)
    assert known_indices(env(7, 7, 1, 1)) == (7,)


def test_one_with_gaps_does_not() -> None:
    assert known_indices(env(1, 9, 1, 5)) is None
    assert known_indices(env(1, 9, 1, 5, SP_ARRAY="1,3,7-9")) == (1, 3, 7, 8, 9)
    assert known_indices({}) is None


def test_what_scontrol_says_of_an_array() -> None:
    """As `scontrol show job -o` has it in 22.05: elements that were started, and a record of those that wait."""
    shown = (
        "JobId=19 ArrayJobId=11 ArrayTaskId=1 JobName=a JobState=COMPLETED\n"
        "JobId=20 ArrayJobId=11 ArrayTaskId=3 JobName=a JobState=RUNNING\n"
        "JobId=11 ArrayJobId=11 ArrayTaskId=7-9%2 ArrayTaskThrottle=2 JobName=a JobState=PENDING\n"
    )
    assert indices_in(shown) == (1, 3, 7, 8, 9)
    assert indices_in("JobId=19 JobState=RUNNING") == ()


@pytest.mark.parametrize("submitted", ["", " SubmitLine=sbatch --array=1-3 --export=ALL,A=b /home/me/a.sbatch in out"])
def test_the_batch_script_in_what_scontrol_says(submitted: str) -> None:
    """The second as newer versions have it; both may hold spaces."""
    shown = f"JobId=11 ArrayJobId=11 JobName=a Command=/home/me/a.sbatch in out{submitted} WorkDir=/work/my dir StdErr=/x StdIn=/dev/null"
    assert script_in(shown) == ("/home/me/a.sbatch in out", "/work/my dir")
    assert script_in("JobId=11 JobName=a Command=(null) Power=") == ("", "")


@given(st.lists(st.integers(0, 10_000)), st.integers(1, 40))
def test_every_item_has_one_part_and_parts_are_even(sizes: list[int], count: int) -> None:
    parts = shares(sizes, count)
    assert len(parts) == count
    assert [place for begin, end in parts for place in range(begin, end)] == list(range(len(sizes)))
    weights = [max(1, size) for size in sizes]
    largest = max(weights, default=0)
    for begin, end in parts:
        assert sum(weights[begin:end]) <= sum(weights) / count + largest


def test_equal_items_go_to_equal_parts() -> None:
    assert shares([5] * 10, 5) == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert shares([0] * 4, 2) == [(0, 2), (2, 4)]
    assert shares([1, 1, 1, 10], 2) == [(0, 3), (3, 4)]
    assert shares([], 3) == [(0, 0)] * 3
