"""What DuckDB and Arrow raise, in words that name the file, the line, the column or the query, as errors that callers can tell apart."""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from smallpond_mpi.common import (
    CorruptInput,
    InputNotFound,
    InvalidQuery,
    OutOfMemory,
    SchemaMismatch,
    SmallpondError,
)
from smallpond_mpi.io.parquet import translate_arrow

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset.base import DataSet

SHOWN_QUERY_CHARS = 2000

QUOTED_PATH = re.compile(r"[\"'](/[^\"']+)[\"']")


def translate(error: Exception, query: str = "", datasets: "Sequence[DataSet]" = ()) -> SmallpondError:
    """The error to raise in place of one of DuckDB's or Arrow's, while `query` ran over `datasets`."""
    if isinstance(error, SmallpondError):
        return error
    text = str(error).strip()
    if isinstance(error, (duckdb.OutOfMemoryException, pa.ArrowMemoryError, MemoryError)):
        return OutOfMemory(text)
    if not isinstance(error, duckdb.Error):
        return translate_arrow(
            error, _path_in(text) or (datasets[0].paths[0] if datasets and datasets[0].paths else "")
        )
    missing = _missing_file(datasets) if isinstance(error, (duckdb.IOException, duckdb.InvalidInputException)) else None
    if missing is not None:
        return InputNotFound(f"input file {missing!r} does not exist")
    if isinstance(error, duckdb.IOException) and "No files found" in text:
        return InputNotFound(text)
    if "CSV Error" in text or "Malformed JSON" in text or "Malformed CSV" in text:
        return CorruptInput(text)
    if re.search(r"[Ss]chema mismatch|does not have the same schema|has different (number|schema)", text):
        return SchemaMismatch(text)
    if re.search(r"magic bytes|footer|not a parquet|TProtocol|[Pp]arquet file|Snappy|ZSTD|decompress", text):
        return CorruptInput(text)
    return InvalidQuery(f"{text}\nin the query: {query[:SHOWN_QUERY_CHARS]}" if query else text)


def _path_in(text: str) -> str | None:
    found = QUOTED_PATH.search(text)
    return found.group(1) if found else None


def _missing_file(datasets: "Sequence[DataSet]") -> str | None:
    """The first file that is not there. Only asked after an error: looking at all files beforehand would cost as much as reading some."""
    for dataset in datasets:
        for path in dataset.resolved_paths:
            if "://" not in path and not os.path.exists(path):
                return path
    return None
