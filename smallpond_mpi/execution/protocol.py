"""What rank 0 and the executors say to each other, and how it is put into bytes.

        rank 0                                   executor of rank r
          |  <------------- Joined ----------------- |   once, and again after Reset
          |  -------------- Welcome ---------------> |   the job: context, heartbeat
          |  ------ Blob, RunTask, StopTask -------> |
          |  <------- Checkpoint, Ended ------------ |
          |  <--- Alive / Heard (its answer) ------> |   at most one Alive is unanswered
          |  -------------- Shutdown --------------> |

A frame is a list of messages, pickled once: all that one side has to say to the other in a turn of its loop. The payloads inside are
bytes which only a child opens. Both transports, and the simulator, pass frames through `encode` and `decode`.
"""

import pickle
from dataclasses import dataclass
from typing import Any

from smallpond_mpi.execution.model import Capacity, Failure, Grant, TaskRuntimeId


class Message:
    """Base of all messages: pickled as class and field values, which is twice as fast as dataclass slots' own way."""

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[type["Message"], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, name) for name in self.__slots__)


# rank 0 -> executor


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The job that this executor works for from now on; `context` is the pickled RuntimeContext, opened by children only."""

    epoch: int
    context: bytes
    log_path: str  # one log a rank: "{log_path}" and its index "{log_path}.index"
    heartbeat_secs: float
    sys_path: tuple[str, ...] = ()  # put before the child's own sys.path
    env: tuple[tuple[str, str], ...] = ()  # set in every child


@dataclass(frozen=True, slots=True)
class Blob(Message):
    """Bytes that several payloads of a worker refer to by digest (a function, a query, a list of paths): sent once to each rank."""

    digest: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class RunTask(Message):
    """Start this attempt under this grant as soon as the grant is free here; until then it waits its turn in arrival order.

    `header` is what differs by attempt, `payload` what the task is: both pickled, opened by the child. `blobs` are the digests that the
    child needs to open them. `fresh` asks for a child forked for this attempt alone. `timeout_secs` counts from the start of exec.
    """

    attempt: TaskRuntimeId
    grant: Grant
    header: bytes
    payload: bytes
    blobs: tuple[bytes, ...] = ()
    fresh: bool = False
    timeout_secs: float | None = None


@dataclass(frozen=True, slots=True)
class Forget(Message):
    """No attempt to come needs the blobs sent so far: the run is over. One that is needed again is sent again."""


@dataclass(frozen=True, slots=True)
class StopTask(Message):
    """End this attempt if it is here. An Ended with FailureKind.STOPPED follows only if it had not ended before."""

    attempt: TaskRuntimeId


@dataclass(frozen=True, slots=True)
class Heard(Message):
    """Answer to Alive."""


@dataclass(frozen=True, slots=True)
class Reset(Message):
    """Kill every attempt and say Joined again: rank 0 had given this rank up."""


@dataclass(frozen=True, slots=True)
class Shutdown(Message):
    """The session is over: kill what runs, close, leave."""


# executor -> rank 0


@dataclass(frozen=True, slots=True)
class Joined(Message):
    """An executor that is ready for work."""

    host: str
    pid: int
    capacity: Capacity
    python: str = ""  # sys.version_info as "3.11.7": payloads are only sent between equal minor versions


@dataclass(frozen=True, slots=True)
class Ended(Message):
    """An attempt is over. `state` is the task's plain state, pickled by the child (None when the child could not tell any more).

    `failure` is None exactly when it succeeded. Seconds: waited here for its grant, start of the child, and exec itself.
    """

    attempt: TaskRuntimeId
    state: bytes | None
    failure: Failure | None
    queued_secs: float
    start_secs: float
    elapsed_secs: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint(Message):
    """A running attempt's runtime_state, pickled: the next attempt goes on from it."""

    attempt: TaskRuntimeId
    state: bytes


@dataclass(frozen=True, slots=True)
class Alive(Message):
    """Heartbeat."""


@dataclass(frozen=True, slots=True)
class Broken(Message):
    """The executor itself met an error it has no answer to: the job must end and show this."""

    host: str
    traceback: str


def encode(messages: list[Message]) -> bytes:
    """One frame."""
    return pickle.dumps(messages, protocol=5)


def decode(frame: bytes | bytearray | memoryview) -> list[Message]:
    """The messages of a frame, in order."""
    messages: list[Message] = pickle.loads(frame)
    return messages
