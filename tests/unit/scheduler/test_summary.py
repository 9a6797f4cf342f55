"""How long a job still takes, how numbers are written, and the page that a session ends with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi.execution.model import FailureKind, Rank
from smallpond_mpi.execution.scheduler.progress import Remaining, secs_left, secs_left_of
from smallpond_mpi.execution.scheduler.summary import (
    RankLoss,
    SlowTask,
    StageSummary,
    Summary,
    TimeSpent,
    bytes_text,
    lines_of,
    rows_text,
    secs_text,
    stage_text,
)


def test_what_is_left_of_a_stage_is_its_tasks_times_their_mean_over_the_cpus() -> None:
    assert secs_left_of(Remaining(tasks=10, done=5, spent_secs=10.0), cpus=4) == 5.0
    assert secs_left_of(Remaining(tasks=10, done=5, spent_secs=10.0, cpus=2), cpus=4) == 10.0


def test_a_task_takes_its_time_however_many_cpus_there_are() -> None:
    assert secs_left_of(Remaining(tasks=3, done=5, spent_secs=10.0), cpus=100) == 2.0
    assert secs_left_of(Remaining(tasks=3, done=5, spent_secs=10.0, cpus=16), cpus=4) == 6.0


def test_a_stage_of_which_none_is_done_is_unknown_and_one_that_is_done_takes_nothing() -> None:
    assert secs_left_of(Remaining(tasks=3, done=0, spent_secs=0.0), cpus=4) is None
    assert secs_left_of(Remaining(tasks=0, done=0, spent_secs=0.0), cpus=4) == 0.0


def test_stages_add_up_and_those_to_come_are_taken_to_be_like_the_others() -> None:
    known = Remaining(tasks=8, done=2, spent_secs=4.0)
    assert secs_left([known, Remaining(0, 2, 12.0)], cpus=2) == 8.0
    assert secs_left([known, Remaining(0, 2, 12.0), Remaining(4, 0, 0.0)], cpus=2) == 8.0 + 4.0 * 4 / 2


def test_nothing_is_foretold_before_a_task_of_the_stages_at_work_has_ended() -> None:
    assert secs_left([], cpus=2) is None
    assert secs_left([Remaining(5, 0, 0.0)], cpus=2) is None
    assert secs_left([Remaining(0, 1, 0.01), Remaining(5, 0, 0.0, running=2)], cpus=2) is None


@given(st.integers(0, 1000), st.integers(1, 1000), st.floats(0, 1e6), st.integers(1, 64), st.integers(1, 10_000))
def test_more_cpus_never_take_longer_and_more_tasks_never_less(
    tasks: int, done: int, spent_secs: float, cpus: int, fleet: int
) -> None:
    left = secs_left_of(Remaining(tasks, done, spent_secs, cpus), fleet)
    fewer = secs_left_of(Remaining(tasks, done, spent_secs, cpus), fleet + 1)
    more = secs_left_of(Remaining(tasks + 1, done, spent_secs, cpus), fleet)
    assert left is not None
    assert fewer is not None
    assert more is not None
    assert 0 <= fewer <= left <= more


@pytest.mark.parametrize(
    ("secs", "text"),
    [
        (0.0, "0 ms"),
        (0.0044, "4 ms"),
        (0.0994, "99 ms"),
        (0.0996, "0.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125.0, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (86399, "23 h 59 min"),
        (100_000, "1 d 03 h"),
    ],
)
def test_seconds_are_written_with_their_unit(secs: float, text: str) -> None:
    assert secs_text(secs) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (1536, "1.5 KB"),
        (150 << 10, "150 KB"),
        (1023 << 10, "1.0 MB"),
        (5 << 30, "5.0 GB"),
        (2000 << 40, "2,000.0 TB"),
    ],
)
def test_bytes_are_written_with_their_unit(size: int | None, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (None, "-"),
        (0, "0"),
        (999_999, "999,999"),
        (1_234_567, "1.23 M"),
        (99_960_000, "100 M"),
        (999_499_999, "999 M"),
        (999_600_000, "1 G"),
        (10**16, "10,000 T"),
    ],
)
def test_rows_are_written_in_full_below_a_million(rows: int | None, text: str) -> None:
    assert rows_text(rows) == text


@given(st.text(max_size=60), st.one_of(st.none(), st.text(max_size=60)), st.integers(20, 60))
def test_the_name_of_a_stage_fits(kind: str, location: str | None, width: int) -> None:
    assert len(stage_text(kind, location, width)) <= width


def test_a_long_name_keeps_its_line_number() -> None:
    shown = stage_text("EvenlyDistributedPartition", "/home/me/a_pipeline_with_a_long_name.py:120", 29)
    assert shown.startswith("E")
    assert shown.endswith("name.py:120")


def stage(number: int, tasks: int = 5) -> StageSummary:
    return StageSummary(
        number,
        "HashPartitionDuckDb",
        f"/home/me/flights.py:{number}",
        tasks=tasks,
        here=10**6,
        taken_up=0,
        wall_secs=1000.0 * number,
        rows_in=10**15,
        rows_out=10**9,
        bytes_read=10**15,
        bytes_written=10**15,
        failed_attempts=3,
        time=TimeSpent(1.0, 2.0, 3.0, 4.0 * number, 5.0, 6.0),
    )


def job(stages: int) -> Summary:
    slow = SlowTask(
        "HashPartitionDuckDbTask-1234567",
        "a_dimension[123/4096] [7/100000]",
        "/home/me/flights.py:12",
        "node0123.cluster.example.org.1023",
        98765.0,
        TimeSpent(),
    )
    return Summary(
        job_id="0193fbd0-7b1c-7c3e-8d2a-000000000000",
        failure="JobFailed: " + "x" * 300,
        wall_secs=100_000.0,
        ranks=1024,
        cpus=65536,
        stages=tuple(stage(number, tasks=1_000_000) for number in range(1, stages + 1)),
        here_secs=12.0,
        bytes_shuffled=10**15,
        bytes_published=10**15,
        slowest=(slow,) * 10,
        failures=dict.fromkeys(FailureKind, 123_456),
        failed_secs=1e6,
        requeued=1_000_000,
        twins=1_000_000,
        ranks_lost=(RankLoss(Rank(7), "node0123", "no sign of life for 60 s " * 10),) * 100,
    )


def test_the_biggest_summary_fits_80_columns_and_a_page() -> None:
    lines = lines_of(job(stages=500))
    assert max(map(len, lines)) <= 80
    assert len(lines) < 60
    assert any("480 shorter stages" in line for line in lines)


def test_columns_stand_below_each_other() -> None:
    lines = lines_of(job(stages=3))
    header = next(number for number, line in enumerate(lines) if line.lstrip().startswith("stage"))
    assert {len(line) for line in lines[header : header + 4]} == {80}
    assert lines[header].split()[:3] == ["stage", "in", "flights.py"]
    assert lines[header + 1].split()[0] == "HashPartitionDuckDb:1"


def test_a_small_summary_has_no_line_about_what_did_not_happen() -> None:
    quiet = Summary("j", None, 0.02, 1, 2, (stage(1),), 0.0, 0, 0, ())
    shown = "\n".join(lines_of(quiet))
    for word in ("shuffled", "published", "failures", "again", "lost", "slowest", "rank 0 "):
        assert word not in shown
