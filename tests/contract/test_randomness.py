"""What a task draws follows from the job's seed and the task alone: not from rank, attempt or order."""

import sys
from pathlib import Path

from tests.contract.started import Facts, facts_of


def test_the_seed_is_the_task_and_the_job(probe: Facts) -> None:
    seed = (3).to_bytes(4, sys.byteorder) + (7).to_bytes(128, "little")
    assert probe.of_attempt("named")["random_seed_bytes"] == str(seed)
    assert probe.told["after"]["named"]["random_seed_bytes"] == str(seed)


def test_all_attempts_of_a_task_draw_the_same(probe: Facts) -> None:
    assert probe.of_attempt("named", 0)["random"] == probe.of_attempt("named", 1)["random"]


def test_tasks_draw_different_numbers(probe: Facts) -> None:
    names = ("first", "empty", "named", "placed")
    assert len({str(probe.of_attempt(name)["random"]) for name in names}) == 4


def test_numbers_are_in_their_ranges(probe: Facts) -> None:
    for name in ("first", "empty", "named", "placed"):
        whole, *fractions = probe.of_attempt(name)["random"]
        assert 0 <= whole < 2**31
        assert all(0 <= fraction < 1 for fraction in fractions)


def test_another_run_draws_the_same(probe: Facts, tmp_path: Path) -> None:
    again = facts_of("mpirun -n 2", "probe", tmp_path)
    for name in ("first", "named"):
        assert again.of_attempt(name)["random"] == probe.of_attempt(name)["random"]


def test_the_probability_of_faults_falls_with_what_is_left(probe: Facts) -> None:
    found = [probe.of_attempt(name)["uniform_failure_prob"] for name in ("first", "empty", "named", "placed")]
    assert found == [1 / 4, 1 / 3, 1 / 2, 1]
