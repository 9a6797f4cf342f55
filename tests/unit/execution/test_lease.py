"""The lease: who lives is known at once on one host, by watching from another."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from smallpond_mpi.common import JobOwned
from smallpond_mpi.execution import lease as lease_module
from smallpond_mpi.execution.lease import PERIOD_SECS, Lease

OWNER = {"host": "other", "pid": 17, "boot_id": "another boot", "slurm_step": "12.0", "nonce": "n"}


class Clock:
    """Sleeps that take no time; what happens meanwhile is `during(seconds so far)`."""

    def __init__(self, during: Callable[[float], None] = lambda now: None) -> None:
        self.now = 0.0
        self._during = during

    def sleep(self, secs: float) -> None:
        self.now += secs
        self._during(self.now)


def never(secs: float) -> None:
    raise AssertionError(f"slept {secs} s")


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "job").mkdir()
    return str(tmp_path / "job" / "owner")


def written(path: str) -> dict[str, object]:
    return dict(json.loads(Path(path).read_text()))


def hold_elsewhere(path: str) -> "subprocess.Popen[str]":
    """Another process of this host that holds the lease until its stdin ends."""
    program = (
        "import os, sys\n"
        "from smallpond_mpi.execution.lease import Lease\n"
        "lease = Lease.take(sys.argv[1], os.environ)\n"
        "print('taken', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    return process


def test_a_live_owner_on_this_host_is_named_at_once(path: str) -> None:
    other = hold_elsewhere(path)
    try:
        with pytest.raises(JobOwned, match=f"job job is run by process {other.pid} on {socket.gethostname()}"):
            Lease.take(path, {}, never)
    finally:
        other.kill()
        other.communicate()
    Lease.take(path, {}, never).release()  # it is dead: nobody waits


def test_an_owner_that_released_is_replaced_at_once(path: str) -> None:
    Lease.take(path, {}, never).release()
    assert Path(path).read_text() == ""
    Lease.take(path, {}, never).release()


def test_the_slurm_step_is_named(path: str) -> None:
    lease = Lease.take(path, {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3"}, never)
    with pytest.raises(JobOwned, match=r"\(Slurm step 12.3\)"):
        Lease.take(path, {}, never)
    lease.release()


def test_an_owner_elsewhere_that_renews_is_named(path: str) -> None:
    def renew(now: float) -> None:
        if now >= 1.5 * PERIOD_SECS:
            Path(path).write_text(json.dumps(OWNER | {"renewed": 2}))

    Path(path).write_text(json.dumps(OWNER | {"renewed": 1}))
    clock = Clock(renew)
    with pytest.raises(JobOwned, match=r"process 17 on other \(Slurm step 12.0\)"):
        Lease.take(path, {}, clock.sleep)
    assert clock.now < 2 * PERIOD_SECS, "told as soon as it was seen"


def test_an_owner_elsewhere_that_does_not_renew_is_replaced_after_two_periods(path: str) -> None:
    Path(path).write_text(json.dumps(OWNER | {"renewed": 1}))
    clock = Clock()
    lease = Lease.take(path, {}, clock.sleep)
    assert clock.now > 2 * PERIOD_SECS
    assert written(path)["pid"] == os.getpid()
    lease.release()


def test_what_is_no_owner_is_nobodys(path: str) -> None:
    for text in ("", "{", '{"host": 1}', "[]", "\0\0\0", "null"):
        Path(path).write_text(text)
        Lease.take(path, {}, never).release()


def test_garbage_behind_what_the_owner_writes_does_not_hide_it(path: str) -> None:
    Path(path).write_text("x" * 5000)
    lease = Lease.take(path, {}, never)
    with pytest.raises(JobOwned, match=f"is run by process {os.getpid()} on"):
        Lease.take(path, {}, never)
    lease.release()


def test_without_locks_the_same_host_is_watched_too(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    first = Lease.take(path, {}, never)
    monkeypatch.setattr(lease_module.fcntl, "flock", no_locks)
    with pytest.raises(JobOwned, match=f"process {os.getpid()}"):
        Lease.take(path, {}, Clock(lambda now: first.renew() and None).sleep)
    first.release()


def test_renewal_changes_the_file_and_nothing_else_of_it(path: str) -> None:
    lease = Lease.take(path, {}, never)
    before = written(path)
    assert lease.renew()
    after = written(path)
    assert before.pop("renewed") != after.pop("renewed")
    assert before == after
    lease.release()
    lease.release()
    assert not lease.renew(), "released: its descriptor may be another file's by now"
    assert Path(path).read_text() == ""


def test_one_that_was_taken_for_dead_leaves_the_lease_alone(path: str) -> None:
    lease = Lease.take(path, {}, never)
    theirs = json.dumps(OWNER | {"renewed": 9})
    Path(path).write_text(theirs)
    assert not lease.renew()
    lease.release()
    assert Path(path).read_text() == theirs


def test_a_thread_renews(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "PERIOD_SECS", 0.001)
    renewed = threading.Event()
    really = Lease.renew

    def renew(self: Lease) -> bool:
        if self._count > 3:
            renewed.set()
        return really(self)

    monkeypatch.setattr(Lease, "renew", renew)
    lease = Lease.take(path, {}, never)
    assert renewed.wait(30.0)
    lease.release()
    assert not lease._thread.is_alive()


def test_a_renewal_is_synced(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only this host's cache holds shows no life to another host; the first one counts too."""
    synced: list[int] = []

    def fdatasync(fd: int) -> None:
        assert os.path.samestat(os.fstat(fd), os.stat(path))
        synced.append(int(str(written(path)["renewed"])))

    monkeypatch.setattr(lease_module.os, "fdatasync", fdatasync)
    lease = Lease.take(path, {}, never)
    lease.renew()
    lease.release()
    assert synced == [1, 2]


def test_a_sync_that_fails_is_told_and_renewals_go_on(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lease_module.os, "fdatasync", fail)
    lease = Lease.take(path, {}, never)
    assert lease.renew()
    assert written(path)["renewed"] == 2
    assert "can't be synced: [Errno 5] Input/output error" in caplog.text
    lease.release()


def test_a_sync_that_stalls_holds_up_the_renewing_thread_alone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled, goes_on, really = threading.Event(), threading.Event(), os.fdatasync

    def stall(fd: int) -> None:
        if threading.current_thread().name == "lease":
            stalled.set()
            assert goes_on.wait(30.0)
        really(fd)

    monkeypatch.setattr(lease_module, "PERIOD_SECS", 0.001)
    monkeypatch.setattr(lease_module.os, "fdatasync", stall)
    lease = Lease.take(path, {}, never)
    assert stalled.wait(30.0)
    with pytest.raises(JobOwned):  # the lock holds, this thread goes on
        Lease.take(path, {}, never)
    goes_on.set()
    lease.release()
    assert not lease._thread.is_alive()


def test_a_fork_of_the_owner_does_not_hold_the_lock(path: str) -> None:
    """The script may fork, and its children may outlive it."""
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, signal\n"
            "from smallpond_mpi.execution.lease import Lease\n"
            "lease = Lease.take(sys.argv[1], os.environ)\n"
            "if os.fork() == 0:\n"
            "    print(os.getpid(), flush=True)\n"
            "    signal.pause()\n"
            "signal.pause()\n",
            path,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        with pytest.raises(JobOwned):
            Lease.take(path, {}, never)
        owner.kill()
        owner.wait()
        Lease.take(path, {}, never).release()
    finally:
        os.kill(child, 9)
        owner.stdout.close()


def test_the_lock_is_really_the_kernels(path: str) -> None:
    lease = Lease.take(path, {}, never)
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lease.release()
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
