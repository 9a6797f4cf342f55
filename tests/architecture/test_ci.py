""".ci/run itself: that it can't pass without what it is to show."""

import os
import subprocess
from pathlib import Path

RUN = Path(__file__).parents[2] / ".ci" / "run"
REACHED = 42


def run_with(tmp_path: Path, **commands: str) -> "subprocess.CompletedProcess[str]":
    """Run it as root where these commands are other ones; it ends with REACHED where it makes its first environment."""
    for name, body in {"id": "echo 0", "python3": f"exit {REACHED}", **commands}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(["bash", str(RUN)], env=env, capture_output=True, text=True, timeout=60)


def test_without_slurm_it_fails(tmp_path: Path) -> None:
    """Its tests would skip."""
    done = run_with(tmp_path, **{"dpkg": "exit 1", "apt-get": "echo 'E: no network' >&2; exit 100"})
    assert done.returncode == 1
    assert "E: no network" in done.stderr
    assert "FAILED: apt-get could not install slurm-wlm munge" in done.stderr


def test_with_slurm_it_goes_on(tmp_path: Path) -> None:
    assert run_with(tmp_path, **{"dpkg": "exit 1", "apt-get": "exit 0"}).returncode == REACHED
    assert run_with(tmp_path, **{"dpkg": "exit 0", "apt-get": "exit 100"}).returncode == REACHED, "it is there already"
