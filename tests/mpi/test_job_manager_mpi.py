"""JobManager and Driver on ranks: one launch runs one job after the other, and ends as rank 0 says."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import is_open_mpi, launcher, mpirun_command
from tests.scripts import Place, finished

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")]

SUM = 999 * 500


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


JOBS = """
from smallpond_mpi.execution.manager import JobManager
def slow(ctx, tables):
    time.sleep(0.2)
    return tables[0]
def fail(ctx, tables):
    raise ValueError("no such luck")
manager = JobManager()
say(told(manager.run(compute_plan(slow, 8), job_id="one", progress="none")))
say(told(manager.run(compute_plan(fail, 8), job_id="two", max_fail_count=1)))
say(told(manager.run(compute_plan(slow, 8), job_id="three", progress="none")))
say(told(manager.run(sum_plan(), job_id="one", progress="none"))["successful"])
sys.exit(7 if "fail" in sys.argv else 0)
"""


@pytest.mark.parametrize("ranks", [2, 4])
def test_jobs_one_after_the_other(ranks: int, place: Place) -> None:
    ran = place.run(JOBS, ranks=ranks)
    assert ran.code == 0, ran.stderr
    one, two, three, last = ran.told
    for done in (one, three):
        assert sum(row["a"] for row in done["rows"]) == SUM
        assert set(done["ranks"]) - {0}, "other ranks computed"
        assert done["retries"] == 0
    assert not two["successful"]
    assert "no such luck" in two["error"]
    assert last is True


def test_the_exit_code_is_rank_0s(place: Place) -> None:
    ran = place.run(JOBS, ["fail"], ranks=2)
    assert ran.code == 7, ran.stderr
    assert len(ran.told) == 4


def test_a_wrong_option_is_told_once(place: Place) -> None:
    ran = place.run(
        "from smallpond_mpi.execution.manager import JobManager\nJobManager().run(sum_plan(), max_fail_count=0)",
        ranks=3,
    )
    assert ran.code == 1
    assert ran.stderr.count("max_fail_count=0: must be more than 0") == 1


DRIVER = """
from smallpond_mpi.execution.driver import Driver
driver = Driver()
driver.add_argument("-n", "--npartitions", type=int, default=4)
def compute(ctx, tables):
    time.sleep(0.1)
    return tables[0]
def fail(ctx, tables):
    raise ValueError("nothing")
def build(npartitions):
    return compute_plan(compute, npartitions)
done = driver.run(build(**driver.get_arguments()), stop_process_on_done=False)
say([driver.mode, told(done)])
driver.run(compute_plan(fail))
say("not reached")
"""


@pytest.mark.parametrize("mode", [[], ["mpi"]])
def test_a_driver_on_ranks(mode: list[str], place: Place) -> None:
    ran = place.run(DRIVER, [*mode, "-n", "8", "--fail_fast", "--console_log_level", "ERROR"], ranks=3)
    assert ran.code == 1, "the second plan fails, and the process with it"
    assert "ValueError: nothing" in ran.stderr
    ((said_mode, done),) = ran.told
    assert said_mode == (mode or [None])[0]
    assert sum(row["a"] for row in done["rows"]) == SUM
    assert set(done["ranks"]) - {0}


def test_several_schedulers_of_one_launch_are_refused(place: Place) -> None:
    ran = place.run(DRIVER, ["scheduler"], ranks=2)
    assert ran.code == 1
    assert "one job has one scheduler" in ran.stderr


@pytest.mark.skipif(not is_open_mpi(), reason="only Open MPI goes on after a death")
@pytest.mark.fault
def test_a_rank_that_died_is_not_waited_for_by_the_next_job(place: Place) -> None:
    script = place.write(
        """
        import signal
        from smallpond_mpi.execution.manager import JobManager
        def kill_rank(ctx, tables):
            if first_time(here("marks"), ctx) and ctx.task.exec_id.endswith(".2"):
                os.kill(int(open(here("rank-2")).read()), signal.SIGKILL)
                time.sleep(60)
            time.sleep(0.3)
            return tables[0]
        os.makedirs(here("marks"), exist_ok=True)
        if os.environ.get("OMPI_COMM_WORLD_RANK") == "2":
            open(here("rank-2"), "w").write(str(os.getpid()))
        began = time.monotonic()
        say(told(JobManager().run(compute_plan(kill_rank, 8), gone_secs=20.0, late_secs=10.0)))
        say(told(JobManager().run(sum_plan()))["successful"])
        """
    )
    process = subprocess.Popen(
        mpirun_command(3, [sys.executable, str(script)], options=("--with-ft", "ulfm")),
        env=place.env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ran = finished(process)
    first, second = ran.told
    assert sum(row["a"] for row in first["rows"]) == SUM
    assert second is True


def test_a_rank_on_which_a_task_failed_is_stopped(place: Place) -> None:
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        def once(ctx, tables):
            try:
                open(here("failed"), "x").close()
            except FileExistsError:
                time.sleep(0.2)
                return tables[0]
            raise ValueError("the first of all")
        stopped = []
        def watch(scheduler):
            stopped.append(sorted(one.rank for one in scheduler.stopped_executors + scheduler.stopping_executors))
        done = JobManager().run(compute_plan(once, 12), stop_executor_on_failure=True, sched_state_observers=[watch], speculative_exec="disable")
        say([told(done), stopped[-1], open(os.path.join(done.ctx.log_root, "scheduler.log")).read()])
        """,
        ranks=3,
    )
    assert ran.code == 0, ran.stderr
    ((done, stopped, log),) = ran.told
    assert sum(row["a"] for row in done["rows"]) == SUM
    assert done["fails"] == 1
    assert len(stopped) == 1
    assert f"on rank {stopped[0]} " in log, "where it failed"
