"""A job that appends to a directory, or replaces it, is killed at each step and started again: each row is there as often as it was written."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults.jobs import Job
from tests.faults.modes import ROWS

pytestmark = pytest.mark.fault

SCRIPT = Path(__file__).with_name("modes.py")
TIMES_WRITTEN = {"append": 3, "partition_by": 3, "counted": 2, "overwrite": 1, "error": 1}
STEPS = {
    "append": ["collected", "staged", "file:1", "file:2", "file:3", "manifest", "done", "accepted:2", "cleaned:2"],
    "partition_by": ["staged", "file:1", "file:5", "manifest", "done", "accepted:2", "accepted:3"],
    "overwrite": ["collected", "staged", "replace", "done", "accepted:2", "cleaned:2"],
    "error": ["collected", "staged", "done", "accepted", "cleaned"],
}
EXISTS = {"error": ["staged", "file:1", "file:2", "manifest", "done", "accepted"]}
"""Steps of what is written into an empty directory."""


def ids_in(output: Path) -> list[int]:
    return sorted(
        number for path in output.rglob("*.parquet") for number in pq.ParquetFile(path).read()["id"].to_pylist()
    )


def check(one: Job, mode: str) -> None:
    """Every row so many times, in files that the manifest lists, and nothing beside them."""
    assert ids_in(one.output) == sorted(list(range(ROWS)) * TIMES_WRITTEN[mode])
    listed = sorted((one.output / ".MANIFEST.txt").read_text().splitlines())
    assert listed == sorted(map(str, one.output.rglob("*.parquet")))
    assert [path.name for path in one.place.rglob(".*")] == [".MANIFEST.txt"], "staging is left"


def die_at(one: Job, mode: str, step: str) -> None:
    code = one.run(SP_FAULT_POINT=f"publish.{step}")
    assert code != 0, f"the job did not get to {step}:\n{one.stderr}"
    one.wait_until_gone()
    one.run_to_success()
    check(one, mode)


@pytest.mark.parametrize(("mode", "step"), [(mode, step) for mode, steps in STEPS.items() for step in steps])
def test_killed_at_step(job: Callable[..., Job], mode: str, step: str) -> None:
    die_at(job(script=SCRIPT, env={"FAULTS_MODE": mode}), mode, step)


@pytest.mark.parametrize(("mode", "step"), [(mode, step) for mode, steps in EXISTS.items() for step in steps])
def test_killed_while_files_are_moved_in(job: Callable[..., Job], mode: str, step: str) -> None:
    one = job(script=SCRIPT, env={"FAULTS_MODE": mode})
    one.output.mkdir()
    die_at(one, mode, step)


@pytest.mark.parametrize("step", ["job.ended", "job.cleaned"])
@pytest.mark.parametrize("mode", ["append", "error"])
def test_killed_at_the_end(job: Callable[..., Job], mode: str, step: str) -> None:
    """All is published; what it was computed from is going, or gone."""
    one = job(script=SCRIPT, env={"FAULTS_MODE": mode})
    assert one.run(SP_FAULT_POINT=step) != 0
    one.wait_until_gone()
    one.run_to_success()
    check(one, mode)
    assert Path(one.paths.status).read_text() == "success\n"
    one.check_accepted_once()


def test_killed_at_the_end_after_rows_were_looked_at(job: Callable[..., Job]) -> None:
    """They are computed again to be looked at again: what was appended of them stays, and once."""
    one = job(script=SCRIPT, env={"FAULTS_MODE": "counted"})
    assert one.run(SP_FAULT_POINT="job.cleaned") != 0
    one.wait_until_gone()
    one.run_to_success()
    check(one, "counted")


def test_a_job_that_begins_anew_appends_again(job: Callable[..., Job]) -> None:
    one = job(script=SCRIPT, env={"FAULTS_MODE": "append"})
    one.run_to_success()
    check(one, "append")
    one.run_to_success()
    check(one, "append")


def test_error_sees_what_the_finished_job_wrote(job: Callable[..., Job]) -> None:
    """Nothing is left to go on with: what is there is an earlier result, of whatever job."""
    one = job(script=SCRIPT, env={"FAULTS_MODE": "error"})
    one.run_to_success()
    assert one.run() != 0
    assert "mode='error' was given" in one.stderr
    check_rows = ids_in(one.output)
    assert check_rows == list(range(ROWS))
