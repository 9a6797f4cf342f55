"""Whatever starts the ranks of a batch job, they are one world and give the right rows."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.launch import is_open_mpi, launcher
from tests.slurm.cluster.cluster import Cluster
from tests.slurm.jobs import batch, submit, wait

pytestmark = pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")

PIPELINE = Path(__file__).with_name("pipeline.py")
SRUN = "srun --mpi=pmix" if is_open_mpi() else "srun --mpi=pmi2"
WRONG_SRUN = "srun --mpi=pmi2" if is_open_mpi() else "srun --mpi=none"


def prepare(directory: Path) -> None:
    """The pipeline's program and 20 files of numbers, where all nodes see them."""
    shutil.copy(PIPELINE, directory)
    (directory / "in").mkdir()
    for part in range(20):
        numbers = list(range(part * 500, part * 500 + 500))
        pq.write_table(pa.table({"n": numbers}), directory / "in" / f"part-{part:02d}.parquet")


def rows(directory: Path) -> list[tuple[int, int, int]]:
    table = pq.read_table(directory / "out", columns=["k", "count", "total"])
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))


EXPECTED = sorted((k, len(range(k, 10_000, 7)), sum(range(k, 10_000, 7))) for k in range(7))


@pytest.mark.parametrize(
    ("launch", "options"),
    [
        (f"{SRUN} -n6", ["-N3", "-n6"]),
        ("mpirun -n 6", ["-N3", "-n6"]),
    ],
)
def test_the_rows_are_right(cluster: Cluster, shared: Path, launch: str, options: list[str]) -> None:
    prepare(shared)
    ended = batch(cluster, shared, f"{launch} python pipeline.py in out", [*options, "--mem-per-cpu=1000"])
    assert rows(shared) == EXPECTED, ended.output
    hosts = (shared / "hosts").read_text().split()
    assert len(set(hosts)) == 3, f"tasks ran on {sorted(set(hosts))} only"


def test_a_batch_script_without_a_launcher_is_one_process(cluster: Cluster, shared: Path) -> None:
    prepare(shared)
    ended = batch(cluster, shared, "python pipeline.py in out", ["-N2", "-n4", "--mem=1000"])
    assert rows(shared) == EXPECTED, ended.output
    assert len(set((shared / "hosts").read_text().split())) == 1
    assert "on 1 rank, 2 CPUs" in ended.output


def test_the_wrong_mpi_option_is_named(cluster: Cluster, shared: Path) -> None:
    prepare(shared)
    job = submit(cluster, shared, f"{WRONG_SRUN} -n4 python pipeline.py in out", ["-N2", "-n4", "--mem-per-cpu=500"])
    ended = wait(cluster, job, shared)
    assert ended.state == "FAILED"
    assert ended.output.count("each of them is alone") == 1, ended.output
    assert f"`{SRUN}`, which this library understands" in ended.output
    assert not (shared / "out").exists()
