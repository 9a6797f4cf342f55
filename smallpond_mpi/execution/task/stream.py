"""A Python function over a stream of batches, with checkpoints: an attempt that is interrupted is continued by the next one.

    readers --process()--> StreamOutput, StreamOutput, ... --dump_output()--> file | checkpoint | file | checkpoint | ...

A checkpoint ends the file being written, keeps a link to it in a place that outlives the attempt, and pushes a RuntimeState: the files so
far and how many batches of each input are in them. The next attempt takes the files over, skips those batches, and goes on.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from smallpond_mpi.common import DEFAULT_BATCH_SIZE, DEFAULT_ROW_GROUP_SIZE, InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.compute import frame_to_table, wrong_return
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin
from smallpond_mpi.execution.task.output import input_facts, is_unknown, nothing_of, write_errors_told, written_dataset
from smallpond_mpi.execution.task.partition import Inputs
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.stream_writer import StreamWriter
from smallpond_mpi.execution.workqueue import end_copies
from smallpond_mpi.io.filesystem import link_or_copy
from smallpond_mpi.io.parquet import FileFacts
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.utility import ConcurrentIter, ConcurrentIterError

if TYPE_CHECKING:
    import pandas as pd

    from smallpond_mpi.logical.dataset import DataSet

DEFAULT_SECS_CHECKPOINT_INTERVAL = 180


class StreamOutput:
    """Some rows of the output. With `batch_indices` the task may checkpoint here: the last batch of each input that is in the output so far.

    Args:
        output_table: the rows; None for none.
        batch_indices: for each input the number of the last batch that was worked in, counted from 0 as enumerate(reader) does: an attempt
            that goes on from a checkpoint is given the batches that are left, and counts these from 0. -1 for none yet.
        force_checkpoint: checkpoint now, however long ago the last one was.
    """

    def __init__(
        self, output_table: pa.Table | None, batch_indices: list[int] | None = None, force_checkpoint: bool = False
    ) -> None:
        self.output_table = output_table
        self.batch_indices = batch_indices
        self.force_checkpoint = force_checkpoint


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """How far an attempt came: the files it wrote, what they hold, and the batches (of `batch_size` rows) that went into them."""

    files: tuple[FileFacts, ...]
    batch_indices: tuple[int, ...]
    batch_size: int


class ArrowStreamTask(ExecSqlQueryMixin):
    """`process_func(runtime_ctx, [batch reader of each input]) -> iterable of tables or StreamOutput`, or an override of `process`.

    Args:
        background_io_thread: read ahead in a thread.
        streaming_batch_size: rows a batch, at most; fewer where they would not fit in memory.
        secs_checkpoint_interval: how often to checkpoint, at most; None for every three minutes.
    """

    cpu_overcommit_ratio = 0.5
    memory_overcommit_ratio = 0.5
    clock: Callable[[], float] = staticmethod(time.monotonic)
    runtime_state: RuntimeState | None = None
    _batch_size = DEFAULT_BATCH_SIZE
    # For each input: the number of the first batch that this attempt is given, and how many it has taken.
    _first_batches: tuple[int, ...] = ()
    _num_taken: list[int] = []
    # Whether the function counts on from where the attempt before it was, instead of from 0; None until it tells.
    _counts_on: bool | None = None

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        process_func: Callable[[RuntimeContext, list[Any]], Any] | None = None,
        background_io_thread: bool = True,
        streaming_batch_size: int = DEFAULT_BATCH_SIZE,
        secs_checkpoint_interval: int | None = None,
        parquet_row_group_size: int = DEFAULT_ROW_GROUP_SIZE,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str | None = "ZSTD",
        parquet_compression_level: int | None = 3,
        use_duckdb_reader: bool = False,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        gpu_limit: float | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, partition_infos, output_name, output_path, cpu_limit or 1, gpu_limit or 0, memory_limit
        )
        self.process_func = process_func
        self.background_io_thread = background_io_thread
        self.streaming_batch_size = streaming_batch_size
        self.secs_checkpoint_interval = (
            DEFAULT_SECS_CHECKPOINT_INTERVAL if secs_checkpoint_interval is None else secs_checkpoint_interval
        )
        self.parquet_row_group_size = parquet_row_group_size
        self.parquet_row_group_bytes = 0
        self.parquet_dictionary_encoding = parquet_dictionary_encoding
        self.parquet_compression = parquet_compression
        self.parquet_compression_level = parquet_compression_level
        self.use_duckdb_reader = use_duckdb_reader

    def clean_complex_attrs(self) -> None:
        self.process_func = None
        for name in ("_first_batches", "_num_taken", "_counts_on", "_batch_size"):
            self.__dict__.pop(name, None)
        super().clean_complex_attrs()

    @property
    def max_batch_size(self) -> int:
        """Rows a batch: what was asked for, or fewer where that many of the inputs' rows would not fit in memory."""
        facts = input_facts(self.input_datasets)
        if facts is None or not facts.num_rows:
            return self.streaming_batch_size
        fitting = self.engine_memory // 4 // self.compute_avg_row_size(facts.num_bytes, facts.num_rows)
        return max(1, min(self.streaming_batch_size, fitting))

    def process(self, runtime_ctx: RuntimeContext, input_readers: list[Any]) -> Any:
        """The work: by default what process_func returns."""
        if self.process_func is None:
            raise NotImplementedError(f"{self.key} has neither a process_func nor a process() of its own")
        return self.process_func(runtime_ctx, input_readers)

    def restore_input_state(self, runtime_state: RuntimeState, input_readers: list[pa.RecordBatchReader]) -> None:
        """Skip the batches of each input that an earlier attempt has worked in."""
        for reader, last in zip(input_readers, runtime_state.batch_indices, strict=True):
            for _ in range(last + 1):
                if next(iter(reader), None) is None:
                    break

    def run(self) -> bool:
        if any(map(is_unknown, self.input_datasets)) or self.skip_when_any_input_empty:
            self.dataset = nothing_of(self, self.input_datasets)
            return True
        self.runtime_state = self._taken_over(self.runtime_state)
        batch_size = self.runtime_state.batch_size if self.runtime_state else self.max_batch_size
        facts = input_facts(self.input_datasets)
        if facts is not None:
            self.perf_metrics["num input rows"] = facts.num_rows
        self.add_elapsed_time()
        with ExitStack() as stack:
            readers = [self._reader(stack, number, batch_size) for number, _ in enumerate(self.input_datasets)]
            self._first_batches = (0,) * len(readers)
            if self.runtime_state:
                self._first_batches = tuple(last + 1 for last in self.runtime_state.batch_indices)
                self.restore_input_state(self.runtime_state, readers)
            self._num_taken = [0] * len(readers)
            self.add_elapsed_time("input load time (secs)")
            self._batch_size = batch_size
            self.dump_output(self._outputs(readers))
        return True

    def _reader(self, stack: ExitStack, number: int, batch_size: int) -> pa.RecordBatchReader:
        """A reader of an input's batches of exactly `batch_size` rows, the last one shorter, across borders of files."""
        dataset = self.input_datasets[number]
        conn = stack.enter_context(self.connection()) if self.use_duckdb_reader else None
        reader = dataset.to_batch_reader(batch_size, conn=conn)
        batches: Iterable[pa.RecordBatch] = exact_batches(reader, batch_size)
        if self.background_io_thread and self._has_many_batches(dataset, batch_size):
            batches = unwrapped(stack.enter_context(ConcurrentIter(batches)))
        return pa.RecordBatchReader.from_batches(reader.schema, self._counted(number, batches))

    def _counted(self, number: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if self._num_taken:  # not while those are skipped that an earlier attempt has worked in
                self._num_taken[number] += 1
            yield batch

    def _has_many_batches(self, dataset: "DataSet", batch_size: int) -> bool:
        return not isinstance(dataset, ParquetDataSet) or dataset.num_rows > batch_size

    def _outputs(self, readers: list[pa.RecordBatchReader]) -> Iterator[StreamOutput]:
        """What process() gives, each checked."""
        outputs = self.process(self.ctx, readers)
        if not isinstance(outputs, Iterable):
            raise wrong_return(self, outputs, "an iterable of pyarrow.Table or StreamOutput")
        for output in outputs:
            yield self._as_output(output)

    def _as_output(self, output: Any) -> StreamOutput:
        given: StreamOutput = output if isinstance(output, StreamOutput) else StreamOutput(output)
        if not isinstance(given.output_table, (pa.Table, type(None))):
            raise wrong_return(self, given.output_table, "a pyarrow.Table")
        if given.batch_indices is None:
            return given
        return StreamOutput(given.output_table, self._numbered(given.batch_indices), given.force_checkpoint)

    def _numbered(self, indices: Sequence[int]) -> list[int]:
        """The numbers of batches since the first attempt, from those that the function gave.

        Raises:
            InvalidArgument: there is not one for each input, or one of a batch that was not taken yet: the next attempt would skip its rows.
        """
        if len(indices) != len(self._num_taken):
            raise InvalidArgument(
                f"batch_indices {list(indices)} should have one number for each of {len(self._num_taken)} inputs"
            )
        if self._counts_on is None and max(indices, default=-1) >= 0:
            # Only a function that counts on can be past what it has taken.
            self._counts_on = any(index >= taken for index, taken in zip(indices, self._num_taken, strict=True))
        if self._counts_on:
            numbered = list(indices)
        else:
            numbered = [first + index for first, index in zip(self._first_batches, indices, strict=True)]
        for number, (index, first, taken) in enumerate(
            zip(numbered, self._first_batches, self._num_taken, strict=True)
        ):
            if index >= first + taken:
                raise InvalidArgument(
                    f"batch_indices {list(indices)} say that batch {index} of input {number} was worked in, "
                    f"and only {first + taken} batches of it were read"
                )
        return numbered

    # output

    def dump_output(self, output_iter: Iterable[StreamOutput]) -> None:
        """Write the stream, checkpoint now and then, and make what was written the task's dataset."""
        writer = StreamWriter(self, self.runtime_state.files if self.runtime_state else ())
        last_checkpoint = self.clock()
        try:
            for output in output_iter:
                self.add_elapsed_time("compute time (secs)")
                if output.output_table is not None:
                    with write_errors_told():
                        writer.write(output.output_table)
                due = output.force_checkpoint or self.clock() - last_checkpoint >= self.secs_checkpoint_interval
                if due and output.batch_indices is not None:
                    self._checkpoint(writer, output.batch_indices)
                    last_checkpoint = self.clock()
                self.add_elapsed_time("output dump time (secs)")
            self.add_elapsed_time("compute time (secs)")
            with write_errors_told():
                files = writer.close()
        finally:
            end_copies()
            writer.abandon()
        self.add_elapsed_time("output dump time (secs)")
        self.perf_metrics["num output rows"] = sum(file.num_rows for file in files)
        self.dataset = written_dataset(self, files)

    def _checkpoint(self, writer: StreamWriter, batch_indices: Sequence[int]) -> None:
        kept = []
        os.makedirs(self._checkpoint_dir, exist_ok=True)
        for file in writer.end_file():
            path = os.path.join(self._checkpoint_dir, os.path.basename(file.path))
            if not os.path.exists(path):
                link_or_copy(file.path, path)
            kept.append(replace(file, path=path))
        self.runtime_state = RuntimeState(tuple(kept), tuple(batch_indices), self._batch_size)
        if self.exec_cq is not None:
            self.exec_cq.push(self)

    @property
    def _checkpoint_dir(self) -> str:
        """Beside the attempts' own scratch, so that it is still there when those are swept; it goes with the job's."""
        return os.path.join(self.ctx.temp_root, "checkpoints", str(self.id))

    def _taken_over(self, state: RuntimeState | None) -> RuntimeState | None:
        """The state with its files as files of this attempt; None, to start anew, if one of them is not what it was."""
        if state is None:
            return None
        taken = []
        for number, file in enumerate(state.files):
            if not os.path.exists(file.path) or os.path.getsize(file.path) != file.file_bytes:
                return None
            path = os.path.join(self.runtime_output_abspath, f"{self.output_filename}-{number}.parquet")
            link_or_copy(file.path, path)
            taken.append(replace(file, path=path))
        return replace(state, files=tuple(taken))


def exact_batches(batches: Iterable[pa.RecordBatch], batch_size: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `batch_size`, the last one of what is left."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, batch_size - count)
            batch = batch.slice(part.num_rows)
            held.append(part)
            count += part.num_rows
            if count == batch_size:
                yield one_batch(held)
                held, count = [], 0
    if held:
        yield one_batch(held)


def one_batch(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Several batches as one."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def unwrapped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """What a thread has read; its error is raised as the error that it was."""
    try:
        yield from batches
    except ConcurrentIterError as error:
        raise (error.__cause__ or error) from None


class ArrowBatchTask(ArrowStreamTask):
    """`process_func(runtime_ctx, [table of each input]) -> table`, for the first batch of each input, the second, and so on.

    Batches have exactly `streaming_batch_size` rows, the last ones fewer; an input that has ended gives tables without rows. A function is
    not called for inputs that have no rows at all.
    """

    @property
    def max_batch_size(self) -> int:
        """Rows a batch: exactly what was asked for."""
        return self.streaming_batch_size

    def process(self, runtime_ctx: RuntimeContext, input_tables: list[Any]) -> Any:
        """The work on one batch: by default what process_func returns."""
        return super().process(runtime_ctx, input_tables)

    def _outputs(self, readers: list[pa.RecordBatchReader]) -> Iterator[StreamOutput]:
        first = self.runtime_state.batch_indices[0] + 1 if self.runtime_state else 0
        for index, batches in enumerate(zip_longest(*readers), first):
            tables = [
                reader.schema.empty_table() if batch is None else pa.Table.from_batches([batch])
                for reader, batch in zip(readers, batches, strict=True)
            ]
            output = self._table_of(self.process(self.ctx, self._arguments(tables)))
            yield StreamOutput(output, [index] * len(readers))

    def _arguments(self, tables: list[pa.Table]) -> list[Any]:
        return tables

    def _table_of(self, output: Any) -> pa.Table | None:
        if not isinstance(output, (pa.Table, type(None))):
            raise wrong_return(self, output, "a pyarrow.Table")
        return output


class PandasBatchTask(ArrowBatchTask):
    """`process_func(runtime_ctx, [frame of each input]) -> frame`, batch by batch."""

    def process(self, runtime_ctx: RuntimeContext, input_dfs: "list[pd.DataFrame]") -> Any:
        """The work on one batch: by default what process_func returns."""
        return super().process(runtime_ctx, input_dfs)

    def _arguments(self, tables: list[pa.Table]) -> list[Any]:
        return [table.to_pandas() for table in tables]

    def _table_of(self, output: Any) -> pa.Table | None:
        return None if output is None else frame_to_table(self, output)
