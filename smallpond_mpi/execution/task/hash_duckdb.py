"""Hash partitioning with DuckDB as the reader, for columns that it reads as the same types as Arrow."""

from collections.abc import Generator
from typing import TYPE_CHECKING

from smallpond_mpi.execution.task.hash_partition import HashPartitionTask
from smallpond_mpi.execution.task.row_chunks import chunks_of
from smallpond_mpi.execution.task.row_partition import Chunk

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet


class HashPartitionDuckDbTask(HashPartitionTask):
    """Reads by DuckDB, which computes the partition numbers on the way."""

    def partition(self, batch_index: int, input_dataset: "DataSet") -> Generator[Chunk, None, None]:
        return chunks_of(self, input_dataset)
