"""One script, all its launches: the same rows, exit codes and errors."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests.launch import clean_env, is_open_mpi, launcher, mpirun_command

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")]

RUN = [sys.executable, "-m", "smallpond_mpi", "run"]
LAUNCHES: dict[str, Callable[[list[str]], list[str]]] = {
    "python": lambda script: [sys.executable, *script],
    "mpirun -n 1 python": lambda script: mpirun_command(1, [sys.executable, *script]),
    "mpirun -n 2 python": lambda script: mpirun_command(2, [sys.executable, *script]),
    "mpirun -n 4 python": lambda script: mpirun_command(4, [sys.executable, *script]),
    "mpirun -n 3 run": lambda script: mpirun_command(3, [*RUN, *script]),
    "run": lambda script: [*RUN, *script],
    "run -n 1": lambda script: [*RUN, "-n", "1", *script],
    "run -n 3": lambda script: [*RUN, "-n", "3", *script],
}
ONE_OF_EACH = ["python", "mpirun -n 2 python", "mpirun -n 3 run", "run -n 3"]
SECS = 120.0

BESIDE = """
import pyarrow as pa

def double(table):
    return pa.table({"a": table["a"], "b": [2 * value for value in table["a"].to_pylist()]})
"""
SCRIPT = """
import os, sys
import smallpond_mpi as sp
import beside

print("top", flush=True)
STEP = 3

def add_step(row):
    return {"a": row["a"], "c": row["b"] + STEP}

class Custom(Exception):
    pass

session = sp.init(data_root=os.environ["DATA_ROOT"], progress="none")
numbers = session.from_items([{"a": number} for number in range(100)]).repartition(4, hash_by="a")
rows = numbers.map_batches(beside.double, batch_size=7).map(add_step).filter("a % 2 = 0").take_all()
print("rows", sorted((row["a"], row["c"]) for row in rows))
print("args", sys.argv[1:], __name__, os.path.isabs(__file__), sys.path[0] == os.path.dirname(__file__), flush=True)
what = sys.argv[1] if len(sys.argv) > 1 else ""
if what == "exit":
    sys.exit(3)
if what == "say":
    sys.exit("a last word")
if what == "raise":
    raise Custom("boom")
if what == "stdin":
    print("stdin", sys.stdin.read())
if what == "init":
    sp.init()
if what == "program":
    import subprocess
    print("program", subprocess.run([sys.executable, "-c", "import smallpond_mpi"]).returncode)
    path = os.path.join(os.environ["DATA_ROOT"], "helper.py")
    with open(path, "w") as file:
        file.write("import smallpond_mpi")
    print("helper", subprocess.run([sys.executable, path]).returncode)
if what == "kill a rank":
    import psutil
    me = psutil.Process()
    others = [child for child in me.parent().children() if child.pid != me.pid]
    others[0].kill()
    others[0].wait() if others[0].ppid() == me.pid else psutil.wait_procs(others[:1], timeout=30)
    print("after", session.from_items([{"a": 1}, {"a": 2}]).repartition(2, by_rows=True).map("a + 1 as a").take_all())
if what == "sleep":
    import time
    with open(sys.argv[2], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
"""
ROWS = f"rows {[(number, 2 * number + 3) for number in range(0, 100, 2)]}"

BY_VALUE = """
import os
import pyarrow as pa
import pyarrow.compute as pc
import smallpond_mpi as sp
from smallpond_mpi.execution.manager import JobManager
from smallpond_mpi.execution.task import ArrowComputeTask
from smallpond_mpi.logical.dataset import ArrowTableDataSet
from smallpond_mpi.logical.node import ArrowComputeNode, Context, DataSourceNode, EvenlyDistributedPartitionNode, LogicalPlan
import modest

def triple(table):
    return pa.table({"a": pc.multiply(table["a"], 3), "where": [os.getcwd()] * table.num_rows})

class Triples(ArrowComputeTask):
    def process(self, runtime_ctx, tables):
        return triple(tables[0])

class OfThisScript(ArrowComputeNode):
    def spawn(self, *args, **kwargs):
        return Triples(*args, **kwargs)

def plan(kind):
    ctx = Context()
    rows = DataSourceNode(ctx, ArrowTableDataSet(pa.table({"a": range(8)})))
    return LogicalPlan(ctx, kind(ctx, (EvenlyDistributedPartitionNode(ctx, (rows,), npartitions=8, partition_by_rows=True),)))

def told(name, table):
    print(name, sorted(table["a"].to_pylist()), "there" in map(os.path.basename, table["where"].to_pylist()), flush=True)

if os.environ["KIND"] == "functions":
    session = sp.init(data_root=os.environ["DATA_ROOT"], progress="none")
    os.remove(modest.__file__)
    rows = session.from_items([{"a": number} for number in range(8)]).repartition(8, by_rows=True)
    told("script", rows.map_batches(triple).to_arrow())
    told("beside", rows.map_batches(modest.triple).to_arrow())
else:
    manager = JobManager(data_root=os.environ["DATA_ROOT"])
    told("script", manager.run(plan(OfThisScript)).final_output.to_arrow_table())
    os.remove(modest.__file__)
    told("beside", manager.run(plan(modest.OfAModule)).final_output.to_arrow_table())
"""
MODEST = """
import os
import pyarrow as pa
import pyarrow.compute as pc
from smallpond_mpi.execution.task import ArrowComputeTask
from smallpond_mpi.logical.node import ArrowComputeNode

def triple(table):
    return pa.table({"a": pc.multiply(table["a"], 3), "where": [os.getcwd()] * table.num_rows})

class Triples(ArrowComputeTask):
    def process(self, runtime_ctx, tables):
        return triple(tables[0])

class OfAModule(ArrowComputeNode):
    def spawn(self, *args, **kwargs):
        return Triples(*args, **kwargs)
"""
WAITING = """
import os, time
import psutil
import smallpond_mpi as sp

def slow(table):
    time.sleep(4)
    return table

def shares(wait):
    ranks = psutil.Process().parent().children() if os.environ["RANKS"] != "1" else [psutil.Process()]
    began, used = time.monotonic(), [sum(rank.cpu_times()[:2]) for rank in ranks]
    wait()
    secs = time.monotonic() - began
    return [round((sum(rank.cpu_times()[:2]) - before) / secs, 4) for rank, before in zip(ranks, used)]

session = sp.init(data_root=os.environ["DATA_ROOT"], progress="none")
one = session.from_items([1])
one.map_batches(lambda table: table).count()
print("a task that sleeps", *shares(lambda: one.map_batches(slow).count()))
print("the script sleeps", *shares(lambda: time.sleep(4)))
"""


class Launched:
    """Runs the script in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.script = directory / "script.py"
        self.script.write_text(SCRIPT)
        (directory / "beside.py").write_text(BESIDE)
        self.elsewhere = directory / "elsewhere"
        self.elsewhere.mkdir()
        self.env = clean_env({"DATA_ROOT": str(directory / "data")})

    def by(
        self, launch: str, args: Sequence[str] = (), script: Path | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.command(LAUNCHES[launch]([str(script or self.script), *args]), stdin)

    def command(self, command: list[str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(command, subprocess.DEVNULL if stdin is None else subprocess.PIPE)
        try:
            out, err = process.communicate(stdin, timeout=SECS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"{command} did not end in {SECS} s\n{out}\n{err}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def start(self, command: list[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=self.env,
            cwd=self.elsewhere,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def write(self, text: str) -> Path:
        path = self.directory / "other.py"
        path.write_text(text)
        return path


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    return Launched(tmp_path)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_every_launch_gives_the_same_rows(launched: Launched, launch: str) -> None:
    run = launched.by(launch, ["-n", "5", "--keep", "--help"])
    assert run.returncode == 0, run.stderr
    assert ROWS in run.stdout.splitlines()
    assert "args ['-n', '5', '--keep', '--help'] __main__ True True" in run.stdout.splitlines()


@pytest.mark.parametrize("kind", ["functions", "tasks"])
def test_code_of_the_script_and_beside_it_travels_by_value(launched: Launched, kind: str) -> None:
    """To workers in another working directory, when the module's file is there no more."""
    (launched.directory / "modest.py").write_text(MODEST)
    launched.env["KIND"] = kind
    script = [sys.executable, "-B", str(launched.write(BY_VALUE))]
    there = launched.directory / "there"
    there.mkdir()
    run = launched.command([*mpirun_command(1, script), ":", "-n", "2", "-wdir", str(there), *script])
    assert run.returncode == 0, run.stderr
    tripled = [3 * number for number in range(8)]
    for name in ("script", "beside"):
        assert f"{name} {tripled} True" in run.stdout.splitlines()


@pytest.mark.parametrize(("launch", "n"), [("python", 1), ("mpirun -n 4 python", 4)])
def test_ranks_that_wait_use_less_than_a_twentieth_of_a_core(launched: Launched, launch: str, n: int) -> None:
    """By processor time, which the load of the machine doesn't change: ranks without work, and those that have given theirs to a child."""
    launched.env["RANKS"] = str(n)
    run = launched.by(launch, script=launched.write(WAITING))
    assert run.returncode == 0, run.stderr
    for line in ("a task that sleeps", "the script sleeps"):
        shares = run.stdout.partition(line)[2].splitlines()[0].split()
        assert len(shares) == n, run.stdout
        assert max(map(float, shares)) < 0.05, run.stdout


@pytest.mark.parametrize(("launch", "tops"), [("mpirun -n 2 python", 2), ("mpirun -n 3 run", 1), ("run -n 3", 1)])
def test_under_run_one_rank_alone_opens_the_script(launched: Launched, launch: str, tops: int) -> None:
    assert launched.by(launch).stdout.splitlines().count("top") == tops


@pytest.mark.parametrize("launch", ONE_OF_EACH)
@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("exit", 3, ""),
        ("say", 1, "a last word"),
        ("raise", 1, "Custom: boom"),
        ("init", 1, "init() was called before"),
    ],
)
def test_exit_codes_come_through(launched: Launched, launch: str, what: str, code: int, said: str) -> None:
    run = launched.by(launch, [what])
    assert run.returncode == code, run.stderr
    assert said in run.stderr
    assert ROWS in run.stdout.splitlines()


def test_a_traceback_is_the_scripts_alone(launched: Launched) -> None:
    python, ours = launched.by("python", ["raise"]), launched.by("run", ["raise"])
    assert ours.stderr == python.stderr
    assert ours.stderr.startswith("Traceback")


@pytest.mark.parametrize("launch", ["mpirun -n 2 python", "mpirun -n 3 run", "run -n 3"])
def test_a_script_that_never_calls_init_is_an_error(launched: Launched, launch: str) -> None:
    run = launched.by(launch, script=launched.write("import smallpond_mpi\nprint('done')\n"))
    assert run.returncode == 1
    assert "done" in run.stdout
    assert run.stderr.count("never called smallpond_mpi.init()") == 1
    assert "other.py" in run.stderr


@pytest.mark.parametrize("launch", ["python", "run"])
def test_alone_a_script_need_not_call_init(launched: Launched, launch: str) -> None:
    run = launched.by(launch, script=launched.write("import smallpond_mpi\nprint('done')\n"))
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("launch", ["mpirun -n 3 run", "run -n 3"])
@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("import sys\nsys.exit(7)\n", 7, ""),
        ("raise KeyError('early')\n", 1, "KeyError: 'early'"),
        ("def f(:\n", 1, "SyntaxError"),
    ],
)
def test_a_script_that_ends_before_init_takes_all_ranks_with_it(
    launched: Launched, launch: str, text: str, code: int, said: str
) -> None:
    run = launched.by(launch, script=launched.write(text))
    assert run.returncode == code, run.stderr
    assert said in run.stderr
    assert "never called" not in run.stderr


@pytest.mark.parametrize("launch", ["mpirun -n 3 run", "run", "run -n 3"])
def test_a_missing_script_is_one_error(launched: Launched, launch: str) -> None:
    run = launched.by(launch, script=launched.directory / "missing.py")
    assert run.returncode == 2
    assert run.stderr.count("there is no script") == 1
    assert "missing.py" in run.stderr


@pytest.mark.parametrize("launch", ["run", "run -n 3"])
def test_the_script_reads_stdin(launched: Launched, launch: str) -> None:
    assert "stdin some words" in launched.by(launch, ["stdin"], stdin="some words").stdout


def test_programs_that_a_script_starts_are_no_ranks(launched: Launched) -> None:
    run = launched.by("mpirun -n 2 python", ["program"])
    assert run.returncode == 0, run.stderr
    assert {"program 0", "helper 0"} <= set(run.stdout.splitlines())


@pytest.mark.parametrize("arguments", [["--nonsense", "script.py"], []])
def test_a_wrong_command_line_ends_all_ranks(launched: Launched, arguments: list[str]) -> None:
    run = launched.command(mpirun_command(3, [*RUN, *arguments]))
    assert run.returncode == 2
    assert run.stderr.count("Usage: smallpond-mpi run") == 1


@pytest.mark.fault
@pytest.mark.skipif(not is_open_mpi(), reason="only Open MPI goes on after a death")
def test_a_dead_rank_costs_run_nothing_but_its_attempts(launched: Launched) -> None:
    run = launched.by("run -n 3", ["kill a rank"])
    assert run.returncode == 0, run.stderr
    assert "after [{'a': 2}, {'a': 3}]" in run.stdout.splitlines()


BREAKS = """
import os
import smallpond_mpi as sp
from smallpond_mpi.execution.executor.core import ExecutorCore

def fails(self, event, now):
    raise LookupError("a mistake of the executor")

if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "1":
    ExecutorCore.handle = fails
session = sp.init(data_root=os.environ["DATA_ROOT"], progress="none")
print(session.from_items([1, 2, 3]).repartition(3, by_rows=True).map(lambda row: row).count())
"""


@pytest.mark.fault
@pytest.mark.parametrize("launch", ["mpirun -n 2 python", "mpirun -n 4 python"])
def test_an_exception_on_a_rank_ends_the_job_with_its_traceback(launched: Launched, launch: str) -> None:
    run = launched.by(launch, script=launched.write(BREAKS))
    assert run.returncode != 0
    assert "LookupError: a mistake of the executor" in run.stderr
    assert "in fails\n" in run.stderr
    assert re.search(rf"rank 1\b.*{re.escape(socket.gethostname())}", run.stderr), run.stderr


WITHOUT_MPI = """
import os, sys
import smallpond_mpi as sp

session = sp.init(data_root=os.environ["DATA_ROOT"], progress="none")
print(session.from_items([1, 2, 3]).map(lambda row: {"a": 2 * row["item"]}).repartition(2, hash_by="a").count(), "mpi4py" in sys.modules)
try:
    from mpi4py import MPI
except RuntimeError:
    print("there is none")
"""


def test_a_machine_without_mpi_runs_the_script_by_plain_python(launched: Launched) -> None:
    launched.env |= {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}
    run = launched.by("python", script=launched.write(WITHOUT_MPI))
    assert run.stdout.splitlines() == ["3 False", "there is none"], run.stderr


@pytest.mark.fault
@pytest.mark.skipif(not is_open_mpi(), reason="only Open MPI leaves a directory named by its process id")
def test_what_a_killed_mpirun_left_under_our_process_id_is_no_hindrance(launched: Launched) -> None:
    sessions = Path(launched.env["PRTE_MCA_prte_tmpdir_base"])
    killed = launched.start(mpirun_command(1, ["sleep", "600"]))
    left = sessions / f"ompi.{killed.pid}"
    wait_until(lambda: left.exists() and len(psutil.Process(killed.pid).children()) == 1)
    sleeper = psutil.Process(killed.pid).children()[0]
    killed.kill()
    sleeper.kill()
    killed.communicate(timeout=SECS)
    assert left.exists()
    plain = ["bash", "-c", f'cp -a {left} {sessions}/ompi.$$; exec "$@"', "bash"]
    assert (
        launched.command([*plain, *mpirun_command(1, ["true"])]).returncode != 0
    )  # or there is nothing to guard against
    run = launched.command([*plain, *LAUNCHES["run -n 3"]([str(launched.script)])])
    assert run.returncode == 0, run.stderr
    assert ROWS in run.stdout.splitlines()


@pytest.mark.fault
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_run_ends_all_ranks(launched: Launched, signum: signal.Signals) -> None:
    pid_file = launched.directory / "pid"
    process = launched.start(LAUNCHES["run -n 3"]([str(launched.script), "sleep", str(pid_file)]))
    wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
    rank = psutil.Process(int(pid_file.read_text()))
    ranks = rank.parent().children() if rank.parent() is not None else [rank]
    process.send_signal(signum)
    out, err = process.communicate(timeout=SECS)
    assert process.returncode != 0, out + err
    gone, alive = psutil.wait_procs(ranks, timeout=SECS)
    assert len(gone) == 3
    assert not alive
