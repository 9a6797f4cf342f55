"""Hash partitioning with Arrow as the reader: whatever types the columns have, the rows come out as they went in."""

from collections.abc import Generator
from typing import TYPE_CHECKING

from smallpond_mpi.execution.task.hash_partition import HashPartitionTask
from smallpond_mpi.execution.task.keyed_rows import read_by_arrow
from smallpond_mpi.execution.task.row_partition import Chunk

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet


class HashPartitionArrowTask(HashPartitionTask):
    """Reads by Arrow; DuckDB sees only the columns of the key."""

    def partition(self, batch_index: int, input_dataset: "DataSet") -> Generator[Chunk, None, None]:
        return self.chunks(read_by_arrow(self, input_dataset))
