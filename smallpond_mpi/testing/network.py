"""A virtual clock, and a network on it: frames of one pair of ranks keep their order, frames of different pairs overtake each other."""

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

from smallpond_mpi.execution.model import Rank
from smallpond_mpi.execution.protocol import Message, decode, encode


class Clock:
    """Calls what is due, in order of time; equal times in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call `action` at this time (now, if it is past)."""
        self._asked += 1
        heappush(self._due, (max(when, self.now), self._asked, action))

    def after(self, secs: float, action: Callable[[], None]) -> None:
        """Call `action` in so many seconds."""
        self.at(self.now + secs, action)

    def step(self) -> bool:
        """Go on to what is due next, and do it; False if nothing is."""
        if not self._due:
            return False
        self.now, _, action = heappop(self._due)
        action()
        return True


class Network:
    """Carries frames, as bytes."""

    def __init__(self, clock: Clock, rng: Random, max_delay_secs: float) -> None:
        self._clock = clock
        self._rng = rng
        self._max_delay_secs = max_delay_secs
        self._last_arrival: dict[tuple[Rank, Rank], float] = {}
        self._cut_until: dict[Rank, float] = {}
        self.n_frames = 0

    def cut_off(self, rank: Rank, until: float) -> None:
        """No frame from or to this rank arrives before then; none gets lost."""
        self._cut_until[rank] = max(until, self._cut_until.get(rank, 0.0))

    def send(self, source: Rank, dest: Rank, messages: list[Message], deliver: Callable[[list[Message]], None]) -> None:
        """Have a frame delivered after a random delay, behind all earlier ones of this pair."""
        frame = encode(messages)
        self.n_frames += 1
        # about one frame in ten takes its time: that is what makes pairs overtake each other
        delay = self._rng.random() * self._max_delay_secs * (1.0 if self._rng.random() < 0.1 else 0.1)
        self._arrive((source, dest), self._clock.now + delay, lambda: deliver(decode(frame)))

    def _arrive(self, pair: tuple[Rank, Rank], when: float, action: Callable[[], None]) -> None:
        when = max(when, self._last_arrival.get(pair, 0.0))
        self._last_arrival[pair] = when

        def arrive() -> None:
            until = max(self._cut_until.get(rank, 0.0) for rank in pair)
            if self._clock.now < until:
                self._clock.at(until, arrive)  # in order: all that was held comes at one time, first asked first called
            else:
                action()

        self._clock.at(when, arrive)
