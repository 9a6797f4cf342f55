"""What a session did, as plain data, and how that is shown in 80 columns. Pure: the observer counts, this only adds up and writes.

Seconds of stages are wall time, seconds of `TimeSpent` are those of all attempts together, on whatever rank.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Final

from smallpond_mpi.execution.model import FailureKind, Rank

WIDTH: Final = 80
MAX_STAGES_SHOWN: Final = 20
MAX_SLOWEST_SHOWN: Final = 5
SLOW_SECS: Final = 0.1
"""A task that took less is not worth a line."""


@dataclass(frozen=True, slots=True)
class TimeSpent:
    """Where the time of accepted attempts went, in seconds.

    queue: sent to a rank, waiting for its grant there. start: until its child began. read, compute, write: as the task told. other: the rest.
    """

    queue_secs: float = 0.0
    start_secs: float = 0.0
    read_secs: float = 0.0
    compute_secs: float = 0.0
    write_secs: float = 0.0
    other_secs: float = 0.0

    @property
    def work_secs(self) -> float:
        """All but the queue: who waits there takes nothing from others."""
        return float(sum(astuple(self)[1:]))

    def __add__(self, more: "TimeSpent") -> "TimeSpent":
        return TimeSpent(*(mine + its for mine, its in zip(astuple(self), astuple(more), strict=True)))


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One node's tasks. Rows and bytes are None where no task told of any."""

    node_id: int
    kind: str
    location: str | None
    tasks: int  # that ran in children and were accepted
    here: int  # that rank 0 ran itself: they only rearrange datasets
    taken_up: int  # that an earlier epoch had done
    wall_secs: float
    rows_in: int | None
    rows_out: int | None
    bytes_read: int | None
    bytes_written: int | None
    failed_attempts: int
    time: TimeSpent


@dataclass(frozen=True, slots=True)
class SlowTask:
    """A task that took long, and where it ran (`exec_id`: host and rank)."""

    key: str
    partitions: str
    location: str | None
    exec_id: str
    elapsed_secs: float
    time: TimeSpent


@dataclass(frozen=True, slots=True)
class RankLoss:
    """A rank that was lost."""

    rank: Rank
    host: str
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A session so far, or at its end. `failure` is why it failed, None if it did not.

    bytes_written counts what tasks wrote, the shuffle's files included; bytes_published what appeared at output paths (most of it by link). `requeued` counts tasks that went back
    into a queue: after a failure, with a lost rank, or because they waited on a rank behind a long one.
    """

    job_id: str
    failure: str | None
    wall_secs: float
    ranks: int
    cpus: int
    stages: tuple[StageSummary, ...]
    here_secs: float
    bytes_shuffled: int
    bytes_published: int
    slowest: tuple[SlowTask, ...]
    failures: Mapping[FailureKind, int] = field(default_factory=dict)
    failed_secs: float = 0.0
    requeued: int = 0
    twins: int = 0
    ranks_lost: tuple[RankLoss, ...] = ()

    @property
    def tasks(self) -> int:
        return sum(stage.tasks for stage in self.stages)

    @property
    def here(self) -> int:
        return sum(stage.here for stage in self.stages)

    @property
    def taken_up(self) -> int:
        return sum(stage.taken_up for stage in self.stages)

    @property
    def rows_in(self) -> int:
        return sum(stage.rows_in or 0 for stage in self.stages)

    @property
    def rows_out(self) -> int:
        return sum(stage.rows_out or 0 for stage in self.stages)

    @property
    def bytes_read(self) -> int:
        return sum(stage.bytes_read or 0 for stage in self.stages)

    @property
    def bytes_written(self) -> int:
        return sum(stage.bytes_written or 0 for stage in self.stages)

    @property
    def time(self) -> TimeSpent:
        return sum((stage.time for stage in self.stages), TimeSpent())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell: no task was run, taken up or tried."""
        return not (self.tasks or self.here or self.taken_up or self.failures)


# words and numbers


def count(number: int, noun: str) -> str:
    """`1 task`, `2,000 tasks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rows_text(rows: int | None) -> str:
    """`12,345`, `1.23 M`; `-` of None."""
    if rows is None:
        return "-"
    if rows < 1_000_000:
        return f"{rows:,}"
    for unit, size in (("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if rows < size * 999.5 or unit == "T":
            return f"{rows / size:.3g} {unit}" if rows < size * 99.95 else f"{rows / size:,.0f} {unit}"
    raise AssertionError(rows)


def bytes_text(size: int | None) -> str:
    """`12 B`, `3.4 MB`, in powers of 1024; `-` of None."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TB"


def secs_text(secs: float) -> str:
    """`4 ms`, `1.2 s`, `2 min 05 s`, `1 h 02 min`, `3 d 04 h`."""
    if secs < 0.0995:
        return f"{secs * 1000:.0f} ms"
    if secs < 59.95:
        return f"{secs:.1f} s"
    whole = round(secs)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def place_text(location: str | None) -> str:
    """The file's name and line of a location, without its directory."""
    return os.path.basename(location) if location else ""


def stage_text(kind: str, location: str | None, width: int, script: str = "") -> str:
    """Kind and place of a stage in at most `width` characters; of a place in `script` only the line."""
    place = place_text(location)
    if not place:
        return shortened(kind, width)
    if script and place.startswith(f"{script}:"):
        place = place[len(script) :]
    else:
        place = " " + shortened(place, width - 10, keep_end=True)
    return f"{shortened(kind, width - len(place))}{place}"


def script_of(stages: Sequence[StageSummary]) -> str:
    """The file that all stages were made in, '' if there are several or its name is too long to be said in passing."""
    scripts = {place_text(stage.location).rpartition(":")[0] for stage in stages}
    script = scripts.pop() if len(scripts) == 1 else ""
    return script if len(script) <= 20 else ""


def shortened(text: str, width: int, keep_end: bool = False) -> str:
    """The text, or as much of it as fits, with an ellipsis where it is cut."""
    if len(text) <= width:
        return text
    return "…" + text[len(text) - width + 1 :] if keep_end else text[: width - 1] + "…"


# the page


def lines_of(summary: Summary) -> list[str]:
    """The summary as text, no line longer than 80 columns."""
    return [
        shortened(line, WIDTH) for line in (*_head(summary), *_table(summary), *_totals(summary), *_trouble(summary))
    ]


def _head(summary: Summary) -> list[str]:
    outcome = "failed" if summary.failure is not None else "done"
    did = [count(summary.tasks, "task") if summary.tasks or not summary.taken_up else "nothing had to run"]
    if summary.taken_up:
        did.append(f"{summary.taken_up:,} taken up from an earlier run")
    where = f"{count(summary.ranks, 'rank')}, {count(summary.cpus, 'CPU')}"
    lines = [f"smallpond_mpi: job {summary.job_id} {outcome}"]
    lines.append(f"  {', '.join(did)} in {secs_text(summary.wall_secs)} on {where}")
    if summary.failure is not None:
        reason = summary.failure.strip().partition("\n")[0].rstrip(": ")
        lines.append(f"  why       {reason}")
    return lines


def _table(summary: Summary) -> list[str]:
    stages = [stage for stage in summary.stages if stage.tasks or stage.failed_attempts]
    if not stages:
        return []
    shown = stages
    if len(stages) > MAX_STAGES_SHOWN:
        longest = sorted(stages, key=lambda stage: stage.time.work_secs, reverse=True)[:MAX_STAGES_SHOWN]
        kept = {id(stage) for stage in longest}
        shown = [stage for stage in stages if id(stage) in kept]
    script = script_of(stages)
    lines = [
        f"  {f'stage in {script}' if script else 'stage':<30}{'tasks':>9}{'wall':>12}{'rows in':>9}{'rows out':>9}{'written':>9}"
    ]
    for stage in shown:
        name = stage_text(stage.kind, stage.location, 29, script)
        lines.append(
            f"  {name:<30}{stage.tasks:>9,}{secs_text(stage.wall_secs) if stage.tasks else '-':>12}"
            f"{rows_text(stage.rows_in):>9}{rows_text(stage.rows_out):>9}{bytes_text(stage.bytes_written):>9}"
        )
    hidden = [stage for stage in stages if stage not in shown]
    if hidden:
        secs = sum(stage.time.work_secs for stage in hidden)
        lines.append(
            f"  … and {count(len(hidden), 'shorter stage')}: {count(sum(stage.tasks for stage in hidden), 'task')}, {secs_text(secs)} of work"
        )
    return lines


def _totals(summary: Summary) -> list[str]:
    moved = [
        (summary.bytes_read, "read"),
        (summary.bytes_written, "written"),
        (summary.bytes_shuffled, "shuffled"),
        (summary.bytes_published, "published"),
    ]
    told = [f"{what} {bytes_text(size)}" for size, what in moved if size]
    lines = [f"  data      {', '.join(told)}"] if told else []
    if summary.tasks:
        lines.append(f"  time      {_time_text(summary.time)}")
    if summary.here_secs >= SLOW_SECS:
        lines.append(
            f"  rank 0    {secs_text(summary.here_secs)} for {count(summary.here, 'task')} that only rearrange files"
        )
    slowest = [task for task in summary.slowest if task.elapsed_secs >= SLOW_SECS][:MAX_SLOWEST_SHOWN]
    lines.extend(
        f"  {'slowest' if number == 0 else '':<10}{secs_text(task.elapsed_secs)} {_slow_text(task)}"
        for number, task in enumerate(slowest)
    )
    return lines


def _time_text(spent: TimeSpent) -> str:
    """What tasks did with their time, in percent where it is at least half of one."""
    work = spent.work_secs
    names = ("start", "read", "compute", "write", "other")
    shares = [
        f"{name} {100 * secs / work:.0f}%"
        for name, secs in zip(names, astuple(spent)[1:], strict=True)
        if work and secs >= work * 0.005
    ]
    queued = f"; {secs_text(spent.queue_secs)} queued" if spent.queue_secs >= SLOW_SECS else ""
    return f"{secs_text(work)} of tasks: {', '.join(shares)}{queued}"


def _slow_text(task: SlowTask) -> str:
    host, _, rank = task.exec_id.rpartition(".")
    ran = f"on rank {rank} ({host.partition('.')[0]})" if host else ""
    return " ".join(filter(None, (task.key, task.partitions, place_text(task.location), ran)))


def _trouble(summary: Summary) -> list[str]:
    lines = []
    failed = sum(summary.failures.values())
    if failed:
        kinds = sorted(summary.failures.items(), key=lambda item: -item[1])
        told = ", ".join(f"{kind.value} {number:,}" for kind, number in kinds)
        lost = f"; {secs_text(summary.failed_secs)} lost" if summary.failed_secs >= SLOW_SECS else ""
        lines.append(f"  failures  {count(failed, 'attempt')} failed: {told}{lost}")
        stages = sorted(summary.stages, key=lambda stage: -stage.failed_attempts)[:3]
        lines.extend(
            f"            {stage.failed_attempts:,} in {stage_text(stage.kind, stage.location, 60)}"
            for stage in stages
            if stage.failed_attempts
        )
    if summary.requeued:
        lines.append(f"  again     tasks went back into a queue {count(summary.requeued, 'time')}")
    if summary.twins:
        lines.append(f"  twins     {count(summary.twins, 'slow attempt')} got a second one beside it")
    lines.extend(_losses(summary.ranks_lost))
    return lines


def _losses(losses: Sequence[RankLoss]) -> list[str]:
    shown = [f"  lost      rank {loss.rank} ({loss.host}): {loss.reason}" for loss in losses[:MAX_SLOWEST_SHOWN]]
    if len(losses) > len(shown):
        shown.append(f"            and {count(len(losses) - len(shown), 'more rank')}")
    return shown
