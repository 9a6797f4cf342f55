"""Joins: which columns have to be equal, and what the columns of the result are called. Checked before anything runs, as far as columns are known."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smallpond_mpi.common import InvalidArgument, WrongType
from smallpond_mpi.execution.task.partition_key import canonical_type
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.expressions import template
from smallpond_mpi.logical.node.base import Node
from smallpond_mpi.logical.node.keyed import KeyedSqlNode, Side
from smallpond_mpi.logical.query_columns import Schema, place_of, refuse_twice
from smallpond_mpi.logical.relational import checked, there
from smallpond_mpi.logical.schema import schema_of

HOWS: Mapping[str, tuple[str, tuple[bool, bool]]] = {
    "inner": ("INNER", (True, True)),
    "left": ("LEFT", (False, True)),
    "right": ("RIGHT", (True, False)),
    "full": ("FULL", (False, False)),
    "semi": ("SEMI", (False, True)),
    "anti": ("ANTI", (False, True)),
    "cross": ("CROSS", (True, True)),
}
"""DuckDB's word for each kind of join, and which side each partition of the other may meet as a whole."""


def joined(left: Node, right: Node, on: Any, how: str, suffix: str, settings: Mapping[str, Any]) -> KeyedSqlNode:
    """Rows of two inputs with equal keys, side by side."""
    if how not in HOWS:
        raise InvalidArgument(f"how must be one of {', '.join(HOWS)}, not {how!r}")
    word, broadcast = HOWS[how]
    pairs = key_pairs(on, how)
    schemas = schema_of(left), schema_of(right)
    left_keys = there([name for name, _ in pairs], schemas[0], "the key of the join, in the left table")
    right_keys = there([name for _, name in pairs], schemas[1], "the key of the join, in the right table")
    pairs = list(zip(left_keys, right_keys, strict=True))
    _check_comparable(pairs, *schemas)
    condition = " AND ".join(f"__l.{quote_name(one)} = __r.{quote_name(other)}" for one, other in pairs)
    named = _joined_columns(left, *schemas, pairs, how, suffix)
    columns = ", ".join(named.values()) if named else template(_stars(pairs, how))
    clause = f"{word} JOIN {{1}} AS __r" + (f" ON {template(condition)}" if pairs else "")
    query = f"SELECT {columns} FROM {{0}} AS __l {clause}"
    sides = [Side(tuple(pair[index] for pair in pairs), may_be_broadcast=may) for index, may in enumerate(broadcast)]
    made = KeyedSqlNode(left.ctx, (left, right), query, sides=sides, **settings)
    made.select_list = named
    return checked(made)


def key_pairs(on: Any, how: str) -> list[tuple[str, str]]:
    """The columns that must be equal, of the left and of the right table."""
    if how == "cross":
        if on is not None:
            raise InvalidArgument("a cross join has no key: leave out on, or choose another how")
        return []
    if isinstance(on, Mapping):
        on = list(on.items())
    given = [on] if isinstance(on, str) else list(on) if isinstance(on, (list, tuple)) else None
    if given is None:
        raise WrongType(f"on must be a column, a list of columns, or a dict of left and right columns, not {on!r}")
    pairs = [(one, one) if isinstance(one, str) else tuple(one) for one in given]
    if not pairs or any(len(pair) != 2 or not all(isinstance(name, str) for name in pair) for pair in pairs):
        raise InvalidArgument(f"on must name the columns that are to be equal, not {on!r}")
    return pairs


def _kind(schema: Schema, name: str) -> Any:
    return next(kind for column, kind in schema.items() if column.lower() == name.lower())


def _check_comparable(pairs: Iterable[tuple[str, str]], left: Schema | None, right: Schema | None) -> None:
    """Refuse keys of kinds that are never equal, or equal only after a conversion that nobody asked for."""
    if left is None or right is None:
        return
    for one, other in pairs:
        kinds = _kind(left, one), _kind(right, other)
        if canonical_type(kinds[0]) != canonical_type(kinds[1]):
            raise InvalidArgument(
                f"the keys {one!r} ({kinds[0]}) and {other!r} ({kinds[1]}) are of different kinds: cast one of them before the join, such "
                f"as with_columns({one}='{one}::{kinds[1]}'){place_of()}"
            )


def _joined_columns(
    node: Node, left: Schema | None, right: Schema | None, pairs: Sequence[tuple[str, str]], how: str, suffix: str
) -> dict[str, str]:
    """What stands for each column of a join, none if they aren't known or only those of the left table.

    A key of one name is one column; columns of the right table whose name is taken get the suffix.
    """
    if how in ("semi", "anti") or left is None or right is None:
        return {}
    found: list[tuple[str, str]] = []
    lowered = {one.lower() for one, other in pairs if one.lower() == other.lower()}
    for name in left:
        found.append((_key_column(name, how) if name.lower() in lowered else f"__l.{quote_name(name)}", name))
    taken = {name.lower() for name in left}
    for name in right:
        if name.lower() in lowered:
            continue
        given = f"{name}{suffix}" if name.lower() in taken else name
        if given != name and given.lower() in taken:
            raise InvalidArgument(
                f"both tables have a column {name!r}, and there is one called {given!r} already: give the join another suffix=, or rename or "
                f"drop one of them{place_of()}"
            )
        found.append((f"__r.{quote_name(name)}", given))
    refuse_twice([name for _, name in found], node)
    return {name: template(f"{sql} AS {quote_name(name)}") for sql, name in found}


def _key_column(name: str, how: str) -> str:
    column = quote_name(name)
    if how == "full":
        return f"coalesce(__l.{column}, __r.{column})"
    return f"{'__r' if how == 'right' else '__l'}.{column}"


def _stars(pairs: Sequence[tuple[str, str]], how: str) -> str:
    """The select list where it isn't known what columns there are; of two with one name the second gets one of DuckDB's choosing."""
    if how in ("semi", "anti"):
        return "__l.*"
    shared = [one for one, other in pairs if one.lower() == other.lower()]
    if not shared:
        return "__l.*, __r.*"
    excluded = ", ".join(map(quote_name, shared))
    keys = ", ".join(f"{_key_column(name, how)} AS {quote_name(name)}" for name in shared)
    return f"{keys}, __l.* EXCLUDE ({excluded}), __r.* EXCLUDE ({excluded})"
