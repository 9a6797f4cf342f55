"""Hash partitioning with DuckDB as the reader: two to three times as fast as Arrow's, for columns that both read as the same types."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from smallpond_mpi.execution.task.engine import translate_duckdb
from smallpond_mpi.execution.task.hash_arrow import NUMBER, arrow_chunks
from smallpond_mpi.execution.task.hash_partition import Chunk, HashPartitionTask
from smallpond_mpi.io.arrow import schema_of
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.dataset.parquet_sql import reads_alike

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet


class HashPartitionDuckDbTask(HashPartitionTask):
    """Reads by DuckDB, which computes the partition numbers on the way."""

    def partition(self, batch_index: int, input_dataset: "DataSet") -> Iterator[Chunk]:
        if isinstance(input_dataset, ParquetDataSet) and not survives_duckdb(input_dataset):
            return arrow_chunks(self, input_dataset)
        return duckdb_chunks(self, input_dataset)


def duckdb_chunks(task: HashPartitionTask, dataset: "DataSet") -> Iterator[Chunk]:
    """The rows of a dataset, read by DuckDB, chunk by chunk ordered by partition."""
    with task.connection() as conn:
        (view,) = task.create_input_views(conn, [dataset])
        columns = conn.sql(f"FROM {view}")
        names = task.key_columns(columns.columns)
        number = f", {task.key_expression(columns.columns, columns.types)} AS {NUMBER}" if names else ""
        query = f"SELECT *{number} FROM {view}"
        try:
            reader = conn.sql(query).to_arrow_reader(task.chunk_rows)
            found = False
            for rows in reader:
                found = True
                yield _ordered(task, rows)
            if not found:
                yield _ordered(task, pa.RecordBatch.from_pylist([], reader.schema))
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise translate_duckdb(error, query, [dataset]) from error


def _ordered(task: HashPartitionTask, rows: pa.RecordBatch) -> Chunk:
    if NUMBER not in rows.schema.names:
        return task.ordered(rows, None)
    return task.ordered(rows.drop_columns([NUMBER]), rows.column(NUMBER))


def survives_duckdb(dataset: ParquetDataSet) -> bool:
    """Whether all columns come out of DuckDB with the types that Arrow reads: not nested, without a time zone, and not unified by name."""
    if dataset.union_by_name:
        return False
    (first, *_) = dataset.resolved_row_ranges
    schema = schema_of(first, dataset.columns)
    return all(
        reads_alike(field.type) and not pa.types.is_nested(field.type) and getattr(field.type, "tz", None) is None
        for field in schema
    )
