"""Names, strings and paths as DuckDB's SQL takes them, whatever characters they hold."""

import re
from collections.abc import Iterable

MAGIC = re.compile(r"([*?\[])")


def quote_name(name: str) -> str:
    """An identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_path(path: str) -> str:
    """The literal of a real file's path: DuckDB would take `*`, `?` and `[` in it for a pattern."""
    return quote_text(MAGIC.sub(r"[\1]", path))


def quote_names(names: Iterable[str] | None) -> str:
    """A select list: `*` for None."""
    return "*" if names is None else ", ".join(map(quote_name, names))


def quote_paths(paths: Iterable[str]) -> str:
    """A list of paths."""
    return "[" + ", ".join(map(quote_path, paths)) + "]"
