"""How much memory the siblings of finished tasks had better be given at their first attempt. Pure arithmetic; it starts nothing.

A grant that is too small costs an attempt and a second one under a larger grant; one that is too large keeps memory from others. What is
least in the mean is chosen, as in Tovar et al., A Job Sizing Strategy for High-Throughput Scientific Workflows (IEEE TPDS 29, 2018).
"""

from collections.abc import Sequence

STEPS = 4
"""Grants between a power of two and the next one: every size of grant is a class of its own, so there are few."""


def first_grant(needs: Sequence[int], free_bytes: int) -> int:
    """The bytes to give at first, so that the expected cost over both attempts is least; `needs` are those of siblings, at least one.

    Up to `free_bytes` a grant costs nobody anything: that much memory goes with the task's CPUs anyway.
    """
    ordered = sorted(needs)
    again = max(ordered[-1], free_bytes)
    costs = [
        (max(need, free_bytes) + again * (len(ordered) - position - 1) / len(ordered), -need)
        for position, need in enumerate(ordered)
        if position + 1 == len(ordered) or ordered[position + 1] > need
    ]
    return -min(costs)[1]


def round_up(need: int) -> int:
    """The next of `STEPS` sizes an octave, so at most a quarter more."""
    step = max(1, (1 << max(0, need.bit_length() - 1)) // STEPS)
    return -(-need // step) * step
