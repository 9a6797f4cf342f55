"""What goes wrong in a simulated cluster, as values: chances for attempts, a script for ranks, pauses of the scheduler."""

from dataclasses import dataclass, fields
from enum import Enum, unique

from smallpond_mpi.execution.model import FailureKind, Rank


@dataclass(frozen=True, slots=True)
class Faults:
    """Chance of each fate of an attempt, drawn when it begins. What is left of 1 succeeds."""

    exception: float = 0.0
    signal: float = 0.0
    exit_code: float = 0.0
    out_of_memory: float = 0.0
    timeout: float = 0.0
    injected: float = 0.0
    not_started: float = 0.0
    bad_input: float = 0.0
    slow: float = 0.0  # it succeeds, after `slow_factor` times its duration
    slow_factor: float = 50.0

    def fate(self, chance: float) -> FailureKind | str | None:
        """What happens at this draw from 0..1: a failure, "slow", or None."""
        for name in _FATES:
            chance -= getattr(self, name)
            if chance < 0:
                return "slow" if name == "slow" else FailureKind[name.upper()]
        return None


_FATES = tuple(field.name for field in fields(Faults) if field.name != "slow_factor")


@unique
class RankFaultKind(Enum):
    """What happens to a rank."""

    DIES = "dies"  # and the transport tells so after `secs`
    VANISHES = "vanishes"  # and nobody tells: only its silence does
    CUT_OFF = "cut off"  # its link carries nothing for `secs`, then everything: it works on meanwhile
    FREEZES = "freezes"  # it does nothing for `secs`, then goes on (SIGSTOP, SIGCONT)


@dataclass(frozen=True, slots=True)
class RankFault:
    """At `at` seconds of virtual time this happens to the rank. Rank 0 has no such faults: it is the scheduler."""

    at: float
    rank: Rank
    kind: RankFaultKind
    secs: float = 0.1


@dataclass(frozen=True, slots=True)
class Pause:
    """From `at`, rank 0 does not poll for `secs`: it runs the user's script."""

    at: float
    secs: float
