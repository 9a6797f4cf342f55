"""Columns that the directories of files name, as Hive, Spark and `write_parquet(partition_by=)` lay them out: `day=2024-01-01/part-0.parquet`."""

import os
from collections.abc import Sequence
from contextlib import closing
from urllib.parse import unquote

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.logical.dataset.base import connect
from smallpond_mpi.logical.dataset.quoting import quote_name, quote_text

NULL = "__HIVE_DEFAULT_PARTITION__"
KINDS = ("BIGINT", "DATE", "TIMESTAMP")
"""What a column is taken for if all its values are written so; anything else is text."""


def hive_select_list(files: Sequence[str]) -> str:
    """What stands after SELECT to have the columns of the files' directories, where `filename` says which file a row is from.

    Raises:
        InvalidArgument: the files are in no such directories, or not all in ones of the same columns.
    """
    values = [_values(file) for file in files]
    names = list(values[0]) if values else []
    for file, given in zip(files, values, strict=True):
        if list(given) != names or not names:
            raise InvalidArgument(
                f"hive_partitioning: {file!r} is in no directories {'/'.join(f'{name}=...' for name in names) or 'name=value'}"
            )
    columns = [_column(name, sorted({given[name] for given in values})) for name in names]
    return ", ".join(["* EXCLUDE (filename)", *columns])


def _values(file: str) -> dict[str, str]:
    """The columns that the directories of a file name, outermost first."""
    directories = os.path.dirname(file).split("/")
    pairs = (directory.split("=", 1) for directory in directories if "=" in directory)
    return {unquote(name): unquote(value) for name, value in pairs}


def _column(name: str, values: Sequence[str]) -> str:
    directory = f"(?:^|/){_escaped(name)}=([^/]*)/"
    text = f"url_decode(regexp_extract(filename, {quote_text(directory)}, 1))"
    return (
        f"CAST(nullif({text}, '{NULL}') AS {_kind([value for value in values if value != NULL])}) AS {quote_name(name)}"
    )


def _escaped(name: str) -> str:
    """A regular expression of a name as it stands in a path, where any of its characters may be encoded."""
    return "".join(char if char.isalnum() and char.isascii() else _either(char) for char in name)


def _either(char: str) -> str:
    encoded = "".join(f"%{byte:02X}" for byte in char.encode())
    return f"(?:\\Q{char}\\E|(?i:{encoded}))"


def _kind(values: Sequence[str]) -> str:
    if values:
        with closing(connect(1)) as conn:
            for kind in KINDS:
                # Back to the text it was: of 007 or 1e3 something would be lost.
                query = f"SELECT bool_and(coalesce(CAST(TRY_CAST(v AS {kind}) AS VARCHAR) = v, false)) FROM (SELECT unnest(?) AS v)"
                ((fits,),) = conn.execute(query, [list(values)]).fetchall()
                if fits:
                    return kind
    return "VARCHAR"
