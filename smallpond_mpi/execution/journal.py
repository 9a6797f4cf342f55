"""What rank 0 writes down so that a job can go on after anything died: one append-only file an epoch, one writer each.

    file   = magic, record*
    record = length (4 bytes), CRC-32 of the body (4 bytes), body (pickle of one of the classes below)

A torn tail is where a log ends. Records are written before anything is built on them, and synced at most once a second: what a crash of the
machine takes with it is computed again. A file is claimed by exclusive creation, so a scheduler that was believed dead can't write into its
successor's epoch; it finds the newer file at its next sync and stops.
"""

import contextlib
import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from smallpond_mpi.common import DataRootUnusable, JobOwned
from smallpond_mpi.execution.model import TaskRuntimeId
from smallpond_mpi.execution.paths import JobPaths
from smallpond_mpi.faults import fault_point

MAGIC = b"smallpond_mpi journal 1\n"
_FRAME = struct.Struct("<II")
SYNC_INTERVAL_SECS = 1.0


@dataclass(frozen=True, slots=True)
class EpochStarted:
    """First record of an epoch: what must be the same in all epochs of a job.

    `num_slots` decides how many tasks share a shuffle: a job that goes on with fewer ranks must plan the same tasks.
    """

    random_seed: int
    job_time: float
    num_slots: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


class Accepted(NamedTuple):
    """A task's output. (A tuple: there is one for each task.) `inputs` digests which attempts' outputs it was computed from."""

    fingerprint: bytes
    inputs: bytes
    attempt: TaskRuntimeId
    state: bytes


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """How far an unfinished attempt got: the next one goes on from there."""

    fingerprint: bytes
    inputs: bytes
    state: bytes


@dataclass(frozen=True, slots=True)
class JobSucceeded:
    """All that was asked for is where the user wants it. What only the running job needs is going from here on, and may be gone."""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The session was shut down in order: after success nothing is left to resume."""

    success: bool


Record = EpochStarted | Accepted | Checkpointed | JobSucceeded | JobEnded


def read_records(path: str) -> Iterator[Record]:
    """The whole records of one file, up to where it is torn."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return
        while True:
            head = file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                return
            length, crc = _FRAME.unpack(head)
            body = file.read(length)
            if len(body) < length or zlib.crc32(body) != crc:
                return
            record: Record = pickle.loads(body)
            yield record


@dataclass(slots=True)
class Restored:
    """What earlier epochs of a job left behind."""

    epoch: int = 0  # the first one that nobody used
    started: EpochStarted | None = None
    accepted: dict[bytes, Accepted] = field(default_factory=dict)  # by fingerprint; the newest counts
    checkpoints: dict[bytes, Checkpointed] = field(default_factory=dict)
    finished: dict[bytes, Accepted] = field(default_factory=dict)  # of a job that died while what it needed went
    ended: bool = False

    def use_seed(self, random_seed: int) -> None:
        """Go on with this seed. Another one than before makes it another job under the same id: nothing is taken up."""
        if self.started is not None and self.started.random_seed != random_seed:
            self.accepted.clear()
            self.checkpoints.clear()
            self.finished.clear()

    def succeed(self) -> None:
        """Of what was recorded so far only what users were given can be relied on."""
        self.finished |= self.accepted
        self.accepted.clear()
        self.checkpoints.clear()

    @property
    def attempts(self) -> set[TaskRuntimeId]:
        """Whose outputs were recorded."""
        return {record.attempt for records in (self.accepted, self.finished) for record in records.values()}


def restore(paths: JobPaths) -> Restored:
    """Read the journal of a job. One that had ended with success begins anew: of it only the epochs count."""
    restored = Restored()
    for epoch in epochs_of(paths):
        restored.epoch = epoch + 1
        for record in read_records(paths.journal_of(epoch)):
            match record:
                case EpochStarted(random_seed):
                    restored.use_seed(random_seed)
                    restored.started = record
                    restored.ended = False
                case Accepted():
                    restored.accepted[record.fingerprint] = record
                    restored.checkpoints.pop(record.fingerprint, None)
                case Checkpointed():
                    restored.checkpoints[record.fingerprint] = record
                case JobSucceeded():
                    restored.succeed()
                case JobEnded(success):
                    if success:
                        restored = Restored(epoch=epoch + 1, ended=True)
    return restored


def epochs_of(paths: JobPaths) -> list[int]:
    """Epochs that were ever claimed, in order."""
    try:
        names = os.listdir(paths.journal)
    except FileNotFoundError:
        return []
    epochs = (name.removesuffix(".log") for name in names if name.endswith(".log"))
    return sorted(int(epoch) for epoch in epochs if epoch.isdecimal())  # a copy that somebody made is nobody's log


class Journal:
    """The log of this epoch, for rank 0 alone.

    Raises:
        JobOwned: another scheduler claimed this epoch, or a later one, since.
        DataRootUnusable: it can't be written (a full disk, say).
    """

    def __init__(self, paths: JobPaths, epoch: int) -> None:
        self._paths = paths
        self.epoch = epoch
        self._buffer: list[bytes] = []
        self._unsynced = False
        self._last_sync = 0.0
        self._size = 0
        fault_point("journal.claim")
        try:
            os.makedirs(paths.journal, mode=0o700, exist_ok=True)
            self._fd = os.open(
                paths.journal_of(epoch), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
        except FileExistsError:
            raise JobOwned(
                f"job {paths.job}: another process has just claimed epoch {epoch}: one scheduler at a time runs a job"
            ) from None
        except OSError as error:
            raise self._unusable(error) from None
        fault_point("journal.claimed")
        self._write(MAGIC)

    def append(self, record: Record) -> None:
        """Remember a record; it is written at the next flush."""
        body = pickle.dumps(record, protocol=5)
        self._buffer.append(_FRAME.pack(len(body), zlib.crc32(body)))
        self._buffer.append(body)

    def flush(self, now: float) -> None:
        """Write what was appended; sync if the last sync is long enough ago. `now` is any monotonic clock, in seconds."""
        if self._buffer:
            fault_point("journal.append")
            self._write(b"".join(self._buffer))
            self._buffer.clear()
            self._unsynced = True
            fault_point("journal.appended")
        if self._unsynced and now - self._last_sync >= SYNC_INTERVAL_SECS:
            self.sync(now)

    def _write(self, content: bytes) -> None:
        """Add to the file, all or nothing: a record behind a torn one would never be found."""
        data = memoryview(content)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a file system that has become read-only takes no cut either
                os.ftruncate(self._fd, self._size)
            raise self._unusable(error) from None
        self._size += len(content)

    def sync(self, now: float) -> None:
        """Write what was appended, make sure that it stays, and that this scheduler is still the job's."""
        self._last_sync = now
        if self._buffer:
            self.flush(now)
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._unusable(error) from None
        self._unsynced = False
        self.check_newest()

    def check_newest(self) -> None:
        """Raise JobOwned if a later epoch was started: this scheduler was believed dead."""
        if os.path.exists(self._paths.journal_of(self.epoch + 1)):
            raise JobOwned(
                f"job {self._paths.job}: epoch {self.epoch + 1} was started elsewhere, this one (epoch {self.epoch}) must stop"
            )

    def close(self, now: float) -> None:
        """Write and sync all; the file is closed whatever happens."""
        try:
            self.sync(now)
        finally:
            os.close(self._fd)

    def _unusable(self, error: OSError) -> DataRootUnusable:
        return DataRootUnusable(
            error.errno,
            f"the journal of job {self._paths.job} in {self._paths.journal} can't be written: {error.strerror}; make room (or make it "
            f"writable) and start the job again with the same id: it goes on where it was",
        )
