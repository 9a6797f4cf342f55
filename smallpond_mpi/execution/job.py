"""One job on rank 0, from its lease to its status file: what a session and a JobManager run their tasks with.

Place (ranks, rank 0's executor)  --serves-->  Job: lease, journal, context, scheduler's core and loop, planner
                                                |  run(tasks)*      checked, brought to success, measured
                                                '  close()          journal, staging, status; the ranks leave, or wait for another job
"""

import contextlib
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime

import cloudpickle

from smallpond_mpi.common import DataRootUnusable, JobFailed, JobOwned, JobStopped
from smallpond_mpi.config import LEVELS, Config
from smallpond_mpi.execution.by_value import import_dirs, pickle_by_value_what_lies_beside, script_dirs
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.journal import EpochStarted, JobEnded, JobSucceeded, Journal, restore
from smallpond_mpi.execution.lease import Lease
from smallpond_mpi.execution.protocol import Welcome
from smallpond_mpi.execution.scheduler.core import SchedulerCore
from smallpond_mpi.execution.scheduler.intake import inputs_first
from smallpond_mpi.execution.scheduler.ledger import Ledger
from smallpond_mpi.execution.scheduler.limits import Limits
from smallpond_mpi.execution.scheduler.loop import SchedulerLoop
from smallpond_mpi.execution.scheduler.observe import Observer
from smallpond_mpi.execution.scheduler.policy import Policy
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.publish import remove_staging
from smallpond_mpi.execution.transport import Transport
from smallpond_mpi.execution.transport.files import FileTransport
from smallpond_mpi.execution.worker import Place
from smallpond_mpi.faults import fault_point
from smallpond_mpi.io.filesystem import with_reason
from smallpond_mpi.io.memory import DEFAULT_MEMORY_POOL, MEMORY_POOL_VARIABLE, check_memory_pool
from smallpond_mpi.logical.node import Node, NodeId
from smallpond_mpi.logical.planner import Planner
from smallpond_mpi.platform import slurm
from smallpond_mpi.platform.arrays import ARRAY_OF, again, element_of

FIRST_JOIN_SECS = 3600.0
"""How long a scheduler waits for the first executor that joins by files, and later for one that is large enough: they may be in a batch system's queue."""
JOIN_SECS = 30.0
"""How long rank 0 waits for the executors of the other ranks before it plans with those that are there."""
MAX_NAMED = 3
"""Of files that can't be removed at the end."""

logger = logging.getLogger(__name__)


class Job:
    """The right to run a job, and what runs it. `failure` is why it failed so far, None while all is well.

    Raises:
        DataRootUnusable: no files can be made under the data root. JobOwned: a live process runs this job.
    """

    def __init__(self, config: Config, place: Place) -> None:
        self._config = config
        self._place = place
        self.failure: str | None = None
        self.is_closed = False
        self._pid = os.getpid()
        self.at_end: list[Callable[[str | None], None]] = []
        """Called when the job has ended, with why it failed."""
        check_data_root(config.resolved_data_root())
        self.ctx = _context_of(config)
        paths = self.ctx.paths
        os.makedirs(paths.root, mode=0o700, exist_ok=True)
        self._lease = Lease.take(paths.owner, os.environ)
        try:
            self._start_engine()
        except BaseException:
            shutil.rmtree(paths.queue, ignore_errors=True)  # executors that have joined see it go
            self._lease.release()
            raise

    def _start_engine(self) -> None:
        ctx, config, place = self.ctx, self._config, self._place
        restored = restore(ctx.paths)
        if restored.ended:
            _tell_of(ctx.cleanup(remove_output_root=True), ctx)
        ctx.initialize("0")
        self._journal = Journal(ctx.paths, restored.epoch)
        _note_slurm_job(ctx.paths.slurm, os.environ)
        ctx.sched_epoch = restored.epoch
        if restored.started is not None:
            ctx.job_time = datetime.fromtimestamp(restored.started.job_time)
            if config.random_seed is None:
                ctx.random_seed = restored.started.random_seed
        restored.use_seed(ctx.random_seed)
        set_console_level(config)
        shows = LEVELS[config.console_log_level] <= logging.INFO
        self._observer = Observer.for_terminal(
            config.progress if shows else "none",
            str(ctx.job_id),
            sys.stderr,
            os.environ,
            ctx.paths.scheduler_log,
            LEVELS[config.file_log_level],
        )
        remote = self._open_queue() if config.transport == "files" else place.transport
        local, executor = place.own_executor()
        self._ledger = Ledger(ctx, self._journal, restored, time.monotonic)
        self.loop = SchedulerLoop(
            ctx,
            SchedulerCore(epoch=restored.epoch, policy=_policy_of(config)),
            welcome=self._welcome(),
            ledger=self._ledger,
            local=local,
            executor=executor,
            remote=remote,
            observer=self._observer,
        )
        if place.has_served:
            self.loop.call_back(place.ranks)
        place.has_served = True
        self._wait_for_ranks()
        capacities = self.loop.capacities.values()
        ctx.num_executors = max(1, len(capacities))
        ctx.num_slots = max(1, sum(len(capacity.cpus) for capacity in capacities))
        if restored.started is not None:
            ctx.num_slots = restored.started.num_slots
        settings = {name: value for name, value in asdict(config).items() if name not in ("job_time", "data_root")}
        self._journal.append(EpochStarted(ctx.random_seed, ctx.job_time.timestamp(), ctx.num_slots, settings))
        self._journal.sync(time.monotonic())
        self.planner = Planner(ctx)
        self._limits = Limits()

    def _open_queue(self) -> Transport:
        """Let executors join through the data root; what earlier runs left there is nobody's: this one has the lease."""
        paths = self.ctx.paths
        shutil.rmtree(paths.queue, ignore_errors=True)
        if self._config.num_executors != 0:
            self._place.leave_computing_to_others()
        return FileTransport.open(paths.queue_of(self._lease.nonce))

    def _wait_for_ranks(self) -> None:
        if self._config.transport == "mpi":
            self.loop.wait_for_ranks(len(self._place.ranks), JOIN_SECS)
            return
        wanted = 1 if self._config.num_executors is None else self._config.num_executors
        if wanted == 0:
            return
        _say_how_to_join(self.ctx)
        self.loop.wait_for_ranks(2, FIRST_JOIN_SECS)
        self.loop.wait_for_ranks(1 + wanted, JOIN_SECS)
        if len(self.loop.capacities) < 2:
            raise JobFailed(f"no executor has joined job {self.ctx.job_id} within {FIRST_JOIN_SECS:g} seconds")

    def _welcome(self) -> Welcome:
        ctx = self.ctx
        if self._config.memory_allocator is not None:
            check_memory_pool(self._config.memory_allocator)
        pool = self._config.memory_allocator or os.environ.get(MEMORY_POOL_VARIABLE) or DEFAULT_MEMORY_POOL
        env = {"SP_JOBID": str(ctx.job_id), MEMORY_POOL_VARIABLE: pool}
        return Welcome(
            ctx.sched_epoch,
            cloudpickle.dumps(ctx, protocol=5),
            ctx.paths.log,
            self._config.heartbeat_secs,
            tuple(import_dirs()),
            tuple(sorted((env | ctx.env_overrides).items())),
        )

    @property
    def is_copy(self) -> bool:
        """Whether this is what a fork has copied: the job goes on in the process that opened it, and is that one's alone."""
        return self._pid != os.getpid()

    def notify(self, listener: Callable[[bool], None]) -> None:
        """Have this called whenever something has changed, with whether the run has ended."""
        self._observer.notify(listener)

    def check(self, targets: Sequence[Task], nodes: Mapping[NodeId, Node]) -> list[Task]:
        """Raise BadInput for what can be seen to be wrong; returns those tasks that are still to be done."""
        pending = [task for task in inputs_first(targets) if not task.is_done]
        self._limits.check(pending, nodes, self.loop.capacities.values())
        return pending

    def run(self, targets: Sequence[Task], nodes: Mapping[NodeId, Node]) -> list[Task]:
        """Bring tasks, and what they need, to success; returns those that were not done before. `nodes` are those that they were made from.

        Raises:
            BadInput: a task failed for what the user gave, or can be seen to. JobFailed: it failed for another reason. JobStopped: it was asked to stop.
        """
        pending = self.check(targets, nodes)
        if pending:
            pickle_by_value_what_lies_beside(script_dirs())
            try:
                self.loop.run(targets)
            except JobStopped as stopped:
                self.failure = stopped.reason
                sys.stdout.flush()
                sys.stderr.write(f"smallpond_mpi: stopped in order ({stopped.reason}). {self.how_to_go_on()}\n")
                sys.stderr.flush()
                raise
            except BaseException as error:
                if not isinstance(error, SystemExit) or self.failure is None:  # whoever ends the process has said why
                    self.failure = f"{type(error).__name__}: {error}"
                raise
            self.failure = None
        return pending

    def ask_to_stop(self, reason: str) -> None:
        """Start nothing new; what runs comes to its end, and the script ends then (JobStopped)."""
        self.loop.drain(reason)

    def how_to_go_on(self) -> str:
        """A sentence for whoever has ended this job, or has seen it end."""
        element = element_of(os.environ)
        if element is None:
            return (
                f"Job {self.ctx.job_id} can be taken up where it was: start the script with SP_JOBID={self.ctx.job_id}"
            )
        return f"Element {element.index} of array {element.array} can be taken up where it was: {again(element)}"

    # the end

    def show_summary(self) -> None:
        """Say what the job did, once: at its end, or before the error that it ends with."""
        self._observer.close(self.failure)

    def close(self, keep_ranks: bool = False) -> None:
        """End the job: after success what only the running job needed is removed. Does nothing the second time, nor in a forked copy.

        With `keep_ranks` the ranks wait for another job of this process; otherwise they leave.
        """
        if self.is_closed or self.is_copy:
            return
        self.is_closed = True
        try:
            try:
                if self.failure is not None:
                    self.loop.stop(self.failure)
            finally:
                if keep_ranks:
                    self._place.ranks = self.loop.release()
                else:
                    self._place.is_dismissed = True
                    self.loop.shut_down()
            self._close_journal()
        except (DataRootUnusable, JobOwned) as error:
            if self.failure is None:
                self.failure = f"{type(error).__name__}: {error}"
                raise
        finally:
            self.show_summary()
            self._lease.release()
            for listener in self.at_end:
                listener(self.failure)

    def _close_journal(self) -> None:
        """Remove what the job needed, once its success is recorded and while no later epoch has begun; then write down that it ended.

        In this order, because a job that had ended begins anew. One that dies while large directories go, which may take minutes, goes on:
        what users were given stays theirs.
        """
        ctx = self.ctx
        removes = self.failure is None and not self._config.keep_intermediate
        if removes:
            self._journal.append(JobSucceeded())
        self._journal.sync(time.monotonic())
        shutil.rmtree(ctx.paths.queue, ignore_errors=True)
        fault_point("job.ended")
        if removes:
            _tell_of(self._remove_intermediate(), ctx)
            fault_point("job.cleaned")
        self._journal.append(JobEnded(self.failure is None))
        self._journal.close(time.monotonic())
        try:
            with open(ctx.job_status_path, "w") as file:
                file.write("success\n" if self.failure is None else f"failure: {self.failure}\n")
        except OSError as error:
            raise DataRootUnusable(error.errno, f"{ctx.job_status_path} can't be written: {error.strerror}") from None

    def _remove_intermediate(self) -> list[str]:
        """Remove what only the running job needed; returns what can't be removed, with why. That costs the job nothing: it has succeeded."""
        ctx, ledger = self.ctx, self._ledger
        left: list[str] = []
        try:
            ledger.remove_what_is_stale()
        except OSError as error:
            left.append(with_reason(error.filename, error))
        for root in ledger.user_staging_roots:
            left += sweep_staging(root, str(ctx.job_id))
        for staging in ledger.sink_stagings:  # of sinks that died, in an epoch whose script was another
            left += remove_staging(staging)
        return left + ctx.cleanup(remove_output_root=self._config.remove_output_root)


def _tell_of(left: Sequence[str], ctx: RuntimeContext) -> None:
    if left:
        more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
        shown = ", ".join(left[:MAX_NAMED]) + more
        logger.warning("what job %s no longer needs can't be removed, do so by hand: %s", ctx.job_id, shown)


def set_console_level(config: Config) -> None:
    """From now on this package's warnings are shown or not as the job wants it."""
    logging.getLogger("smallpond_mpi").setLevel(LEVELS[config.console_log_level])


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


def _note_slurm_job(path: str, env: Mapping[str, str]) -> None:
    """Leave for `smallpond-mpi status` which job of Slurm's runs this one."""
    if slurm.is_job(env):
        names = {"job": "SLURM_JOB_ID", "array": "SLURM_ARRAY_JOB_ID", "index": "SLURM_ARRAY_TASK_ID", "of": ARRAY_OF}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({key: env[name] for key, name in names.items() if name in env}, file)


def _say_how_to_join(ctx: RuntimeContext) -> None:
    sys.stderr.write(
        f"smallpond_mpi: waiting for executors: python {sys.argv[0]} executor --data_root {ctx.data_root} --job_id {ctx.job_id}\n"
    )
    sys.stderr.flush()


def _policy_of(config: Config) -> Policy:
    policy = Policy(
        max_retry_count=config.max_retry_count,
        max_fail_count=1 if config.fail_fast_on_failure else config.max_fail_count,
        speculative_exec=config.speculative_exec,
        prioritize_retry=config.prioritize_retry,
        stop_executor_on_failure=config.stop_executor_on_failure,
        nonzero_exitcode_as_oom=config.nonzero_exitcode_as_oom,
        signal_as_oom=config.enforce_memory_limit,
        late_secs=config.late_secs,
        gone_secs=config.gone_secs,
    )
    return replace(policy, unmet_grace_secs=FIRST_JOIN_SECS) if config.transport == "files" else policy


def _context_of(config: Config) -> RuntimeContext:
    ctx = RuntimeContext(
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
        console_log_level=config.console_log_level,
        file_log_level=config.file_log_level,
        output_path=config.output_path,
    )
    ctx.max_fail_count = config.max_fail_count
    ctx.ray_address = config.ray_address
    return ctx


def sweep_staging(root: str, job_id: str) -> list[str]:
    """Remove what attempts of this job left in the staging directory of a user's output path ({root}/{name}/{job_id}.{attempt}).

    Returns what can't be removed, with why.
    """
    left: list[str] = []
    for name in _names_in(root, left):
        for attempt in _names_in(os.path.join(root, name), left):
            if attempt.startswith(job_id):
                left += remove_staging(os.path.join(root, name, attempt))
        with contextlib.suppress(OSError):  # another job's attempts are there too, or it is gone already
            os.rmdir(os.path.join(root, name))
    with contextlib.suppress(OSError):  # another job's staging is there too
        os.rmdir(root)
    return left


def _names_in(directory: str, left: list[str]) -> list[str]:
    """None where there is no directory (any more): others sweep what is theirs at the same time. One that can't be listed is left as it is."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        left.append(with_reason(directory, error))
        return []
