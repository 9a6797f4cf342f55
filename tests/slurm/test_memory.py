"""Memory that Slurm constrains: the job's limit is the ranks' own, and a task that takes more than it asked for is ended by its rank, not by the kernel."""

import re
import shutil
from pathlib import Path

import pytest

from tests.launch import is_open_mpi, launcher
from tests.slurm.cluster.cluster import Cluster
from tests.slurm.jobs import batch

pytestmark = pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")

SRUN = "srun --mpi=pmix" if is_open_mpi() else "srun --mpi=pmi2"


@pytest.mark.parametrize(
    ("launch", "options"),
    [("mpirun -n 2", ["-N1", "-n2", "--mem=900"]), (SRUN, ["-N2", "-n2", "--mem=600"])],
    ids=["mpirun", "srun"],
)
def test_fifty_tasks_that_take_twice_what_they_asked_for(
    cluster: Cluster, shared: Path, launch: str, options: list[str]
) -> None:
    """Slurm would report OUT_OF_MEMORY if the kernel had killed anything, whatever the job's exit code."""
    shutil.copy(Path(__file__).with_name("memory.py"), shared)
    ended = batch(cluster, shared, f"{launch} python memory.py 50 50 100", options)
    assert "rows: 50" in ended.output
    again = re.search(r"(\d+) attempts failed: out of memory (\d+)", ended.output)
    assert again is not None, ended.output
    assert again[1] == again[2]
    assert int(again[1]) < 25, "those that started later were given what the first ones took"


def test_a_task_may_take_all_that_there_is_for_tasks(cluster: Cluster, shared: Path) -> None:
    """Of 600 MB: what a task that names none is given, it can use."""
    shutil.copy(Path(__file__).with_name("memory.py"), shared)
    ended = batch(cluster, shared, "python memory.py 2 390 370", ["-n1", "--mem=600"])
    assert "rows: 2" in ended.output
    assert "failed" not in ended.output


HOLDS = """
import os
import pyarrow as pa
import smallpond_mpi
from smallpond_mpi.logical.node import ArrowComputeNode

def take(ctx, tables):
    held = []
    for _ in range(int(ctx.task.memory_limit * 0.85) >> 23):
        held.append(b"\\x01" * (8 << 20))
    return tables[0]

mine = bytearray(b"\\x01") * (300 << 20)
sp = smallpond_mpi.init(data_root=os.path.abspath("root"))
items = sp.from_arrow(pa.table({"n": list(range(4))})).repartition(4, by_rows=True)
print("rows:", smallpond_mpi.DataFrame(sp, ArrowComputeNode(sp._ctx, (items.plan,), process_func=take)).count(), len(mine))
"""


def test_what_the_script_holds_is_not_granted(cluster: Cluster, shared: Path) -> None:
    """Of 800 MB the script has 300: tasks that name no limit may take what is left, and the kernel kills nothing."""
    (shared / "holds.py").write_text(HOLDS)
    ended = batch(cluster, shared, "python holds.py", ["-n1", "--mem=800"])
    assert "rows: 4 314572800" in ended.output
    assert "failed" not in ended.output
