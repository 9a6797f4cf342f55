"""What a restarted job has to run: nothing that must be run is skipped, nothing that was accepted and is there is run again."""

import datetime
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.journal import Accepted, Checkpointed, Restored
from smallpond_mpi.execution.model import SpecKind, TaskId, TaskRuntimeId, WorkStatus
from smallpond_mpi.execution.scheduler.intake import (
    MIN_EDGES_FOR_BARRIER,
    Intake,
    Lineage,
    files_of_state_are_there,
    inputs_first,
    take_in,
)
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.partition_info import PartitionInfo

JOB = JobId.new()


class Work(Task):
    """A child's task; `number` says which of the plan, `version` what the script says of it."""

    def __init__(self, ctx: RuntimeContext, deps: Any, number: int, version: int = 0) -> None:
        super().__init__(ctx, deps, [PartitionInfo(number, 1000)])
        self.number = number
        self.version = version


class View(Work):
    @property
    def runs_here(self) -> bool:
        return True


@dataclass(frozen=True)
class Plan:
    """Nodes by number, inputs first: (the numbers of its inputs, whether rank 0 runs it, version)."""

    nodes: tuple[tuple[tuple[int, ...], bool, int], ...]

    def tasks(self) -> list[Work]:
        ctx = RuntimeContext(JOB, datetime.datetime(2026, 1, 1), "/nowhere", random_seed=1)
        made: list[Work] = []
        groups: dict[tuple[int, ...], Dependencies] = {}
        for number, (inputs, is_view, version) in enumerate(self.nodes):
            deps = groups.setdefault(inputs, Dependencies([made[dep] for dep in inputs]))
            made.append((View if is_view else Work)(ctx, deps, number, version))
        return made

    def changed(self, numbers: set[int]) -> "Plan":
        """The same with another version of some nodes."""
        return Plan(tuple((deps, view, version + (n in numbers)) for n, (deps, view, version) in enumerate(self.nodes)))


@dataclass
class Job:
    """What outlives an epoch: the journal, and which attempts' files are there."""

    restored: Restored = field(default_factory=Restored)
    lost: set[str] = field(default_factory=set)
    ran: list[tuple[int, int]] = field(default_factory=list)  # (epoch, number of the node)

    def epoch(self, plan: Plan, submissions: Sequence[Sequence[int]], killed_after: int = 1000) -> "Epoch":
        epoch = Epoch(self, plan)
        for targets in submissions:
            if not epoch.submit(targets, killed_after):
                break
        self.restored.epoch += 1
        self.restored.accepted.update(epoch.journal)
        return epoch


class Epoch:
    """One run of the scheduler, without processes: every task that has to run succeeds at once."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self.job = job
        self.tasks = plan.tasks()
        self.lineage = Lineage()
        self.journal: dict[bytes, Accepted] = {}
        self.ran: set[int] = set()
        self.intakes: list[Intake] = []
        self.targets: list[set[int]] = []  # of each
        self._next_id = 10_000
        self.used: dict[int, TaskRuntimeId] = {}  # whose output each task's is, by number

    def submit(self, targets: Sequence[int], killed_after: int) -> bool:
        intake = take_in(
            [self.tasks[number] for number in targets],
            self.job.restored,
            self.lineage,
            self._new_id,
            self._take_up,
            lambda state: state.decode() not in self.job.lost,
        )
        self.intakes.append(intake)
        self.targets.append(set(targets))
        self.check(intake)
        for task in intake.tasks:
            if not task.runs_here and len(self.ran) >= killed_after:
                return False
            self._run(task)
        return True

    def _new_id(self) -> TaskId:
        self._next_id += 1
        return TaskId(self._next_id)

    def _take_up(self, task: Task, record: Accepted) -> None:
        task.status = WorkStatus.SUCCEED
        self.journal[record.fingerprint] = record
        self.used[task.number] = record.attempt  # type: ignore[attr-defined]

    def _run(self, task: Task) -> None:
        assert isinstance(task, Work)
        assert all(dep.is_done for dep in task._deps.tasks), "an input is not there"
        task.status = WorkStatus.SUCCEED
        if task.runs_here:
            self.lineage.run_here(task)
            return
        self.ran.add(task.number)
        self.job.ran.append((self.job.restored.epoch, task.number))
        attempt = TaskRuntimeId(task.id, self.job.restored.epoch, 0)
        self.lineage.accept(task, str(attempt))
        fingerprint = self.lineage.fingerprint(task)
        self.journal[fingerprint] = Accepted(fingerprint, self.lineage.inputs(task), attempt, str(attempt).encode())
        self.used[task.number] = attempt

    def check(self, intake: Intake) -> None:
        """Order, and specs that only wait for what is there."""
        ids = [task.id for task in intake.tasks]
        assert len(set(ids)) == len(ids)
        assert not {task.id for task in intake.done} & set(ids)
        place = {task.id: index for index, task in enumerate(intake.tasks)}
        for task in intake.tasks:
            for dep in task._deps.tasks:
                assert dep.is_done or place[dep.id] < place[task.id]
        known = {spec.id for spec in intake.specs}
        assert set(ids) <= known
        assert all(dep in known for spec in intake.specs for dep in spec.deps)

    def check_lineage(self) -> None:
        """Every output was made from the very outputs that its inputs have now."""
        for task in self.tasks:
            if task.is_done and task.number in self.used:
                record = self.journal[self.lineage.fingerprint(task)]
                assert record.attempt == self.used[task.number]
                if all(dep.is_done for dep in task._deps.tasks):
                    self.lineage.forget([task])
                    assert record.inputs == self.lineage.inputs(task)


@st.composite
def plans(draw: st.DrawFn, most: int = 9) -> Plan:
    count = draw(st.integers(1, most))
    nodes = []
    for number in range(count):
        inputs = draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        nodes.append((tuple(inputs), bool(inputs) and draw(st.booleans()), 0))
    return Plan(tuple(nodes))


def below(plan: Plan, changed: set[int]) -> set[int]:
    """The nodes, and those that need them."""
    found: set[int] = set()
    for number, (inputs, _, _) in enumerate(plan.nodes):
        if number in changed or found & set(inputs):
            found.add(number)
    return found


def work_above(plan: Plan, targets: Sequence[int]) -> set[int]:
    """The children's tasks that the targets need."""
    needed: set[int] = set()
    for number in reversed(range(len(plan.nodes))):
        if number in targets or any(number in plan.nodes[one][0] for one in needed):
            needed.add(number)
    return {number for number in needed if not plan.nodes[number][1]}


@given(plans(), st.data())
def test_first_epoch_runs_what_is_needed_once(plan: Plan, data: st.DataObject) -> None:
    targets = data.draw(st.lists(st.integers(0, len(plan.nodes) - 1), min_size=1, max_size=3))
    more = data.draw(st.lists(st.integers(0, len(plan.nodes) - 1), min_size=1, max_size=3))
    job = Job()
    epoch = job.epoch(plan, [targets, more])
    assert epoch.ran == work_above(plan, [*targets, *more])
    assert len(job.ran) == len(epoch.ran)


@given(plans(), st.data())
def test_nothing_changed_nothing_runs(plan: Plan, data: st.DataObject) -> None:
    submissions = data.draw(st.lists(st.lists(st.integers(0, len(plan.nodes) - 1), min_size=1), min_size=1, max_size=3))
    job = Job()
    job.epoch(plan, submissions)
    for _ in range(2):
        again = job.epoch(plan, submissions)
        assert again.ran == set()
        assert all(again.tasks[number].is_done for targets in submissions for number in targets)
        again.check_lineage()


@given(plans(), st.data())
def test_killed_at_any_task_and_started_again_runs_each_task_once(plan: Plan, data: st.DataObject) -> None:
    targets = [len(plan.nodes) - 1, data.draw(st.integers(0, len(plan.nodes) - 1))]
    job = Job()
    for stop in data.draw(st.lists(st.integers(0, 3), max_size=5)):
        job.epoch(plan, [targets], killed_after=stop)
    last = job.epoch(plan, [targets])
    last.check_lineage()
    numbers = [number for _, number in job.ran]
    assert sorted(numbers) == sorted(work_above(plan, targets))


@given(plans(), st.data())
def test_a_changed_node_and_what_is_below_it_run_and_nothing_else(plan: Plan, data: st.DataObject) -> None:
    every = list(range(len(plan.nodes)))
    job = Job()
    job.epoch(plan, [every])
    changed = set(data.draw(st.lists(st.sampled_from(every), max_size=3)))
    second = job.epoch(plan.changed(changed), [every])
    second.check_lineage()
    assert second.ran == {number for number in below(plan, changed) if not plan.nodes[number][1]}
    assert job.epoch(plan, [every]).ran == set(), "the first script again"


@settings(max_examples=300)
@given(plans(), st.data())
def test_lost_files_and_records_and_changes_together(plan: Plan, data: st.DataObject) -> None:
    """Any mixture, over several epochs, submission by submission."""
    numbers = st.integers(0, len(plan.nodes) - 1)
    job = Job()
    for _ in range(data.draw(st.integers(2, 4))):
        submissions = data.draw(st.lists(st.lists(numbers, min_size=1, max_size=3), min_size=1, max_size=3))
        before = dict(job.restored.accepted)
        epoch = job.epoch(plan, submissions, data.draw(st.sampled_from([0, 1, 3, 1000])))
        for number, attempt in epoch.used.items():
            assert str(attempt) not in job.lost, f"the output of node {number} is not there"
        for intake, targets in zip(epoch.intakes, epoch.targets, strict=True):
            check_reasons(epoch, intake, targets, before, job.lost)
        names = sorted(str(record.attempt) for record in job.restored.accepted.values())
        if names:
            job.lost |= set(data.draw(st.lists(st.sampled_from(names), max_size=3)))
        for fingerprint in data.draw(st.lists(st.sampled_from(sorted(job.restored.accepted)), max_size=2) if names else st.just([])):  # fmt: skip
            job.restored.accepted.pop(fingerprint, None)
        plan = plan.changed(set(data.draw(st.lists(numbers, max_size=1))))


def check_reasons(
    epoch: Epoch, intake: Intake, targets: set[int], before: dict[bytes, Accepted], lost: set[str]
) -> None:
    """What runs is needed and has a reason to."""
    runs = {task.id for task in intake.tasks}
    fresh: set[int] = set()  # their output is another one than any recorded
    for task in intake.tasks:
        record = before.get(epoch.lineage.fingerprint(task))
        above = {dep.id for dep in task._deps.tasks}
        if task.runs_here:
            if above & fresh:
                fresh.add(task.id)
            continue
        fresh.add(task.id)
        is_gone = record is None or str(record.attempt) in lost
        others = record is not None and not is_gone and not above & fresh
        if others:
            epoch.lineage.forget([task])
            assert record is not None
            assert record.inputs != epoch.lineage.inputs(task), f"node {task.number} had no reason to run"  # type: ignore[attr-defined]
    for task in intake.tasks:
        dependants = {one.id for group in task._groups for one in group.dependants}
        assert task.number in targets or dependants & runs, f"nobody needs node {task.number}"  # type: ignore[attr-defined]


def test_what_is_not_needed_is_looked_at_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later submission needs an output whose files nobody had looked for: they are gone."""
    plan = Plan((((), False, 0), ((0,), False, 0), ((0,), False, 0)))
    job = Job()
    job.epoch(plan, [[1]])
    job.lost.add(str(job.restored.accepted[next(iter(job.restored.accepted))].attempt))
    epoch = job.epoch(plan, [[1], [2]])
    assert epoch.ran == {0, 2}, "1 was taken up and is whole; 2 needs 0, whose files are gone"


def test_inputs_of_what_is_done_are_not_gone_into() -> None:
    tasks = Plan((((), False, 0), ((0,), False, 0), ((1,), False, 0))).tasks()
    assert [task.number for task in inputs_first([tasks[2]])] == [0, 1, 2]  # type: ignore[attr-defined]
    tasks[1].status = WorkStatus.SUCCEED
    assert [task.number for task in inputs_first([tasks[2], tasks[2]])] == [1, 2]  # type: ignore[attr-defined]


def test_a_view_that_deals_at_random_is_another_one_under_another_id() -> None:
    """Its output follows from its id: what was computed from some parts of one dealing does not fit those of another."""

    def consumer(shift: int, shuffled: bool) -> bytes:
        ctx = RuntimeContext(JOB, datetime.datetime(2026, 1, 1), "/nowhere", random_seed=1)
        for _ in range(shift):
            ctx.new_task_id()
        source = Work(ctx, [], 0)
        view = View(ctx, [source], 1)
        if shuffled:
            view.random_shuffle = True  # type: ignore[attr-defined]
        task = Work(ctx, [view], 2)
        lineage = Lineage()
        for one in (source, view, task):
            lineage.fingerprint(one)
        lineage.accept(source, "000001.0.0")
        lineage.run_here(view)
        return lineage.inputs(task)

    assert consumer(0, False) == consumer(5, False)
    assert consumer(0, True) == consumer(0, True)
    assert consumer(0, True) != consumer(5, True)


@pytest.mark.parametrize(("producers", "consumers"), [(1, 100), (2, 31), (40, 50), (300, 7)])
def test_a_barrier_stands_between_many_and_many(producers: int, consumers: int) -> None:
    nodes = [((), False, 0)] * producers + [(tuple(range(producers)), False, 0)] * consumers
    epoch = Job().epoch(Plan(tuple(nodes)), [range(producers, producers + consumers)])
    specs = epoch.intakes[0].specs
    barriers = [spec for spec in specs if spec.kind is SpecKind.BARRIER]
    edges = sum(len(spec.deps) for spec in specs)
    assert len(barriers) == (producers > 1 and producers * consumers > MIN_EDGES_FOR_BARRIER)
    assert edges == (producers + consumers if barriers else producers * consumers)


def test_checkpoints_count_for_the_same_inputs_only() -> None:
    plan = Plan((((), False, 0), ((0,), True, 0), ((1,), False, 0)))
    job = Job()
    first = job.epoch(plan, [[2]], killed_after=1)
    lineage = first.lineage
    fingerprint = lineage.fingerprint(first.tasks[2])
    job.restored.checkpoints[fingerprint] = Checkpointed(fingerprint, lineage.inputs(first.tasks[2]), b"half way")
    assert job.restored.accepted
    again = Epoch(job, plan)
    again.submit([2], killed_after=0)
    assert again.intakes[0].checkpoints == {again.tasks[2].id: b"half way"}, "a view between them is no other input"
    job.lost.update(str(record.attempt) for record in job.restored.accepted.values())
    other = Epoch(job, plan)
    other.submit([2], killed_after=0)
    assert other.intakes[0].checkpoints == {}


def test_files_are_there_with_their_sizes(tmp_path: Any) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"123")
    assert files_of_state_are_there(pickle.dumps({"_output_files": [(str(path), 3)]}))
    assert files_of_state_are_there(pickle.dumps({}))
    assert not files_of_state_are_there(pickle.dumps({"_output_files": [(str(path), 4)]}))
    assert not files_of_state_are_there(pickle.dumps({"_output_files": [(str(path), 3), (str(path) + "x", 1)]}))


def test_what_was_computed_from_an_output_that_was_replaced_runs_again() -> None:
    """0's files were lost and made again for 2, while nobody needed 1: that was computed from the lost ones."""
    plan = Plan((((), False, 0), ((0,), False, 0), ((0,), False, 0)))
    job = Job()
    job.epoch(plan, [[1]])
    job.lost.update(str(record.attempt) for record in job.restored.accepted.values())
    assert job.epoch(plan, [[2]]).ran == {0, 2}
    job.lost = {name for name in job.lost if not name.startswith("000002")}  # as if 1's own files were still there
    assert job.epoch(plan, [[1], [2]]).ran == {1}
