"""Partitions by the hash of columns, or by a number that a column holds already."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from smallpond_mpi.common import DATA_PARTITION_COLUMN_NAME, DEFAULT_ROW_GROUP_SIZE
from smallpond_mpi.logical.node.base import Context, Node
from smallpond_mpi.logical.node.partition import PartitionNode

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.partition_info import PartitionInfo

EngineType = Literal["duckdb", "arrow"]


class HashPartitionNode(PartitionNode):
    """Every row in exactly one partition, rows with equal keys together, in other tables too.

    Args:
        hash_columns: the key.
        data_partition_column: the column that holds each row's partition number in the output.
        engine_type: what does the work.
        random_shuffle: a random partition for each row; the key is not looked at.
        shuffle_only: the number is in `data_partition_column` already; the key is not looked at.
        drop_partition_column: leave that column out of the output.
        use_parquet_writer: write with Arrow's writer instead of DuckDB's.
        hive_partitioning: write directories `column=number/`.
    """

    default_cpu_limit = 1
    default_memory_limit: int | None = None
    default_data_partition_column = DATA_PARTITION_COLUMN_NAME
    default_engine_type: EngineType = "duckdb"
    default_row_group_size = DEFAULT_ROW_GROUP_SIZE
    max_num_producer_tasks = 1000
    enable_resource_boost = True
    # Set by the optimizer: producers partition the rows of this query, over their share of the first input and all of the others ...
    query: str | None = None
    # ... or, if false, over the partitions of the inputs as they are paired.
    is_cut_freely = True

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        npartitions: int,
        hash_columns: list[str] | None = None,
        data_partition_column: str | None = None,
        *,
        dimension: str | None = None,
        nested: bool = False,
        engine_type: EngineType | None = None,
        random_shuffle: bool = False,
        shuffle_only: bool = False,
        drop_partition_column: bool = False,
        use_parquet_writer: bool = False,
        hive_partitioning: bool = False,
        parquet_row_group_size: int | None = None,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str = "ZSTD",
        parquet_compression_level: int | None = 3,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx,
            input_deps,
            npartitions,
            dimension,
            nested,
            output_name,
            output_path,
            self.default_cpu_limit if cpu_limit is None else cpu_limit,
            self.default_memory_limit if memory_limit is None else memory_limit,
        )
        if isinstance(hash_columns, str) or not all(isinstance(name, str) for name in hash_columns or ()):
            raise self.invalid(f"hash_columns must be a list of names, not {hash_columns!r}")
        self.hash_columns = list(hash_columns or ())
        self._check_key(random_shuffle, shuffle_only)
        self.engine_type: EngineType = self.default_engine_type if engine_type is None else engine_type
        if self.engine_type not in ("duckdb", "arrow"):
            raise self.invalid(f"engine_type must be 'duckdb' or 'arrow', not {engine_type!r}")
        self.data_partition_column = data_partition_column or self.default_data_partition_column
        self.random_shuffle = random_shuffle
        self.shuffle_only = shuffle_only
        self.drop_partition_column = drop_partition_column
        self.use_parquet_writer = use_parquet_writer
        self.hive_partitioning = hive_partitioning
        self.parquet_row_group_size = (
            self.default_row_group_size
            if parquet_row_group_size is None
            else self._whole_number("parquet_row_group_size", parquet_row_group_size, 1)
        )
        self.parquet_dictionary_encoding = parquet_dictionary_encoding
        self.parquet_compression = parquet_compression
        self.parquet_compression_level = parquet_compression_level

    def _check_key(self, random_shuffle: bool, shuffle_only: bool) -> None:
        if random_shuffle and shuffle_only:
            raise self.invalid("random_shuffle and shuffle_only exclude each other")
        if not (self.hash_columns or random_shuffle or shuffle_only):
            raise self.invalid(
                "hash_columns is empty: name the columns of the key, or set random_shuffle or shuffle_only"
            )

    def create_producer_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.hash_partition import HashPartitionTask

        task: Task = HashPartitionTask.create(
            self.engine_type,
            runtime_ctx,
            input_deps,
            partition_infos,
            npartitions=self.npartitions,
            dimension=self.dimension,
            hash_columns=self.hash_columns,
            data_partition_column=self.data_partition_column,
            random_shuffle=self.random_shuffle,
            shuffle_only=self.shuffle_only,
            drop_partition_column=self.drop_partition_column,
            use_parquet_writer=self.use_parquet_writer,
            hive_partitioning=self.hive_partitioning,
            parquet_row_group_size=self.parquet_row_group_size,
            parquet_dictionary_encoding=self.parquet_dictionary_encoding,
            parquet_compression=self.parquet_compression,
            parquet_compression_level=self.parquet_compression_level,
            query=self.query,
            **self._output(),
            **self._limits(),
        )
        return task


class ShuffleNode(HashPartitionNode):
    """Rows go to the partition whose number is in `data_partition_column`."""

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        npartitions: int,
        data_partition_column: str | None = None,
        *,
        dimension: str | None = None,
        nested: bool = False,
        engine_type: EngineType | None = None,
        use_parquet_writer: bool = False,
        hive_partitioning: bool = False,
        parquet_row_group_size: int | None = None,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str = "ZSTD",
        parquet_compression_level: int | None = 3,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx,
            input_deps,
            npartitions,
            None,
            data_partition_column,
            dimension=dimension,
            nested=nested,
            engine_type=engine_type,
            shuffle_only=True,
            use_parquet_writer=use_parquet_writer,
            hive_partitioning=hive_partitioning,
            parquet_row_group_size=parquet_row_group_size,
            parquet_dictionary_encoding=parquet_dictionary_encoding,
            parquet_compression=parquet_compression,
            parquet_compression_level=parquet_compression_level,
            output_name=output_name,
            output_path=output_path,
            cpu_limit=cpu_limit,
            memory_limit=memory_limit,
        )
