"""The MPI transport under a real mpirun: whichever MPI this environment has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import CASES
from tests.launch import is_open_mpi, launcher, mpirun

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")]

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.mpi.transport_program"


def launch(n: int, *args: str, options: tuple[str, ...] = (), **given: object) -> subprocess.CompletedProcess[str]:
    return mpirun(n, [sys.executable, "-m", PROGRAM, *args], options=options, cwd=ROOT, **given)  # type: ignore[arg-type]


def succeeds(n: int, *args: str, **given: object) -> str:
    run = launch(n, *args, **given)  # type: ignore[arg-type]
    assert run.returncode == 0, f"{run.returncode}\n{run.stdout}\n{run.stderr}"
    return run.stdout


@pytest.mark.parametrize("case", CASES)
def test_conformance(case: str) -> None:
    assert succeeds(3, "conformance", case).count("is done") == 3


def test_everybody_talks_to_everybody() -> None:
    assert succeeds(4, "everybody_to_everybody").count("is done") == 4


@pytest.mark.slow
def test_more_than_two_gib_pass() -> None:
    assert succeeds(2, "huge", timeout=250).count("is done") == 2


@pytest.mark.skipif(not is_open_mpi(), reason="only Open MPI goes on after a death")
def test_a_death_is_told_once_under_ulfm(tmp_path: Path) -> None:
    run = launch(4, "death", str(tmp_path), options=("--with-ft", "ulfm"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"], run.stdout + run.stderr


def test_abort_ends_the_job_with_its_code() -> None:
    assert launch(3, "abort").returncode == 7


def test_finalize_can_not_hang() -> None:
    run = launch(2, "watchdog", timeout=60)
    assert run.returncode != 0
    assert "finalize came back" not in run.stdout


def test_a_rank_knows_its_place_and_loads_nothing_heavy() -> None:
    places = re.findall(r"world (\d) 3 \S+ cpus=.* local=3", succeeds(3, "world"))
    assert sorted(places) == ["0", "1", "2"]


def test_singletons_are_explained() -> None:
    env = {"OMPI_COMM_WORLD_SIZE": "4", "PMI_SIZE": "4"}
    code = (
        "import os\n"
        "for name in list(os.environ):\n"
        "    if name.startswith(('PMI', 'OMPI_', 'PRTE')): del os.environ[name]\n"
        f"env = {env!r}\n"
        "from smallpond_mpi.execution.transport.mpi import start\n"
        "start(env)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert run.returncode == 1
    assert "started 4 processes" in run.stderr
    assert "smallpond-mpi run" in run.stderr
