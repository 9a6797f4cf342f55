"""A task on Ray, for who has a Ray cluster and no MPI: it, and before it what it depends on, each as one remote call.

    run_on_ray(task)   inputs first: task --cloudpickle--> remote call (refs of the inputs) -> ref of the output dataset
    a Ray worker       attempt(): marker, exec(), output dataset into a file, and back as the call's result

What is done lies in files below the job's staging root, so that it is known to whoever looks: an empty marker for each attempt that was
started, and the output dataset, pickled, of each task that succeeded. Ray repeats a call that failed; the markers tell an attempt its number.
Scheduling is Ray's: retries get the same resources, and nothing is written to the journal.
"""

import os
import pickle
import socket
from typing import TYPE_CHECKING, Any

import cloudpickle

from smallpond_mpi.common import (
    DEFAULT_MAX_FAIL_COUNT,
    CannotPickle,
    DataRootUnusable,
    InjectedFault,
    MissingExtra,
    NonzeroExitCode,
    OutOfMemory,
    ResourcesUnavailable,
    TaskFailed,
)
from smallpond_mpi.execution.by_value import pickle_by_value_what_lies_beside, script_dirs
from smallpond_mpi.execution.failures import exception_of, failure_of
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.payload import why_not_pickled
from smallpond_mpi.execution.task.plan import ExecutionPlan
from smallpond_mpi.execution.task.publish import remove_staging
from smallpond_mpi.io.filesystem import dump, load

if TYPE_CHECKING:
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.logical.dataset import DataSet

WORTH_ANOTHER_ATTEMPT = (TaskFailed, OutOfMemory, NonzeroExitCode, InjectedFault, DataRootUnusable)
"""What Ray repeats a call for: bad input stays bad."""


def run_on_ray(task: "Task") -> Any:
    """The ObjectRef of the task's output, with calls made for all below it that have none yet. Connects to Ray if nobody has."""
    ray = _ray()
    if not ray.is_initialized():
        # What Ray prints of its workers would come between the user's own output.
        ray.init(address=task.ctx.ray_address, log_to_driver=False, include_dashboard=False)
    pickle_by_value_what_lies_beside(script_dirs())
    wanted = _without_ref(task)
    for one in ExecutionPlan.iter_tasks(task):
        if one.key in wanted:
            one._ray_ref = ray.put(load(one.ray_dataset_path)) if _is_done(one) else _call(ray, one)
    return task._ray_ref


def _without_ref(task: "Task") -> set[str]:
    """The task and those below it that need a call or have their output in a file; not those that only such ones depend on."""
    found: set[str] = set()
    stack = [task]
    while stack:
        one = stack.pop()
        if one._ray_ref is None and one.key not in found:
            found.add(one.key)
            stack.extend(() if _is_done(one) else one._deps.tasks)
    return found


def _is_done(task: "Task") -> bool:
    return os.path.exists(task.ray_dataset_path)


def _ray() -> Any:
    try:
        import ray  # a package of 200 MB that most do not have
    except ImportError as error:
        raise MissingExtra(
            f'run_on_ray() needs Ray, which is not installed here ({error}): pip install "smallpond-mpi[ray]"'
        ) from None
    return ray


def _call(ray: Any, task: "Task") -> Any:
    _check_resources(ray, task)
    try:
        pickled = cloudpickle.dumps(task, protocol=5)
    except Exception as error:  # pickling runs the user's __reduce__ and __getstate__: anything can come out
        raise CannotPickle(why_not_pickled(task, error)) from error
    limited = task.ctx.enforce_memory_limit
    # A limit that was set stays with a process: its next task gets another one. (0: as many tasks as there are)
    remote = ray.remote(max_calls=1 if limited else 0)(attempt)
    return remote.options(
        name=task.key,
        num_cpus=0 if task.runs_here else task.cpu_limit,
        num_gpus=task.gpu_limit,
        memory=task.memory_limit,
        max_retries=(task.ctx.max_fail_count or DEFAULT_MAX_FAIL_COUNT) - 1,
        retry_exceptions=list(WORTH_ANOTHER_ATTEMPT),
    ).remote(pickled, *(dep._ray_ref for dep in task._deps.tasks))


def _check_resources(ray: Any, task: "Task") -> None:
    """Ray would wait for ever for a node that is large enough."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {"CPU": task.cpu_limit, "GPU": task.gpu_limit, "memory": task.memory_limit or 0}
    if not any(all(node.get(name, 0) >= wanted for name, wanted in asked.items()) for node in nodes):
        where = f" of {task.location}" if task.location else ""
        raise ResourcesUnavailable(
            f"{task.key}{where} asks for {task.cpu_limit} CPUs, {task.gpu_limit} GPUs and {task.memory_limit or 0:,} bytes of memory, "
            "and no node of the Ray cluster has all of these: ask for less"
        )


def attempt(pickled: bytes, *inputs: "DataSet") -> "DataSet":
    """One attempt, in a process of Ray's; returns the output.

    Raises:
        SmallpondError: one of this project's own errors, whatever user code raised.
    """
    task: Task = pickle.loads(pickled)
    _number(task)
    task.fail_count = task.retry_count
    task.exec_id = f"{socket.gethostname()}.{os.getpid()}"
    task.input_datasets = list(inputs)
    _grant(task)
    if task.ctx.enforce_memory_limit and task.memory_limit:
        task.set_memory_limit(round(task.memory_limit * 1.2), round(task.memory_limit * 1.5))
    if task.exec() is not WorkStatus.SUCCEED:
        task.clean_output()
        failure = failure_of(task, socket.gethostname(), -1)
        where = f" ({task.location})" if task.location else ""
        error = exception_of(failure)
        error.add_note(f"in {task.key}{where}, attempt {task.retry_count}")
        raise error
    output = task.output
    os.makedirs(os.path.dirname(task.ray_dataset_path), exist_ok=True)
    dump(output, task.ray_dataset_path, atomic_write=True)
    for path in getattr(task, "obsolete_paths", ()):  # what a sink has published needs no staging any more
        remove_staging(path, levels_above=2)
    return output


def _number(task: "Task") -> None:
    """Give the attempt the first number whose marker is not there, and make that marker: no two attempts get the same."""
    os.makedirs(task.ctx.started_task_dir, exist_ok=True)
    while True:
        try:
            os.close(os.open(task.ray_marker_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            task.retry_count += 1
        else:
            return


def _grant(task: "Task") -> None:
    """The GPUs that Ray has made visible, as the grant: whole ones, or one that is shared."""
    visible = len(_ray().get_gpu_ids())
    task._granted_gpus = tuple((rank, min(1.0, task.gpu_limit)) for rank in range(visible))
