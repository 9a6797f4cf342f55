"""Which partitions of several inputs belong together.

A cell is a partition and the tasks that make it. Inputs are joined along their dimensions: cells that agree on shared dimensions are
paired, and a side without a dimension is joined to each index of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smallpond_mpi.execution.task.partition_info import TOPLEVEL, TOPLEVEL_DIMENSION, PartitionInfo

if TYPE_CHECKING:
    from smallpond_mpi.execution.task.base import Task


class CannotPair(Exception):
    """Partitions have no counterpart; the planner tells the user where."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Tasks that make one partition together; for a node with several inputs, the tasks of each input in order."""

    infos: tuple[PartitionInfo, ...]
    tasks: "tuple[Task, ...]"


def cells_of(tasks: "Iterable[Task]") -> list[Cell]:
    """A cell for each task."""
    return [Cell(task.partition_infos, (task,)) for task in tasks]


def merged_cells(tasks: "Iterable[Task]", dimensions: Iterable[str] | None = None) -> list[Cell]:
    """A cell for each index along `dimensions` (None: along all), in the order in which they first come."""
    kept = None if dimensions is None else {TOPLEVEL_DIMENSION, *dimensions}
    groups: dict[tuple[PartitionInfo, ...], list[Task]] = {}
    for task in tasks:
        infos = task.partition_infos
        if kept is not None:
            infos = tuple(info for info in infos if info.dimension in kept)
        groups.setdefault(infos, []).append(task)
    return [Cell(infos, tuple(group)) for infos, group in groups.items()]


def paired(inputs: Sequence[list[Cell]]) -> list[Cell]:
    """The cells of the inputs, joined. In the order of the first input, then of the second, and so on.

    Raises:
        CannotPair: a dimension has another number of partitions on another side, or a partition has no counterpart.
    """
    if not inputs:
        return [Cell((TOPLEVEL,), ())]
    check_counts(inputs)
    joined = inputs[0]
    for number, cells in enumerate(inputs[1:], start=1):
        joined = _joined(joined, cells, number)
    return joined


def dimensions(cells: Iterable[Cell]) -> dict[str, int]:
    """How many partitions there are along each dimension; a top-level dimension that is not cut doesn't count as one."""
    return {
        info.dimension: info.npartitions
        for cell in cells
        for info in cell.infos
        if not info.is_toplevel or info.npartitions > 1
    }


def check_counts(inputs: Iterable[list[Cell]]) -> None:
    """Raise CannotPair where a dimension is cut into different numbers of partitions."""
    found: dict[str, tuple[int, int]] = {}
    for number, cells in enumerate(inputs):
        for dimension, count in dimensions(cells).items():
            before, count_before = found.setdefault(dimension, (number, count))
            if count != count_before:
                raise CannotPair(
                    f"dimension {dimension!r} has {count_before} partitions in input {before} and {count} in input {number}"
                )


def _joined(left: list[Cell], right: list[Cell], number: int) -> list[Cell]:
    shared = dimensions(left).keys() & dimensions(right).keys()

    def key(cell: Cell) -> tuple[PartitionInfo, ...]:
        return tuple(info for info in cell.infos if info.dimension in shared)

    counterparts: dict[tuple[PartitionInfo, ...], list[Cell]] = {}
    for cell in right:
        counterparts.setdefault(key(cell), []).append(cell)
    joined: list[Cell] = []
    used = set()
    for cell in left:
        found = counterparts.get(key(cell))
        if found is None:
            raise CannotPair(f"partition {_shown(key(cell))} has no counterpart in input {number}")
        used.add(key(cell))
        joined.extend(Cell(_merged_infos(cell.infos, other.infos), cell.tasks + other.tasks) for other in found)
    for index in counterparts:
        if index not in used:
            raise CannotPair(f"partition {_shown(index)} of input {number} has no counterpart in the inputs before it")
    return joined


def _merged_infos(left: tuple[PartitionInfo, ...], right: tuple[PartitionInfo, ...]) -> tuple[PartitionInfo, ...]:
    """The partition of a pair. (Of two top-level ones, that which is cut.)"""
    if len(right) == 1 and right[0].npartitions == 1:
        return left
    infos = {info.dimension: info for info in left}
    for info in right:
        if info.dimension not in infos or infos[info.dimension].npartitions == 1:
            infos[info.dimension] = info
    return tuple(sorted(infos.values()))


def _shown(infos: Iterable[PartitionInfo]) -> str:
    return ", ".join(map(str, infos)) or "without a dimension"


def described(cells: list[Cell]) -> str:
    """How an input is cut, for a message."""
    dims = dimensions(cells)
    cut = " x ".join(f"{dimension}[{count}]" for dimension, count in dims.items()) or "no dimension"
    return f"{cut}, {len(cells)} partition{'' if len(cells) == 1 else 's'}"
