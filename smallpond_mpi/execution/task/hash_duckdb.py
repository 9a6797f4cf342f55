"""Hash partitioning with DuckDB as the reader, for columns that it reads as the same types as Arrow."""

from smallpond_mpi.execution.task.hash_partition import HashPartitionTask


class HashPartitionDuckDbTask(HashPartitionTask):
    """Reads by DuckDB, which computes the partition numbers on the way."""
