"""Whole clusters in virtual time: the stories that single events don't tell."""

import gc
from random import Random

import pytest

from smallpond_mpi.common import GB
from smallpond_mpi.execution.model import Rank, SpecKind, TaskId, TaskRuntimeId
from smallpond_mpi.execution.scheduler import trace
from smallpond_mpi.execution.scheduler.commands import FinishJob, StartAttempt, StopRank
from smallpond_mpi.execution.scheduler.core import Policy, SchedulerCore
from smallpond_mpi.execution.scheduler.events import AttemptEnded
from smallpond_mpi.testing import (
    Faults,
    Pause,
    RankFault,
    RankFaultKind,
    SimCluster,
    SimulationStuck,
    layered,
    rank,
    replay,
    task,
)

FINISHED = FinishJob(None, "")


def never_twice(cluster: SimCluster) -> bool:
    return all(count == 1 for count in cluster.n_started.values())


def test_a_shuffle_on_1000_ranks_runs_each_task_once() -> None:
    cluster = SimCluster([rank(4)] * 1000, seed=1, check_every=5_000, duration=lambda _, rng: 5 + rng.random())
    assert cluster.run_job(layered([8_000, 8_000])) == FINISHED
    assert never_twice(cluster)
    assert cluster.clock.now < 30, "two waves of each stage"


def test_ten_thousand_short_tasks_keep_two_workers_busy() -> None:
    cluster = SimCluster([rank(0), rank(1), rank(1)], seed=2, check_every=1_000, duration=lambda *_: 0.0001)
    assert cluster.run_job(layered([10_000])) == FINISHED
    assert cluster.clock.now < 2 * 10_000 * 0.0001 / 2 + 0.5, "at most half of the time is spent waiting for messages"
    assert cluster.network.n_frames < 5 * 10_000 / 4, "starts travel in batches"


@pytest.mark.parametrize("seed", range(3))
def test_a_16_core_task_does_not_starve_behind_endless_1_core_tasks(seed: int) -> None:
    wide = task(1, cpus=16)
    small = [task(id, stage=2) for id in range(2, 5_000)]
    cluster = SimCluster([rank(0), *[rank(16)] * 4], seed=seed, check_every=100, duration=lambda _, rng: rng.random())
    cluster.submit(small[:200])
    cluster.run_for(0.5)
    cluster.submit([wide, *small[200:]])
    cluster.run()
    order = [command.attempt.id for command in cluster.commands if isinstance(command, StartAttempt)]
    assert order.index(TaskId(1)) < 1_000, f"seed {seed}"


def test_many_wide_tasks_get_their_share_among_small_ones() -> None:
    wide = [task(id, cpus=8, stage=1) for id in range(1, 21)]
    small = [task(id, stage=2) for id in range(21, 3_000)]
    cluster = SimCluster([rank(0), *[rank(8)] * 3], seed=5, check_every=100, duration=lambda _, rng: rng.random())
    cluster.submit([*small, *wide])
    assert cluster.run() == FINISHED
    order = [command.attempt.id for command in cluster.commands if isinstance(command, StartAttempt)]
    assert max(order.index(TaskId(id)) for id in range(1, 21)) < 2_500


def test_a_partition_that_heals_brings_back_a_zombie_that_changes_nothing() -> None:
    faults = [RankFault(1.0, Rank(number), RankFaultKind.CUT_OFF, 300.0) for number in (1, 2)]
    cluster = SimCluster(
        [rank(1), rank(4), rank(4), rank(4)],
        seed=3,
        rank_faults=faults,
        duration=lambda *_: 20.0,
        policy=Policy(speculative_exec="disable"),
    )
    assert cluster.run_job(layered([40])) == FINISHED
    cluster.run_for(400)
    assert cluster.core.rank_counts().gone == 0, "they have joined anew"
    resets = [command.rank for command in cluster.commands if isinstance(command, StopRank)]
    assert resets == [1, 2]
    assert cluster.run_job(layered([40], first_id=41)) == FINISHED
    assert {cluster.started[attempt].rank for attempt in cluster.accepted.values() if attempt.id > 40} == {0, 1, 2, 3}


def test_a_frozen_rank_that_goes_on_in_time_loses_nothing() -> None:
    faults = [RankFault(1.0, Rank(1), RankFaultKind.FREEZES, 40.0)]
    policy = Policy(speculative_exec="disable")
    cluster = SimCluster([rank(1), rank(1)], seed=3, rank_faults=faults, duration=lambda *_: 3.0, policy=policy)
    assert cluster.run_job(layered([20])) == FINISHED
    assert never_twice(cluster)


def test_a_pause_of_the_scheduler_three_times_as_long_as_ranks_have_loses_none() -> None:
    cluster = SimCluster([rank(1), rank(2), rank(2)], seed=4, pauses=[Pause(5.0, 180.0)], duration=lambda *_: 4.0)
    assert cluster.run_job(layered([20])) == FINISHED
    assert cluster.core.rank_counts().gone == 0
    assert never_twice(cluster)


def test_ranks_that_vanish_are_noticed_by_their_silence() -> None:
    faults = [RankFault(2.0, Rank(number), RankFaultKind.VANISHES) for number in (1, 2, 3)]
    policy = Policy(speculative_exec="disable")
    cluster = SimCluster([rank(1)] * 5, seed=6, policy=policy, rank_faults=faults, duration=lambda *_: 3.0)
    assert cluster.run_job(layered([30])) == FINISHED
    assert cluster.core.rank_counts().gone == 3


def test_a_rank_that_crashes_everything_fails_no_job() -> None:
    cluster = SimCluster([rank(2), *[rank(2)] * 3], seed=7, duration=lambda *_: 0.5)
    bad = cluster.executors[Rank(2)]
    bad._faults = Faults(signal=1.0)
    assert cluster.run_job(layered([200])) == FINISHED
    on_bad = [start for start in cluster.started.values() if start.rank == 2]
    assert 3 <= len(on_bad) < 40


def test_a_task_that_always_crashes_fails_its_job_soon() -> None:
    faults = Faults(signal=1.0)
    cluster = SimCluster([rank(2)] * 4, seed=8, faults=faults)
    finished = cluster.run_job([task(1)])
    assert finished.failed == 1
    assert "3 attempts failed, the last with: signal" in finished.reason
    assert {start.rank for start in cluster.started.values()} > {cluster.started[TaskRuntimeId(TaskId(1), 0, 0)].rank}


def test_memory_that_siblings_need_is_found_by_doubling() -> None:
    cluster = SimCluster([rank(4, 64 * GB)] * 2, seed=9, need_bytes=lambda attempt: 30 * GB if attempt.id == 7 else GB)
    assert cluster.run_job(layered([20])) == FINISHED
    assert cluster.n_started[TaskId(7)] == 3, "14.4, 28.8, 57.6 GB"


def test_stragglers_do_not_hold_up_the_job() -> None:
    def duration(attempt: TaskRuntimeId, rng: Random) -> float:
        return 1_000.0 if attempt.id % 50 == 0 and attempt.retry == 0 else 1.0 + rng.random()

    cluster = SimCluster([rank(4)] * 8, seed=10, duration=duration)
    assert cluster.run_job(layered([200, 10])) == FINISHED
    assert cluster.clock.now < 100
    assert cluster.core.n_twins == 4


def test_the_event_trace_of_a_job_gives_the_same_commands_again(tmp_path) -> None:
    faults = Faults(exception=0.02, signal=0.02, slow=0.02)
    cluster = SimCluster(
        [rank(3)] * 5, seed=11, faults=faults, rank_faults=[RankFault(2.0, Rank(1), RankFaultKind.DIES)]
    )
    cluster.run_job(layered([60, 30]))
    path = tmp_path / "events.jsonl"
    cluster.save_trace(path)
    with path.open() as lines:
        assert replay(trace.read(lines), check=True) == cluster.commands
    torn = path.read_text()[:-5].splitlines(keepends=True)
    assert len(list(trace.read(torn))) == len(cluster.trace) - 1


def test_the_core_leaves_nothing_to_the_garbage_collector() -> None:
    faults = Faults(exception=0.02, signal=0.02, slow=0.02)
    dies = RankFault(2.0, Rank(1), RankFaultKind.DIES)
    cluster = SimCluster([rank(3)] * 5, seed=13, faults=faults, rank_faults=[dies])
    cluster.run_job(layered([60, 30]))
    core = SchedulerCore(epoch=0)
    gc.collect()
    for event, now in cluster.trace:
        core.handle(event, now)
    assert gc.collect() == 0


def test_a_job_of_every_kind_on_a_lone_rank_without_workers() -> None:
    kinds = [SpecKind.CHILD, SpecKind.SCHEDULER_CHILD, SpecKind.HERE, SpecKind.BARRIER]
    specs = [task(id, range(max(1, id - 3), id), kind=kinds[id % 4]) for id in range(1, 60)]
    cluster = SimCluster([rank(1)], seed=12)
    assert cluster.run_job(specs) == FINISHED


def test_a_core_that_breaks_a_promise_is_caught_with_its_seed() -> None:
    cluster = SimCluster([rank(1)], seed=4711)
    cluster.run_job([task(1)])
    with pytest.raises(SimulationStuck, match=r"seed 4711.* was accepted after"):
        cluster._promise_kept_by_accept(
            cluster.accepted[TaskId(1)], next(e for e, _ in cluster.trace if isinstance(e, AttemptEnded))
        )
