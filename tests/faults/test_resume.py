"""A job that is started again runs what was changed and what is below it, and nothing else. Each change is made to a real script."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.jobs import Job, wait_for

pytestmark = pytest.mark.fault

HERE = Path(__file__).parent
HELPERS = """
def scaled(value):
    return value * SCALE


def unused(value):
    return value


SCALE = 7
"""
SCRIPT = (HERE / "resume_script.py").read_text()
ALL = {"f", "g", "h", "drawn"}


class Resumed:
    """A job whose first run went through, but was never brought to its end."""

    def __init__(self, one: Job, place: Path) -> None:
        self.job = one
        self.place = place
        self.place.mkdir()
        self.inputs = self.place / "in"
        self.inputs.mkdir()
        for number in range(2):
            write_rows(self.inputs / f"{number}.parquet", range(number * 10, number * 10 + 10))
        one.script = self.place / "script.py"
        assert self.run() == ALL

    def run(self, script: str = SCRIPT, helpers: str = HELPERS, **env: str) -> set[str]:
        """Which of the functions were called."""
        self.job.script.write_text(script)
        (self.place / "resume_helpers.py").write_text(helpers)
        for path in self.job.notes.iterdir():
            path.unlink()
        code = self.job.run(FAULTS_IN=str(self.inputs), PYTHONDONTWRITEBYTECODE="1", **env)
        assert code == 9, self.job.stderr
        self.result = (self.job.notes / "result").read_text()
        return {path.name for path in self.job.notes.iterdir()} - {"result"}


def write_rows(path: Path, values: range) -> None:
    pq.write_table(pa.table({"k": list(values), "v": list(values)}), path)


@pytest.fixture
def resumed(job: Callable[..., Job], tmp_path: Path) -> Resumed:
    return Resumed(job(), tmp_path / "script")


def changed(old: str, new: str) -> str:
    assert SCRIPT.count(old) == 1, f"{old!r} is {SCRIPT.count(old)} times in the script"
    return SCRIPT.replace(old, new)


def test_nothing_that_means_nothing_reruns(resumed: Resumed) -> None:
    first = resumed.result
    assert resumed.run() == set()
    assert resumed.result == first
    comments = SCRIPT.replace("import os\n", "# a comment\n\n\nimport os  # another\n").replace(
        '    note("f")\n', '    """A docstring."""\n\n    # a comment\n    note("f")\n'
    )
    assert resumed.run(comments) == set()
    assert (
        resumed.run(helpers='"""Documented."""\n\n\n' + HELPERS.replace("value * SCALE", "value * SCALE  # so"))
        == set()
    )
    assert resumed.run(helpers=HELPERS.replace("    return value\n\n\nSCALE", "    return -value\n\n\nSCALE")) == set()
    assert resumed.run(PYTHONHASHSEED="17") == set()
    assert resumed.result == first


def test_what_a_function_uses_is_part_of_it(resumed: Resumed) -> None:
    first = resumed.result
    assert resumed.run(changed('helper(row["v"]) * 2', 'helper(row["v"]) * 3')) == {"f", "g"}, "a constant"
    assert resumed.result != first
    assert resumed.run(changed("make_g(5)", "make_g(6)")) == {"g"}, "a closure value"
    assert resumed.run(changed("offset=0", "offset=1")) == {"g"}, "a default"
    assert resumed.run(changed("return value + 1", "return value + 2")) == {"f", "g"}, "a function that is called"
    assert resumed.run(changed("NUMBER = 3", "NUMBER = 4")) == {"h"}, "a global value"
    assert resumed.run(helpers=HELPERS.replace("SCALE = 7", "SCALE = 8")) == {"h"}, (
        "a global of a module beside the script"
    )
    assert resumed.run(helpers=HELPERS.replace("value * SCALE", "SCALE - value")) == {"h"}, "a function of that module"
    assert resumed.run() == set(), "the first script again: its results are still there"
    assert resumed.result == first


def test_what_a_node_is_told_is_part_of_it(resumed: Resumed) -> None:
    first = resumed.result
    assert resumed.run(changed("v % 10 as v", "v % 9 as v")) == {"h"}, "SQL"
    assert resumed.run(changed('2, hash_by="k"', '3, hash_by="k"')) == {"g"}, "a number of partitions"
    before = changed("    below =", '    source.map("v").limit(1).compute()\n    below =')
    assert resumed.run(before) == set(), "a node before them: the ids of all others move"
    assert resumed.result == first
    assert resumed.run(changed("sp.init()", "sp.init(random_seed=5)")) == ALL, "another seed: other random numbers"
    assert resumed.result != first
    seeded = resumed.result
    assert resumed.run(changed("sp.init()", "sp.init(random_seed=5)")) == set()
    assert resumed.result == seeded


def test_input_files_that_change_are_read_again(resumed: Resumed) -> None:
    first = resumed.result
    one = resumed.inputs / "0.parquet"
    status = one.stat()
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert resumed.run() == ALL, "a file that was touched"
    assert resumed.run() == set()
    write_rows(one, range(50, 60))
    assert resumed.run() == ALL, "other rows"
    assert resumed.result != first
    write_rows(resumed.inputs / "2.parquet", range(100, 101))
    assert resumed.run() == ALL, "another file"
    (resumed.inputs / "2.parquet").unlink()
    assert resumed.run() == set(), "as it was before that"


def test_outputs_that_are_gone_are_made_again(resumed: Resumed) -> None:
    first = resumed.result
    staging = Path(resumed.job.paths.staging)
    for path in staging.glob("ArrowComputeTask.*"):
        shutil.rmtree(path)
    assert resumed.run() == {"g", "h", "drawn"}, (
        "g's partitions, made from f's rows, are still there: f's rows are not needed"
    )
    assert resumed.result == first, "the seed is that of the first run"
    assert resumed.run() == set()
    shutil.rmtree(staging)
    assert resumed.run() == ALL
    assert resumed.result == first


NAMED = """
import os
import time

import smallpond_mpi as sp
from smallpond_mpi.logical.node import ArrowComputeNode

NOTES = os.environ["FAULTS_NOTES"]


def named(ctx, tables):
    first = tables[0]["k"][0].as_py()
    while first >= 15 and not os.path.exists(os.path.join(NOTES, "go")):
        time.sleep(0.05)
    return tables[0]


def read_on(ctx, tables):
    return tables[0]


s = sp.init(speculative_exec="disable")
rows = s.read_parquet(os.environ["FAULTS_IN"] + "/*.parquet").repartition(4, by_rows=True)
node = ArrowComputeNode(s._ctx, (rows.plan,), process_func=named, output_path=os.environ["FAULTS_NAMED"])
print(sp.DataFrame(s, ArrowComputeNode(s._ctx, (node,), process_func=read_on)).count())
"""


@pytest.mark.parametrize("is_lost", [False, True])
def test_named_results_that_nobody_reads_any_more(job: Callable[..., Job], tmp_path: Path, is_lost: bool) -> None:
    """Three of four were made, and read, when the job died: what was read is a result all the same, and made again if it is gone."""
    inputs, named, script = tmp_path / "numbers", tmp_path / "named", tmp_path / "named.py"
    inputs.mkdir()
    write_rows(inputs / "rows.parquet", range(20))
    script.write_text(NAMED)
    one = job(script=script, env={"FAULTS_IN": str(inputs), "FAULTS_NAMED": str(named)})
    one.start()
    wait_for(lambda: one.n_accepted() == 8, "all but what waits, and its reader")
    one.kill_all()
    if is_lost:
        first = next(path for path in named.rglob("*.parquet") if pq.read_table(path)["k"][0].as_py() == 0)
        shutil.rmtree(first.parent)
    (one.notes / "go").touch()
    one.run_to_success()
    assert sorted(k for path in named.rglob("*.parquet") for k in pq.read_table(path)["k"].to_pylist()) == list(
        range(20)
    )
