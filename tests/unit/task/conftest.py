"""A job and input files for tests that run a task in this process."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.logical.dataset import ParquetDataSet


@pytest.fixture
def ctx(tmp_path: Path) -> RuntimeContext:
    """A job of its own."""
    context = RuntimeContext(JobId.new(), datetime(2026, 1, 1), str(tmp_path / "root"), random_seed=7)
    context.initialize("test")
    return context


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., ParquetDataSet]:
    """Writes tables as files, one each, and gives the dataset of them."""
    count = 0

    def write(*tables: pa.Table | dict[str, Any], **options: Any) -> ParquetDataSet:
        nonlocal count
        paths = []
        for table in tables:
            count += 1
            path = tmp_path / f"in-{count}.parquet"
            pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
            paths.append(str(path))
        return ParquetDataSet(paths)

    return write
