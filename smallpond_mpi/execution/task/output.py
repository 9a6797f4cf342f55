"""Parquet output of tasks, and what is known of inputs: every file tells where it comes from, and what is in it travels with the dataset."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from smallpond_mpi.common import (
    DEFAULT_ROW_GROUP_SIZE,
    DataRootUnusable,
    InvalidArgument,
    SchemaMismatch,
    SmallpondError,
)
from smallpond_mpi.execution.failures import DISK_ERRORS
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin, struct_literal
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.workqueue import end_copies
from smallpond_mpi.io.arrow import dump_to_parquet_files
from smallpond_mpi.io.arrow_types import durations_in_micros
from smallpond_mpi.io.parquet import FileFacts, read_footer
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.dataset.quoting import quote_text

if TYPE_CHECKING:
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.logical.dataset import DataSet

# Below this DuckDB takes no dictionary at all; it is the option's way to say never.
NO_DICTIONARY = "DICTIONARY_SIZE_LIMIT 1"


UNWRITABLE = re.compile("to Parquet|Writing DictionaryArray")


@contextmanager
def _unmasked() -> Iterator[None]:
    """Of a file that could not be written Arrow's writer tells that it was not closed, instead of why."""
    try:
        yield
    except RuntimeError as error:
        if "writer close" not in str(error) or error.__context__ is None:
            raise
        raise error.__context__ from None


@contextmanager
def write_errors_told() -> Iterator[None]:
    """Tells an output that can't be written for want of space, or of permission, or because its schema or Parquet has no such values, from other errors."""
    end_copies()
    try:
        with _unmasked():
            yield
    except pa.ArrowNotImplementedError as error:
        if not UNWRITABLE.search(str(error)):
            raise
        raise InvalidArgument(f"Parquet can't hold the output: {error}; give the column another type") from error
    except pa.ArrowInvalid as error:
        if "non-nullable" not in str(error):
            raise
        raise SchemaMismatch(
            f"{error}: leave it out of the schema that it can't be NULL, or the NULLs out of the rows"
        ) from error
    except OSError as error:
        if isinstance(error, SmallpondError) or error.errno not in DISK_ERRORS:
            raise
        raise DataRootUnusable(error.errno, f"can't write output: {error}") from error


def copy_to_parquet(
    task: ExecSqlQueryMixin,
    conn: duckdb.DuckDBPyConnection,
    query: str,
    filename: str,
    extra_partitions: Sequence[PartitionInfo] | None = None,
) -> list[FileFacts]:
    """Write the rows of a query, in order, as `{filename}.parquet` of the running attempt; a file without rows keeps the schema."""
    path = os.path.join(task.runtime_output_abspath, f"{filename}.parquet")
    options = [
        "FORMAT PARQUET",
        "RETURN_STATS",
        f"KV_METADATA {struct_literal(task.parquet_kv_metadata_str(extra_partitions))}",
        f"ROW_GROUP_SIZE {row_group_size(task)}",
        *filter(None, [task.compression_options]),
        *([] if getattr(task, "parquet_dictionary_encoding", True) else [NO_DICTIONARY]),
    ]
    statement = f"COPY (\n{query}\n) TO {quote_text(path)} ({', '.join(options)})"
    rows = task.exec_query(conn, statement, task.ctx.enable_profiling).fetchall()
    return [replace(read_footer(file).facts, file_bytes=file_bytes) for file, _, file_bytes, *_ in rows]


def row_group_size(task: "Task") -> int:
    """Rows a row group, from what the task was told and what adjust_row_group_size made of it."""
    rows: int = getattr(task, "parquet_row_group_size", 0)
    return max(1, rows)


def written_dataset(task: "Task", files: Iterable[FileFacts]) -> ParquetDataSet:
    """The files that an attempt has written, as its output. With ctx.remove_empty_parquet those without rows go."""
    kept = []
    files = list(files)
    if not files:
        nothing = ParquetDataSet([])
        nothing.needs_schema_at = task.location
        return nothing
    for file in files:
        if file.num_rows == 0 and task.ctx.remove_empty_parquet:
            os.unlink(file.path)
        else:
            kept.append(file)
    return ParquetDataSet.of_files(kept)


def input_facts(datasets: "Iterable[DataSet]") -> FileFacts | None:
    """Rows and uncompressed bytes of all inputs together, if all are Parquet: then nothing but footers need be read to know."""
    rows = size = 0
    for dataset in datasets:
        if not isinstance(dataset, ParquetDataSet):
            return None
        rows += dataset.num_rows
        size += dataset.estimated_data_size
    return FileFacts("", rows, size)


def is_unknown(dataset: "DataSet") -> bool:
    """Whether a dataset is of no files at all: then it has not even a schema, and a task over it has nothing to do."""
    return isinstance(dataset, ParquetDataSet) and not dataset.paths


def nothing_of(task: "Task", datasets: "Sequence[DataSet]") -> ParquetDataSet:
    """The output of a task over inputs of which one is of no files: of none either, for the same reason.

    Raises:
        InvalidArgument: one has none because nobody could tell its columns, and another one's rows would be lost over it (unless the job
            wants such tasks skipped).
    """
    nothing = ParquetDataSet([])
    for index, dataset in enumerate(datasets):
        if isinstance(dataset, ParquetDataSet) and is_unknown(dataset) and dataset.needs_schema_at is not None:
            nothing.needs_schema_at = dataset.needs_schema_at
            if not task.ctx.skip_task_with_empty_input and not all(other.empty for other in datasets):
                raise InvalidArgument(
                    f"input {index} has no rows in this partition, and nothing says which columns it has: the function of "
                    f"{dataset.needs_schema_at} was called for none; tell it what is returned there: schema=pyarrow.schema(...)"
                )
    return nothing


def write_table(task: "Task", table: "pa.Table") -> list[FileFacts]:
    """Write a table as files of the running attempt, each telling where it comes from; a table without rows keeps its schema.

    One without columns is no file: DuckDB can't read such.
    """
    if not table.num_columns and not table.num_rows:
        return []
    table = durations_in_micros(table)
    metadata = {**(table.schema.metadata or {}), **task.parquet_kv_metadata_bytes()}
    with write_errors_told():
        return dump_to_parquet_files(
            table.replace_schema_metadata(metadata),
            task.runtime_output_abspath,
            task.output_filename,
            **parquet_options(task),
            row_group_size=row_group_size(task),
            max_workers=task.cpu_limit,
        )


def copy_dataset(task: "Task", dataset: "DataSet", filename: str) -> ParquetDataSet:
    """The rows of any dataset as one file of the running attempt, batch by batch."""
    reader = dataset.to_batch_reader()
    given = durations_in_micros(reader.schema.empty_table()).schema
    schema = given.with_metadata({**(given.metadata or {}), **task.parquet_kv_metadata_bytes()})
    path = os.path.join(task.runtime_output_abspath, filename)
    with pq.ParquetWriter(path, schema, compression="ZSTD", compression_level=3) as writer:
        for table in tables_of(reader, DEFAULT_ROW_GROUP_SIZE):
            writer.write_table(durations_in_micros(table).cast(schema), row_group_size=DEFAULT_ROW_GROUP_SIZE)
    return written_dataset(task, [replace(read_footer(path).facts, file_bytes=os.path.getsize(path))])


def tables_of(reader: "pa.RecordBatchReader", num_rows: int) -> "Iterator[pa.Table]":
    """The rows of a reader as tables of `num_rows` rows, the last one shorter: row groups don't follow the borders of batches."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in reader:
        held.append(batch)
        count += batch.num_rows
        while count >= num_rows:
            table = pa.Table.from_batches(held, reader.schema)
            yield table.slice(0, num_rows)
            held = table.slice(num_rows).to_batches()
            count -= num_rows
    if count:
        yield pa.Table.from_batches(held, reader.schema)


def parquet_options(task: "Task") -> dict[str, Any]:
    """The task's settings, as Arrow's writer takes them."""
    return {
        "compression": getattr(task, "parquet_compression", None) or "NONE",
        "compression_level": getattr(task, "parquet_compression_level", None),
        "use_dictionary": getattr(task, "parquet_dictionary_encoding", True),
    }
