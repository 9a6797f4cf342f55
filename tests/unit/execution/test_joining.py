"""What an executor that joins by files finds and takes."""

import pytest

from smallpond_mpi.execution import joining
from smallpond_mpi.execution.joining import Allowance
from smallpond_mpi.execution.model import Capacity
from smallpond_mpi.execution.paths import JobPaths
from smallpond_mpi.platform import discover
from smallpond_mpi.platform.binding import OWN_BYTES

GB = 1 << 30
STEP = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "4", "SLURM_JOB_CPUS_PER_NODE": "4", "SLURM_STEP_ID": "0"}


class Stop(Exception):
    """It would begin to work now."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity


def found(monkeypatch: pytest.MonkeyPatch, allowance: Allowance) -> Capacity:
    """What an executor that srun has bound to one of a step's four CPUs hands out; the node has 8 GB."""

    class Nothing:
        rank = 3

        def close(self, secs: float) -> None:
            pass

    def executor(*_: object, capacity: Capacity, **__: object) -> None:
        raise Stop(capacity)

    monkeypatch.setattr(joining, "ForkServer", lambda env: Nothing())
    monkeypatch.setattr(joining, "_join", lambda *_: Nothing())
    monkeypatch.setattr(joining, "ExecutorLoop", executor)
    monkeypatch.setattr(joining.signal, "signal", lambda *_: None)
    monkeypatch.setattr(joining, "arrived", lambda: None)
    monkeypatch.setattr(discover, "allowed_cpus", lambda root="": (0,))
    monkeypatch.setattr(discover, "memory_limits", lambda *_: [discover.MemoryLimit(8 * GB, "the test's")])
    with pytest.raises(Stop) as stop:
        joining.serve_job(JobPaths("root", "job"), STEP, allowance)
    return stop.value.capacity


def test_one_that_is_bound_to_a_part_of_the_cpus_takes_that_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, Allowance()).memory_bytes == 2 * GB - OWN_BYTES


def test_one_that_was_given_a_size_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, Allowance(memory_bytes=5 * GB)).memory_bytes == 5 * GB
