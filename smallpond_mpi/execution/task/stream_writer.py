"""The files of a stream: rows come table by table, row groups are as large as the task wants them, and a file can be ended at any time."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from smallpond_mpi.common import MAX_PARQUET_FILE_BYTES, SchemaMismatch
from smallpond_mpi.execution.task.output import parquet_options, row_group_size
from smallpond_mpi.io.arrow import CODECS_WITH_LEVELS, facts_of_written
from smallpond_mpi.io.arrow_types import durations_in_micros
from smallpond_mpi.io.parquet import FileFacts

if TYPE_CHECKING:
    from smallpond_mpi.execution.task.base import Task


class StreamWriter:
    """Writes tables of one schema as Parquet files `{output_filename}-{i}.parquet`, a row group when there are rows enough for one."""

    def __init__(self, task: "Task", files: Iterable[FileFacts]) -> None:
        self._task = task
        self._files = list(files)
        self._schema: pa.Schema | None = pq.read_schema(self._files[0].path) if self._files else None
        self._held: list[pa.Table] = []
        self._path = ""
        self._writer: pq.ParquetWriter | None = None
        self._metadata: list[pq.FileMetaData] = []
        self._written_bytes = 0

    def write(self, table: pa.Table) -> None:
        """Add rows.

        Raises:
            SchemaMismatch: they are not of the schema of those before.
        """
        if not table.num_columns and not table.num_rows:
            return  # an input without rows, of which nothing says what would be made of it
        table = durations_in_micros(table)
        if self._schema is None:
            metadata = {**(table.schema.metadata or {}), **self._task.parquet_kv_metadata_bytes()}
            self._schema = table.schema.with_metadata(metadata)
        if not table.schema.equals(self._schema, check_metadata=False):
            raise SchemaMismatch(
                f"the output of a batch has another schema than the one before:\n{table.schema.remove_metadata()}\n"
                f"and before:\n{self._schema.remove_metadata()}\n"
                "return the same columns, with the same types, for every batch"
            )
        self._held.append(table)
        rows, size = sum(held.num_rows for held in self._held), sum(held.nbytes for held in self._held)
        if rows >= self._task.adjust_row_group_size(size, rows):
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables(self._held)
        self._held = []
        if self._writer is None:
            self._path = os.path.join(
                self._task.runtime_output_abspath, f"{self._task.output_filename}-{len(self._files)}.parquet"
            )
            options = parquet_options(self._task)
            if options["compression"].upper() not in CODECS_WITH_LEVELS:
                options.pop("compression_level")
            self._metadata = []
            self._writer = pq.ParquetWriter(self._path, self._schema, metadata_collector=self._metadata, **options)
            self._written_bytes = 0
        self._writer.write_table(table.cast(self._schema), row_group_size=row_group_size(self._task))
        self._written_bytes += table.nbytes
        if self._written_bytes >= MAX_PARQUET_FILE_BYTES:
            self._end()

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._files.append(facts_of_written(self._path, self._metadata[0]))

    def end_file(self) -> list[FileFacts]:
        """Write out what is held and end the file; returns all files so far."""
        if any(held.num_rows for held in self._held):
            self._flush()
        self._end()
        return self._files

    def close(self) -> list[FileFacts]:
        """End the last file; an output without rows is a file without rows, if its schema is known."""
        if self._held and (not self._files or any(held.num_rows for held in self._held)):
            self._flush()
        self._end()
        return self._files

    def abandon(self) -> None:
        """Close what an error has left open; nobody will read it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
