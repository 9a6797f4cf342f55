"""One job id: two at once, one after the other, on a disk that is full or can't be written."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.jobs import DEADLINE_SECS, Job, needs_mpirun, wait_for

pytestmark = pytest.mark.fault

ALONE_AND_MPI = [
    0,
    pytest.param(2, marks=[pytest.mark.mpi, pytest.mark.skipif(needs_mpirun, reason="no mpirun beside this python")]),
]


@pytest.mark.parametrize("ranks", ALONE_AND_MPI)
def test_second_live_job_stops_and_names_the_first(job: Callable[..., Job], tmp_path: Path, ranks: int) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    first = job(env={"FAULTS_HOLD": str(hold)})
    first.start()
    wait_for(lambda: first.n_accepted() >= 3, "three accepted tasks")
    assert first.process is not None
    second = job(ranks=ranks)
    second.id, second.data_root = first.id, Path(first.paths.data_root)
    assert second.run() != 0
    assert "JobOwned" in second.stderr
    assert f"process {first.process.pid} on {socket.gethostname()}" in second.stderr
    assert "job_id or SP_JOBID" in second.stderr
    assert first.is_running()
    hold.unlink()
    assert first.wait() == 0, first.stderr
    first.check_result()
    first.check_accepted_once()


def test_owner_that_died_is_replaced_at_once(job: Callable[..., Job]) -> None:
    one = job(env={"FAULTS_LEASE_SECS": str(DEADLINE_SECS)})  # watching a lease takes two such periods
    one.start()
    wait_for(lambda: one.n_accepted() >= 3, "three accepted tasks")
    one.kill_all()
    one.start()
    wait_for(lambda: one.n_accepted() >= 4, "progress without a wait for the dead owner's lease")
    assert one.wait() == 0, one.stderr


def test_finished_job_runs_anew(job: Callable[..., Job]) -> None:
    one = job()
    one.run_to_success()
    first = one.n_worked()
    names = set(os.listdir(one.output))
    one.run_to_success()
    assert one.n_worked() == 2 * first
    one.check_result()
    assert not names & set(os.listdir(one.output)) - {".MANIFEST.txt"}, "files of the first run are still there"
    assert (Path(one.paths.status)).read_text() == "success\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    mount = shutil.which("mount")
    place = tmp_path / "disk"
    place.mkdir()
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", place]).returncode:
        pytest.skip("file systems can't be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("ranks", ALONE_AND_MPI)
@pytest.mark.parametrize("free_bytes", [150_000, 90_000])
def test_full_disk(job: Callable[..., Job], small_disk: Path, ranks: int, free_bytes: int) -> None:
    """It ends with an error that says so; with room again the same id goes on where it was."""
    one = job(ranks=ranks, data_root=small_disk / "root")
    ballast = small_disk / "ballast"
    disk = os.statvfs(small_disk)
    ballast.write_bytes(b"\0" * (disk.f_bavail * disk.f_frsize - free_bytes))
    assert one.run() != 0
    one.wait_until_gone()
    assert "No space left on device" in one.stderr
    assert not one.output.exists()
    assert not one.has_ended()
    ballast.unlink()
    one.run_to_success()
    one.check_result()
    one.check_accepted_once()


def test_data_root_that_becomes_read_only(job: Callable[..., Job], small_disk: Path) -> None:
    one = job(data_root=small_disk / "root")
    one.start()
    wait_for(lambda: one.n_accepted() >= 5, "five accepted tasks")
    one.kill_all()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert one.run() != 0
    assert "DataRootUnusable" in one.stderr
    assert str(small_disk) in one.stderr
    assert "Read-only file system" in one.stderr
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    one.run_to_success()
    one.check_result()
    one.check_accepted_once()
