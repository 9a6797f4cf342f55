"""JobManager: runs a LogicalPlan from any script, as often as it likes, and gives the finished ExecutionPlan back.

It is a session without DataFrames: both take their place among the ranks (entry.take_place) and run their tasks with a Job. Between two jobs
the ranks wait; they leave when the process ends.
"""

import inspect
import logging
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallpond_mpi import entry
from smallpond_mpi.common import (
    DEFAULT_MAX_FAIL_COUNT,
    DEFAULT_MAX_RETRY_COUNT,
    InvalidArgument,
    JobOwned,
    SmallpondError,
)
from smallpond_mpi.config import ENV_OF, Config, LogLevel, MemoryAllocator, SpeculativeExec, resolve
from smallpond_mpi.execution.job import Job, set_console_level
from smallpond_mpi.execution.scheduler.view import Scheduler
from smallpond_mpi.execution.task.plan import ExecutionPlan
from smallpond_mpi.logical.node import LogicalPlan
from smallpond_mpi.logical.node.base import topological

if TYPE_CHECKING:
    from smallpond_mpi.execution.worker import Place

logger = logging.getLogger(__name__)

MEANINGLESS = {
    "python_venv": "the ranks run the interpreter that they were started with",
    "task_image": "ranks are started by a launcher, in whatever container it starts them",
    "platform": "the launcher is the platform",
    "job_priority": "priorities are given to the launcher (sbatch --priority, --nice)",
    "num_executors_per_task": "the launcher says how many ranks a node has",
    "resource_group": "nodes are chosen by the launcher (sbatch --partition)",
    "sidecars": "there is no process beside the ranks",
    "user_tags": "there is no service that would show them",
    "enable_sched_state_dump": "the journal holds the state of the job",
    "share_log_analytics": "logs stay below the data root",
    "memory_purge_delay": "allocators are loaded before a job's settings are known (set MIMALLOC_PURGE_DELAY before the start)",
    "disable_log_rotation": "logs are not rotated",
}
"""Options that are accepted for scripts written for smallpond, each with why it has no effect here."""

_explained: set[str] = set()


class JobManager:
    """Runs plans on this machine, or on the ranks that a launcher has started.

    Args:
        data_root: a directory that all ranks share (default: SP_DATA_ROOT, then `~/.smallpond_mpi/data`).
        python_venv, task_image, platform: accepted, without effect.
    """

    def __init__(
        self,
        data_root: str | None = None,
        python_venv: str | None = None,
        task_image: str = "default",
        platform: str | None = None,
    ) -> None:
        self.data_root = data_root
        self._without_effect = {"python_venv": python_venv, "task_image": task_image, "platform": platform}

    def run(
        self,
        plan: LogicalPlan,
        job_id: str | None = None,
        job_time: float | None = None,
        job_name: str = "smallpond",
        job_priority: int | None = None,
        num_executors: int = 1,
        num_executors_per_task: int = 5,
        resource_group: str = "localhost",
        env_variables: list[str] | None = None,
        sidecars: list[str] | None = None,
        user_tags: list[str] | None = None,
        random_seed: int | None = None,
        max_retry_count: int = DEFAULT_MAX_RETRY_COUNT,
        max_fail_count: int = DEFAULT_MAX_FAIL_COUNT,
        prioritize_retry: bool = False,
        speculative_exec: SpeculativeExec = "enable",
        stop_executor_on_failure: bool = False,
        fail_fast_on_failure: bool = False,
        nonzero_exitcode_as_oom: bool = False,
        fault_inject_prob: float = 0.0,
        enable_profiling: bool = False,
        enable_diagnostic_metrics: bool = False,
        enable_sched_state_dump: bool = False,
        remove_empty_parquet: bool = False,
        remove_output_root: bool = False,
        skip_task_with_empty_input: bool = False,
        manifest_only_final_results: bool = True,
        memory_allocator: MemoryAllocator = "mimalloc",
        memory_purge_delay: int = 10000,
        bind_numa_node: bool = False,
        enforce_memory_limit: bool = False,
        share_log_analytics: bool | None = None,
        console_log_level: LogLevel = "INFO",
        file_log_level: LogLevel = "DEBUG",
        disable_log_rotation: bool = False,
        sched_state_observers: "list[Scheduler.StateObserver] | None" = None,
        output_path: str | None = None,
        **kwargs: Any,
    ) -> ExecutionPlan:
        """Run a plan to its end, with success or without; on ranks other than 0 it serves rank 0 and never returns.

        Args:
            job_id: what the job's directory is found by (default: SP_JOBID, then a new one). A job that did not finish is taken up where it was.
            job_time: seconds since the epoch, or a date in ISO 8601.
            num_executors: executors to wait for before planning, where they join by files; elsewhere the launcher has started them.
            env_variables: `NAME=value`, set for every task.
            random_seed: what all randomness follows from.
            max_retry_count: attempts of a task beyond which no speculative one is started. max_fail_count: failures at which it is given up.
            prioritize_retry: a task that failed is tried again before others.
            speculative_exec: whether slow attempts get a twin; aggressive: sooner.
            stop_executor_on_failure: a rank on which a task failed gets no more tasks, unless it is the last.
            fail_fast_on_failure: the first failure of a task ends the job.
            nonzero_exitcode_as_oom: a task that ended with an exit code is tried again with more memory.
            fault_inject_prob: with which probability a task fails on purpose.
            remove_empty_parquet: files without rows are no output. skip_task_with_empty_input: such tasks are not run.
            remove_output_root: outputs under the job's own directory go when the job has succeeded.
            manifest_only_final_results: the result's files are listed in FinalResults, not linked there.
            memory_allocator: Arrow's default memory pool in tasks.
            enforce_memory_limit: tasks run under an RLIMIT_DATA of 1.5 times their memory limit.
            console_log_level: how much is said on stderr. file_log_level: how much goes into log/scheduler.log.
            sched_state_observers: called with a view of the job at its start and end and while it runs.
            output_path: where the result is copied to.
            kwargs: see smallpond_mpi.config.Config.

        Returns:
            The plan with its tasks' status, metrics and errors. If the job failed, `successful` is false and `root_task.exception` says why.

        Raises:
            InvalidArgument: an argument is wrong. UnpairedPartitions: the plan can't be planned. JobOwned: a live process runs this job.
            DataRootUnusable: no files can be made under the data root.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "plan", "kwargs")}
        place = entry.take_place(os.environ)
        if not isinstance(plan, LogicalPlan):
            raise InvalidArgument(f"plan must be a LogicalPlan, not {type(plan).__name__}")
        observers = [_checked_observer(one) for one in options.pop("sched_state_observers") or ()]
        options.pop("manifest_only_final_results")
        config = self._config(options, kwargs)
        return run_plan(plan, config, place, observers, manifest_only_final_results)

    def _config(self, options: dict[str, Any], more: Mapping[str, Any]) -> Config:
        """What was asked for. SP_* variables are for what was not."""
        defaults = {name: parameter.default for name, parameter in inspect.signature(self.run).parameters.items()}
        settings = {name: value for name, value in options.items() if name not in MEANINGLESS}
        settings["env_overrides"] = environment_of(settings.pop("env_variables") or ())
        settings["data_root"] = self.data_root
        chosen = {name for name, value in settings.items() if value != defaults.get(name)}
        env = {variable: os.environ.get(variable, "") for name, variable in ENV_OF.items() if name not in chosen}
        config = resolve({**settings, **more}, env)
        set_console_level(config)
        explain_meaningless(options | self._without_effect, defaults | {"task_image": "default"})
        return config


def run_plan(
    plan: LogicalPlan,
    config: Config,
    place: "Place",
    observers: "Sequence[Scheduler.StateObserver]" = (),
    manifest_only: bool = True,
) -> ExecutionPlan:
    """Run a plan as a job of its own; the finished plan, also if the job failed."""
    if config.transport == "files" and place.has_served:  # rank 0's executor computed then
        entry.leave()
        place = entry.take_place(os.environ)
    job = Job(config, place)
    entry.opened(job)
    try:
        exec_plan = job.planner.create_exec_plan(plan, manifest_only)
        _keep_plan(job, plan)
        nodes = {node.id: node for node in topological([plan.root_node])}
        for node in nodes.values():
            node.perf_metrics.clear()  # of an earlier run of the same plan
        if observers:
            job.notify(Scheduler(exec_plan, job.loop, observers).has_changed)
        try:
            job.run([exec_plan.root_task], nodes)
        except JobOwned:
            raise
        except SmallpondError as error:
            exec_plan.root_task.exception = error
            job.failure = f"{type(error).__name__}: {error}"
        exec_plan.analyzed_logical_plan  # noqa: B018 gives each node what its tasks measured
    except BaseException as error:
        job.failure = job.failure or f"{type(error).__name__}: {error}"
        raise
    finally:
        job.close(keep_ranks=config.transport == "mpi")
        if config.transport != "mpi":
            entry.leave()
    if job.failure is not None:
        _say_failed(job)
    return exec_plan


def _keep_plan(job: Job, plan: LogicalPlan) -> None:
    """Leave in the job's directory what is to be run, for whoever looks there."""
    ctx = job.ctx
    with open(ctx.logcial_plan_path, "w", encoding="utf-8") as file:
        file.write(plan.explain_str() + "\n")
    plan.graph().save(ctx.logcial_plan_graph_path)
    with open(ctx.runtime_ctx_path, "wb") as pickled:
        pickle.dump(ctx, pickled, protocol=5)


def _say_failed(job: Job) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"smallpond_mpi: job {job.ctx.job_id} failed: {job.failure}\n")
    sys.stderr.flush()


def explain_meaningless(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Say of each option that was given and has no effect here why that is so, once a process."""
    given = [name for name in MEANINGLESS if name in options and options[name] != defaults.get(name)]
    for name in given:
        if name not in _explained and logger.isEnabledFor(logging.WARNING):
            _explained.add(name)
            logger.warning("%s=%r has no effect here: %s", name, options[name], MEANINGLESS[name])


def environment_of(variables: Sequence[str]) -> dict[str, str]:
    """`NAME=value` texts as a dict.

    Raises:
        InvalidArgument: one of them is not of that form.
    """
    if isinstance(variables, str):
        variables = [variables]
    found = {}
    for variable in variables:
        name, equals, value = variable.partition("=") if isinstance(variable, str) else ("", "", "")
        if not name.strip() or not equals:
            raise InvalidArgument(f"env_variables must be texts such as NAME=value, not {variable!r}")
        found[name.strip()] = value
    return found


def _checked_observer(observer: Any) -> "Scheduler.StateObserver":
    if isinstance(observer, Scheduler.StateObserver):
        return observer
    if callable(observer):
        return Scheduler.StateObserver(observer)
    raise InvalidArgument(
        f"sched_state_observers must be Scheduler.StateObserver objects or functions of a Scheduler, not {observer!r}"
    )
