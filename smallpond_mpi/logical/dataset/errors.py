"""What DuckDB and Arrow raise, in words that name the file, the line, the column or the query, as errors that callers can tell apart."""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from smallpond_mpi.common import (
    BadInput,
    CorruptInput,
    InputNotFound,
    InvalidQuery,
    OutOfMemory,
    SchemaMismatch,
    SmallpondError,
    TaskFailed,
)
from smallpond_mpi.io.arrow_types import UNION_ADVICE
from smallpond_mpi.io.memory import json_object_bytes
from smallpond_mpi.io.parquet import CORRUPT_ADVICE, translate_arrow
from smallpond_mpi.io.resolve import not_there

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset.base import DataSet

SHOWN_QUERY_CHARS = 2000

# What the libraries say (DuckDB 2.0, pyarrow 26), and what it means. A query can fail in the same words for other reasons only in theory:
# each of these sentences speaks of a file.
MEANINGS: list[tuple[re.Pattern[str], type[BadInput]]] = [
    (re.compile(r"No files found that match the pattern|Cannot open file .*No such file"), InputNotFound),
    (re.compile(r"CSV Error on Line|JSON transform error in file|Malformed JSON in file"), CorruptInput),
    (re.compile(r"schema mismatch in glob|failed to cast column .* from type"), SchemaMismatch),
    (
        re.compile(
            r"No magic bytes found|not a parquet file|Failed to read file|outside (of )?file|TProtocolException|"
            r"Invalid string encoding found in Parquet|Invalid column metadata|decompression|Corrupt \w+ compressed|[Cc]orrupt(ed)? (file|page|data)"
        ),
        CorruptInput,
    ),
]
ADVICE = {
    duckdb.ConversionException: "try_cast gives NULL where a value does not fit",
    duckdb.ParserException: "correct the query where it is marked",
}
"""What to do about a query that DuckDB refuses for a reason that does not say it."""
CSV_ADVICE = "correct the file, or what schema= and delim= say of it (varchar takes any text)"
READS_FILES = re.compile(r"CREATE OR REPLACE TEMP VIEW \w+ AS .*read_(csv|json)\(", re.DOTALL)
SHOWN_QUERY = re.compile(r"\n\s*LINE \d+: ")
MISFIT = re.compile(r"not found in FROM clause|No function matches the given name and argument types")
CSV_LINE = re.compile(r"CSV Error on Line: (\d+)\n(?:Original Line: (.*)\n)?(.*)")
CSV_FILE = re.compile(r"^\s*file = (.*)$", re.MULTILINE)
JSON_OBJECT = re.compile(r'"maximum_object_size" of (\d+) bytes exceeded')
QUOTED_PATH = re.compile(r"[\"'](/[^\"']+)[\"']")


def translate(error: Exception, query: str = "", datasets: "Sequence[DataSet]" = ()) -> SmallpondError:
    """The error to raise in place of one of DuckDB's or Arrow's, while `query` ran over `datasets`."""
    if isinstance(error, SmallpondError):
        return error
    text = str(error).strip()
    if isinstance(error, (duckdb.OutOfMemoryException, pa.ArrowMemoryError, MemoryError)):
        return OutOfMemory(text)
    too_long = JSON_OBJECT.search(text)
    if too_long is not None and int(too_long[1]) == json_object_bytes():
        return OutOfMemory(f"a JSON object is too long for the memory limit: {text}")
    if "Python exception occurred while executing the UDF" in text:
        return TaskFailed(text)
    kind = next((kind for pattern, kind in MEANINGS if pattern.search(text)), None)
    if kind is InputNotFound or isinstance(error, (duckdb.IOException, FileNotFoundError)):
        missing = _missing_file(datasets)
        if missing is not None:
            return not_there(missing)
    # what DuckDB's Parquet reader stumbles over first is a plain Error, in any words ("Out of buffer"), of no file
    if kind is CorruptInput or type(error) is duckdb.Error:
        file = _broken_file(text, datasets)
        kind = CorruptInput if kind or file else None
        text = f"can't read {file!r}: {text}" if file else text
    if kind is not None:
        return kind(_in_short(text, kind))
    if isinstance(error, duckdb.CatalogException) and "Type with name" in text and READS_FILES.match(query):
        why = " ".join(SHOWN_QUERY.split(text, maxsplit=1)[0].split())
        return InvalidQuery(f"can't read {_path_in(text, datasets)!r}: {why} Correct its schema=")
    if isinstance(error, duckdb.Error):
        text += _files_at_fault(text, datasets)
        text += next((f"\n{advice}" for of_kind, advice in ADVICE.items() if isinstance(error, of_kind)), "")
        return InvalidQuery(f"{text}\nin the query: {query[:SHOWN_QUERY_CHARS]}" if query else text)
    return translate_arrow(error, _path_in(text, datasets))


def _broken_file(text: str, datasets: "Sequence[DataSet]") -> str | None:
    """The file that can't be read, where the text does not name one."""
    if any(path in text for dataset in datasets for path in dataset.resolved_paths):
        return None
    return next((file for dataset in datasets if (file := dataset.unreadable_file())), None)


def _in_short(text: str, kind: type[BadInput]) -> str:
    """What is wrong with a file and what to do, without the query that read it.

    DuckDB's advice on CSV files is left out: here the schema is given, so that what it says of detection is wrong.
    """
    found = CSV_LINE.search(text)
    if found is None:
        text = SHOWN_QUERY.split(text, maxsplit=1)[0].rstrip(" .\n")
        return f"{text}; {CORRUPT_ADVICE}" if kind is CorruptInput else text
    line, content, reason = found.groups()
    file = CSV_FILE.search(text)
    where = f"{file.group(1)!r}, line {line}" if file else f"line {line}"
    shown = f" (the line: {content})" if content else ""
    return f"CSV file {where} does not fit the schema: {reason.rstrip('. ')}{shown}; {CSV_ADVICE}"


def _files_at_fault(text: str, datasets: "Sequence[DataSet]") -> str:
    """Which files of the user a query reads that does not fit their columns: it may fit the others of them."""
    files = [path for dataset in datasets if not dataset.recorded_file_sizes for path in dataset.resolved_paths]
    if not files or not MISFIT.search(text):
        return ""
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"\nwhat it reads: {files[0]!r}{more} (if the files of a table have different columns: {UNION_ADVICE})"


def _path_in(text: str, datasets: "Sequence[DataSet]") -> str:
    found = QUOTED_PATH.search(text)
    if found is not None:
        return found.group(1)
    return ", ".join(path for dataset in datasets for path in dataset.paths[:1])


def _missing_file(datasets: "Sequence[DataSet]") -> str | None:
    """The first file that is not there. Only asked after an error: looking at all files beforehand would cost as much as reading some."""
    for dataset in datasets:
        for path in dataset.resolved_paths:
            if "://" not in path and not os.path.exists(path):
                return path
    return None
