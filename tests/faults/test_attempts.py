"""Children are killed while they work, at random: right rows, whatever the number of ranks."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.jobs import DEADLINE_SECS, Job, needs_mpirun

pytestmark = pytest.mark.fault

KILLS = 20
PERIOD_SECS = 0.2
MOST_A_TASK = 2
MOST_AT_ONCE = 8
"""Pieces of work in the pipeline's widest stage."""


def kill_attempts(one: Job, rng: random.Random) -> Counter[str]:
    """Every 200 ms SIGKILL to the child of a running attempt, until 20 are dead or the job is over; how many by task."""
    killed: Counter[str] = Counter()
    deadline = time.monotonic() + DEADLINE_SECS
    while one.is_running() and killed.total() < KILLS:
        assert time.monotonic() < deadline, f"only {killed.total()} attempts could be killed:\n{one.stderr}"
        victims = sorted((task, pid) for task, pid in one.running() if killed[task] < MOST_A_TASK)
        if not victims:
            time.sleep(0.005)
            continue
        task, pid = rng.choice(victims)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed[task] += 1
        time.sleep(PERIOD_SECS)
    return killed


@pytest.mark.parametrize(
    "ranks",
    [
        0,
        *(
            pytest.param(
                ranks,
                marks=[pytest.mark.mpi, pytest.mark.skipif(needs_mpirun, reason="no mpirun beside this python")],
            )
            for ranks in (1, 2, 4)
        ),
    ],
)
def test_running_attempts_are_killed(job: Callable[..., Job], ranks: int) -> None:
    seed = 815 + ranks
    print("seed", seed)
    # long enough for as many attempts as may run at once to be killed twice: else the job can be over first
    at_once = min(MOST_AT_ONCE, max(ranks, len(os.sched_getaffinity(0))))
    one = job(ranks=ranks, env={"FAULTS_SECS": str(MOST_A_TASK * PERIOD_SECS * at_once + 0.3)})
    one.start()
    killed = kill_attempts(one, random.Random(seed))
    code = one.wait()
    assert code == 0, f"exit code {code} after {killed}:\n{one.stderr}"
    assert killed.total() >= KILLS, f"the job was over after {killed.total()} kills: {killed}"
    one.check_result()
    one.check_accepted_once()
