"""Which part of a dataset a task works on."""

from dataclasses import dataclass
from typing import ClassVar

from smallpond_mpi.common import DATA_PARTITION_COLUMN_NAME

TOPLEVEL_DIMENSION = "@toplevel@"


@dataclass(frozen=True, slots=True, eq=False)
class PartitionInfo:
    """The `index`-th of `npartitions` along a named dimension. Orders and compares by (dimension, index)."""

    toplevel_dimension: ClassVar[str] = TOPLEVEL_DIMENSION
    default_dimension: ClassVar[str] = DATA_PARTITION_COLUMN_NAME

    index: int = 0
    npartitions: int = 1
    dimension: str = TOPLEVEL_DIMENSION

    def __reduce__(self) -> tuple[type["PartitionInfo"], tuple[int, int, str]]:
        return PartitionInfo, (self.index, self.npartitions, self.dimension)

    @property
    def is_toplevel(self) -> bool:
        """Whether this is the dimension that every task has."""
        return self.dimension == TOPLEVEL_DIMENSION

    def __str__(self) -> str:
        return f"{self.dimension}[{self.index}/{self.npartitions}]"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PartitionInfo):
            return NotImplemented
        return self.index == other.index and self.dimension == other.dimension

    def __lt__(self, other: "PartitionInfo") -> bool:
        return (self.dimension, self.index) < (other.dimension, other.index)

    def __le__(self, other: "PartitionInfo") -> bool:
        return (self.dimension, self.index) <= (other.dimension, other.index)

    def __gt__(self, other: "PartitionInfo") -> bool:
        return other < self

    def __ge__(self, other: "PartitionInfo") -> bool:
        return other <= self

    def __hash__(self) -> int:
        return hash((self.dimension, self.index))


TOPLEVEL = PartitionInfo()
