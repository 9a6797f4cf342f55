"""The schema of CSV and JSON files, found by DuckDB where the user gives none: from the first rows of some of the files."""

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

import duckdb

from smallpond_mpi.common import CorruptInput, InputNotFound
from smallpond_mpi.io.resolve import resolve
from smallpond_mpi.logical.dataset.base import connect
from smallpond_mpi.logical.dataset.errors import translate
from smallpond_mpi.logical.dataset.quoting import quote_path, quote_paths, quote_text
from smallpond_mpi.logical.dataset.text import USUAL, Dialect

MAX_FILES = 16
"""Files that are looked into."""
LAYOUTS = ("newline_delimited", "array", "unstructured")
NOTHING_FOUND = "(empty)"
"""What `sniff_csv` says of a quote, escape or comment that it did not see."""
NO_OBJECTS = "json"
"""What DuckDB calls the one column of values that are no objects."""
ISO_FORMATS = (None, "", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S.%f")


@dataclass(frozen=True, slots=True)
class Found:
    """DuckDB type of each column, in order; for CSV whether the first line names them, and how values are written, for JSON how the objects are laid out."""

    schema: dict[str, str]
    header: bool = False
    format: str = ""
    dialect: Dialect = USUAL


def csv_schema(paths: Sequence[str], delim: str, header: bool | None) -> Found:
    """What CSV files hold, all of them written as the first is. Dates that are not written as in ISO 8601 are taken for text.

    Raises:
        InputNotFound: there is no file. CorruptInput: no columns can be found in it.
    """
    files = _files(paths)
    given = f"delim = {quote_text(delim)}" + ("" if header is None else f", header = {str(header).lower()}")
    query = f"SELECT HasHeader, Quote, Escape, Comment, SkipRows, DateFormat, TimestampFormat FROM sniff_csv({quote_path(files[0])}, {given})"
    with closing(connect(1)) as conn:
        ((has_header, quote, escape, comment, skip, *formats),) = _rows(conn, query, files[0])
        quote, escape, comment = ("" if text == NOTHING_FOUND else str(text) for text in (quote, escape, comment))
        dialect = Dialect(quote, escape, comment, int(str(skip)))
        options = f"delim = {quote_text(delim)}, header = {str(bool(has_header)).lower()}, hive_partitioning = false"
        dialect, columns = _csv_columns(conn, files, options, dialect)
    is_iso = dict(zip(("DATE", "TIMESTAMP"), (one in ISO_FORMATS for one in formats), strict=True))
    schema = {name: str(kind) if is_iso.get(str(kind), True) else "VARCHAR" for name, kind, *_ in columns}
    return Found({str(name): kind for name, kind in schema.items()}, bool(has_header), dialect=dialect)


def _csv_columns(
    conn: duckdb.DuckDBPyConnection, files: Sequence[str], options: str, dialect: Dialect
) -> tuple[Dialect, list[tuple[object, ...]]]:
    """The columns, and the dialect in which there are any: without quotes only if those that are usual can't be."""

    def read_as(one: Dialect) -> tuple[Dialect, list[tuple[object, ...]]]:
        reader = f"read_csv({quote_paths(files)}, {', '.join([options, *one.options()])})"
        return one, _rows(conn, f"DESCRIBE SELECT * FROM {reader}", files[0])

    quote = dialect.quote or USUAL.quote
    try:
        return read_as(dialect._replace(quote=quote, escape=dialect.escape or quote))
    except CorruptInput:
        if dialect.quote:
            raise
        return read_as(dialect)


def json_schema(paths: Sequence[str]) -> Found:
    """What files of JSON objects hold: one a line, or in an array, or one after the other.

    Raises:
        InputNotFound: there is no file. CorruptInput: no columns can be found in it.
    """
    files = _files(paths)
    first, *others = LAYOUTS
    try:
        found = _json_columns(files, first)
    except CorruptInput:
        return _json_of_layouts(files, others) or _json_columns(files, first)
    has_objects = list(found.schema) != [NO_OBJECTS]
    return found if has_objects else _json_of_layouts(files, others) or found


def _json_of_layouts(files: Sequence[str], layouts: Sequence[str]) -> Found | None:
    """What the files hold in the first layout in which they hold objects."""
    for layout in layouts:
        with suppress(CorruptInput):
            found = _json_columns(files, layout)
            if list(found.schema) != [NO_OBJECTS]:
                return found
    return None


def _json_columns(files: Sequence[str], layout: str) -> Found:
    with closing(connect(1)) as conn:
        options = f"format = {quote_text(layout)}, hive_partitioning = false"
        columns = _rows(conn, f"DESCRIBE SELECT * FROM read_json({quote_paths(files)}, {options})", files[0])
    return Found({str(name): str(kind) for name, kind, *_ in columns}, format=layout)


def _files(paths: Sequence[str]) -> list[str]:
    files = resolve(list(paths), False)[:MAX_FILES]
    if not files:
        raise InputNotFound(f"no file to find the columns in: {', '.join(paths)}; give a schema if that is right")
    return files


def _rows(conn: duckdb.DuckDBPyConnection, query: str, path: str) -> list[tuple[object, ...]]:
    try:
        rows: list[tuple[object, ...]] = conn.execute(query).fetchall()
    except duckdb.IOException as error:
        raise translate(error, query) from error
    except duckdb.Error as error:
        raise CorruptInput(f"no columns can be found in {path!r}: {error}; say what they are by schema=") from error
    return rows
