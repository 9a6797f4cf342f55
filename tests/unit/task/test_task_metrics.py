"""How many bytes a task read, as far as it knows without looking."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.metrics import known_bytes
from smallpond_mpi.execution.task.sql import SqlEngineTask
from smallpond_mpi.logical.dataset import CsvDataSet, DataSet, ParquetDataSet
from tests.unit.task.task_builders import TOP, given, run

Write = Callable[..., ParquetDataSet]


def size_of(dataset: DataSet) -> int:
    return sum(os.path.getsize(path) for path in dataset.resolved_paths)


def test_a_task_tells_the_bytes_of_the_files_that_it_read(ctx: RuntimeContext, parquet: Write) -> None:
    dataset = parquet({"a": list(range(1000))}, {"a": list(range(500))})
    task = SqlEngineTask(ctx, given(ctx, dataset), TOP, "select * from {0} where a < 10")
    run(task)
    assert task.perf_metrics["num input bytes"] == size_of(dataset)


def test_rows_of_a_file_count_in_proportion(parquet: Write) -> None:
    dataset = parquet({"a": list(range(1000))})
    parts = dataset.partition_by_rows(4)
    assert [known_bytes(part) for part in parts] == [size_of(dataset) // 4] * 4


def test_nothing_is_opened_or_listed_to_find_out(tmp_path: Path, parquet: Write) -> None:
    dataset = parquet({"a": [1]})
    assert known_bytes(ParquetDataSet(dataset.paths)) == 0
    assert known_bytes(ParquetDataSet([str(tmp_path / "nothing-*.parquet")])) == 0
    assert known_bytes(CsvDataSet([str(tmp_path / "nothing-*.csv")], {"a": "int"})) == 0


def test_a_file_that_has_gone_since_counts_nothing(parquet: Write) -> None:
    dataset = parquet({"a": [1, 2]})
    assert dataset.num_rows == 2
    assert known_bytes(dataset) == size_of(dataset)
    os.unlink(dataset.paths[0])
    assert known_bytes(dataset) == 0


@pytest.mark.parametrize("pattern", ["*.csv", "a.csv"])
def test_text_files_count_whole_once_they_were_looked_at(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.csv").write_text("1\n2\n")
    dataset = CsvDataSet([str(tmp_path / pattern)], {"a": "int"})
    assert dataset.num_rows == 2
    assert known_bytes(dataset) == 4
