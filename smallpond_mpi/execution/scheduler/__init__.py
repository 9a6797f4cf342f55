"""Rank 0's side of a job. Public names are loaded when asked for."""

from smallpond_mpi.lazy import lazy_names

_NAMES = {
    "ExecutorState": "smallpond_mpi.execution.scheduler.view",
    "Scheduler": "smallpond_mpi.execution.scheduler.view",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _NAMES)
