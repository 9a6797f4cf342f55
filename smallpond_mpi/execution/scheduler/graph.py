"""What is ready: the state of every task, how many of its inputs are missing, and who waits for it.

Arrays indexed by task id, because a job has millions of tasks; edges are linked lists in two arrays, so that a task costs about 30 bytes
and an edge 12. It does not know ranks, attempts or retries.
"""

from array import array
from collections.abc import Iterator, Sequence
from enum import IntEnum, unique

from smallpond_mpi.execution.model import TaskId


class InvariantBroken(AssertionError):
    """The scheduler's own state contradicts itself: a bug of ours, never of the user or the world."""


@unique
class TaskState(IntEnum):
    """Where a task is. Each task is in exactly one of these."""

    ABSENT = 0  # no such task was submitted
    WAITING = 1  # submitted, some inputs are not done
    READY = 2  # all inputs done (or an attempt ended without success); waits in a queue
    RUNNING = 3  # at least one current attempt, or rank 0 runs it here
    DONE = 4  # an attempt was accepted, or the journal had it
    GIVEN_UP = 5  # ended without output; the job fails with it
    DROPPED = 6  # the submission ended (failure, stop) before it was done


ABSENT, WAITING, READY, RUNNING, DONE, GIVEN_UP, DROPPED = (int(state) for state in TaskState)

MOVES: dict[TaskState, tuple[TaskState, ...]] = {
    TaskState.ABSENT: (TaskState.WAITING, TaskState.DONE),
    TaskState.WAITING: (TaskState.READY, TaskState.DONE, TaskState.GIVEN_UP, TaskState.DROPPED),
    TaskState.READY: (TaskState.RUNNING, TaskState.GIVEN_UP, TaskState.DROPPED),
    TaskState.RUNNING: (TaskState.READY, TaskState.DONE, TaskState.GIVEN_UP, TaskState.DROPPED),
    TaskState.DONE: (),
    TaskState.GIVEN_UP: (TaskState.WAITING, TaskState.DONE),  # submitted again
    TaskState.DROPPED: (TaskState.WAITING, TaskState.DONE),  # submitted again
}
"""The one table of moves. (WAITING to DONE: barriers, which nobody runs.)"""

_LEGAL = bytes(new in MOVES[TaskState(old)] for old in TaskState for new in TaskState)
_N_STATES = len(TaskState)


class Graph:
    """States, missing inputs and dependants of all tasks of a session."""

    __slots__ = (
        "_dep_begin",
        "_dep_count",
        "_deps",
        "_edge_next",
        "_edge_to",
        "_first_edge",
        "_unmet",
        "counts",
        "stage",
        "state",
    )

    def __init__(self) -> None:
        self.state = bytearray()
        self.stage = array("i")
        self.counts: list[list[int]] = []  # by stage number (dense), by state
        self._unmet = array("i")
        self._first_edge = array("i")
        self._edge_to = array("i")
        self._edge_next = array("i")
        self._deps = array("i")
        self._dep_begin = array("q")
        self._dep_count = array("i")

    def grow(self, last: int) -> None:
        """Make room for ids up to `last`."""
        more = last + 1 - len(self.state)
        if more <= 0:
            return
        self.state.extend(bytes(more))
        for numbers in (self.stage, self._unmet, self._dep_count):
            numbers.frombytes(bytes(more * numbers.itemsize))
        self._dep_begin.frombytes(bytes(more * self._dep_begin.itemsize))
        self._first_edge.extend(array("i", [-1]) * more)

    def add_stage(self) -> int:
        """A new stage number."""
        self.counts.append([0] * _N_STATES)
        return len(self.counts) - 1

    def add(self, task: int, stage: int, deps: Sequence[TaskId]) -> None:
        """Bring in a task as WAITING. Its dependencies are looked at by `connect`, when all of its submission are here."""
        old = self.state[task]
        if old != ABSENT:  # submitted again, perhaps under another stage
            self.counts[self.stage[task]][old] -= 1
            self.counts[stage][old] += 1
        self.stage[task] = stage
        self.move(task, WAITING)
        self._dep_begin[task] = len(self._deps)
        self._dep_count[task] = len(deps)
        self._deps.extend(deps)

    def connect(self, task: int) -> int:
        """Make the task wait for those of its inputs that are not done; returns how many these are."""
        state = self.state
        begin = self._dep_begin[task]
        unmet = 0
        for dep in self._deps[begin : begin + self._dep_count[task]]:
            if state[dep] != DONE:
                unmet += 1
                self._edge_to.append(task)
                self._edge_next.append(self._first_edge[dep])
                self._first_edge[dep] = len(self._edge_to) - 1
        self._unmet[task] = unmet
        return unmet

    def move(self, task: int, new: int) -> None:
        """The only way a state changes."""
        old = self.state[task]
        if not _LEGAL[old * _N_STATES + new]:
            raise InvariantBroken(f"task {task:06d} can't go from {TaskState(old).name} to {TaskState(new).name}")
        self.state[task] = new
        counts = self.counts[self.stage[task]]
        counts[old] -= 1
        counts[new] += 1

    def release_dependants(self, task: int) -> list[int]:
        """Tell those who wait for `task` that it is done; returns the ones that wait for nothing any more, in order of submission."""
        edge = self._first_edge[task]
        if edge < 0:
            return []
        self._first_edge[task] = -1
        freed = []
        unmet, edge_to, edge_next, state = self._unmet, self._edge_to, self._edge_next, self.state
        while edge >= 0:
            dependant = edge_to[edge]
            if state[dependant] == WAITING:
                unmet[dependant] -= 1
                if unmet[dependant] == 0:
                    freed.append(dependant)
            edge = edge_next[edge]
        freed.reverse()
        return freed

    def forget_dependants(self, task: int) -> None:
        """Nobody waits for a task that will not be done in this submission."""
        self._first_edge[task] = -1

    def deps(self, task: int) -> Sequence[int]:
        """The inputs of a task."""
        begin = self._dep_begin[task]
        return self._deps[begin : begin + self._dep_count[task]]

    def unmet(self, task: int) -> int:
        """How many inputs of a waiting task are not done."""
        return self._unmet[task]

    def tasks(self) -> Iterator[int]:
        """Every submitted task (linear in the number of ids)."""
        return (task for task, state in enumerate(self.state) if state != ABSENT)

    def unfinished(self) -> list[int]:
        """Every task that has not come to an end (linear in the number of ids)."""
        return [task for task, state in enumerate(self.state) if state in (WAITING, READY, RUNNING)]

    def check(self) -> None:
        """Counters against what they count."""
        counts = [[0] * _N_STATES for _ in self.counts]
        for task in self.tasks():
            state = self.state[task]
            counts[self.stage[task]][state] += 1
            missing = sum(self.state[dep] != DONE for dep in self.deps(task))
            if state == WAITING and (missing != self._unmet[task] or missing == 0):
                raise InvariantBroken(f"task {task:06d} counts {self._unmet[task]} missing inputs, there are {missing}")
            if state in (READY, RUNNING) and missing:
                raise InvariantBroken(f"task {task:06d} is {TaskState(state).name} with {missing} inputs not done")
        for stage, (had, real) in enumerate(zip(self.counts, counts, strict=True)):
            if had[1:] != real[1:]:
                raise InvariantBroken(f"stage {stage} counts {had}, there are {real}")
