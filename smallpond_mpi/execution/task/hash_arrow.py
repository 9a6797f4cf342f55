"""Hash partitioning with Arrow as the reader: whatever types the columns have, the rows come out as they went in."""

from collections.abc import Generator
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from smallpond_mpi.execution.task.engine import translate_duckdb
from smallpond_mpi.execution.task.hash_partition import Chunk, HashPartitionTask

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

KEYS = "__keys"


class HashPartitionArrowTask(HashPartitionTask):
    """Reads by Arrow; DuckDB sees only the columns of the key."""

    def partition(self, batch_index: int, input_dataset: "DataSet") -> Generator[Chunk, None, None]:
        return arrow_chunks(self, input_dataset)


def arrow_chunks(task: HashPartitionTask, dataset: "DataSet") -> Generator[Chunk, None, None]:
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
    # By position: to DuckDB columns that differ in case only are one.
    aliases = [f"k{number}" for number in range(len(names))]
    conn.register(KEYS, pa.Table.from_batches([rows.select(names).rename_columns(aliases)]))
    query = f"SELECT {task.key_expression(aliases, conn.sql(f'FROM {KEYS}').types)} FROM {KEYS}"
    try:
        numbers = conn.sql(query).to_arrow_table().column(0)
    except duckdb.Error as error:
        raise translate_duckdb(error, query) from error
    finally:
        conn.unregister(KEYS)
    return numbers.combine_chunks() if numbers.num_chunks != 1 else numbers.chunk(0)
