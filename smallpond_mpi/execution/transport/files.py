"""Frames through files of a directory that all processes share, for machines where MPI can't be started.

    {root}/000000/                      rank 0's inbox; made by the scheduler when it opens the run
    {root}/000000/000003.000000000017     the 17th file that rank 3 sent it, until it is read
    {root}/000003/                      rank 3's inbox; mkdir takes the number, so that no two executors have the same
    {root}/000003/who                     the process behind it, for those on the same host

No locks, no inotify: a file is whole when it is there under its name (written beside it, renamed), its number says what comes next, and a file that
is not all visible yet is read the next time. Each process lists one directory, its own, less often the longer nothing came. What several sends
between two polls have to say goes into one file.

Who dies is seen at once on the same host. Elsewhere rank 0's scheduler counts the heartbeats that come in the frames, as with any transport, and
executors watch the file that the scheduler's lease renews.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from smallpond_mpi.common import DataRootUnusable
from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank
from smallpond_mpi.execution.transport import PeerGone, Received
from smallpond_mpi.platform.process import ProcessMark, is_dead, mark_of_this_process

MIN_LOOK_SECS = 0.002
MAX_LOOK_SECS = 0.25
LOOK_SHARE = 0.05
"""Of the silence so far, which goes by before the next look: what comes is late by at most that."""
WATCH_SECS = 1.0
SILENCE_SECS = 60.0
"""Without a renewal of the scheduler's lease, after which it is dead: twelve periods."""
GONE_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
CLOSE_POLL_SECS = 0.01

_HEAD = struct.Struct("<QI")  # bytes of all that follows, how many frames
_LENGTH = struct.Struct("<Q")
_NAME = re.compile(r"(\d{6})\.(\d{12})(\.bye)?")
WHO = "who"


class FileTransport:
    """One process's way to the others of a run. Rank 0 hears from all and writes to all; executors know rank 0 alone.

    Args:
        root: the directory of the run, named by the nonce of the scheduler's lease.
        beat_path: for executors: a file that the scheduler keeps changing.
        look_secs: the least and the most time between two looks into the inbox.

    Raises:
        DataRootUnusable: a file can't be written (a full disk, say).
    """

    def __init__(
        self,
        root: str,
        rank: Rank,
        *,
        beat_path: str | None = None,
        look_secs: tuple[float, float] = (MIN_LOOK_SECS, MAX_LOOK_SECS),
        silence_secs: float = SILENCE_SECS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self.rank = rank
        self._inbox = inbox_of(root, rank)
        self._beat_path = beat_path
        self._least_secs, self._most_secs = look_secs
        self._silence_secs = silence_secs
        self._clock = clock
        self._outgoing: dict[Rank, list[bytes]] = {}
        self._sent: dict[Rank, int] = {}
        self._expected: dict[Rank, int] = {} if rank == SCHEDULER_RANK else {SCHEDULER_RANK: 0}
        self._marks: dict[Rank, ProcessMark | None] = {}
        self._gone: set[Rank] = set()
        self._news: list[Received | PeerGone] = []
        self._last_news = self._next_look = self._beat_at = clock()
        self._next_watch = clock() + WATCH_SECS
        self._beat = ""
        self._closed = False

    @classmethod
    def open(cls, root: str, **settings: object) -> "FileTransport":
        """The scheduler's end: executors may join from now on."""
        _make_whole(inbox_of(root, SCHEDULER_RANK))
        return cls(root, SCHEDULER_RANK, **settings)  # type: ignore[arg-type]

    @classmethod
    def join(cls, root: str, **settings: object) -> "FileTransport":
        """An executor's end, under the first number that nobody has taken.

        Raises:
            FileNotFoundError: there is no such run (any more).
        """
        number = max(map(int, filter(str.isdigit, os.listdir(root))), default=0)
        while True:
            number += 1
            with contextlib.suppress(FileExistsError):  # another was faster
                os.mkdir(inbox_of(root, Rank(number)), 0o700)
                break
        _write_mark(inbox_of(root, Rank(number)))
        return cls(root, Rank(number), **settings)  # type: ignore[arg-type]

    def send(self, dest: Rank, frame: bytes) -> None:
        """Queue a frame; a frame for a dead peer is dropped."""
        if dest not in self._gone and not self._closed:
            self._outgoing.setdefault(dest, []).append(bytes(frame))

    def poll(self) -> Sequence[Received | PeerGone]:
        """Everything that has come since the last poll; also moves what is still to be sent. Never blocks."""
        now = self._clock()
        if self._outgoing:
            self._flush()
        if now >= self._next_look:
            self._look(now)
        if now >= self._next_watch:
            self._next_watch = now + WATCH_SECS
            self._watch(now)
        if not self._news:
            return ()
        news, self._news = self._news, []
        return news

    # out

    def _flush(self) -> None:
        for dest, frames in list(self._outgoing.items()):
            if dest not in self._gone:
                self._put(dest, b"".join([_LENGTH.pack(len(frame)) + frame for frame in frames]), len(frames))
            del self._outgoing[dest]  # one by one: should the disk be full for the next, this one is not written twice

    def _put(self, dest: Rank, body: bytes, n_frames: int, ending: str = "") -> None:
        """One file into the inbox of a peer: whole or absent."""
        number = self._sent.get(dest, 0)
        name = f"{self.rank:06d}.{number:012d}{ending}"
        inbox = inbox_of(self._root, dest)
        beside = os.path.join(inbox, f".{name}")
        try:
            with open(beside, "wb") as file:
                file.write(_HEAD.pack(len(body), n_frames))
                file.write(body)
            os.rename(beside, os.path.join(inbox, name))
        except OSError as error:
            if error.errno in GONE_DIRECTORY:
                self._lose(dest, "its directory is gone")
                return
            raise DataRootUnusable(error.errno, f"{inbox} can't be written: {error.strerror}") from None
        self._sent[dest] = number + 1

    # in

    def _look(self, now: float) -> None:
        try:
            names = os.listdir(self._inbox)
        except OSError as error:
            if error.errno not in GONE_DIRECTORY:
                raise
            self._lose(SCHEDULER_RANK, "the directory of its run is gone")
            names = []
        came = False
        for name in sorted(names):
            match = _NAME.fullmatch(name)
            if match is not None:
                source, number = Rank(int(match[1])), int(match[2])
                if number == self._expected.get(source, 0) and self._take(source, name, bool(match[3])):
                    self._expected[source] = number + 1
                    came = True
        if came:
            self._last_news = now
        silence = now - self._last_news
        self._next_look = now + min(self._most_secs, max(self._least_secs, silence * LOOK_SHARE))

    def _take(self, source: Rank, name: str, is_last: bool) -> bool:
        """Read a file and remove it. False if not all of it can be seen yet."""
        path = os.path.join(self._inbox, name)
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            if error.errno in GONE_DIRECTORY:
                return False
            raise
        if len(content) < _HEAD.size:
            return False
        length, n_frames = _HEAD.unpack_from(content)
        if len(content) != _HEAD.size + length:
            return False
        at = _HEAD.size
        if source not in self._gone:
            for _ in range(n_frames):
                (size,) = _LENGTH.unpack_from(content, at)
                at += _LENGTH.size
                self._news.append(Received(source, content[at : at + size]))
                at += size
            if is_last:
                self._lose(source, "it has left", has_left=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return True

    # the dead

    def _watch(self, now: float) -> None:
        for peer in list(self._expected):
            if peer not in self._gone and self._has_died(peer):
                self._lose(peer, "its process has died")
        if self._beat_path is not None and SCHEDULER_RANK not in self._gone:
            self._listen(self._beat_path, now)

    def _has_died(self, peer: Rank) -> bool:
        """Whether the process can be seen to be dead: on this host only."""
        if self._marks.get(peer) is None:
            self._marks[peer] = read_mark(inbox_of(self._root, peer))
        mark = self._marks[peer]
        return mark is not None and is_dead(mark) is True

    def _listen(self, path: str, now: float) -> None:
        """The scheduler renews its lease as long as it lives, whatever it does, and empties it when it ends."""
        try:
            with open(path) as file:
                beat = file.read()
        except OSError:
            beat = self._beat
        if not beat:
            self._look(now)  # it may have said goodbye before
            self._lose(SCHEDULER_RANK, "it has given its lease back")
        elif os.path.basename(self._root) in beat and beat != self._beat:  # the lease may be another's by now
            self._beat, self._beat_at = beat, now
        elif now - self._beat_at > self._silence_secs:
            self._lose(SCHEDULER_RANK, f"its lease was not renewed for {self._silence_secs:g} seconds")

    def _lose(self, peer: Rank, reason: str, has_left: bool = False) -> None:
        if peer not in self._gone:
            self._gone.add(peer)
            self._news.append(PeerGone(peer, reason, has_left))

    # the end

    def close(self, deadline_secs: float) -> None:
        """Write what is queued, and that nothing more follows. Rank 0 waits until all have read it, then removes the run."""
        if self._closed:
            return
        self._flush()
        self._closed = True
        peers = [peer for peer in self._expected if peer not in self._gone]
        for peer in peers:
            self._put(peer, b"", 0, ".bye")
        if self.rank == SCHEDULER_RANK:
            deadline = self._clock() + deadline_secs
            while any(self._has_unread(peer) for peer in peers) and self._clock() < deadline:
                time.sleep(CLOSE_POLL_SECS)
            shutil.rmtree(self._root, ignore_errors=True)

    def _has_unread(self, peer: Rank) -> bool:
        try:
            names = os.listdir(inbox_of(self._root, peer))
        except OSError:
            return False
        return any(map(_NAME.fullmatch, names)) and not self._has_died(peer)


def inbox_of(root: str, rank: Rank) -> str:
    """Where the frames for a rank arrive."""
    return os.path.join(root, f"{rank:06d}")


def read_mark(inbox: str) -> ProcessMark | None:
    """The process behind an inbox, if it has said so yet."""
    try:
        with open(os.path.join(inbox, WHO)) as file:
            return ProcessMark(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def _write_mark(inbox: str) -> None:
    path = os.path.join(inbox, WHO)
    with open(f"{path}.new", "w") as file:
        json.dump(asdict(mark_of_this_process()), file)
    os.rename(f"{path}.new", path)


def _make_whole(inbox: str) -> None:
    """An inbox that is there with its mark or not at all: executors look for it."""
    beside = f"{inbox}.new"
    os.makedirs(beside, mode=0o700, exist_ok=True)
    _write_mark(beside)
    os.rename(beside, inbox)
