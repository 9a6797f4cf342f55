"""Faults on purpose: the job that suffers them gives the same result as the job that does not."""

from pathlib import Path

import pytest

from smallpond_mpi.common import InjectedFault
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.task import PartitionInfo, Task
from tests.contract.started import HOWS, Facts, facts_of


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return facts_of("python", "faults", tmp_path_factory.mktemp("smooth"), "0")


@pytest.mark.slow
@pytest.mark.parametrize("how", [how if how == "python" else pytest.param(how, marks=pytest.mark.mpi) for how in HOWS])
def test_faults_at_30_percent_change_nothing(how: str, smooth: Facts, tmp_path: Path) -> None:
    told = facts_of(how, "faults", tmp_path, "0.3").told
    assert told["tasks"] > 200
    assert told["failed attempts"] >= 3
    assert told["rows"] == smooth.told["rows"]
    assert told["squares"] == smooth.told["squares"] == [item * item for item in range(2000)]
    assert told["causes"] == ["NoneType"]  # in the end all succeeded
    assert smooth.told["failed attempts"] == 0


@pytest.fixture
def ctx(tmp_path) -> RuntimeContext:
    from datetime import datetime

    return RuntimeContext(JobId.new(), datetime(2026, 1, 1), str(tmp_path), fault_inject_prob=1.0)


def test_a_fault_is_raised_in_the_first_attempts_only(ctx: RuntimeContext) -> None:
    task = Task(ctx, [], [PartitionInfo()])
    for fails in (0, 1):
        task.fail_count = fails
        with pytest.raises(InjectedFault, match="Task-000001"):
            task.inject_fault()
    task.fail_count = 2
    task.inject_fault()


def test_faults_come_at_the_documented_places(ctx: RuntimeContext) -> None:
    for call in ("initialize", "finalize", "add_elapsed_time"):
        with pytest.raises(InjectedFault):
            getattr(Task(ctx, [], [PartitionInfo()]), call)()
