"""The examination, from rank 0's arrival to its exit code."""

import contextlib
import os
import signal
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from smallpond_mpi.cli.doctor import duty, facts, files, report, verdicts
from smallpond_mpi.cli.doctor.talk import START_SECS, Others, library_of
from smallpond_mpi.cli.doctor.verdicts import Verdict
from smallpond_mpi.common import SmallpondError
from smallpond_mpi.execution.worker import Place, arrive
from smallpond_mpi.platform.binding import launched_size

ANSWER_SECS = 20.0
FILES_SECS = 60.0
WATCH_SECS = 0.2


def examine(data_root: str, env: Mapping[str, str], as_json: bool) -> int:
    """Ask, judge, print; the exit code: 1 if anything failed."""
    late = Verdict(
        "launch",
        "fail",
        f"the {launched_size(env)} ranks that were started have not met in MPI_Init within {START_SECS} s",
        "look whether one of them died above, whether the nodes reach each other, and whether the launcher is the MPI library's own",
    )
    try:
        with _within_start(report.text([], [late], as_json)):
            place = arrive(env)
    except SmallpondError as error:
        report.show([], [Verdict("launch", "fail", str(error))], as_json)
        return 1
    others = Others(place)
    try:
        ranks, found = _examine(place, others, data_root, env)
    except BaseException:  # whatever it was (Ctrl-C too), it is raised again once the others are told
        if place.transport is None:
            raise
        traceback.print_exc()
        place.transport.abort(1)  # the others would wait for rank 0
        raise
    report.show(ranks, found, as_json)
    if others.silent:
        place.transport.abort(
            1
        )  # they may never leave, and a launcher that goes on without the dead waits for the living
    others.dismiss()
    place.is_dismissed = True
    place.leave(exit_code_if_stuck=1)
    return 1 if any(one.level == "fail" for one in found) else 0


@contextlib.contextmanager
def _within_start(last_words: str) -> Iterator[None]:
    """Within this, a process that is not through after START_SECS says its last words and is ended. By another process: MPI_Init holds the interpreter."""
    watched = os.getpid()
    watch = os.fork()
    if watch == 0:
        try:
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_DFL)
            deadline = time.monotonic() + START_SECS
            while os.getppid() == watched and time.monotonic() < deadline:
                time.sleep(WATCH_SECS)
            if os.getppid() == watched:
                os.write(1, last_words.encode())
                os.kill(watched, signal.SIGKILL)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(watch, signal.SIGKILL)
        os.waitpid(watch, 0)


def _examine(
    place: Place, others: Others, data_root: str, env: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[Verdict]]:
    asked_at = time.time()
    answers = others.ask("facts", ANSWER_SECS, lambda: facts.rank_facts(place, env, library_of(place)))
    middle = (asked_at + time.time()) / 2
    for rank, answer in answers.items():
        if rank:
            answer["clock_offset"] = answer["clock"] - middle
    ranks = [answers[rank] for rank in sorted(answers)]
    hosts = {int(rank["rank"]): str(rank["host"]) for rank in ranks}
    trips = others.round_trips(ANSWER_SECS)
    rates = others.transfer_rates(ANSWER_SECS)
    seen, made = _try_data_root(data_root, others)
    tasks = _run_tasks(place, others, ranks, data_root) if verdicts.is_shared(seen, made) else {}
    rests = others.ask("rest", ANSWER_SECS, lambda: duty.rest(place, others.came.append))
    found = [
        *verdicts.world(ranks, launched_size(env)),
        *verdicts.placement(ranks),
        *verdicts.memory(ranks),
        *verdicts.processes(ranks),
        *verdicts.tasks(tasks, ranks),
        *verdicts.idle(rests, hosts),
        *verdicts.messages(trips, rates),
        *verdicts.data_root(data_root, seen, made, hosts),
        *verdicts.silence(others.silent, hosts),
    ]
    return ranks, found


def _within(deadline_secs: float, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `act` returns; an error if it doesn't in time. A client of a dead file server can't be interrupted, only left behind."""
    result: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: result.append(act()), daemon=True)
    thread.start()
    thread.join(deadline_secs)
    return result[0] if result else {"error": f"no answer within {deadline_secs:g} seconds"}


def _try_data_root(data_root: str, others: Others) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """(how each of the others saw what this rank wrote, or failed to write what this one sees; what the file system can do)."""
    place = os.path.join(data_root, f".doctor-{socket.gethostname()}-{os.getpid()}")
    made = _within(FILES_SECS, lambda: files.try_files(place))
    if "error" in made:
        return {}, made
    name, content = os.path.join(data_root, f".doctor-{uuid.uuid4().hex}"), uuid.uuid4().hex
    marks = {rank: f"{name}-{rank}" for rank in range(others.place.size)}
    try:
        written = _within(FILES_SECS, lambda: files.write(marks[0], content))
        if written:
            return {}, written
        seen = others.ask("see", files.SEEN_SECS + ANSWER_SECS, path=marks[0], content=content)
        asked = {
            rank: {"path": marks[rank], "content": content} for rank, answer in seen.items() if "error" not in answer
        }
        wrote = others.ask_each("write", ANSWER_SECS, asked)
        for rank, answer in wrote.items():
            seen[rank] |= {"unwritable": answer["error"]} if answer else {}
        expected = {rank: marks[rank] for rank, answer in wrote.items() if not answer}
        for rank in _within(FILES_SECS, lambda: files.see_all(expected, content)).get("unseen", expected):
            seen[rank]["error"] = "what it wrote is not seen by rank 0"
    finally:
        _within(FILES_SECS, lambda: _remove(marks.values()))
    return seen, made


def _remove(paths: Iterable[str]) -> dict[str, Any]:
    for path in paths:
        for each in (path, f"{path}.part"):
            with contextlib.suppress(OSError):  # not there; or a file system that fails: the verdict says so
                os.unlink(each)
    return {}


def _run_tasks(
    place: Place, others: Others, ranks: Sequence[Mapping[str, Any]], data_root: str
) -> dict[int, dict[str, Any]]:
    """What a task of all that each rank has saw there, by rank."""
    from smallpond_mpi.cli.doctor import trial  # DuckDB and Arrow, which ranks other than 0 do without

    try:
        with trial.frames(ranks, data_root) as frames:
            own = frames.pop(0, None)
            answers = others.ask_each(
                "task",
                duty.TRIAL_SECS + ANSWER_SECS,
                {rank: {"frame": frame} for rank, frame in frames.items()},
                None if own is None else lambda: duty.run_task(place, own),
            )
    except OSError as error:
        return {0: {"error": str(error)}}
    return {rank: trial.opened(answer) for rank, answer in answers.items()}
