"""The executor's decisions, without a process: what starts when, in which child, and what a death costs."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallpond_mpi.execution.executor.commands import DumpChild, ForkChild, KillChild, KillServer, SendWork
from smallpond_mpi.execution.executor.core import START_SECS, UNKILLABLE_SECS
from smallpond_mpi.execution.executor.events import ChildRefused, MemorySampled, ServerDied, TimePassed
from smallpond_mpi.execution.executor.fate import CREDIT_SECS, OomKills
from smallpond_mpi.execution.model import FailureKind
from smallpond_mpi.execution.protocol import Heard, Reset, RunTask, Shutdown, StopTask, Welcome
from tests.unit.executor.world import CRASHED, KILLED, World, capacity, run


def kinds(world: World) -> dict[int, FailureKind | None]:
    return {int(id.id): ended.failure and ended.failure.kind for id, ended in world.ends.items()}


def forks(world: World) -> int:
    return sum(isinstance(command, ForkChild) for command in world.log)


def test_attempts_of_one_cpu_run_in_the_order_of_their_arrival_in_one_child() -> None:
    world = World(capacity())
    runs = [run(n, 0) for n in range(1, 20)]
    world.feed(*runs)
    world.settle()
    assert world.begun == runs
    assert forks(world) == 1


def test_a_wide_attempt_waits_for_all_of_its_cpus_and_is_not_overtaken() -> None:
    world = World(capacity(2))
    world.feed(run(1, 0), run(2, 0, 1), run(3, 1))
    assert [command.lane.cpus for command in world.log if isinstance(command, ForkChild)] == [(0,)]
    world.settle()
    assert [one.attempt.id for one in world.begun] == [1, 2, 3]


def test_attempts_on_different_cpus_run_side_by_side() -> None:
    world = World(capacity(3))
    world.feed(run(1, 0), run(2, 1), run(3, 2))
    assert forks(world) == 3


def test_grants_without_cpus_run_one_at_a_time() -> None:
    world = World(capacity(0))
    world.feed(run(1), run(2))
    assert forks(world) == 1
    world.settle()
    assert list(kinds(world).values()) == [None, None]


def test_shares_of_a_gpu_run_side_by_side_up_to_a_whole_one_in_children_of_their_own() -> None:
    world = World(capacity(4, gpus=1))
    world.feed(run(1, 0, gpus=((0, 0.5),)), run(2, 1, gpus=((0, 0.5),)), run(3, 2, gpus=((0, 0.5),)))
    assert forks(world) == 2
    world.ready(0)
    world.work(0)
    assert forks(world) == 2, "the lane is free only when the child that had the GPU is dead"
    world.bury_the_killed()
    assert forks(world) == 3


def test_nothing_is_sent_ahead_until_tasks_are_known_to_be_short() -> None:
    world = World(capacity())
    world.feed(run(1, 0), run(2, 0), run(3, 0))
    world.ready(0)
    assert [len(command.runs) for command in world.log if isinstance(command, SendWork)] == [1]
    world.work(0, secs=5.0)
    assert len(world.children[0].sent) == 1
    world.work(0, secs=0.0)
    world.work(0, secs=0.0)
    assert len(world.ends) == 3


def test_short_tasks_are_sent_ahead_together() -> None:
    world = World(capacity())
    world.feed(run(1, 0))
    world.settle()
    world.feed(*[run(n, 0) for n in range(2, 30)])
    assert len(world.children[0].sent) == 28


def test_a_crash_costs_the_attempt_that_ran_and_those_behind_run_in_another_child() -> None:
    world = World(capacity())
    world.feed(run(1, 0))
    world.settle()
    world.feed(*[run(n, 0) for n in range(2, 6)])
    world.work(0)
    world.begin(0)
    world.die(0, CRASHED)
    world.settle()
    assert kinds(world) == {1: None, 2: None, 3: FailureKind.SIGNAL, 4: None, 5: None}
    assert [one.attempt.id for one in world.begun] == [1, 2, 3, 4, 5]


def test_the_death_of_a_child_that_has_begun_nothing_costs_nothing() -> None:
    world = World(capacity())
    world.feed(run(1, 0))
    world.settle()
    world.feed(run(2, 0))
    world.die(0, KILLED)
    world.settle()
    assert kinds(world) == {1: None, 2: None}


@pytest.mark.parametrize(
    ("status", "by_oom_killer", "kind"),
    [
        (CRASHED, False, FailureKind.SIGNAL),
        (KILLED, False, FailureKind.SIGNAL),
        (KILLED, True, FailureKind.OUT_OF_MEMORY),
        (CRASHED, True, FailureKind.SIGNAL),
        (0, False, FailureKind.EXIT_CODE),
        (3 << 8, False, FailureKind.EXIT_CODE),
    ],
)
def test_how_a_child_died_says_why_the_attempt_failed(status: int, by_oom_killer: bool, kind: FailureKind) -> None:
    world = World(capacity())
    world.feed(run(1, 0))
    world.ready(0)
    world.begin(0)
    world.die(0, status, by_oom_killer)
    assert kinds(world) == {1: kind}


def test_each_kill_of_the_oom_killer_explains_one_death() -> None:
    kills = OomKills(3)
    assert not kills.took_one(3, 0.0)
    assert [kills.took_one(5, now) for now in (1.0, 1.1, 1.2)] == [True, True, False]
    assert kills.took_one(6, 1.3)


def test_kills_of_other_processes_do_not_explain_a_later_death() -> None:
    kills = OomKills(0)
    assert kills.took_one(3, 1.0)
    assert not kills.took_one(3, 1.1 + CREDIT_SECS)
    assert kills.took_one(4, 1.2 + CREDIT_SECS)


def test_a_timeout_counts_from_the_begin_writes_a_traceback_and_kills() -> None:
    world = World(capacity())
    world.feed(run(1, 0, timeout_secs=5.0), run(2, 0))
    world.now += 100
    world.ready(0)
    world.begin(0)
    assert world.core.next_deadline() == world.now + 5.0
    world.now += 5.0
    world.feed(TimePassed())
    assert isinstance(world.log[-1], DumpChild)
    deadline = world.core.next_deadline()
    assert deadline is not None
    world.now = deadline
    world.feed(TimePassed())
    assert isinstance(world.log[-1], KillChild)
    world.bury_the_killed()
    world.settle()
    assert kinds(world) == {1: FailureKind.TIMEOUT, 2: None}


def test_a_child_that_does_not_get_ready_is_killed_and_its_server_too_if_it_does_not_do_that() -> None:
    world = World(capacity())
    world.feed(run(1, 0), run(2, 0))
    assert world.core.next_deadline() == world.now + START_SECS
    world.now += START_SECS
    world.feed(TimePassed())
    assert isinstance(world.log[-1], KillChild)
    assert not world.ends
    world.now += UNKILLABLE_SECS
    world.feed(TimePassed())
    assert isinstance(world.log[-1], KillServer)
    assert world.core.next_deadline() is None or world.core.next_deadline() > world.now
    world.children.clear()
    world.feed(ServerDied("killed"))
    world.settle()
    assert kinds(world) == {1: FailureKind.NOT_STARTED, 2: None}


def test_an_attempt_that_ends_just_before_it_is_killed_has_ended() -> None:
    world = World(capacity())
    world.feed(run(1, 0, timeout_secs=5.0))
    world.ready(0)
    world.begin(0)
    world.now += 5.0
    world.feed(TimePassed())
    world.now += 1.0
    world.feed(TimePassed())
    world.reply(0)
    world.bury_the_killed()
    assert kinds(world) == {1: None}


def test_memory_is_killed_at_a_tenth_over_the_grant() -> None:
    world = World(capacity())
    world.feed(run(1, 0, memory_bytes=1000))
    world.ready(0)
    world.begin(0)
    assert world.core.watched(world.now) == []
    assert world.core.watched(world.now + 1) == [(0, 1000)]
    world.feed(MemorySampled(0, 1100))
    assert not world.children[0].is_killed
    world.feed(MemorySampled(0, 1101))
    world.bury_the_killed()
    assert kinds(world) == {1: FailureKind.OUT_OF_MEMORY}
    (ended,) = world.ends.values()
    assert ended.peak_memory_bytes == 1101


def running(n: int, granted: int) -> World:
    """So many attempts, each on a CPU of its own, of a rank of 1 GiB."""
    world = World(capacity(n))
    world.feed(*(run(number + 1, number, memory_bytes=granted) for number in range(n)))
    for child in range(n):
        world.ready(child)
        world.begin(child)
    return world


def test_when_all_grow_at_once_the_one_furthest_over_its_grant_goes_before_the_rank_is_full() -> None:
    granted = (1 << 30) * 9 // 40
    world = running(4, granted)
    world.feed(*(MemorySampled(child, int(granted * 1.05)) for child in range(4)))
    assert not any(child.is_killed for child in world.children.values()), "0.945 of the rank"
    world.feed(*(MemorySampled(child, int(granted * share)) for child, share in enumerate((1.07, 1.09, 1.08, 1.06))))
    assert [child for child in range(4) if world.children[child].is_killed] == [1]
    world.bury_the_killed()
    (ended,) = world.ends.values()
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.OUT_OF_MEMORY
    assert "little was left of the 1024 MiB of its rank" in ended.failure.message


def test_who_keeps_to_its_grant_is_not_ended_for_the_others() -> None:
    world = running(2, (1 << 30) * 9 // 20)
    world.feed(MemorySampled(0, (1 << 30) * 9 // 20), MemorySampled(1, (1 << 30) * 9 // 20 * 109 // 100))
    assert not world.children[0].is_killed


def test_the_less_room_is_left_the_sooner_memory_is_looked_at() -> None:
    world = running(1, 256 << 20)
    assert world.core.look_again_secs() == 0.02
    world.feed(MemorySampled(0, 260 << 20))
    assert 0.002 < world.core.look_again_secs() < 0.006, "0.0215 of 4 GiB"
    assert running(1, 1 << 20).core.look_again_secs() == 0.002


def test_a_process_that_can_not_be_killed_does_not_hold_up_the_news() -> None:
    world = World(capacity())
    world.feed(run(1, 0), run(2, 0))
    world.ready(0)
    world.begin(0)
    world.feed(StopTask(run(1).attempt))
    world.now += 11.0
    world.feed(TimePassed())
    assert kinds(world) == {1: FailureKind.STOPPED}
    assert forks(world) == 1, "its CPU is still taken"
    world.die(0, KILLED)
    world.settle()
    assert kinds(world) == {1: FailureKind.STOPPED, 2: None}


def test_a_stop_while_the_child_is_being_forked() -> None:
    world = World(capacity())
    world.feed(run(1, 0), run(2, 0))
    world.feed(StopTask(run(1).attempt))
    world.bury_the_killed()
    world.settle()
    assert kinds(world) == {1: FailureKind.STOPPED, 2: None}


def test_stops_of_unknown_attempts_are_nothing() -> None:
    world = World(capacity())
    world.feed(StopTask(run(1).attempt))
    assert world.ends == {}


def test_a_second_copy_of_an_attempt_is_nothing() -> None:
    world = World(capacity())
    world.feed(run(1, 0))
    world.feed(run(1, 0))
    world.settle()
    assert kinds(world) == {1: None}
    assert len(world.begun) == 1


def test_a_recall_that_takes_even_the_first_leaves_a_child_that_can_be_used() -> None:
    world = World(capacity())
    world.feed(run(1, 0))
    world.settle()
    world.feed(run(2, 0), run(3, 0))
    world.feed(StopTask(run(3).attempt))
    world.settle()
    assert kinds(world) == {1: None, 2: None, 3: FailureKind.STOPPED}
    assert forks(world) == 1


def test_work_before_a_welcome_is_refused() -> None:
    world = World(capacity())
    world.feed(Shutdown())
    assert world.has_left
    world.feed(run(1, 0))
    assert kinds(world) == {1: FailureKind.NOT_STARTED}


def test_a_refusal_costs_one_attempt_each() -> None:
    world = World(capacity())
    world.feed(run(1, 0), run(2, 0))
    world.feed(ChildRefused(0, "Traceback\nValueError: bad context"))
    world.bury_the_killed()
    assert kinds(world) == {1: FailureKind.NOT_STARTED}
    assert "bad context" in next(ended.failure.message for ended in world.ends.values() if ended.failure)
    world.settle()
    assert kinds(world) == {1: FailureKind.NOT_STARTED, 2: None}


def test_the_death_of_the_server_costs_what_ran() -> None:
    world = World(capacity(2))
    world.feed(run(1, 0), run(2, 1), run(3, 0))
    world.ready(0)
    world.begin(0)
    world.children.clear()
    world.feed(ServerDied("killed"))
    world.settle()
    assert kinds(world) == {1: FailureKind.SIGNAL, 2: FailureKind.NOT_STARTED, 3: None}


def test_reset_joins_again_when_everything_is_dead() -> None:
    world = World(capacity())
    world.feed(run(1, 0), run(2, 1), run(3, 0))
    world.ready(0)
    world.begin(0)
    world.feed(Reset())
    assert world.joins == 0
    world.bury_the_killed()
    assert world.joins == 1
    assert world.ends == {}
    world.feed(run(1, 0))
    world.settle()
    assert kinds(world) == {1: None}


def test_reset_joins_again_even_if_something_does_not_die() -> None:
    world = World(capacity())
    world.feed(run(1, 0))
    world.feed(Reset())
    world.now += 10.0
    world.feed(TimePassed())
    assert world.joins == 1


def test_one_heartbeat_at_most_is_unanswered() -> None:
    world = World(capacity(), heartbeat_secs=2.0)
    for _ in range(10):
        world.now += 2.0
        world.feed(TimePassed())
    assert world.beats == 1
    assert world.core.next_deadline() is None
    world.feed(Heard())
    world.feed(TimePassed())
    assert world.beats == 2


def test_idle_children_of_many_lanes_do_not_pile_up() -> None:
    world = World(capacity(4))
    masks = [(a, b) for a in range(4) for b in range(4) if a != b] + [(a,) for a in range(4)]
    for number, mask in enumerate(masks):
        world.feed(run(number + 1, *mask))
        world.settle()
    assert len(world.ends) == len(masks)
    assert len(world.children) <= 8


@st.composite
def grants(draw: st.DrawFn, number: int) -> RunTask:
    cpus = draw(st.lists(st.integers(0, 3), unique=True, max_size=4))
    gpus = draw(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.25, 0.5, 1.0])), max_size=1))
    return run(
        number,
        *sorted(cpus),
        gpus=tuple(gpus),
        fresh=draw(st.booleans()),
        timeout_secs=draw(st.sampled_from([None, None, 1.0])),
    )


@settings(max_examples=200)
@given(st.data(), st.integers(0, 1 << 32))
def test_every_attempt_ends_once_whatever_children_do(data: st.DataObject, seed: int) -> None:
    world = World(capacity(4, gpus=2), Random(seed))
    runs = [data.draw(grants(n)) for n in range(1, data.draw(st.integers(1, 25)) + 1)]
    waiting = list(runs)
    while waiting:
        batch = [waiting.pop(0) for _ in range(min(len(waiting), world.random.randint(1, 5)))]
        world.feed(*batch)
        for _ in range(world.random.randint(0, 10)):
            world.random_step()
        if world.random.random() < 0.3:
            world.feed(StopTask(world.random.choice(runs).attempt))
    for it in world.children.values():
        if it.hangs:
            it.is_killed = True
    world.settle()
    assert world.ends.keys() == {one.attempt for one in runs}
    counts = [one.attempt for one in world.begun]
    assert len(counts) == len(set(counts)), "an attempt was begun twice"


@settings(max_examples=50)
@given(st.integers(0, 1 << 32))
def test_reset_and_a_new_job_forget_everything(seed: int) -> None:
    world = World(capacity(4, gpus=2), Random(seed))
    for round in range(4):
        world.feed(*[run(round * 100 + n, world.random.randrange(4)) for n in range(1, 10)])
        for _ in range(world.random.randint(0, 30)):
            world.random_step()
        world.feed(world.random.choice([Reset(), Welcome(round, b"", "log", 1e9)]))
    known = set(world.ends)
    world.settle()
    assert set(world.ends) == known
    world.feed(run(1000, 0, 1, 2, 3))
    world.settle()
    assert set(world.ends) == known | {run(1000).attempt}
