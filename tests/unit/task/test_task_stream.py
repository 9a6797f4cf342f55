"""Stream and batch tasks: aligned batches, checked outputs, checkpoints that the next attempt goes on from."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from smallpond_mpi.common import CorruptInput, SchemaMismatch, WrongReturnType
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.task import ArrowBatchTask, ArrowStreamTask, PandasBatchTask, StreamOutput
from smallpond_mpi.execution.workqueue import WorkQueueInMemory
from smallpond_mpi.logical.dataset import ParquetDataSet
from tests.unit.task.task_builders import TOP, attempt, given, rows, run, values


def batches(ctx: Any, func: Any, *datasets: Any, kind: type = ArrowBatchTask, **options: Any) -> Any:
    return kind(ctx, given(ctx, *datasets), TOP, func, **options)


@pytest.mark.parametrize("options", [{}, {"background_io_thread": False}, {"use_duckdb_reader": True}])
def test_batches_are_of_exactly_that_many_rows_across_files(ctx, parquet, options: dict[str, Any]) -> None:
    dataset = parquet({"a": list(range(7))}, {"a": list(range(7, 8))}, {"a": list(range(8, 25))})
    task = batches(
        ctx,
        lambda _, tables: tables[0].append_column("n", pa.array([tables[0].num_rows] * tables[0].num_rows)),
        dataset,
        streaming_batch_size=10,
        **options,
    )
    output = run(task)
    assert values(output, "a") == list(range(25))
    assert values(output, "n") == [10] * 20 + [5] * 5
    assert task.perf_metrics["num input rows"] == task.perf_metrics["num output rows"] == 25


def test_batches_of_several_inputs_are_aligned(ctx, parquet) -> None:
    left, right = parquet({"a": [1, 2, 3, 4, 5]}), parquet({"b": [10, 20, 30]})
    func = lambda _, tables: pa.table({"n": [[table.num_rows for table in tables]]})  # noqa: E731
    assert values(run(batches(ctx, func, left, right, streaming_batch_size=2)), "n") == [[2, 2], [2, 1], [1, 0]]


def test_inputs_without_rows_call_nothing(ctx, parquet) -> None:
    def never(_: Any, tables: Any) -> Any:
        raise AssertionError(tables)

    assert run(batches(ctx, never, parquet({"a": pa.array([], pa.int64())}))).empty
    assert run(batches(ctx, never, ParquetDataSet([]))).empty


def test_no_output_is_a_dataset_and_no_rows_keep_the_schema(ctx, parquet) -> None:
    assert run(batches(ctx, lambda _, tables: None, parquet({"a": [1]}))).empty
    output = run(batches(ctx, lambda _, tables: tables[0].slice(0, 0), parquet({"a": [1, 2]}), streaming_batch_size=1))
    assert output.num_rows == 0
    assert output.to_arrow_table().schema.names == ["a"]


def test_another_schema_in_one_batch_shows_both(ctx, parquet) -> None:
    def func(_: Any, tables: Any) -> Any:
        return pa.table({"x": [1]}) if tables[0]["a"][0].as_py() < 2 else pa.table({"x": ["one"]})

    task = batches(ctx, func, parquet({"a": [0, 1, 2]}), streaming_batch_size=1)
    assert attempt(task) is WorkStatus.CRASHED
    assert isinstance(task.exception, SchemaMismatch)
    assert "x: string" in str(task.exception)
    assert "x: int64" in str(task.exception)


def test_wrong_type_names_the_function_and_what_it_returned(ctx, parquet) -> None:
    def my_function(_: Any, tables: Any) -> Any:
        return {"a": 1}

    for kind in (ArrowBatchTask, PandasBatchTask, ArrowStreamTask):
        task = batches(ctx, my_function, parquet({"a": [1]}), kind=kind)
        attempt(task)
        assert isinstance(task.exception, WrongReturnType), kind
        assert "my_function" in str(task.exception)
    not_iterable = batches(ctx, lambda _, readers: 5, parquet({"a": [1]}), kind=ArrowStreamTask)
    attempt(not_iterable)
    assert "iterable" in str(not_iterable.exception)


def test_pandas_batches(ctx, parquet) -> None:
    def double(_: Any, frames: list[pd.DataFrame]) -> pd.DataFrame:
        return frames[0].assign(b=frames[0].a * 2)

    task = batches(ctx, double, parquet({"a": [1, 2, 3]}), kind=PandasBatchTask, streaming_batch_size=2)
    assert rows(run(task)) == [(1, 2), (2, 4), (3, 6)]


def test_stream_of_tables(ctx, parquet) -> None:
    def sums(_: Any, readers: list[pa.RecordBatchReader]) -> Iterator[pa.Table]:
        for batch in readers[0]:
            yield pa.table({"sum": [sum(batch.column("a").to_pylist())]})

    task = batches(ctx, sums, parquet({"a": list(range(10))}), kind=ArrowStreamTask, streaming_batch_size=4)
    assert values(run(task), "sum") == [6, 22, 17]


def test_an_error_of_reading_is_what_it_is(ctx, parquet, tmp_path) -> None:
    dataset = parquet({"a": list(range(100_000))}, row_group_size=1000, compression="none")
    (path,) = dataset.resolved_paths
    assert dataset.num_rows == 100_000
    with open(path, "r+b") as file:
        file.seek(200_000)
        file.write(b"\xff" * 300_000)
    task = batches(ctx, lambda _, tables: tables[0], dataset, streaming_batch_size=1000)
    attempt(task)
    assert isinstance(task.exception, CorruptInput)
    assert path in str(task.exception)


class Interrupted(Exception):
    """What ends an attempt in these tests."""


def interrupted_at(stop: int, seen: list[int]) -> Any:
    def func(_: Any, tables: list[pa.Table]) -> pa.Table:
        first = tables[0]["a"][0].as_py()
        if first == stop:
            raise Interrupted
        seen.append(first)
        return tables[0]

    return func


def test_the_next_attempt_goes_on_from_the_last_checkpoint(ctx, parquet) -> None:
    dataset = parquet({"a": list(range(10))})
    seen: list[int] = []
    task = batches(ctx, interrupted_at(6, seen), dataset, streaming_batch_size=2, secs_checkpoint_interval=0)
    checkpoints = WorkQueueInMemory()
    task.input_datasets = [dataset]
    assert task.exec(checkpoints) is WorkStatus.CRASHED
    assert seen == [0, 2, 4]
    pushed = checkpoints.pop(100)
    assert [item.runtime_state.batch_indices for item in pushed] == [(0,), (1,), (2,)]

    task.clean_output(force=True)  # as the scheduler sweeps what a failed attempt has left
    again = batches(ctx, interrupted_at(-1, seen), dataset, streaming_batch_size=5, secs_checkpoint_interval=0)
    again.id, again.retry_count, again.runtime_state = task.id, 1, pushed[-1].runtime_state
    output = run(again)
    assert seen == [0, 2, 4, 6, 8], "batches of the first attempt's size, none of them twice"
    assert values(output, "a") == list(range(10))
    assert all(path.startswith(again.final_output_abspath) for path in output.resolved_paths)


def test_a_checkpoint_whose_files_are_gone_is_no_checkpoint(ctx, parquet) -> None:
    dataset = parquet({"a": list(range(10))})
    seen: list[int] = []
    task = batches(ctx, interrupted_at(6, seen), dataset, streaming_batch_size=2, secs_checkpoint_interval=0)
    task.input_datasets = [dataset]
    task.exec(WorkQueueInMemory())
    state = task.runtime_state
    with open(state.files[1].path, "wb"):
        pass
    again = batches(ctx, interrupted_at(-1, seen), dataset, streaming_batch_size=2)
    again.id, again.retry_count, again.runtime_state = task.id, 1, state
    assert values(run(again), "a") == list(range(10))
    assert seen == [0, 2, 4, 0, 2, 4, 6, 8]


def test_checkpoints_come_when_they_are_due_or_forced(ctx, parquet) -> None:
    now = [0.0]

    def func(_: Any, readers: list[pa.RecordBatchReader]) -> Iterator[StreamOutput]:
        for index, batch in enumerate(readers[0]):
            now[0] += 60
            yield StreamOutput(pa.Table.from_batches([batch]), [index], force_checkpoint=index == 4)
        yield StreamOutput(None)

    dataset = parquet({"a": list(range(8))})
    task = batches(ctx, func, dataset, kind=ArrowStreamTask, streaming_batch_size=1)
    task.clock = lambda: now[0]
    checkpoints = WorkQueueInMemory()
    task.input_datasets = [dataset]
    assert task.exec(checkpoints) is WorkStatus.SUCCEED
    assert [item.runtime_state.batch_indices for item in checkpoints.pop(100)] == [(2,), (4,), (7,)]
    assert values(task.output, "a") == list(range(8))
