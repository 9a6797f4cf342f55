"""Any DAG on any fleet under any faults: every run ends, each task is done and accepted once, or the job failed for a stated reason.

The simulated cluster holds the core to the rest as it goes: `check` after every event, no grant beyond a capacity, inputs before
dependants, nothing accepted that had not succeeded, nothing accepted twice.
"""

from dataclasses import dataclass
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi.common import GB
from smallpond_mpi.execution.model import Capacity, FailureKind, Rank, SpecKind, TaskId, TaskRuntimeId, TaskSpec
from smallpond_mpi.execution.scheduler import trace
from smallpond_mpi.execution.scheduler.core import Policy
from smallpond_mpi.execution.scheduler.events import StopRequested
from smallpond_mpi.testing import Faults, Pause, RankFault, RankFaultKind, SimCluster, rank, replay, task

DURATIONS = (0.0001, 0.001, 0.01, 0.3, 3.0)
"""By stage, in seconds: short ones are queued behind each other, long ones are not."""


@dataclass(frozen=True)
class Scenario:
    """Everything that a run depends on."""

    seed: int
    specs: tuple[TaskSpec, ...]
    capacities: tuple[Capacity, ...]
    policy: Policy
    faults: Faults
    rank_faults: tuple[RankFault, ...]
    pauses: tuple[Pause, ...]
    joins_at: dict[Rank, float]
    local_failures: int
    never_enough: int
    """A task that no memory is enough for, or 0."""

    def cluster(self) -> SimCluster:
        return SimCluster(
            self.capacities,
            seed=self.seed,
            policy=self.policy,
            faults=self.faults,
            rank_faults=self.rank_faults,
            pauses=self.pauses,
            joins_at=self.joins_at,
            duration=self._duration,
            need_bytes=lambda attempt: 1000 * GB if attempt.id == self.never_enough else (attempt.id % 5) * GB,
            local_failure=lambda _, run: FailureKind.INJECTED if run <= self.local_failures else None,
        )

    def _duration(self, attempt: TaskRuntimeId, rng: Random) -> float:
        stage = self.specs[(attempt.id - 1) % len(self.specs)].stage
        return DURATIONS[stage] * (0.5 + rng.random()) * (1000 if rng.random() < 0.01 else 1)


@st.composite
def dags(draw: st.DrawFn) -> tuple[TaskSpec, ...]:
    kinds = st.sampled_from([SpecKind.CHILD] * 6 + [SpecKind.SCHEDULER_CHILD, SpecKind.HERE, SpecKind.BARRIER])
    specs = []
    for id in range(1, draw(st.integers(1, 40)) + 1):
        specs.append(
            task(
                id,
                draw(st.lists(st.integers(1, id - 1), max_size=4, unique=True)) if id > 1 else (),
                cpus=draw(st.sampled_from([1, 1, 1, 2, 3, 6])),
                gpus=draw(st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.25, 1 / 3, 1.0, 2.0])),
                memory_bytes=draw(st.sampled_from([None, None, GB, 3 * GB, 9 * GB])),
                stage=draw(st.integers(0, len(DURATIONS) - 1)),
                kind=draw(kinds),
                priority=draw(st.sampled_from([0, 0, 0, 1, -1])),
                speculate=draw(st.booleans()),
            )
        )
    return tuple(specs)


@st.composite
def wide_jobs(draw: st.DrawFn) -> tuple[TaskSpec, ...]:
    """Many short siblings, which is where lanes get deep."""
    width, stage = draw(st.integers(20, 150)), draw(st.integers(0, 3))
    return tuple(task(id, stage=stage) for id in range(1, width + 1))


def capacities() -> st.SearchStrategy[tuple[Capacity, ...]]:
    worker = st.builds(
        rank,
        cpus=st.integers(1, 6),
        memory_bytes=st.sampled_from([2 * GB, 8 * GB, 17 * GB // 2, 10 * GB]),
        gpus=st.integers(0, 2),
        numa_nodes=st.integers(1, 2),
    )
    own = st.builds(rank, cpus=st.integers(0, 4), memory_bytes=st.sampled_from([0, GB, 8 * GB]))
    return st.tuples(own, st.lists(worker, max_size=5)).map(lambda pair: (pair[0], *pair[1]))


chance = st.sampled_from([0.0, 0.0, 0.0, 0.02, 0.1, 0.4])

fault_chances = st.builds(
    Faults,
    exception=chance,
    signal=chance,
    exit_code=chance,
    out_of_memory=chance,
    timeout=chance,
    injected=chance,
    not_started=chance,
    bad_input=st.sampled_from([0.0] * 9 + [0.01]),
    slow=chance,
)

policies = st.builds(
    Policy,
    max_fail_count=st.sampled_from([3, 1, 10]),
    prioritize_retry=st.booleans(),
    stop_executor_on_failure=st.booleans(),
    nonzero_exitcode_as_oom=st.booleans(),
    late_secs=st.just(8.0),
    gone_secs=st.just(20.0),
    passed_over_limit=st.sampled_from([1, 8, 64]),
    max_prefetch=st.sampled_from([1, 4, 64]),
    speculative_exec=st.sampled_from(["disable", "enable", "aggressive"]),
)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    fleet = draw(capacities())
    seconds = st.floats(0.0, 30.0) | st.floats(0.0, 0.5)
    workers = st.integers(1, len(fleet) - 1).map(Rank)
    faults = st.builds(
        RankFault,
        at=seconds,
        rank=workers,
        kind=st.sampled_from(RankFaultKind),
        secs=st.sampled_from([0.01, 5.0, 50.0]),
    )
    return Scenario(
        seed=draw(st.integers(0, 2**32)),
        specs=draw(dags() | wide_jobs()),
        capacities=fleet,
        policy=draw(policies),
        faults=draw(fault_chances | st.just(Faults())),
        rank_faults=tuple(draw(st.lists(faults, max_size=5))) if len(fleet) > 1 else (),
        pauses=tuple(draw(st.lists(st.builds(Pause, at=seconds, secs=st.sampled_from([1.0, 70.0])), max_size=2))),
        joins_at=draw(st.dictionaries(workers, st.sampled_from([0.5, 15.0]), max_size=3)) if len(fleet) > 1 else {},
        local_failures=draw(st.sampled_from([0, 0, 0, 2, 5])),
        never_enough=draw(st.sampled_from([0, 0, 0, 0, 1])),
    )


@given(scenarios())
def test_every_run_ends_with_each_task_done_once_or_a_stated_reason(scenario: Scenario) -> None:
    cluster = scenario.cluster()
    finished = cluster.run_job(scenario.specs)
    board = f"seed {scenario.seed}"
    counts = cluster.core.stage_counts().values()
    if finished.failed is None:
        assert finished.reason == "", board
        assert sum(stage.done for stage in counts) == len(scenario.specs), board
        children = {s.id for s in scenario.specs if s.kind in (SpecKind.CHILD, SpecKind.SCHEDULER_CHILD)}
        assert set(cluster.accepted) == children, board
    else:
        assert finished.reason, board
        assert finished.failed not in cluster.accepted, board
        assert "given up" in cluster.core.explain(finished.failed), board
    assert cluster.core.n_unfinished == 0, board


@given(scenarios())
def test_after_a_job_nothing_is_left_running_and_the_next_one_runs(scenario: Scenario) -> None:
    cluster = scenario.cluster()
    first = cluster.run_job(scenario.specs)
    cluster.run_for(200.0)
    assert cluster.core.n_running_attempts == 0, f"seed {scenario.seed}"
    offset = len(scenario.specs)
    made = [spec.id for spec in scenario.specs] if first.failed is None else []
    second = [task(offset + 1, made), task(offset + 2, [offset + 1], kind=SpecKind.HERE)]
    finished = cluster.run_job(second)
    if finished.failed is None:
        assert TaskId(offset + 2) in cluster.done, f"seed {scenario.seed}"
    else:
        assert finished.reason, f"seed {scenario.seed}"


@given(scenarios())
def test_the_same_events_give_the_same_commands_also_when_read_from_a_trace(scenario: Scenario) -> None:
    cluster = scenario.cluster()
    cluster.run_job(scenario.specs)
    again = scenario.cluster()
    again.run_job(scenario.specs)
    assert again.commands == cluster.commands, f"seed {scenario.seed}"
    lines = [trace.to_line(event, now) + "\n" for event, now in cluster.trace]
    assert replay(trace.read(lines), policy=scenario.policy) == cluster.commands, f"seed {scenario.seed}"


@given(scenarios(), st.floats(0.0, 10.0), st.none() | st.floats(0.0, 10.0))
def test_a_stop_ends_the_job_by_its_deadline_whatever_goes_on(
    scenario: Scenario, at: float, grace: float | None
) -> None:
    cluster = scenario.cluster()
    cluster.submit(scenario.specs)
    cluster.run_for(at)
    if cluster.finished is not None:
        return
    deadline = None if grace is None else cluster.clock.now + grace
    started = sum(cluster.n_started.values())
    cluster.handle(StopRequested("the walltime is near", deadline))
    finished = cluster.run()
    assert sum(cluster.n_started.values()) == started, f"seed {scenario.seed}"
    if not scenario.pauses:
        assert cluster.clock.now <= (deadline or 0.0) + at + 1e-6, f"seed {scenario.seed}"
    assert finished.failed is not None or finished.reason in ("", "the walltime is near"), f"seed {scenario.seed}"
