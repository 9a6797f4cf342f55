"""What the core does about each event, told in small stories."""

from typing import Any

import pytest

from smallpond_mpi.common import GB
from smallpond_mpi.execution.model import FailureKind, Rank, SpecKind, TaskId, TaskRuntimeId
from smallpond_mpi.execution.scheduler.commands import (
    AcceptAttempt,
    DiscardAttempt,
    FinishJob,
    RunHere,
    StartAttempt,
    StopAttempt,
    StopRank,
)
from smallpond_mpi.execution.scheduler.core import Policy
from smallpond_mpi.execution.scheduler.events import (
    AttemptEnded,
    Checkpointed,
    LocalRunEnded,
    PollingResumed,
    RankLost,
    RankReported,
    StopRequested,
)
from smallpond_mpi.testing import rank, task
from tests.unit.scheduler.desk import Desk

FINISHED = FinishJob(None, "")


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def desk(policy: Policy) -> Desk:
    return Desk(policy)


def of(kind: type, commands: list) -> list:
    return [command for command in commands if isinstance(command, kind)]


def test_a_chain_runs_in_order_and_the_job_is_finished_once(desk: Desk) -> None:
    desk.joins(0)
    assert desk.submits(task(1), task(2, [1]))[0].attempt == TaskRuntimeId(TaskId(1), 0, 0)
    accept, start = desk.ends(1)
    assert accept == AcceptAttempt(TaskRuntimeId(TaskId(1), 0, 0))
    assert start.attempt.id == 2
    assert desk.ends(2) == [AcceptAttempt(desk.attempt(2)), FINISHED]
    assert desk.waits(100) == []


def test_a_job_of_which_everything_is_done_is_finished_at_once(desk: Desk) -> None:
    assert desk.submits() == [FINISHED]
    assert desk.submits(task(1), task(2, [1]), done=(1, 2)) == [FINISHED]


def test_later_submissions_depend_on_earlier_and_on_restored_tasks(desk: Desk) -> None:
    desk.joins(0)
    desk.submits(task(1), done=(1,))
    assert [start.attempt.id for start in of(StartAttempt, desk.submits(task(2, [1]), task(3, [2])))] == [2]
    assert desk.core.explain(TaskId(3)) == "task 000003 waits for 1 of its inputs: 000002."


def test_a_task_whose_input_was_dropped_fails_its_job_with_that_reason(desk: Desk) -> None:
    desk.joins(0)
    desk.submits(task(1), task(2, [1]))
    desk.ends(1, FailureKind.BAD_INPUT)
    assert desk.submits(task(3, [2])) == [FinishJob(TaskId(3), "its input 000002 was not made")]
    assert of(StartAttempt, desk.submits(task(1)))[0].attempt.retry == 1, "the same number would be the same directory"


def test_a_barrier_and_a_local_run_need_no_rank(desk: Desk) -> None:
    here, barrier = SpecKind.HERE, SpecKind.BARRIER
    assert desk.submits(task(1, kind=here), task(2, [1], kind=barrier), task(3, [2], kind=here)) == [RunHere(TaskId(1))]
    assert desk(LocalRunEnded(TaskId(1), None)) == [RunHere(TaskId(3))]
    assert desk(LocalRunEnded(TaskId(3), FailureKind.INJECTED)) == [RunHere(TaskId(3))]
    assert desk(LocalRunEnded(TaskId(3), None)) == [FINISHED]


def test_a_chain_of_100_000_barriers_does_not_recurse(desk: Desk) -> None:
    chain = [task(id, [id - 1] if id > 1 else [], kind=SpecKind.BARRIER) for id in range(1, 100_001)]
    assert desk.submits(*chain) == [FINISHED]


@pytest.mark.parametrize("kind", [FailureKind.EXCEPTION, FailureKind.SIGNAL, FailureKind.TIMEOUT, FailureKind.INJECTED])
def test_a_task_that_fails_twice_succeeds_in_its_third_attempt(desk: Desk, kind: FailureKind) -> None:
    desk.joins(0)
    desk.submits(task(1))
    desk.ends(1, kind)
    desk.ends(1, kind)
    assert desk.core.fail_count(TaskId(1)) == 2
    assert desk.attempt(1).retry == 2
    assert desk.ends(1)[-1] == FINISHED


def test_a_task_that_fails_three_times_is_given_up_and_its_job_with_it(desk: Desk) -> None:
    desk.joins(0, rank(2))
    desk.submits(task(1), task(2), task(3, [1]))
    desk.ends(1, FailureKind.EXCEPTION)
    desk.ends(1, FailureKind.EXCEPTION)
    stop, finish = desk.ends(1, FailureKind.EXCEPTION)
    assert (stop.attempt, finish.failed) == (desk.attempt(2), 1)
    assert "3 attempts failed" in finish.reason
    assert desk.ends(2) == [DiscardAttempt(desk.attempt(2))], "it was too late"
    story = desk.core.explain(TaskId(1))
    assert "was given up" in story
    assert "ended with exception (it was told to)" in story
    assert "dropped" in desk.core.explain(TaskId(3))
    assert desk.submits(task(4))[0].attempt.id == 4, "the session goes on"


def test_bad_input_is_not_tried_again(desk: Desk) -> None:
    desk.joins(0)
    desk.submits(task(1))
    assert of(FinishJob, desk.ends(1, FailureKind.BAD_INPUT))[0].failed == 1


def test_out_of_memory_doubles_the_grant_up_to_the_largest_rank(desk: Desk) -> None:
    desk.joins(0, rank(4, 10 * GB))
    desk.joins(1, rank(4, 40 * GB))
    desk.submits(task(1, memory_bytes=8 * GB))
    granted = []
    for _ in range(3):
        granted.append(desk.starts[TaskId(1)].grant.memory_bytes)
        desk.ends(1, FailureKind.OUT_OF_MEMORY)
    assert granted == [8 * GB, 16 * GB, 32 * GB]
    most = desk.starts[TaskId(1)].grant.memory_bytes
    assert (most, desk.where(1)) == (40 * GB - int(40 * GB * 0.1), 1)
    desk.ends(1, FailureKind.OUT_OF_MEMORY)
    desk.ends(1, FailureKind.OUT_OF_MEMORY)
    finish = of(FinishJob, desk.ends(1, FailureKind.OUT_OF_MEMORY))[0]
    assert f"{most:,} bytes" in finish.reason


@pytest.mark.parametrize("sizes", [(10, 11), (11, 10)])
@pytest.mark.parametrize("memory_bytes", [8 * GB, 100, None])
def test_what_never_has_memory_enough_ends_though_ranks_differ_a_little(
    desk: Desk, sizes: tuple[int, int], memory_bytes: int | None
) -> None:
    """The limit that only the larger rank can grant in full is asked for on the smaller one too."""
    for number, size in enumerate(sizes):
        desk.joins(number, rank(4, size * GB))
    desk.submits(task(1, memory_bytes=memory_bytes))
    granted = []
    for _ in range(40):
        granted.append(desk.starts[TaskId(1)].grant.memory_bytes)
        finish = of(FinishJob, desk.ends(1, FailureKind.OUT_OF_MEMORY))
        if finish:
            break
    assert finish, granted
    assert max(granted) == 11 * GB - int(11 * GB * 0.1), "the larger one had its try"


@pytest.mark.parametrize("policy", [Policy(nonzero_exitcode_as_oom=True)])
def test_an_exit_code_can_be_taken_as_out_of_memory(desk: Desk) -> None:
    desk.joins(0, rank(4, 40 * GB))
    desk.submits(task(1))
    assert desk.starts[TaskId(1)].grant.memory_bytes == 9 * GB, "its share by CPUs, less the reserve"
    desk.ends(1, FailureKind.EXIT_CODE)
    assert desk.starts[TaskId(1)].grant.memory_bytes == 18 * GB


def test_a_crashed_task_prefers_another_rank(desk: Desk) -> None:
    desk.joins(0)
    desk.joins(1)
    desk.submits(task(1))
    first = desk.where(1)
    desk.ends(1, FailureKind.SIGNAL)
    assert desk.where(1) != first


def test_a_task_that_no_executor_can_start_is_given_up_in_the_end(desk: Desk) -> None:
    desk.joins(0)
    desk.submits(task(1))
    for _ in range(9):
        assert not of(FinishJob, desk.ends(1, FailureKind.NOT_STARTED))
    assert desk.core.fail_count(TaskId(1)) == 0
    assert "no executor could start it" in of(FinishJob, desk.ends(1, FailureKind.NOT_STARTED))[0].reason


def test_a_lost_rank_costs_its_attempts_and_no_fail_count(desk: Desk) -> None:
    desk.joins(0)
    desk.joins(1)
    desk.submits(task(1), task(2))
    on_1 = next(id for id in (1, 2) if desk.where(id) == 1)
    assert desk.lost(1) == [], "there is no room yet"
    assert desk.core.fail_count(TaskId(on_1)) == 0
    desk.ends(3 - on_1)
    assert (desk.where(on_1), desk.attempt(on_1).retry) == (0, 1)
    assert desk.core.rank_counts().gone == 1


def test_a_task_that_runs_at_the_death_of_three_ranks_is_given_up(desk: Desk) -> None:
    for number in range(1, 5):
        desk.joins(number)
    desk.submits(task(1))
    desk.lost(desk.where(1))
    desk.lost(desk.where(1))
    assert desk.lost(desk.where(1)) == [FinishJob(TaskId(1), "it was running at the death of 3 ranks")]


def test_a_rank_that_leaves_is_not_suspected(desk: Desk) -> None:
    for number in range(5):
        desk.joins(number)
        if number == 0:
            desk.submits(task(1))
        assert desk.where(1) == number
        desk(RankLost(Rank(number), "it has left", has_left=True))
    desk.joins(9)
    assert desk.core.fail_count(TaskId(1)) == 0
    assert desk.ends(1)[-1] == FINISHED


@pytest.mark.parametrize("policy", [Policy(stop_executor_on_failure=True, max_fail_count=9)])
def test_a_rank_on_which_a_task_failed_gets_no_more_unless_it_is_the_last(desk: Desk) -> None:
    for number in (0, 1, 2):
        desk.joins(number, rank(2))
    desk.submits(*(task(number) for number in range(1, 7)))
    used = [desk.where(number) for number in range(1, 7)]
    assert sorted(used) == [0, 0, 1, 1, 2, 2]
    failed = desk.where(1)
    desk.ends(1, FailureKind.EXCEPTION)
    (view,) = [view for view in desk.core.rank_views() if view.number == failed]
    assert (view.is_stopped, view.is_open, len(view.tasks)) == (True, False, 1)
    for number in range(2, 7):
        desk.ends(number)
    assert desk.where(1) != failed
    second = desk.where(1)
    desk.ends(1, FailureKind.SIGNAL)
    third = desk.where(1)
    assert third not in (failed, second)
    desk.ends(1, FailureKind.EXCEPTION)
    assert desk.where(1) == third, "the last one is not stopped"
    assert desk.ends(1)[-1] == FINISHED
    desk.joins(failed, rank(2))
    assert not any(view.is_stopped for view in desk.core.rank_views() if view.number == failed)


@pytest.mark.parametrize("policy", [Policy(stop_executor_on_failure=True)])
def test_what_only_a_stopped_rank_was_large_enough_for_is_given_up(desk: Desk) -> None:
    desk.joins(0)
    desk.joins(1, rank(4))
    desk.submits(task(1, cpus=4), task(2, cpus=4))
    out = desk.ends(1, FailureKind.EXCEPTION) + desk.waits(121)
    (finish,) = of(FinishJob, out)
    assert "asks for 4 CPUs" in finish.reason


def test_tasks_that_only_waited_on_ranks_that_died_are_not_given_up(desk: Desk) -> None:
    desk.joins(0, rank(0))
    desk.joins(1)
    desk.submits(task(100))
    desk.ends(100, secs=0.0001)
    desk.submits(*(task(id) for id in range(1, 31)))
    for number in range(1, 5):
        waiting = [id for id in range(number, 31) if desk.where(id) == number]
        assert len(waiting) > 20, "short tasks wait behind each other"
        desk.lost(number)
        desk.joins(number + 1)
        there = [id for id in range(number, 31) if desk.where(id) == number + 1]
        assert there == waiting[:1] == [number], "it was running when a rank died: now it runs alone"
        desk.ends(number, secs=0.0001)
    assert "death" not in desk.core.explain(TaskId(30))


def test_messages_of_a_rank_that_was_given_up_change_nothing_and_are_answered_once(desk: Desk) -> None:
    desk.joins(0, rank(0))
    desk.joins(1)
    desk.submits(task(1))
    zombie = desk.starts[TaskId(1)]
    commands = desk.waits(60)
    assert of(StopRank, commands)[0].rank == 1
    desk.joins(2)
    assert desk.where(1) == 2
    assert desk(AttemptEnded(Rank(1), zombie.attempt, None, 1.0, 0)) == [DiscardAttempt(zombie.attempt)]
    assert desk(RankReported(Rank(1))) == []
    desk.joins(1)
    assert desk.core.rank_status(Rank(1)) == "joined"
    assert desk.ends(1)[-1] == FINISHED


def test_a_rank_that_never_joined_is_told_to(desk: Desk) -> None:
    assert desk(RankReported(Rank(7))) == [StopRank(Rank(7), "it has not joined")]
    assert desk(RankReported(Rank(7))) == []


def test_a_rank_that_joins_again_starts_afresh(desk: Desk) -> None:
    desk.joins(1)
    desk.submits(task(1))
    old = desk.attempt(1)
    desk.joins(1)
    assert desk.attempt(1) == TaskRuntimeId(TaskId(1), 0, 1)
    assert desk(AttemptEnded(Rank(1), old, None, 1.0, 0)) == [DiscardAttempt(old)]


def test_attempts_of_another_epoch_are_discarded(desk: Desk) -> None:
    desk.joins(0)
    desk.submits(task(1))
    old = TaskRuntimeId(TaskId(1), 7, 0)
    assert desk(AttemptEnded(Rank(0), old, None, 1.0, 0)) == [DiscardAttempt(old)]
    assert desk(AttemptEnded(Rank(0), TaskRuntimeId(TaskId(99), 0, 0), FailureKind.SIGNAL, 1.0, 0)) == []


def test_a_late_rank_gets_no_new_tasks_until_it_is_heard(desk: Desk) -> None:
    desk.joins(0, rank(0))
    desk.joins(1)
    desk.waits(20)
    assert desk.core.rank_status(Rank(1)) == "late"
    assert desk.submits(task(1)) == []
    assert "have been silent for too long" in desk.core.explain(TaskId(1))
    assert of(StartAttempt, desk(RankReported(Rank(1))))


def test_silence_while_rank_0_was_not_polling_does_not_count(desk: Desk) -> None:
    desk.joins(0, rank(0))
    desk.joins(1)
    desk.now = 1000.0
    desk(PollingResumed())
    assert desk.waits(0) == []
    assert desk.core.rank_status(Rank(1)) == "joined"
    desk.waits(15)
    assert desk.core.rank_status(Rank(1)) == "late"
    assert of(StopRank, desk.waits(45))


def test_the_schedulers_own_executor_is_never_late(desk: Desk) -> None:
    desk.joins(0)
    assert desk.waits(10_000) == []
    assert desk.core.rank_status(Rank(0)) == "joined"


def test_scheduler_children_run_on_rank_0_even_without_cpus_one_at_a_time(desk: Desk) -> None:
    desk.joins(0, rank(0, 10 * GB))
    desk.joins(1, rank(8))
    start, *rest = desk.submits(*(task(id, kind=SpecKind.SCHEDULER_CHILD, cpus=4) for id in (1, 2)))
    assert (start.rank, start.grant.cpus, rest) == (0, (), [])
    assert "one at a time" in desk.core.explain(TaskId(2))
    assert of(StartAttempt, desk.ends(1))[0].rank == 0


def test_a_request_larger_than_every_rank_waits_for_one_and_is_given_up_in_the_end(desk: Desk) -> None:
    desk.joins(0, rank(4))
    assert desk.submits(task(1, cpus=16)) == []
    assert "asks for 16 CPUs, but the most that a rank has is 4 CPUs" in desk.core.explain(TaskId(1))
    desk.waits(100)
    desk.joins(1, rank(16))
    assert desk.where(1) == 1
    desk.lost(1)
    desk.waits(100)
    finish = of(FinishJob, desk.waits(100))[0]
    assert finish.failed == 1
    assert "16 CPUs" in finish.reason
    assert "4 CPUs" in finish.reason


def test_without_any_rank_a_job_ends_with_that_reason(desk: Desk) -> None:
    desk.submits(task(1))
    assert "no rank is there" in of(FinishJob, desk.waits(200))[0].reason


def test_why_a_ready_task_waits(desk: Desk) -> None:
    desk.joins(0, rank(16))
    desk.submits(task(1, cpus=8), task(2, cpus=16))
    assert "asks for 16 CPUs, but no rank has more than 8 CPUs free" in desk.core.explain(TaskId(2))
    assert "has run for 0.0 seconds" in desk.core.explain(TaskId(1))
    assert desk.core.explain(TaskId(77)) == "task 000077 was never submitted."


def test_short_siblings_are_queued_behind_each_other_under_one_grant(desk: Desk) -> None:
    desk.joins(0, rank(2))
    desk.submits(*(task(id) for id in range(1, 101)))
    assert len(desk.starts) == 2, "nothing is known of them yet"
    starts = of(StartAttempt, desk.ends(1, secs=0.0005))
    assert len(starts) > 10
    assert {start.grant for start in starts} == {desk.starts[TaskId(1)].grant}
    assert "waits for" in desk.core.explain(starts[5].attempt.id)


def test_long_siblings_are_not(desk: Desk) -> None:
    desk.joins(0, rank(2))
    desk.submits(*(task(id) for id in range(1, 101)))
    assert len(of(StartAttempt, desk.ends(1, secs=0.5))) == 1


def test_what_waits_behind_a_head_that_runs_long_is_recalled_when_there_is_room(desk: Desk) -> None:
    desk.joins(0)
    desk.submits(task(100))
    desk.ends(100, secs=0.0001)
    desk.submits(*(task(id) for id in range(1, 11)))
    assert {desk.where(id) for id in range(1, 11)} == {0}
    assert not of(StopAttempt, desk.waits(1)), "nowhere else to go"
    desk.joins(1, rank(9))
    commands = desk.waits(1)
    assert {stop.attempt.id for stop in of(StopAttempt, commands)} == set(range(2, 11))
    assert all(desk.where(id) == 1 and desk.attempt(id).retry == 1 for id in range(2, 11))
    recalled = TaskRuntimeId(TaskId(2), 0, 0)
    assert desk(AttemptEnded(Rank(0), recalled, None, 1.0, 0)) == [DiscardAttempt(recalled)]
    assert AcceptAttempt(desk.attempt(2)) in desk.ends(2)
    assert desk.core.fail_count(TaskId(2)) == 0
    assert "was recalled" in desk.core.explain(TaskId(3))


def stragglers(desk: Desk, speculate: bool = True) -> None:
    """Three of four siblings are done after a second, on ranks that idle since."""
    for number in range(4):
        desk.joins(number)
    desk.submits(*(task(id, speculate=speculate) for id in range(1, 5)))
    desk.now = 1.0
    for id in (1, 2, 3):
        desk.ends(id)
        desk(RankReported(Rank(id)))


@pytest.mark.parametrize("policy", [Policy(late_secs=1e6, gone_secs=1e6)])
def test_a_straggler_gets_a_twin_and_the_first_success_counts(desk: Desk) -> None:
    stragglers(desk)
    original = desk.starts[TaskId(4)]
    assert of(StartAttempt, desk.waits(10))
    assert desk.where(4) != original.rank
    assert desk.attempt(4).retry == 1
    accept, stop, *finish = desk.ends(4)
    assert (accept.attempt, stop.attempt) == (desk.attempt(4), original.attempt)
    assert finish == [FINISHED]
    assert desk(AttemptEnded(original.rank, original.attempt, None, 1.0, 0)) == [DiscardAttempt(original.attempt)]


@pytest.mark.parametrize("policy", [Policy(late_secs=1e6, gone_secs=1e6)])
def test_progress_and_the_tasks_own_wish_keep_a_twin_away(desk: Desk) -> None:
    stragglers(desk)
    for _ in range(10):
        desk(Checkpointed(desk.attempt(4)))
        assert not of(StartAttempt, desk.waits(2))
    other = Desk(Policy(late_secs=1e6, gone_secs=1e6))
    stragglers(other, speculate=False)
    assert not of(StartAttempt, other.waits(1000))


@pytest.mark.parametrize(
    ("settings", "after_secs"),
    [
        ({"speculative_exec": "disable"}, None),
        ({"speculative_exec": "enable"}, 3.0),
        ({"speculative_exec": "aggressive"}, 1.5),
        ({"max_retry_count": 2}, 3.0),
        ({"max_retry_count": 1}, None),
    ],
)
def test_when_a_twin_starts_is_a_setting(settings: dict[str, Any], after_secs: float | None) -> None:
    """Siblings took a second."""
    desk = Desk(Policy(late_secs=1e6, gone_secs=1e6, **settings))
    stragglers(desk)
    assert not of(StartAttempt, desk.waits((after_secs or 1000.0) - 1.1))
    assert bool(of(StartAttempt, desk.waits(0.2))) == (after_secs is not None)


@pytest.mark.parametrize("policy", [Policy(late_secs=1e6, gone_secs=1e6)])
def test_the_failure_of_one_of_two_twins_is_not_the_tasks_end(desk: Desk) -> None:
    stragglers(desk)
    original = desk.starts[TaskId(4)]
    desk.waits(10)
    assert desk(AttemptEnded(original.rank, original.attempt, FailureKind.SIGNAL, 1.0, 0)) == []
    assert desk.core.fail_count(TaskId(4)) == 1
    assert desk.ends(4)[-1] == FINISHED


def test_a_stop_starts_nothing_and_ends_what_runs_at_its_deadline(desk: Desk) -> None:
    desk.joins(0, rank(2))
    desk.submits(task(1), task(2), task(3))
    assert desk(StopRequested("the walltime ends", 10.0)) == []
    assert desk.ends(1) == [AcceptAttempt(desk.attempt(1))]
    assert "nothing new is started: the walltime ends" in desk.core.explain(TaskId(3))
    stop, finish = desk.waits(10)
    assert (stop.attempt, finish) == (desk.attempt(2), FinishJob(None, "the walltime ends"))
    desk.ends(2, FailureKind.STOPPED)
    assert of(StartAttempt, desk.submits(task(4)))


def test_a_stop_without_a_deadline_is_at_once_and_a_drained_job_ends_early(desk: Desk) -> None:
    desk.joins(0)
    desk.submits(task(1), task(2))
    desk(StopRequested("the user pressed Ctrl-C", 10.0))
    assert desk.ends(1)[-1] == FinishJob(None, "the user pressed Ctrl-C")
    desk.submits(task(3))
    assert desk(StopRequested("again"))[-1] == FinishJob(None, "again")
    assert desk(StopRequested("nothing runs")) == []


def test_a_rank_that_does_not_end_what_it_was_told_to_is_given_up(desk: Desk) -> None:
    desk.joins(1)
    desk.submits(task(1))
    desk(StopRequested("Ctrl-C"))
    commands = []
    for _ in range(6):
        desk(RankReported(Rank(1)))
        commands += desk.waits(10)
    assert "did not end" in of(StopRank, commands)[0].reason


def test_a_rank_on_which_everything_crashes_rests_and_then_gets_work_last(desk: Desk) -> None:
    desk.joins(0)
    desk.joins(1)
    desk.submits(*(task(id) for id in range(1, 31)))
    crashes = []
    for _ in range(5):
        on_1 = [id for id in desk.starts if desk.where(id) == 1 and id not in crashes]
        on_0 = [id for id in desk.starts if desk.where(id) == 0]
        desk.ends(max(on_0))
        if on_1 and len(crashes) < 3:
            crashes.append(max(on_1))
            desk.ends(max(on_1), FailureKind.SIGNAL)
    before = [id for id in desk.starts if desk.where(id) == 1]
    desk.ends(max(id for id in desk.starts if desk.where(id) == 0))
    assert [id for id in desk.starts if desk.where(id) == 1] == before, "it rests"
    assert any(start.rank == 1 for start in of(StartAttempt, desk.waits(2))), "and is tried again"


def test_retries_go_first_if_they_are_to() -> None:
    for prioritize in (False, True):
        desk = Desk(Policy(prioritize_retry=prioritize))
        desk.joins(0)
        desk.submits(task(1), task(2), task(3))
        assert of(StartAttempt, desk.ends(1, FailureKind.EXCEPTION))[0].attempt.id == (1 if prioritize else 2)


def test_urgent_tasks_go_first_and_equal_ones_take_turns(desk: Desk) -> None:
    desk.joins(0)
    desk.submits(
        *(task(id, priority=1) for id in (1, 2)),
        *(task(id) for id in (3, 4)),
        *(task(id, memory_bytes=GB) for id in (5, 6)),
    )
    order = [start.attempt.id for start in desk.starts.values()]
    while len(order) < 6:
        order += [start.attempt.id for start in of(StartAttempt, desk.ends(order[-1]))]
    assert order == [3, 5, 4, 6, 1, 2]


@pytest.mark.parametrize("policy", [Policy(passed_over_limit=2)])
def test_a_rank_kept_free_for_a_wide_task_starts_nothing_else(desk: Desk) -> None:
    desk.joins(0, rank(3))
    desk.submits(task(1), task(2))
    desk.submits(task(3, cpus=3))
    desk.submits(task(4))
    desk.ends(1)
    desk.submits(task(5))
    desk.ends(2)
    assert not of(StartAttempt, desk.submits(task(6), task(7, memory_bytes=GB))), "two others have overtaken it"
    assert "rank 0, which is kept free for it, has room" in desk.core.explain(TaskId(3))
    assert "are kept free for others that waited for too long" in desk.core.explain(TaskId(6))
    desk.ends(4)
    assert [start.attempt.id for start in of(StartAttempt, desk.ends(5))] == [3]
    assert len(of(StartAttempt, desk.ends(3))) == 2


def test_counts_by_stage_and_rank(desk: Desk) -> None:
    desk.joins(0)
    desk.submits(task(1, stage=5), task(2, stage=5), task(3, [1], stage=6))
    counts = desk.core.stage_counts()
    assert (counts[5].running, counts[5].ready, counts[6].waiting) == (1, 1, 1)
    desk.ends(1, FailureKind.EXCEPTION)
    assert desk.core.n_retries == 1
    assert (desk.core.rank_counts().joined, desk.core.n_unfinished, desk.core.n_twins) == (1, 3, 0)
