"""SIGTERM, and more of them: Slurm repeats it, and srun passes each on. The end in order is not broken off by the next."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.executor_bench import wait_until

SCRIPT = """
import time
import smallpond_mpi

def work(table):
    open("begun", "x").close()
    time.sleep(1000)

sp = smallpond_mpi.init(data_root="root")
sp.from_items([1]).map_batches(work).to_arrow()
"""
ENDED = """
import os, signal, smallpond_mpi, smallpond_mpi.execution.job as job

close = job.Job.close

def told_to_end(self, *args):
    os.kill(os.getpid(), signal.SIGTERM)
    close(self, *args)

sp = smallpond_mpi.init(data_root="root", progress="none")
print(sp.from_items([1]).count())
job.Job.close = told_to_end
"""


def start(directory: Path, program: str) -> "subprocess.Popen[str]":
    (directory / "script.py").write_text(program)
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def status(directory: Path) -> str:
    (path,) = (directory / "root").glob("*/status")
    return path.read_text()


@pytest.mark.fault
def test_sigterm_again_and_again(tmp_path: Path) -> None:
    process = start(tmp_path, SCRIPT)
    wait_until((tmp_path / "begun").exists)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.003)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert status(tmp_path) == "failure: terminated (SIGTERM)\n"
    assert err.count("can be taken up where it was") == 1
    assert "Traceback" not in err


def test_sigterm_to_a_script_that_is_at_its_end(tmp_path: Path) -> None:
    process = start(tmp_path, ENDED)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "1\n"), err
    assert status(tmp_path) == "success\n"


def test_sigterm_after_a_job_that_ended_well(tmp_path: Path) -> None:
    """There is nothing to take up."""
    program = """
import os, signal, smallpond_mpi
sp = smallpond_mpi.init(data_root="root", progress="none")
print(sp.from_items([1]).count())
sp.shutdown()
os.kill(os.getpid(), signal.SIGTERM)
"""
    process = start(tmp_path, program)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "terminated (SIGTERM)" in err
    assert "taken up" not in err
    assert status(tmp_path) == "success\n"
