"""Which task, which attempt, which partition: the same names on rank 0 and in the child."""

from pathlib import Path

import pytest

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.task import PartitionInfo, Task, TaskId, TaskRuntimeId, WorkStatus
from tests.contract.started import JOBS, Facts, facts_of, start


@pytest.fixture
def ctx(tmp_path) -> RuntimeContext:
    from datetime import datetime

    return RuntimeContext(JobId.new(), datetime(2026, 1, 1), str(tmp_path), random_seed=1)


def test_id_key_and_node_id(probe: Facts) -> None:
    for facts in (probe.told["after"]["named"], probe.of_attempt("named")):
        assert (facts["id"], facts["key"], facts["node_id"]) == ("000003", "Probe-000003", 0)


def test_an_attempt_knows_its_number(probe: Facts) -> None:
    for retry in (0, 1):
        facts = probe.of_attempt("named", retry)
        assert (facts["retry_count"], facts["fail_count"], facts["sched_epoch"]) == (retry, retry, 0)
        assert facts["runtime_id"] == f"000003.0.{retry}"
    after = probe.told["after"]["named"]
    assert (after["retry_count"], after["fail_count"], after["runtime_id"]) == (1, 1, "000003.0.1")
    assert probe.told["after"]["first"]["fail_count"] == 0


def test_exec_id_names_the_worker(probe: Facts) -> None:
    for name in ("first", "empty", "placed"):
        assert probe.told["before"]["first"]["exec_id"] is None
        host, _, rank = probe.told["after"][name]["exec_id"].rpartition(".")
        assert host
        assert int(rank) in (0, 1)
        assert probe.told["after"][name]["exec_id"] == probe.of_attempt(name)["exec_id"]


def test_partitions_are_sorted(probe: Facts) -> None:
    for facts in (probe.told["after"]["named"], probe.of_attempt("named")):
        assert facts["partition_infos"] == ["@toplevel@[0/1]", "part[1/4]"]
        assert facts["partition_dims"] == "('@toplevel@', 'part')"
        assert facts["partition_infos_as_dict"] == {"@toplevel@": 0, "part": 1}


def test_get_partition_info_names_what_there_is(ctx: RuntimeContext) -> None:
    task = Task(ctx, [], [PartitionInfo(1, 4, "part"), PartitionInfo()])
    assert task.get_partition_info("part") == PartitionInfo(1, 4, "part")
    with pytest.raises(KeyError, match=r"'day'.*@toplevel@.*part"):
        task.get_partition_info("day")


def test_partition_infos_are_checked(ctx: RuntimeContext) -> None:
    with pytest.raises(InvalidArgument, match="@toplevel@"):
        Task(ctx, [], [PartitionInfo(0, 2, "part")])
    with pytest.raises(InvalidArgument, match="repeated"):
        Task(ctx, [], [PartitionInfo(), PartitionInfo(0, 2, "part"), PartitionInfo(1, 2, "part")])


def test_partition_infos_compare_by_dimension_and_index() -> None:
    infos = [PartitionInfo(1, 2, "b"), PartitionInfo(0, 2, "b"), PartitionInfo(5, 9, "a")]
    assert [str(info) for info in sorted(infos)] == ["a[5/9]", "b[0/2]", "b[1/2]"]
    assert len({PartitionInfo(0, 2, "b"), PartitionInfo(0, 2, "b")}) == 1


def test_ids_and_statuses_are_as_documented() -> None:
    assert str(TaskId(42)) == "000042"
    assert str(TaskRuntimeId(TaskId(42), 1, 2)) == "000042.1.2"
    assert {status.name: status.value for status in WorkStatus} == {
        "INCOMPLETE": 1,
        "SUCCEED": 2,
        "FAILED": 3,
        "CRASHED": 4,
        "EXEC_FAILED": 5,
    }


def test_tasks_of_a_plan_name_their_node_and_line(kinds: Facts) -> None:
    script = str(JOBS / "kinds.py")
    for made in kinds.told["made"]:
        assert made["key"].startswith(made["kind"] + "-")
        assert made["default_output_name"] == f"{made['kind']}.{made['node_id']}"
        path, _, line = made["location"].rpartition(":")
        assert path == script
        assert f"{made['node']}(" in Path(script).read_text().splitlines()[int(line) - 1]


@pytest.mark.fault
def test_a_job_that_is_taken_up_is_in_its_next_epoch(tmp_path: Path) -> None:
    assert start("python", "stream", str(tmp_path / "data"), str(tmp_path / "facts.json"), "job", "1").returncode != 0
    told = facts_of("python", "stream", tmp_path, "job", "1").told
    assert told["attempt"][0] == 1
    assert sorted({line[0] for line in told["worked"]}) == [0, 1]
