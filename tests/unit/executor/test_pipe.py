"""Frames between a rank and its children, however the socket cuts them; and the log that their output ends in."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi.execution.executor import joblog
from smallpond_mpi.execution.executor.joblog import JobLog, Spool, tail_of
from smallpond_mpi.execution.executor.pipe import FrameReader, Ready, Refused, Work, pack
from smallpond_mpi.execution.executor.sandbox import scrub
from smallpond_mpi.execution.protocol import Message
from tests.unit.executor.world import run

ATTEMPT = run(1, 0).attempt
MESSAGES: list[Message] = [Ready(), Refused("x" * 5000), Work(7, (run(1, 0), run(2, 0, 1))), Ready()]


@given(st.lists(st.integers(1, 4000), min_size=1))
def test_messages_survive_any_cutting(sizes: list[int]) -> None:
    stream = b"".join(map(pack, MESSAGES))
    reader = FrameReader()
    got: list[Message] = []
    turn = 0
    while stream:
        size = sizes[turn % len(sizes)]
        got += reader.feed(stream[:size])
        stream = stream[size:]
        turn += 1
    assert got == MESSAGES


def write(spool: Spool, data: bytes) -> None:
    import os

    os.write(spool.fd, data)


def test_a_spool_gives_each_part_once_and_goes_on_after_a_cut(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    write(spool, b"one")
    assert spool.take(3) == (0, 3)
    write(spool, b"two")
    assert spool.take(None) == (3, 6)
    spool.cut()
    write(spool, b"three")
    assert spool.take(None) == (0, 5)
    spool.close()


def test_the_middle_of_too_much_output_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "KEPT_BYTES", 10)
    spool, log = Spool(None), JobLog(str(tmp_path / "log"))
    write(spool, b"begin" + b"." * 90 + b"-last")
    log.keep(spool, 0, 100, ATTEMPT)
    assert (tmp_path / "log").read_text() == "begin\n[90 bytes of output left out]\n-last"
    log.close()
    spool.close()


def test_a_log_that_can_not_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spool, log = Spool(None), JobLog(str(tmp_path / "file" / "log"))
    write(spool, b"text")
    log.keep(spool, 0, 4, ATTEMPT)
    assert "no log of tasks" in log.problem
    log.close()
    spool.close()


def test_a_tail_starts_with_a_line() -> None:
    spool = Spool(None)
    write(spool, b"first\n" + b"y" * 10 + b"\n" + b"x" * (joblog.TAIL_BYTES - 5))
    assert tail_of(spool, 0, 6 + 11 + joblog.TAIL_BYTES - 5) == "x" * (joblog.TAIL_BYTES - 5)
    assert tail_of(spool, 0, 6) == "first\n"
    assert tail_of(spool, 6, 6) == ""
    spool.close()


def test_an_environment_without_launchers() -> None:
    kept = {"PATH": "/bin", "OPAL_PREFIX": "/opt", "SLURM_JOB_ID": "1", "MPICH_X": "1"}
    dropped = {
        "PMI_FD": "3",
        "PMIX_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "2",
        "SLURM_STEP_ID": "0",
        "MPI_LOCALNRANKS": "2",
    }
    assert scrub({**kept, **dropped}) == kept
