"""Questions from rank 0, answers from the others: JSON in frames of the transport, each question with a deadline.

rank 0   ask(question, arguments) ──▶ all others     answers by rank; who is silent is left out
others   answer until they are told to leave
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from smallpond_mpi.cli.doctor import facts
from smallpond_mpi.common import SmallpondError
from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank
from smallpond_mpi.execution.transport import Received
from smallpond_mpi.execution.worker import Place, arrive

LEAVE = "leave"
POLL_SECS = 0.0002
ROUND_TRIPS = 20
FRAME_BYTES = 4 << 20


@dataclass
class Others:
    """The other ranks, as rank 0 talks to them. `silent` are those that have not answered something in time."""

    place: Place
    silent: set[int] = field(default_factory=set)

    @property
    def ranks(self) -> list[int]:
        """Those that still answer."""
        return [rank for rank in range(1, self.place.size) if rank not in self.silent]

    def ask(self, question: str, deadline_secs: float, **arguments: Any) -> dict[int, dict[str, Any]]:
        """Ask all at once; their answers."""
        return self._ask(self.ranks, question, deadline_secs, arguments)

    def _ask(
        self, ranks: list[int], question: str, deadline_secs: float, arguments: Mapping[str, Any]
    ) -> dict[int, dict[str, Any]]:
        frame = json.dumps([question, arguments]).encode()
        for rank in ranks:
            self.place.transport.send(Rank(rank), frame)
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + deadline_secs
        while len(answers) < len(ranks) and time.monotonic() < deadline:
            for news in self.place.transport.poll():
                if isinstance(news, Received):
                    asked, answer = json.loads(bytes(news.frame))
                    if asked == question:  # and not an answer that came too late for an earlier one
                        answers[int(news.source)] = answer
            time.sleep(POLL_SECS)
        self.silent.update(set(ranks) - answers.keys())
        return answers

    def round_trips(self, deadline_secs: float) -> dict[int, float]:
        """The median of a few round trips of a small message, in seconds, by rank."""
        trips: dict[int, float] = {}
        for rank in self.ranks:
            taken = []
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                if rank in self._ask([rank], "echo", deadline_secs, {}):
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
            answer = self._ask([rank], "echo", deadline_secs, {"text": "x" * FRAME_BYTES})
            if answer:
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


def answering(place: Place, env: Mapping[str, str]) -> dict[str, Callable[..., dict[str, Any]]]:
    """What a rank can be asked."""
    return {
        "echo": lambda text="": {"text": text},
        "facts": lambda: facts.rank_facts(place, env, library_of(place)),
        "see": facts.see,
        "write": facts.write,
    }


def serve(env: Mapping[str, str]) -> NoReturn:
    """Be a rank other than 0 of a doctor."""
    try:
        place = arrive(env)
    except SmallpondError:
        os._exit(
            0
        )  # rank 0 meets the same, says so, and fails: a launcher may end it when another has failed before it spoke
    questions = answering(place, env)
    launcher = os.getppid()
    is_over = False
    while not is_over and os.getppid() == launcher:
        for news in place.transport.poll():
            if not isinstance(news, Received):
                is_over = is_over or news.peer == SCHEDULER_RANK
                continue
            question, arguments = json.loads(bytes(news.frame))
            if question == LEAVE:
                is_over = True
            else:
                answer = questions[question](**arguments)
                place.transport.send(SCHEDULER_RANK, json.dumps([question, answer]).encode())
        time.sleep(POLL_SECS)
    place.server.close(1.0)
    place.transport.finalize(10.0)
    place.transport.leave(0)
    os._exit(0)
