"""The observer: what it makes of a job's events, in virtual time."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from smallpond_mpi.common import GB
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.model import Capacity, Failure, FailureKind, Rank, TaskRuntimeId
from smallpond_mpi.execution.protocol import Ended
from smallpond_mpi.execution.scheduler.core import StageCounts
from smallpond_mpi.execution.scheduler.eventlog import MAX_LINES, EventLog
from smallpond_mpi.execution.scheduler.observe import MAX_SLOWEST, Observer
from smallpond_mpi.execution.scheduler.progress import (
    FIRST_LINE_SECS,
    LINE_SECS,
    Bar,
    Lines,
    Progress,
    StageProgress,
    View,
    line_of,
    table_of,
    view_for,
)
from smallpond_mpi.execution.scheduler.summary import lines_of
from smallpond_mpi.execution.scheduler.tally import Stage
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.partition import EvenlyDistributedPartitionProducerTask
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.sink import DataSinkTask
from smallpond_mpi.execution.task.views import MergeDataSetsTask


class JoinTask(Task):
    """A kind of a user's."""


@dataclass
class Counts:
    """What the core would say."""

    running: dict[int, int] = field(default_factory=dict)
    n_retries: int = 0
    n_twins: int = 0

    def stage_counts(self) -> Mapping[int, StageCounts]:
        return {stage: StageCounts(0, 0, running, 0, 0) for stage, running in self.running.items()}


@pytest.fixture
def ctx(tmp_path: Path) -> RuntimeContext:
    return RuntimeContext(JobId.new(), datetime(2026, 1, 1), str(tmp_path), random_seed=1)


def stage_of_tasks(ctx: RuntimeContext, number: int, node_id: int, kind: type[Any] = Task, **attrs: Any) -> list[Task]:
    tasks = []
    for index in range(number):
        task: Task = kind(ctx, [], [PartitionInfo(index, number)])
        task.node_id, task.location = node_id, f"/home/me/script.py:{10 + node_id}"
        task.__dict__.update(attrs)
        tasks.append(task)
    return tasks


def ended(task: Task, elapsed_secs: float = 1.0, queued_secs: float = 0.0, start_secs: float = 0.0) -> Ended:
    return Ended(task.runtime_id, b"", None, queued_secs, start_secs, elapsed_secs, 0)


def told(task: Task, files: Sequence[tuple[str, int]] = (), **metrics: float) -> Task:
    """The task as it comes back: with metrics (their names with _ for blanks) and files."""
    names = {"read": "input load time (secs)", "compute": "compute time (secs)", "write": "output dump time (secs)"}
    task.perf_metrics.update({names.get(name, name.replace("_", " ")): value for name, value in metrics.items()})
    if files:
        task._output_files = list(files)
    task.exec_id = "node7.cluster.2"
    return task


def failure(kind: FailureKind = FailureKind.EXCEPTION) -> Failure:
    return Failure(kind, "ValueError", "no such thing\nat all", host="node7", rank=2)


def capacity(cpus: int) -> Capacity:
    return Capacity(tuple(range(cpus)), 16 * GB)


class Shown:
    """A view that keeps what it was shown, every ten seconds."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, Progress]] = []
        self.ended_at: list[float] = []

    def begin(self, now: float) -> float:
        return now + 10

    def show(self, progress: Progress, now: float) -> float:
        self.moments.append((now, progress))
        return now + 10

    def end(self, now: float) -> None:
        self.ended_at.append(now)


# counting


def test_a_stage_adds_up_what_its_tasks_tell(ctx: RuntimeContext) -> None:
    observer = Observer("job")
    tasks = stage_of_tasks(ctx, 3, node_id=1, kind=JoinTask)
    observer.submitted(tasks, [], now=100.0)
    for moment, task in enumerate(tasks[:2]):
        observer.tick(105.0 + moment)
        told(
            task,
            [("/d/a.parquet", 1000), ("/d/b.parquet", 24)],
            num_input_rows=50,
            num_output_rows=5,
            num_input_bytes=4096,
            read=0.5,
            compute=1.0,
            write=0.25,
        )
        observer.accepted(task, ended(task, elapsed_secs=2.0, queued_secs=3.0, start_secs=0.125))

    (stage,) = observer.summary().stages
    assert (stage.kind, stage.location, stage.tasks) == ("Join", "/home/me/script.py:11", 2)
    assert (stage.rows_in, stage.rows_out, stage.bytes_read, stage.bytes_written) == (100, 10, 8192, 2048)
    assert stage.wall_secs == pytest.approx(3.0)  # from 105 - 2 to 106
    spent = stage.time
    assert (spent.queue_secs, spent.start_secs) == (6.0, 0.25)
    assert (spent.read_secs, spent.compute_secs, spent.write_secs, spent.other_secs) == (1.0, 2.0, 0.5, 0.5)
    assert spent.work_secs == 4.25


def test_what_no_task_tells_is_unknown_and_not_zero(ctx: RuntimeContext) -> None:
    observer = Observer()
    silent, empty = stage_of_tasks(ctx, 1, node_id=1) + stage_of_tasks(ctx, 1, node_id=2)
    observer.submitted([silent, empty], [], 0.0)
    observer.accepted(silent, ended(silent))
    observer.accepted(told(empty, num_output_rows=0), ended(empty))
    first, second = observer.summary().stages
    assert (first.rows_in, first.rows_out, first.bytes_read, first.bytes_written) == (None, None, None, None)
    assert second.rows_out == 0


def test_a_stage_is_named_after_what_children_run_not_after_what_rank_0_rearranges(ctx: RuntimeContext) -> None:
    observer = Observer()
    merge = stage_of_tasks(ctx, 1, 4, MergeDataSetsTask)
    work = stage_of_tasks(ctx, 2, 4, JoinTask)
    split = stage_of_tasks(ctx, 3, 4, MergeDataSetsTask)
    observer.submitted([*merge, *work, *split], [], 0.0)
    for task in (*merge, *split):
        observer.ran_here(task, 0.5)
    observer.accepted(work[0], ended(work[0]))
    summary = observer.summary()
    (stage,) = summary.stages
    assert (stage.kind, stage.tasks, stage.here) == ("Join", 1, 4)
    assert (summary.tasks, summary.here, summary.here_secs) == (1, 4, 2.0)
    assert [one.total for one in observer.progress(1.0).stages] == [2]


def test_the_shuffle_is_what_partition_producers_write_and_links_of_a_sink_are_not_written(ctx: RuntimeContext) -> None:
    def producer(ctx: RuntimeContext, deps: list[Task], infos: list[PartitionInfo]) -> Task:
        return EvenlyDistributedPartitionProducerTask(ctx, deps, infos, 4, "p", partition_by_rows=True)

    def sink(kind: str) -> Any:
        return lambda ctx, deps, infos: DataSinkTask(ctx, deps, infos, "/data/out", type=kind)

    observer = Observer()
    (cut,) = stage_of_tasks(ctx, 1, 1, producer)  # type: ignore[arg-type]
    (work,) = stage_of_tasks(ctx, 1, 2)
    (gather,) = stage_of_tasks(ctx, 1, 3, sink("link"))
    (publish,) = stage_of_tasks(ctx, 1, 3, sink("link_manifest"))
    observer.submitted([cut, work, gather, publish], [], 0.0)
    for task, size in ((cut, 1000), (work, 200), (gather, 200), (publish, 200)):
        observer.accepted(told(task, [("/f", size)]), ended(task))
    summary = observer.summary()
    assert (summary.bytes_shuffled, summary.bytes_written, summary.bytes_published) == (1000, 1200, 200)


def test_failures_are_counted_by_kind_and_stops_are_none(ctx: RuntimeContext) -> None:
    observer = Observer()
    (task,) = stage_of_tasks(ctx, 1, 1)
    observer.submitted([task], [], 0.0)
    for kind in (FailureKind.SIGNAL, FailureKind.OUT_OF_MEMORY, FailureKind.SIGNAL, FailureKind.STOPPED):
        observer.attempt_failed(task, task.runtime_id, failure(kind), 0.5)
    summary = observer.summary()
    assert summary.failures == {FailureKind.SIGNAL: 2, FailureKind.OUT_OF_MEMORY: 1}
    assert summary.failed_secs == 1.5
    assert summary.stages[0].failed_attempts == 3


def test_the_slowest_tasks_are_kept_with_where_they_ran_and_no_others(ctx: RuntimeContext) -> None:
    observer = Observer()
    tasks = stage_of_tasks(ctx, 500, 1, JoinTask)
    observer.submitted(tasks, [], 0.0)
    durations = {task.id: float(task.id * 7919 % 997) for task in tasks}
    for task in tasks:
        observer.accepted(told(task, read=0.5), ended(task, elapsed_secs=durations[task.id]))
    slowest = observer.summary().slowest
    assert [one.elapsed_secs for one in slowest] == sorted(durations.values(), reverse=True)[:MAX_SLOWEST]
    first = max(tasks, key=lambda task: durations[task.id])
    assert (slowest[0].key, slowest[0].location, slowest[0].exec_id) == (first.key, first.location, "node7.cluster.2")
    assert slowest[0].partitions == f"[{first.partition_infos[0].index}/500]"
    assert slowest[0].time.read_secs == 0.5


def test_nothing_is_kept_of_a_task_that_is_over(ctx: RuntimeContext) -> None:
    def size(value: object, seen: set[int]) -> int:
        """Objects reachable from a value, Tasks and their like aside."""
        if id(value) in seen or isinstance(value, (type, str, int, float, type(None))):
            return 0
        seen.add(id(value))
        assert not isinstance(value, Task)
        inside: list[object] = []
        if isinstance(value, dict):
            inside = [*value, *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            inside = list(value)
        elif isinstance(value, Stage):
            inside = [getattr(value, name) for name in Stage.__slots__]
        elif hasattr(value, "__dict__"):
            inside = list(vars(value).values())
        return 1 + sum(size(one, seen) for one in inside)

    sizes = []
    for number in (100, 5000):
        observer = Observer()
        tasks = stage_of_tasks(ctx, number, 1)
        observer.submitted(tasks, [], 0.0)
        for task in tasks:
            observer.accepted(told(task, num_output_rows=1), ended(task, elapsed_secs=float(task.id)))
        observer.finished("", 1.0)
        sizes.append(size(observer, set()))
    assert sizes[0] == sizes[1]


def test_ranks_that_come_and_go_and_come_again(ctx: RuntimeContext) -> None:
    observer = Observer()
    observer.rank_joined(Rank(0), "a", capacity(2))
    observer.rank_joined(Rank(1), "b", capacity(8))
    observer.rank_lost(Rank(1), "its process has died")
    observer.rank_lost(Rank(1), "told twice")
    observer.rank_joined(Rank(1), "b", capacity(8))
    observer.rank_joined(Rank(1), "b", capacity(8))
    summary = observer.summary()
    assert (summary.ranks, summary.cpus) == (2, 10)
    assert [(loss.rank, loss.host, loss.reason) for loss in summary.ranks_lost] == [
        (1, "b", "its process has died"),
        (1, "b", "it joined anew"),
    ]


# runs


def test_runs_of_a_session_add_up_and_the_script_s_own_time_does_not_count(ctx: RuntimeContext) -> None:
    observer = Observer()
    first, second = stage_of_tasks(ctx, 2, 1)
    observer.submitted([first], [], 10.0)
    observer.tick(12.0)
    observer.accepted(first, ended(first, 2.0))
    observer.finished("", 12.0)
    observer.submitted([second], [], 1000.0)
    observer.tick(1003.0)
    observer.accepted(second, ended(second, 3.0))
    observer.finished("", 1004.0)
    summary = observer.summary()
    assert summary.wall_secs == pytest.approx(6.0)
    assert summary.stages[0].wall_secs == pytest.approx(5.0)
    assert summary.stages[0].tasks == 2


def test_progress_is_of_the_current_run(ctx: RuntimeContext) -> None:
    observer = Observer()
    old, new = stage_of_tasks(ctx, 3, 1), stage_of_tasks(ctx, 2, 2)
    observer.submitted(old, [], 0.0)
    observer.accepted(old[0], ended(old[0]))
    observer.finished(None, 5.0)  # broken off: two did not end
    assert observer.progress(6.0).stages == ()
    observer.submitted([old[1], *new], [], 10.0)
    progress = observer.progress(12.0)
    assert [(stage.done, stage.total) for stage in progress.stages] == [(0, 1), (0, 2)]
    assert progress.elapsed_secs == 2.0


def test_what_an_earlier_epoch_did_is_done_and_takes_no_part_in_means(ctx: RuntimeContext) -> None:
    observer = Observer()
    observer.rank_joined(Rank(0), "a", capacity(1))
    tasks = stage_of_tasks(ctx, 4, 1)
    observer.submitted(tasks[2:], tasks[:2], 0.0)
    observer.accepted(tasks[2], ended(tasks[2], 8.0))
    (stage,) = observer.progress(8.0).stages
    assert (stage.done, stage.total, stage.secs_left) == (3, 4, 8.0)
    summary = observer.summary()
    assert (summary.tasks, summary.taken_up) == (1, 2)


def test_a_job_that_was_done_before_says_so(ctx: RuntimeContext) -> None:
    stream = io.StringIO()
    observer = Observer("j1", stream=stream)
    observer.submitted([], stage_of_tasks(ctx, 2, 1), 0.0)
    observer.close(None)
    assert "nothing had to run, 2 taken up from an earlier run" in stream.getvalue()


# what is shown, and when


def test_a_view_is_shown_the_job_when_it_wants_to_be_and_only_while_something_runs(ctx: RuntimeContext) -> None:
    view, core = Shown(), Counts(running={1: 3})
    observer = Observer(view=view)
    observer.watch(core)
    observer.rank_joined(Rank(0), "a", capacity(2))
    observer.tick(50.0)
    tasks = stage_of_tasks(ctx, 8, 1, JoinTask)
    observer.submitted(tasks, [], 100.0)
    for now in range(101, 126):
        observer.tick(float(now))
        if now == 115:
            observer.accepted(told(tasks[0], [("/f", 512)], num_output_rows=7), ended(tasks[0], 4.0))
            observer.attempt_failed(tasks[1], tasks[1].runtime_id, failure(), 1.0)
    observer.finished("", 130.0)
    observer.tick(200.0)
    assert [now for now, _ in view.moments] == [110.0, 120.0]
    assert view.ended_at == [130.0]
    assert view.moments[0][1].secs_left is None
    assert view.moments[1][1] == Progress(
        20.0, (StageProgress("Join", "/home/me/script.py:11", 8, 1, 3, 1, 7, 512, 14.0),), 14.0
    )


def test_lines_begin_after_two_seconds_of_running_and_come_every_five(ctx: RuntimeContext) -> None:
    stream = io.StringIO()
    observer = Observer(view=Lines(stream))
    moments = []
    for begin, end in ((0.0, 1.5), (1000.0, 1001.0), (2000.0, 2012.0)):
        observer.submitted(stage_of_tasks(ctx, 1, 1), [], begin)
        for step in range(int((end - begin) * 10) + 1):
            before = stream.tell()
            observer.tick(begin + step / 10)
            if stream.tell() > before:
                moments.append(begin + step / 10)
        observer.finished("", end)
    second = 2000.0 + LINE_SECS - 0.5
    assert moments == [1000.0 + FIRST_LINE_SECS - 1.5, second, second + LINE_SECS]


def test_a_short_job_shows_its_summary_only_and_an_idle_one_nothing(ctx: RuntimeContext) -> None:
    stream = io.StringIO()
    observer = Observer.for_terminal("auto", "j1", stream, {})
    observer.submitted(stage_of_tasks(ctx, 1, 1), [], 0.0)
    (task,) = stage_of_tasks(ctx, 1, 1)
    observer.tick(0.5)
    observer.accepted(task, ended(task, 0.5))
    observer.finished("", 0.6)
    assert stream.getvalue() == ""
    observer.close(None)
    observer.close(None)
    assert stream.getvalue().count("job j1 done") == 1

    idle = io.StringIO()
    Observer.for_terminal("lines", "j2", idle, {}).close(None)
    assert idle.getvalue() == ""


def test_style_none_is_silent(ctx: RuntimeContext) -> None:
    stream = io.StringIO()
    observer = Observer.for_terminal("none", "j", stream, {})
    (task,) = stage_of_tasks(ctx, 1, 1)
    observer.submitted([task], [], 0.0)
    observer.tick(100.0)
    observer.accepted(task, ended(task))
    observer.finished("", 100.0)
    observer.close("boom")
    assert stream.getvalue() == ""


def test_a_reader_that_goes_away_ends_what_is_shown_and_not_the_job(ctx: RuntimeContext) -> None:
    read_end, write_end = os.pipe()
    stream = os.fdopen(write_end, "w")
    observer = Observer("j", view=Lines(stream), stream=stream)
    (task,) = stage_of_tasks(ctx, 1, 1)
    observer.submitted([task], [], 0.0)
    os.close(read_end)
    observer.tick(3.0)
    observer.tick(30.0)
    observer.accepted(task, ended(task))
    observer.finished("", 31.0)
    observer.close(None)
    assert observer.summary().tasks == 1
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_closed_stream_ends_what_is_shown_and_not_the_job(ctx: RuntimeContext) -> None:
    stream = io.StringIO()
    observer = Observer("j", view=Lines(stream), stream=stream)
    observer.submitted(stage_of_tasks(ctx, 1, 1), [], 0.0)
    stream.close()
    observer.tick(3.0)
    observer.finished("", 31.0)
    observer.close(None)


def test_an_error_of_ours_in_a_view_is_not_hidden(ctx: RuntimeContext) -> None:
    class Broken(Shown):
        def show(self, progress: Progress, now: float) -> float:
            raise ValueError("a bug")

    observer = Observer(view=Broken(), stream=io.StringIO())
    observer.submitted(stage_of_tasks(ctx, 1, 1), [], 0.0)
    with pytest.raises(ValueError, match="a bug"):
        observer.tick(30.0)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("style", "stream", "env", "wanted"),
    [
        ("auto", io.StringIO(), {"TERM": "xterm"}, Lines),
        ("auto", Terminal(), {"TERM": "xterm"}, Bar),
        ("auto", Terminal(), {"TERM": "dumb"}, Lines),
        ("auto", Terminal(), {}, Lines),
        ("lines", Terminal(), {"TERM": "xterm"}, Lines),
        ("bar", io.StringIO(), {}, Bar),
        ("none", Terminal(), {"TERM": "xterm"}, type(None)),
    ],
)
def test_the_style_follows_from_the_setting_the_stream_and_the_terminal(
    style: str, stream: io.StringIO, env: dict[str, str], wanted: type[View]
) -> None:
    assert type(view_for(style, stream, env)) is wanted


def progress_of(*stages: StageProgress, secs_left: float | None = None) -> Progress:
    return Progress(75.0, stages, secs_left)


JOIN = StageProgress("Join", "/x/script.py:12", 64, 12, 8, 2, 1_234_567, 5 << 20, 30.0)
TO_COME = StageProgress("SqlEngine", "/x/script.py:14", 100, 0, 0, 0, None, None, None)


def test_a_line_tells_the_whole_and_the_stages_at_work() -> None:
    assert line_of(progress_of(JOIN, TO_COME, secs_left=101.0)) == (
        "smallpond_mpi: 1 min 15 s: 12/164 tasks, 8 running, 2 failed, about 1 min 41 s left"
        " | Join script.py:12 12/64 (8 running, 2 failed, 1.23 M rows, 5.0 MB)"
    )


def test_the_table_has_a_row_a_stage_and_one_for_the_whole() -> None:
    rows = table_of(progress_of(JOIN, TO_COME, secs_left=101.0)).plain.splitlines()
    bar = "━" * 10
    assert [" ".join(row.split()) for row in rows] == [
        f"Join script.py:12 {bar} 12/64 8 running 2 failed ~30.0 s 1.23 M rows 5.0 MB",
        f"SqlEngine script.py:14 {bar} 0/100",
        f"1 min 15 s {bar} 12/164 8 running 2 failed ~1 min 41 s",
    ]


def test_of_many_stages_those_at_work_are_in_the_table() -> None:
    done = [StageProgress("Done", f"a.py:{n}", 5, 5, 0, 0, None, None, 0.0) for n in range(30)]
    to_come = [StageProgress("ToCome", f"a.py:{n}", 5, 0, 0, 0, None, None, None) for n in range(30)]
    rows = table_of(progress_of(*done, JOIN, *to_come)).plain.splitlines()
    assert len(rows) == 13
    assert rows[0].startswith("Join")


def test_a_bar_is_drawn_in_place_and_taken_away() -> None:
    stream = io.StringIO()
    bar = Bar(stream, forced=True)
    due = bar.begin(10.0)
    assert 10.0 < due < 11.0
    assert bar.show(progress_of(JOIN), due) > due
    bar.show(progress_of(JOIN), due + 1)
    bar.end(due + 2)
    shown = stream.getvalue()
    assert shown.count("script.py:12") >= 2
    assert "\x1b[1A\x1b[2K" in shown  # up, and erase the line
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown again


# the log


def test_the_log_tells_of_ranks_attempts_and_how_far_it_is(ctx: RuntimeContext, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.log"
    observer = Observer("j", log=EventLog(str(path), wall_clock=lambda: 0.0))
    observer.rank_joined(Rank(3), "node7", capacity(16))
    tasks = stage_of_tasks(ctx, 2, 1, JoinTask)
    observer.submitted(tasks, [], 0.0)
    observer.attempt_failed(tasks[0], TaskRuntimeId(tasks[0].id, 0, 1), failure(FailureKind.SIGNAL), 2.0)
    observer.rank_lost(Rank(3), "silent for 60 s")
    observer.accepted(tasks[1], ended(tasks[1]))
    observer.tick(6.0)
    said = path.read_text().splitlines()
    assert "rank 3 joined: node7, 16 CPUs, 16.0 GB" in said[0]
    assert "2 tasks submitted" in said[1]
    assert (
        f"attempt {tasks[0].id}.0.1 of {tasks[0].key} [0/2] on rank 2 (node7) failed after 2.0 s: signal: ValueError: "
        "no such thing at all"
    ) in said[2]
    assert "rank 3 lost: node7: silent for 60 s" in said[3]
    assert "1 of 2 tasks done, 0 B written, 1 attempt failed" in said[4]
    observer.finished("given up: it failed", 7.0)
    observer.close("JobFailed: it failed")
    rest = path.read_text().splitlines()[5:]
    assert "the run given up: it failed" in rest[0]
    assert "the job ends: JobFailed: it failed" in rest[1]
    assert rest[2].endswith("job j failed")


def test_a_log_that_cannot_be_written_costs_nothing_but_the_log(ctx: RuntimeContext, tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "missing" / "scheduler.log"))
    observer = Observer("j", log=log)
    observer.submitted(stage_of_tasks(ctx, 1, 1), [], 0.0)
    observer.finished("", 1.0)
    observer.close(None)
    assert "No such file" in log.problem


def test_a_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "log"), wall_clock=lambda: 0.0)
    for _ in range(MAX_LINES + 500):
        log.say("x" * 1000)
    log.flush()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == MAX_LINES + 1
    assert "nothing more is logged" in lines[-1]
    assert max(map(len, lines)) < 500


def test_the_summary_shows_a_failure_its_kinds_and_its_ranks(ctx: RuntimeContext) -> None:
    observer = Observer("j")
    observer.watch(Counts(n_retries=2, n_twins=1))
    observer.rank_joined(Rank(2), "node7", capacity(4))
    (task,) = stage_of_tasks(ctx, 1, 1, JoinTask)
    observer.submitted([task], [], 0.0)
    observer.attempt_failed(task, task.runtime_id, failure(FailureKind.SIGNAL), 3.0)
    observer.rank_lost(Rank(2), "its process has died")
    observer.finished("", 5.0)
    shown = "\n".join(lines_of(observer.summary("JobFailed: boom\n  where")))
    for part in (
        "job j failed",
        "why       JobFailed: boom",
        "1 attempt failed: signal 1; 3.0 s lost",
        "1 in Join script.py:11",
        "went back into a queue 2 times",
        "1 slow attempt got a second one",
        "rank 2 (node7): its process has died",
    ):
        assert part in shown
