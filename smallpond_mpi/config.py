"""What a session is told: arguments of init(), which SP_* variables override. Read once, here."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal, get_args

from smallpond_mpi.common import DEFAULT_MAX_FAIL_COUNT, DEFAULT_MAX_RETRY_COUNT, InvalidArgument
from smallpond_mpi.platform.arrays import element_of

SpeculativeExec = Literal["disable", "enable", "aggressive"]
ProgressStyle = Literal["auto", "bar", "lines", "none"]
MemoryAllocator = Literal["system", "jemalloc", "mimalloc"]
TransportKind = Literal["mpi", "files"]
LogLevel = Literal["CRITICAL", "ERROR", "WARNING", "SUCCESS", "INFO", "DEBUG", "TRACE"]

LEVELS = {"TRACE": 5, "DEBUG": 10, "INFO": 20, "SUCCESS": 25, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
"""The numbers that `logging` gives these levels, or would give them."""
DEFAULT_DATA_ROOT = "~/.smallpond_mpi/data"
ENV_OF = {
    "job_id": "SP_JOBID",
    "job_time": "SP_JOB_TIME",
    "job_name": "SP_JOB_NAME",
    "data_root": "SP_DATA_ROOT",
    "num_executors": "SP_NUM_EXECUTORS",
    "bind_numa_node": "SP_BIND_NUMA_NODE",
    "memory_allocator": "SP_MEMORY_ALLOCATOR",
    "platform": "SP_PLATFORM",
    "progress": "SP_PROGRESS",
}
"""The variable that overrides each argument."""


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of a session.

    Attributes:
        job_id: what the job root is found by; the same id takes up a job that did not finish. None: a new one. Each element of a Slurm job array
            makes one of its own of it.
        job_time: seconds since the epoch, or a date in ISO 8601. None: now.
        job_name: recorded in the journal; nothing shows it.
        data_root: a directory that all ranks share. None: `~/.smallpond_mpi/data`.
        num_executors: accepted for smallpond's scripts; there are as many executors as ranks. With transport `files`: how many are waited for.
        random_seed: what all randomness follows from. None: drawn once a job.
        max_retry_count: how many attempts of a task speculation may add.
        max_fail_count: how many times a task may fail.
        heartbeat_secs: how often a rank says that it lives.
        late_secs: of silence, after which it gets no new task.
        gone_secs: after which its tasks go to others.
        stop_executor_on_failure: a rank on which a task failed gets no more tasks, unless it is the last one.
        fail_fast_on_failure: the first failure of a task ends the job; nothing is tried again.
        memory_allocator: Arrow's memory pool in tasks: system, jemalloc or mimalloc. None: ARROW_DEFAULT_MEMORY_POOL if that is set, else system.
        fault_inject_prob: with which probability a task fails on purpose.
        progress: `bar` (rich), `lines` (one every few seconds), `none` (no summary either), or `auto`: bar on a terminal, else lines.
        keep_intermediate: keep staging and temporary files after success.
        console_log_level: how much is said on stderr: progress and a summary up to INFO, warnings up to WARNING, why a job failed always.
        file_log_level: how much is written to log/scheduler.log: counts every few seconds at DEBUG, ranks and runs at INFO, failures at WARNING.
        output_path: where JobManager copies the result of a plan to.
        transport: `mpi`: executors are the other ranks of this launch; `files`: they are started by themselves and join through the data root.
    """

    job_id: str | None = None
    job_time: datetime | None = None
    job_name: str = "smallpond"
    data_root: str | None = None
    num_executors: int | None = None
    ray_address: str | None = None
    bind_numa_node: bool = False
    memory_allocator: MemoryAllocator | None = None
    platform: str | None = None
    remove_output_root: bool = True
    random_seed: int | None = None
    max_retry_count: int = DEFAULT_MAX_RETRY_COUNT
    max_fail_count: int = DEFAULT_MAX_FAIL_COUNT
    speculative_exec: SpeculativeExec = "enable"
    prioritize_retry: bool = False
    nonzero_exitcode_as_oom: bool = False
    stop_executor_on_failure: bool = False
    fail_fast_on_failure: bool = False
    enforce_memory_limit: bool = False
    fault_inject_prob: float = 0.0
    enable_profiling: bool = False
    enable_diagnostic_metrics: bool = False
    remove_empty_parquet: bool = False
    skip_task_with_empty_input: bool = False
    heartbeat_secs: float = 2.0
    late_secs: float = 20.0
    gone_secs: float = 60.0
    progress: ProgressStyle = "auto"
    keep_intermediate: bool = False
    console_log_level: LogLevel = "INFO"
    file_log_level: LogLevel = "DEBUG"
    output_path: str | None = None
    transport: TransportKind = "mpi"
    env_overrides: dict[str, str] = field(default_factory=dict)

    def resolved_data_root(self) -> str:
        """Absolute."""
        return os.path.abspath(os.path.expanduser(self.data_root or DEFAULT_DATA_ROOT))


def resolve(arguments: Mapping[str, Any], env: Mapping[str, str]) -> Config:
    """Arguments, overridden by the environment, checked.

    Raises:
        InvalidArgument: naming the argument or variable, and the choices there are.
    """
    known = {one.name for one in fields(Config)}
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise InvalidArgument(f"init() has no argument {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    values = {name: value for name, value in arguments.items() if value is not None}
    sources = {name: f"{name}={value!r}" for name, value in values.items()}
    for name, variable in ENV_OF.items():
        if env.get(variable):
            values[name] = env[variable]
            sources[name] = f"{variable}={env[variable]!r}"
    config = Config(**{name: _checked(name, value, sources[name]) for name, value in values.items()})
    if config.transport == "files":  # the elements of an array may be executors of one job, which find it by its id
        return config
    return replace(config, job_id=_own_job_id(config.job_id, env, sys.argv))


def _own_job_id(job_id: str | None, env: Mapping[str, str], command: Sequence[str]) -> str | None:
    """The elements of a job array run one script with one environment, and are jobs of their own: the same one when an element runs again."""
    element = element_of(env)
    if element is None:
        return job_id
    return f"{job_id}_{element.index}" if job_id else f"slurm-{element} {' '.join(command)}"


_POSITIVE = {"max_retry_count", "max_fail_count", "heartbeat_secs", "late_secs", "gone_secs"}
_CHOICES: dict[str, tuple[str, ...]] = {
    "speculative_exec": get_args(SpeculativeExec),
    "progress": get_args(ProgressStyle),
    "console_log_level": get_args(LogLevel),
    "file_log_level": get_args(LogLevel),
    "transport": get_args(TransportKind),
    "memory_allocator": get_args(MemoryAllocator),
}


def _checked(name: str, value: Any, source: str) -> Any:
    """The value as its field wants it."""
    kind = Config.__annotations__[name]
    if name in _CHOICES and value not in _CHOICES[name]:
        raise InvalidArgument(f"{source}: must be one of {', '.join(_CHOICES[name])}")
    if name == "job_time":
        return _as_time(value, source)
    if name == "fault_inject_prob" and not 0 <= float(value) <= 1:
        raise InvalidArgument(f"{source}: must be between 0 and 1")
    try:
        if kind is bool:
            return _as_bool(value)
        if kind in (int, int | None):
            value = int(value)
        elif kind is float:
            value = float(value)
        elif kind in (str, str | None):
            value = os.fspath(value) if name == "data_root" else str(value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{source}: must be {getattr(kind, '__name__', kind)}") from None
    if name in _POSITIVE and value <= 0:
        raise InvalidArgument(f"{source}: must be more than 0")
    return value


def _as_bool(value: Any) -> bool:
    if isinstance(value, str):
        if value.lower() in ("1", "true", "yes", "on"):
            return True
        if value.lower() in ("0", "false", "no", "off"):
            return False
        raise ValueError(value)
    return bool(value)


def _as_time(value: Any, source: str) -> datetime:
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromtimestamp(float(value))
    except (TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        raise InvalidArgument(
            f"{source}: must be seconds since the epoch (now: {time.time():.0f}) or a date like {datetime.now().isoformat(timespec='seconds')}"
        ) from None
