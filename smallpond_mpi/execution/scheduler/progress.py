"""How a running job is shown: a live table on a terminal, a line every few seconds in a file.

The observer makes a Progress when a view says that it is due; a view only writes it. Nothing here looks at the scheduler, and no thread
is started: everything happens in the turn of rank 0's loop that asked for it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from smallpond_mpi.execution.scheduler.summary import bytes_text, rows_text, secs_text, stage_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

FIRST_LINE_SECS: Final = 2.0
LINE_SECS: Final = 5.0
FIRST_BAR_SECS: Final = 0.3
BAR_SECS: Final = 0.25
MAX_STAGES_IN_LINE: Final = 3
MAX_STAGES_IN_BAR: Final = 12
BAR_WIDTH: Final = 10
NEVER: Final = math.inf


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Where the tasks of a node stand. `failed` counts attempts, `rows` and `bytes` what was written; None: nobody told."""

    kind: str
    location: str | None
    total: int
    done: int
    running: int
    failed: int
    rows: int | None
    bytes: int | None
    secs_left: float | None

    @property
    def is_open(self) -> bool:
        return self.done < self.total


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a running job, stages in the order in which they were planned."""

    elapsed_secs: float
    stages: tuple[StageProgress, ...]
    secs_left: float | None

    @property
    def total(self) -> int:
        return sum(stage.total for stage in self.stages)

    @property
    def done(self) -> int:
        return sum(stage.done for stage in self.stages)

    @property
    def running(self) -> int:
        return sum(stage.running for stage in self.stages)

    @property
    def failed(self) -> int:
        return sum(stage.failed for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left of a stage: `tasks`, each on so many `cpus`, of which some are `running`; `done` ones took `spent_secs` together."""

    tasks: int
    done: int
    spent_secs: float
    cpus: int = 1
    running: int = 0


def secs_left_of(stage: Remaining, cpus: int, mean_secs: float | None = None) -> float | None:
    """How long a stage still takes if it has all `cpus`: as many tasks as fit at once, each as long as those done were on average.

    `mean_secs` is assumed while none is done; None is answered without it.
    """
    if not stage.tasks:
        return 0.0
    mean = stage.spent_secs / stage.done if stage.done else mean_secs
    at_once = max(1, cpus // stage.cpus)
    return None if mean is None else mean * max(1.0, stage.tasks / at_once)


def secs_left(stages: Iterable[Remaining], cpus: int) -> float | None:
    """How long a job still takes; None before any task of the stages at work has ended.

    Stages follow each other, or share the CPUs: either way their times add up. Tasks of stages that have not begun are taken to be like all others.
    """
    every = list(stages)
    done = sum(stage.done for stage in every)
    if not done or any(stage.running and not stage.done for stage in every):
        return None
    mean = sum(stage.spent_secs for stage in every) / done
    return sum(secs_left_of(stage, cpus, mean) or 0.0 for stage in every)


class View(Protocol):
    """Shows progress. All times are of the loop's clock, in seconds."""

    def begin(self, now: float) -> float:
        """Tasks were submitted; returns when to show something first."""
        ...

    def show(self, progress: Progress, now: float) -> float:
        """Show this; returns when to show something again."""
        ...

    def end(self, now: float) -> None:
        """The script goes on: leave nothing on the screen."""
        ...


def view_for(style: str, stream: TextIO, env: Mapping[str, str]) -> View | None:
    """The view that a style (bar, lines, none, auto) means for a stream."""
    if style == "none":
        return None
    is_terminal = stream.isatty() and env.get("TERM", "") not in ("", "dumb", "unknown")
    if style == "bar" or (style == "auto" and is_terminal):
        return Bar(stream, forced=not is_terminal)
    return Lines(stream)


# lines


def line_of(progress: Progress) -> str:
    """One line: the whole, then the stages that are being worked on."""
    told = [f"{progress.done:,}/{progress.total:,} tasks"]
    if progress.running:
        told.append(f"{progress.running:,} running")
    if progress.failed:
        told.append(f"{progress.failed:,} failed")
    if progress.secs_left is not None:
        told.append(f"about {secs_text(max(1.0, progress.secs_left))} left")
    current = [stage for stage in progress.stages if stage.is_open and (stage.running or stage.done)]
    parts = [", ".join(told), *map(_part_of_line, current[:MAX_STAGES_IN_LINE])]
    if len(current) > MAX_STAGES_IN_LINE:
        parts.append(f"{len(current) - MAX_STAGES_IN_LINE} more stages")
    return f"smallpond_mpi: {secs_text(progress.elapsed_secs)}: {' | '.join(parts)}"


def _part_of_line(stage: StageProgress) -> str:
    told = []
    if stage.running:
        told.append(f"{stage.running:,} running")
    if stage.failed:
        told.append(f"{stage.failed:,} failed")
    if stage.rows is not None:
        told.append(f"{rows_text(stage.rows)} rows")
    if stage.bytes is not None:
        told.append(bytes_text(stage.bytes))
    amount = f" ({', '.join(told)})" if told else ""
    return f"{stage_text(stage.kind, stage.location, 40)} {stage.done:,}/{stage.total:,}{amount}"


class Lines:
    """A line every few seconds of running; the script's own time between two computes does not count."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._wait_secs = FIRST_LINE_SECS
        self._due = NEVER

    def begin(self, now: float) -> float:
        self._due = now + self._wait_secs
        return self._due

    def show(self, progress: Progress, now: float) -> float:
        self._stream.write(line_of(progress) + "\n")
        self._stream.flush()
        self._due = now + LINE_SECS
        return self._due

    def end(self, now: float) -> None:
        self._wait_secs = max(0.0, self._due - now)


# terminal


class Bar:
    """A table of the stages that are being worked on, rewritten in place; gone when the script goes on."""

    def __init__(self, stream: TextIO, *, forced: bool = False) -> None:
        self._stream = stream
        self._forced = forced
        self._console: Console | None = None
        self._live: Live | None = None

    def begin(self, now: float) -> float:
        return now + FIRST_BAR_SECS

    def show(self, progress: Progress, now: float) -> float:
        if self._live is None:
            self._live = self._start()
        self._live.update(table_of(progress), refresh=True)
        return now + BAR_SECS

    def end(self, now: float) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _start(self) -> "Live":
        # rich takes 100 ms to import: not for jobs that are over before it is needed, nor for files
        from rich.console import Console
        from rich.live import Live

        if self._console is None:
            self._console = Console(file=self._stream, force_terminal=self._forced or None)
        # No thread refreshes it. Warnings go above the table; stdout is the script's, and may be a file.
        live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        live.start()
        return live


def table_of(progress: Progress) -> "Text":
    """What a terminal shows: a row a stage, then the whole. (Laid out by hand: rich's own tables cost forty times as much.)"""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop")
    any_failed = progress.failed > 0
    for stage in shown_in_table(progress.stages):
        text.append(f"{stage_text(stage.kind, stage.location, 28):<29}")
        _append_counts(text, stage, stage.secs_left if stage.is_open else None, any_failed)
        rows = "" if stage.rows is None else f"{rows_text(stage.rows)} rows"
        size = "" if stage.bytes is None else bytes_text(stage.bytes)
        text.append(f"{rows:>13}{size:>9}\n")
    text.append(f"{secs_text(progress.elapsed_secs):<29}", style="bold")
    _append_counts(text, progress, progress.secs_left, any_failed)
    return text


def _append_counts(text: "Text", of: StageProgress | Progress, secs_left: float | None, any_failed: bool) -> None:
    filled = BAR_WIDTH * of.done // max(1, of.total)
    text.append("━" * filled, style="green")
    text.append("━" * (BAR_WIDTH - filled), style="bright_black")
    running = f"{of.running:,} running" if of.running else ""
    text.append(f"{f'{of.done:,}/{of.total:,}':>13}{running:>12}")
    if any_failed:
        text.append(f"{f'{of.failed:,} failed' if of.failed else '':>10}", style="red")
    left = "" if secs_left is None else f"~{secs_text(secs_left)}"
    text.append(f"{left:>13}")


def shown_in_table(stages: tuple[StageProgress, ...]) -> list[StageProgress]:
    """The stages that fit: those at work first, then those to come, then those done last; in their order."""
    at_work = [stage for stage in stages if stage.is_open and (stage.running or stage.done)]
    to_come = [stage for stage in stages if stage.is_open and not (stage.running or stage.done)]
    done = [stage for stage in reversed(stages) if not stage.is_open and stage.total]
    kept = {id(stage) for stage in [*at_work, *to_come, *done][:MAX_STAGES_IN_BAR]}
    return [stage for stage in stages if id(stage) in kept]
