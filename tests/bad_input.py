"""What every launch does with bad input: one clear error with the line of the script, a code that is not 0, nothing left behind.

A class of tests for each number of ranks is made from BadInput; `ranks` of 1 is plain python.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from smallpond_mpi.cli.status import all_jobs, lines
from smallpond_mpi.execution.paths import job_uuid
from tests.bad_input_files import make
from tests.bad_input_program import CASES
from tests.launch import clean_env, is_open_mpi, mpirun_command

PROGRAM = Path(__file__).with_name("bad_input_program.py")
PACKAGE = re.compile(r'File "[^"]*/smallpond_mpi/')
NOT_STARTED = "The PMIx server's listener thread failed to start"
"""Open MPI's mpirun says this now and then when several of them start at one time on a machine, and has started nothing."""
LAUNCHER_STARTS = 3
TIMEOUT_SECS = 60.0
SESSION_TIMEOUT_SECS = 200.0
MOST_SECS = 30.0
"""Of one error in a session that runs already, on a machine however busy: none waits for anything."""

# Each kind of bad input that docs promise an error for (those about init() and the data root have tests of their own).
ENDS_THE_SCRIPT = [
    "missing_file",
    "unmatched_pattern",
    "corrupt_footer_counted",
    "truncated_data_by_sql",
    "csv_that_does_not_fit",
    "schemas_that_do_not_fit",
    "unknown_column_in_hash_by",
    "sql_syntax_error",
    "sql_cast_among_other_steps",
    "no_partitions",
    "negative_partitions",
    "ten_million_partitions",
    "lock_in_a_closure",
    "function_that_raises",
    "map_function_of_the_wrong_type",
    "batch_function_with_another_schema_in_one_batch",
    "more_memory_than_the_machine",
    "more_cpus_than_any_rank",
    "more_gpus_than_any_rank",
    "output_path_with_files_of_others",
    "output_path_where_nothing_can_be_made",
    "init_called_twice",
    "mistake_of_the_script_itself",
]


class BadInput:
    """Tests over `ranks` ranks."""

    ranks: ClassVar[int]

    @pytest.fixture(scope="class")
    @classmethod
    def inputs(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make(tmp_path_factory.mktemp("bad") / "inputs")

    @pytest.fixture(scope="class")
    @classmethod
    def reports(cls, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
        """All cases in one session."""
        root = tmp_path_factory.mktemp("session")
        out = root / "reports.jsonl"
        done = cls.launch([PROGRAM, "all", root / "data", inputs, out], timeout=SESSION_TIMEOUT_SECS)
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in out.read_text().splitlines()]
        return {record["case"]: record for record in records}

    @classmethod
    def command(cls, args: Sequence[object]) -> list[str]:
        words = [sys.executable, *map(str, args)]
        return words if cls.ranks == 1 else mpirun_command(cls.ranks, words)

    @classmethod
    @contextmanager
    def started(cls, args: Sequence[object], env: Mapping[str, str] | None = None) -> "Iterator[subprocess.Popen[str]]":
        """A launch in a session of its own, nothing of which is left afterwards."""
        process = subprocess.Popen(
            cls.command(args),
            env=clean_env(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            with process:  # its pipes are closed, whatever the test read of them
                pass

    @classmethod
    def launch(
        cls, args: Sequence[object], env: Mapping[str, str] | None = None, timeout: float = TIMEOUT_SECS
    ) -> "subprocess.CompletedProcess[str]":
        for _ in range(LAUNCHER_STARTS):
            with cls.started(args, env) as process:
                out, err = process.communicate(timeout=timeout)
            if NOT_STARTED not in err:
                break
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    # one session

    @pytest.mark.parametrize("case", CASES)
    def test_the_error_says_what_is_wrong_and_where(self, case: str, reports: dict[str, dict[str, Any]]) -> None:
        record, expected = reports[case], CASES[case]
        text = record["text"]
        assert {kind.__name__ for kind in expected.kinds} <= set(record["kinds"]), text
        assert [word for word in expected.says if word not in text] == [], text
        # either it was raised there, before anything ran, or the text says so
        assert record["lines"][-1] == expected.line or names(text, PROGRAM, expected.line), (record["lines"], text)
        assert PACKAGE.search(text) is None, text
        assert re.search(r"on rank \d+\b(?! \(\w)", text) is None, f"which host that is is not said: {text}"
        assert record["secs"] < MOST_SECS, text

    @pytest.mark.parametrize("case", CASES)
    def test_the_session_works_after_an_error_that_was_caught(
        self, case: str, reports: dict[str, dict[str, Any]]
    ) -> None:
        assert reports[case]["after"] == list(range(0, 20, 2))

    def test_inputs_and_files_of_others_are_as_they_were(
        self, inputs: Path, reports: dict[str, dict[str, Any]]
    ) -> None:
        assert sorted(os.listdir(inputs / "taken")) == ["keep.txt"]
        assert (inputs / "taken" / "keep.txt").read_text() == "mine"
        assert (inputs / "words.csv").read_text().startswith("1,one\n")
        assert [name for name in os.listdir(inputs) if "staging" in name] == []

    def test_nothing_is_no_mistake(self, tmp_path: Path) -> None:
        """No files, no items, no rows: results without rows."""
        script = write_script(
            tmp_path,
            "import pyarrow as pa",
            f"s = sp.init(data_root={str(tmp_path / 'data')!r}, progress='none')",
            "none, empty = s.read_parquet([]), s.from_arrow(pa.table({'a': pa.array([], pa.int64())}))",
            "print(none.count(), none.map('a').take_all(), none.repartition(3, hash_by='a').count())",
            "print(s.from_items([]).count(), s.from_items([]).map('1 as one').take_all())",
            "print(empty.map('a + 1 as b').to_arrow().schema.names, empty.repartition(2, hash_by='a').count())",
            "print(s.from_items([1, 2]).filter('item > 5').map(lambda row: row).take_all())",
            f"empty.write_parquet({str(tmp_path / 'out')!r})",
            f"print(s.read_parquet({str(tmp_path / 'out' / '*.parquet')!r}).to_arrow().schema.names)",
        )
        done = self.launch([script])
        assert done.stdout == "0 [] 0\n0 []\n['b'] 0\n[]\n['a']\n", done.stderr
        assert done.returncode == 0

    # a process each

    @pytest.mark.parametrize("case", ENDS_THE_SCRIPT)
    def test_nothing_caught_it_ends_the_script(self, case: str, inputs: Path, tmp_path: Path) -> None:
        done = self.launch([PROGRAM, case, tmp_path / "data", inputs])
        kind = CASES[case].kinds[0].__name__
        if case == "mistake_of_the_script_itself":
            assert done.returncode == 1
            assert done.stderr.count("ZeroDivisionError: division by zero") == 1, done.stderr
            assert f"line {CASES[case].line}," in done.stderr
        else:
            ends_with_error(done, PROGRAM, CASES[case].line, kind, CASES[case].says)

    # init()

    @pytest.mark.parametrize(
        ("arguments", "env", "kind", "says"),
        [
            ("nonsense=3", {}, "InvalidArgument", ("no argument nonsense", "job_id")),
            ("max_fail_count='many'", {}, "InvalidArgument", ("max_fail_count='many'", "int")),
            ("speculative_exec='maybe'", {}, "InvalidArgument", ("disable, enable, aggressive",)),
            ("", {"SP_JOB_TIME": "yesterday"}, "InvalidArgument", ("SP_JOB_TIME='yesterday'", "ISO|seconds")),
            ("", {"SP_BIND_NUMA_NODE": "perhaps"}, "InvalidArgument", ("SP_BIND_NUMA_NODE='perhaps'", "bool")),
            ("", {"SP_NUM_EXECUTORS": "2.5"}, "InvalidArgument", ("SP_NUM_EXECUTORS='2.5'", "int")),
            ("", {"SP_DATA_ROOT": "/proc/nowhere/data"}, "DataRootUnusable", ("/proc/nowhere/data", "SP_DATA_ROOT")),
            (
                "data_root=__file__ + '/data'",
                {},
                "DataRootUnusable",
                ("script.py/data", "Not a directory", "data_root="),
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else next(iter(value), "") if isinstance(value, dict) else "",
    )
    def test_init_refuses(
        self, arguments: str, env: dict[str, str], kind: str, says: tuple[str, ...], tmp_path: Path
    ) -> None:
        env = {"SP_DATA_ROOT": str(tmp_path / "data"), **env} if "data_root" not in arguments else env
        script = write_script(tmp_path, f"sp.init({arguments})  # HERE")
        ends_with_error(self.launch([script], env), script, line_of(script), kind, says)

    def test_a_script_that_never_calls_init(self, tmp_path: Path) -> None:
        """Alone it is any script that imports the package; each of several ranks has done all of it, which nobody can have meant."""
        script = write_script(tmp_path, "print('done by one process')")
        done = self.launch([script])
        # when rank 0 has failed the launcher ends those that are not done yet
        assert 1 <= done.stdout.count("done by one process") <= self.ranks
        if self.ranks == 1:
            assert (done.returncode, done.stderr) == (0, "")
            return
        assert done.returncode == 1
        assert done.stderr.count("never called smallpond_mpi.init()") == 1, done.stderr
        assert [
            word for word in (str(script), f"started {self.ranks} processes", "Call init()") if word not in done.stderr
        ] == []

    def test_two_jobs_with_one_id_at_once(self, tmp_path: Path) -> None:
        first = write_script(
            tmp_path,
            f"s = sp.init(data_root={str(tmp_path / 'data')!r}, job_id='mine', progress='none')",
            "print('ready', flush=True)",
            "import sys, time",
            f"while not __import__('os').path.exists({str(tmp_path / 'go')!r}): time.sleep(0.02)",
            "print(s.from_items([1, 2, 3]).map('item * 2 as a').count())",
            name="first.py",
        )
        second = write_script(tmp_path, f"sp.init(data_root={str(tmp_path / 'data')!r}, job_id='mine')  # HERE")
        with self.started([first]) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            ends_with_error(
                self.launch([second]), second, line_of(second), "JobOwned", ("mine|job", "process", "SP_JOBID")
            )
            (tmp_path / "go").touch()
            out, err = running.communicate(timeout=TIMEOUT_SECS)
        assert (out, running.returncode) == ("3\n", 0), err

    def test_a_script_that_raises_after_init(self, tmp_path: Path) -> None:
        script = write_script(
            tmp_path,
            f"s = sp.init(data_root={str(tmp_path / 'data')!r}, progress='none', job_id='raises')",
            "assert s.from_items([1]).map('item').count() == 1",
            "raise LookupError('a mistake of mine')  # HERE",
        )
        done = self.launch([script])
        assert done.returncode == 1
        assert done.stderr.count("LookupError: a mistake of mine") == 1, done.stderr
        assert f'"{script}", line {line_of(script)}' in done.stderr
        (status,) = (tmp_path / "data").glob("*/*status*")
        assert "a mistake of mine" in status.read_text()

    def test_a_full_data_root(self, small_disk: Path, tmp_path: Path) -> None:
        script = write_script(
            tmp_path,
            f"s = sp.init(data_root={str(small_disk / 'data')!r}, progress='none')",
            "rows = s.from_items(list(range(1000)))",
            "rows = rows.map(lambda row: {'a': __import__('os').urandom(4000)})  # HERE",
            "rows.count()",
        )
        done = self.launch([script])
        ends_with_error(
            done,
            script,
            line_of(script),
            "DataRootUnusable",
            (str(small_disk), "No space left", "make room"),
            at=script_line(4),
        )

    def test_a_data_root_that_is_full_from_the_start(self, small_disk: Path, tmp_path: Path) -> None:
        fill(small_disk)
        script = write_script(tmp_path, f"sp.init(data_root={str(small_disk / 'data')!r})  # HERE")
        done = self.launch([script])
        ends_with_error(
            done, script, line_of(script), "DataRootUnusable", (str(small_disk), "No space left", "SP_DATA_ROOT")
        )

    def test_a_read_only_data_root(self, small_disk: Path, tmp_path: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        script = write_script(tmp_path, f"sp.init(data_root={str(small_disk / 'data')!r})  # HERE")
        done = self.launch([script])
        ends_with_error(
            done, script, line_of(script), "DataRootUnusable", (str(small_disk), "Read-only", "SP_DATA_ROOT")
        )

    def test_an_output_path_on_a_read_only_disk(self, small_disk: Path, tmp_path: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        script = write_script(
            tmp_path,
            f"s = sp.init(data_root={str(tmp_path / 'data')!r}, progress='none')",
            f"s.from_items([1]).write_json({str(small_disk / 'below' / 'out')!r})  # HERE",
        )
        done = self.launch([script])
        says = (str(small_disk / "below" / "out"), "can't be written to", "another path")
        ends_with_error(done, script, line_of(script), "OutputUnusable", says, at=line_of(script))

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 1 MB."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    # the rest of the job

    def test_siblings_of_a_task_that_failed_are_stopped(self, tmp_path: Path) -> None:
        """One partition is bad, the others would take a minute: the error comes without waiting for them."""
        script = write_script(
            tmp_path,
            "import time",
            "from smallpond_mpi.common import SmallpondError",
            "def bad_or_slow(row):",
            "    if row['item'] == 0:",
            "        return 'no dict'",
            "    time.sleep(60)",
            "    return row",
            f"s = sp.init(data_root={str(tmp_path / 'data')!r}, progress='none')",
            "rows = s.from_items([0, 1, 2, 3]).repartition(4, by_rows=True)",
            "try:",
            "    rows.map(bad_or_slow).compute()",
            "except SmallpondError as error:",
            "    print(type(error).__name__)",
            "print(rows.map(lambda row: row).count())",
        )
        done = self.launch([script], timeout=30)
        assert (done.stdout, done.returncode) == ("WrongReturnType\n4\n", 0), done.stderr

    def test_a_result_of_before_an_error_is_intact(self, tmp_path: Path) -> None:
        script = write_script(
            tmp_path,
            "from smallpond_mpi.common import SmallpondError",
            f"s = sp.init(data_root={str(tmp_path / 'data')!r}, progress='none')",
            "good = s.from_items([1, 2, 3]).map('item * 2 as a')",
            "good.compute()",
            f"good.write_parquet({str(tmp_path / 'out')!r})",
            "for bad in ('nosuch(a)', 'cast(a as date)', 'wrong'):",
            "    try:",
            "        good.map(bad).compute()",
            "    except SmallpondError as error:",
            "        print(type(error).__name__, good.is_computed())",
            "print(good.take_all(), good.filter('a > 2').count())",
            f"print(s.read_parquet({str(tmp_path / 'out' / '*.parquet')!r}).count())",
        )
        done = self.launch([script])
        rows = [{"a": 2}, {"a": 4}, {"a": 6}]
        assert done.stdout == 2 * "InvalidQuery True\n" + f"UnknownColumn True\n{rows} 2\n3\n", done.stderr
        assert done.returncode == 0

    @pytest.mark.parametrize("to", ["group", "launcher"])
    @pytest.mark.parametrize("during", ["a task", "the script"])
    def test_ctrl_c(self, during: str, to: str, tmp_path: Path) -> None:
        """Everything is gone at once, and the job can be taken up again."""
        script = write_script(
            tmp_path,
            "import os, time",
            "def slow(row):",
            f"    open({str(tmp_path / 'started')!r}, 'w').write(str(os.getpid()))",
            "    time.sleep(60)" if during == "a task" else "    pass",
            "    return row",
            f"s = sp.init(data_root={str(tmp_path / 'data')!r}, progress='none', job_id='interrupted')",
            "s.from_items([1]).map(slow).count()",
            "time.sleep(60)",
        )
        with self.started([script]) as process:
            wait_for(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text() != "")
            ranks = psutil.Process(process.pid).children(recursive=True)
            if to == "group":
                os.killpg(process.pid, signal.SIGINT)
            else:
                process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert process.returncode != 0
        if self.ranks == 1 or not is_open_mpi():  # Open MPI's mpirun forwards nothing any more that its ranks say
            assert err.count("smallpond_mpi: interrupted") == 1, err
            assert "SP_JOBID=" in err
        assert "Traceback" not in err
        _, alive = psutil.wait_procs(ranks, timeout=10)
        assert alive == []
        assert f"start the script with SP_JOBID={job_uuid('interrupted')}" in status_later(tmp_path / "data")
        script.write_text(script.read_text().replace("time.sleep(60)", "pass"))
        again = self.launch([script])
        assert again.returncode == 0, again.stderr


def write_script(directory: Path, *lines: str, name: str = "script.py") -> Path:
    """A script that imports the package in its first line."""
    path = directory / name
    path.write_text("\n".join(["import smallpond_mpi as sp", *lines, ""]))
    return path


def script_line(number: int) -> int:
    """The line of a script that its `number`-th given line became."""
    return number + 1


def line_of(script: Path) -> int:
    """The line that bears HERE."""
    return next(number for number, text in enumerate(script.read_text().splitlines(), 1) if "# HERE" in text)


def names(text: str, script: Path, line: int) -> bool:
    """Whether a text names a line of a script."""
    return re.search(rf"{re.escape(str(script))}:{line}(?!\d)", text) is not None


def ends_with_error(
    done: "subprocess.CompletedProcess[str]",
    script: Path,
    line: int,
    kind: str,
    says: Sequence[str],
    at: int | None = None,
) -> None:
    """The script ended with one error of ours. It was met at line `at` (if not given: anywhere); `line` is the one at fault."""
    err = done.stderr
    assert done.returncode == 1, (done.returncode, err)
    errors = re.findall(r"^(.*?):(\d+): smallpond_mpi: (\w+): ", err, re.MULTILINE)
    assert [(path, name) for path, _, name in errors] == [(str(script), kind)], err
    assert at is None or int(errors[0][1]) == at, err
    assert names(err, script, line), err
    assert [words for words in says if not any(word in err for word in words.split("|"))] == [], err
    assert err.count("smallpond_mpi: ") == 1, err
    assert PACKAGE.search(err) is None, err


def status_later(data_root: Path) -> str:
    """What `smallpond-mpi status interrupted` says in a minute: all there is where the launcher forwards nothing that a job says at its end,
    and kills it before it can let go of its lease."""
    return "\n".join(lines("interrupted", all_jobs(str(data_root), time.time() + 60), []))


def fill(disk: Path) -> None:
    """Leave no room on a small disk."""
    with (
        open(disk / "fill", "wb", buffering=0) as file,
        contextlib.suppress(OSError),
    ):
        while True:
            file.write(bytes(4096))


def wait_for(condition: Any, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
