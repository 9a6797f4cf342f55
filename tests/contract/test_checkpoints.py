"""A stream that is killed in the middle goes on from its last checkpoint: shown by which batches were worked in, by which attempt."""

from pathlib import Path

import pytest

from tests.contract.started import HOWS, facts_of, start

ALL = [how if how == "python" else pytest.param(how, marks=pytest.mark.mpi) for how in HOWS]
BATCHES = list(range(40))


def check(worked: list[list[int]], place: int) -> None:
    """Each attempt (told apart by number `place` of its lines) begins after the batches that the checkpoint before it holds."""
    attempts = [[line[3] for line in worked if line[place] == number] for number in range(3)]
    assert attempts == [BATCHES[0:12], BATCHES[10:22], BATCHES[20:]]


@pytest.mark.fault
@pytest.mark.parametrize("how", ALL)
def test_a_task_killed_in_the_middle_goes_on_from_its_checkpoint(how: str, tmp_path: Path) -> None:
    told = facts_of(how, "stream", tmp_path, "child", "2").told
    assert told["rows"] == list(range(400))
    assert told["attempt"] == [0, 2, 2]
    check(told["worked"], 1)


@pytest.mark.fault
@pytest.mark.parametrize("how", ALL)
def test_a_job_killed_in_the_middle_goes_on_from_its_checkpoint(how: str, tmp_path: Path) -> None:
    for _ in range(2):
        assert start(how, "stream", str(tmp_path / "data"), str(tmp_path / "facts.json"), "job", "2").returncode != 0
    told = facts_of(how, "stream", tmp_path, "job", "2").told
    assert told["rows"] == list(range(400))
    assert told["attempt"] == [2, 0, 0]  # the death of a job is no failure of a task
    check(told["worked"], 0)
