"""A cluster in one process and in no time, for tests of what schedules on it: ours, and those of whoever builds on the engine."""

from smallpond_mpi.testing.builders import layered, rank, task
from smallpond_mpi.testing.cluster import SimCluster, SimulationStuck, replay
from smallpond_mpi.testing.executor import GrantRefused
from smallpond_mpi.testing.faults import Faults, Pause, RankFault, RankFaultKind

__all__ = [
    "Faults",
    "GrantRefused",
    "Pause",
    "RankFault",
    "RankFaultKind",
    "SimCluster",
    "SimulationStuck",
    "layered",
    "rank",
    "replay",
    "task",
]
