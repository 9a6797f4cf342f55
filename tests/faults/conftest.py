"""Input of the jobs that are killed, and the end of every process they leave."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Job, write_input


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Makes jobs; at the end of the test their processes are killed."""
    write_input(tmp_path / "in")
    made: list[Job] = []

    def make(**options: Any) -> Job:
        one = Job(tmp_path / f"job-{len(made)}", **options)
        made.append(one)
        return one

    yield make
    for one in made:
        one.kill_all()
