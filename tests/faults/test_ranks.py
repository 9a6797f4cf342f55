"""Ranks are killed: a worker's death under `mpirun --with-ft ulfm` costs its attempts and nothing else; rank 0's ends the job, which goes on."""

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.faults.jobs import Job, Watcher, needs_mpirun, wait_for
from tests.launch import is_open_mpi, mpirun

pytestmark = [
    pytest.mark.fault,
    pytest.mark.mpi,
    pytest.mark.skipif(needs_mpirun, reason="no mpirun beside this python"),
]
needs_ulfm = pytest.mark.skipif(not is_open_mpi(), reason="--with-ft ulfm is Open MPI's")
ULFM = ("--with-ft", "ulfm")


@needs_ulfm
@pytest.mark.parametrize("progress", [0, 4, 9, 13])
def test_worker_dies_at_work(job: Callable[..., Job], progress: int) -> None:
    """Whatever it holds: attempts that run, outputs that were accepted."""
    one = job(ranks=3, options=ULFM, env={"FAULTS_SECS": "0.2"})
    with Watcher(one.output):
        one.start()
        wait_for(lambda: one.n_worked() >= progress and (one.running() or progress), f"{progress} pieces of work")
        os.kill(one.rank_pid(2), signal.SIGKILL)
        code = one.wait()
    assert code == 0, one.stderr
    one.check_result()
    one.check_accepted_once()
    assert one.starts == 1


@needs_ulfm
@pytest.mark.parametrize("progress", [2, 7])
def test_a_dead_worker_costs_its_attempts_and_nothing_else(job: Callable[..., Job], progress: int) -> None:
    """Whatever is begun a second time had been begun by a child of the dead rank."""
    one = job(ranks=3, options=ULFM, env={"FAULTS_SECS": "0.3", "FAULTS_SPECULATIVE": "disable"})
    one.start()
    wait_for(lambda: one.n_worked() >= progress, f"{progress} pieces of work")
    worker = psutil.Process(one.rank_pid(2))
    theirs: set[int] = set()

    def is_caught_at_work() -> bool:
        """It is stopped, so that it can't say that what its children do now has ended."""
        worker.suspend()
        theirs.update(child.pid for child in worker.children(recursive=True))
        if any(pid in theirs for _, pid in one.running()):
            return True
        worker.resume()
        return False

    wait_for(is_caught_at_work, "work on rank 2")
    worker.kill()
    assert one.wait() == 0, one.stderr
    one.check_result()
    begun = Counter(task for task, _, _ in one.attempts())
    again = {task for task, times in begun.items() if times > 1}
    assert again, "nothing was lost"
    assert max(begun.values()) == 2
    assert again <= {task for task, _, pid in one.attempts() if pid in theirs}


BETWEEN = Path(__file__).with_name("between.py")


@needs_ulfm
def test_worker_dies_between_two_computes(job: Callable[..., Job]) -> None:
    """While rank 0 runs the script, longer than a rank may be silent, and nobody polls. That is the dead rank's loss alone."""
    one = job(ranks=3, options=ULFM, script=BETWEEN)
    one.start()
    wait_for(lambda: (one.notes / "first").exists(), "the first compute")
    os.kill(one.rank_pid(1), signal.SIGKILL)
    (one.notes / "go").touch()
    assert one.wait() == 0, one.stderr
    assert (one.notes / "second").read_text() == (one.notes / "first").read_text() == "1000 rows"
    assert lost_ranks(one) == ["1"]


def test_a_script_that_takes_long_between_two_computes_loses_no_rank(job: Callable[..., Job]) -> None:
    one = job(ranks=3, script=BETWEEN)
    one.start()
    wait_for(lambda: (one.notes / "first").exists(), "the first compute")
    (one.notes / "go").touch()
    assert one.wait() == 0, one.stderr
    assert (one.notes / "second").read_text() == "1000 rows"
    assert lost_ranks(one) == []


def lost_ranks(one: Job) -> list[str]:
    """By the scheduler's log."""
    log = Path(one.paths.log, "scheduler.log").read_text()
    assert len(set(re.findall(r"rank (\d+) joined", log))) == 3, log
    return re.findall(r"rank (\d+) lost", log)


@pytest.mark.parametrize(("rank", "options"), [(0, ()), (1, ()), pytest.param(0, ULFM, marks=needs_ulfm)])
def test_job_that_lost_a_rank_goes_on(job: Callable[..., Job], rank: int, options: tuple[str, ...]) -> None:
    """Rank 0 can't be replaced; without ULFM no rank can. The launcher ends the job, and the same id goes on."""
    one = job(ranks=3, options=options)
    with Watcher(one.output):
        one.start()
        wait_for(lambda: one.n_accepted() >= 10, "ten accepted tasks")
        os.kill(one.rank_pid(rank), signal.SIGKILL)
        one.wait()  # its exit code says nothing: mpirun has been seen to end with 0 after a rank was killed
        one.wait_until_gone()
        assert not one.has_ended()
        one.run_to_success()
    one.check_result()
    one.check_accepted_once()


@needs_ulfm
def test_worker_and_then_rank_0_die(job: Callable[..., Job]) -> None:
    """What the dead worker had computed counts in the next epoch too; that one has fewer ranks and plans the same tasks."""
    one = job(ranks=3, options=ULFM)
    one.start()
    wait_for(lambda: one.n_accepted() >= 6, "six accepted tasks")
    os.kill(one.rank_pid(1), signal.SIGKILL)
    wait_for(lambda: one.n_accepted() >= 12, "twelve accepted tasks")
    os.kill(one.rank_pid(0), signal.SIGKILL)
    one.wait()
    one.wait_until_gone()
    assert not one.has_ended()
    one.ranks = 2
    one.run_to_success()
    one.check_result()
    one.check_accepted_once()


DIES_EARLY = """
import os, signal
import smallpond_mpi
if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
    {death}
smallpond_mpi.init()
"""


@needs_ulfm
@pytest.mark.parametrize("death", ["raise ValueError('no such thing')", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_rank_0_dies_before_mpi_has_started(tmp_path: Path, death: str) -> None:
    """The launcher lets the others live: they are not to wait in MPI_Init for ever."""
    script = tmp_path / "script.py"
    script.write_text(DIES_EARLY.format(death=death))
    done = mpirun(3, [sys.executable, str(script)], options=ULFM)
    assert done.returncode != 0
    assert "died before MPI had started" in done.stderr


STOPS = """
import os
import psutil
import smallpond_mpi as sp

session = sp.init(data_root=os.environ["DATA_ROOT"], progress="none")
rows = session.from_items(list(range(8))).repartition(4, by_rows=True)
print("first", rows.map("item + 1 as a").count(), flush=True)
me = psutil.Process()
other = [rank for rank in me.parent().children() if rank.pid != me.pid][-1]
other.suspend()
print("stopped", other.pid, flush=True)
"""


@pytest.mark.parametrize("options", [(), pytest.param(ULFM, marks=needs_ulfm)])
def test_a_rank_that_hangs_at_the_end_holds_nobody(tmp_path: Path, options: tuple[str, ...]) -> None:
    script = tmp_path / "script.py"
    script.write_text(STOPS)
    done = mpirun(4, [sys.executable, str(script)], options=options, env={"DATA_ROOT": str(tmp_path / "root")})
    assert "first 8" in done.stdout
    assert "no answer from 1 ranks" in done.stderr
    assert done.returncode == (1 if options else 0), done.stderr  # ULFM's launcher ends ranks for an error alone
    (pid,) = re.findall(r"stopped (\d+)", done.stdout)
    wait_for(lambda: not psutil.pid_exists(int(pid)), "the end of the stopped rank")
