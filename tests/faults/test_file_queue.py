"""Executors that join through the data root: they come late, are killed, stopped, told to leave; the result is right."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallpond_mpi.common import SmallpondError
from smallpond_mpi.execution import joining
from smallpond_mpi.execution.paths import JobPaths, job_uuid
from tests.faults.jobs import wait_for
from tests.scripts import Place, Ran, finished

pytestmark = pytest.mark.fault

SUM = 999 * 500
TASKS = 24
SCRIPT = f"""
from smallpond_mpi.execution.driver import Driver
driver = Driver()
driver.add_argument("--free", type=int, default=4)
def build(free):
    def compute(ctx, tables):
        with open(os.path.join({{place!r}}, "calls"), "a") as calls:
            calls.write(f"{{{{ctx.task.exec_id}}}}\\n")
        while ctx.task.get_partition_info("__data_partition__").index >= free and not os.path.exists(os.path.join({{place!r}}, "go")):
            time.sleep(0.05)
        return tables[0]
    return compute_plan(compute, {TASKS})
done = driver.run(build(**driver.get_arguments()), stop_process_on_done=driver.mode == "executor")
say(told(done))
sys.exit(0 if done.successful else 1)
"""
QUICK = ("--heartbeat_secs", "0.3", "--late_secs", "1.5", "--gone_secs", "4", "--speculative_exec", "disable")


class Queue:
    """A job by files, and its processes."""

    def __init__(self, path: Path) -> None:
        self.place = Place(path)
        self.script = self.place.write(SCRIPT.format(place=str(path)))
        self.paths = JobPaths(str(self.place.data_root), str(job_uuid("queue")))
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, mode: str, *args: str) -> "subprocess.Popen[str]":
        process = self.place.start(self.script, [mode, "--job_id", "queue", "--progress", "lines", *args])
        self.processes.append(process)
        return process

    def scheduler(self, *args: str) -> "subprocess.Popen[str]":
        return self.start("scheduler", *QUICK, *args)

    def executor(self, *args: str) -> "subprocess.Popen[str]":
        return self.start("executor", *args)

    def calls(self) -> list[str]:
        """The ranks whose children have begun a task, in order."""
        try:
            lines = (self.place.path / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line.split()[0].rpartition(".")[2] for line in lines if line]

    def let_go(self) -> None:
        """Tasks from number `--free` on wait for this."""
        (self.place.path / "go").touch()

    def log(self) -> str:
        """What the scheduler has written down so far; it does so every few seconds."""
        path = Path(self.paths.log, "scheduler.log")
        return path.read_text() if path.exists() else ""

    def wait_for_calls(self, count: int) -> None:
        wait_for(lambda: len(self.calls()) >= count, f"{count} calls")

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path)
    yield made
    made.end()


def check(ran: Ran) -> dict[str, object]:
    """The result is right, every row once."""
    assert ran.code == 0, ran.stdout + ran.stderr
    (done,) = ran.told
    assert [row["a"] for row in done["rows"]] == list(range(1000))
    return done  # type: ignore[no-any-return]


def children_with(text: str) -> list[int]:
    """Processes whose environment holds a text: children of executors carry the job's id."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if text.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_executors_come_before_and_late(queue: Queue) -> None:
    early = queue.executor()
    assert early.stderr is not None
    assert "waiting for the scheduler" in early.stderr.readline()
    scheduler = queue.scheduler()
    queue.wait_for_calls(5)
    late = [queue.executor(), queue.executor()]
    wait_for(lambda: {"1", "2", "3"} <= set(queue.calls()), "work for those that came late")
    queue.let_go()
    done = check(finished(scheduler))
    ends = [finished(process) for process in (early, *late)]
    assert [end.code for end in ends] == [0, 0, 0]
    assert "0" not in queue.calls(), "the scheduler's own process only schedules"
    assert done["fails"] == 0
    assert not os.path.exists(queue.paths.queue)
    assert (Path(queue.paths.root) / "status").read_text() == "success\n"


def test_killed_executors_are_noticed(queue: Queue) -> None:
    scheduler = queue.scheduler("--num_executors", "2")
    first, second = queue.executor(), queue.executor()
    wait_for(lambda: {"1", "2"} <= set(queue.calls()), "work for both")
    os.killpg(first.pid, signal.SIGKILL)
    third = queue.executor()
    wait_for(lambda: "3" in queue.calls(), "work for the newcomer")
    os.killpg(second.pid, signal.SIGKILL)
    queue.let_go()
    done = check(finished(scheduler))
    assert finished(third).code == 0
    assert done["retries"]
    assert done["fails"] == 0, "a lost executor is not the task's failure"
    assert len(re.findall(r"rank \d lost: .*its process has died", queue.log())) == 2


def test_the_last_executor_is_killed_and_another_comes(queue: Queue) -> None:
    scheduler = queue.scheduler()
    first = queue.executor()
    queue.wait_for_calls(5)
    os.killpg(first.pid, signal.SIGKILL)
    wait_for(lambda: "has died" in queue.log(), "the news")
    assert scheduler.poll() is None
    second = queue.executor()
    queue.let_go()
    check(finished(scheduler))
    assert finished(second).code == 0


def test_executors_that_are_told_to_leave(queue: Queue) -> None:
    """Their tasks go on elsewhere, uncounted: four leave, and a task that was on each of them is not given up."""
    scheduler = queue.scheduler("--free", "0")
    for number in range(1, 5):
        leaving = queue.executor("--max_usable_cpu_count", "1")
        wait_for(lambda number=number: str(number) in queue.calls(), "a task of it")  # type: ignore[misc]
        leaving.send_signal(signal.SIGTERM)
        assert finished(leaving).code == 128 + signal.SIGTERM
    last = queue.executor()
    queue.let_go()
    done = check(finished(scheduler))
    assert finished(last).code == 0
    assert done["fails"] == 0
    assert len(re.findall(r"rank \d lost: .*it has left", queue.log())) == 4


def test_a_silent_executor(queue: Queue) -> None:
    """One that hangs says nothing: its tasks go elsewhere. When it comes back it starts anew."""
    scheduler = queue.scheduler("--num_executors", "2")
    silent, other = queue.executor(), queue.executor()
    wait_for(lambda: {"1", "2"} <= set(queue.calls()), "work for both")
    silent.send_signal(signal.SIGSTOP)
    wait_for(lambda: "nothing was heard of it" in queue.log(), "silence")
    silent.send_signal(signal.SIGCONT)
    wait_for(lambda: len(re.findall(r"rank \d joined", queue.log())) == 4, "its return")
    queue.let_go()
    done = check(finished(scheduler))
    assert done["fails"] == 0
    assert [finished(silent).code, finished(other).code] == [0, 0]


def test_a_dead_scheduler_is_noticed_and_its_job_taken_up(queue: Queue) -> None:
    scheduler = queue.scheduler("--num_executors", "2", "--free", "8")
    executors = [queue.executor(), queue.executor()]
    queue.wait_for_calls(10)
    os.killpg(scheduler.pid, signal.SIGKILL)
    ends = [finished(process) for process in executors]
    assert [end.code for end in ends] == [1, 1]
    assert all("rank 0 is gone: its process has died" in end.stderr for end in ends)
    wait_for(lambda: not children_with(f"SP_JOBID={job_uuid('queue')}"), "the end of all children")
    assert len(os.listdir(queue.paths.queue)) == 1, "what the dead one left"
    before = len(queue.calls())
    queue.let_go()
    waiting = queue.executor()  # comes while only the dead one's directory is there
    check(finished(queue.scheduler("--free", "8")))
    assert finished(waiting).code == 0
    assert TASKS - 8 <= len(queue.calls()) - before < TASKS, "what was accepted did not run again"
    assert not os.path.exists(queue.paths.queue)


def test_a_job_that_fails_sends_its_executors_home(queue: Queue) -> None:
    queue.let_go()
    scheduler = queue.scheduler(
        "--fault_inject_prob", "1", "--max_fail_count", "1"
    )  # the job's last task fails for sure
    executor = queue.executor()
    assert finished(scheduler).code == 1
    assert finished(executor).code == 0
    assert not os.path.exists(queue.paths.queue)


def test_an_executor_that_comes_after_the_end_leaves(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ENDED_WAIT_SECS", 0.5)
    os.makedirs(queue.paths.root)
    Path(queue.paths.status).write_text("success\n")
    with pytest.raises(SmallpondError, match="has ended, with success"):
        joining.wait_for_run(queue.paths, 3600.0)
