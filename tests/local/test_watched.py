"""`smallpond-mpi run` over several nodes: what a launcher's exit code is worth, tried with launchers of a line of shell."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.executor_bench import wait_until

ROOT = Path(__file__).parents[2]
WATCH = (
    "import os, signal, sys; from smallpond_mpi.cli.watched import watch; "
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN); "  # as the command has it by then
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # tests under nohup have it ignored, which bash can't change
    "sys.exit(watch(['bash', '-c', sys.argv[1]], os.environ, lambda: None))"
)


def watched(script: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WATCH, script]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def mark(*names: str) -> str:
    """What rank 0 does on its way."""
    calls = "; ".join(f"mark('{name}', os.environ)" for name in names)
    return f'{sys.executable} -c "import os; from smallpond_mpi.cli.watched import mark; {calls}"'


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (mark("begun", "succeeded"), 0),
        (mark("begun"), 75),  # it lost a node, and says that all is well
        ("true", 0),  # rank 0 runs where its marks can't be seen
        (f"{mark('begun')}; exit 9", 9),
        (f"{mark('begun', 'succeeded')}; exit 9", 9),
        ("kill -KILL $$", 137),
    ],
)
def test_exit_codes(script: str, code: int) -> None:
    process = watched(script)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert ("a node was lost" in err) == (code == 75)
    assert ("SP_JOBID" in err) == (code == 75)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_go_on_to_the_launcher(signum: signal.Signals) -> None:
    process = watched(f"trap 'echo got it; exit 75' {signum.name}; echo ready; while :; do sleep 0.05; done")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (75, "got it\n"), err


def test_a_job_that_is_terminated_has_lost_no_node() -> None:
    """mpirun ends with 0 then if it sees the end of its helpers on other nodes, to which Slurm sent the signal too, before its own."""
    process = watched(f"trap 'exit 0' TERM; {mark('begun')}; echo ready; while :; do sleep 0.05; done")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "the job was terminated (SIGTERM)" in err
    assert "a node was lost" not in err


@pytest.mark.parametrize(("signum", "is_requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_what_is_cancelled_does_not_requeue_itself(tmp_path: Path, signum: signal.Signals, is_requeued: bool) -> None:
    """slurm/requeue.sbatch: the ranks end with 75, as if a node were lost, before they have the signal that the batch script has."""
    programs = {
        "smallpond-mpi": f"trap 'exit 75' {signum.name}; touch {tmp_path}/up; while :; do sleep 0.05; done",
        "scontrol": f"echo $* > {tmp_path}/requeued",
    }
    for name, lines in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    process = subprocess.Popen(["bash", str(ROOT / "slurm" / "requeue.sbatch"), "s.py"], env=env)
    wait_until((tmp_path / "up").exists)
    process.send_signal(signum)
    assert process.wait(timeout=60) == (0 if is_requeued else 75)
    assert (tmp_path / "requeued").exists() == is_requeued


def test_the_launcher_does_not_outlive_it() -> None:
    process = watched("echo $$; while :; do sleep 0.05; done")
    assert process.stdout is not None
    launcher = int(process.stdout.readline())
    process.kill()
    process.wait()
    wait_until(lambda: not _lives(launcher))
    process.communicate()


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
