"""What every transport must do, as pairs of coroutines, one for each end: a test runs them in one process or on two ranks.

A coroutine yields whenever it has to wait for the other end.
"""

import random
from collections.abc import Callable, Generator

from smallpond_mpi.execution.model import Rank
from smallpond_mpi.execution.transport import PeerGone, Received, Transport

Script = Generator[None, None, None]


class End:
    """One end of a conversation."""

    def __init__(self, transport: Transport, peer: Rank, chunk_bytes: int) -> None:
        self.transport = transport
        self.peer = peer
        self.chunk_bytes = chunk_bytes
        self.inbox: list[Received | PeerGone] = []

    def send(self, frame: bytes) -> None:
        self.transport.send(self.peer, frame)

    def receive(self) -> Generator[None, None, bytes]:
        while not self.inbox:
            self.inbox += self.transport.poll()
            if not self.inbox:
                yield
        came = self.inbox.pop(0)
        assert isinstance(came, Received), came
        assert came.source == self.peer
        return bytes(came.frame)

    def silence(self) -> None:
        assert not self.inbox
        assert not self.transport.poll()


def pattern(size: int, seed: int) -> bytes:
    block = random.Random(seed).randbytes(min(size, 65521))
    return (block * (size // max(1, len(block)) + 1))[:size]


def sizes_around(chunk_bytes: int) -> list[int]:
    return [
        0,
        1,
        7,
        8,
        9,
        4095,
        4096,
        70_000,
        chunk_bytes - 1,
        chunk_bytes,
        chunk_bytes + 1,
        3 * chunk_bytes,
        3 * chunk_bytes + 5,
    ]


def sends_every_size(end: End) -> Script:
    for seed, size in enumerate(sizes_around(end.chunk_bytes)):
        end.send(pattern(size, seed))
    assert (yield from end.receive()) == b"all here"


def receives_every_size(end: End) -> Script:
    for seed, size in enumerate(sizes_around(end.chunk_bytes)):
        frame = yield from end.receive()
        assert len(frame) == size
        assert frame == pattern(size, seed)
    end.silence()
    end.send(b"all here")


def sends_many(end: End) -> Script:
    for number in range(20_000):
        end.send(number.to_bytes(4, "little") * (number % 97))
    assert (yield from end.receive()) == b"all here"


def receives_many(end: End) -> Script:
    for number in range(20_000):
        assert (yield from end.receive()) == number.to_bytes(4, "little") * (number % 97)
    end.send(b"all here")


def both_send_large_at_once(end: End) -> Script:
    """Neither end may wait for the other to receive first."""
    frames = [pattern(size, size) for size in (5, 6 * end.chunk_bytes + 1, 5, 2 * end.chunk_bytes, 5)]
    for frame in frames:
        end.send(frame)
    for frame in frames:
        assert (yield from end.receive()) == frame


def ping(end: End) -> Script:
    for number in range(2000):
        end.send(str(number).encode())
        assert (yield from end.receive()) == str(-number).encode()


def pong(end: End) -> Script:
    for number in range(2000):
        assert (yield from end.receive()) == str(number).encode()
        end.send(str(-number).encode())


def sends_and_closes(end: End) -> Script:
    """What was queued before close leaves."""
    yield from ()
    end.send(pattern(4 * end.chunk_bytes, 1))
    end.send(b"last")
    end.transport.close(30.0)


def receives_until_last(end: End) -> Script:
    assert (yield from end.receive()) == pattern(4 * end.chunk_bytes, 1)
    assert (yield from end.receive()) == b"last"


CASES: dict[str, tuple[Callable[[End], Script], Callable[[End], Script]]] = {
    "every size": (sends_every_size, receives_every_size),
    "many in order": (sends_many, receives_many),
    "both large at once": (both_send_large_at_once, both_send_large_at_once),
    "ping pong": (ping, pong),
    "close": (sends_and_closes, receives_until_last),
}
