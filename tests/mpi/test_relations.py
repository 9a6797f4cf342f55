"""The same script prints the same rows by plain python and on three ranks, however rows are brought together."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import clean_env, mpirun

PROGRAM = str(Path(__file__).parents[1] / "relations_program.py")


@pytest.mark.mpi
def test_all_operations_alone_and_on_three_ranks(tmp_path: Path) -> None:
    alone = subprocess.run(
        [sys.executable, PROGRAM, *arguments(tmp_path / "alone", 1 << 40)],
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.splitlines()[-1] == "True"
    ranks = mpirun(3, [sys.executable, PROGRAM, *arguments(tmp_path / "ranks", 1)], timeout=200)
    assert ranks.returncode == 0, ranks.stderr
    assert ranks.stdout == alone.stdout


def arguments(directory: Path, one_task_bytes: int) -> list[str]:
    (directory / "work").mkdir(parents=True)
    return [str(directory / "root"), str(directory / "work"), str(one_task_bytes)]
