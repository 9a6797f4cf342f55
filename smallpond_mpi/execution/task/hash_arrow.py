"""Hash partitioning with Arrow as the reader: whatever types the columns have, the rows come out as they went in."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from smallpond_mpi.execution.task.engine import translate_duckdb
from smallpond_mpi.execution.task.hash_partition import Chunk, HashPartitionTask

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

KEYS = "__keys"
NUMBER = "__number"


class HashPartitionArrowTask(HashPartitionTask):
    """Reads by Arrow; DuckDB sees only the columns of the key."""

    def partition(self, batch_index: int, input_dataset: "DataSet") -> Iterator[Chunk]:
        return arrow_chunks(self, input_dataset)


def arrow_chunks(task: HashPartitionTask, dataset: "DataSet") -> Iterator[Chunk]:
    """The rows of a dataset, read by Arrow, chunk by chunk ordered by partition."""
    reader = dataset.to_batch_reader(task.chunk_rows)
    with task.connection() as conn:
        found = False
        for rows in reader:
            found = True
            yield task.ordered(rows, _numbers(task, conn, rows))
        if not found:
            empty = pa.RecordBatch.from_pylist([], reader.schema)
            yield task.ordered(empty, _numbers(task, conn, empty))


def _numbers(task: HashPartitionTask, conn: duckdb.DuckDBPyConnection, rows: pa.RecordBatch) -> pa.Array | None:
    """The partition number of each row; None when it is drawn at random."""
    names = task.key_columns(rows.schema.names)
    if not names:
        return None
    conn.register(KEYS, pa.Table.from_batches([rows.select(names)]))
    keys = conn.sql(f"FROM {KEYS}")
    query = f"SELECT {task.key_expression(keys.columns, keys.types)} AS {NUMBER} FROM {KEYS}"
    try:
        numbers = conn.sql(query).to_arrow_table().column(NUMBER)
    except duckdb.Error as error:
        raise translate_duckdb(error, query) from error
    finally:
        conn.unregister(KEYS)
    return numbers.combine_chunks() if numbers.num_chunks != 1 else numbers.chunk(0)
