"""`smallpond-mpi run` over several nodes: what a launcher's exit code is worth, tried with launchers of a line of shell."""

import signal
import subprocess
import sys

import pytest

from tests.executor_bench import wait_until

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
