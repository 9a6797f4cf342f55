"""What every task of a job knows of the job: ids, roots, settings, and what the rank it runs on has.

The context is pickled once a session and sent to each rank; it never travels inside a task.
"""

import os
import shutil
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psutil

from smallpond_mpi.common import RAND_SEED_BYTE_LEN, TB
from smallpond_mpi.execution.model import TaskId
from smallpond_mpi.execution.paths import JobPaths, job_uuid
from smallpond_mpi.io.filesystem import remove_tree
from smallpond_mpi.platform import discover

if TYPE_CHECKING:
    from smallpond_mpi.execution.task.base import Task


class JobId(uuid.UUID):
    """A job's id. Time-ordered ones (`new`) sort by when they were made."""

    @staticmethod
    def new() -> "JobId":
        """A new id: 48 bits of milliseconds since the epoch, then random bits (RFC 9562, version 7)."""
        millis = int(datetime.now().timestamp() * 1000)
        random_bits = int.from_bytes(os.urandom(10), "big")
        value = (millis << 80) | (0x7 << 76) | ((random_bits >> 64 & 0xFFF) << 64) | (0b10 << 62)
        return JobId(int=value | (random_bits & ((1 << 62) - 1)))

    @staticmethod
    def of(text: str) -> "JobId":
        """The id that a text stands for."""
        return JobId(int=job_uuid(text).int)


class RuntimeContext:
    """Settings and places of a job, the same on all ranks; `task` is the task that runs in this process.

    `random_seed` of None draws one. `env_overrides` are set in every child. Sizes are bytes, intervals seconds.
    """

    def __init__(
        self,
        job_id: JobId,
        job_time: datetime,
        data_root: str,
        *,
        num_executors: int = 1,
        random_seed: int | None = None,
        env_overrides: dict[str, str] | None = None,
        bind_numa_node: bool = False,
        enforce_memory_limit: bool = False,
        max_usable_cpu_count: int = 1024,
        max_usable_gpu_count: int = 1024,
        max_usable_memory_size: int = 16 * TB,
        secs_wq_poll_interval: float = 0.5,
        secs_executor_probe_interval: float = 30,
        max_num_missed_probes: int = 6,
        fault_inject_prob: float = 0.0,
        enable_profiling: bool = False,
        enable_diagnostic_metrics: bool = False,
        remove_empty_parquet: bool = False,
        skip_task_with_empty_input: bool = False,
        shared_log_root: str | None = None,
        console_log_level: str = "INFO",
        file_log_level: str = "DEBUG",
        disable_log_rotation: bool = False,
        output_path: str | None = None,
    ) -> None:
        self.job_id = job_id if isinstance(job_id, JobId) else JobId.of(str(job_id))
        self.job_time = job_time
        self.data_root = os.path.abspath(os.path.expanduser(data_root))
        self.num_executors = num_executors
        self.random_seed = int.from_bytes(os.urandom(8), "little") if random_seed is None else random_seed
        self.env_overrides = dict(env_overrides or {})
        self.bind_numa_node = bind_numa_node
        self.enforce_memory_limit = enforce_memory_limit
        self.max_usable_cpu_count = max_usable_cpu_count
        self.max_usable_gpu_count = max_usable_gpu_count
        self.max_usable_memory_size = max_usable_memory_size
        self.secs_wq_poll_interval = secs_wq_poll_interval
        self.secs_executor_probe_interval = secs_executor_probe_interval
        self.max_num_missed_probes = max_num_missed_probes
        self.fault_inject_prob = fault_inject_prob
        self.enable_profiling = enable_profiling
        self.enable_diagnostic_metrics = enable_diagnostic_metrics
        self.remove_empty_parquet = remove_empty_parquet
        self.skip_task_with_empty_input = skip_task_with_empty_input
        self.shared_log_root = shared_log_root
        self.console_log_level = console_log_level
        self.file_log_level = file_log_level
        self.disable_log_rotation = disable_log_rotation
        self.final_output_path = output_path
        self.sched_epoch = 0
        self.max_fail_count: int | None = None
        # Which Ray cluster run_on_ray() connects to; None: the one that RAY_ADDRESS names, or a new one on this machine.
        self.ray_address: str | None = None
        # How many parallel slots the job's ranks have in all: what partition nodes size their producers by.
        self.num_slots: int | None = None
        # What the rank of this process may hand out, if it was told (in children): (cpus, memory bytes, gpus).
        self.rank_resources: tuple[int, int, int] | None = None
        self._num_tasks_created = 0
        self._task: Task | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_task"} | {"_task": None}

    def __str__(self) -> str:
        return f"RuntimeContext({self.job_id}, epoch {self.sched_epoch}, {self.job_root})"

    __repr__ = __str__

    # ids and randomness

    def new_task_id(self) -> TaskId:
        """The next task id, from 1."""
        self._num_tasks_created += 1
        return TaskId(self._num_tasks_created)

    @property
    def num_tasks_created(self) -> int:
        """How many task ids were given out so far."""
        return self._num_tasks_created

    @property
    def random_seed_bytes(self) -> bytes:
        """The job's seed in 128 bytes, little-endian, modulo 2**1024."""
        return (self.random_seed % (1 << 8 * RAND_SEED_BYTE_LEN)).to_bytes(RAND_SEED_BYTE_LEN, "little")

    @property
    def task(self) -> "Task":
        """The task that runs in this process."""
        if self._task is None:
            raise RuntimeError("no task runs in this process: ctx.task is for functions that a task calls")
        return self._task

    def set_current_task(self, task: "Task | None" = None) -> None:
        """Say which task runs in this process; None: no more."""
        self._task = task

    # places

    @property
    def paths(self) -> JobPaths:
        """Where everything of this job lies."""
        return JobPaths(self.data_root, str(self.job_id))

    @property
    def job_root_dirname(self) -> str:
        """Name of the job's directory: its id."""
        return self.paths.job

    @property
    def job_root(self) -> str:
        """The job's directory, `{data_root}/{job_id}`."""
        return self.paths.root

    @property
    def output_root(self) -> str:
        """Results that have a name but no path of the user's."""
        return self.paths.output

    @property
    def staging_root(self) -> str:
        """Running attempts and temporary outputs; removed after success."""
        return self.paths.staging

    @property
    def temp_root(self) -> str:
        """Scratch of attempts; removed after success."""
        return self.paths.temp

    @property
    def started_task_dir(self) -> str:
        """Marks of started tasks (run_on_ray)."""
        return self.paths.started_tasks

    @property
    def completed_task_dir(self) -> str:
        """Outputs of finished tasks (run_on_ray)."""
        return self.paths.completed_tasks

    @property
    def log_root(self) -> str:
        """A log and its index a rank, and scheduler.log; kept."""
        return self.paths.log

    @property
    def job_status_path(self) -> str:
        """A file that holds `success`, or `failure: ` and why, once the job has ended."""
        return self.paths.status

    @property
    def runtime_ctx_path(self) -> str:
        """Place for a pickle of this object."""
        return self.paths.runtime_ctx

    @property
    def logcial_plan_path(self) -> str:
        """Place for the logical plan as text. (The spelling is smallpond's.)"""
        return self.paths.logical_plan

    @property
    def logcial_plan_graph_path(self) -> str:
        """Place for the logical plan as a graph in DOT. (The spelling is smallpond's.)"""
        return self.paths.logical_plan_graph

    @property
    def exec_plan_path(self) -> str:
        """Place for a pickle of the execution plan."""
        return self.paths.exec_plan

    @property
    def sched_state_path(self) -> str:
        """Place for a dump of the scheduler's state."""
        return self.paths.sched_state

    def initialize(self, exec_id: str, root_exist_ok: bool = True, cleanup_root: bool = False) -> None:
        """Make the job's directories (0700: pickles are read from there)."""
        if cleanup_root:
            self.cleanup_root()
        os.makedirs(self.job_root, mode=0o700, exist_ok=root_exist_ok)
        for place in (self.output_root, self.staging_root, self.temp_root, self.log_root, self.paths.journal):
            os.makedirs(place, mode=0o700, exist_ok=True)

    def cleanup_root(self) -> None:
        """Remove everything of this job."""
        shutil.rmtree(self.job_root, ignore_errors=True)

    def cleanup(self, remove_output_root: bool = True) -> list[str]:
        """Remove what only a running job needs; with `remove_output_root` also outputs that lie under the job root.

        Returns what can't be removed, with why: that a file system holds something back is no failure of the job.
        """
        places = (self.staging_root, self.temp_root, *([self.output_root] if remove_output_root else []))
        return [left for place in places for left in remove_tree(place)]

    # the machine

    @property
    def numa_node_count(self) -> int:
        """NUMA nodes that have CPUs; 1 where the kernel knows none."""
        return len(set(discover.numa_nodes().values())) or 1

    @property
    def physical_cpu_count(self) -> int:
        """Cores of this machine, hyper-threads counted once."""
        return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1

    @property
    def available_memory(self) -> int:
        """Bytes of this machine's memory that are free or can be freed."""
        return int(psutil.virtual_memory().available)

    @property
    def total_memory(self) -> int:
        """Bytes of this machine's memory."""
        return int(psutil.virtual_memory().total)

    @property
    def usable_cpu_count(self) -> int:
        """CPUs of the rank that this process belongs to."""
        cpus = self.rank_resources[0] if self.rank_resources else len(os.sched_getaffinity(0))
        return max(1, min(cpus, self.max_usable_cpu_count))

    @property
    def usable_memory_size(self) -> int:
        """Bytes of memory that tasks may have on the rank that this process belongs to, all together."""
        memory = self.rank_resources[1] if self.rank_resources else self.total_memory
        return min(memory, self.max_usable_memory_size)

    @property
    def usable_gpu_count(self) -> int:
        """GPUs of the rank that this process belongs to; 0 where it was not told."""
        return min(self.rank_resources[2], self.max_usable_gpu_count) if self.rank_resources else 0

    def get_local_gpus(self) -> list[int]:
        """Indices of the GPUs of this rank."""
        return list(range(self.usable_gpu_count))

    @property
    def secs_executor_probe_timeout(self) -> float:
        """Seconds of silence after which an executor counts as lost."""
        return self.secs_executor_probe_interval * self.max_num_missed_probes
