"""DataFrames and task graphs over Parquet, CSV and JSON on a Slurm cluster, scheduled over MPI.

`import smallpond_mpi as sp; sp.init().read_parquet(...)`. Nothing heavy is imported before it is needed.
"""

import os
from typing import TYPE_CHECKING, Any

from smallpond_mpi.forgotten import watch_for_init
from smallpond_mpi.lazy import lazy_names

if TYPE_CHECKING:
    from smallpond_mpi.dataframe import DataFrame, Session

__version__ = "0.1.0"

_NAMES = {"DataFrame": "smallpond_mpi.dataframe", "Session": "smallpond_mpi.dataframe"}
__getattr__, __dir__, _ = lazy_names(__name__, _NAMES)
watch_for_init(os.environ)
__all__ = ["DataFrame", "Session", "__version__", "init"]


def init(
    job_id: str | None = None,
    job_time: float | None = None,
    job_name: str | None = None,
    data_root: str | None = None,
    num_executors: int | None = None,
    ray_address: str | None = None,
    bind_numa_node: bool | None = None,
    platform: str | None = None,
    _remove_output_root: bool = True,
    **kwargs: Any,
) -> "Session":
    """Start this process's session: one that is rank 0, or alone, gets it; other ranks serve it and never return.

    SP_JOBID, SP_JOB_TIME, SP_JOB_NAME, SP_DATA_ROOT, SP_NUM_EXECUTORS, SP_BIND_NUMA_NODE, SP_MEMORY_ALLOCATOR and SP_PLATFORM override the
    arguments of the same meaning.

    Args:
        job_id: what the job's directory is found by. A job that did not finish is taken up where it was; None makes a new one.
        job_time: seconds since the epoch, or a date in ISO 8601.
        data_root: a directory that all ranks share (default `~/.smallpond_mpi/data`).
        num_executors, platform: accepted for scripts written for smallpond; the launcher says how many ranks there are.
        ray_address: the Ray cluster that Task.run_on_ray() connects to; None: what RAY_ADDRESS names, or a new one on this machine.
        kwargs: see smallpond_mpi.config.Config.

    Raises:
        InvalidArgument: an argument or variable is wrong, this process has an open session, or this is not its main thread.
        JobOwned: a live process runs this job.
        DataRootUnusable: no files can be made under the data root.
    """
    from smallpond_mpi.config import resolve
    from smallpond_mpi.entry import open_session

    arguments = {
        "job_id": job_id,
        "job_time": job_time,
        "job_name": job_name,
        "data_root": data_root,
        "num_executors": num_executors,
        "ray_address": ray_address,
        "bind_numa_node": bind_numa_node,
        "platform": platform,
        "remove_output_root": _remove_output_root,
        **kwargs,
    }
    session: Session = open_session(lambda: __getattr__("Session"), lambda: resolve(arguments, os.environ), os.environ)
    return session
