"""Whatever a task does to its child costs that attempt, exactly it, and nothing else. Real processes, no MPI."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallpond_mpi.execution.executor import core, loop
from smallpond_mpi.execution.model import FailureKind
from smallpond_mpi.execution.protocol import (
    Alive,
    Blob,
    Broken,
    Checkpoint,
    Ended,
    Forget,
    Joined,
    Reset,
    RunTask,
    Shutdown,
    StopTask,
    Welcome,
)
from tests.executor_bench import GB, Bench, gone, wait_until
from tests.stand_in import task

pytestmark = pytest.mark.fault

MB = 1 << 20
ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as bench:
        yield bench


def result(ended: Ended) -> object:
    assert ended.failure is None, ended.failure
    assert ended.state is not None
    return pickle.loads(ended.state)


def fails_alone(bench: Bench, bad: RunTask) -> Ended:
    """Run `bad` between others on the same CPU: they succeed."""
    before = [task(n, "pid") for n in range(1, 6)]
    after = [task(n, "pid") for n in range(1001, 1006)]
    ends = bench.run(*before, bad, *after)
    failed = ends.pop(len(before))
    for ended in ends:
        result(ended)
    assert failed.failure is not None
    assert failed.failure.host == "bench"
    return failed


def test_an_exception(bench: Bench) -> None:
    failure = fails_alone(bench, task(100, "raise_error", "oh no")).failure
    assert failure is not None
    assert (failure.kind, failure.type_name, failure.message) == (FailureKind.EXCEPTION, "ValueError", "oh no")
    assert "about to raise" in failure.log_tail
    assert "raise_error" in failure.traceback


def test_a_segfault_leaves_its_traceback(bench: Bench) -> None:
    failure = fails_alone(bench, task(100, "segfault")).failure
    assert failure is not None
    assert failure.kind is FailureKind.SIGNAL
    assert "SIGSEGV" in failure.message
    assert "about to crash" in failure.log_tail
    assert "Segmentation fault" in failure.log_tail


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit(bench: Bench, code: int) -> None:
    failure = fails_alone(bench, task(100, "leave", code)).failure
    assert failure is not None
    assert failure.kind is FailureKind.EXIT_CODE
    assert f"exit code {code}" in failure.message
    assert "about to leave" in failure.log_tail


def test_a_kill(bench: Bench) -> None:
    failure = fails_alone(bench, task(100, "kill_self")).failure
    assert failure is not None
    assert failure.kind is FailureKind.SIGNAL
    assert "SIGKILL" in failure.message


def test_a_deadlock_ends_at_its_timeout_and_shows_where_it_hung(bench: Bench) -> None:
    ended = fails_alone(bench, task(100, "deadlock", timeout_secs=0.5))
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.TIMEOUT
    assert "0.5 s" in ended.failure.message
    assert "in deadlock" in ended.failure.log_tail
    assert ended.elapsed_secs >= 0.5


def test_recursion_without_end(bench: Bench) -> None:
    failure = fails_alone(bench, task(100, "recurse")).failure
    assert failure is not None
    assert failure.type_name == "RecursionError"


def test_a_stack_overflow(bench: Bench) -> None:
    failure = fails_alone(bench, task(100, "recurse_without_limit")).failure
    assert failure is not None
    assert failure.kind is FailureKind.SIGNAL


def test_a_grandchild_left_behind_is_killed_and_costs_nothing(bench: Bench, tmp_path: Path) -> None:
    (ended,) = bench.run(task(100, "daemon", str(tmp_path / "pid")))
    grandchild = result(ended)
    assert isinstance(grandchild, int)
    bench.run(task(101))  # the lane opens again only when all of the child is gone
    assert gone(grandchild)


def test_a_fork_that_returns_into_the_engine_has_no_say(bench: Bench) -> None:
    (ended,) = bench.run(task(100, "fork_and_return"))
    assert isinstance(result(ended), int)
    assert result(bench.run(task(101, "pid"))[0])


def test_a_grandchild_of_a_stopped_task_is_killed(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    bad = task(100, "daemon_then_sleep", str(path))
    bench.send(bad)
    bench.until(lambda: path.exists() and path.read_text() != "")
    bench.send(StopTask(bad.attempt))
    (ended,) = bench.wait_for([bad])
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.STOPPED
    assert gone(int(path.read_text()))


def test_memory_beyond_the_grant(bench: Bench) -> None:
    ended = fails_alone(bench, task(100, "take_memory", 800 * MB, memory_bytes=100 * MB))
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.OUT_OF_MEMORY
    assert "100 MiB granted" in ended.failure.message
    assert 100 * MB < ended.peak_memory_bytes < 600 * MB


def test_memory_beyond_the_grant_in_a_grandchild(bench: Bench) -> None:
    ended = fails_alone(bench, task(100, "take_memory_below", 500 * MB, memory_bytes=200 * MB))
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize("end", ["memory", "stopped", "shutdown"])
def test_shared_memory_goes_with_the_task(bench: Bench, tmp_path: Path, end: str) -> None:
    """What is left in /dev/shm counts for the job until it ends, and stays on the node after it: Python's own tracker is let remove it."""
    path = tmp_path / "name"
    bad = task(100, "take_shared_memory", 100 * MB, str(path), memory_bytes=50 * MB if end == "memory" else GB)
    bench.send(bad)
    bench.until(lambda: path.exists() and path.read_text() != "")
    segment = Path("/dev/shm", path.read_text())
    if end == "shutdown":
        bench.executor.close()
    else:
        bench.send(*([StopTask(bad.attempt)] if end == "stopped" else []))
        bench.wait_for([bad])
    assert not segment.exists()


def test_memory_within_the_grant(bench: Bench) -> None:
    (ended,) = bench.run(task(100, "take_memory", 150 * MB, 0.3, memory_bytes=200 * MB))
    assert result(ended) == 150
    assert ended.peak_memory_bytes >= 150 * MB


def test_pages_that_the_kernel_can_drop_are_not_held_against_a_task(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(b"x" * (300 * MB))
    (ended,) = bench.run(task(100, "map_file", str(path), memory_bytes=100 * MB))
    assert result(ended) == 300 * MB


def test_a_child_that_can_not_set_itself_up(tmp_path: Path) -> None:
    with Bench(tmp_path, context=b"refuse") as bench:
        for ended in bench.run(task(1), task(2)):
            assert ended.failure is not None
            assert ended.failure.kind is FailureKind.NOT_STARTED
            assert "this context can't be used" in ended.failure.message
            assert "RuntimeError" in ended.failure.traceback


def test_the_death_of_the_fork_server_costs_what_ran(bench: Bench) -> None:
    running = task(1, "announce_and_sleep", 600.0)
    waiting = task(2, "pid")
    bench.send(running, waiting)
    bench.until(lambda: bool(bench.of(Checkpoint)))
    os.kill(bench.server.pid, signal.SIGKILL)
    dead, alive = bench.wait_for([running, waiting])
    assert dead.failure is not None
    assert dead.failure.kind is FailureKind.SIGNAL
    assert result(alive)


def test_a_fork_server_that_never_comes_up_ends_the_executor_with_its_reason(tmp_path: Path) -> None:
    with Bench(tmp_path, preload=("there_is_no_such_module",)) as bench:
        with pytest.raises(RuntimeError, match="there_is_no_such_module"):
            bench.until(lambda: bench.executor.finished)
        assert bench.executor.finished
        (broken,) = [message for message in decode_all(bench) if isinstance(message, Broken)]
        assert "there_is_no_such_module" in broken.traceback


def decode_all(bench: Bench) -> list[object]:
    from smallpond_mpi.execution.protocol import decode
    from smallpond_mpi.execution.transport import Received

    return [message for came in bench.transport.poll() if isinstance(came, Received) for message in decode(came.frame)]


def test_a_warm_child_is_reused(bench: Bench) -> None:
    pids = {result(ended) for ended in bench.run(*[task(n, "pid") for n in range(1, 50)])}
    assert len(pids) == 1


def test_the_death_of_an_idle_child_costs_nothing(bench: Bench) -> None:
    child = result(bench.run(task(1, "pid"))[0])
    assert isinstance(child, int)
    os.kill(child, signal.SIGKILL)
    assert result(bench.run(task(2, "pid"))[0]) != child


def test_warnings_of_slurm_reach_everybody_and_end_nobody(bench: Bench) -> None:
    child = result(bench.run(task(1, "pid"))[0])
    assert isinstance(child, int)
    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
        os.kill(child, signum)
        os.kill(bench.server.pid, signum)
    assert result(bench.run(task(2, "pid"))[0]) == child
    assert result(bench.run(task(3, "pid", fresh=True))[0])


def test_fresh_means_a_child_of_its_own(bench: Bench) -> None:
    warm = result(bench.run(task(1, "pid"))[0])
    fresh = [result(ended) for ended in bench.run(task(2, "pid", fresh=True), task(3, "pid", fresh=True))]
    assert len({warm, *fresh}) == 3
    assert result(bench.run(task(4, "pid"))[0]) == warm


@pytest.mark.parametrize("what", ["cwd", "env", "rlimit", "handler", "umask", "cpus"])
def test_a_child_whose_surroundings_were_changed_is_not_reused(bench: Bench, what: str) -> None:
    first, second = (result(ended) for ended in bench.run(task(1, "change", what), task(2, "pid")))
    assert first != second


def test_a_child_with_a_thread_left_is_not_reused(bench: Bench) -> None:
    first, second = (result(ended) for ended in bench.run(task(1, "leave_thread"), task(2, "pid")))
    assert first != second


def test_a_child_that_has_grown_is_not_reused(tmp_path: Path) -> None:
    with Bench(tmp_path, memory_bytes=GB // 2) as bench:
        first, second, third = (
            result(ended) for ended in bench.run(task(1, "keep", MB), task(2, "keep", 200 * MB), task(3, "pid"))
        )
        assert first == second != third


def test_children_that_the_oom_killer_took_at_once_are_all_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = tuple(sorted(os.sched_getaffinity(0)))[:1]
    kills = [0]
    monkeypatch.setattr(loop, "oom_kills", lambda: kills[0])
    with Bench(tmp_path, cpus=cpus) as bench:
        kills[0] = 2  # before the first of the deaths is told
        ends = [bench.run(task(number, "kill_self", cpus=cpus))[0] for number in (1, 2, 3)]
    assert [ended.failure and ended.failure.kind for ended in ends] == [
        FailureKind.OUT_OF_MEMORY,
        FailureKind.OUT_OF_MEMORY,
        FailureKind.SIGNAL,
    ]


def test_a_child_has_what_it_was_granted_and_nothing_of_the_rank(tmp_path: Path) -> None:
    cpus = tuple(sorted(os.sched_getaffinity(0)))[:2]
    with Bench(tmp_path, cpus=cpus, gpus=("GPU-a", "GPU-b")) as bench:
        seen = result(bench.run(task(1, "surroundings", cpus=cpus, gpus=((1, 0.5),)))[0])
        assert isinstance(seen, dict)
        assert seen["affinity"] == list(cpus)
        assert seen["omp"] == str(len(cpus))
        assert seen["arrow"] == len(cpus)
        assert (seen["cuda"], seen["gpu_tokens"]) == ("GPU-b", ("GPU-b",))
        assert seen["stdin"] == "/dev/null"
        assert seen["oom"] >= 500
        assert seen["sid"]
        assert not [
            name
            for name in seen["fds"]
            if not name.startswith(("/dev/null", "/proc/", "/tmp/", "pipe:", "socket:", str(tmp_path)))
        ]
        assert sum(name.startswith("socket:") for name in seen["fds"]) == 1
        nothing = result(bench.run(task(2, "surroundings", cpus=cpus[:1]))[0])
        assert isinstance(nothing, dict)
        assert (nothing["cuda"], nothing["omp"], nothing["threads"]) == ("-1", "1", 1)


def test_launcher_variables_do_not_reach_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "PRTE_LAUNCHED", "HYDI_CONTROL_FD"):
        monkeypatch.setenv(name, "3")
    with Bench(tmp_path) as bench:
        seen = result(bench.run(task(1, "surroundings"))[0])
        assert isinstance(seen, dict)
        assert seen["launcher"] == []


def test_children_draw_different_random_numbers(bench: Bench) -> None:
    drawn = [result(ended) for ended in bench.run(*[task(n, "random_numbers", fresh=True) for n in range(1, 4)])]
    flat = [number for pair in drawn for number in pair]  # type: ignore[attr-defined]
    assert len(set(flat)) == len(flat)


def test_output_lands_in_one_log_with_an_index(bench: Bench) -> None:
    tasks = [task(1, "say", "one"), task(2), task(3, "say", "three"), task(4, "say_in_c", "four"), task(5, "segfault")]
    bench.run(*tasks)
    log = bench.log_path.read_bytes()
    index = [json.loads(line) for line in Path(f"{bench.log_path}.index").read_text().splitlines()]
    parts = {entry["attempt"]: log[entry["offset"] : entry["offset"] + entry["length"]] for entry in index}
    assert parts["000001.0.0"] == b"one\n"
    assert parts["000003.0.0"] == b"three\n"
    assert parts["000004.0.0"] == b"four"
    assert parts["000005.0.0"].startswith(b"about to crash\n")
    assert "000002.0.0" not in parts
    assert sum(len(part) for part in parts.values()) == len(log)


def test_much_output_is_kept_and_the_spool_does_not_grow_for_ever(bench: Bench) -> None:
    size = 3 * MB
    bench.run(*[task(n, "say_much", size) for n in range(1, 5)], task(9, "say", "end"))
    bench.run(task(10, "say", "after the cut"))
    assert bench.log_path.stat().st_size == 4 * size + len("end\nafter the cut\n")


def test_large_payloads_and_results_pass(bench: Bench) -> None:
    data = os.urandom(30 * MB)
    ends = bench.run(*[task(n, "echo", data) for n in range(1, 4)])
    assert all(result(ended) == data for ended in ends)


def test_blobs_reach_the_child_once_and_stay(bench: Bench) -> None:
    bench.send(Blob(b"d1", b"first"), Blob(b"d2", b"second"))
    runs = [
        task(1, "blob", b"d1", blobs=(b"d1",)),
        task(2, "blob", b"d2", blobs=(b"d1", b"d2")),
        task(3, "blob", b"d1", blobs=(b"d1",)),
    ]
    assert [result(ended) for ended in bench.run(*runs)] == [b"first", b"second", b"first"]


def test_blobs_that_were_forgotten_are_sent_again(bench: Bench) -> None:
    bench.send(Blob(b"d1", b"first"), Blob(b"d2", b"second"))
    bench.run(task(1, "blob", b"d1", blobs=(b"d1",)))
    bench.send(Forget(), Blob(b"d3", b"third"))
    assert result(bench.run(task(2, "blob", b"d3", blobs=(b"d3",)))[0]) == b"third"
    assert list(bench.executor._blobs) == [b"d3"]
    bench.send(Blob(b"d1", b"first"), Blob(b"d2", b"second"))
    ends = bench.run(task(3, "blob", b"d1", blobs=(b"d1",)), task(4, "blob", b"d2", blobs=(b"d2",)))
    assert [result(ended) for ended in ends] == [b"first", b"second"]


def test_checkpoints_come_before_the_end(bench: Bench) -> None:
    one = task(1, "checkpoint", b"a", b"b")
    bench.run(one)
    told = [m for m in bench.messages if isinstance(m, Checkpoint | Ended)]
    assert told[:2] == [Checkpoint(one.attempt, b"a"), Checkpoint(one.attempt, b"b")]
    assert isinstance(told[2], Ended)


def test_a_fork_server_that_does_nothing_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped, or its libraries lie on a file system that hangs: what waited for a child of it waited for ever."""
    first = bench.server.pid
    os.kill(first, signal.SIGSTOP)
    monkeypatch.setattr(core, "START_SECS", 0.2)
    monkeypatch.setattr(core, "UNKILLABLE_SECS", 0.2)
    (ended,) = bench.run(task(1, "pid"))
    monkeypatch.undo()
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.NOT_STARTED
    assert "was not ready within" in ended.failure.message
    assert gone(first)
    assert result(bench.run(task(2, "pid"))[0])


def test_stopping_what_waits_and_what_is_over(bench: Bench) -> None:
    first, second, third = task(1, "sleep", 0.3), task(2, "pid"), task(3, "pid")
    bench.send(first, second, third, StopTask(second.attempt))
    ends = bench.wait_for([first, second, third])
    assert ends[1].failure is not None
    assert ends[1].failure.kind is FailureKind.STOPPED
    assert result(ends[2])
    bench.send(StopTask(third.attempt))
    bench.run(task(4))
    assert len([m for m in bench.messages if isinstance(m, Ended)]) == 4


def test_what_was_sent_ahead_can_be_taken_back(bench: Bench) -> None:
    """Short tasks lie in the child's socket behind one that turns out long: a stop takes them back at once."""
    bench.run(*[task(n) for n in range(1, 100)])
    long = task(200, "sleep", 600.0)
    ahead = [task(n) for n in range(201, 220)]
    bench.send(long, *ahead)
    bench.until(lambda: bool(bench.executor._core.watched(float("inf"))))
    bench.send(*[StopTask(one.attempt) for one in ahead[:-1]])
    ends = bench.wait_for(ahead[:-1])
    assert {ended.failure and ended.failure.kind for ended in ends} == {FailureKind.STOPPED}
    assert long.attempt not in bench.ended()
    bench.send(StopTask(long.attempt))
    bench.wait_for([long])
    assert result(bench.wait_for([ahead[-1]])[0]) is None


def test_a_grant_of_another_rank_is_refused(bench: Bench) -> None:
    (ended,) = bench.run(task(1, cpus=(77,)))
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.NOT_STARTED
    assert "77" in ended.failure.message


def test_reset_kills_all_and_joins_again(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    bench.send(task(1, "daemon_then_sleep", str(path)), task(2))
    bench.until(lambda: path.exists() and path.read_text() != "")
    bench.send(Reset())
    bench.until(lambda: len(bench.of(Joined)) == 2)
    assert gone(int(path.read_text()))
    assert not bench.ended()
    assert result(bench.run(task(3, "pid"))[0])


def test_a_new_job_gets_new_children(bench: Bench, tmp_path: Path) -> None:
    before = result(bench.run(task(1, "pid"))[0])
    bench.send(Welcome(1, b"", str(tmp_path / "second.log"), 3600.0, env=(("OF_THE_JOB", "yes"),)))
    after = result(bench.run(task(1, "pid", retry=1))[0])
    assert before != after
    assert result(bench.run(task(2, "environ", "OF_THE_JOB"))[0]) == "yes"


def test_shutdown_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    server = bench.server.pid
    bench.send(task(1, "daemon_then_sleep", str(path)))
    bench.until(lambda: path.exists() and path.read_text() != "")
    bench.send(Shutdown())
    bench.until(lambda: bench.executor.finished)
    assert bench.executor.reason == ""
    assert gone(server)
    assert gone(int(path.read_text()))


def test_heartbeats_do_not_pile_up(tmp_path: Path) -> None:
    with Bench(tmp_path, heartbeat_secs=0.01) as bench:
        bench.until(lambda: len(bench.of(Alive)) >= 3)
        bench.answers_heartbeats = False
        told = len(bench.of(Alive))
        for _ in range(50):
            bench.step(0.005)
        assert len(bench.of(Alive)) <= told + 1


def test_the_kill_of_a_rank_takes_a_grandchild_in_a_session_of_its_own_along(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.executor_bench import Bench; from tests.stand_in import task\n"
        f"bench = Bench(Path({str(tmp_path)!r}))\n"
        f"bench.send(task(1, 'daemon_then_sleep', {str(path)!r}))\n"
        "print(bench.server.pid, flush=True)\n"
        "while True: bench.step()\n"
    )
    rank = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert rank.stdout is not None
    with rank.stdout:
        server = int(rank.stdout.readline())
    wait_until(lambda: path.exists() and path.read_text() != "")
    rank.kill()
    rank.wait()
    wait_until(lambda: gone(server), "the fork server is still there")
    wait_until(lambda: gone(int(path.read_text())), "the grandchild is still there")


@pytest.mark.mpi
def test_a_task_that_imports_mpi4py_is_alone_in_its_world(bench: Bench) -> None:
    assert result(bench.run(task(1, "mpi_world", fresh=True))[0]) == (1, 0)
    assert result(bench.run(task(2, "pid"))[0])
