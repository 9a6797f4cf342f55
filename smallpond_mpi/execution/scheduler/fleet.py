"""What fits where: the ranks, what runs on each, and for each size of request the ranks that may have room for it.

A *shape* is a size of request. For each shape a list of candidates holds every open rank on which it fits (and, by lazy deletion, some on
which it no longer does), so that a place is found without looking at all ranks. A *lane* is a grant and the attempts that share it one
after the other: capacity is counted once a lane.
"""

from collections import deque
from collections.abc import Iterator
from enum import Enum, unique
from typing import TYPE_CHECKING

from smallpond_mpi.execution.model import SCHEDULER_RANK, Capacity, Grant, Rank
from smallpond_mpi.execution.scheduler.graph import InvariantBroken
from smallpond_mpi.execution.slots import GPU_UNITS, Layout, Slots, gpu_units

if TYPE_CHECKING:
    from smallpond_mpi.execution.scheduler.queues import ReadyQueue


@unique
class RankStatus(Enum):
    """How a rank stands with the scheduler."""

    JOINED = "joined"  # gets work; in by RankJoined or, from LATE, by any sign of life
    LATE = "late"  # silent for a while: keeps its attempts, gets no new ones
    GONE = "gone"  # lost or silent for too long: fenced until it joins anew


JOINED, LATE, GONE = RankStatus


class Shape:
    """A size of request."""

    __slots__ = (
        "_needs",
        "at_least",
        "cpus",
        "first",
        "gpus",
        "last",
        "memory_bytes",
        "n_lanes",
        "n_suitable",
        "number",
        "on_scheduler",
    )

    def __init__(
        self, number: int, cpus: int, gpus: float, memory_bytes: int | None, on_scheduler: bool, at_least: int
    ) -> None:
        self.number = number
        self.cpus = cpus
        self.gpus = gpus
        self.memory_bytes = memory_bytes
        self.on_scheduler = on_scheduler
        self.at_least = at_least  # bytes that siblings took: granted as far as a rank has them, it need not have them
        self.first: deque[RankState] = deque()  # candidates
        self.last: deque[RankState] = (
            deque()
        )  # candidates that better do something else: failing, or their GPUs would idle
        self.n_suitable = 0  # live ranks that could run it if they were idle
        self.n_lanes = 0
        self._needs: dict[Layout, tuple[int, int] | None] = {}

    def need(self, layout: Layout) -> tuple[int, int] | None:
        """CPUs and bytes that it takes on a rank of this layout; None if it never fits there."""
        try:
            return self._needs[layout]
        except KeyError:
            need = self._needs[layout] = self._need(layout)
            return need

    def _need(self, layout: Layout) -> tuple[int, int] | None:
        if not Slots(layout).fits(0, 0, self.gpus):
            return None
        if self.on_scheduler:  # it has nowhere else to go: what rank 0 has must do
            cpus = min(self.cpus, layout.n_cpus)
            return cpus, self._bytes(layout, cpus)
        if not 0 < self.cpus <= layout.n_cpus:
            return None
        if self.memory_bytes is not None and self.memory_bytes > layout.capacity.memory_bytes:
            return None
        return self.cpus, self._bytes(layout, self.cpus)

    def _bytes(self, layout: Layout, cpus: int) -> int:
        asked = layout.share_bytes(cpus) if self.memory_bytes is None else self.memory_bytes
        return min(max(asked, self.at_least), layout.usable_bytes)

    def __str__(self) -> str:
        parts = [f"{self.cpus} CPU{'s' * (self.cpus != 1)}"]
        if self.gpus:
            parts.append(f"{self.gpus:g} GPU{'s' * (self.gpus != 1)}")
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes:,} bytes of memory")
        if self.at_least:
            parts.append(f"{self.at_least:,} bytes of memory at least, for its siblings took so much")
        return ", ".join(parts) + (" on rank 0" if self.on_scheduler else "")


class Attempt:
    """One attempt that a rank was told to start and has not said to be over. (Its id is `Board.id_of`: millions need no object for it.)"""

    __slots__ = ("is_over", "is_stopping", "is_twin", "lane", "older", "retry", "since", "task")

    def __init__(self, task: int, retry: int, lane: "Lane", older: "Attempt | None", is_twin: bool) -> None:
        self.task = task
        self.retry = retry
        self.lane = lane
        self.older = older  # an earlier attempt of the same task that is not over either
        self.is_twin = is_twin
        self.since = 0.0  # when it became the head of its lane, or last told of progress
        self.is_stopping = False  # no longer the task's: it only holds its place until it is over
        self.is_over = False


class Lane:
    """A grant, and the attempts that were started under it, in order: the head runs, the others wait behind it."""

    __slots__ = ("behind", "grant", "head", "is_watched", "queue", "rank", "shape")

    def __init__(self, rank: "RankState", shape: Shape, grant: Grant) -> None:
        self.rank = rank
        self.queue: ReadyQueue | None = None  # where its last attempt came from; more may follow from there
        self.shape = shape
        self.grant = grant
        self.head: Attempt | None = None
        self.behind: list[Attempt] | None = None  # most lanes never have any
        self.is_watched = False  # an alarm looks at how long its head runs

    @property
    def attempts(self) -> list[Attempt]:
        """Head and the others."""
        return [] if self.head is None else [self.head, *(self.behind or ())]

    def __len__(self) -> int:
        return 0 if self.head is None else 1 + len(self.behind or ())

    def add(self, attempt: Attempt) -> None:
        """At the end."""
        if self.head is None:
            self.head = attempt
        elif self.behind is None:
            self.behind = [attempt]
        else:
            self.behind.append(attempt)

    def remove(self, attempt: Attempt) -> None:
        """Wherever it is; the one behind a head becomes the head."""
        if self.head is not attempt:
            assert self.behind is not None
            self.behind.remove(attempt)
        elif self.behind:
            self.head = self.behind.pop(0)
        else:
            self.head = None


class RankState:
    """A rank as the scheduler knows it."""

    __slots__ = (
        "heard_at",
        "host",
        "is_doubted",
        "is_failing",
        "is_open",
        "is_resting",
        "is_silence_timed",
        "is_stop_timed",
        "is_stopped",
        "lanes",
        "layout",
        "listed",
        "number",
        "reserved_for",
        "rest_secs",
        "slots",
        "status",
        "suspects",
        "suspects_since",
    )

    def __init__(self, number: Rank, host: str, layout: Layout, now: float) -> None:
        self.number = number
        self.listed = 0  # bit n: shape n has it among its candidates
        self.is_silence_timed = False  # a timer listens for its silence
        self.is_stop_timed = False  # a timer waits for the end of attempts that it was told to stop
        self.is_failing = False
        self.rest_secs = 0.0
        self.start_afresh(host, layout, now)

    def start_afresh(self, host: str, layout: Layout, now: float) -> None:
        """It has joined and does nothing yet."""
        self.host = host
        self.layout = layout
        self.slots = Slots(layout)
        self.lanes: dict[Lane, None] = {}
        self.heard_at = now
        self.status = JOINED
        self.is_resting = False
        self.is_stopped = False  # gets no more work until it joins anew
        self.is_open = True  # may get new work: joined, not resting, not stopped
        self.reserved_for: ReadyQueue | None = None  # whose next task it is kept free for
        self.is_doubted = False  # a success here has something to clear: suspects, or that it is failing
        self.suspects: tuple[int, ...] = ()  # tasks that crashed here since the last success here
        self.suspects_since = 0  # successes anywhere when the first of these crashed

    def reopen(self) -> None:
        """Work out `is_open` again."""
        self.is_open = self.status is JOINED and not self.is_resting and not self.is_stopped


class Fleet:
    """All ranks, and where a shape has room."""

    def __init__(self) -> None:
        self.ranks: dict[Rank, RankState] = {}  # in the order in which they joined first
        self._by_number: list[RankState | None] = []
        self.shapes: list[Shape] = []
        self.counts = dict.fromkeys(RankStatus, 0)
        self.n_failing = 0
        self._shapes: dict[tuple[int, float, int | None, bool, int], Shape] = {}
        self._layouts: dict[Capacity, Layout] = {}
        self._n_ranks: dict[Layout, int] = {}

    def shape(self, cpus: int, gpus: float, memory_bytes: int | None, on_scheduler: bool, at_least: int = 0) -> Shape:
        """The one Shape of this size."""
        key = (cpus, gpus, memory_bytes, on_scheduler, at_least)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = Shape(len(self.shapes), *key)
            self.shapes.append(shape)
            for rank in self.ranks.values():
                if rank.status is not GONE and self.suits(rank, shape):
                    shape.n_suitable += 1
                    if rank.reserved_for is None and self.fits(rank, shape):
                        self._list(rank, shape)
        return shape

    def rank(self, number: Rank) -> RankState | None:
        """The rank of this number, if it has ever joined."""
        return self._by_number[number] if 0 <= number < len(self._by_number) else None

    def suits(self, rank: RankState, shape: Shape) -> bool:
        """Whether the shape would fit if nothing ran on the rank."""
        if rank.is_stopped or (shape.on_scheduler and rank.number != SCHEDULER_RANK):
            return False
        return shape.need(rank.layout) is not None

    def fits(self, rank: RankState, shape: Shape) -> bool:
        """Whether the shape fits on the rank now, reservations aside."""
        need = shape.need(rank.layout)
        if need is None or not rank.is_open or (shape.on_scheduler and rank.number != SCHEDULER_RANK):
            return False
        cpus, memory_bytes = need
        if cpus == 0:
            return not rank.lanes  # rank 0 without CPUs: a lane of its own, one at a time
        slots = rank.slots
        return (
            slots.free_cpus >= cpus
            and slots.free_bytes >= memory_bytes
            and (not shape.gpus or slots.fits(cpus, memory_bytes, shape.gpus))
        )

    def find(self, shape: Shape, avoid: Rank | None = None, or_avoided: bool = True) -> RankState | None:
        """A rank on which the shape fits now, each in its turn; not `avoid`, unless there is no other and `or_avoided`."""
        held: RankState | None = None
        bit = 1 << shape.number
        for tier in (shape.first, shape.last):
            while tier:
                rank = tier[0]
                if rank.reserved_for is not None or not self.fits(rank, shape):
                    rank.listed &= ~bit
                    tier.popleft()
                elif rank.is_failing and tier is shape.first:
                    shape.last.append(tier.popleft())
                elif rank.number == avoid:
                    held = rank
                    rank.listed &= ~bit
                    tier.popleft()
                else:
                    tier.rotate(-1)
                    if held is not None:
                        self._list(held, shape)
                    return rank
        if held is not None:
            self._list(held, shape)
        return held if or_avoided else None

    def offer(self, rank: RankState) -> None:
        """Make the rank a candidate of every shape that fits on it."""
        if not rank.is_open or rank.reserved_for is not None:
            return
        for shape in self.shapes:
            if not rank.listed >> shape.number & 1 and self.fits(rank, shape):
                self._list(rank, shape)

    def _list(self, rank: RankState, shape: Shape) -> None:
        rank.listed |= 1 << shape.number
        if rank.is_failing or (rank.slots.free_gpus is not None and not shape.gpus):
            shape.last.append(rank)
        else:
            shape.first.append(rank)

    def open_lane(self, rank: RankState, shape: Shape) -> Lane:
        """Take what the shape needs on a rank where it fits."""
        need = shape.need(rank.layout)
        assert need is not None
        lane = Lane(rank, shape, rank.slots.take(*need, shape.gpus))
        rank.lanes[lane] = None
        shape.n_lanes += 1
        return lane

    def close_lane(self, lane: Lane) -> None:
        """Put back what a lane held."""
        lane.rank.slots.give(lane.grant)
        del lane.rank.lanes[lane]
        lane.shape.n_lanes -= 1

    def join(self, number: Rank, host: str, capacity: Capacity, now: float) -> RankState:
        """A rank that is new, or was taken out by `leave`, starts afresh."""
        layout = self._layouts.get(capacity)
        if layout is None:
            layout = self._layouts[capacity] = Layout(capacity)
        self._n_ranks[layout] = self._n_ranks.get(layout, 0) + 1
        rank = self.rank(number)
        if rank is None:
            rank = self.ranks[number] = RankState(number, host, layout, now)
            self._by_number.extend([None] * (number + 1 - len(self._by_number)))
            self._by_number[number] = rank
        else:
            self.counts[rank.status] -= 1
            rank.start_afresh(host, layout, now)
        self.counts[JOINED] += 1
        for shape in self.shapes:
            shape.n_suitable += self.suits(rank, shape)
        return rank

    def leave(self, rank: RankState) -> list[Lane]:
        """The rank is gone; returns the lanes that it had."""
        for shape in self.shapes:
            shape.n_suitable -= self.suits(rank, shape)
        self._n_ranks[rank.layout] -= 1
        self.set_status(rank, GONE)
        self.set_failing(rank, False)
        lanes = list(rank.lanes)
        for lane in lanes:
            self.close_lane(lane)
        return lanes

    def stop_giving(self, rank: RankState) -> None:
        """The rank gets no more work; what it has stays there."""
        for shape in self.shapes:
            shape.n_suitable -= self.suits(rank, shape)
        rank.is_stopped = True
        rank.reopen()

    def set_status(self, rank: RankState, status: RankStatus) -> None:
        """The only way a status changes, joining aside."""
        self.counts[rank.status] -= 1
        self.counts[status] += 1
        rank.status = status
        rank.reopen()

    def set_failing(self, rank: RankState, is_failing: bool) -> None:
        """Tasks crash on this rank that succeed elsewhere: it gets work last."""
        self.n_failing += is_failing - rank.is_failing
        rank.is_failing = is_failing

    def n_live(self) -> int:
        """Ranks that have joined and are not gone."""
        return self.counts[JOINED] + self.counts[LATE]

    def live_layouts(self) -> Iterator[Layout]:
        """The layouts that at least one live rank has."""
        return (layout for layout, count in self._n_ranks.items() if count)

    def largest_bytes(self, shape: Shape) -> int:
        """The most memory that any rank with CPUs and GPUs enough could grant (rank 0's, if it must run there)."""
        if shape.on_scheduler:
            rank = self.rank(SCHEDULER_RANK)
            return rank.layout.usable_bytes if rank is not None else 0
        return max(
            (
                layout.usable_bytes
                for layout in self.live_layouts()
                if shape.cpus <= layout.n_cpus and Slots(layout).fits(0, 0, shape.gpus)
            ),
            default=0,
        )

    def free_bytes(self, shape: Shape) -> int:
        """The memory that goes with the CPUs of this shape wherever it runs: no rank could start more of its kind if each took less."""
        if shape.on_scheduler:
            return self.largest_bytes(shape)
        shares = (layout.share_bytes(shape.cpus) for layout in self.live_layouts() if shape.cpus <= layout.n_cpus)
        return min(shares, default=0)

    def check(self) -> None:
        """Grants of a rank sum to capacity minus free; candidates are complete; counters count."""
        counts = dict.fromkeys(RankStatus, 0)
        for rank in self.ranks.values():
            counts[rank.status] += 1
            self._check_grants(rank)
            for shape in self.shapes:
                listed = bool(rank.listed >> shape.number & 1)
                if not listed and rank.reserved_for is None and self.fits(rank, shape):
                    raise InvariantBroken(f"{shape} fits on rank {rank.number}, which is not among its candidates")
        if counts != self.counts:
            raise InvariantBroken(f"ranks are counted {self.counts}, there are {counts}")
        for shape in self.shapes:
            suitable = sum(rank.status is not GONE and self.suits(rank, shape) for rank in self.ranks.values())
            lanes = sum(lane.shape is shape for rank in self.ranks.values() for lane in rank.lanes)
            if (suitable, lanes) != (shape.n_suitable, shape.n_lanes):
                raise InvariantBroken(
                    f"{shape}: {suitable} ranks and {lanes} lanes, counted {shape.n_suitable}, {shape.n_lanes}"
                )
            in_tiers = sorted(rank.number for tier in (shape.first, shape.last) for rank in tier)
            if in_tiers != sorted(rank.number for rank in self.ranks.values() if rank.listed >> shape.number & 1):
                raise InvariantBroken(f"candidates of {shape} and the ranks' own marks differ")

    def _check_grants(self, rank: RankState) -> None:
        slots, layout = rank.slots, rank.layout
        mask = bytes_granted = 0
        quotas = [0] * len(layout.capacity.gpus)
        for lane in rank.lanes:
            lane_mask = layout.mask_of(lane.grant.cpus)
            if mask & lane_mask:
                raise InvariantBroken(f"rank {rank.number} has a CPU in two grants")
            mask |= lane_mask
            bytes_granted += lane.grant.memory_bytes
            for index, quota in lane.grant.gpus:
                quotas[index] += gpu_units(quota)
            if lane.head is None:
                raise InvariantBroken(f"rank {rank.number} has a lane without attempts")
        if rank.status is GONE and rank.lanes:
            raise InvariantBroken(f"rank {rank.number} is gone and has lanes")
        if mask ^ slots.free_mask != layout.all_cpus or slots.free_cpus != slots.free_mask.bit_count():
            raise InvariantBroken(f"rank {rank.number}: granted and free CPUs are not its CPUs")
        if bytes_granted + slots.free_bytes != layout.usable_bytes or slots.free_bytes < 0:
            raise InvariantBroken(f"rank {rank.number}: granted and free memory are not its memory")
        if any(quota > GPU_UNITS for quota in quotas) or quotas != [GPU_UNITS - free for free in slots.free_gpus or ()]:
            raise InvariantBroken(f"rank {rank.number}: GPU quotas {quotas}, free {slots.free_gpus}")
