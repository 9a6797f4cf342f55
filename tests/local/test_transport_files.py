"""The transport through files does what every transport must do, and tells who is dead, who has left and what is stale."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smallpond_mpi.common import DataRootUnusable
from smallpond_mpi.execution.joining import find_run
from smallpond_mpi.execution.lease import Lease
from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank
from smallpond_mpi.execution.paths import JobPaths
from smallpond_mpi.execution.transport import PeerGone, Received
from smallpond_mpi.execution.transport.files import FileTransport, inbox_of
from tests.conformance import CASES, End

AT_ONCE = {"look_secs": (0.0, 0.0)}


def pair(root: Path) -> tuple[FileTransport, FileTransport]:
    return FileTransport.open(str(root / "run"), **AT_ONCE), FileTransport.join(str(root / "run"), **AT_ONCE)


def news_of(transport: FileTransport, deadline_secs: float = 30.0) -> list[Received | PeerGone]:
    """What comes next."""
    deadline = time.monotonic() + deadline_secs
    while not (news := list(transport.poll())):
        assert time.monotonic() < deadline, "nothing came"
    return news


@pytest.mark.parametrize("case", CASES)
def test_conformance(case: str, tmp_path: Path) -> None:
    scheduler, executor = pair(tmp_path)
    ends = End(scheduler, executor.rank, 1 << 16), End(executor, SCHEDULER_RANK, 1 << 16)
    # Rank 0 knows a peer from its first message on, as it does in a job.
    executor.send(SCHEDULER_RANK, b"joined")
    executor.poll()
    assert news_of(scheduler) == [Received(executor.rank, b"joined")]
    for one, other in (ends, ends[::-1]) if case != "close" else (ends[::-1],):
        first, second = CASES[case]
        running = {first(one): one, second(other): other}
        for _ in range(1_000_000):
            if not running:
                break
            for script in list(running):
                try:
                    next(script)
                except StopIteration:
                    running.pop(script).transport.poll()  # its last words leave
        assert not running, "the two ends wait for each other"


def test_each_executor_has_a_number_of_its_own(tmp_path: Path) -> None:
    FileTransport.open(str(tmp_path / "run"))
    joined = [FileTransport.join(str(tmp_path / "run")) for _ in range(3)]
    joined[0].close(1.0)
    joined.append(FileTransport.join(str(tmp_path / "run")))
    assert [one.rank for one in joined] == [1, 2, 3, 4]


def test_several_sends_of_a_turn_are_one_file(tmp_path: Path) -> None:
    scheduler, executor = pair(tmp_path)
    for number in range(100):
        executor.send(SCHEDULER_RANK, bytes([number]))
    executor.poll()
    assert len([name for name in os.listdir(inbox_of(str(tmp_path / "run"), SCHEDULER_RANK)) if name[0] == "0"]) == 1
    assert [one.frame for one in news_of(scheduler)] == [bytes([number]) for number in range(100)]


def test_what_was_written_before_a_full_disk_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, first = pair(tmp_path)
    second = FileTransport.join(str(tmp_path / "run"), **AT_ONCE)
    for executor in (first, second):
        scheduler.send(executor.rank, b"once")
    rename, is_full = os.rename, True

    def rename_if_there_is_room(source: str, target: str) -> None:
        if is_full and os.path.dirname(target) == inbox_of(str(tmp_path / "run"), second.rank):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_if_there_is_room)
    with pytest.raises(DataRootUnusable, match="can't be written"):
        scheduler.poll()
    is_full = False
    scheduler.poll()
    scheduler.send(first.rank, b"then")
    scheduler.poll()
    told = [*news_of(first), *first.poll()]
    assert told == [Received(SCHEDULER_RANK, b"once"), Received(SCHEDULER_RANK, b"then")]
    assert news_of(second) == [Received(SCHEDULER_RANK, b"once")]


def test_a_file_that_is_not_all_there_yet_waits_and_holds_up_what_follows(tmp_path: Path) -> None:
    scheduler, executor = pair(tmp_path)
    for frame in (b"first", b"second"):
        executor.send(SCHEDULER_RANK, frame)
        executor.poll()
    path = Path(inbox_of(str(tmp_path / "run"), SCHEDULER_RANK), f"{executor.rank:06d}.{0:012d}")
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert list(scheduler.poll()) == []
    path.rename(path.with_suffix(".elsewhere"))
    assert list(scheduler.poll()) == []
    path.write_bytes(whole)
    assert [one.frame for one in news_of(scheduler)] == [b"first", b"second"]


def test_who_leaves_is_told_from_who_dies(tmp_path: Path) -> None:
    scheduler, executor = pair(tmp_path)
    executor.send(SCHEDULER_RANK, b"last words")
    executor.close(1.0)
    assert news_of(scheduler) == [
        Received(executor.rank, b"last words"),
        PeerGone(executor.rank, "it has left", has_left=True),
    ]
    scheduler.send(executor.rank, b"too late")
    assert not scheduler.poll()


def test_a_killed_executor_is_seen(tmp_path: Path) -> None:
    scheduler = FileTransport.open(str(tmp_path / "run"), **AT_ONCE)
    program = (
        "import sys, time\n"
        "from smallpond_mpi.execution.transport.files import FileTransport\n"
        "end = FileTransport.join(sys.argv[1]); end.send(0, b'here'); end.poll(); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "run")]) as process:
        assert news_of(scheduler) == [Received(Rank(1), b"here")]
        process.send_signal(signal.SIGKILL)  # and it stays a zombie until the end of `with`
        assert news_of(scheduler) == [PeerGone(Rank(1), "its process has died")]


def test_an_executor_leaves_when_the_run_is_removed(tmp_path: Path) -> None:
    scheduler, executor = pair(tmp_path)
    scheduler.close(0.1)
    news = news_of(executor)
    assert [type(one) for one in news] == [PeerGone]
    assert news[0].peer == SCHEDULER_RANK


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_that_is_not_renewed_is_a_dead_scheduler(tmp_path: Path) -> None:
    """On another host nothing but the lease tells: here the mark of the scheduler's process is of no known host."""
    FileTransport.open(str(tmp_path / "nonce"))
    mark = tmp_path / "nonce" / "000000" / "who"
    mark.write_text(mark.read_text().replace('"boot_id": "', '"boot_id": "another'))
    beat, clock = tmp_path / "owner", Clock()
    executor = FileTransport.join(str(tmp_path / "nonce"), beat_path=str(beat), silence_secs=60.0, clock=clock)

    def after(secs: float, text: str) -> list[Received | PeerGone]:
        clock.now += secs
        beat.write_text(text)
        return list(executor.poll())

    for count in range(5):
        assert after(50.0, f"nonce {count}") == []
    assert after(50.0, "nonce 4") == []
    gone = PeerGone(SCHEDULER_RANK, "its lease was not renewed for 60 seconds")
    assert after(11.0, "another's nonse 5") == [gone]
    assert after(100.0, "nonce 6") == [], "told once"


def test_a_lease_that_was_given_back_is_the_end_whatever_was_said_before(tmp_path: Path) -> None:
    scheduler, beat, clock = FileTransport.open(str(tmp_path / "nonce")), tmp_path / "owner", Clock()
    beat.write_text("nonce 1")
    executor = FileTransport.join(str(tmp_path / "nonce"), beat_path=str(beat), clock=clock)
    clock.now += 100.0
    assert list(executor.poll()) == []
    scheduler.send(executor.rank, b"go home")
    scheduler.poll()
    beat.write_text("")
    clock.now += 1.1
    assert list(executor.poll()) == [
        Received(SCHEDULER_RANK, b"go home"),
        PeerGone(SCHEDULER_RANK, "it has given its lease back"),
    ]


def test_idle_polls_hardly_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    FileTransport.open(str(tmp_path / "run"))
    executor = FileTransport.join(str(tmp_path / "run"), clock=clock)
    looks = counted(monkeypatch)
    for _ in range(6000):  # a minute of polling as the loops do it at rest
        clock.now += 0.010
        executor.poll()
    assert 60 / 0.26 <= looks() <= 350


def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often a directory was listed."""
    calls = []
    listdir = os.listdir

    def counting(path: str) -> list[str]:
        calls.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", counting)
    return lambda: len(calls)


def test_only_the_run_of_a_live_scheduler_is_found(tmp_path: Path) -> None:
    paths = JobPaths(str(tmp_path), "job")
    assert find_run(paths) is None
    program = (
        "import sys, os\n"
        "from smallpond_mpi.execution.lease import Lease\n"
        "from smallpond_mpi.execution.paths import JobPaths\n"
        "from smallpond_mpi.execution.transport.files import FileTransport\n"
        "paths = JobPaths(sys.argv[1], 'job'); os.makedirs(paths.root)\n"
        "FileTransport.open(paths.queue_of(Lease.take(paths.owner, {}).nonce)); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert os.listdir(paths.queue)
    assert find_run(paths) is None, "what a killed scheduler left is no run"
    lease = Lease.take(paths.owner, {})
    assert find_run(paths) is None, "the new one has not opened its run yet"
    FileTransport.open(paths.queue_of(lease.nonce))
    assert find_run(paths) == paths.queue_of(lease.nonce)
    lease.release()
    assert find_run(paths) is None
