"""Starts the jobs of tests/contract/jobs, by plain python or under mpirun, and reads the facts that they write."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launch import clean_env, mpirun

JOBS = Path(__file__).parent / "jobs"
ROOT = Path(__file__).parents[2]
HOWS = ("python", "mpirun -n 2")


@dataclass(frozen=True)
class Facts:
    """What a job has written: `told` by rank 0, and by each attempt into a file of its own."""

    told: dict[str, Any]
    path: Path
    data_root: Path

    def of_attempt(self, name: str, retry: int = 0) -> dict[str, Any]:
        """What attempt number `retry` of the task of that name saw."""
        return dict(json.loads(self.path.with_name(f"{self.path.stem}.{name}.{retry}").read_text()))


def start(
    how: str, job: str, *args: str, timeout: float = 120, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a job of this directory to its end, however that is."""
    command = [sys.executable, str(JOBS / f"{job}.py"), *args]
    settings = {"PYTHONPATH": str(ROOT), "SP_PROGRESS": "none", **(env or {})}
    if how == "python":
        return subprocess.run(
            command, env=clean_env(settings), capture_output=True, text=True, timeout=timeout, check=False
        )
    return mpirun(int(how.rsplit(" ", 1)[1]), command, settings, timeout)


def facts_of(how: str, job: str, directory: Path, *args: str, timeout: float = 120) -> Facts:
    """Run a job that must succeed, with its data root and the path of its facts as the first arguments."""
    data_root, path = directory / "data", directory / "facts.json"
    run = start(how, job, str(data_root), str(path), *args, timeout=timeout)
    assert run.returncode == 0, f"{how} {job}: {run.returncode}\n{run.stdout}\n{run.stderr}"
    return Facts(json.loads(path.read_text()), path, data_root)
