"""Questions from rank 0, answers from the others: JSON in frames of the transport, each question with a deadline.

rank 0   ask(question, arguments) ──▶ all others     answers by rank; who is silent is left out
others   answer until they are told to leave
"""

import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from smallpond_mpi.cli.doctor import duty, facts, files
from smallpond_mpi.common import SmallpondError
from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank
from smallpond_mpi.execution.transport import PeerGone, Received
from smallpond_mpi.execution.worker import Place, arrive

LEAVE = "leave"
START_SECS = 120
"""For all ranks to meet in MPI_Init, where nothing can interrupt a process but the kernel."""
POLL_SECS = 0.0002
ROUND_TRIPS = 20
FRAME_BYTES = 4 << 20


@dataclass
class Others:
    """The other ranks, as rank 0 talks to them. `silent` are those that have not answered something in time; `came` is what came while rank 0 did
    something itself.
    """

    place: Place
    silent: set[int] = field(default_factory=set)
    came: list[Received | PeerGone] = field(default_factory=list)

    @property
    def ranks(self) -> list[int]:
        """Those that still answer."""
        return [rank for rank in range(1, self.place.size) if rank not in self.silent]

    def ask(
        self,
        question: str,
        deadline_secs: float,
        own: Callable[[], dict[str, Any]] | None = None,
        **arguments: Any,
    ) -> dict[int, dict[str, Any]]:
        """Ask all at once; their answers. `own` is what rank 0 does meanwhile, its result the answer of rank 0."""
        return self.ask_each(question, deadline_secs, dict.fromkeys(self.ranks, arguments), own)

    def ask_each(
        self,
        question: str,
        deadline_secs: float,
        arguments: Mapping[int, Mapping[str, Any]],
        own: Callable[[], dict[str, Any]] | None = None,
    ) -> dict[int, dict[str, Any]]:
        """The same with arguments for each; who is not among them, or silent, isn't asked."""
        asked = [rank for rank in self.ranks if rank in arguments]
        for rank in asked:
            self.place.transport.send(Rank(rank), json.dumps([question, arguments[rank]]).encode())
        answers = {} if own is None else {int(SCHEDULER_RANK): own()}
        return answers | self._answers(asked, question, deadline_secs)

    def _answers(self, asked: list[int], question: str, deadline_secs: float) -> dict[int, dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + deadline_secs
        while len(answers) < len(asked) and time.monotonic() < deadline:
            came, self.came = [*self.came, *self.place.transport.poll()], []
            for news in came:
                if isinstance(news, Received):
                    answered, answer = json.loads(bytes(news.frame))
                    if answered == question:  # and not an answer that came too late for an earlier one
                        answers[int(news.source)] = answer
            time.sleep(POLL_SECS)
        self.silent.update(set(asked) - answers.keys())
        return answers

    def round_trips(self, deadline_secs: float) -> dict[int, float]:
        """The median of a few round trips of a small message, in seconds, by rank."""
        trips: dict[int, float] = {}
        for rank in self.ranks:
            taken = []
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                if rank in self.ask_each("echo", deadline_secs, {rank: {}}):
                    taken.append(time.perf_counter() - began)
                else:
                    break
            if taken:
                trips[rank] = sorted(taken)[len(taken) // 2]
        return trips

    def transfer_rates(self, deadline_secs: float) -> dict[int, float]:
        """Bytes a second there and back, of a message of FRAME_BYTES, by rank."""
        rates: dict[int, float] = {}
        for rank in self.ranks:
            began = time.perf_counter()
            if rank in self.ask_each("echo", deadline_secs, {rank: {"text": "x" * FRAME_BYTES}}):
                rates[rank] = 2 * FRAME_BYTES / (time.perf_counter() - began)
        return rates

    def dismiss(self) -> None:
        """Let all go, silent ones too."""
        for rank in range(1, self.place.size):
            self.place.transport.send(Rank(rank), json.dumps([LEAVE, {}]).encode())


def library_of(place: Place) -> str:
    """The MPI library that was loaded; nothing without one."""
    if place.transport is None:
        return ""
    from smallpond_mpi.execution.transport.mpi import library_version

    return library_version()


def answering(
    place: Place, env: Mapping[str, str], keep: Callable[[Received | PeerGone], None]
) -> dict[str, Callable[..., dict[str, Any]]]:
    """What a rank can be asked. `keep` takes what comes while it answers."""
    return {
        "echo": lambda text="": {"text": text},
        "facts": lambda: facts.rank_facts(place, env, library_of(place)),
        "see": files.see,
        "write": files.write,
        "task": lambda frame: duty.run_task(place, frame),
        "rest": lambda: duty.rest(place, keep),
    }


def serve(env: Mapping[str, str]) -> NoReturn:
    """Be a rank other than 0 of a doctor."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(2 * START_SECS)  # rank 0, which speaks for all, has given up by then
    try:
        place = arrive(env)
    except SmallpondError:
        os._exit(
            0
        )  # rank 0 meets the same, says so, and fails: a launcher may end it when another has failed before it spoke
    signal.alarm(0)
    backlog: deque[Received | PeerGone] = deque()
    questions = answering(place, env, backlog.append)
    launcher = os.getppid()
    is_over = False
    while not is_over and os.getppid() == launcher:
        backlog.extend(place.transport.poll())
        while backlog and not is_over:
            news = backlog.popleft()
            if not isinstance(news, Received):
                is_over = news.peer == SCHEDULER_RANK
                continue
            question, arguments = json.loads(bytes(news.frame))
            if question == LEAVE:
                is_over = True
            else:
                answer = questions[question](**arguments)
                place.transport.send(SCHEDULER_RANK, json.dumps([question, answer]).encode())
        time.sleep(POLL_SECS)
    place.leave()
    place.transport.leave(0)
    os._exit(0)
