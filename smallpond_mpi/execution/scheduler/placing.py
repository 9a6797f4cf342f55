"""What starts where: ready tasks on ranks with room, short tasks behind each other, a rank kept free for whom others always overtake."""

from smallpond_mpi.execution.scheduler.board import Board
from smallpond_mpi.execution.scheduler.fleet import Lane, RankState
from smallpond_mpi.execution.scheduler.patience import watch_avoidance, watch_grace, watch_lane
from smallpond_mpi.execution.scheduler.queues import ReadyQueue


def go_on(board: Board, lane: Lane) -> None:
    """An attempt of this lane is over: the next one runs there, or another task takes the lane, or its place is free."""
    head = lane.head
    if head is not None:
        board.begin(head)
        board.touched.append(lane)
        return
    rank, queues = lane.rank, board.queues
    if (
        queues.active
        and queues.active[0].shape is lane.shape
        and not queues.starving
        and rank.reserved_for is None
        and rank.is_open
        and board.stop_reason is None
        and not board.must_avoid(queues.active[0], rank)
    ):
        board.start(lane, queues.active[0])
        board.touched.append(lane)
        return
    board.fleet.close_lane(lane)
    board.offers.append(rank)


def fill(board: Board) -> None:
    """Start what fits: on ranks where something became free, then wherever there is room for what became ready."""
    _fill_once(board)
    while board.offers:  # a start has ended a reservation
        _fill_once(board)
    board.queues.settle()


def _fill_once(board: Board) -> None:
    while board.offers:
        _fill_rank(board, board.offers.pop())
    if board.unmet:
        for queue in board.unmet:
            watch_grace(board, queue)
        board.unmet.clear()
    may_start = board.queues.active and board.stop_reason is None
    if may_start:
        _place(board)
    if board.touched:
        if may_start:
            for lane in board.touched:
                _top_up(board, lane)
        board.touched.clear()


def _fill_rank(board: Board, rank: RankState) -> None:
    if not rank.is_open:
        return
    fleet, queues = board.fleet, board.queues
    if queues.starving and rank.reserved_for is None:
        board.reserve(rank)
    if rank.reserved_for is not None:
        queue = rank.reserved_for
        if board.stop_reason is not None or not fleet.fits(rank, queue.shape):
            return
        _open(board, rank, queue)
    if board.stop_reason is None:
        while (next_queue := _next_for(board, rank)) is not None:
            _open(board, rank, next_queue)
    fleet.offer(rank)


def _next_for(board: Board, rank: RankState) -> ReadyQueue | None:
    for queue in board.queues.active:
        if board.fleet.fits(rank, queue.shape) and not board.must_avoid(queue, rank):
            return queue
    return None


def _place(board: Board) -> None:
    active, find = board.queues.active, board.fleet.find
    position = 0
    while position < len(active):
        queue = active[position]
        rank = find(queue.shape, queue.avoid)
        if rank is None or (queue.avoid is not None and board.must_avoid(queue, rank)):
            position += 1
            if queue.avoid is not None:
                watch_avoidance(board, queue)
        else:
            _open(board, rank, queue)
            position = 0


def _open(board: Board, rank: RankState, queue: ReadyQueue) -> None:
    lane = board.fleet.open_lane(rank, queue.shape)
    board.start(lane, queue)
    board.touched.append(lane)


def _top_up(board: Board, lane: Lane) -> None:
    """Queue short tasks behind the head of a lane that has run half dry: up to the stage's depth, no more than a fair share of what is left.

    Not for tasks that had trouble (each runs alone), and not where a more urgent one waits for this rank.
    """
    queue, head, have = lane.queue, lane.head, len(lane)
    if queue is None or not queue.tasks or head is None or _runs_alone(board, head.task):
        return
    depth = board.stage_of(queue.tasks[0]).depth
    if have > depth // 2 or not lane.rank.is_open or lane.rank.reserved_for is not None:
        return
    for other in board.queues.active:
        if other.priority >= queue.priority:
            break
        if board.fleet.suits(lane.rank, other.shape):
            return
    for _ in range(min(depth - have, len(queue.tasks) // lane.shape.n_lanes)):
        task = queue.tasks[0]
        if board.stage_of(task).depth <= len(lane) or _runs_alone(board, task):
            break
        board.start(lane, queue)
    if len(lane) > 1:
        watch_lane(board, lane)


def _runs_alone(board: Board, task: int) -> bool:
    trouble = board.troubles.get(task) if board.troubles else None
    return trouble is not None and trouble.runs_alone
