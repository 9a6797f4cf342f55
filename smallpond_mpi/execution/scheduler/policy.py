"""The numbers by which the scheduler core decides. Every one is a default that a test or a user may change; none is read from outside."""

from dataclasses import dataclass
from typing import Literal

from smallpond_mpi.common import DEFAULT_MAX_FAIL_COUNT, DEFAULT_MAX_RETRY_COUNT


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient, how eager and how suspicious the core is. Seconds are of the clock that `handle` is given."""

    max_fail_count: int = DEFAULT_MAX_FAIL_COUNT  # failures of one task at which it is given up
    max_retry_count: int = DEFAULT_MAX_RETRY_COUNT  # attempts of one task beyond which no twin is started
    max_not_started: int = 10  # times that no executor could even start a task
    max_deaths: int = 3  # ranks that died while they ran one task
    nonzero_exitcode_as_oom: bool = False
    # under a limit of the kernel's: an allocation that fails takes most libraries down with a signal
    signal_as_oom: bool = False
    stop_executor_on_failure: bool = False  # a rank on which a task failed gets no more, unless it is the last
    prioritize_retry: bool = False  # a retry goes to the front of its queue, not to the end

    late_secs: float = 15.0  # of silence, after which a rank gets no new tasks
    gone_secs: float = 60.0  # of silence, after which its attempts are started elsewhere
    unmet_grace_secs: float = 120.0  # that a request larger than every rank waits for a larger one to join
    stop_secs: float = 60.0  # in which a stopped attempt must be over; else its rank is given up

    prefetch_secs: float = 0.015  # of work that may wait at a rank behind what runs there
    # how long a task may take that has one waiting behind it: the way to rank 0 and back is 1 to 3 ms
    next_secs: float = 0.1
    max_prefetch: int = 64  # attempts in one lane
    recall_factor: float = 10.0  # times the learned duration after which a lane's head is unexpectedly long ...
    recall_secs: float = 0.25  # ... but at least this

    passed_over_limit: int = 64  # starts of others after which a waiting request reserves a rank
    # that a task waits for another rank than the one it crashed on; after the second crash there, the longer one
    avoid_secs: float = 5.0
    avoid_longer_secs: float = 60.0
    suspect_failures: int = 3  # different tasks crashing in a row on one rank, while others succeed elsewhere
    rest_secs: float = 1.0  # pause of such a rank, doubled each time ...
    max_rest_secs: float = 60.0  # ... up to this

    speculative_exec: Literal["disable", "enable", "aggressive"] = "enable"

    def __post_init__(self) -> None:
        if self.max_fail_count < 1 or self.max_prefetch < 1 or self.passed_over_limit < 1:
            raise ValueError(f"max_fail_count, max_prefetch and passed_over_limit are at least 1: {self}")
        if not 0 < self.late_secs <= self.gone_secs:
            raise ValueError(f"a rank is late before it is gone: {self}")
        if self.speculative_exec not in ("disable", "enable", "aggressive"):
            raise ValueError(f"speculative_exec is disable, enable or aggressive, not {self.speculative_exec!r}")
