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


def test_ranks_of_three_nodes(cluster: Cluster, shared: Path) -> None:
    doctor = "python -m smallpond_mpi doctor --data-root"
    green, unshared, unwritable, wrong = said(
        cluster,
        shared,
        [
            f"{LAUNCH} {doctor} {shared}/root --json",
            f"{LAUNCH} {doctor} /tmp/of-this-node",
            f"{LAUNCH} {doctor} /dev/null/root",
            f"{WRONG_SRUN} -n3 {doctor} {shared}/root",
        ],
        ["-N3", "--ntasks-per-node=1", "--mem=1000"],
    )
    code, text = green
    seen: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert code == 0, text
    assert {rank["host"] for rank in seen["ranks"]} == {"n1", "n2", "n3"}
    # how fast messages are is the machine's matter: the three nodes are one, and others may be busy on it
    assert {check["level"] for check in seen["checks"] if check["check"] != "messages"} == {"ok"}, text
    # what is left of the limit that Slurm gave each node is what the rank has for tasks
    assert all("Slurm" in rank["memory_limits"][0]["source"] for rank in seen["ranks"])
    assert not list((shared / "root").iterdir()), "it leaves nothing"

    assert unshared[0] == unwritable[0] == 1
    assert "FAIL data root: /tmp/of-this-node is not the same directory on n2, n3" in unshared[1]
    assert "FAIL data root: /dev/null/root can't be written" in unwritable[1]
    assert "-> give another one by --data-root" in unwritable[1]

    assert wrong[0] != 0
    assert "FAIL launch:" in wrong[1]
    assert "--mpi=pmix" in wrong[1]


def test_too_little_memory(cluster: Cluster, shared: Path) -> None:
    ((code, text),) = said(
        cluster, shared, [f"python -m smallpond_mpi doctor --data-root {shared}/root"], ["-n1", "--mem=300"]
    )
    assert code == 1
    assert re.search(r"FAIL memory: at least 1[45]\d MB a rank for tasks", text), text
    assert "-> ask for more (--mem, --mem-per-cpu)" in text


def test_more_ranks_than_cores(cluster: Cluster, shared: Path) -> None:
    line = f"python -m smallpond_mpi doctor -n 3 --data-root {shared}/root"
    ((code, text),) = said(cluster, shared, [line], ["-n1", "--mem=2000"])
    assert code == 1
    assert "FAIL placement: several ranks share CPUs on n" in text
