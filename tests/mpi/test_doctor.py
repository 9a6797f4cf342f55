"""`smallpond-mpi doctor` on one machine: alone, under mpirun, with a rank that is stopped, and on file systems that lack something. (On nodes: tests/slurm.)"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import odd_filesystem
from tests.executor_bench import wait_until
from tests.launch import clean_env, is_open_mpi, launcher, mpirun, mpirun_command

DOCTOR = [sys.executable, "-m", "smallpond_mpi", "doctor"]
SECS = 240.0
OF_THE_MACHINE = {"messages", "other work", "clocks"}
"""Checks that may warn because others are busy here."""

needs_mpirun = pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")


def alone(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [*DOCTOR, "--data-root", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECS, env=clean_env())


def told(text: str) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """(ranks, checks) of what `--json` printed."""
    assert "{" in text, text
    found = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return found["ranks"], found["checks"]


def bad(checks: Sequence[dict[str, str]]) -> dict[str, str]:
    """Check → level of what is not all right, but for what the machine may be busy with; each says what to do."""
    wrong = [one for one in checks if one["level"] != "ok" and one["check"] not in OF_THE_MACHINE]
    assert all(one["advice"] for one in wrong)
    return {one["check"]: one["level"] for one in wrong}


def test_the_table_of_one_process(tmp_path: Path) -> None:
    done = alone(tmp_path / "root")
    assert done.returncode == 0, done.stdout
    head, row, limits, mpi, *_ = done.stdout.splitlines()
    assert head.split() == ["rank", "host", "local", "CPUs", "NUMA", "GPUs", "memory", "limited", "by"]
    cpus = sorted(os.sched_getaffinity(0))
    shown = ",".join(map(str, cpus)) if len(cpus) < 6 else f"{len(cpus)} CPUs"
    assert re.match(rf" +0 {os.uname().nodename} +0 {shown} .* MB  .+ \(\d+ MB a node\)$", row), row
    assert limits.startswith(f"memory of {os.uname().nodename}: ")
    assert mpi == "MPI: not started; launcher: none"
    assert "ok   world: one process, without MPI" in done.stdout
    assert "FAIL" not in done.stdout
    assert not list((tmp_path / "root").iterdir()), "it leaves nothing"


@needs_mpirun
@pytest.mark.mpi
def test_the_table_of_two_ranks(tmp_path: Path) -> None:
    """A row a rank; and the same as JSON, all of it green."""
    done = mpirun(2, [*DOCTOR, "--data-root", str(tmp_path / "root")], timeout=SECS)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(
        r"^ +(\d) (\S+) +(\d) ([\d,]+|none|\d+ CPUs) +([\d,]+|-) +(\d+) +(\d+) MB  (.+)$", done.stdout, re.M
    )
    assert [(rank, host, local) for rank, host, local, *_ in rows] == [
        (rank, os.uname().nodename, rank) for rank in ("0", "1")
    ], done.stdout
    name = "Open MPI" if is_open_mpi() else "MPICH"
    assert re.search(rf"^MPI: {name}.*; launcher: {name}'s mpirun$", done.stdout, re.M), done.stdout

    done = mpirun(2, [*DOCTOR, "--data-root", str(tmp_path / "root"), "--json"], timeout=SECS)
    ranks, checks = told(done.stdout)
    assert done.returncode == 0
    assert bad(checks) == {}
    assert [(rank["rank"], rank["host"]) for rank in ranks] == [(0, os.uname().nodename), (1, os.uname().nodename)]
    owned = [cpu for rank in ranks for cpu in rank["cpus"]]
    assert len(owned) == len(set(owned)), "no CPU is two ranks'"
    assert {cpu for rank in ranks for cpu in rank["cpus"]} <= os.sched_getaffinity(0)
    for rank in ranks:
        least, *others = rank["memory_limits"]
        assert least["source"]
        assert all(least["bytes"] <= other["bytes"] for other in others)
        assert 0 < rank["memory_bytes"] < least["bytes"]
        assert rank["library"].startswith(name)
        assert rank["gpus"] == [] or len(rank["numa_node_of_gpu"]) == len(rank["gpus"])


def rank_pids(process: "subprocess.Popen[str]") -> dict[int, int]:
    """Rank → the process of it below this launcher. A rank's own children have its variables too, and come later."""
    found: dict[int, int] = {}
    for child in sorted(psutil.Process(process.pid).children(recursive=True), key=lambda one: one.create_time()):
        try:
            env = child.environ()
        except psutil.Error:  # ended meanwhile
            continue
        number = env.get("OMPI_COMM_WORLD_RANK", env.get("PMI_RANK", ""))
        if number.isdigit() and "doctor" in child.cmdline():
            found.setdefault(int(number), child.pid)
    return found


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.fault
@pytest.mark.parametrize("options", [(), ("--with-ft", "ulfm")], ids=["mpirun", "ulfm"])
def test_a_rank_that_is_stopped_is_named(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The other checks are made without it, and the launch ends, though it never would by itself."""
    if options and not is_open_mpi():
        pytest.skip("an option of Open MPI")
    root = tmp_path / "root"
    root.mkdir()
    process = subprocess.Popen(
        mpirun_command(3, [*DOCTOR, "--data-root", str(root), "--json"], options),
        env=clean_env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    pids: dict[int, int] = {}
    try:
        wait_until(lambda: pids.update(rank_pids(process)) or len(pids) == 3)
        wait_until(lambda: any(root.iterdir()), "it has begun to try the data root")
        os.kill(pids[1], signal.SIGSTOP)
        text, _ = process.communicate(timeout=SECS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1, text
    _, checks = told(text)
    assert bad(checks) == {"silence": "fail"}
    (silence,) = [one for one in checks if one["check"] == "silence"]
    assert silence["text"].startswith(f"rank 1 on {os.uname().nodename} did not answer in time")
    assert {"task", "idle CPU", "messages", "data root", "speed"} <= {one["check"] for one in checks}
    wait_until(lambda: not psutil.pid_exists(pids[1]), "it has gone with the launcher")
    assert not list(root.iterdir()), "it leaves nothing"


@pytest.mark.skipif(odd_filesystem.why_not() != "", reason=odd_filesystem.why_not())
@pytest.mark.parametrize(
    ("trait", "check", "level", "text", "advice"),
    [
        ("no-links", "links", "warn", "the file system has no hard links", "results are copied"),
        (
            "no-directory-renames",
            "rename",
            "fail",
            "directories don't move whole",
            "use a file system with POSIX names",
        ),
        ("renames-copy", "rename", "fail", "files and directories don't move whole", "use a file system with POSIX"),
        ("not-exclusive", "exclusive creation", "fail", "a file that exists can be created again", "NFS 3 or later"),
    ],
)
def test_a_file_system_that_lacks_something(
    tmp_path: Path, trait: str, check: str, level: str, text: str, advice: str
) -> None:
    with odd_filesystem.mounted(tmp_path / "odd", trait) as directory:
        done = alone(directory / "root", "--json")
    _, checks = told(done.stdout)
    assert bad(checks) == {check: level}
    (found,) = [one for one in checks if one["check"] == check]
    assert text in found["text"]
    assert advice in found["advice"]
    assert done.returncode == (1 if level == "fail" else 0)


@pytest.mark.skipif(odd_filesystem.why_not() != "", reason=odd_filesystem.why_not())
def test_a_file_system_that_lacks_nothing(tmp_path: Path) -> None:
    """What the tests above mount is odd in one thing only."""
    with odd_filesystem.mounted(tmp_path / "odd") as directory:
        done = alone(directory / "root", "--json")
    assert bad(told(done.stdout)[1]) == {}
    assert done.returncode == 0
