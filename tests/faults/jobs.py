"""Jobs that are killed: starts them, finds their processes, reads their journals, and watches what a reader of the output would see."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from smallpond_mpi.execution.journal import Accepted, JobEnded, epochs_of, read_records
from smallpond_mpi.execution.paths import JobPaths, job_uuid
from tests.launch import clean_env, launcher, mpirun_command

ROOT = Path(__file__).parents[2]
PIPELINE = Path(__file__).with_name("pipeline.py")
DEADLINE_SECS = 60.0
ROWS = 6000


def write_input(directory: Path) -> None:
    """The facts, in four files."""
    directory.mkdir()
    for number in range(4):
        values = range(number * ROWS // 4, (number + 1) * ROWS // 4)
        table = pa.table({"k": [value % 37 for value in values], "v": list(values)})
        pq.write_table(table, directory / f"facts-{number}.parquet")


def expected_rows() -> list[tuple[int, int, str]]:
    """What the pipeline makes of them."""
    return sorted((value % 37, (value * 2 + 1) * 2 + 1, f"name {value % 37}") for value in range(ROWS))


def rows_in(output: Path) -> list[tuple[int, int, str]]:
    """The rows that lie in an output directory."""
    tables = [pq.read_table(path) for path in sorted(output.glob("*.parquet"))]
    return sorted(tuple(row.values()) for table in tables for row in table.select(["k", "v", "name"]).to_pylist())  # type: ignore[misc]


def wait_for(condition: Callable[[], object], what: str, secs: float = DEADLINE_SECS) -> None:
    """Until the condition holds; an AssertionError naming it past the deadline."""
    deadline = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {secs} s"
        time.sleep(0.002)


@dataclass
class Job:
    """One job id; started as often as it takes. `ranks` of 0 is plain python, without a launcher."""

    place: Path
    ranks: int = 0
    options: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)
    script: Path = PIPELINE
    data_root: Path | None = None

    def __post_init__(self) -> None:
        self.id = f"faults-{uuid.uuid4()}"
        self.output = self.place / "out"
        self.notes = self.place / "notes"
        self.notes.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def paths(self) -> JobPaths:
        return JobPaths(str(self.data_root or self.place / "root"), str(job_uuid(self.id)))

    @property
    def stderr(self) -> str:
        """Of the last start."""
        return (self.place / f"stderr-{self.starts}").read_text(errors="replace")

    def start(self, **env: str) -> None:
        """Start it (again)."""
        self.starts += 1
        python = [sys.executable, str(self.script)]
        command = python if not self.ranks else mpirun_command(self.ranks, python, self.options)
        if "SP_FAULT_POINT" in env:  # the launcher is what dies, whichever process gets to the point
            command = ["/bin/sh", "-c", 'SP_FAULT_PID=$$ exec "$@"', "sh", *command]
        with open(self.place / f"stderr-{self.starts}", "wb") as stderr:
            self.process = subprocess.Popen(
                command,
                env=clean_env(
                    {
                        "PYTHONPATH": str(ROOT),
                        "SP_JOBID": self.id,
                        "SP_DATA_ROOT": self.paths.data_root,
                        "SP_PROGRESS": "none",
                        "FAULTS_IN": str(self.place.parent / "in"),
                        "FAULTS_OUT": str(self.output),
                        "FAULTS_NOTES": str(self.notes),
                        **self.env,
                        **env,
                    }
                ),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )

    def wait(self, secs: float = DEADLINE_SECS) -> int:
        """Its exit code. Past the deadline it is killed and the test fails."""
        assert self.process is not None
        try:
            return self.process.wait(secs)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"the job did not end within {secs} s:\n{self.stderr}") from None

    def run(self, **env: str) -> int:
        """Start it and wait for its end."""
        self.start(**env)
        return self.wait()

    def run_to_success(self, **env: str) -> None:
        code = self.run(**env)
        assert code == 0, f"exit code {code}:\n{self.stderr}"

    # processes

    def processes(self) -> list[int]:
        """Every process of the job, wherever it was started from: all have its id in their environment."""
        mark = f"SP_JOBID={self.id}\0".encode()
        return [pid for pid in _all_pids() if mark in environ_of(pid)]

    def rank_pid(self, rank: int) -> int:
        """The process of a rank (fork servers and children have no launcher's variables)."""
        marks = {f"OMPI_COMM_WORLD_RANK={rank}", f"PMI_RANK={rank}"}
        for pid in self.processes():
            if marks & set(environ_of(pid).decode(errors="replace").split("\0")):
                return pid
        raise AssertionError(f"rank {rank} has no process; there are {self.processes()}")

    def kill_launcher(self) -> None:
        """What a batch system may do to the one process it knows of; the rest is left to notice, and does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.wait_until_gone()

    def kill_all(self) -> None:
        """Every process at once, as the loss of a machine would; returns when they are gone."""

        def none_left() -> bool:
            alive = self.processes()
            for pid in alive:
                _kill(pid)
            return not alive

        wait_for(none_left, f"the processes of job {self.id} to be gone")
        if self.process is not None:
            self.process.wait()

    def wait_until_gone(self) -> None:
        """Until no process of the job is left, without killing any."""
        wait_for(lambda: not self.processes(), f"the processes of job {self.id} to leave by themselves", 20.0)

    def running(self) -> list[tuple[str, int]]:
        """(task, pid) of attempts at work now."""
        notes = [name.split(".") for name in os.listdir(self.notes) if name.startswith("running.")]
        return [(task, int(pid)) for _, task, _, _, pid in notes if os.path.exists(f"/proc/{pid}")]

    def attempts(self) -> list[tuple[str, str, int]]:
        """(task, attempt, pid) of all pieces of work that were ever begun, over all starts."""
        notes = [name.split(".") for name in os.listdir(self.notes) if name.startswith(("running.", "done."))]
        return [(task, f"{epoch}.{attempt}", int(pid)) for _, task, epoch, attempt, pid in notes]

    def n_worked(self) -> int:
        """How many pieces of work came to their end, over all starts."""
        return sum(name.startswith("done.") for name in os.listdir(self.notes))

    # what it left behind

    def accepted(self) -> list[tuple[int, Accepted]]:
        """(epoch of the file, record), in the order they were written."""
        return [
            (epoch, record)
            for epoch in epochs_of(self.paths)
            for record in read_records(self.paths.journal_of(epoch))
            if isinstance(record, Accepted)
        ]

    def n_accepted(self) -> int:
        """How many tasks have an output, of whatever epoch."""
        return len({record.fingerprint for _, record in self.accepted()})

    def is_running(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None

    def has_ended(self) -> bool:
        """Whether the newest epoch was brought to its end with success."""
        epochs = epochs_of(self.paths)
        records = list(read_records(self.paths.journal_of(epochs[-1]))) if epochs else []
        return JobEnded(True) in records

    def check_accepted_once(self) -> None:
        """No task that was accepted was run again: its output is that of one attempt in all epochs."""
        attempts: dict[bytes, set[str]] = {}
        for _, record in self.accepted():
            attempts.setdefault(record.fingerprint, set()).add(str(record.attempt))
        twice = [sorted(found) for found in attempts.values() if len(found) > 1]
        assert not twice, f"accepted more than once: {twice}"

    def check_result(self) -> None:
        """The right rows, nothing else beside them, and no process left."""
        assert rows_in(self.output) == expected_rows()
        self.check_named()
        left = [str(path) for path in self.place.rglob(".*") if path.name != ".MANIFEST.txt"]
        assert not left, f"staging is left: {left}"
        assert sorted(os.listdir(self.output)) == sorted([".MANIFEST.txt", *_manifest(self.output)])
        self.wait_until_gone()

    def check_named(self) -> None:
        """What a node was told to leave under a path of its own is there once."""
        if "FAULTS_NAMED" in self.env:
            named = Path(self.env["FAULTS_NAMED"])
            attempts = [path.parent for path in named.rglob("*.parquet")]
            tasks = [path.name.split(".")[1] for path in attempts]
            assert len(tasks) == len(set(tasks)) == 6, f"not one attempt a task: {attempts}"
            assert sorted(row for path in attempts for row in rows_in(path)) == expected_rows()


def _manifest(output: Path) -> list[str]:
    return [os.path.basename(path) for path in (output / ".MANIFEST.txt").read_text().splitlines()]


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def environ_of(pid: int) -> bytes:
    """The environment that a process was started with; empty if it is gone, a zombie, or somebody else's."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class Watcher:
    """A second process that reads the output throughout; at the end of the block what it saw must have been absent or whole."""

    def __init__(self, output: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("watcher.py")), str(output), str(ROWS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "began\n"

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            told, _ = self._process.communicate(timeout=DEADLINE_SECS)
        finally:
            self._process.kill()
        looks, problem = json.loads(told)
        assert not problem, problem
        assert looks > 10, f"the watcher looked only {looks} times"


needs_mpirun = launcher() is None
