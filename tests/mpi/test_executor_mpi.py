"""Executors under a real mpirun: what user code does with MPI, and that nothing survives its rank."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.executor_bench import gone, wait_until
from tests.launch import clean_env, is_open_mpi, launcher, mpirun, mpirun_command

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")]

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tests.mpi.executor_program"]


def test_user_code_that_imports_mpi4py_does_not_disturb_the_job(tmp_path: Path) -> None:
    run = mpirun(3, [*PROGRAM, "mpi_in_a_task", str(tmp_path)], cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("is done") == 3
    assert (tmp_path / "rank-1.log").read_text().endswith("still here\n")


@pytest.mark.fault
@pytest.mark.parametrize("victim", ["the launcher", "a worker"])
def test_nothing_survives(victim: str, tmp_path: Path) -> None:
    job = subprocess.Popen(
        mpirun_command(3, [*PROGRAM, "daemons", str(tmp_path)]),
        env=clean_env(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert job.stdout is not None
    with job.stdout:
        said = ""
        while "ready" not in said:
            line = job.stdout.readline()
            assert line, said
            said += line
    found = re.findall(r"rank \d (\d+) (\d+)", said)
    ranks, daemons = [int(rank) for rank, _ in found], [int(daemon) for _, daemon in found]
    assert len(daemons) == 2
    os.kill(job.pid if victim == "the launcher" else ranks[0], signal.SIGKILL)
    wait_until(lambda: all(map(gone, ranks)), "a rank is still there")
    wait_until(lambda: all(map(gone, daemons)), "a daemon is still there")
    assert job.wait(30) != 0


@pytest.mark.fault
@pytest.mark.skipif(not is_open_mpi(), reason="only Open MPI goes on after a death")
def test_the_death_of_a_rank_leaves_the_others_working(tmp_path: Path) -> None:
    run = mpirun(3, [*PROGRAM, "death_of_a_rank", str(tmp_path)], cwd=ROOT, options=("--with-ft", "ulfm"))
    done = sorted(path.name for path in tmp_path.glob("done-*"))
    assert len(done) == 2, run.stdout + run.stderr
    assert done[0] == "done-0"
    daemon = int((tmp_path / "daemon").read_text())
    wait_until(lambda: gone(daemon), "the daemon of the dead rank is still there")
