"""`smallpond-mpi doctor` in jobs: green where all is well, and each of its fails provoked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.launch import is_open_mpi, launcher
from tests.slurm.cluster.cluster import Cluster
from tests.slurm.jobs import batch
from tests.slurm.test_launches import SRUN, WRONG_SRUN

LAUNCH = f"{SRUN} -n3" if is_open_mpi() else "mpirun -n 3 -ppn 1"
"""MPICH's exchange of addresses over Slurm's pmi2 fails now and then in MPI_Init ("value not properly terminated"), which is not the doctor's matter."""

pytestmark = pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")


def said(cluster: Cluster, shared: Path, lines: list[str], options: list[str]) -> list[tuple[int, str]]:
    """(exit code, output) of each line in a job. They may fail: the job does not."""
    body = "\n".join(f"echo '== line'; {line} 2>&1; echo \"== rc $?\"" for line in lines)
    ended = batch(cluster, shared, body, options, timeout=200)
    found = re.findall(r"== line\n(.*?)== rc (\d+)", ended.output, re.DOTALL)
    assert len(found) == len(lines), ended.output
    return [(int(code), text) for text, code in found]


DOCTOR = "python -m smallpond_mpi doctor --data-root"
OF_THE_MACHINE = {"messages", "other work", "clocks"}
"""Checks whose outcome is the test machine's: the three nodes are one, and others may be busy on it."""


def checks(text: str) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """(ranks, check → its levels) of what `--json` printed."""
    assert "{" in text, text
    told = json.loads(text[text.index("{") : text.rindex("}") + 1])
    levels: dict[str, list[str]] = {}
    for check in told["checks"]:
        levels.setdefault(check["check"], []).append(check["level"])
    return told["ranks"], levels


def test_green_on_three_nodes(cluster: Cluster, shared: Path) -> None:
    ((code, text),) = said(
        cluster,
        shared,
        [f"{LAUNCH} {DOCTOR} {shared}/root --json"],
        ["-N3", "--ntasks-per-node=1", "-c2", "--mem=1000"],
    )
    ranks, levels = checks(text)
    assert code == 0, text
    assert {rank["host"] for rank in ranks} == {"n1", "n2", "n3"}
    for name in ("world", "versions", "task", "binding", "DuckDB", "idle CPU", "data root", "space", "speed", "limits"):
        assert levels[name] == ["ok"], text
    assert {level for name in levels.keys() - OF_THE_MACHINE for level in levels[name]} == {"ok"}, text
    assert {"messages", "other work", "clocks"} < levels.keys()
    # what is left of the limit that Slurm gave each node is what the rank has for tasks
    assert all("Slurm" in rank["memory_limits"][0]["source"] for rank in ranks)
    assert {tuple(rank["cpus"]) for rank in ranks} == {(0, 1)}
    assert not list((shared / "root").iterdir()), "it leaves nothing"


MOUNTS = """
set -e
mkdir -p /tmp/ro /tmp/view
mount -t tmpfs -o ro tmpfs /tmp/ro
mount --bind "$1" /tmp/view
if [ $(hostname) = n2 ]; then mount -o remount,ro,bind /tmp/view; fi
"""
"""Run on each node: /tmp/ro is read-only everywhere, /tmp/view is shared by all and can't be written on n2."""


def test_data_roots_that_are_none(cluster: Cluster, shared: Path) -> None:
    (shared / "view").mkdir()
    (shared / "mounts.sh").write_text(MOUNTS)
    each = "srun --mpi=none -N3 --ntasks-per-node=1"
    lines = [
        f"{each} bash mounts.sh {shared}/view",
        f"{LAUNCH} {DOCTOR} /tmp/of-this-node",
        f"{DOCTOR} /tmp/ro/root",
        f"{LAUNCH} {DOCTOR} /tmp/view",
        f"{each} umount /tmp/ro /tmp/view",
    ]
    mounted, unshared, read_only, read_only_there, _ = said(
        cluster, shared, lines, ["-N3", "--ntasks-per-node=1", "--mem=1000"]
    )
    assert mounted[0] == 0, mounted[1]
    assert "FAIL data root: /tmp/of-this-node is not the same directory on n2, n3" in unshared[1]
    assert "FAIL data root: /tmp/ro/root can't be written: [Errno 30] Read-only file system" in read_only[1]
    assert "-> give another one by --data-root" in read_only[1]
    assert "FAIL data root: /tmp/view can't be written on n2: [Errno 30] Read-only file system" in read_only_there[1]
    for code, text in (unshared, read_only, read_only_there):
        assert (code, text.count("FAIL")) == (1, 1), text
    assert not list((shared / "view").iterdir()), "it leaves nothing"


@pytest.mark.parametrize("launch", [WRONG_SRUN, "srun --mpi=none"])
def test_the_wrong_mpi(cluster: Cluster, shared: Path, launch: str) -> None:
    ((code, text),) = said(cluster, shared, [f"{launch} -n3 {DOCTOR} {shared}/root"], ["-N3", "-n3", "--mem=1000"])
    assert code != 0
    assert text.count("FAIL") == text.count("FAIL launch:") == 1, text
    assert "--mpi=pmix" in text


def test_too_little_memory(cluster: Cluster, shared: Path) -> None:
    ((code, text),) = said(cluster, shared, [f"{DOCTOR} {shared}/root"], ["-n1", "--mem=300"])
    assert code == 1
    assert re.search(r"FAIL memory: at least 1[45]\d MB a rank for tasks", text), text
    assert "-> ask for more (--mem, --mem-per-cpu)" in text


@pytest.mark.skipif(not is_open_mpi(), reason="MPICH over UCX, without libfabric, does not start by srun every time")
def test_ranks_bound_to_one_core(cluster: Cluster, shared: Path) -> None:
    """Of the two that the job has there."""
    line = f"{SRUN} -n2 --cpu-bind=map_cpu:0,0 {DOCTOR} {shared}/root"
    ((code, text),) = said(cluster, shared, [line], ["-N1", "-n2", "--mem=1000"])
    assert code == 1
    assert re.search(r"FAIL binding: ranks \[0, 1\] on n\d are bound to the same CPUs \[0\]", text), text
    assert "-> leave out --cpu-bind" in text


def test_more_ranks_than_cores(cluster: Cluster, shared: Path) -> None:
    line = f"python -m smallpond_mpi doctor -n 3 --data-root {shared}/root"
    ((code, text),) = said(cluster, shared, [line], ["-n1", "--mem=2000"])
    assert code == 1
    assert "FAIL placement: several ranks share CPUs on n" in text
