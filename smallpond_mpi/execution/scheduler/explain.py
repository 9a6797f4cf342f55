"""Why a task is not running, or what it did, in sentences. It reads the board and changes nothing."""

from smallpond_mpi.execution.model import SCHEDULER_RANK, SpecKind, TaskId
from smallpond_mpi.execution.scheduler.board import Board
from smallpond_mpi.execution.scheduler.fleet import GONE, RankState, RankStatus, Shape
from smallpond_mpi.execution.scheduler.graph import DONE, TaskState
from smallpond_mpi.execution.scheduler.patience import describe_largest
from smallpond_mpi.execution.scheduler.queues import ReadyQueue

MANY = 5
"""Names listed in full; of more, the first ones and a count."""


def explain(board: Board, task: TaskId) -> str:
    """One sentence about where the task stands, and its story if it had trouble."""
    sentences = [f"task {TaskId(task)} {_standing(board, int(task))}."]
    trouble = board.troubles.get(int(task))
    if trouble is not None:
        sentences += [f"{line[0].upper()}{line[1:]}." for line in trouble.told()]
    return " ".join(sentences)


def _standing(board: Board, task: int) -> str:
    if not 0 < task < len(board.graph.state):
        return "was never submitted"
    match TaskState(board.graph.state[task]):
        case TaskState.ABSENT:
            return "was never submitted"
        case TaskState.WAITING:
            return _waits(board, task)
        case TaskState.READY:
            return _is_ready(board, task)
        case TaskState.RUNNING:
            return _runs(board, task)
        case TaskState.DONE:
            return "is done"
        case TaskState.GIVEN_UP:
            return "was given up, and the job failed with it"
        case TaskState.DROPPED:
            return "was dropped, because its job ended before it was done"


def _waits(board: Board, task: int) -> str:
    missing = [f"{TaskId(dep)}" for dep in board.graph.deps(task) if board.graph.state[dep] != DONE]
    named = ", ".join(missing[:MANY]) + (f" and {len(missing) - MANY} more" if len(missing) > MANY else "")
    return f"waits for {len(missing)} of its inputs: {named}"


def _is_ready(board: Board, task: int) -> str:
    queue = board.queue_of(task)
    if board.stop_reason is not None:
        return f"is ready, but nothing new is started: {board.stop_reason}"
    if not queue.shape.n_suitable:
        return f"is ready and asks for {queue.shape}, but {describe_largest(board)}"
    before = queue.tasks.index(task) if task in queue.tasks else 0
    place = f"; {before} tasks that ask for the same are before it" if before else ""
    return f"is ready and asks for {queue.shape}, but {_why_no_room(board, queue)}{place}"


def _why_no_room(board: Board, queue: ReadyQueue) -> str:
    shape = queue.shape
    suitable = [
        rank for rank in board.fleet.ranks.values() if rank.status is not GONE and board.fleet.suits(rank, shape)
    ]
    if queue.reserved is not None:
        return f"has to wait until rank {queue.reserved.number}, which is kept free for it, has room"
    joined = [rank for rank in suitable if rank.is_open]
    if not joined:
        return f"all {len(suitable)} ranks that are large enough {_why_closed(suitable)}"
    others = [rank for rank in joined if rank.reserved_for is None and not board.must_avoid(queue, rank)]
    if not others and any(board.must_avoid(queue, rank) for rank in joined):
        return f"waits for another rank than {queue.avoid}, on which it crashed"
    if not others:
        return f"all {len(joined)} ranks that are large enough are kept free for others that waited for too long"
    return _what_is_short(others, shape)


def _why_closed(ranks: list[RankState]) -> str:
    late = sum(rank.status is RankStatus.LATE for rank in ranks)
    resting = len(ranks) - late
    reasons = [f"{late} have been silent for too long"] * bool(late) + [f"{resting} rest after crashes"] * bool(resting)
    return f"get no work now ({', '.join(reasons)})"


def _what_is_short(ranks: list[RankState], shape: Shape) -> str:
    """The first thing of which no rank has enough free."""
    free_cpus = max(rank.slots.free_cpus for rank in ranks)
    if shape.on_scheduler and ranks[0].layout.n_cpus == 0:
        return f"rank {SCHEDULER_RANK} runs another one of those, and does one at a time"
    if free_cpus < shape.cpus:
        return f"no rank has more than {free_cpus} CPUs free"
    if shape.gpus and not any(rank.slots.fits(0, 0, shape.gpus) for rank in ranks):
        return "no rank has so much of its GPUs free"
    return f"no rank has that together; the most memory that one has free is {max(rank.slots.free_bytes for rank in ranks):,} bytes"


def _runs(board: Board, task: int) -> str:
    if board.queue_of(task).kind is SpecKind.HERE:
        return "runs on rank 0 itself"
    parts = []
    for attempt in board.attempts(task):
        lane = attempt.lane
        where = f"attempt {board.id_of(attempt)} on rank {lane.rank.number} ({lane.rank.host})"
        if lane.shape.at_least:
            where += f", with {lane.grant.memory_bytes:,} bytes of memory because of what its siblings took,"
        if attempt.is_stopping:
            parts.append(f"{where} is being stopped")
        elif attempt.lane.head is attempt:
            parts.append(f"{where} has run for {board.now - attempt.since:.1f} seconds")
        else:
            parts.append(f"{where} waits for {attempt.lane.attempts.index(attempt)} others there")
    return "runs: " + "; ".join(parts)
