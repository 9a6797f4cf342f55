"""What to sort by: columns or SQL expressions with their directions, and the key that rows are compared by.

DuckDB's `create_sort_key` makes one value of all of them whose order is that of ORDER BY: a BIGINT where all columns together have fewer than
8 bytes, otherwise a BLOB that is compared byte by byte, none of which is the beginning of another. So keys of any types are placed among
split points by two small functions of arrays (key_search.py), whatever they are made of.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from smallpond_mpi.common import ColumnNotFound, InvalidArgument
from smallpond_mpi.logical.dataset.quoting import quote_name

TERM = re.compile(r"(.*\S)\s+(asc|desc)(?:\s+nulls\s+(first|last))?\s*", re.IGNORECASE | re.DOTALL)
NAME = re.compile(r"\w+")


class SortKey(NamedTuple):
    """A column, or an SQL expression, and its direction. `a desc nulls first`, where there is no such column, is meant as ORDER BY takes it."""

    by: str
    descending: bool = False
    nulls_last: bool = True

    @property
    def direction(self) -> str:
        return f"{'DESC' if self.descending else 'ASC'} NULLS {'LAST' if self.nulls_last else 'FIRST'}"

    def among(self, columns: Sequence[str]) -> "SortKey":
        """This key with the direction that its text gives, unless the text is a column.

        Raises:
            ColumnNotFound: it can only be a column's name, and there is none.
        """
        if self.by in columns:
            return self
        term = TERM.fullmatch(self.by)
        if term is not None:
            nulls_last = self.nulls_last if term[3] is None else term[3].lower() == "last"
            return SortKey(term[1], term[2].lower() == "desc", nulls_last).among(columns)
        if NAME.fullmatch(self.by) and self.by.lower() not in {name.lower() for name in columns}:
            raise ColumnNotFound(f"no column {self.by!r} to sort by; the columns: {', '.join(columns)}")
        return self

    def expression(self, columns: Sequence[str]) -> str:
        """The value in SQL."""
        return quote_name(self.by) if self.by in columns else f"({self.by})"


@dataclass(frozen=True, slots=True)
class InputKeys:
    """Keys as they are of an input with certain columns."""

    keys: list[SortKey]
    are_columns: bool
    columns: list[str]
    """The columns that the keys need: themselves, or, if there are expressions, which may be of any, all."""

    @classmethod
    def among(cls, keys: Iterable[SortKey], columns: Sequence[str]) -> "InputKeys":
        """Raises ColumnNotFound if one is not there."""
        found = [key.among(columns) for key in keys]
        are_columns = all(key.by in columns for key in found)
        return cls(found, are_columns, [key.by for key in found] if are_columns else list(columns))

    def values(self, names: Sequence[str]) -> list[str]:
        """Their values in SQL, where `columns` are called `names`."""
        return (
            [quote_name(name) for name in names] if self.are_columns else [key.expression(names) for key in self.keys]
        )

    def comparable(self, values: Iterable[str]) -> str:
        """One value in SQL that compares as `values`, one a key, in the directions of the keys."""
        arguments = [f"{value}, '{key.direction}'" for value, key in zip(values, self.keys, strict=True)]
        return f"create_sort_key({', '.join(arguments)})"

    def order_by(self, values: Iterable[str]) -> str:
        """What stands after ORDER BY."""
        return ", ".join(f"{value} {key.direction}" for value, key in zip(values, self.keys, strict=True))


def sort_keys(by: Sequence[str], descending: bool | Sequence[bool], nulls_last: bool | Sequence[bool]) -> list[SortKey]:
    """A key for each of `by`; directions are given for all or for each.

    Raises:
        InvalidArgument: there are more or fewer directions than keys, or one is no bool.
    """
    down = _for_each("descending", descending, len(by))
    last = _for_each("nulls_last", nulls_last, len(by))
    return [SortKey(*key) for key in zip(by, down, last, strict=True)]


def _for_each(name: str, given: Any, count: int) -> list[bool]:
    each = [given] * count if isinstance(given, bool) else list(given) if isinstance(given, (list, tuple)) else None
    if each is None or not all(isinstance(one, bool) for one in each):
        raise InvalidArgument(f"{name} must be a bool or a list of bools, not {given!r}")
    if len(each) != count:
        raise InvalidArgument(f"{name} has {len(each)} values for {count} columns to sort by")
    return each
