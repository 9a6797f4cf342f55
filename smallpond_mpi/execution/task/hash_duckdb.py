"""Hash partitioning with DuckDB as the reader: two to three times as fast as Arrow's, for columns that both read as the same types."""

from collections.abc import Generator
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from smallpond_mpi.execution.task.engine import translate_duckdb
from smallpond_mpi.execution.task.hash_arrow import arrow_chunks
from smallpond_mpi.execution.task.hash_partition import Chunk, HashPartitionTask
from smallpond_mpi.io.arrow import schema_of
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.dataset.parquet_sql import reads_alike
from smallpond_mpi.logical.dataset.quoting import quote_name

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet


class HashPartitionDuckDbTask(HashPartitionTask):
    """Reads by DuckDB, which computes the partition numbers on the way."""

    def partition(self, batch_index: int, input_dataset: "DataSet") -> Generator[Chunk, None, None]:
        if isinstance(input_dataset, ParquetDataSet) and not survives_duckdb(input_dataset):
            return arrow_chunks(self, input_dataset)
        return duckdb_chunks(self, input_dataset)


def duckdb_chunks(task: HashPartitionTask, dataset: "DataSet") -> Generator[Chunk, None, None]:
    """The rows of a dataset, read by DuckDB, chunk by chunk ordered by partition."""
    with task.connection() as conn:
        (view,) = task.create_input_views(conn, [dataset])
        source = conn.sql(f"FROM {view}")
        names = task.key_columns(source.columns)
        kinds = dict(zip(source.columns, source.types, strict=True))
        # The last column of all; its name need only be none of the others'.
        number = f", {task.key_expression(names, [kinds[name] for name in names])} AS {quote_name('#' + max(source.columns))}"
        query = f"SELECT *{number if names else ''} FROM {view}"
        try:
            reader = conn.sql(query).to_arrow_reader(task.chunk_rows)
            found = False
            for rows in reader:
                found = True
                yield _ordered(task, rows, bool(names))
            if not found:
                yield _ordered(task, pa.RecordBatch.from_pylist([], reader.schema), bool(names))
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise translate_duckdb(error, query, [dataset]) from error


def _ordered(task: HashPartitionTask, rows: pa.RecordBatch, numbered: bool) -> Chunk:
    if not numbered:
        return task.ordered(rows, None)
    last = rows.num_columns - 1
    return task.ordered(rows.select(list(range(last))), rows.column(last))


def survives_duckdb(dataset: ParquetDataSet) -> bool:
    """Whether all columns come out of DuckDB with the types that Arrow reads: not nested, without a time
    zone, not unified by name, and with names that differ in more than case."""
    if dataset.union_by_name:
        return False
    (first, *_) = dataset.resolved_row_ranges
    schema = schema_of(first, dataset.columns)
    if len({name.lower() for name in schema.names}) < len(schema):
        return False
    return all(
        reads_alike(field.type) and not pa.types.is_nested(field.type) and getattr(field.type, "tz", None) is None
        for field in schema
    )
