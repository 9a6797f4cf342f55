"""The whole job is killed, at any moment and at each named step, and started again with the same id."""

import subprocess
from collections.abc import Callable

import pytest

from tests.faults.jobs import Job, Watcher, moments, needs_mpirun

pytestmark = pytest.mark.fault

ALONE_AND_MPI = [
    0,
    pytest.param(3, marks=[pytest.mark.mpi, pytest.mark.skipif(needs_mpirun, reason="no mpirun beside this python")]),
]
KILLS = 30
KILLS_A_JOB = 6


def outlives(one: Job, secs: float) -> bool:
    """Whether the job is still at work after so long."""
    assert one.process is not None
    try:
        one.process.wait(secs)
    except subprocess.TimeoutExpired:
        return True
    return False


def kill(one: Job, everything: bool) -> None:
    if everything:
        one.kill_all()
    else:
        one.kill_launcher()


@pytest.mark.parametrize("ranks", ALONE_AND_MPI)
def test_killed_at_any_moment(job: Callable[..., Job], ranks: int) -> None:
    """30 seeded moments, every other time the launcher alone, otherwise every process at once."""
    seed = 4711 + ranks
    print("seed", seed)
    kills = moments(seed, KILLS, 2.0)
    while kills:
        one = job(ranks=ranks)
        with Watcher(one.output):
            for _ in range(min(KILLS_A_JOB, len(kills))):
                one.start()
                if not outlives(one, kills.pop()):
                    break
                kill(one, everything=len(kills) % 2 == 0)
            if not one.has_ended():
                one.run_to_success()
        one.check_result()
        one.check_accepted_once()
