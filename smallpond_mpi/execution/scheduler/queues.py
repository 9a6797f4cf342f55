"""Who is next: ready tasks in one queue a resource class, the order of the queues, and who was passed over for too long.

A lower priority number goes first; queues of one priority take turns. A queue whose next task was passed over for a stated number of
starts asks for a rank of its own; which one is the core's business.
"""

from bisect import insort
from collections import deque

from smallpond_mpi.execution.model import Rank, SpecKind
from smallpond_mpi.execution.scheduler.fleet import RankState, Shape
from smallpond_mpi.execution.scheduler.graph import InvariantBroken


class ReadyQueue:
    """Ready tasks that ask for the same, at the same priority (and had better not run on the same rank)."""

    __slots__ = (
        "avoid",
        "avoid_until",
        "grace_ends",
        "is_active",
        "is_avoid_timed",
        "is_grace_timed",
        "is_starving",
        "kind",
        "n_passed",
        "n_started",
        "number",
        "priority",
        "reserved",
        "shape",
        "tasks",
        "turn",
    )

    def __init__(self, number: int, shape: Shape, kind: SpecKind, priority: int, avoid: Rank | None) -> None:
        self.number = number
        self.shape = shape
        self.kind = kind
        self.priority = priority
        self.avoid = avoid  # the rank that its tasks crashed on: they wait for another one ...
        self.avoid_until = 0.0  # ... until then
        self.is_avoid_timed = False
        self.tasks: deque[int] = deque()
        self.turn = 0
        self.is_active = False
        self.n_started = 0  # by the event in hand
        self.n_passed = 0  # starts of others, none of them more urgent, since its own last one
        self.is_starving = False  # waits for a rank to reserve
        self.reserved: RankState | None = None
        self.grace_ends = 0.0  # when its tasks are given up if no rank is large enough by then
        self.is_grace_timed = False

    def __lt__(self, other: "ReadyQueue") -> bool:
        return (self.priority, self.turn) < (other.priority, other.turn)


class Queues:
    """All queues of ready tasks."""

    def __init__(self, passed_over_limit: int) -> None:
        self.all: list[ReadyQueue] = []
        self.active: list[ReadyQueue] = []  # those with tasks, next one first
        self.starving: list[ReadyQueue] = []
        self._passed_over_limit = passed_over_limit
        self._queues: dict[tuple[int, SpecKind, int, Rank | None], ReadyQueue] = {}
        self._turns = 0
        self._started: list[ReadyQueue] = []

    def queue(self, shape: Shape, kind: SpecKind, priority: int, avoid: Rank | None = None) -> ReadyQueue:
        """The one queue of this class."""
        key = (shape.number, kind, priority, avoid)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = ReadyQueue(len(self.all), shape, kind, priority, avoid)
            self.all.append(queue)
        return queue

    def push(self, queue: ReadyQueue, task: int, in_front: bool = False) -> None:
        """A task is ready."""
        if in_front:
            queue.tasks.appendleft(task)
        else:
            queue.tasks.append(task)
        if not queue.is_active:
            queue.is_active = True
            self._turns += 1
            queue.turn = self._turns
            insort(self.active, queue)

    def took(self, queue: ReadyQueue) -> None:
        """A task was taken out and started: the next turn is another queue's."""
        if queue.n_started == 0:
            self._started.append(queue)
        queue.n_started += 1
        if not queue.tasks:
            self.active.remove(queue)
            queue.is_active = False
        elif len(self.active) > 1:
            self.active.remove(queue)
            self._turns += 1
            queue.turn = self._turns
            insort(self.active, queue)

    def withdraw(self, queue: ReadyQueue, tasks: set[int]) -> None:
        """These of its tasks are to wait elsewhere."""
        queue.tasks = deque(task for task in queue.tasks if task not in tasks)
        if not queue.tasks:
            self.active.remove(queue)
            queue.is_active = False
            self.stop_starving(queue)

    def settle(self) -> None:
        """The event in hand is dealt with: count who was passed over by what it started."""
        started = self._started
        if not started:
            return
        for queue in self.active:
            if queue.n_started:
                queue.n_passed = 0
                continue
            queue.n_passed += sum(other.n_started for other in started if other.priority >= queue.priority)
            if queue.n_passed >= self._passed_over_limit and not queue.is_starving and queue.reserved is None:
                queue.is_starving = True
                self.starving.append(queue)
        for queue in started:
            queue.n_started = 0
        started.clear()

    def stop_starving(self, queue: ReadyQueue) -> None:
        """It got a rank, or has no tasks."""
        if queue.is_starving:
            queue.is_starving = False
            self.starving.remove(queue)

    def clear(self) -> None:
        """Drop every ready task."""
        for queue in self.active:
            queue.tasks.clear()
            queue.is_active = False
        for queue in self.starving:
            queue.is_starving = False
        for queue in self._started:
            queue.n_started = 0
        self.active.clear()
        self.starving.clear()
        self._started.clear()

    def check(self) -> None:
        """Active queues are those with tasks, in order."""
        with_tasks = [queue.number for queue in self.all if queue.tasks]
        if with_tasks != sorted(queue.number for queue in self.active):
            raise InvariantBroken(
                f"queues {with_tasks} have tasks, {[queue.number for queue in self.active]} are active"
            )
        if any(later < earlier for earlier, later in zip(self.active, self.active[1:], strict=False)):
            raise InvariantBroken("active queues are out of order")
        for queue in self.all:
            if queue.reserved is not None and (queue.reserved.reserved_for is not queue or not queue.tasks):
                raise InvariantBroken(
                    f"rank {queue.reserved.number} is reserved for {queue.shape}, which does not hold"
                )
            if queue.is_starving != (queue in self.starving):
                raise InvariantBroken(f"{queue.shape}: starving is marked wrongly")
