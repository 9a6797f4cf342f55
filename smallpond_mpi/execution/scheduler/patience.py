"""What should have happened by now: silent ranks, long-running heads, stragglers, stops that don't end, requests that no rank meets.

Each alarm looks again when it rings, because what it waited for has mostly happened; then it is set anew for the next one.
"""

from smallpond_mpi.execution.model import SCHEDULER_RANK, FailureKind, TaskId
from smallpond_mpi.execution.scheduler.board import Board
from smallpond_mpi.execution.scheduler.commands import FinishJob, StopRank
from smallpond_mpi.execution.scheduler.fleet import GONE, JOINED, LATE, Attempt, Lane, RankState
from smallpond_mpi.execution.scheduler.graph import DROPPED, GIVEN_UP, RUNNING
from smallpond_mpi.execution.scheduler.queues import ReadyQueue
from smallpond_mpi.execution.scheduler.retry import judge
from smallpond_mpi.execution.scheduler.speculation import Stage

# silence


def watch_silence(board: Board, rank: RankState) -> None:
    """Notice when the rank falls silent. (Rank 0's own executor shares our thread: it can't be silent while we listen.)"""
    if rank.number != SCHEDULER_RANK and not rank.is_silence_timed:
        rank.is_silence_timed = True
        board.set_alarm(rank.heard_at + board.policy.late_secs, _look_at_silence, rank)


def _look_at_silence(board: Board, rank: RankState) -> None:
    rank.is_silence_timed = False
    if rank.status is GONE:
        return
    heard_at = max(rank.heard_at, board.resumed_at)
    when = heard_at + board.policy.late_secs
    if when <= board.now:
        when = heard_at + board.policy.gone_secs
        if when <= board.now:
            give_rank_up(board, rank, f"nothing was heard of it for {board.policy.gone_secs:g} seconds")
            return
        if rank.status is JOINED:
            board.fleet.set_status(rank, LATE)
            if rank.reserved_for is not None:
                board.release(rank.reserved_for)
    rank.is_silence_timed = True
    board.set_alarm(when, _look_at_silence, rank)


def give_rank_up(board: Board, rank: RankState, reason: str) -> None:
    """Fence the rank off: it must drop all it does and join anew."""
    board.fenced[rank.number] = None
    board.out.append(StopRank(rank.number, reason))
    lose_rank(board, rank, reason)


def lose_rank(board: Board, rank: RankState, reason: str, kind: FailureKind = FailureKind.LOST) -> None:
    """The attempts of a rank are over: those that ran are lost, those that waited there are as if never sent."""
    if rank.reserved_for is not None:
        board.release(rank.reserved_for)
    had_a_rank = [queue for queue in board.queues.all if queue.shape.n_suitable]
    over: list[tuple[Attempt, bool]] = []
    for lane in board.fleet.leave(rank):
        over.extend((attempt, position == 0) for position, attempt in enumerate(lane.attempts))
    for attempt, _ in over:
        board.detach(attempt)
    for queue in had_a_rank:
        watch_grace(board, queue)
        _stop_avoiding_if_alone(board, queue)
    for attempt, was_running in over:
        if attempt.is_stopping or board.graph.state[attempt.task] != RUNNING:
            continue
        if was_running:
            fail(board, attempt.task, kind, reason, rank, 0)
        elif not board.has_current(attempt.task):
            board.trouble(attempt.task).tell(
                f"an attempt that waited on rank {rank.number} was lost with it ({reason})"
            )
            board.again(attempt.task)


def stop_rank(board: Board, rank: RankState) -> None:
    """A task failed on this rank: it gets no more, if another one that has CPUs still does."""
    others = (other for other in board.fleet.ranks.values() if other is not rank and other.status is not GONE)
    if rank.is_stopped or not any(not other.is_stopped and other.layout.n_cpus for other in others):
        return
    if rank.reserved_for is not None:
        board.release(rank.reserved_for)
    had_a_rank = [queue for queue in board.queues.all if queue.shape.n_suitable]
    board.fleet.stop_giving(rank)
    for queue in had_a_rank:
        watch_grace(board, queue)
        _stop_avoiding_if_alone(board, queue)


# failures


def fail(board: Board, task: int, kind: FailureKind, reason: str, rank: RankState | None, granted_bytes: int) -> None:
    """An attempt of a running task ended without success: again, or give it up and the job with it."""
    trouble = board.trouble(task)
    where = SCHEDULER_RANK if rank is None else rank.number
    may_be_memory = kind in (FailureKind.OUT_OF_MEMORY, FailureKind.EXIT_CODE, FailureKind.SIGNAL)
    largest = board.fleet.largest_bytes(board.queue_of(task).shape) if may_be_memory else 0
    limit = trouble.memory_bytes
    verdict = judge(trouble, kind, where, granted_bytes, largest, board.policy, board.stage_of(task).need_bytes)
    # an exit code that is taken for want of memory says nothing of the siblings
    if kind is not FailureKind.EXIT_CODE and trouble.memory_bytes is not None and trouble.memory_bytes != limit:
        board.ran_out(task, granted_bytes, trouble.memory_bytes, was_raised=limit is not None)
    trouble.tell(f"an attempt on rank {where} ended with {kind.value}" + (f" ({reason})" if reason else ""))
    if board.has_current(task) and kind is not FailureKind.BAD_INPUT:
        return  # its twin may still succeed
    if verdict is None and trouble.charged >= board.policy.max_fail_count:
        verdict = f"{trouble.charged} attempts failed"  # while a twin ran, which is over now too
    if verdict is None:
        board.again(task)
    else:
        give_up(board, task, verdict)


def give_up(board: Board, task: int, why: str) -> None:
    """The task will have no output: the job fails."""
    board.trouble(task).tell(f"it was given up: {why}")
    board.graph.move(task, GIVEN_UP)
    board.n_unfinished -= 1
    end_job(board, TaskId(task), why)


def end_job(board: Board, failed: TaskId | None, reason: str) -> None:
    """The submission comes to its end: what still runs is stopped, what has no output is dropped."""
    if not board.is_open:
        return
    for attempt in board.all_attempts():
        if not attempt.is_stopping:
            stop(board, attempt, f"the job ends: {reason}")
    if board.n_unfinished:
        for task in board.graph.unfinished():
            board.graph.move(task, DROPPED)
            board.graph.forget_dependants(task)
    for queue in board.queues.all:
        board.release(queue)
    board.queues.clear()
    board.n_unfinished = 0
    board.is_open = False
    board.stop_reason = None
    board.out.append(FinishJob(failed, reason))


# failing ranks


def suspect(board: Board, rank: RankState, task: int) -> None:
    """A task crashed on this rank. Several in a row, while others succeed elsewhere, are the rank's fault: it pauses, and gets work last."""
    if task not in rank.suspects:
        if not rank.suspects:
            rank.suspects_since = board.n_done
        rank.suspects = (*rank.suspects, task)
        rank.is_doubted = True
    if len(rank.suspects) < board.policy.suspect_failures or board.n_done == rank.suspects_since:
        return
    rank.suspects = ()
    board.fleet.set_failing(rank, True)
    if board.fleet.n_live() == board.fleet.n_failing:
        return
    rank.rest_secs = min(max(board.policy.rest_secs, 2 * rank.rest_secs), board.policy.max_rest_secs)
    rank.is_resting = True
    rank.reopen()
    if rank.reserved_for is not None:
        board.release(rank.reserved_for)
    board.set_alarm(board.now + rank.rest_secs, _end_rest, rank)


def _end_rest(board: Board, rank: RankState) -> None:
    rank.is_resting = False
    rank.reopen()
    board.offers.append(rank)


def trust(board: Board, rank: RankState) -> None:
    """A task succeeded on a rank that was under suspicion."""
    rank.suspects = ()
    rank.is_doubted = False
    rank.rest_secs = 0.0
    board.fleet.set_failing(rank, False)


# tasks that wait for another rank than the one they crashed on


def watch_avoidance(board: Board, queue: ReadyQueue) -> None:
    """Nowhere else was room: at some time the tasks of this queue may go back to the rank that they crashed on."""
    if not queue.is_avoid_timed and queue.avoid_until > board.now:
        queue.is_avoid_timed = True
        board.set_alarm(queue.avoid_until, _look_at_avoidance, queue)


def _look_at_avoidance(board: Board, queue: ReadyQueue) -> None:
    queue.is_avoid_timed = False
    if not queue.tasks:
        return
    if queue.avoid_until > board.now:
        watch_avoidance(board, queue)
        return
    _offer_avoided(board, queue)


def _stop_avoiding_if_alone(board: Board, queue: ReadyQueue) -> None:
    if queue.avoid is not None and queue.shape.n_suitable == 1:
        _offer_avoided(board, queue)


def _offer_avoided(board: Board, queue: ReadyQueue) -> None:
    rank = board.fleet.rank(queue.avoid) if queue.avoid is not None else None
    if rank is not None:
        board.offers.append(rank)


# lanes whose head runs for unexpectedly long


def watch_lane(board: Board, lane: Lane) -> None:
    """Notice when attempts wait too long behind the head of this lane."""
    if not lane.is_watched:
        head = lane.head
        assert head is not None
        _look_later(board, lane, head.since + board.stage_of(head.task).recall_after(board.policy))


def _look_later(board: Board, lane: Lane, when: float) -> None:
    """Lanes that are due at about the same time share an alarm: there may be hundreds of thousands of them."""
    lane.is_watched = True
    grain = board.policy.recall_secs / 2
    bucket = int(when / grain) + 1
    lanes = board.watched_lanes.get(bucket)
    if lanes is None:
        lanes = board.watched_lanes[bucket] = []
        board.set_alarm(max(bucket * grain, board.now), _look_at_lanes, bucket)
    lanes.append(lane)


def _look_at_lanes(board: Board, bucket: int) -> None:
    for lane in board.watched_lanes.pop(bucket):
        _look_at_lane(board, lane)


def _look_at_lane(board: Board, lane: Lane) -> None:
    lane.is_watched = False
    head = lane.head
    waiting = [attempt for attempt in lane.behind or () if not attempt.is_stopping]
    if not waiting or head is None:
        return
    patience = board.stage_of(head.task).recall_after(board.policy)
    when = head.since + patience
    if when <= board.now:
        if board.stop_reason is None and board.fleet.find(lane.shape) is not None:
            before = board.id_of(head)
            for attempt in waiting:
                stop(board, attempt, f"{before} runs for long before it, and there is room elsewhere")
                board.trouble(attempt.task).tell(
                    f"an attempt was recalled from rank {lane.rank.number}: {before} ran for long before it"
                )
                if not board.has_current(attempt.task):
                    board.again(attempt.task)
            return
        when = board.now + patience
    _look_later(board, lane, when)


# stragglers


def watch_stage(board: Board, stage: Stage) -> None:
    """Notice when an attempt of this stage runs for much longer than its siblings did."""
    after = stage.twin_after(board.policy)
    if after is not None and stage.running:
        stage.is_watched = True
        board.set_alarm(stage.running[0].since + after, _look_at_stage, stage)


def _look_at_stage(board: Board, stage: Stage) -> None:
    stage.is_watched = False
    after = stage.twin_after(board.policy)
    if after is None:
        return
    running = stage.running
    while running:
        attempt = running[0]
        if attempt.is_over or attempt.is_stopping:
            running.popleft()
            continue
        when = attempt.since + after
        if when <= board.now:
            if not _may_get_twin(board, attempt) or _start_twin(board, attempt):
                running.popleft()
                continue
            when = board.now + max(after / 4, 0.5)  # no room now
        stage.is_watched = True
        board.set_alarm(when, _look_at_stage, stage)
        return


def _may_get_twin(board: Board, attempt: Attempt) -> bool:
    return (
        board.stop_reason is None
        and board.next_retry(attempt.task) + 1 < board.policy.max_retry_count
        and sum(not other.is_stopping for other in board.attempts(attempt.task)) == 1
    )


def _start_twin(board: Board, attempt: Attempt) -> bool:
    shape = board.queue_of(attempt.task).shape
    rank = board.fleet.find(shape, attempt.lane.rank.number, or_avoided=False)
    if rank is None:
        return False
    board.start_twin(board.fleet.open_lane(rank, shape), attempt.task)
    return True


# stops that don't end


def stop(board: Board, attempt: Attempt, reason: str) -> None:
    """Stop an attempt, and notice if its rank does not end it."""
    board.stop(attempt, reason)
    rank = attempt.lane.rank
    if not rank.is_stop_timed and rank.number != SCHEDULER_RANK:
        rank.is_stop_timed = True
        board.set_alarm(board.now + board.policy.stop_secs, _look_at_stops, (rank, board.now))


def _look_at_stops(board: Board, subject: tuple[RankState, float]) -> None:
    """A rank on which nothing is left but attempts that it should have ended long ago is of no use to anybody."""
    rank, since = subject
    rank.is_stop_timed = False
    attempts = [attempt for lane in rank.lanes for attempt in lane.attempts]
    if not any(attempt.is_stopping for attempt in attempts):
        return
    if (
        all(attempt.is_stopping for attempt in attempts)
        and max(since, board.resumed_at) + board.policy.stop_secs <= board.now
    ):
        give_rank_up(
            board, rank, f"it did not end {board.id_of(attempts[0])} within {board.policy.stop_secs:g} seconds"
        )
        return
    rank.is_stop_timed = True
    board.set_alarm(board.now + board.policy.stop_secs, _look_at_stops, (rank, board.now))


# requests that no rank meets


def watch_grace(board: Board, queue: ReadyQueue) -> None:
    """From now on no rank is large enough for this queue: give one some time to join."""
    if queue.shape.n_suitable:
        return
    queue.grace_ends = board.now + board.policy.unmet_grace_secs
    if not queue.is_grace_timed:
        queue.is_grace_timed = True
        board.set_alarm(queue.grace_ends, _look_at_grace, queue)


def _look_at_grace(board: Board, queue: ReadyQueue) -> None:
    queue.is_grace_timed = False
    if not queue.tasks or queue.shape.n_suitable:
        return
    if queue.grace_ends > board.now:
        queue.is_grace_timed = True
        board.set_alarm(queue.grace_ends, _look_at_grace, queue)
        return
    task = queue.tasks.popleft()
    gone = board.fleet.counts[GONE]
    lost = f"; {gone} of the ranks that were there are gone" if gone else ""
    give_up(board, task, f"it asks for {queue.shape}, and {describe_largest(board)}{lost}")


def describe_largest(board: Board) -> str:
    """The largest ranks there are, in words."""
    capacities = [layout.capacity for layout in board.fleet.live_layouts()]
    if not capacities:
        return "no rank is there"
    cpus = max(len(capacity.cpus) for capacity in capacities)
    gpus = max(len(capacity.gpus) for capacity in capacities)
    memory_bytes = max(layout.usable_bytes for layout in board.fleet.live_layouts())
    return f"the most that a rank has is {cpus} CPUs, {gpus} GPUs, and {memory_bytes:,} bytes of memory to give away"
