"""Task: the unit of work. It is planned on rank 0, pickled, run by a child of some rank, and its plain state comes back.

    planned on rank 0 -> pickled -> [child] initialize() -> run() -> finalize()
                                            '------- always ------> cleanup()
                      <- merged  <- pickled <---------'

The planned object holds what was planned; everything of an attempt has its default on the class (see WorkItem), so that a
million planned tasks stay small and only what changed travels.
"""

import os
import re
import resource
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from smallpond_mpi.common import (
    PARQUET_METADATA_KEY_PREFIX,
    InvalidArgument,
)
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.model import TaskRuntimeId, WorkStatus
from smallpond_mpi.execution.task.attributes import DECLARED, is_plain
from smallpond_mpi.execution.task.deps import DependantKeys, Dependencies
from smallpond_mpi.execution.task.measured import Measured
from smallpond_mpi.execution.task.metrics import AttemptMetrics
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.faults import fault_point
from smallpond_mpi.io.walk import files_below, is_directory

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

OUTPUT_NAME = re.compile(r"[a-zA-Z0-9_]+")


class Task(Measured):
    """Base of all tasks. Implementors override run() (and if they like initialize, finalize, cleanup) and set `dataset`.

    Args:
        ctx: the job's context.
        input_deps: the tasks whose outputs are this one's `input_datasets`, in order.
        partition_infos: what part it works on; one must be of the top-level dimension.
        output_name: `[a-zA-Z0-9_]+`; makes the output a result under `ctx.output_root`.
        output_path: absolute; makes the output a result under this path.
        cpu_limit: CPUs, at least 1.
        gpu_limit: GPUs, 0.5 is half of one.
        memory_limit: bytes.

    Raises:
        InvalidArgument: a partition dimension is repeated, the top-level one is missing, or a limit is out of range.
    """

    node_id = 0
    sched_epoch = 0
    location: str | None = None
    output_name: str | None = None
    output_root: str | None = None
    dataset: "DataSet | None" = None
    input_datasets: "list[DataSet]" = []
    runtime_state: Any = None
    # Seconds that an attempt may run; None: for ever. Set by the node.
    timeout_secs: float | None = None
    # How often its node was asked to be computed anew: part of what a restarted job knows it by.
    times_forgotten = 0
    # Whether the task asks for a child of its own instead of a warm one.
    isolated = False
    # Whether its result depends on what is in its inputs' files (False: only on which they are, as for a manifest).
    reads_content = True

    # (path, bytes) of every file that the attempt left: a restarted job takes the output up only if they are still there.
    _output_files: list[tuple[str, int]] = []
    # Where they lie, if `dataset` does not say so: another run of the script may have other ids for this task and its node.
    _output_dir: str | None = None
    _temp_output = True
    _groups: tuple[Dependencies, ...] = ()  # the groups of dependencies that this task is in
    _input_keys: tuple[str, ...] = ()  # on a worker, where the tasks themselves are not
    _has_written = False  # the attempt asked for its output directory
    _ray_ref: Any = None  # of its output, once run_on_ray was called
    _running = False  # in a child, between prepare and commit: paths that are asked for are made

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: "Sequence[Task] | Dependencies",
        partition_infos: Iterable[PartitionInfo],
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = 1,
        gpu_limit: float | None = 0,
        memory_limit: int | None = None,
    ) -> None:
        self.ctx = ctx
        self.id = ctx.new_task_id()
        if cpu_limit is not None and cpu_limit != 1:
            self._cpu_limit = _at_least("cpu_limit", cpu_limit, 1)
        if gpu_limit:
            self._gpu_limit = _at_least("gpu_limit", gpu_limit, 0)
        if memory_limit is not None:
            self._memory_limit = _at_least("memory_limit", int(memory_limit), 1)
        if output_name is not None:
            if not OUTPUT_NAME.fullmatch(output_name):
                raise InvalidArgument(f"output_name {output_name!r} must consist of letters, digits and underscores")
            self.output_name = output_name
            self._temp_output = False
        if output_path is not None:
            if not os.path.isabs(output_path):
                raise InvalidArgument(f"output_path {output_path!r} must be an absolute path")
            self.output_root = output_path
            self._temp_output = False
        self._deps = input_deps if isinstance(input_deps, Dependencies) else Dependencies(input_deps)
        if not self._deps.dependants:
            for dep in self._deps.tasks:
                dep._groups = (*dep._groups, self._deps)
        self._deps.dependants.append(self)
        infos = tuple(partition_infos)
        self._partition_infos = infos if len(infos) == 1 else tuple(sorted(infos))
        self._check_partitions()

    _cpu_limit = 1
    _gpu_limit: float = 0
    _memory_limit: int | None = None

    def _check_partitions(self) -> None:
        dims = [info.dimension for info in self._partition_infos]
        if PartitionInfo.toplevel_dimension not in dims:
            raise InvalidArgument(
                f"{self.key}: one partition must be of dimension {PartitionInfo.toplevel_dimension}, there are {dims}"
            )
        if len(dims) > 1 and len(set(dims)) < len(dims):
            raise InvalidArgument(f"{self.key}: a partition dimension is repeated in {list(self._partition_infos)}")

    def __str__(self) -> str:
        return f"{self.key} ({', '.join(map(str, self._partition_infos))})"

    def __repr__(self) -> str:
        return f"<{self}, {self.status.name}>"

    # identity

    @property
    def key(self) -> str:  # type: ignore[override] # an attribute of WorkItem; here it follows from class and id
        """`{ClassName}-{id}`."""
        return f"{type(self).__name__}-{self.id}"

    @property
    def runtime_id(self) -> TaskRuntimeId:
        """This attempt."""
        return TaskRuntimeId(self.id, self.sched_epoch, self.retry_count)

    @property
    def partition_infos(self) -> tuple[PartitionInfo, ...]:
        """Sorted."""
        return self._partition_infos

    @property
    def partition_dims(self) -> tuple[str, ...]:
        """Dimensions of its partition, sorted."""
        return tuple(info.dimension for info in self._partition_infos)

    @property
    def partition_infos_as_dict(self) -> dict[str, int]:
        """`{dimension: index}`."""
        return {info.dimension: info.index for info in self._partition_infos}

    def get_partition_info(self, dimension: str) -> PartitionInfo:
        """The partition of that dimension, or KeyError naming what there is."""
        for info in self._partition_infos:
            if info.dimension == dimension:
                return info
        raise KeyError(f"{self.key} has no partition of dimension {dimension!r}, only {list(self.partition_dims)}")

    # dependencies and data

    @property
    def input_deps(self) -> "Mapping[str, Task | None]":
        """`{key: Task}` where it was planned, `{key: None}` where it travelled to."""
        if "_deps" in self.__dict__:
            return cast("Mapping[str, Task | None]", self._deps)
        return dict.fromkeys(self._input_keys)

    @property
    def output_deps(self) -> DependantKeys:
        """Keys of the tasks that depend on this one."""
        return DependantKeys(self._groups)

    @property
    def any_input_empty(self) -> bool:
        """Whether an input dataset is known to have nothing in it."""
        return any(dataset.empty for dataset in self.input_datasets)

    @property
    def skip_when_any_input_empty(self) -> bool:
        """Whether an input is empty and the job skips such tasks."""
        return self.ctx.skip_task_with_empty_input and self.any_input_empty

    @property
    def output(self) -> "DataSet":
        """`dataset`, or, if that is None, whatever Parquet files the attempt left in its output directory; none at all is no rows."""
        if self.dataset is not None:
            return self.dataset
        from smallpond_mpi.logical.dataset.parquet import ParquetDataSet  # pyarrow: not for planning

        if self.is_done and not self._output_files:
            return ParquetDataSet([])
        return ParquetDataSet(["*"], root_dir=self._output_dir or self.final_output_abspath)

    @property
    def self_contained_output(self) -> bool:
        """Whether the output does not refer to files of the inputs."""
        return True

    @property
    def temp_output(self) -> bool:
        """Whether the output is only for tasks of this job. Can be set to False."""
        return self._temp_output

    @temp_output.setter
    def temp_output(self, temp_output: bool) -> None:
        if temp_output:
            raise InvalidArgument(f"{self.key}: temp_output can only be set to False")
        stack = [self]
        while stack:  # not by recursion: thousands of views may stand on each other
            task = stack.pop()
            if task._temp_output:
                task._temp_output = False
                if not task.self_contained_output and "_deps" in task.__dict__:
                    stack.extend(dep for dep in task._deps.tasks if dep._temp_output)

    @property
    def allow_speculative_exec(self) -> bool:
        """Whether a twin of a slow attempt may be started."""
        return True

    @property
    def is_done(self) -> bool:
        """Whether it succeeded, in this run or in an earlier one that was taken up."""
        return self.status is WorkStatus.SUCCEED

    def check_before_run(self) -> None:
        """Raise what can be known to be wrong before anything of the plan runs. Called on rank 0."""

    @property
    def runs_here(self) -> bool:
        """Whether rank 0 runs this itself, on the planned object: kinds of ours that touch no file and no user code."""
        return False

    def content_stamp(self) -> object:
        """What its output's content depends on besides attributes and inputs: size and time of source files.

        Part of its fingerprint if it reads, and of those of tasks that read its output; otherwise never asked for.
        """
        return None

    # directories

    @property
    def default_output_name(self) -> str:
        """`{ClassName}.{node_id}`; without a node the class name alone."""
        name = type(self).__name__
        return f"{name}.{self.node_id}" if self.node_id else name

    @property
    def output_dirname(self) -> str:
        """`{output_name or default}/{job_id}.{runtime_id}`: where its files lie, below the root of outputs."""
        return f"{self.output_name or self.default_output_name}/{self.ctx.job_id}.{self.runtime_id}"

    @property
    def output_filename(self) -> str:
        """Prefix of every file that the task writes."""
        return f"{self.output_name or self.default_output_name}-{self.ctx.job_id}.{self.runtime_id}"

    @property
    def staging_root(self) -> str | None:
        """Where running attempts write if the output has a place of its own: on the same file system, so that a rename publishes it."""
        return os.path.join(self.output_root, ".staging") if self.output_root else None

    @property
    def runtime_output_abspath(self) -> str:
        """Where a running attempt writes. The directory is there once the running attempt asks for it."""
        path = os.path.join(self.staging_root or self.ctx.staging_root, self.output_dirname)
        if self._running:
            os.makedirs(path, exist_ok=True)
            self._has_written = True
        return path

    @property
    def final_output_abspath(self) -> str:
        """Where the output lies when it is whole."""
        root = self.ctx.staging_root if self.temp_output else self.output_root or self.ctx.output_root
        return os.path.join(root, self.output_dirname)

    @property
    def temp_abspath(self) -> str:
        """Scratch, removed with the job. The directory is there once the running attempt asks for it."""
        path = os.path.join(self.ctx.temp_root, self.output_dirname)
        if self._running:
            os.makedirs(path, exist_ok=True)
        return path

    def clean_output(self, force: bool = False) -> None:
        """Remove what this attempt wrote if its output is temporary or `force` is true."""
        if self.temp_output or force:
            running, self._running = self._running, False
            for path in {self.runtime_output_abspath, self.final_output_abspath, self.temp_abspath}:
                shutil.rmtree(path, ignore_errors=True)
            self._running = running

    def dump(self) -> None:
        """Write the task, pickled, to `{temp_abspath}/{key}.pickle`, for a replay by hand."""
        from smallpond_mpi.io.filesystem import dump

        os.makedirs(self.temp_abspath, exist_ok=True)
        dump(self, os.path.join(self.temp_abspath, f"{self.key}.pickle"), atomic_write=True)

    # lifetime

    def _prepare(self) -> None:
        self.ctx.set_current_task(self)
        self._running = True
        self._metrics = AttemptMetrics(self.ctx.enable_profiling)
        if self._memory_limit is None:
            self._memory_limit = self.share_of_memory()

    def share_of_memory(self) -> int:
        """Bytes that go with its CPUs, of those that the rank of this process may hand out."""
        return int(self.ctx.usable_memory_size * self.cpu_limit // self.ctx.usable_cpu_count)

    def initialize(self) -> None:
        """Prepare for run(). Limits and binding are in force before this is called, whatever a subclass does here."""
        self.inject_fault()

    def run(self) -> bool:
        return True

    def finalize(self) -> None:
        """Finish after run(): the output is moved to its final place in one step."""
        self.inject_fault()
        self._commit()

    def _commit(self) -> None:
        assert self._metrics is not None
        self._running = False
        if self._has_written:
            runtime, final = self.runtime_output_abspath, self.final_output_abspath
            if runtime != final and is_directory(runtime):
                commit_directory(runtime, final)
                if self.dataset is not None:
                    self.dataset = self.dataset.moved(runtime, final)
            paths = [os.path.join(final, name) for name in files_below(final)]
            self._output_files = [(path, os.path.getsize(path)) for path in paths]
            if self.dataset is None:
                self._output_dir = final
        self._metrics.finish(self)

    def cleanup(self) -> None:
        """Let go of what the attempt held."""
        self.input_datasets = []

    def exec(self, cq: Any = None) -> Any:
        try:
            return super().exec(cq)
        finally:
            self._running = False
            self.ctx.set_current_task(None)
            if self._metrics is not None:
                self._metrics.stop(self)

    def clean_complex_attrs(self) -> None:
        """Drop what rank 0 has no use for: whatever a subclass added that is not plain data."""
        for name, value in list(self.__dict__.items()):
            if name not in DECLARED and not is_plain(value):
                delattr(self, name)
        for name in ("_numpy_random_gen", "_python_random_gen", "_metrics", "input_datasets"):
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        """A task travels alone: without its context's running task, without its neighbours, with their keys."""
        state = self.__dict__.copy()
        deps = state.pop("_deps", None)
        if deps is not None:
            state["_input_keys"] = tuple(deps)
        state.pop("_groups", None)
        for name in ("exec_cq", "_metrics", "_running", "_ray_ref"):
            state.pop(name, None)
        return state

    # limits

    def set_memory_limit(self, soft_limit: int, hard_limit: int) -> None:
        """Set RLIMIT_DATA of this process, in bytes. It counts virtual memory of private writable mappings."""
        resource.setrlimit(resource.RLIMIT_DATA, (int(soft_limit), int(hard_limit)))

    # Parquet

    def parquet_kv_metadata_str(self, extra_partitions: Sequence[PartitionInfo] | None = None) -> dict[str, str]:
        """What every Parquet file tells about where it comes from."""
        entries = {
            "__task_key__": self.key,
            "__task_id__": self.id,
            "__node_id__": self.node_id,
            "__job_id__": self.ctx.job_id,
            "__job_root__": self.ctx.job_root,
        } | {info.dimension: info.index for info in (*self.partition_infos, *(extra_partitions or ()))}
        return {PARQUET_METADATA_KEY_PREFIX + name: str(value) for name, value in entries.items()}

    def parquet_kv_metadata_bytes(self, extra_partitions: Sequence[PartitionInfo] | None = None) -> dict[bytes, bytes]:
        """As parquet_kv_metadata_str, as Arrow keeps it."""
        return {name.encode(): value.encode() for name, value in self.parquet_kv_metadata_str(extra_partitions).items()}

    # Ray

    def run_on_ray(self) -> Any:
        """Run the task, and first what it depends on, on Ray; returns the ObjectRef of its output dataset, the same one each time.

        Raises:
            MissingExtra: Ray is not installed.
            ResourcesUnavailable: it asks for more CPUs, GPUs or memory than the Ray cluster has.
        """
        from smallpond_mpi.execution.on_ray import run_on_ray  # Ray: for those only who call this

        return run_on_ray(self)

    @property
    def ray_dataset_path(self) -> str:
        """A pickle of the task's output dataset: there when the task was run on Ray and succeeded."""
        return os.path.join(self.ctx.completed_task_dir, str(self.node_id), f"{self.key}.pickle")

    @property
    def ray_marker_path(self) -> str:
        """An empty file: there when this attempt was started on Ray."""
        return os.path.join(self.ctx.started_task_dir, f"{self.node_id}.{self.key}.{self.retry_count}")


def commit_directory(runtime: str, final: str) -> None:
    """Make a running attempt's directory the final one in one step."""
    fault_point("commit.start")
    os.makedirs(os.path.dirname(final), exist_ok=True)
    try:
        os.rename(runtime, final)
    except OSError:
        # A repeat of this very attempt (a replay by hand) may find its own earlier output there.
        if not os.path.isdir(final):
            raise
        shutil.rmtree(final)
        os.rename(runtime, final)
    fault_point("commit.renamed")


def _at_least(name: str, value: Any, minimum: int) -> Any:
    if value < minimum:
        raise InvalidArgument(f"{name} must be at least {minimum}, not {value}")
    return value
