"""Limits, and what an attempt is granted: memory that is doubled until it is enough, shares of GPUs, CPUs of one NUMA node."""

from itertools import chain
from pathlib import Path

import pytest

from smallpond_mpi.common import InvalidArgument, NonzeroExitCode, OutOfMemory, TaskFailed
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task import PartitionInfo, Task, WorkStatus
from tests.contract.started import HOWS, Facts, facts_of

MB = 1 << 20


def test_limits_are_as_asked_and_memory_follows_from_cpus(probe: Facts) -> None:
    named, first = probe.of_attempt("named"), probe.of_attempt("first")
    assert (named["cpu_limit"], named["gpu_limit"], named["memory_limit"]) == (1, 0, 200 * MB)
    assert first["memory_limit"] == first["usable memory"] * first["cpu_limit"] // first["usable cpus"]
    assert probe.told["before"]["first"]["memory_limit"] is None


def test_an_attempt_runs_on_as_many_cpus_as_it_asked_for(probe: Facts) -> None:
    assert probe.of_attempt("first")["affinity"] == 1


def test_limits_out_of_range_are_refused(ctx: RuntimeContext) -> None:
    for limits in ({"cpu_limit": 0}, {"gpu_limit": -0.5}, {"memory_limit": 0}):
        with pytest.raises(InvalidArgument, match=next(iter(limits))):
            Task(ctx, [], [PartitionInfo()], **limits)


@pytest.mark.parametrize("how", [how if how == "python" else pytest.param(how, marks=pytest.mark.mpi) for how in HOWS])
def test_memory_is_doubled_until_it_is_enough(how: str, tmp_path: Path) -> None:
    facts = facts_of(how, "memory", tmp_path, "watched")
    greedy = [facts.of_attempt("greedy", retry) for retry in range(3)]
    assert [one["memory_limit"] // MB for one in greedy] == [40, 80, 160]
    assert [one["boosts"] for one in greedy] == [[1, 1], [1, 2], [1, 4]]
    assert [one["fail_count"] for one in greedy] == [0, 1, 2]
    assert facts.told["greedy"] == {
        "status": "SUCCEED",
        "memory_limit": 160 * MB,
        "boost": 4,
        "retry_count": 2,
        "fail_count": 2,
        "rows": 0,
    }
    query = facts.told["query"]
    assert (query["status"], query["rows"], query["boost"] > 1) == ("SUCCEED", 2_000_000, True)
    assert facts.told["modest"]["fail_count"] == facts.told["unlimited"]["fail_count"] == 0
    assert facts.told["tiny"]["status"] == "SUCCEED"
    assert facts.of_attempt("tiny")["memory_limit"] == 3 * MB
    assert facts.told["tiny"]["fail_count"] > 0


def test_an_enforced_limit_is_the_kernels(tmp_path: Path) -> None:
    facts = facts_of("python", "memory", tmp_path, "enforced")
    for retry, limit in enumerate((400 * MB, 800 * MB)):
        one = facts.of_attempt("greedy", retry)
        assert one["memory_limit"] == limit
        assert one["rlimit"] == [round(limit * 1.2), round(limit * 1.5)]
    assert facts.told["greedy"]["boost"] == 2
    query = facts.told[
        "query"
    ]  # most libraries don't survive an allocation that fails: a signal counts as want of memory here
    assert (query["status"], query["rows"], query["boost"] > 1) == ("SUCCEED", 2_000_000, True)
    assert (facts.told["modest"]["status"], facts.told["modest"]["fail_count"]) == ("SUCCEED", 0)
    assert facts.told["tiny"]["status"] == "SUCCEED"


def test_what_counts_as_out_of_memory(ctx: RuntimeContext) -> None:
    def crashed(error: Exception | None, limit: int | None = MB) -> Task:
        task = Task(ctx, [], [PartitionInfo()], memory_limit=limit)
        task.status, task.exception = WorkStatus.CRASHED, error
        return task

    assert crashed(OutOfMemory("x")).oom()
    assert crashed(MemoryError()).oom()
    assert not crashed(MemoryError(), limit=None).oom()
    assert not crashed(TaskFailed("x")).oom()
    assert not crashed(NonzeroExitCode("x")).oom()
    assert crashed(NonzeroExitCode("x")).oom(nonzero_exitcode_as_oom=True)
    done = crashed(OutOfMemory("x"))
    done.status = WorkStatus.SUCCEED
    assert not done.oom()


@pytest.fixture(scope="module")
def granted(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """The job on a rank with two NUMA nodes and three GPUs."""
    return facts_of("python", "topology", tmp_path_factory.mktemp("topology"))


def test_a_share_of_a_gpu_is_of_one_and_more_are_of_more(granted: Facts) -> None:
    assert set(granted.told["statuses"]) == {"SUCCEED"}
    for number, share in enumerate(granted.told["shares"]):
        one = granted.of_attempt(str(number))
        count = -(-share // 1)
        assert one["gpu_limit"] == share
        assert one["local_gpu_ranks"] == list(range(int(count)))
        assert one["local_gpu"] == one["local_rank"] == (0 if share else None)
        visible = [] if one["visible"] == "-1" else one["visible"].split(",")
        assert len(set(visible)) == count
        assert set(visible) <= {"GPU-a", "GPU-b", "GPU-c"}
        assert (one["usable_gpu_count"], one["get_local_gpus"]) == (3, [0, 1, 2])


def test_shares_of_a_gpu_never_add_up_to_more_than_one(granted: Facts) -> None:
    held = []
    for number, share in enumerate(granted.told["shares"]):
        one = granted.of_attempt(str(number))
        whole = int(share)
        quotas = [1.0] * whole + ([share - whole] if share > whole else [])
        for token, quota in zip(one["visible"].split(","), quotas, strict=False):
            held.append((one["began"], one["ended"], token, quota))
    for moment in chain.from_iterable((began, ended) for began, ended, _, _ in held):
        for token in ("GPU-a", "GPU-b", "GPU-c"):
            used = sum(quota for began, ended, of, quota in held if of == token and began <= moment < ended)
            assert used <= 1 + 1e-9


def test_the_numa_node_is_that_of_the_cpus(granted: Facts) -> None:
    nodes = granted.told["nodes"]
    for name in (*map(str, range(len(granted.told["shares"]))), "all"):
        one = granted.of_attempt(name)
        of_cpus = {nodes[str(cpu)] for cpu in one["cpus"]}
        assert one["numa_node"] == (of_cpus.pop() if len(of_cpus) == 1 else None)
