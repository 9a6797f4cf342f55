"""The main job: real flights, checked against DuckDB by the demo itself, on any number of ranks and while its children are killed."""

import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.launch import clean_env, launcher, mpirun

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")]

DEMO = [sys.executable, "-m", "smallpond_mpi", "demo"]
ROOT = Path(__file__).parents[2]
N_FLIGHTS = 336_776


def demo(ranks: int, keep: Path) -> subprocess.CompletedProcess[str]:
    command = [*DEMO, "-n", str(ranks), "--keep", str(keep)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=clean_env(), stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `demo --keep` leaves behind."""
    directory = tmp_path_factory.mktemp("demo")
    done = demo(1, directory)
    assert done.returncode == 0, done.stderr
    return directory


def rows_of(directory: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in directory.glob("*.parquet"))


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_answer_is_duckdbs(tmp_path: Path, ranks: int) -> None:
    done = demo(ranks, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "equal to DuckDB's answer" in done.stdout
    (tasks,) = re.findall(r"^  (\d+) tasks in ", done.stderr, re.MULTILINE)
    assert int(tasks) >= 200
    assert "stage in flights.py" in done.stderr, (
        "nodes stand where the pipeline is written, not where our command was called"
    )
    assert rows_of(tmp_path / "output" / "flights") == N_FLIGHTS


ANOTHER_ANSWER = """
import sys
from smallpond_mpi.demo import check, job
real = check.expected
def expected(csv_files):
    rows = real(csv_files)
    rows[3]["cancelled"] += 1
    return rows
check.expected = expected
import os
sys.exit(job.run_demo(sys.argv[1], os.environ))
"""


def test_another_answer_than_duckdbs_is_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ANOTHER_ANSWER)
    done = mpirun(3, [sys.executable, str(script), str(tmp_path / "kept")])
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("DIFFERENT: ") == 1, done.stdout + done.stderr
    assert "cancelled is " in done.stdout
    assert "equal to DuckDB's answer" not in done.stdout


def test_the_example_is_a_script(kept: Path, tmp_path: Path) -> None:
    done = mpirun(
        3,
        [sys.executable, str(ROOT / "examples" / "flights.py"), str(kept / "data"), str(tmp_path / "out")],
        env={"SP_DATA_ROOT": str(tmp_path / "root")},
    )
    assert done.returncode == 0, done.stderr
    assert rows_of(tmp_path / "out" / "flights") == N_FLIGHTS
    assert rows_of(tmp_path / "out" / "airlines") == rows_of(kept / "output" / "airlines")


ATTEMPT = re.compile(r"(\d{6,})\.\d+\.\d+")
MOST_A_TASK = 2


def children_at_work(launcher_pid: int) -> list[tuple[str, psutil.Process]]:
    """(task, process) of children below a launcher that run an attempt: it is what ps calls them."""
    found = []
    for process in psutil.Process(launcher_pid).children(recursive=True):
        try:
            attempt = ATTEMPT.fullmatch(process.name())
        except psutil.NoSuchProcess:
            continue
        if attempt:
            found.append((attempt.group(1), process))
    return found


@pytest.mark.fault
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_answer_is_duckdbs_while_children_are_killed(tmp_path: Path, ranks: int) -> None:
    """SIGKILL every 200 ms to a child that is at work, whatever it does, to none more than twice for one task."""
    seed = 4711 + ranks
    rng = random.Random(seed)
    process = subprocess.Popen(
        [*DEMO, "-n", str(ranks), "--keep", str(tmp_path)],
        env=clean_env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed: Counter[str] = Counter()
    deadline = time.monotonic() + 150
    while process.poll() is None and killed.total() < 20 and time.monotonic() < deadline:
        try:
            victims = [(task, child) for task, child in children_at_work(process.pid) if killed[task] < MOST_A_TASK]
        except psutil.NoSuchProcess:
            break
        if victims:
            task, victim = rng.choice(victims)
            try:
                victim.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
            killed[task] += 1
            time.sleep(0.2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, f"seed {seed}, {killed.total()} kills:\n{err}"
    assert killed.total() >= 20, f"only {killed.total()} could be killed"
    assert "equal to DuckDB's answer" in out
    assert rows_of(tmp_path / "output" / "flights") == N_FLIGHTS
