"""What siblings teach: how long an attempt of a stage takes, so how many may wait at a rank, and when one deserves a twin; how much memory
one takes, so what those to come are given at first.

It learns from durations and peaks and answers with numbers; it starts nothing.
"""

from collections import deque
from typing import TYPE_CHECKING

from smallpond_mpi.execution.scheduler.policy import Policy
from smallpond_mpi.execution.scheduler.sizing import first_grant, round_up

if TYPE_CHECKING:
    from smallpond_mpi.execution.scheduler.fleet import Attempt

MEMORY_OF_PAST = 0.2
"""Weight of the newest duration in the running mean."""

OVERHEAD_SECS = 0.0001
"""What an attempt costs besides exec: pipe and messages. It keeps the depth of a queue of no-ops finite."""

SAMPLES = 64


class Stage:
    """Siblings: tasks of one logical node, whose durations are alike."""

    __slots__ = (
        "_asked_bytes",
        "_n_kept",
        "_review_at",
        "at_least",
        "depth",
        "id",
        "is_watched",
        "mean_secs",
        "n_done",
        "need_bytes",
        "number",
        "peaks",
        "recent",
        "running",
        "short",
    )

    def __init__(self, stage_id: int, number: int) -> None:
        self.id = stage_id
        self.number = number
        self.mean_secs = 0.0
        self.n_done = 0
        self.depth = 1
        self.recent: list[float] = []  # the last durations, a ring
        self.peaks: list[int] = []  # the memory that the same attempts took
        self.short: dict[
            int, int
        ] = {}  # tasks that ran out of memory and are not done → the bytes that each is to get now
        self.need_bytes = (
            0  # what siblings turned out to need at their first attempt, where their grants were too small ...
        )
        self.at_least = 0  # ... and what the next ones are given therefore, 0 if nothing was learned
        self._asked_bytes = 0  # the least that attempts had which this was not enough for
        self._review_at = 0
        self.running: deque[Attempt] = deque()  # in the order they began; may hold ended ones
        self._n_kept = 0
        self.is_watched = False  # a timer looks at `running`

    def learn(self, elapsed_secs: float, peak_bytes: int, policy: Policy) -> None:
        """A sibling took so long, and so much memory."""
        n = self.n_done
        self.n_done = n + 1
        if n < SAMPLES:
            self.recent.append(elapsed_secs)
            self.peaks.append(peak_bytes)
        else:
            self.recent[n % SAMPLES] = elapsed_secs
            self.peaks[n % SAMPLES] = peak_bytes
        mean = self.mean_secs + MEMORY_OF_PAST * (elapsed_secs - self.mean_secs) if n else elapsed_secs
        self.mean_secs = mean
        shortest = 2 if mean <= policy.next_secs else 1
        self.depth = min(max(shortest, int(policy.prefetch_secs / (mean + OVERHEAD_SECS))), policy.max_prefetch)

    def is_review_due(self) -> bool:
        """Whether twice as many siblings are done as when the grants of this stage were last decided on."""
        return self.at_least > 0 and self.n_done >= self._review_at

    def was_asked(self, granted_bytes: int) -> None:
        """So much is what an attempt had by what was asked for, and it took more."""
        self._asked_bytes = min(self._asked_bytes or granted_bytes, granted_bytes)

    def decide_first_grant(self, free_bytes: int) -> None:
        """Work out what the next siblings are given. (Of `free_bytes` see `sizing`.)"""
        need = first_grant([*self.peaks, *self.short.values()], free_bytes)
        if need <= self._asked_bytes:
            self.need_bytes = self.at_least = 0
            return
        self.need_bytes = need
        # what a failed attempt gets now is no measurement: as it is, so that the task and its siblings get the same
        self.at_least = need if need in self.short.values() else round_up(need)
        self._review_at = 2 * self.n_done + 1

    def recall_after(self, policy: Policy) -> float:
        """Seconds after which the head of a lane with others behind it is unexpectedly long."""
        return max(policy.recall_secs, policy.recall_factor * self.mean_secs)

    def twin_after(self, policy: Policy) -> float | None:
        """Seconds that an attempt may run before it deserves a twin; None while too little is known.

        `enable` waits for three siblings and for three times the slowest twentieth of them; `aggressive` for one sibling and for one and a
        half times the median.
        """
        if policy.speculative_exec == "disable" or not self.recent:
            return None
        ordered = sorted(self.recent)
        if policy.speculative_exec == "aggressive":
            return max(0.5, 1.5 * ordered[len(ordered) // 2])
        if len(ordered) < 3:
            return None
        return max(2.0, 3.0 * ordered[len(ordered) * 19 // 20])

    def began(self, attempt: "Attempt") -> None:
        """Watch an attempt that may get a twin."""
        running = self.running
        while running and running[0].is_over:
            running.popleft()
        running.append(attempt)
        if len(running) > 2 * self._n_kept + SAMPLES:  # a straggler in front may keep ended ones from leaving
            self.running = deque(attempt for attempt in running if not attempt.is_over)
            self._n_kept = len(self.running)
