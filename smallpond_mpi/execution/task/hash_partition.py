"""Every row to the partition of its key's hash: what both engines share. The engines differ in who reads the input."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from smallpond_mpi.common import DEFAULT_ROW_GROUP_SIZE, InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.output import is_unknown
from smallpond_mpi.execution.task.partition import Inputs
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.partition_key import partition_number
from smallpond_mpi.execution.task.row_partition import RowPartitionTask, check_columns_are_there
from smallpond_mpi.execution.task.sql import build_query, query_names
from smallpond_mpi.io.arrow import from_numpy
from smallpond_mpi.io.packed import Int64s
from smallpond_mpi.logical.dataset import ParquetDataSet, SqlQueryDataSet
from smallpond_mpi.logical.dataset.quoting import quote_name

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

KEY_ADVICE = "what rows are partitioned by must be numbers of partitions"
FRACTIONAL = frozenset({"float", "double", "decimal"})


class HashPartitionTask(RowPartitionTask):
    """Base of both engines: cuts its input by the hash of some columns.

    Args:
        hash_columns: the key.
        data_partition_column: holds the partition number in the output, unless dropped; with `shuffle_only` it holds it in the input.
        random_shuffle: instead of by a key rows go to partitions, and into order there, at random; the same for all attempts.
        shuffle_only: the partition number is already there; one outside 0..npartitions-1 is an error.
        use_parquet_writer, hive_partitioning: a file a partition, as for outputs that have a name or a path, instead of one a producer.
        query: what is partitioned are its rows; the inputs are `{0}`, `{1}`, as in SqlEngineTask. None: the first input.
    """

    query: str | None = None

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        npartitions: int,
        dimension: str,
        hash_columns: list[str] | None,
        data_partition_column: str,
        random_shuffle: bool = False,
        shuffle_only: bool = False,
        drop_partition_column: bool = False,
        use_parquet_writer: bool = False,
        hive_partitioning: bool = False,
        parquet_row_group_size: int = DEFAULT_ROW_GROUP_SIZE,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str | None = "ZSTD",
        parquet_compression_level: int | None = 3,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
        query: str | None = None,
    ) -> None:
        super().__init__(
            ctx,
            input_deps,
            partition_infos,
            npartitions,
            dimension,
            use_parquet_writer,
            hive_partitioning,
            parquet_row_group_size,
            parquet_dictionary_encoding,
            parquet_compression,
            parquet_compression_level,
            output_name,
            output_path,
            cpu_limit,
            memory_limit,
        )
        if query is not None:
            self.query = query
        self.hash_columns = list(hash_columns or ())
        if not (self.hash_columns or random_shuffle or shuffle_only):
            raise InvalidArgument(f"{self.key}: hash_columns must name the columns of the key")
        self.data_partition_column = data_partition_column
        self.random_shuffle = random_shuffle
        self.shuffle_only = shuffle_only
        self.drop_partition_column = drop_partition_column

    @staticmethod
    def create(engine_type: Literal["duckdb", "arrow"], *args: Any, **kwargs: Any) -> "HashPartitionTask":
        """The task for an engine."""
        from smallpond_mpi.execution.task import HashPartitionArrowTask, HashPartitionDuckDbTask

        kinds = {"duckdb": HashPartitionDuckDbTask, "arrow": HashPartitionArrowTask}
        if engine_type not in kinds:
            raise InvalidArgument(f"engine_type must be one of {', '.join(kinds)}, not {engine_type!r}")
        task: HashPartitionTask = kinds[engine_type](*args, **kwargs)
        return task

    def rows_to_partition(self) -> "DataSet":
        if self.query is None:
            return super().rows_to_partition()
        if any(map(is_unknown, self.input_datasets)):
            return ParquetDataSet([])
        names = query_names(self, [], 0, 0)
        return SqlQueryDataSet("", partial(build_query, self.query, names, int(self.id), list(self.input_datasets)))

    def key_columns(self, columns: Sequence[str]) -> list[str]:
        names = [self.data_partition_column] if self.shuffle_only else [] if self.random_shuffle else self.hash_columns
        check_columns_are_there(names, columns)
        return names

    def key_expression(self, conn: duckdb.DuckDBPyConnection, names: Sequence[str], types: Sequence[Any]) -> str:
        if self.shuffle_only:
            # what would be rounded on the way to a whole number is looked at as it is
            return f"CAST({quote_name(names[0])} AS {'DOUBLE' if types[0].id in FRACTIONAL else 'BIGINT'})"
        return partition_number(names, types, self.npartitions)

    def partitions_of(self, keys: pa.Array | None, num_rows: int) -> Int64s:
        """The key is the partition's number, which must be in range; without one it is drawn."""
        if keys is None:
            return self.numpy_random_gen.integers(0, self.npartitions, num_rows)
        if keys.null_count:
            raise InvalidArgument(f"partition key NULL is out of range 0-{self.npartitions - 1}: {KEY_ADVICE}")
        numbers = np.from_dlpack(keys)  # to_numpy() would load pandas
        broken = numbers[numbers != np.floor(numbers)] if numbers.dtype.kind == "f" else numbers[:0]
        if len(broken):
            raise InvalidArgument(
                f"partition key {broken[0]} is not a whole number: {KEY_ADVICE} (SQL's // divides without a rest)"
            )
        wrong = numbers[(numbers < 0) | (numbers >= self.npartitions)]
        if len(wrong):
            raise InvalidArgument(f"partition key {wrong[0]} is out of range 0-{self.npartitions - 1}: {KEY_ADVICE}")
        whole: Int64s = numbers.astype(np.int64, copy=False)
        return whole

    def order_within(self, order: Any, counts: Int64s) -> Any:
        """With random_shuffle the rows of each partition are at random."""
        if not self.random_shuffle:
            return order
        draws = self.numpy_random_gen.random(len(order))
        partition = np.repeat(np.arange(self.npartitions), counts)
        return order[np.lexsort((draws, partition))]

    def with_partition_column(self, rows: pa.RecordBatch, numbers: Int64s) -> pa.RecordBatch:
        """With the column that holds the number, in place of one of that name, unless it is to be dropped."""
        column = self.data_partition_column
        if column in rows.schema.names and (self.drop_partition_column or not self.shuffle_only):
            rows = rows.drop_columns([column])
        if self.drop_partition_column or self.shuffle_only:
            return rows
        return rows.append_column(column, from_numpy(numbers))
