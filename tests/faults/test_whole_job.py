"""The whole job is killed, at any moment and at each named step, and started again with the same id."""

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from smallpond_mpi.faults import POINTS
from tests.faults.jobs import Job, Watcher, needs_mpirun, wait_for

pytestmark = pytest.mark.fault

KILLS_A_JOB = 6
TRIES = 3
TASKS = 32
"""Nearly all of what the pipeline's children do: the last ones are left to the steps below."""


def exit_code_within(one: Job, secs: float) -> int | None:
    """Its exit code, or None when the job is still at work after so long."""
    assert one.process is not None
    try:
        return one.process.wait(secs)
    except subprocess.TimeoutExpired:
        return None


def start_and_kill(one: Job, progress: int, rng: random.Random) -> None:
    """Let it get so far, and a moment further; then kill the launcher alone, or every process at once. On a fast machine it may be over by then."""
    one.start()
    wait_for(lambda: one.n_accepted() >= progress or not one.is_running(), f"{progress} accepted tasks")
    code = exit_code_within(one, rng.uniform(0.0, 0.05 if progress else 0.8))
    assert not code, f"ended by itself, with exit code {code}:\n{one.stderr}"
    if rng.random() < 0.5:
        one.kill_all()
    else:
        one.kill_launcher()


@pytest.mark.parametrize(
    ("ranks", "seed"),
    [
        *((0, seed) for seed in range(4711, 4716)),
        *(
            pytest.param(
                3,
                seed,
                marks=[pytest.mark.mpi, pytest.mark.skipif(needs_mpirun, reason="no mpirun beside this python")],
            )
            for seed in (4714, 4715)
        ),
    ],
)
def test_killed_at_any_moment(job: Callable[..., Job], ranks: int, seed: int) -> None:
    """30 seeded moments alone, 12 under mpirun, six a job; sometimes the launcher alone, sometimes every process at once."""
    rng = random.Random(seed)
    # On a fast machine the last kill may find a job that is over and only about to leave: then it begins anew.
    for _ in range(TRIES):
        one = job(ranks=ranks)
        had_ended = False
        with Watcher(one.output):
            for progress in sorted(rng.choices(range(TASKS), k=KILLS_A_JOB)):
                start_and_kill(one, progress, rng)
                had_ended |= one.has_ended()
            one.run_to_success()
        one.check_result()
        if not had_ended:
            one.check_accepted_once()
            return
    pytest.fail(f"none of {TRIES} jobs was killed before its end each time")


# Which time that a process gets there, where it does so more than once, and whether the output path exists before.
STEPS = [
    ("lease.take", False),
    ("lease.taken", False),
    ("journal.claim", False),
    ("journal.claimed", False),
    ("journal.append:2", False),
    ("journal.append:12", False),
    ("journal.appended:7", False),
    ("commit.start", False),
    ("commit.renamed", False),
    ("publish.collected", False),
    ("publish.staged", False),
    ("publish.staged", True),
    ("publish.file:1", True),
    ("publish.file:4", True),
    ("publish.manifest", True),
    ("publish.done", False),
    ("publish.done", True),
    ("publish.accepted", False),
    ("publish.cleaned", True),
    ("job.ended", False),
    ("job.cleaned", False),
]


REPLACING = {"publish.replace", "publish.aside"}


def test_every_step_is_killed_at() -> None:
    assert {step.partition(":")[0] for step, _ in STEPS} | REPLACING == set(POINTS)


# Under mpirun the steps of a child are those of another process than rank 0's own children; rank 0 does nothing else than alone.
MPI_STEPS = [
    ("journal.claimed", False),
    ("journal.appended:7", False),
    ("commit.renamed", False),
    ("publish.collected", False),
    ("publish.staged", False),
    ("publish.file:4", True),
    ("publish.accepted", False),
    ("job.ended", False),
]


@pytest.mark.parametrize(("step", "exists"), STEPS)
def test_killed_at_step(job: Callable[..., Job], step: str, exists: bool, tmp_path: Path) -> None:
    die_at(step, exists, job(env={"FAULTS_NAMED": str(tmp_path / "named")}))


@pytest.mark.mpi
@pytest.mark.skipif(needs_mpirun, reason="no mpirun beside this python")
@pytest.mark.parametrize(("step", "exists"), MPI_STEPS)
def test_launcher_killed_at_step(job: Callable[..., Job], step: str, exists: bool, tmp_path: Path) -> None:
    die_at(step, exists, job(ranks=3, env={"FAULTS_NAMED": str(tmp_path / "named")}))


def die_at(step: str, exists: bool, one: Job) -> None:
    """Wherever the launcher dies, the job that is started again has the same rows, and only has them once."""
    if exists:
        one.output.mkdir()
    with Watcher(one.output):
        code = one.run(SP_FAULT_POINT=step)
        assert code != 0, f"the job did not get to {step}:\n{one.stderr}"
        one.wait_until_gone()
        had_ended = one.has_ended()
        one.run_to_success()
    one.check_result()
    if not had_ended:  # then it began anew
        one.check_accepted_once()


@pytest.mark.parametrize("step", ["publish.staged", "publish.replace", "publish.done", "publish.accepted"])
def test_killed_while_a_result_is_replaced(job: Callable[..., Job], step: str) -> None:
    """A finished job that runs anew replaces its result: readers see the one or the other, whole."""
    one = job()
    with Watcher(one.output):
        one.run_to_success()
        assert one.run(SP_FAULT_POINT=step) != 0
        one.wait_until_gone()
        one.run_to_success()
    one.check_result()
