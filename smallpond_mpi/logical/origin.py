"""Where in the user's script what is wrong was asked for, if that is another line than the one whose task failed.

A query that does the steps of several lines knows them (`Place`); which of them failed, DuckDB's mark in the text tells if it can. Data that
are bad were read by some line: the one whose files the error names. All of this is looked for when there is an error, and costs nothing before.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

MARKED = re.compile(r"^(LINE \d+: )(.*)\n(\s*)(\^+)", re.MULTILINE)
"""How DuckDB shows a part of a query: the line, cut with dots where it is long, and carets below."""
DIFFERING = re.compile(
    r"schemas of '/.+?' and '/.+?' differ: (.*?)(?: \(union_by_name.*\)|; read what .*)?$", re.MULTILINE
)
"""What is said of two files that don't fit together, with advice that is for files of the user's."""
QUOTED = re.compile(r"(?=['\"]([^'\"\n]+)['\"])")
"""Whatever stands between two quotes: an apostrophe in a sentence must not shift them."""
Step = tuple[str, str]
"""A line of the script, and the query that it gave."""


class Place(str):
    """`file:line` of a node whose query does the steps of other lines too, theirs first. Travels as the plain text that it is."""

    steps: tuple[Step, ...]

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def place_of_both(outer: str, outer_query: str, inner: str, inner_query: str) -> str:
    """The place of `outer` once its query does what `inner` asked for, too."""
    steps = (*_steps(inner, inner_query), *_steps(outer, outer_query))
    if len({line for line, _ in steps}) == 1:
        return outer
    place = Place(outer)
    place.steps = steps
    return place


def _steps(place: str, query: str) -> tuple[Step, ...]:
    return place.steps if isinstance(place, Place) else ((place, query),)


def asked_at(place: str | None, error: str) -> str:
    """A sentence on the lines that one query comes from: the one at fault, if the error shows it. Empty where `place` says it all."""
    if not isinstance(place, Place):
        return ""
    marked = _marked(error)
    lines = [line for line, query in place.steps if marked and marked in query] or [line for line, _ in place.steps]
    lines = list(dict.fromkeys(lines))
    if len(lines) == 1:
        return "" if lines[0] == place else f"what failed was asked for at {lines[0]}"
    return f"one query did what was asked for at {', '.join(lines[:-1])} and {lines[-1]}"


def _marked(error: str) -> str:
    """The part of the query that DuckDB marked."""
    found = MARKED.search(error)
    if found is None:
        return ""
    begin = len(found[3]) - len(found[1])
    end = begin + len(found[4]) if len(found[4]) > 1 else None  # one caret only says where it begins
    return found[2][max(0, begin) : end].removesuffix("...").strip()


def read_at(error: str, sources: "Iterable[tuple[str | None, DataSet]]", all_if_unnamed: bool = False) -> list[str]:
    """The lines that read the files which an error names. Of an error that names no file, no lines, or with `all_if_unnamed` those of all sources."""
    named = {name for name in QUOTED.findall(error) if "/" in name}
    return list(
        dict.fromkeys(
            line
            for line, dataset in sources
            if line is not None and (any(path in named for path in dataset.resolved_paths) if named else all_if_unnamed)
        )
    )


def read_text(lines: list[str], known: str | None) -> str:
    """A sentence on where data are read; empty if the error says that already."""
    others = [line for line in lines if line != known]
    return f"the data are read at {' and '.join(others)}" if others else ""


def of_partitions(error: str) -> str:
    """What is said of two files that don't fit together, as it is to be said of those that the job itself wrote."""
    return DIFFERING.sub(
        r"the columns of two partitions differ: \1; make all partitions with the same columns and types", error
    )
