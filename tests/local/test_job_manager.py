"""JobManager.run: a plan as a job, several in one process, and each of its options."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.scripts import Place, Ran

SUMS = {"sum": 999 * 500, "count": 1000}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def succeeds(ran: Ran) -> list[Any]:
    assert ran.code == 0, ran.stdout + ran.stderr
    return ran.told


def sums_of(told: dict[str, Any]) -> dict[str, int]:
    return {"sum": sum(row["s"] for row in told["rows"]), "count": sum(row["n"] for row in told["rows"])}


def test_one_plan_under_several_ids_and_options(place: Place) -> None:
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        plan = sum_plan()
        manager = JobManager()
        for index, options in enumerate([{}, {"random_seed": 7, "max_fail_count": 1}, {"output_path": here("out")}]):
            done = manager.run(plan, job_id=f"job-{index}", sidecars=["one"], **options)
            say(told(done))
            say([plan.root_node.get_perf_stats("num output rows").sum, str(done.ctx.job_id), open(done.ctx.job_status_path).read()])
        say(told(JobManager(data_root=here("elsewhere")).run(plan, job_id="job-0")))
        """
    )
    lines = succeeds(ran)
    assert [sums_of(told) for told in (*lines[0:6:2], lines[6])] == [SUMS] * 4
    assert all(told["named"] == ["sums"] and told["statuses"] == ["SUCCEED"] for told in lines[0:6:2])
    assert [stats for stats, _, _ in lines[1:6:2]] == [3, 3, 3], "a node has what the last run measured"
    assert len({job for _, job, _ in lines[1:6:2]}) == 3
    assert {status for _, _, status in lines[1:6:2]} == {"success\n"}
    assert lines[4]["path"] == str(place.path / "out")
    assert sorted(path.suffix for path in (place.path / "out").iterdir()) == [".parquet"] * 3 + [".txt"]
    assert ran.stderr.count("sidecars=['one'] has no effect here") == 1
    assert (place.path / "elsewhere").is_dir()


def test_a_job_that_fails_is_returned(place: Place) -> None:
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        def fail(ctx, tables):
            if tables[0]["a"][0].as_py() == 250:
                raise ValueError("no such luck")
            return tables[0]
        failed = JobManager().run(compute_plan(fail), job_id="bad", max_fail_count=2)
        say(told(failed))
        say(sorted(task.fail_count for task in failed.tasks.values() if task.status.name == "CRASHED"))
        say(open(failed.ctx.job_status_path).read())
        say(told(JobManager().run(sum_plan())))
        """
    )
    failed, counts, status, after = succeeds(ran)
    assert not failed["successful"]
    assert "CRASHED" in failed["statuses"]
    assert counts == [2]
    assert "no such luck" in failed["error"]
    assert "script.py" in failed["error"], "the line of the script that made the node"
    assert status.startswith("failure: JobFailed: ValueError: no such luck")
    assert "no such luck" in ran.stderr
    assert sums_of(after) == SUMS


def test_a_job_is_taken_up_where_it_was(place: Place) -> None:
    """The first run fails for want of a file; the second finds it and runs only what is not there."""
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        def compute(ctx, tables):
            with open(here("calls"), "a") as calls:
                calls.write("x")
            if tables[0]["a"][0].as_py() == 750 and not os.path.exists(here("wanted")):
                time.sleep(2)
                raise FileNotFoundError("wanted")
            return tables[0]
        say(told(JobManager().run(compute_plan(compute), job_id="j", max_fail_count=1))["successful"])
        before = len(open(here("calls")).read())
        open(here("wanted"), "w").close()
        second = JobManager().run(compute_plan(compute), job_id="j")
        say([told(second)["successful"], before, len(open(here("calls")).read()) - before, second.ctx.sched_epoch])
        """
    )
    assert succeeds(ran) == [False, [True, 4, 1, 1]]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("max_fail_count=0", "max_fail_count=0: must be more than 0"),
        ("speculative_exec='often'", "must be one of disable, enable, aggressive"),
        ("fault_inject_prob=2", "must be between 0 and 1"),
        ("env_variables=['no equals']", "env_variables must be texts such as NAME=value"),
        ("console_log_level='LOUD'", "console_log_level='LOUD': must be one of CRITICAL"),
        ("memory_allocator='glibc'", "must be one of system, jemalloc, mimalloc"),
        ("sched_state_observers=[3]", "sched_state_observers must be"),
        ("no_such_option=1", "no_such_option"),
    ],
)
def test_wrong_options_are_told_at_once(options: str, error: str, place: Place) -> None:
    ran = place.run(f"from smallpond_mpi.execution.manager import JobManager\nJobManager().run(sum_plan(), {options})")
    assert ran.code == 1
    assert error in ran.stderr
    assert "Traceback" not in ran.stderr


def test_retries(place: Place) -> None:
    """fail_fast, max_fail_count, nonzero_exitcode_as_oom, prioritize_retry over tasks that fail the first time."""
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        def flaky(marks):
            os.makedirs(marks)
            def compute(ctx, tables):
                if first_time(marks, ctx):
                    raise ValueError("the first time")
                return tables[0]
            return compute
        def leaving(marks):
            os.makedirs(marks)
            def compute(ctx, tables):
                if first_time(marks, ctx):
                    os._exit(3)
                return tables[0].slice(0, 1).append_column("limit", pa.array([ctx.task.memory_limit]))
            return compute
        say(told(JobManager().run(compute_plan(flaky(here("m0"))), speculative_exec="disable")))
        say(told(JobManager().run(compute_plan(flaky(here("m1"))), fail_fast_on_failure=True)))
        say(told(JobManager().run(compute_plan(flaky(here("m2"))), max_fail_count=1)))
        say(told(JobManager().run(compute_plan(flaky(here("m3"))), prioritize_retry=True, speculative_exec="aggressive")))
        limit = 50 << 20
        for as_oom in (False, True):
            plan = compute_plan(leaving(here(f"m5{as_oom}")), memory_limit=limit)
            say(told(JobManager().run(plan, nonzero_exitcode_as_oom=as_oom)))
        """
    )
    retried, fast, one, first, plain, as_oom = succeeds(ran)
    assert (retried["successful"], retried["fails"]) == (True, 4)
    assert not fast["successful"]
    assert not one["successful"]
    assert (first["successful"], first["fails"]) == (True, 4)
    limit = 50 << 20
    assert [row["limit"] for row in plain["rows"]] == [limit] * 4
    assert [row["limit"] for row in as_oom["rows"]] == [2 * limit] * 4


def test_what_tasks_are_given(place: Place) -> None:
    """env_variables, memory_allocator, random_seed, enforce_memory_limit, diagnostics and profiles reach the tasks."""
    ran = place.run(
        """
        import resource
        from smallpond_mpi.execution.manager import JobManager
        def look(ctx, tables):
            seen = {
                "env": os.environ.get("COLOUR"), "pool": pa.default_memory_pool().backend_name, "seed": ctx.task.random_uint32(),
                "limit": resource.getrlimit(resource.RLIMIT_DATA)[0], "job": os.environ["SP_JOBID"],
            }
            return pa.table({name: [value] for name, value in seen.items()})
        def run(**options):
            done = JobManager().run(compute_plan(look, 2, memory_limit=512 << 20), **options)
            say(told(done)["rows"])
            task = next(task for task in done.tasks.values() if task.key.startswith("ArrowCompute"))
            say([sorted(task.perf_metrics), str(done.ctx.job_id)])
        run(random_seed=1)
        run(random_seed=1, env_variables=["COLOUR=red=blue"], memory_allocator="system")
        run(random_seed=2, memory_allocator="jemalloc", enforce_memory_limit=True)
        run(enable_diagnostic_metrics=True, enable_profiling=True)
        """
    )
    lines = succeeds(ran)
    plain, (metrics, job), coloured, _, limited, _, measured, (more, _) = lines
    assert [row["env"] for row in plain + coloured] == [None, None, "red=blue", "red=blue"]
    assert [rows[0]["pool"] for rows in (plain, coloured, limited)] == ["mimalloc", "system", "jemalloc"]
    assert {row["job"] for row in plain} == {job}
    seeds = [[row["seed"] for row in rows] for rows in (plain, coloured, limited)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert {row["limit"] for row in plain} == {-1}
    assert {row["limit"] for row in limited} == {round((512 << 20) * 1.2)}
    assert not any("files" in name for name in metrics)
    assert any("files" in name for name in more)
    assert len(measured) == 2


def test_faults_change_nothing(place: Place) -> None:
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        def compute(ctx, tables):
            return tables[0]
        done = told(JobManager().run(compute_plan(compute, 20), fault_inject_prob=0.3, random_seed=5, max_fail_count=10))
        say([done["successful"], sum(row["a"] for row in done["rows"]), done["fails"]])
        """
    )
    ((successful, total, fails),) = succeeds(ran)
    assert (successful, total) == (True, SUMS["sum"])
    assert fails > 0


def test_empty_partitions(place: Place) -> None:
    """remove_empty_parquet leaves files without rows out; skip_task_with_empty_input does not run what has nothing to read."""
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        from smallpond_mpi.logical.node import SqlEngineNode, ArrowComputeNode
        def plan():
            ctx = Context()
            few = SqlEngineNode(ctx, (numbers(ctx),), "select a from {0} where a < 10")
            def count(ctx, tables):
                with open(here("ran"), "a") as ran:
                    ran.write("x")
                return tables[0]
            return LogicalPlan(ctx, ArrowComputeNode(ctx, (few,), process_func=count))
        for options in ({}, {"remove_empty_parquet": True}, {"skip_task_with_empty_input": True}):
            open(here("ran"), "w").close()
            done = JobManager().run(plan(), **options)
            say([done.successful, done.final_output.num_rows, done.final_output.num_files, len(open(here("ran")).read())])
        """
    )
    plain, removed, skipped = succeeds(ran)
    assert plain == [True, 10, 4, 4]
    assert removed[:3] == [True, 10, 1]
    assert skipped[:2] == [True, 10]
    assert skipped[3] == 1


def test_where_results_lie(place: Place) -> None:
    """remove_output_root, manifest_only_final_results."""
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        for options in ({}, {"manifest_only_final_results": False}, {"remove_output_root": True}):
            done = JobManager().run(sum_plan(), **options)
            path = done.final_output_path
            say([os.path.isdir(path), sorted(os.listdir(path)) if os.path.isdir(path) else None, os.path.exists(done.ctx.output_root)])
        """
    )
    listed, linked, removed = succeeds(ran)
    assert listed == [True, [".MANIFEST.txt"], True]
    assert linked[0]
    assert len([name for name in linked[1] if name.endswith(".parquet")]) == 3
    assert removed == [False, None, False]


def test_observers_see_the_job(place: Place) -> None:
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        from smallpond_mpi.execution.scheduler import ExecutorState, Scheduler
        seen = []
        class Watch(Scheduler.StateObserver):
            def update(self, scheduler):
                seen.append({
                    "progress": scheduler.progress, "success": scheduler.success, "elapsed": scheduler.elapsed_time,
                    "running": [task.key for task in scheduler.running_works], "pending": scheduler.num_pending_tasks,
                    "nontrivial": scheduler.num_pending_nontrivial_tasks, "local": scheduler.num_local_running_works,
                    "done": sorted(scheduler.succeeded_task_ids), "total": len(scheduler.tasks),
                    "good": [executor.state is ExecutorState.GOOD for executor in scheduler.good_executors],
                    "busy": len(scheduler.working_executors), "lost": len(scheduler.failed_executors), "given up": len(scheduler.abandoned_tasks),
                })
        def slow(ctx, tables):
            time.sleep(0.4)
            return tables[0]
        calls = []
        off = Watch()
        off.enabled = False
        JobManager().run(compute_plan(slow), sched_state_observers=[Watch(), lambda scheduler: calls.append(1), off])
        say(seen)
        say(len(calls))
        def bad(ctx, tables):
            raise ValueError("bad")
        seen.clear()
        JobManager().run(compute_plan(bad, 1), sched_state_observers=[Watch()], max_fail_count=1)
        say(seen)
        def burst(scheduler):
            raise RuntimeError("an observer's own mistake")
        JobManager().run(compute_plan(slow), sched_state_observers=[burst])
        """
    )
    assert ran.code == 1
    assert "an observer's own mistake" in ran.stderr
    seen, calls, failed = ran.told
    assert len(seen) == calls >= 5
    progress = [one["progress"] for one in seen]
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0.0, 1.0)
    assert [one["success"] for one in seen] == [False] * (len(seen) - 1) + [True]
    assert any(one["running"] and one["local"] == len(one["running"]) and one["busy"] == 1 for one in seen)
    assert all(len(one["running"]) + one["pending"] + len(one["done"]) == one["total"] for one in seen)
    assert all(one["good"] == [True] and one["lost"] == 0 for one in seen)
    assert failed[-1]["given up"] == 1
    assert not failed[-1]["success"]


def test_log_levels(place: Place) -> None:
    ran = place.run(
        """
        from smallpond_mpi.execution.manager import JobManager
        def flaky(ctx, tables):
            if first_time(here("marks"), ctx):
                raise ValueError("the first time")
            return tables[0]
        os.makedirs(here("marks"))
        quiet = JobManager().run(compute_plan(flaky), console_log_level="ERROR", file_log_level="WARNING", user_tags=["t"])
        say(open(os.path.join(quiet.ctx.log_root, "scheduler.log")).read())
        sys.stderr.write("----")
        loud = JobManager().run(sum_plan(), progress="lines", user_tags=["t"])
        say(open(os.path.join(loud.ctx.log_root, "scheduler.log")).read())
        """
    )
    quiet, loud = succeeds(ran)
    before, _, after = ran.stderr.partition("----")
    assert before == ""
    assert "done" in after
    assert "user_tags=['t'] has no effect here" in after
    assert "the first time" in quiet
    assert "joined" not in quiet
    assert "rank 0 joined" in loud


def test_a_session_and_a_job_manager_follow_each_other(place: Place) -> None:
    ran = place.run(
        """
        import smallpond_mpi as sp
        from smallpond_mpi.execution.manager import JobManager
        say(told(JobManager().run(sum_plan()))["successful"])
        session = sp.init(progress="none")
        say(session.from_items([1, 2, 3]).count())
        try:
            JobManager().run(sum_plan())
        except ValueError as error:
            say(str(error))
        session.shutdown()
        say(told(JobManager().run(sum_plan()))["successful"])
        """
    )
    first, count, refused, last = succeeds(ran)
    assert (first, count, last) == (True, 3, True)
    assert "session" in refused


def test_an_id_that_a_live_process_runs_is_refused(place: Place) -> None:
    script = place.write(
        """
        from smallpond_mpi.execution.manager import JobManager
        def slow(ctx, tables):
            open(here("running"), "w").close()
            while not os.path.exists(here("go")):
                time.sleep(0.05)
            return tables[0]
        say(told(JobManager().run(compute_plan(slow, 1), job_id="same"))["successful"])
        """,
        "first.py",
    )
    first = place.start(script)
    while not (place.path / "running").exists():
        assert first.poll() is None
    second = place.run(
        "from smallpond_mpi.execution.manager import JobManager\nJobManager().run(sum_plan(), job_id='same')"
    )
    (place.path / "go").touch()
    out, err = first.communicate(timeout=60)
    assert second.code == 1
    assert "is run by process" in second.stderr
    assert json.loads(out.removeprefix("TOLD ")) is True, err
