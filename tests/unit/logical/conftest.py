"""Builders for plans without any data: what is planned never looks at files."""

from datetime import datetime
from pathlib import Path

import pytest

from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.logical.node import Context


@pytest.fixture
def ctx() -> Context:
    return Context()


@pytest.fixture
def job(tmp_path: Path) -> RuntimeContext:
    made = RuntimeContext(JobId.of("planned"), datetime(2026, 1, 1), str(tmp_path), random_seed=1)
    made.num_slots = 4
    return made
