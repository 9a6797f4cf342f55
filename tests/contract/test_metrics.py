"""What is measured of an attempt comes back with it."""

from datetime import datetime
from pathlib import Path

import pytest

from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.task import PartitionInfo, Task, metrics
from tests.contract.started import Facts


def test_every_success_tells_time_memory_and_files(probe: Facts) -> None:
    found = probe.told["after"]["named"]["perf_metrics"]
    assert 0 < found["elapsed wall time (secs)"] < 100
    assert 20 < found["max resident set size (MB)"] < 2000
    assert found["user mode cpu time (secs)"] + found["system mode cpu time (secs)"] > 0
    assert (found["num input files"], found["num output files"]) == (2, 1)
    assert found["total input size (MB)"] > 0
    assert found["total output size (MB)"] > 0


def test_timers_and_merged_metrics_come_back(probe: Facts) -> None:
    found = probe.told["after"]["named"]["perf_metrics"]
    assert 0 <= found["own metric (secs)"] <= found["elapsed wall time (secs)"]
    assert found["merged"] == 5
    assert probe.told["before"]["named"]["perf_metrics"] == {}


def test_the_times_of_the_attempt_come_back(probe: Facts) -> None:
    before, after = probe.told["before"]["named"], probe.told["after"]["named"]
    assert (before["start_time"], before["finish_time"], before["elapsed_time"]) == (None, None, 0.0)
    assert after["finish_time"] - after["start_time"] == pytest.approx(after["elapsed_time"])
    running = probe.of_attempt("named", 1)
    assert running["start_time"] == after["start_time"]
    assert running["finish_time"] is None
    assert 0 < running["elapsed_time"] <= after["elapsed_time"]


def test_a_profile_is_made_and_stays_in_the_child(probe: Facts) -> None:
    assert probe.of_attempt("named")["profile"]


@pytest.mark.parametrize(("after_secs", "is_logged"), [(0.0, True), (3.0, False)])
def test_a_profile_is_logged_of_what_took_long(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    after_secs: float,
    is_logged: bool,
) -> None:
    monkeypatch.setattr(metrics, "PROFILE_LOGGED_AFTER_SECS", after_secs)
    ctx = RuntimeContext(JobId.new(), datetime(2026, 1, 1), str(tmp_path), enable_profiling=True)
    profiled = Task(ctx, [], [PartitionInfo()])
    caplog.set_level("DEBUG")
    assert profiled.exec() is WorkStatus.SUCCEED
    assert ("function calls" in caplog.text) == is_logged


@pytest.fixture
def task(tmp_path) -> Task:
    return Task(RuntimeContext(JobId.new(), datetime(2026, 1, 1), str(tmp_path)), [], [PartitionInfo()])


def test_a_timer_must_run(task: Task) -> None:
    with pytest.raises(RuntimeError, match="no timer runs for 'x'"):
        task.add_elapsed_time("x")
    assert task.add_elapsed_time() == 0.0
    assert task.add_elapsed_time("x") == task.perf_metrics["x"] >= 0


def test_rows_have_a_size(task: Task) -> None:
    assert task.compute_avg_row_size(1000, 10) == 100
    assert task.compute_avg_row_size(0, 10) == task.compute_avg_row_size(10, 0) // 10 == 1


def test_row_groups_are_neither_too_many_nor_too_big(task: Task) -> None:
    assert task.adjust_row_group_size(1_000_000, 1000) == 122880
    many = task.adjust_row_group_size(10**9, 10**9)
    assert 10**9 / many <= 256
    assert task.adjust_row_group_size(10**12, 10**6, max_row_group_bytes=10**8) == 100


def test_parquet_files_tell_where_they_come_from(probe: Facts) -> None:
    import pyarrow.parquet as pq

    named = probe.told["after"]["named"]
    metadata = pq.read_metadata(named["files"][0]).metadata
    found = {name.decode(): value.decode() for name, value in metadata.items() if name.startswith(b"SMALLPOND:")}
    assert found == {
        "SMALLPOND:__task_key__": "Probe-000003",
        "SMALLPOND:__task_id__": "000003",
        "SMALLPOND:__node_id__": "0",
        "SMALLPOND:__job_id__": probe.told["job"]["job_id"],
        "SMALLPOND:__job_root__": probe.told["job"]["job_root"],
        "SMALLPOND:@toplevel@": "0",
        "SMALLPOND:part": "1",
    }


def test_extra_partitions_are_told_too(task: Task) -> None:
    metadata = task.parquet_kv_metadata_str([PartitionInfo(3, 5, "day")])
    assert metadata["SMALLPOND:day"] == "3"
    assert task.parquet_kv_metadata_bytes([PartitionInfo(3, 5, "day")]) == {
        name.encode(): value.encode() for name, value in metadata.items()
    }
