"""Jobs that several files of tests look at run once."""

from datetime import datetime
from pathlib import Path

import pytest

from smallpond_mpi.execution.context import JobId, RuntimeContext
from tests.contract.started import HOWS, Facts, facts_of


@pytest.fixture(
    scope="session", params=[how if how == "python" else pytest.param(how, marks=pytest.mark.mpi) for how in HOWS]
)
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """The job of hand-made tasks: `first` and `empty` -> `named` (its first attempt fails) -> `placed`."""
    return facts_of(request.param, "probe", tmp_path_factory.mktemp("probe"))


@pytest.fixture(
    scope="session", params=[how if how == "python" else pytest.param(how, marks=pytest.mark.mpi) for how in HOWS]
)
def kinds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """The job of many small plans, one for each kind of node."""
    return facts_of(request.param, "kinds", tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def ctx(tmp_path: Path) -> RuntimeContext:
    """For tasks that are made, and not run as a job."""
    return RuntimeContext(JobId.new(), datetime(2026, 1, 1), str(tmp_path))
