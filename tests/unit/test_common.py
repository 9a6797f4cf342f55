"""Arithmetic that everything is cut by, and what the error classes are to those who catch them."""

import builtins
import inspect
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi import common
from smallpond_mpi.common import (
    DEFAULT_ROW_GROUP_BYTES,
    DEFAULT_ROW_GROUP_SIZE,
    MAX_ROW_GROUP_BYTES,
    MAX_ROW_GROUP_SIZE,
    MB,
    BadInput,
    DataRootUnusable,
    InvalidArgument,
    SmallpondError,
    clamp_row_group_bytes,
    clamp_row_group_size,
    clamp_value,
    first_value_in_dict,
    get_nth_partition,
    next_power_of_two,
    pytest_running,
    round_up,
    split_into_cols,
    split_into_rows,
)


def test_rows_are_neighbours() -> None:
    assert split_into_rows([1, 2, 3, 4, 5], 2) == [[1, 2, 3], [4, 5]]
    assert split_into_rows([1, 2], 4) == [[1], [2], [], []]
    assert split_into_rows([], 2) == [[], []]


def test_columns_go_round() -> None:
    assert split_into_cols([1, 2, 3, 4, 5], 2) == [[1, 3, 5], [2, 4]]
    assert split_into_cols([1, 2], 4) == [[1], [2], [], []]
    assert split_into_cols([], 2) == [[], []]


@given(st.lists(st.integers()), st.integers(1, 20))
def test_parts_are_all_of_it_and_alike_in_size(items: list[int], npartitions: int) -> None:
    rows, columns = split_into_rows(items, npartitions), split_into_cols(items, npartitions)
    assert [item for part in rows for item in part] == items
    assert sorted(item for part in columns for item in part) == sorted(items)
    for parts in (rows, columns):
        sizes = [len(part) for part in parts]
        assert len(parts) == npartitions
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)
    assert [get_nth_partition(items, n, npartitions) for n in range(npartitions)] == rows


def test_there_is_no_such_part() -> None:
    for call in (
        lambda: split_into_rows([1], 0),
        lambda: split_into_cols([1], 0),
        lambda: get_nth_partition([1], 0, 0),
    ):
        with pytest.raises(InvalidArgument, match="at least 1, not 0"):
            call()
    for n in (-1, 3):
        with pytest.raises(InvalidArgument, match=f"no number {n}: they are 0 to 2"):
            get_nth_partition([1, 2, 3], n, 3)


def test_clamping() -> None:
    assert [clamp_value(value, 2, 5) for value in (1, 2, 4, 5, 9)] == [2, 2, 4, 5, 5]
    assert clamp_row_group_size(1) == DEFAULT_ROW_GROUP_SIZE
    assert clamp_row_group_size(10**9) == MAX_ROW_GROUP_SIZE
    assert clamp_row_group_size(1, minval=1) == 1
    assert clamp_row_group_bytes(1) == DEFAULT_ROW_GROUP_BYTES
    assert clamp_row_group_bytes(10**12) == MAX_ROW_GROUP_BYTES
    assert clamp_row_group_bytes(10**12, maxval=7 * 10**11) == 7 * 10**11


@given(st.integers(1, 2**70))
def test_next_power_of_two(x: int) -> None:
    power = next_power_of_two(x)
    assert power.bit_count() == 1
    assert power // 2 < x <= power


def test_powers_of_small_numbers() -> None:
    assert [next_power_of_two(x) for x in (-1, 0, 1, 2, 3)] == [1, 1, 1, 2, 4]


def test_round_up() -> None:
    assert [round_up(x, 4) for x in (0, 1, 4, 5)] == [0, 4, 4, 8]
    assert round_up(1) == MB
    assert round_up(MB + 1) == 2 * MB


def test_first_value_in_dict() -> None:
    assert first_value_in_dict({"b": 1, "a": 2}) == 1
    assert first_value_in_dict({}) is None


def test_pytest_runs_here_and_nowhere_else() -> None:
    assert pytest_running()
    code = "import os; os.environ.pop('PYTEST_CURRENT_TEST', 0); from smallpond_mpi.common import *; print(pytest_running())"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout == "False\n"


ERRORS = [kind for kind in vars(common).values() if inspect.isclass(kind) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_ours(kind: type[Exception]) -> None:
    assert issubclass(kind, SmallpondError)
    assert kind.__doc__


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if issubclass(kind, BadInput) and kind is not BadInput])
def test_a_mistake_in_the_input_is_also_the_error_that_python_has_for_it(kind: type[Exception]) -> None:
    theirs = [base for base in kind.__mro__ if base.__module__ == builtins.__name__ and base not in Exception.__mro__]
    assert theirs, f"{kind.__name__} is no builtin error"


def test_an_unusable_data_root_says_only_the_sentence() -> None:
    assert str(DataRootUnusable(28, "data root /d can't be written to")) == "data root /d can't be written to"
