"""Which partition a row belongs to, as SQL: the same for keys that compare equal, whatever types they have, whoever computes it.

Values are brought to one form a kind (numbers to DOUBLE, dates to TIMESTAMP, texts to VARCHAR) and hashed together: NULL is a key like any
other, and ('a', 'bc') is not ('ab', 'c'). The hash is hashed once more because DuckDB's joins and aggregates index their tables by the first
one: in a partition where all of those agree modulo n they would degrade to lists.
"""

from collections.abc import Sequence
from typing import Any

from smallpond_mpi.logical.dataset.quoting import quote_name

NUMBERS = frozenset(
    {
        *("boolean", "tinyint", "smallint", "integer", "bigint", "hugeint", "float", "double", "decimal"),
        *("utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"),
    }
)
DATES = frozenset({"date", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns"})
TEXTS = frozenset({"varchar", "enum", "uuid"})
EXACT_DIGITS = 15
"""Decimal digits that a DOUBLE holds exactly."""


def partition_number(columns: Sequence[str], types: Sequence[Any], npartitions: int) -> str:
    """An expression of type BIGINT: the partition of a row by the values of its key columns, given with their DuckDB types."""
    keys = ", ".join(canonical(quote_name(name), kind) for name, kind in zip(columns, types, strict=True))
    return f"CAST(hash(hash({keys})) % {npartitions} AS BIGINT)"


def canonical(value: str, kind: Any) -> str:
    """An expression that has one value for all values that compare equal to `value`."""
    if kind.id == "decimal" and dict(kind.children)["precision"] > EXACT_DIGITS:
        # By its digits, so that the scale makes no difference: a division would round.
        return f"CAST(CAST({value} AS VARCHAR) AS DOUBLE)"
    if kind.id in DATES:
        # A date that no timestamp can hold equals none: it may go with NULL.
        return f"TRY_CAST({value} AS TIMESTAMP)"
    form = canonical_type(kind)
    return value if form == str(kind) else f"CAST({value} AS {form})"


def canonical_type(kind: Any) -> str:
    """The type that values are brought to, at any depth; times with a zone, blobs and the like are compared as they are."""
    if kind.id in NUMBERS:
        return "DOUBLE"
    if kind.id in DATES:
        return "TIMESTAMP"
    if kind.id in TEXTS:
        return "VARCHAR"
    if kind.id in ("list", "array"):
        return f"{canonical_type(dict(kind.children)['child'])}[]"
    if kind.id == "map":
        parts = dict(kind.children)
        return f"MAP({canonical_type(parts['key'])}, {canonical_type(parts['value'])})"
    if kind.id == "struct":
        return f"STRUCT({', '.join(f'{quote_name(name)} {canonical_type(part)}' for name, part in kind.children)})"
    return str(kind)
