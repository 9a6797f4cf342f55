"""A run that is broken off in the middle of a turn: the session goes on after a second Ctrl-C, and says so where it can't."""

from pathlib import Path

from tests.scripts import Place

TWO_INTERRUPTS = """
    import signal
    import smallpond_mpi
    from smallpond_mpi.execution.scheduler.loop import SchedulerLoop

    start, starts = SchedulerLoop._start, []

    def interrupted(self, command):
        starts.append(command)
        if len(starts) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        start(self, command)

    SchedulerLoop._start = interrupted
    session = smallpond_mpi.init(progress="none")
    rows = session.from_items(list(range(40))).repartition(20, by_rows=True).map_batches(lambda table: table)
    try:
        rows.count()
    except KeyboardInterrupt:
        say("interrupted")
    say(sorted(row["item"] for row in rows.take_all()) == list(range(40)))
"""
DISK_FULL = """
    import errno
    import smallpond_mpi
    from smallpond_mpi.common import DataRootUnusable, JobFailed
    from smallpond_mpi.execution.journal import Journal

    write, is_full = Journal._write, [True]

    def written(self, content):
        if b"Accepted" in content and is_full.pop():
            raise self._unusable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        write(self, content)

    Journal._write = written
    session = smallpond_mpi.init(progress="none")
    rows = session.from_items(list(range(40))).repartition(20, by_rows=True).map_batches(lambda table: table)
    try:
        rows.count()
    except DataRootUnusable as error:
        say(str(error))
    try:
        rows.count()
    except JobFailed as error:
        say(str(error))
"""


def test_a_second_interrupt_in_the_middle_of_a_turn(tmp_path: Path) -> None:
    """It came while a command was carried out; what the core had decided before was lost then, and the next run waited for it for ever."""
    ran = Place(tmp_path).run(TWO_INTERRUPTS)
    assert (ran.code, ran.told) == (0, ["interrupted", True]), ran.stderr


def test_a_run_broken_off_by_a_full_disk_is_the_last_one(tmp_path: Path) -> None:
    ran = Place(tmp_path).run(DISK_FULL)
    assert ran.code == 0, ran.stderr
    full, broken = ran.told
    assert "No space left on device" in full
    assert broken == f"this session can't run anything any more: DataRootUnusable: {full}"
