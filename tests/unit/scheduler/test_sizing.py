"""What siblings took, and what those to come are given."""

from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi.common import GB, MB
from smallpond_mpi.execution.model import FailureKind, TaskId, TaskSpec
from smallpond_mpi.execution.scheduler.commands import StartAttempt
from smallpond_mpi.execution.scheduler.core import Policy
from smallpond_mpi.execution.scheduler.sizing import first_grant, round_up
from smallpond_mpi.testing import rank
from smallpond_mpi.testing import task as any_task
from tests.unit.scheduler.desk import Desk

OOM = FailureKind.OUT_OF_MEMORY


def task(id: int, memory_bytes: int | None = None) -> TaskSpec:
    return any_task(id, memory_bytes=memory_bytes, stage=7)


def small_desk(*specs, memory_bytes: int = 20 * GB) -> Desk:
    """One rank of two CPUs; 18 of its 20 GB can be granted."""
    desk = Desk(Policy(speculative_exec="disable"))
    desk.joins(0, rank(2, memory_bytes))
    desk.submits(*specs)
    return desk


def test_who_needs_more_than_all_others_does_not_make_them_wait() -> None:
    assert first_grant([1] * 9 + [10], 0) == 1
    assert first_grant([1] + [10] * 9, 0) == 10
    assert first_grant([5], 0) == 5


def test_memory_that_goes_with_the_cpus_is_given_freely() -> None:
    assert first_grant([1] * 9 + [10], 10) == 10
    assert first_grant([1] * 9 + [30], 10) == 1, "one in ten is tried again, rather than all waiting for memory"


@given(st.lists(st.integers(0, 2**50), min_size=1), st.integers(0, 2**50))
def test_the_grant_is_one_of_the_needs_and_none_costs_less(needs: list[int], free_bytes: int) -> None:
    def cost(grant: int) -> float:
        return max(grant, free_bytes) + max(*needs, free_bytes) * sum(need > grant for need in needs) / len(needs)

    chosen = first_grant(needs, free_bytes)
    assert chosen in needs
    assert cost(chosen) <= min(map(cost, needs)) * (1 + 1e-9)


@given(st.integers(0, 2**60))
def test_sizes_of_grants_are_few_and_at_most_a_quarter_more(need: int) -> None:
    rounded = round_up(need)
    assert need <= rounded <= max(need + 1, need * 1.25)
    assert round_up(rounded) == rounded


def work(desk: Desk, needs: dict[int, int], until_done: int) -> dict[int, list[int]]:
    """Let running attempts end, the oldest first, as their needs and grants have it; returns the grants of each task, in order."""
    grants: dict[int, list[int]] = {}
    running = list(desk.starts)
    n_done = 0
    while n_done < until_done:
        task_id = running.pop(0)
        grants.setdefault(task_id, []).append(desk.granted(task_id))
        enough = desk.granted(task_id) * 1.1 >= needs[task_id]
        out = desk.ends(task_id, None if enough else OOM, peak_bytes=needs[task_id] if enough else 0)
        running += [command.attempt.id for command in out if isinstance(command, StartAttempt)]
        n_done += enough
    return grants


def test_after_one_ran_out_of_memory_its_siblings_get_what_it_gets() -> None:
    desk = small_desk(*(task(id, memory_bytes=GB) for id in range(1, 51)))
    assert "asks for 1 CPU, 1,073,741,824 bytes of memory, but" in desk.core.explain(TaskId(50))
    grants = work(desk, dict.fromkeys(range(1, 51), 3 * GB // 2), 50)
    assert grants[1] == grants[2] == [GB, 2 * GB], "they had started before anything was known"
    assert all(len(grants[id]) == 1 and 3 * GB // 2 <= grants[id][0] <= 2 * GB for id in range(3, 51))
    assert desk.core.n_unfinished == 0


def test_a_raised_grant_can_be_explained() -> None:
    desk = small_desk(*(task(id, memory_bytes=GB) for id in range(1, 7)))
    desk.ends(1, OOM)
    assert "2,147,483,648 bytes of memory at least, for its siblings took so much" in desk.core.explain(TaskId(6))
    assert "with 2,147,483,648 bytes of memory because of what its siblings took" in desk.core.explain(TaskId(3))


def test_one_that_took_more_than_its_grant_and_was_not_ended_teaches_too() -> None:
    desk = small_desk(*(task(id, memory_bytes=GB) for id in range(1, 5)))
    desk.ends(1, peak_bytes=GB + 50 * MB)
    assert desk.granted(3) == round_up(GB + 50 * MB)


def test_what_fills_whatever_it_is_given_does_not_raise_grants_for_ever() -> None:
    desk = small_desk(*(task(id, memory_bytes=GB) for id in range(1, 31)))
    for id in range(1, 31):
        desk.ends(id, peak_bytes=int(desk.granted(id) * 1.09))
    assert desk.granted(30) <= round_up(int(1.09 * GB))


def test_a_share_that_was_too_small_is_raised_where_it_is_too_small() -> None:
    desk = Desk(Policy(speculative_exec="disable"))
    desk.joins(0, rank(4, 10 * GB))
    desk.joins(1, rank(4, 40 * GB))
    desk.submits(*(task(id) for id in range(1, 21)))
    poor = next(id for id in range(1, 9) if desk.where(id) == 0)
    share = desk.granted(poor)
    desk.ends(poor, OOM)
    for id in [id for id in range(1, 9) if id != poor]:
        desk.ends(id, peak_bytes=share // 2)
    later = {desk.where(id): desk.granted(id) for id in range(9, 21) if TaskId(id) in desk.starts}
    assert later[1] == 9 * GB, "its share there, which is more"


def test_when_hardly_any_need_more_the_others_get_what_they_asked_for_again() -> None:
    desk = small_desk(*(task(id, memory_bytes=9 * GB) for id in range(1, 41)))
    desk.ends(1, OOM)
    assert f"{18 * GB:,} bytes of memory at least" in desk.core.explain(TaskId(40)), "one of one"
    desk = small_desk(*(task(id, memory_bytes=9 * GB) for id in range(1, 41)))
    grants = work(desk, {1: 17 * GB} | dict.fromkeys(range(2, 41), GB), 40)
    assert grants[1] == [9 * GB, 18 * GB]
    assert sum(grants[id] != [9 * GB] for id in range(2, 41)) <= 2, "one of many"


def test_small_ranks_are_not_shut_out_by_what_siblings_took_on_large_ones() -> None:
    desk = Desk(Policy(speculative_exec="disable"))
    desk.joins(0, rank(1, 2 * GB))
    desk.joins(1, rank(1, 100 * GB))
    desk.submits(*(task(id, memory_bytes=GB) for id in range(1, 7)))
    large = next(id for id in (1, 2) if desk.where(id) == 1)
    desk.ends(large, OOM)
    desk.ends(large, OOM)
    desk.ends(3 - large, peak_bytes=GB)
    on_small = next(id for id in range(1, 7) if desk.where(id) == 0 and id != 3 - large)
    assert desk.granted(on_small) == 2 * GB - int(2 * GB * 0.1), "all that it has"


def test_tasks_of_no_node_are_no_siblings() -> None:
    desk = small_desk(*(any_task(id, memory_bytes=GB, stage=0) for id in range(1, 5)))
    desk.ends(1, OOM)
    assert desk.granted(3) == GB
