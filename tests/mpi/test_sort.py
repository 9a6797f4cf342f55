"""DataFrame.sort as a script, by python and mpirun: DuckDB's ORDER BY, whoever runs it, while children die and memory is short."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.launch import clean_env, launcher, mpirun

RANKS = [
    1,
    pytest.param(3, marks=[pytest.mark.mpi, pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")]),
]  # fmt: skip

SCRIPT = """
import os, random, signal, sys
import smallpond_mpi as sp

data, out = sys.argv[1:]
session = sp.init(progress="none")
rows = session.read_parquet(f"{data}/*.parquet")

def passed_on(table):
    marker = os.path.join(out, "died")
    if not os.path.exists(marker):
        os.close(os.open(marker, os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)
    return table

os.makedirs(out)
rows.sort(["s", "i"], descending=[True, False], nulls_last=[False, True], npartitions=7).write_parquet(f"{out}/sorted")
by_two = rows.map_batches(passed_on).sort(["f", "i desc"], npartitions=5)
print("first", by_two.filter("f is not null").take(3))
print("partitions", [dataset.num_rows for dataset in by_two._datasets()])
print("in order", by_two.to_arrow().column("i").to_pylist() == rows.sort(["f", "-i"], npartitions=1).to_arrow().column("i").to_pylist())
print("by default", rows.sort("i").to_arrow().column("i").to_pylist() == list(range(5000)))
print("of nothing", rows.filter("i < 0").sort("i", npartitions=3).count())
try:
    rows.sort("nope").compute()
except sp.common.ColumnNotFound as error:
    print("error", str(error).splitlines()[0])
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """5,000 rows in four files: text, floats with NaN, both with NULLs, and a number each."""
    place = tmp_path / "data"
    place.mkdir()
    texts = ["", "a", "https://example.com/", "é", None]
    for number in range(4):
        numbers = list(range(number, 5000, 4))
        table = {
            "i": numbers,
            "s": pa.array([texts[i % 5] and f"{texts[i % 5]}{i % 37}" for i in numbers]),
            "f": pa.array([None if i % 11 == 0 else float("nan") if i % 13 == 0 else (i * 7919 % 501) / 2 for i in numbers]),
        }  # fmt: skip
        pq.write_table(pa.table(table), place / f"{number}.parquet", row_group_size=300)
    return place


@pytest.mark.parametrize("ranks", RANKS)
def test_a_script_that_sorts(tmp_path: Path, data: Path, ranks: int) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(data), str(out)]
    env = {"SP_DATA_ROOT": str(tmp_path / "root")}
    if ranks == 1:
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean_env(env), check=False)
    else:
        run = mpirun(ranks, command, env)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    query = f"select * from '{data}/*.parquet' where f is not null order by f, i desc limit 3"
    assert lines[0] == f"first {duckdb.sql(query).to_arrow_table().to_pylist()}"
    counts = [int(count) for count in lines[1].removeprefix("partitions [").rstrip("]").split(", ")]
    assert len(counts) == 5
    assert sum(counts) == 5000
    assert max(counts) < 2000
    assert lines[2] == "in order True"
    assert lines[3] == "by default True"
    assert lines[4] == "of nothing 0"
    assert lines[5].startswith(f"error no column 'nope' to sort by; the columns: i, s, f (at {script}:")

    expected = duckdb.sql(f"from '{data}/*.parquet' order by s desc nulls first, i").fetchall()
    found = []
    for path in sorted((out / "sorted").glob("*.parquet")):
        found += duckdb.sql(f"from '{path}'").fetchall()
    assert repr(found) == repr(expected)
