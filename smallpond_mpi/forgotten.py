"""A script that imports this package, is started as several ranks and never calls init(): each rank has done all of it alone, and nobody would notice."""

import atexit
import os
import sys
from collections.abc import Mapping

from smallpond_mpi.platform.binding import launched_size, launcher_of

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")

_has_arrived = False


def arrived() -> None:
    """This process has taken its place among the ranks."""
    global _has_arrived
    _has_arrived = True


def watch_for_init(env: Mapping[str, str]) -> None:
    """Have the process end with an error if a launcher started it with others and it never takes its place among them."""
    if launched_size(env) > 1:
        atexit.register(
            _complain,
            launched_size(env),
            launcher_of(env),
            next((env[name] for name in RANK_VARIABLES if name in env), "0"),
        )


def _complain(size: int, launcher: str, rank: str) -> None:
    failed = getattr(sys, "last_value", None) is not None
    if _has_arrived or failed or "mpi4py.MPI" in sys.modules:  # a program that speaks MPI itself knows its ranks
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if rank != "0":
        # Said once, and only rank 0 fails: the launcher ends the others when one does, maybe before it has spoken.
        os._exit(0)
    sys.stderr.write(
        f"{sys.argv[0]}: smallpond_mpi: the script never called smallpond_mpi.init(): {launcher} started {size} processes, and each of them ran all of it by "
        "itself. Call init() near the top (rank 0 goes on from there, the others work for it), or start one process.\n"
    )
    sys.stderr.flush()
    os._exit(1)
