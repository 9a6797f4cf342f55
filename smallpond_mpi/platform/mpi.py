"""MPI as a platform: a job is the ranks of one launch. (The transport is execution/transport/mpi.py; this starts launches, and needs no mpi4py.)"""

import os
import shutil
import sys
from collections.abc import Sequence

from smallpond_mpi.platform.base import Platform

LAUNCHERS = ("mpirun", "mpiexec", "srun")


class MPI(Platform):
    """Starts jobs under the launcher of this environment's MPI."""

    @staticmethod
    def is_available() -> bool:
        """Whether there is a launcher beside the interpreter or on the PATH."""
        places = os.pathsep.join([os.path.dirname(os.path.abspath(sys.executable)), os.environ.get("PATH", os.defpath)])
        return any(shutil.which(name, path=places) for name in LAUNCHERS)

    def _commands(self, num_nodes: int, python: str, entrypoint: str, args: Sequence[str]) -> list[list[str]]:
        """One launch of so many ranks; `smallpond-mpi run` finds the launcher, and gives it what it needs."""
        return [[python, "-m", "smallpond_mpi", "run", "-n", str(num_nodes), entrypoint, *args]]
