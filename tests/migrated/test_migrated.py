"""Scripts of smallpond's users, with nothing but their imports changed, by every way of starting them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.launch import clean_env, launcher, mpirun_command

HERE = Path(__file__).parent
SECS = 240.0
needs_mpirun = [pytest.mark.mpi, pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")]

ALL_ROWS = [1000, sum(range(1000))]
EXPECTED_OF_FRAMES = {
    "extremes": [{"ticker": f"T{n}", "low": n / 4, "high": (295 + n) / 4} for n in range(5)],
    "files": 3,
    "joined": [[f"T{n}", f"Name {n}", sum(2 * 25 * x for x in range(n, 300, 5))] for n in range(5)],
    "words": [["a", 20], ["b", 10]],
    "of_three": [{"item": 93}, {"item": 96}, {"item": 99}],
    "computed": [True, False],
    "shuffled": True,
    "first": [{"item": 49}, {"item": 48}],
    "twice": 9900,
    "frame": [{"b": 2}, {"b": 3}],
    "arrow": [{"a": [1]}, {"a": None}],
    "again": 100,
    "limited": 3,
    "strings": 200,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the scripts, and what they read."""
    for script in HERE.glob("*.smallpond"):
        changed = re.sub(r"^((?:from|import) )smallpond\b", r"\1smallpond_mpi", script.read_text(), flags=re.MULTILINE)
        (tmp_path / f"{script.stem}.py").write_text(changed)
    for number in range(5):
        rows = range(number * 200, number * 200 + 200)
        write(tmp_path / f"rows/{number}.parquet", x=rows, g=[f"g{row % 3}" for row in rows])
    for number in range(2):
        write(tmp_path / f"hive/part={number}/a.parquet", x=range(number * 500, number * 500 + 500))
    for number in range(3):
        rows = range(number * 100, number * 100 + 100)
        prices = [row / 4 for row in rows]
        write(tmp_path / f"prices/{number}.parquet", ticker=[f"T{row % 5}" for row in rows], price=prices, other=rows)
    pd.DataFrame({"x": range(1000)}).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "rows.json").write_text("".join(json.dumps({"x": x}) + "\n" for x in range(1000)))
    (tmp_path / "names.csv").write_text("".join(f"T{n};Name {n}\n" for n in range(5)))
    (tmp_path / "lines.json").write_text("".join(json.dumps({"id": n, "text": "a b a"}) + "\n" for n in range(10)))
    return tmp_path


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def start(place: Path, command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=place,
        env=clean_env({"SP_DATA_ROOT": str(place / "root")}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def result_of(process: "subprocess.Popen[str]") -> Any:
    """What the script printed; a process that does not end is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=SECS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, err
    (line,) = (line for line in out.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def by_python(*script: str) -> list[str]:
    return [sys.executable, *script]


def by_mpirun(*script: str) -> list[str]:
    return mpirun_command(3, by_python(*script))


def by_command(*script: str) -> list[str]:
    return [sys.executable, "-m", "smallpond_mpi", "run", "-n", "3", *script]


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(by_python, id="python"),
        pytest.param(by_mpirun, id="mpirun", marks=needs_mpirun),
        pytest.param(by_command, id="run", marks=needs_mpirun),
    ],
)
def test_frames(place: Path, way: Any) -> None:
    assert result_of(start(place, way("frames.py"))) == EXPECTED_OF_FRAMES


def of_plan(place: Path, *mode: str) -> tuple[str, ...]:
    return ("plan.py", *mode, "-i", str(place), "-r", str(place / "result"))


@pytest.mark.parametrize(
    ("way", "mode"),
    [
        pytest.param(by_python, (), id="python"),
        pytest.param(by_mpirun, ("mpi",), id="mpi", marks=needs_mpirun),
        pytest.param(by_command, (), id="run", marks=needs_mpirun),
    ],
)
def test_plan(place: Path, way: Any, mode: tuple[str, ...]) -> None:
    check_plan(place, result_of(start(place, way(*of_plan(place, *mode)))))


def test_plan_by_scheduler_and_executors(place: Path) -> None:
    """The two meet through the data root alone."""
    job = ("--job_id", "migrated")
    executor = start(place, by_python(*of_plan(place, "executor", *job)))
    scheduler = start(place, by_python(*of_plan(place, "scheduler", *job, "--num_executors", "1")))
    try:
        check_plan(place, result_of(scheduler))
        assert executor.wait(timeout=60) == 0
    finally:
        executor.kill()
        executor.communicate()


def check_plan(place: Path, found: dict[str, list[int]]) -> None:
    assert len(found) == 29
    assert {name: rows for name, rows in found.items() if rows != ALL_ROWS} == {"limit": [10, 45]}
    for kind in ("link", "copy", "link_or_copy"):
        assert sum(pq.read_table(path).num_rows for path in (place / "result" / kind).glob("*.parquet")) == 29, kind
    assert {path.name for path in (place / "result" / "manifest").iterdir()} == {".MANIFEST.txt"}
