"""What a user sees of a real job: lines in a file, a table on a terminal, the summary, the scheduler's log.

The tasks of the script wait for a file which the test makes once it has seen what it wanted to see of the running job.
"""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

DEADLINE_SECS = 90.0

SCRIPT = """
import os, signal, sys, time
import pyarrow as pa
import smallpond_mpi

sp = smallpond_mpi.init()
gate, scratch = os.environ["GATE"], os.environ["SCRATCH"]

def wait(row):
    while row["a"] % 100 == 0 and not os.path.exists(gate):
        time.sleep(0.01)
    once = os.path.join(scratch, str(row["a"]))
    if row["a"] == 300 and not os.path.exists(once):
        open(once, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if row["a"] == 700 and os.environ.get("FAIL"):
        raise ValueError("a bad row")
    return row["a"] % 2 == 0

numbers = sp.from_arrow(pa.table({"a": list(range(800))}))
kept = numbers.repartition(8, by_rows=True).filter(wait)
print("rows:", kept.count())
kept.repartition(2, hash_by="a").write_parquet(os.path.join(scratch, "out"))
"""


class Job:
    """A script that runs, its stderr in a file or on a pseudo-terminal."""

    def __init__(self, tmp_path: Path, **env: str) -> None:
        self.root, self.gate = tmp_path / "root", tmp_path / "gate"
        self._script = tmp_path / "keep_even.py"
        self._script.write_text(SCRIPT)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        ours = {"GATE": str(self.gate), "SCRATCH": str(scratch), "SP_DATA_ROOT": str(self.root), "SP_JOBID": "progress"}
        self._env = {**os.environ, **ours, **env}

    def start(self, stderr: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(self._script)],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    @property
    def log(self) -> str:
        (path,) = self.root.glob("*/log/scheduler.log")
        return path.read_text()


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + DEADLINE_SECS
    while not what():
        assert process.poll() is None, "the job has ended"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def run_to_file(job: Job, path: Path, seen: str = "") -> tuple[int, str, str]:
    """Run it; let its tasks go on once `seen` stands in its stderr. Exit code, stdout, stderr."""
    with path.open("w") as stderr:
        process = job.start(stderr.fileno())
    try:
        wait_for(lambda: seen in path.read_text(), process)
        job.gate.touch()
        out, _ = process.communicate(timeout=DEADLINE_SECS)
    finally:
        process.kill()
    return process.returncode, out, path.read_text()


def run_on_terminal(job: Job, seen: str) -> tuple[int, str, str]:
    """As run_to_file, with stderr on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    process = job.start(theirs)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + DEADLINE_SECS
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # EIO: the other side has closed
                break
            if not piece:
                break
            shown += piece
            if seen.encode() in shown:
                job.gate.touch()
        out, _ = process.communicate(timeout=DEADLINE_SECS)
    finally:
        process.kill()
        os.close(ours)
    return process.returncode, out, shown.decode()


def test_in_a_file_there_are_lines_while_it_runs_and_a_summary_at_the_end(tmp_path: Path) -> None:
    job = Job(tmp_path)
    code, out, err = run_to_file(job, tmp_path / "err", seen="running")
    assert code == 0, err
    assert out == "rows: 400\n"
    lines = err.splitlines()
    assert re.match(r"smallpond_mpi: \d+\.\d s: 2/10 tasks, \d+ running \| ArrowCompute keep_even.py:21 0/8", lines[0])
    assert "\x1b" not in err
    assert max(map(len, lines[lines.index(next(line for line in lines if " done" in line)) :])) <= 80
    summary = err[err.index("smallpond_mpi: job") :]
    assert re.search(r"^  stage in keep_even.py +tasks +wall +rows in +rows out +written$", summary, re.MULTILINE)
    assert re.search(r"^  ArrowCompute:21 +8 .* 800 +400 ", summary, re.MULTILINE)
    assert re.search(r"^  DataSink:23 +3 ", summary, re.MULTILINE)
    for part in ("read ", "written ", "shuffled ", "published ", "slowest ", "compute ", "1 attempt failed: signal 1"):
        assert part in summary


def test_on_a_terminal_there_is_a_table_which_goes_and_a_summary_which_stays(tmp_path: Path) -> None:
    code, out, shown = run_on_terminal(Job(tmp_path, TERM="xterm-256color", COLUMNS="120"), seen="running")
    assert code == 0, shown
    assert out == "rows: 400\n"
    assert "ArrowCompute keep_even.py:21" in shown
    assert "\x1b[1A\x1b[2K" in shown  # it was drawn in place
    table, _, summary = shown.rpartition("smallpond_mpi: job ")
    assert "\x1b" not in summary
    assert table.endswith("\x1b[2K")  # and taken away
    assert table.rindex("\x1b[?25h") > table.rindex("\x1b[?25l")


@pytest.mark.parametrize("style", ["none", "lines"])
def test_the_style_can_be_chosen(tmp_path: Path, style: str) -> None:
    job = Job(tmp_path, SP_PROGRESS=style, TERM="xterm")
    job.gate.touch()
    code, _, shown = run_on_terminal(job, seen="never shown")
    assert code == 0, shown
    assert "\x1b" not in shown
    assert ("job " in shown) == (style == "lines")


def test_a_job_that_failed_and_is_started_again_tells_both(tmp_path: Path) -> None:
    failing = Job(tmp_path, FAIL="1")
    failing.gate.touch()
    code, _, err = run_to_file(failing, tmp_path / "err1")
    assert code != 0
    summary = err[err.index("smallpond_mpi: job") :]
    assert "failed\n" in summary
    assert re.search(r"^  why +JobFailed: .*a bad row", summary, re.MULTILINE)
    assert re.search(r"^  failures +\d+ attempts failed: .*exception 3", summary, re.MULTILINE)
    assert "a bad row" in failing.log
    assert "rank 0 joined" in failing.log

    code, _, err = run_to_file(Job(tmp_path), tmp_path / "err2")
    assert code == 0, err
    assert re.search(r"^  \d+ tasks?, [1-9]\d* taken up from an earlier run in ", err, re.MULTILINE)
