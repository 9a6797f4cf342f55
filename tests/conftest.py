"""What all tests share: how they are spread over pytest's processes, and bounds for hypothesis.

In CI the same examples are drawn each time. `SP_TEST_EXAMPLES=5000 pytest tests/properties` looks longer.
"""

import os
import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile(
    "bounded",
    max_examples=int(os.environ.get("SP_TEST_EXAMPLES", "100")),
    deadline=None,  # no timed assertion: a slow machine is no bug
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("bounded")

ONE_AT_A_TIME = "tests/slurm/"
"""Its tests share what a machine has once: the test Slurm, and the cores that it binds tasks to."""


class ByFile(LoadScopeScheduling):
    """A file's tests, which share what its fixtures made, run in one process, in order."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return ONE_AT_A_TIME if path.startswith(ONE_AT_A_TIME) else path


def pytest_configure() -> None:
    """Programs that tests start are to hear of Ctrl-C, also where a shell started the tests in the background and had them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Instead of what --dist names: its groups need marks, which pytest 9.2 doesn't let xdist 3.8 put into node ids."""
    return ByFile(config, log)
