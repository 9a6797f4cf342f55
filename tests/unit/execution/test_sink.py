"""Publishing: whole or not at all, whatever was there before, and again after a death at any step."""

import datetime
import errno
import os
import re
import subprocess
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import CorruptInput, InvalidArgument, OutputExists, OutputUnusable, SchemaMismatch
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.job import sweep_staging
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.scheduler.outputs import NamedOutputs
from smallpond_mpi.execution.task import publish as publish_module
from smallpond_mpi.execution.task import sink as sink_module
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.partition_info import TOPLEVEL, PartitionInfo
from smallpond_mpi.execution.task.publish import MANIFEST_FILENAME, distinct_names
from smallpond_mpi.execution.task.sink import DataSinkTask
from smallpond_mpi.io import exchange as exchange_module
from smallpond_mpi.io.exchange import exchange, is_mount_point
from smallpond_mpi.logical.dataset import ArrowTableDataSet, DataSet, ParquetDataSet


@pytest.fixture
def ctx(tmp_path: Path) -> RuntimeContext:
    context = RuntimeContext(JobId.new(), datetime.datetime(2026, 1, 1), str(tmp_path / "root"), random_seed=7)
    context.initialize("test")
    return context


class Source:
    """Files in the job's staging, as tasks leave them: `rows` in each, named after the job."""

    def __init__(self, ctx: RuntimeContext) -> None:
        self.ctx = ctx
        self.count = 0

    def dataset(self, *rows: int, name: str | None = None) -> ParquetDataSet:
        self.count += 1
        directory = Path(self.ctx.staging_root, f"made.{self.count}")
        directory.mkdir()
        paths = []
        for number, count in enumerate(rows):
            paths.append(str(directory / (name or f"made-{self.ctx.job_id}.{self.count}-{number}.parquet")))
            pq.write_table(pa.table({"a": list(range(count))}), paths[-1])
        return ParquetDataSet(paths)


@pytest.fixture
def source(ctx: RuntimeContext) -> Source:
    return Source(ctx)


def given(ctx: RuntimeContext, dataset: DataSet) -> Task:
    task = Task(ctx, [], [TOPLEVEL])
    task.dataset = dataset
    return task


def attempt(task: Task) -> Task:
    task.status = WorkStatus.INCOMPLETE
    task.exception = None
    task.input_datasets = [dep.output for dep in task._deps.tasks]
    task.exec()
    if task.exception is not None:
        raise task.exception
    assert task.status is WorkStatus.SUCCEED
    return task


def collected(ctx: RuntimeContext, output: Path, datasets: list[Any], type: Any = "link_or_copy") -> list[Task]:
    return [
        attempt(DataSinkTask(ctx, [given(ctx, one)], [PartitionInfo(n, len(datasets))], str(output), type))
        for n, one in enumerate(datasets)
    ]


def publisher(
    ctx: RuntimeContext, output: Path, inputs: list[Task], type: Any = "link_manifest", num_dirs: int = 0
) -> DataSinkTask:
    task = DataSinkTask(ctx, inputs, [TOPLEVEL], str(output), type, num_dirs=num_dirs)
    task.check_before_run()
    return task


def published(ctx: RuntimeContext, output: Path, datasets: list[Any], type: Any = "link_or_copy") -> DataSinkTask:
    """As the planner has it: one collects each, one publishes; then staging goes."""
    task = publisher(ctx, output, collected(ctx, output, datasets, type))
    attempt(task)
    clean(task)
    return task


def by_key(
    ctx: RuntimeContext, source: Source, output: Path, mode: Any = None, name: str | None = None, **rows: int
) -> list[Task]:
    """One who collects files that lie in directories: so many rows in each `{key}=1`."""
    paths = []
    for key, count in rows.items():
        (made,) = source.dataset(count, name=name).paths
        paths.append(os.path.join(os.path.dirname(made), f"{key}=1", os.path.basename(made)))
        os.renames(made, paths[-1])
    inputs = [given(ctx, ParquetDataSet(paths))]
    whole = [PartitionInfo(0, 1)]
    return [attempt(DataSinkTask(ctx, inputs, whole, str(output), "link_or_copy", mode=mode, num_dirs=1))]


def clean(task: Any) -> None:
    """What rank 0 does once the attempt is accepted."""
    from smallpond_mpi.execution.task.publish import remove_staging

    for path in task.obsolete_paths:
        remove_staging(path, levels_above=2)


def rows_below(output: Path) -> dict[str, int]:
    """Of each file, by its path. By listing, which must agree with the manifest; no directory is empty."""
    files = sorted(map(str, output.rglob("*.parquet")))
    assert sorted((output / MANIFEST_FILENAME).read_text().splitlines()) == files
    assert all(any(path.iterdir()) for path in output.rglob("*") if path.is_dir())
    return {os.path.relpath(path, output): pq.read_metadata(path).num_rows for path in files}


def listing(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def rows(output: Path) -> int:
    """By listing, which must agree with the manifest."""
    names = [name for name in os.listdir(output) if not name.startswith(".")]
    manifest = (output / MANIFEST_FILENAME).read_text().splitlines()
    assert sorted(os.path.basename(path) for path in manifest) == sorted(names)
    assert all(os.path.dirname(path) == str(output) for path in manifest)
    return sum(pq.read_metadata(path).num_rows for path in manifest)


TYPES = ("link", "copy", "link_or_copy")

CUTS: dict[str, Callable[[bytes], bytes]] = {
    "end": lambda content: content[:-50],
    "middle": lambda content: content[:2000] + content[2001:],
    "zeros": lambda content: content[:4] + bytes(3000) + content[3004:],
    "text": lambda content: b"a,b\n1,one\n" * 10,
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("type", TYPES)
def test_files_of_users_that_were_cut_are_not_published(
    ctx: RuntimeContext, source: Source, tmp_path: Path, cut: str, type: str
) -> None:
    output, path = tmp_path / "out", tmp_path / "mine.parquet"
    pq.write_table(pa.table({"a": list(range(1000)), "b": ["text"] * 1000}), path)
    published(ctx, tmp_path / "whole", [ParquetDataSet([str(path)])], type)
    path.write_bytes(CUTS[cut](path.read_bytes()))
    with pytest.raises(CorruptInput, match=r"mine\.parquet"):
        published(ctx, output, [source.dataset(3), ParquetDataSet([str(path)])], type)
    assert not output.exists()


def test_a_directory_named_as_a_file_is_its_files(ctx: RuntimeContext, tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").mkdir()
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "mine.parquet" / "part-0")
    published(ctx, tmp_path / "out", [ParquetDataSet([str(tmp_path / "mine.parquet")])])
    assert rows(tmp_path / "out") == 2


def test_partitions_of_one_table_fit_together(ctx: RuntimeContext, tmp_path: Path) -> None:
    def made(*tables: pa.Table) -> list[Task]:
        directory = Path(ctx.staging_root, f"made-{len(os.listdir(ctx.staging_root))}")
        datasets = [ParquetDataSet.create_from(table, str(directory), f"file{n}") for n, table in enumerate(tables)]
        found = []
        for number, dataset in enumerate(datasets):
            task = given(ctx, dataset)
            task.location = "script.py:7"
            infos = [TOPLEVEL, PartitionInfo(number, len(datasets), "part")]
            found.append(attempt(DataSinkTask(ctx, [task], infos, str(tmp_path / "out"), "link_or_copy")))
        return found

    here, narrow = pa.table({"a": [1], "b": ["x"]}), pa.table({"a": pa.array([1], pa.int32()), "b": ["x"]})
    renamed, typed = pa.table({"c": [1], "b": ["x"]}), pa.table({"a": ["x"], "b": ["x"]})
    says = r"'part\[0/3\] of script.py:7' and 'part\[2/3\] of script.py:7' differ: "
    for other, difference in (
        (renamed, "'a' is only in the first; 'c' is only in the second .all partitions"),
        (typed, "'a' is int64"),
    ):
        with pytest.raises(SchemaMismatch, match=says + difference):
            attempt(publisher(ctx, tmp_path / "out", made(here, narrow, other)))
        assert not (tmp_path / "out").exists()
    several = made(here, renamed)
    attempt(DataSinkTask(ctx, several, [TOPLEVEL], str(tmp_path / "tables"), is_one_table=False))
    assert rows(tmp_path / "tables") == 2
    attempt(publisher(ctx, tmp_path / "out", made(here, narrow)))
    assert ParquetDataSet([str(tmp_path / "out")]).to_arrow_table().num_rows == 2


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("exists", [False, True])
def test_into_nothing_and_into_an_empty_directory(
    ctx: RuntimeContext, source: Source, tmp_path: Path, type: str, exists: bool
) -> None:
    output = tmp_path / "a" / "b" / "out"
    if exists:
        output.mkdir(parents=True, mode=0o750)
    task = published(ctx, output, [source.dataset(1, 2), source.dataset(3), source.dataset()], type)
    assert rows(output) == 6
    assert listing(output.parent) == ["out"], "no staging is left"
    assert MANIFEST_FILENAME in listing(output)
    assert len(listing(output)) == 4
    assert task.output.num_rows == 6
    assert task.output.resolved_paths == (output / MANIFEST_FILENAME).read_text().splitlines()
    assert sorted(path for path, _ in task._output_files) == sorted(task.output.resolved_paths)
    if exists:
        assert output.stat().st_mode & 0o777 == 0o750


def test_links_are_links_and_copies_are_not(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    dataset = source.dataset(4)
    inode = os.stat(dataset.paths[0]).st_ino
    for type in TYPES:
        output = tmp_path / type
        published(ctx, output, [dataset], type)
        (file,) = [output / name for name in listing(output) if not name.startswith(".")]
        assert (file.stat().st_ino == inode) == (type != "copy")
        assert not file.is_symlink()


@pytest.mark.parametrize("type", TYPES)
def test_where_no_links_can_be_what_goes_with_the_job_is_copied(
    ctx: RuntimeContext, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type: str
) -> None:
    def no_links(*args: Any, **options: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    users = tmp_path / "users.parquet"
    pq.write_table(pa.table({"a": [1]}), users)
    output = tmp_path / "out"
    published(ctx, output, [source.dataset(4), ParquetDataSet([str(users)])], type)
    ctx.cleanup_root()
    assert rows(output) == 5
    assert (output / "users.parquet").is_symlink() == (type == "link")


def test_what_is_no_whole_file_is_written_out(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    whole = source.dataset(10)
    slices = whole.partition_by_rows(3)
    columns = whole.project(columns=["a"])
    in_memory = ArrowTableDataSet(pa.table({"a": [1, 2]}))
    output = tmp_path / "out"
    published(ctx, output, [*slices, columns, in_memory])
    assert rows(output) == 10 + 10 + 2
    assert all(pq.read_schema(path).names == ["a"] for path in output.glob("*.parquet"))


def test_names_that_are_alike(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    output = tmp_path / "out"
    published(ctx, output, [source.dataset(n, name="part-0.parquet") for n in (1, 2, 3)])
    assert rows(output) == 6
    assert "part-0.parquet" in listing(output)


def test_distinct_names() -> None:
    assert distinct_names(["/x/a.p", "/y/b.p"]) == ["a.p", "b.p"]
    assert distinct_names(["/x/a.p", "/y/a.p", "/z/a.p"]) == ["a.p", "a.1.p", "a.2.p"]
    assert distinct_names(["/x/a.p", "/y/a.p", "/z/a.1.p"]) == ["a.p", "a.2.p", "a.1.p"]
    many = distinct_names([f"/{n}/part.parquet" for n in range(20_000)])
    assert len(set(many)) == 20_000


def test_manifest_lists_files_where_they_are(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    output = tmp_path / "out"
    datasets = [source.dataset(1), source.dataset(2)]
    task = publisher(ctx, output, [given(ctx, one) for one in datasets], "manifest")
    attempt(task)
    clean(task)
    assert listing(output) == [MANIFEST_FILENAME]
    assert (output / MANIFEST_FILENAME).read_text().splitlines() == [path for one in datasets for path in one.paths]
    assert listing(tmp_path) == ["out", "root"]


def test_what_a_manifest_lists_stays_where_it_is(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    """Below the output path, too: the manifest of an earlier result was there, and there is a file to be put beside it."""
    output = tmp_path / "out"
    earlier = published(ctx, output, [source.dataset(1), source.dataset(2)]).output
    first = ParquetDataSet(earlier.resolved_paths[:1])
    for more in ([], [source.dataset(5).partition_by_rows(2)[0]]):
        clean(attempt(publisher(ctx, output, [given(ctx, one) for one in [first, *more]], "manifest")))
        listed = (output / MANIFEST_FILENAME).read_text().splitlines()
        assert [pq.read_metadata(path).num_rows for path in listed] == [1, 3][: len(listed)]
        assert len(listed) == 1 + len(more)


@pytest.mark.parametrize("step", [None, "publish.replace", "publish.file", "publish.manifest", "publish.done"])
@pytest.mark.parametrize("before", ["a result", "a result, in place", "a part of one"])
@pytest.mark.parametrize("by", [False, True])
def test_a_result_of_no_files_takes_the_place_of_an_earlier_one(
    ctx: RuntimeContext,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str | None,
    before: str,
    by: bool,
) -> None:
    output = tmp_path / "out"
    if before.endswith("in place"):
        (tmp_path / "real").mkdir()
        output.symlink_to("real")
    if before == "a part of one":
        output.mkdir()
    inputs = by_key(ctx, source, output, a=1, b=2) if by else collected(ctx, output, [source.dataset(1, 2)])
    first = publisher(ctx, output, inputs, num_dirs=int(by))
    if before == "a part of one":
        die_at("publish.file", first, monkeypatch)
    else:
        clean(attempt(first))
    empty = publisher(ctx, output, collected(ctx, output, [ParquetDataSet([])]))
    if step:
        die_at(step, empty, monkeypatch)
    empty.retry_count = 1
    clean(attempt(empty))
    assert rows_below(output) == {}
    assert listing(output) == [MANIFEST_FILENAME]


@pytest.mark.parametrize("foreign", ["data.parquet", ".hidden", "sub/inner.parquet", MANIFEST_FILENAME])
def test_files_of_others_are_an_error_before_anything_runs(ctx: RuntimeContext, tmp_path: Path, foreign: str) -> None:
    output = tmp_path / "out"
    (output / foreign).parent.mkdir(parents=True)
    (output / foreign).write_text("/somebody/elses.parquet\n")
    with pytest.raises(OutputExists, match=foreign.partition("/")[0]):
        publisher(ctx, output, [])


@pytest.mark.parametrize(
    ("check", "most"),
    [
        (lambda path: publish_module.check_no_foreign_files(path, "job"), 1),
        (lambda path: publish_module.check_holds_only(path, ()), publish_module.MAX_COUNTED),
    ],
)
def test_a_large_tree_of_others_is_not_walked_to_the_end(
    check: Callable[[str], None], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []

    def walk(top: str, **options: object) -> Iterator[tuple[str, list[str], list[str]]]:
        for number in range(10**9):
            entered.append(f"{top}/{number}")
            yield f"{top}/{number}", [], ["theirs.parquet"]

    monkeypatch.setattr(os, "walk", walk)
    (tmp_path / "out" / "theirs").mkdir(parents=True)
    with pytest.raises(OutputExists, match="theirs"):
        check(str(tmp_path / "out"))
    assert len(entered) == most


def test_files_of_others_that_came_meanwhile_are_an_error_too(
    ctx: RuntimeContext, source: Source, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    task = publisher(ctx, output, collected(ctx, output, [source.dataset(1)]))
    output.mkdir()
    (output / "theirs.parquet").write_text("x")
    with pytest.raises(OutputExists, match="theirs"):
        attempt(task)
    assert listing(output) == ["theirs.parquet"]


def test_paths_that_can_not_be(ctx: RuntimeContext, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="absolute"):
        DataSinkTask(ctx, [], [TOPLEVEL], "relative")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExists, match="is a file"):
        publisher(ctx, tmp_path / "file", [])
    with pytest.raises(OutputUnusable, match="not a directory"):
        publisher(ctx, tmp_path / "file" / "below", [])


class Reader:
    """A thread that looks at a directory all the time: it is absent, or it has exactly what its manifest says, whole."""

    def __init__(self, output: Path, by_manifest: bool = False) -> None:
        self.output = output
        self.by_manifest = by_manifest
        self.problem = ""
        self.looks = 0
        self.seen: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set() and not self.problem:
            self.looks += 1
            inode = self._inode()
            try:
                names = set(os.listdir(self.output))
                found = {name: pq.read_metadata(self.output / name).num_rows for name in names if name[0] != "."}
                if self.by_manifest and MANIFEST_FILENAME not in names:
                    continue
                listed = (self.output / MANIFEST_FILENAME).read_text().splitlines()
                counted = [pq.read_metadata(path).num_rows for path in listed]
            except OSError as error:
                if inode and self._inode() == inode:
                    self.problem = f"{error}"
                continue
            if self._inode() == inode:
                self.seen.add(sum(counted))
                if not self.by_manifest and sum(counted) != sum(found.values()):
                    self.problem = f"{sorted(names)}, but the manifest lists {listed}"

    def _inode(self) -> int:
        try:
            return os.stat(self.output).st_ino
        except FileNotFoundError:
            return 0

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        assert not self.problem
        assert self.looks


def test_a_reader_sees_all_or_nothing(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    """Appearing, and being replaced by other results of the job."""
    output = tmp_path / "out"
    with Reader(output) as reader:
        for turn in range(1, 12):
            published(ctx, output, [source.dataset(turn, turn), source.dataset(turn)])
            assert rows(output) == 3 * turn
    assert reader.seen <= {3 * turn for turn in range(1, 12)}
    assert listing(tmp_path) == ["out", "root"]


def test_a_reader_sees_all_or_nothing_by_the_manifest(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    """In a directory that was there before."""
    output = tmp_path / "out"
    output.mkdir()
    with Reader(output, by_manifest=True) as reader:
        published(ctx, output, [source.dataset(5, 5) for _ in range(5)])
    assert reader.seen <= {50}
    assert rows(output) == 50


def test_a_file_system_that_can_not_exchange(
    ctx: RuntimeContext, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "exchange", lambda one, other: False)
    output = tmp_path / "out"
    with Reader(output):
        published(ctx, output, [source.dataset(1)])
        published(ctx, output, [source.dataset(2)])
    assert rows(output) == 2
    assert listing(tmp_path) == ["out", "root"]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the task's runs its course after it."""


STEPS = ("publish.staged", "publish.replace", "publish.aside", "publish.file", "publish.manifest", "publish.done")


def die_at(step: str, task: DataSinkTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that dies when it gets there first."""
    died = []

    def die(name: str) -> None:
        if name == step and not died:
            died.append(name)
            raise Killed

    for module in (publish_module, sink_module):
        monkeypatch.setattr(module, "fault_point", die)
    task.input_datasets = [dep.output for dep in task._deps.tasks]
    try:
        task.exec()
    except Killed:
        assert died
    died.append("over")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", ["nothing", "a directory", "a result", "a result, no exchange"])
@pytest.mark.parametrize("again", ["the same", "other files"])
def test_a_repeat_after_a_death_at_any_step(
    ctx: RuntimeContext,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    before: str,
    again: str,
) -> None:
    """The next attempt finds the same collected files, or, if their records were lost with the machine, others."""
    output = tmp_path / "out"
    if before == "a directory":
        output.mkdir()
    if before.startswith("a result"):
        published(ctx, output, [source.dataset(9)])
    if before.endswith("no exchange"):
        monkeypatch.setattr(publish_module, "exchange", lambda one, other: False)
    inputs = collected(ctx, output, [source.dataset(1, 2), source.dataset(3, name="users.parquet")])
    die_at(step, publisher(ctx, output, inputs), monkeypatch)
    second = publisher(
        ctx, output, inputs if again == "the same" else collected(ctx, output, [source.dataset(2, 2, 2)])
    )
    second.retry_count = 1
    attempt(second)
    clean(second)
    assert rows(output) == 6
    assert listing(tmp_path) == ["out", "root"]
    assert not [name for name in listing(output) if name.startswith(".staging")]


def broken(monkeypatch: pytest.MonkeyPatch, call: str, directory: str, code: int = errno.EIO) -> None:
    """From now on the file system says this of directories whose paths end so, once."""
    right, said = getattr(os, call), []

    def wrong(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(directory) and not said:
            said.append(path)
            raise OSError(code, os.strerror(code), path)
        return right(path, *args, **options)

    monkeypatch.setattr(os, call, wrong)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", ["a directory", "a result", "a result, in place"])
@pytest.mark.parametrize("again", ["the same", "other files"])
@pytest.mark.parametrize("name", [None, "users.parquet"])
def test_a_repeat_of_files_in_directories(
    ctx: RuntimeContext,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    before: str,
    again: str,
    name: str | None,
) -> None:
    output = tmp_path / "out"
    if before == "a directory":
        output.mkdir()
    if before.endswith("in place"):
        (tmp_path / "real").mkdir()
        output.symlink_to("real")
    if before.startswith("a result"):
        clean(attempt(publisher(ctx, output, by_key(ctx, source, output, name=name, a=9, d=9), num_dirs=1)))
    inputs = by_key(ctx, source, output, name=name, a=1, b=2, c=3)
    die_at(step, publisher(ctx, output, inputs, num_dirs=1), monkeypatch)
    others = inputs if again == "the same" else by_key(ctx, source, output, name=name, b=4, e=2)
    second = publisher(ctx, output, others, num_dirs=1)
    second.retry_count = 1
    clean(attempt(second))
    found = {os.path.dirname(path): count for path, count in rows_below(output).items()}
    assert found == ({"a=1": 1, "b=1": 2, "c=1": 3} if again == "the same" else {"b=1": 4, "e=1": 2})


def test_directories_without_files_are_nobodys(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    """An attempt that dies before it moves a file leaves the directory that it made for it."""
    output = tmp_path / "out"
    (output / "a=1" / "b=1").mkdir(parents=True)
    attempt(publisher(ctx, output, by_key(ctx, source, output, a=1), num_dirs=1))
    (output / "c=1").mkdir()
    publisher(ctx, output, [])
    (output / "c=1" / "theirs.parquet").touch()
    with pytest.raises(OutputExists, match="c=1"):
        publisher(ctx, output, [])


@pytest.mark.parametrize("mode", [None, "append", "error"])
def test_a_stage_that_can_not_be_read_is_not_published(
    ctx: RuntimeContext, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    """A part of it that nobody sees would be in the manifest, and nowhere else."""
    output = tmp_path / "out"
    output.mkdir()
    inputs = by_key(ctx, source, output, mode, a=1, b=2)
    task = DataSinkTask(ctx, inputs, [TOPLEVEL], str(output), mode=mode, num_dirs=1)
    with monkeypatch.context() as patch:
        broken(patch, "scandir", f"publish.{task.runtime_id}/b=1")
        with pytest.raises(OSError, match="Input/output error"):
            attempt(task)
    task.retry_count = 1
    attempt(task)
    assert task.output.num_rows == 3


def test_an_output_path_that_can_not_be_read_is_not_empty(
    ctx: RuntimeContext, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    task = DataSinkTask(ctx, by_key(ctx, source, output, "error", a=1), [TOPLEVEL], str(output), mode="error")
    (output / "sub").mkdir(parents=True)
    (output / "sub" / "theirs.parquet").touch()
    with monkeypatch.context() as patch:
        broken(patch, "scandir", "sub")
        with pytest.raises(OSError, match="Input/output error"):
            attempt(task)
    with monkeypatch.context() as patch:
        broken(patch, "lstat", "out")
        with pytest.raises(OSError, match="Input/output error"):
            publish_module.check_no_foreign_files(str(output), str(ctx.job_id))
    task.retry_count = 1
    with pytest.raises(OutputExists, match="theirs"):
        attempt(task)
    assert listing(output) == ["sub"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_what_may_not_be_read_is_not_overwritten(
    ctx: RuntimeContext, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """lost+found stays; a directory that should be readable is tried again."""
    (tmp_path / "real" / "lost+found").mkdir(parents=True)
    (tmp_path / "real" / "old.parquet").touch()
    output = tmp_path / "out"
    output.symlink_to("real")
    task = DataSinkTask(ctx, by_key(ctx, source, output, "overwrite", a=1), [TOPLEVEL], str(output), mode="overwrite")
    broken(monkeypatch, "scandir", "lost+found", code)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            attempt(task)
        task.retry_count = 1
    clean(attempt(task))
    assert task.output.num_rows == 1
    assert len(listing(output)) == 3
    assert {"lost+found", MANIFEST_FILENAME} < set(listing(output))


def test_files_named_by_users_are_known_for_this_jobs(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    output = tmp_path / "out"
    published(ctx, output, [source.dataset(1, name="one.parquet")])
    published(ctx, output, [source.dataset(2, name="two.parquet")])
    assert rows(output) == 2
    other = RuntimeContext(JobId.new(), ctx.job_time, ctx.data_root, random_seed=1)
    with pytest.raises(OutputExists):
        publisher(other, output, [])


def test_staging_lies_inside_where_nothing_can_be_renamed_from_beside(
    ctx: RuntimeContext, source: Source, tmp_path: Path
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    link = tmp_path / "out"
    link.symlink_to(real)
    published(ctx, link, [source.dataset(1)])
    published(ctx, link, [source.dataset(2)])
    assert link.is_symlink()
    assert [name for name in listing(real) if not name.startswith(".")]
    assert not (real / ".staging").exists()
    assert rows(link) == 2


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A directory that another one is mounted on: renames into it from beside fail."""
    place, other = tmp_path / "with a blank", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    if subprocess.run(["mount", "--bind", other, place], capture_output=True).returncode:
        pytest.skip("file systems can't be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_mount_point_is_published_into(ctx: RuntimeContext, source: Source, mounted: Path) -> None:
    assert is_mount_point(str(mounted))
    assert not is_mount_point(str(mounted.parent))
    published(ctx, mounted, [source.dataset(1)])
    published(ctx, mounted, [source.dataset(2)])
    assert rows(mounted) == 2
    assert not (mounted / ".staging").exists()


def test_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (listing(tmp_path / "a"), listing(tmp_path / "b")) == (["b"], ["a"])
    with pytest.raises(FileNotFoundError):
        exchange(str(tmp_path / "a"), str(tmp_path / "gone"))
    monkeypatch.setattr(exchange_module.ctypes, "CDLL", lambda *args, **options: types.SimpleNamespace())
    assert not exchange(str(tmp_path / "a"), str(tmp_path / "b")), "a C library that does not have it"


# results of nodes that have a place of their own


class Writes(Task):
    def run(self) -> bool:
        Path(self.runtime_output_abspath, f"{self.output_filename}.parquet").write_text("x")
        return True


@pytest.mark.parametrize(("call", "place"), [("stat", "staging"), ("scandir", "")])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ESHUTDOWN])
def test_an_output_that_can_not_be_listed_is_not_empty(
    ctx: RuntimeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, place: str, code: int
) -> None:
    task = Writes(ctx, [], [TOPLEVEL], output_path=str(tmp_path / "named"))
    lies = task.runtime_output_abspath if place else task.final_output_abspath
    with monkeypatch.context() as patch:
        broken(patch, call, lies, code)
        with pytest.raises(OSError, match=re.escape(os.strerror(code))):
            attempt(task)
    task.retry_count = 1
    assert [os.path.basename(path) for path, _ in attempt(task)._output_files] == [f"{task.output_filename}.parquet"]


def left(ctx: RuntimeContext, output: Path, retry: int, task: Task | None = None) -> Task:
    """An attempt that went through, whatever became of it."""
    task = task or Writes(ctx, [], [TOPLEVEL], output_path=str(output))
    task.retry_count = retry
    return attempt(task)


def test_results_of_nodes_stay_beside_what_is_published(ctx: RuntimeContext, source: Source, tmp_path: Path) -> None:
    """They are no earlier result of the sink, though they are of the job."""
    output = tmp_path / "out"
    path = Path(left(ctx, output, 0)._output_files[0][0])
    published(ctx, output, [source.dataset(1)])
    assert path.exists()


def test_attempts_that_nobody_accepted_are_swept(ctx: RuntimeContext, tmp_path: Path) -> None:
    output = tmp_path / "named"
    outputs = NamedOutputs(str(ctx.job_id))
    task = left(ctx, output, 0)
    outputs.expect([task])
    lost = task.final_output_abspath
    left(ctx, output, 1, task)
    outputs.keep(task, str(task.runtime_id))
    other = RuntimeContext(JobId.new(), ctx.job_time, ctx.data_root, random_seed=1)
    theirs = left(other, output, 0).final_output_abspath
    outputs.sweep(also_kept=[os.path.basename(lost).partition(".")[2]])
    assert os.path.isdir(lost)
    outputs.sweep()
    assert not os.path.exists(lost)
    assert os.path.isdir(task.final_output_abspath)
    assert os.path.isdir(theirs)


def test_only_an_attempts_own_directory_is_removed(ctx: RuntimeContext, tmp_path: Path) -> None:
    outputs = NamedOutputs(str(ctx.job_id))
    task = left(ctx, tmp_path / "named", 0)
    nested = Path(task.final_output_abspath, "deep", "er")
    nested.mkdir(parents=True)
    (nested / "file").touch()
    outputs.remove([str(tmp_path / "elsewhere" / "file")], str(task.runtime_id), ctx.staging_root)
    outputs.remove([str(nested / "file")], "000099.0.0", ctx.staging_root)
    assert nested.exists()
    outputs.remove([str(nested / "file")], str(task.runtime_id), ctx.staging_root)
    assert not os.path.exists(task.final_output_abspath)


def test_staging_of_an_output_path_is_swept_beside_what_others_have_there(tmp_path: Path) -> None:
    root = tmp_path / ".staging"
    (root / "sums" / "mine.000001.0.0").mkdir(parents=True)
    (root / "sums" / "theirs.000001.0.0").mkdir()
    (root / "gone").mkdir()
    (root / ".nfs0001").write_text("a file, which no job makes there")
    sweep_staging(str(root), "mine")
    assert sorted(path.name for path in root.rglob("*")) == [".nfs0001", "sums", "theirs.000001.0.0"]
    sweep_staging(str(root), "theirs")
    (root / ".nfs0001").unlink()
    sweep_staging(str(root), "theirs")
    assert not root.exists()
    assert sweep_staging(str(root), "theirs") == []


def test_staging_that_can_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / ".staging"
    for name in ("stale", "sums"):
        (root / name / "mine.000001.0.0").mkdir(parents=True)
    really = os.listdir

    def listdir(path: str) -> list[str]:
        if path == str(root / "stale"):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return really(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert sweep_staging(str(root), "mine") == [f"{root}/stale (Stale file handle)"]
    assert not (root / "sums").exists()


def test_a_directory_of_results_that_can_not_be_listed_keeps_no_other_from_being_swept(
    ctx: RuntimeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = NamedOutputs(str(ctx.job_id))
    tasks = [left(ctx, tmp_path / name, 0) for name in ("stale", "sums")]
    outputs.expect(tasks)
    really = os.listdir

    def listdir(path: str) -> list[str]:
        if path == os.path.dirname(tasks[0].final_output_abspath):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return really(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(OSError, match="Stale file handle"):
        outputs.sweep()
    assert [os.path.exists(task.final_output_abspath) for task in tasks] == [True, False]
