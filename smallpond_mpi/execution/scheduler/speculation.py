"""What siblings teach: how long an attempt of a stage takes, so how many may wait at a rank, and when one deserves a twin.

It learns from durations and answers with numbers; it starts nothing.
"""

from collections import deque
from typing import TYPE_CHECKING

from smallpond_mpi.execution.scheduler.policy import Policy

if TYPE_CHECKING:
    from smallpond_mpi.execution.scheduler.fleet import Attempt

MEMORY_OF_PAST = 0.2
"""Weight of the newest duration in the running mean."""

OVERHEAD_SECS = 0.0001
"""What an attempt costs besides exec: pipe and messages. It keeps the depth of a queue of no-ops finite."""

SAMPLES = 64


class Stage:
    """Siblings: tasks of one logical node, whose durations are alike."""

    __slots__ = ("_n_kept", "depth", "id", "is_watched", "mean_secs", "n_done", "number", "recent", "running")

    def __init__(self, stage_id: int, number: int) -> None:
        self.id = stage_id
        self.number = number
        self.mean_secs = 0.0
        self.n_done = 0
        self.depth = 1
        self.recent: list[float] = []  # the last durations, a ring
        self.running: deque[Attempt] = deque()  # in the order they began; may hold ended ones
        self._n_kept = 0
        self.is_watched = False  # a timer looks at `running`

    def learn(self, elapsed_secs: float, policy: Policy) -> None:
        """A sibling took so long."""
        n = self.n_done
        self.n_done = n + 1
        if n < SAMPLES:
            self.recent.append(elapsed_secs)
        else:
            self.recent[n % SAMPLES] = elapsed_secs
        mean = self.mean_secs + MEMORY_OF_PAST * (elapsed_secs - self.mean_secs) if n else elapsed_secs
        self.mean_secs = mean
        depth = int(policy.prefetch_secs / (mean + OVERHEAD_SECS))
        self.depth = 1 if depth < 2 else min(depth, policy.max_prefetch)

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
