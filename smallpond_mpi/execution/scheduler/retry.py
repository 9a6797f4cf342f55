"""What an attempt's failure means for its task: again, with more memory, elsewhere, or never more.

Only tasks that had trouble have a record, so that millions of smooth ones cost nothing.
"""

from dataclasses import dataclass, field

from smallpond_mpi.execution.model import FailureKind, Rank
from smallpond_mpi.execution.scheduler.policy import Policy

MAX_STORY = 12
"""Lines of a task's story that are kept: the first half and the last half."""

UNCOUNTED = frozenset({FailureKind.LOST, FailureKind.STOPPED, FailureKind.NOT_STARTED})
COUNTED = frozenset(FailureKind) - UNCOUNTED - {FailureKind.BAD_INPUT}
"""Kinds of which another attempt, maybe elsewhere, may be free."""
ELSEWHERE = frozenset({FailureKind.SIGNAL, FailureKind.EXIT_CODE, FailureKind.TIMEOUT, FailureKind.NOT_STARTED})
SUSPICIOUS = frozenset({FailureKind.SIGNAL, FailureKind.NOT_STARTED})
"""Kinds that can be the fault of the rank."""


@dataclass(slots=True)
class Trouble:
    """What went wrong with one task so far."""

    fails: int = 0  # every failed attempt: the contract's fail_count
    charged: int = 0  # those that count towards giving up
    not_started: int = 0
    deaths: int = 0
    memory_bytes: int | None = None  # a limit raised after running out of memory
    avoid: Rank | None = None  # the rank it crashed on last ...
    n_there: int = 0  # ... and how often in a row
    lines: int = 0
    story: list[str] = field(default_factory=list)

    @property
    def runs_alone(self) -> bool:
        """Whether it has failed, or died with a rank: then nothing is queued behind it or before it."""
        return self.charged > 0 or self.deaths > 0

    def avoid_rank(self, rank: Rank) -> None:
        """The next attempt had better be elsewhere."""
        self.n_there = self.n_there + 1 if self.avoid == rank else 1
        self.avoid = rank

    def tell(self, line: str) -> None:
        """Keep a line of the story; in a long one the middle is dropped."""
        self.lines += 1
        if len(self.story) == MAX_STORY:
            del self.story[MAX_STORY // 2]
        self.story.append(line)

    def told(self) -> list[str]:
        """The story, with a line for what was dropped."""
        dropped = self.lines - len(self.story)
        half = MAX_STORY // 2
        return [*self.story[:half], f"({dropped} more)", *self.story[half:]] if dropped else self.story


def judge(
    trouble: Trouble,
    kind: FailureKind,
    rank: Rank,
    granted_bytes: int,
    largest_bytes: int,
    policy: Policy,
    sibling_bytes: int = 0,
) -> str | None:
    """Write a failure into the record; returns why the task is to be given up, or None to try again.

    `granted_bytes` is what the attempt had, `largest_bytes` what the largest rank could give, `sibling_bytes` what siblings needed.
    """
    if (kind is FailureKind.EXIT_CODE and policy.nonzero_exitcode_as_oom) or (
        kind is FailureKind.SIGNAL and policy.signal_as_oom
    ):
        kind = FailureKind.OUT_OF_MEMORY
    if kind is FailureKind.STOPPED:
        return None
    if kind is FailureKind.LOST:
        trouble.deaths += 1
        if trouble.deaths >= policy.max_deaths:
            return f"it was running at the death of {trouble.deaths} ranks"
        return None
    if kind in ELSEWHERE:
        trouble.avoid_rank(rank)
    if kind is FailureKind.NOT_STARTED:
        trouble.not_started += 1
        if trouble.not_started >= policy.max_not_started:
            return f"no executor could start it in {trouble.not_started} attempts"
        return None
    trouble.fails += 1
    if kind is FailureKind.BAD_INPUT:
        return "its input is bad, which another attempt can't change"
    if kind is FailureKind.OUT_OF_MEMORY and granted_bytes < largest_bytes:
        raised = min(max(2 * granted_bytes, sibling_bytes, 1), largest_bytes)
        if raised > (trouble.memory_bytes or 0):
            trouble.memory_bytes = raised
            return None
        trouble.avoid_rank(rank)  # it has less than the largest, which gets to try
    trouble.charged += 1
    if trouble.charged < policy.max_fail_count:
        return None
    if kind is FailureKind.OUT_OF_MEMORY:
        rest = (
            f"the most that a rank can give is {largest_bytes:,}"
            if granted_bytes < largest_bytes
            else "no rank can give it more"
        )
        return f"it ran out of memory with {granted_bytes:,} bytes, and {rest}"
    return f"{trouble.charged} attempts failed, the last with: {kind.value}"
