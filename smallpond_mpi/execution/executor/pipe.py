"""What a rank and its children say to each other over a socket pair, and how it is cut into frames.

        rank                                   child
          |  -------------- Hello ---------------> |   once
          |  <------- Ready or Refused ----------- |
          |  -------------- Work ----------------> |   some attempts, run in order
          |  <------ Checkpoint, Reply ----------- |   a Reply before the next attempt begins

The rank reads only this envelope: header, payload and state stay the bytes that they are. That a Reply leaves before the next attempt
begins is what tells, when the child dies, which attempt it died of.
"""

import pickle
import struct
from dataclasses import dataclass

from smallpond_mpi.execution.model import Failure, TaskRuntimeId
from smallpond_mpi.execution.protocol import Blob, Message, RunTask, Welcome

HEAD = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The job, and where this child is. When it has grown by `growth_bytes` it is to leave."""

    welcome: Welcome
    rank: int
    host: str
    growth_bytes: int


@dataclass(frozen=True, slots=True)
class Work(Message):
    """Run these one after the other. They are numbered from `first_number`; `blobs` are those of theirs that this child has not seen yet."""

    first_number: int
    runs: tuple[RunTask, ...]
    blobs: tuple[Blob, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready(Message):
    """The child has set itself up."""


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """The child could not set itself up and leaves."""

    traceback: str


@dataclass(frozen=True, slots=True)
class Reply(Message):
    """An attempt is over. `output_end` is the length of the child's spool file then.

    `retire` says why the child must not run another one; it has then left by itself and begun nothing else.
    """

    attempt: TaskRuntimeId
    state: bytes
    failure: Failure | None
    elapsed_secs: float
    peak_bytes: int
    output_end: int
    retire: str = ""


def pack(message: Message) -> bytes:
    """One message as a frame."""
    body = pickle.dumps(message, protocol=5)
    return HEAD.pack(len(body)) + body


class FrameReader:
    """Puts the pieces that a stream socket delivers together into messages."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = HEAD.size

    def feed(self, piece: bytes) -> list[Message]:
        """The messages that are complete with this piece."""
        self._pieces.append(piece)
        self._have += len(piece)
        if self._have < self._need:
            return []
        whole = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        view = memoryview(whole)
        messages: list[Message] = []
        begin = 0
        self._need = HEAD.size
        while len(whole) - begin >= HEAD.size:
            end = begin + HEAD.size + HEAD.unpack_from(whole, begin)[0]
            if end > len(whole):
                self._need = end - begin
                break
            messages.append(pickle.loads(view[begin + HEAD.size : end]))
            begin = end
        rest = whole[begin:]
        self._pieces = [rest] if rest else []
        self._have = len(rest)
        return messages
