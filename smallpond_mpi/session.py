"""A session: a job that lives in a script. Under a launcher every rank gets here; rank 0 goes on with the script, the others serve it.

    init() -> enter()  rank 0:     lease, journal, context, its own executor, the scheduler's loop -> Session
                       rank > 0:   serve until rank 0 says it is over, then leave the process

What runs before MPI starts is the fork server alone: children must not descend from a process that has MPI in it.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import cloudpickle

from smallpond_mpi.common import DataRootUnusable, InvalidArgument, JobOwned, ResourcesUnavailable
from smallpond_mpi.config import Config
from smallpond_mpi.execution.by_value import pickle_by_value_what_lies_beside
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.executor.loop import ExecutorLoop
from smallpond_mpi.execution.journal import EpochStarted, JobEnded, Journal, restore
from smallpond_mpi.execution.lease import Lease
from smallpond_mpi.execution.model import SCHEDULER_RANK, Capacity
from smallpond_mpi.execution.protocol import Welcome
from smallpond_mpi.execution.scheduler.core import SchedulerCore
from smallpond_mpi.execution.scheduler.intake import inputs_first
from smallpond_mpi.execution.scheduler.loop import SchedulerLoop, remove_staging
from smallpond_mpi.execution.scheduler.observe import Observer
from smallpond_mpi.execution.scheduler.policy import Policy
from smallpond_mpi.execution.scheduler.story import check_early
from smallpond_mpi.execution.slots import usable_memory
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.transport.local import local_pair
from smallpond_mpi.execution.worker import Place
from smallpond_mpi.faults import fault_point
from smallpond_mpi.logical.dataset import DataSet
from smallpond_mpi.logical.node import Context, LogicalPlan, Node, NodeId, RootNode
from smallpond_mpi.logical.node.base import topological
from smallpond_mpi.logical.optimizer import Optimizer
from smallpond_mpi.logical.planner import Planner

JOIN_SECS = 30.0
"""How long rank 0 waits for the executors of the other ranks before it plans with those that are there."""

logger = logging.getLogger(__name__)


class SessionBase:
    """The engine below the DataFrames of a session: plans nodes, runs tasks, keeps what is done."""

    def __init__(self, *, config: Config, place: Place) -> None:
        self._config = config
        self._place = place
        self._ctx = Context()
        self._asked_for: dict[Node, None] = {}
        self._failure: str | None = None
        self._has_clamped = False
        self._is_shut_down = False
        check_data_root(config.resolved_data_root())
        self._runtime_ctx = _context_of(config)
        paths = self._runtime_ctx.paths
        os.makedirs(paths.root, mode=0o700, exist_ok=True)
        self._lease = Lease.take(paths.owner, os.environ)
        try:
            self._start_engine()
        except BaseException:
            self._lease.release()
            raise

    def _start_engine(self) -> None:
        ctx, config, place = self._runtime_ctx, self._config, self._place
        restored = restore(ctx.paths)
        if restored.ended:
            ctx.cleanup(remove_output_root=True)
        ctx.initialize("0")
        self._journal = Journal(ctx.paths, restored.epoch)
        ctx.sched_epoch = restored.epoch
        if restored.started is not None:
            ctx.job_time = datetime.fromtimestamp(restored.started.job_time)
            if config.random_seed is None:
                ctx.random_seed = restored.started.random_seed
        restored.use_seed(ctx.random_seed)
        scheduler_end, executor_end = local_pair()
        executor = ExecutorLoop(
            executor_end,
            rank=SCHEDULER_RANK,
            peer=SCHEDULER_RANK,
            capacity=place.capacity,
            host=place.host,
            server=place.server,
        )
        policy = Policy(
            max_retry_count=config.max_retry_count,
            max_fail_count=config.max_fail_count,
            speculative_exec=config.speculative_exec,
            prioritize_retry=config.prioritize_retry,
            nonzero_exitcode_as_oom=config.nonzero_exitcode_as_oom,
            late_secs=config.late_secs,
            gone_secs=config.gone_secs,
        )
        self._observer = Observer.for_terminal(
            config.progress, str(ctx.job_id), sys.stderr, os.environ, ctx.paths.scheduler_log
        )
        self._loop = SchedulerLoop(
            ctx,
            SchedulerCore(epoch=restored.epoch, policy=policy),
            welcome=self._welcome(),
            journal=self._journal,
            restored=restored,
            local=scheduler_end,
            executor=executor,
            remote=place.transport,
            observer=self._observer,
        )
        self._loop.wait_for_ranks(place.size, JOIN_SECS)
        ctx.num_executors = max(1, len(self._loop.capacities))
        ctx.num_slots = max(1, sum(len(capacity.cpus) for capacity in self._loop.capacities.values()))
        if restored.started is not None:
            ctx.num_slots = restored.started.num_slots
        settings = {name: value for name, value in asdict(config).items() if name not in ("job_time", "data_root")}
        self._journal.append(EpochStarted(ctx.random_seed, ctx.job_time.timestamp(), ctx.num_slots, settings))
        self._journal.sync(time.monotonic())
        self._planner = Planner(ctx)

    def _welcome(self) -> Welcome:
        ctx = self._runtime_ctx
        return Welcome(
            ctx.sched_epoch,
            cloudpickle.dumps(ctx, protocol=5),
            ctx.paths.log,
            ctx.paths.temp,
            self._config.heartbeat_secs,
            tuple(script_dirs()),
            tuple(sorted({"SP_JOBID": str(ctx.job_id)}.items() | ctx.env_overrides.items())),
        )

    # what DataFrames ask for

    def _run(self, plans: Sequence[Node]) -> list[list[DataSet]]:
        """The output datasets of each plan's partitions, computed if they are not there."""
        if self._is_shut_down:
            raise InvalidArgument("the session was shut down: call init() again")
        self._asked_for.update(dict.fromkeys(plans))
        # What is computed already stays as it is; SQL on SQL of what isn't becomes one query.
        optimizer = Optimizer({node for node in topological(plans) if self._planner.is_planned(node)})
        groups = [self._planner.plan_node(optimizer.visit(plan)) for plan in plans]
        targets = [task for group in groups for task in group]
        pending = [task for task in inputs_first(targets) if not task.is_done]
        if pending:
            self._check(pending, plans)
            pickle_by_value_what_lies_beside(script_dirs())
            try:
                self._loop.run(targets)
            except BaseException as error:
                self._failure = f"{type(error).__name__}: {error}"
                self._forget_failed(plans)
                raise
            self._failure = None
            self._measure(plans, pending)
        return [[task.output for task in group] for group in groups]

    def _check(self, tasks: Sequence[Task], plans: Sequence[Node]) -> None:
        """What can be known to be wrong before anything runs."""
        largest = _largest(self._loop.capacities.values())
        nodes = LogicalPlan(self._ctx, RootNode(self._ctx, tuple(plans))).nodes
        for task in tasks:
            check_early(task)
            node = nodes.get(NodeId(task.node_id))
            has_gpus = task.gpu_limit <= largest.gpus
            if has_gpus and node is not None and node.cpu_limit_asked <= largest.cpus < task.cpu_limit:
                self._clamp_cpus(node, task, largest.cpus)
            _check_resources(task, largest)

    def _clamp_cpus(self, node: Node, task: Task, most: int) -> None:
        """Nobody asked for these CPUs: a rule of ours did (8 for a GPU), which smaller ranks need not meet."""
        if not self._has_clamped:
            self._has_clamped = True
            logger.warning(
                "%s: %d CPUs a task, the default, are more than any rank has: using %d", node, task.cpu_limit, most
            )
        task._cpu_limit = most

    def _measure(self, plans: Sequence[Node], tasks: Sequence[Task]) -> None:
        """Give each node what its tasks measured."""
        nodes = LogicalPlan(self._ctx, RootNode(self._ctx, tuple(plans))).nodes
        for task in tasks:
            node = nodes.get(NodeId(task.node_id))
            if node is not None:
                for name, value in task.perf_metrics.items():
                    node.add_perf_metrics(name, value)

    def _forget_failed(self, plans: Sequence[Node]) -> None:
        """Plan anew what did not succeed, when it is asked for again."""
        for node in LogicalPlan(self._ctx, RootNode(self._ctx, tuple(plans))).nodes.values():
            if self._planner.is_planned(node) and not all(task.is_done for task in self._planner.plan_node(node)):
                self._planner.forget(node)

    def _is_computed(self, plan: Node) -> bool:
        return self._planner.is_planned(plan) and all(task.is_done for task in self._planner.plan_node(plan))

    def _forget(self, plan: Node) -> None:
        """Compute a node anew. A job that is started again does so at the same place of its script: how often is part of the fingerprint."""
        plan.times_forgotten += 1
        self._planner.forget(plan)

    # the end

    def graph(self) -> Any:
        """The plan of everything this session was asked to compute, as a graph with `.source` in DOT."""
        return LogicalPlan(self._ctx, RootNode(self._ctx, tuple(self._asked_for))).graph()

    def show_summary(self) -> None:
        """Say what the session did, once: at its end, or before the error that it ends with."""
        self._observer.close(self._failure)

    def shutdown(self) -> None:
        """End the job: ranks leave, and after success what only the running job needed is removed. Called at exit if not before."""
        if self._is_shut_down:
            return
        self._is_shut_down = True
        try:
            try:
                if self._failure is not None:
                    self._loop.stop(self._failure)
            finally:
                self._loop.shut_down()
            self._close_journal()
        except (DataRootUnusable, JobOwned) as error:
            if self._failure is None:
                self._failure = f"{type(error).__name__}: {error}"
                raise
        finally:
            self.show_summary()
            self._lease.release()
            self._place.leave(exit_code_if_stuck=0 if self._failure is None else 1)

    def _close_journal(self) -> None:
        """Write down that the job ended. Only then, and only while no later epoch has begun, goes what it needed."""
        ctx = self._runtime_ctx
        self._journal.append(JobEnded(self._failure is None))
        self._journal.close(time.monotonic())
        fault_point("job.ended")
        if self._failure is None and not self._config.keep_intermediate:
            self._loop.remove_what_is_stale()
            for root in self._loop.user_staging_roots:
                sweep_staging(root, str(ctx.job_id))
            ctx.cleanup(remove_output_root=self._config.remove_output_root)
            fault_point("job.cleaned")
        try:
            with open(ctx.job_status_path, "w") as file:
                file.write("success\n" if self._failure is None else f"failure: {self._failure}\n")
        except OSError as error:
            raise DataRootUnusable(error.errno, f"{ctx.job_status_path} can't be written: {error.strerror}") from None


def check_data_root(data_root: str) -> None:
    """Raise DataRootUnusable, saying why, unless files can be made under the data root."""
    probe = os.path.join(data_root, f".probe-{socket.gethostname()}-{os.getpid()}")
    try:
        os.makedirs(data_root, exist_ok=True)
        with open(probe, "wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        os.unlink(probe)
    except OSError as error:
        raise DataRootUnusable(
            error.errno,
            f"data root {data_root} can't be written to: {error.strerror}; give another one by data_root= or SP_DATA_ROOT",
        ) from None


def _context_of(config: Config) -> RuntimeContext:
    return RuntimeContext(
        JobId.of(config.job_id) if config.job_id else JobId.new(),
        config.job_time or datetime.now(),
        config.resolved_data_root(),
        num_executors=config.num_executors or 1,
        random_seed=config.random_seed,
        env_overrides=config.env_overrides,
        bind_numa_node=config.bind_numa_node,
        enforce_memory_limit=config.enforce_memory_limit,
        fault_inject_prob=config.fault_inject_prob,
        enable_profiling=config.enable_profiling,
        enable_diagnostic_metrics=config.enable_diagnostic_metrics,
        remove_empty_parquet=config.remove_empty_parquet,
        skip_task_with_empty_input=config.skip_task_with_empty_input,
        secs_executor_probe_interval=config.heartbeat_secs,
    )


def script_dirs() -> list[str]:
    """The directories whose modules are the user's script: where it lies, or, in a notebook or shell, the working directory."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    return [os.path.dirname(os.path.abspath(path))] if path else [os.getcwd()]


@dataclass(frozen=True, slots=True)
class _Largest:
    """The most of everything that some rank has."""

    cpus: int
    gpus: int
    memory_bytes: int


def _largest(capacities: Any) -> _Largest:
    found: list[Capacity] = list(capacities)
    return _Largest(
        max((len(one.cpus) for one in found), default=1),
        max((len(one.gpus) for one in found), default=0),
        max(map(usable_memory, found), default=0),
    )


def _check_resources(task: Task, largest: _Largest) -> None:
    """Refuse what no rank can ever meet."""
    asked = [
        ("GPUs", task.gpu_limit, largest.gpus, f"{largest.gpus}"),  # first: they bring CPUs that nobody asked for
        ("CPUs", task.cpu_limit, largest.cpus, f"{largest.cpus}"),
        ("bytes of memory", task.memory_limit or 0, largest.memory_bytes, f"{largest.memory_bytes:,}"),
    ]
    for what, wanted, most, shown in asked:
        if wanted > most and not (what == "CPUs" and task.exec_on_scheduler):
            where = f" of {task.location}" if task.location else ""
            raise ResourcesUnavailable(
                f"{task.key}{where} asks for {wanted:,} {what}, and no rank has more than {shown} to give: ask for less, or start ranks that have more"
            )


def sweep_staging(root: str, job_id: str) -> None:
    """Remove what attempts of this job left in the staging directory of a user's output path ({root}/{name}/{job_id}.{attempt})."""
    if not os.path.isdir(root):
        return
    for name in os.listdir(root):
        for attempt in os.listdir(os.path.join(root, name)):
            if attempt.startswith(job_id):
                remove_staging(os.path.join(root, name, attempt))
    with contextlib.suppress(OSError):  # another job's staging is there too
        os.rmdir(root)
