"""The journal: what is whole is read, what is torn ends a log, one writer an epoch."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi.common import DataRootUnusable, JobOwned
from smallpond_mpi.execution import journal as journal_module
from smallpond_mpi.execution.journal import (
    MAGIC,
    Accepted,
    Checkpointed,
    EpochStarted,
    JobEnded,
    JobSucceeded,
    Journal,
    Record,
    read_records,
    restore,
)
from smallpond_mpi.execution.model import TaskId, TaskRuntimeId
from smallpond_mpi.execution.paths import JobPaths


@pytest.fixture
def paths(tmp_path: Path) -> JobPaths:
    return JobPaths(str(tmp_path), "job")


def accepted(number: int, epoch: int = 0, inputs: bytes = b"") -> Accepted:
    """The record of task `number`, whose fingerprint is its number."""
    return Accepted(
        str(number).encode(), inputs, TaskRuntimeId(TaskId(number), epoch, 0), b"state of %d in %d" % (number, epoch)
    )


def write(paths: JobPaths, epoch: int, *records: Record) -> None:
    journal = Journal(paths, epoch)
    for record in records:
        journal.append(record)
    journal.close(0.0)


RECORDS: list[Record] = [
    EpochStarted(7, 1.5, 4, {"a": 1}),
    accepted(1),
    Checkpointed(b"2", b"in", b"half way"),
    accepted(2),
    JobEnded(False),
]


def test_what_was_written_is_read(paths: JobPaths) -> None:
    write(paths, 0, *RECORDS)
    assert list(read_records(paths.journal_of(0))) == RECORDS


def test_a_log_ends_where_it_is_torn_wherever_that_is(paths: JobPaths) -> None:
    write(paths, 0, *RECORDS)
    path = Path(paths.journal_of(0))
    content = path.read_bytes()
    whole = [len(MAGIC)]
    for record in RECORDS:
        path.unlink()
        write(paths, 0, *RECORDS[: RECORDS.index(record) + 1])
        whole.append(path.stat().st_size)
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        expected = max(sum(end <= length for end in whole) - 1, 0)
        assert list(read_records(str(path))) == RECORDS[:expected], f"torn at byte {length}"


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_bit_that_flipped_ends_the_log_before_its_record(tmp_path_factory, place: int, bit: int) -> None:
    paths = JobPaths(str(tmp_path_factory.mktemp("journal")), "job")
    write(paths, 0, *RECORDS)
    path = Path(paths.journal_of(0))
    content = bytearray(path.read_bytes())
    place = place % len(content)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    found = list(read_records(str(path)))
    assert found == RECORDS[: len(found)]
    assert len(found) < len(RECORDS)


def test_an_epoch_has_one_writer(paths: JobPaths) -> None:
    write(paths, 0)
    with pytest.raises(JobOwned, match="epoch 0"):
        Journal(paths, 0)


def test_a_newer_epoch_stops_the_older_one_at_its_next_sync(paths: JobPaths) -> None:
    old = Journal(paths, 0)
    old.append(accepted(1))
    old.sync(0.0)
    new = Journal(paths, 1)
    old.append(accepted(2))
    old.flush(0.5)  # not yet time for a sync
    with pytest.raises(JobOwned, match="epoch 1 was started elsewhere"):
        old.flush(1.5)
    with pytest.raises(JobOwned):
        old.close(2.0)
    new.close(0.0)


def test_syncs_are_at_most_one_a_second(paths: JobPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(journal_module.os, "fdatasync", synced.append)
    journal = Journal(paths, 0)
    journal.sync(10.0)
    for step in range(1, 40):
        journal.append(accepted(step))
        journal.flush(10.0 + step / 10)
        assert len(list(read_records(paths.journal_of(0)))) == step, "written at once"
    assert len(synced) == 1 + 3
    journal.flush(99.0)  # the last record was not synced yet
    journal.flush(199.0)  # nothing to sync
    assert len(synced) == 5


def test_a_full_disk_is_told_and_leaves_a_log_that_can_be_gone_on_with(
    paths: JobPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(paths, 0)
    journal.append(accepted(1))
    journal.flush(0.0)
    write_really = os.write

    def half(fd: int, data: memoryview) -> int:
        if len(data) > 10:
            return write_really(fd, bytes(data[:10]))
        raise OSError(errno.ENOSPC, "No space left on device")

    journal.append(accepted(2))
    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "write", half)
        with pytest.raises(DataRootUnusable, match=r"No space left on device; make room .* same id") as caught:
            journal.flush(0.1)
    assert caught.value.errno == errno.ENOSPC
    assert list(read_records(paths.journal_of(0))) == [accepted(1)]
    journal.append(accepted(3))
    journal.close(0.2)
    assert list(read_records(paths.journal_of(0))) == [accepted(1), accepted(2), accepted(3)]


def test_a_file_system_that_became_read_only_is_told(paths: JobPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, argument: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    journal = Journal(paths, 0)
    journal.append(accepted(1))
    monkeypatch.setattr(journal_module.os, "write", refuse)
    monkeypatch.setattr(journal_module.os, "ftruncate", refuse)
    with pytest.raises(DataRootUnusable, match=r"Read-only file system; make room \(or make it writable\)"):
        journal.flush(0.1)


def test_nothing_to_restore(paths: JobPaths) -> None:
    restored = restore(paths)
    assert (restored.epoch, restored.started, restored.accepted, restored.ended) == (0, None, {}, False)


def test_other_files_in_its_directory_are_no_epochs(paths: JobPaths) -> None:
    write(paths, 0, accepted(1))
    for name in ("000000 copy.log", "notes.txt", ".000001.log"):
        Path(paths.journal, name).write_bytes(b"")
    assert restore(paths).epoch == 1


def test_epochs_add_up_and_the_newest_record_of_a_task_counts(paths: JobPaths) -> None:
    write(paths, 0, EpochStarted(7, 1.0, 4), accepted(1), accepted(2), Checkpointed(b"3", b"", b"early"))
    write(paths, 1)  # died before it wrote anything
    write(paths, 2, EpochStarted(7, 1.0, 4), accepted(2, epoch=2), Checkpointed(b"3", b"", b"late"), accepted(4))
    restored = restore(paths)
    assert restored.epoch == 3
    assert restored.started == EpochStarted(7, 1.0, 4)
    assert restored.accepted == {b"1": accepted(1), b"2": accepted(2, epoch=2), b"4": accepted(4)}
    assert restored.checkpoints == {b"3": Checkpointed(b"3", b"", b"late")}


def test_a_task_that_was_accepted_has_no_checkpoint(paths: JobPaths) -> None:
    write(paths, 0, EpochStarted(7, 1.0), Checkpointed(b"1", b"", b"half"), accepted(1))
    assert restore(paths).checkpoints == {}


def test_a_job_that_succeeded_begins_anew(paths: JobPaths) -> None:
    write(paths, 0, EpochStarted(7, 1.0), accepted(1), JobEnded(True))
    restored = restore(paths)
    assert (restored.epoch, restored.started, restored.accepted, restored.ended) == (1, None, {}, True)
    write(paths, 1, EpochStarted(8, 2.0), accepted(5, epoch=1))
    restored = restore(paths)
    assert restored.ended is False
    assert restored.started == EpochStarted(8, 2.0)
    assert set(restored.accepted) == {b"5"}


def test_a_job_that_died_while_what_it_needed_went_has_finished_what_it_recorded(paths: JobPaths) -> None:
    write(paths, 0, EpochStarted(7, 1.0), accepted(1), Checkpointed(b"3", b"", b"half"), JobSucceeded())
    write(paths, 1, EpochStarted(7, 1.0), accepted(2, epoch=1))
    restored = restore(paths)
    assert (restored.finished, restored.accepted) == ({b"1": accepted(1)}, {b"2": accepted(2, epoch=1)})
    assert restored.checkpoints == {}
    assert restored.attempts == {accepted(1).attempt, accepted(2, epoch=1).attempt}
    restored.use_seed(8)
    assert restored.attempts == set()
    write(paths, 2, EpochStarted(7, 1.0), JobSucceeded(), JobEnded(True))
    assert restore(paths).attempts == set()


def test_a_job_that_failed_goes_on(paths: JobPaths) -> None:
    write(paths, 0, EpochStarted(7, 1.0), accepted(1), JobEnded(False))
    restored = restore(paths)
    assert set(restored.accepted) == {b"1"}
    assert restored.ended is False


def test_another_seed_is_another_job(paths: JobPaths) -> None:
    write(paths, 0, EpochStarted(7, 1.0), accepted(1))
    write(paths, 1, EpochStarted(8, 1.0), accepted(2, epoch=1))
    restored = restore(paths)
    assert set(restored.accepted) == {b"2"}
    restored.use_seed(8)
    assert set(restored.accepted) == {b"2"}
    restored.use_seed(9)
    assert restored.accepted == {}


def test_a_journal_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "job").write_text("in the way")
    with pytest.raises(DataRootUnusable, match="journal"):
        Journal(JobPaths(str(tmp_path), "job"), 0)
