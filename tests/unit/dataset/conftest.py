import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a table (or columns) as a Parquet file below the test's directory and returns its path."""

    def write_file(name: str, table: pa.Table | dict[str, list[object]], **options: object) -> str:
        path = str(tmp_path / name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
        return path

    return write_file
