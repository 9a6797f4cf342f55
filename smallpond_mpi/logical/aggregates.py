"""Aggregates in two steps: what each part of the rows comes to, and what these come to together.

Where every aggregate of a group_by can be taken so, parts are summed up before the shuffle and only the sums move.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smallpond_mpi.common import InvalidQuery
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.expressions import (
    Expression,
    Tree,
    aggregates_in,
    function_of,
    labelled,
    parse_all,
    parts,
    template,
    texts_of,
)
from smallpond_mpi.logical.query_columns import Schema, bound_query

PART = "__part"
"""What the names of columns with sums of parts begin with."""

SAME = frozenset(
    {"min", "max", "sum", "any_value", "arbitrary", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor", "product"}
)
COUNTS = frozenset({"count", "count_star", "count_if", "countif"})
MEANS = frozenset({"avg", "mean"})
OF_SAMPLE = "CASE WHEN c.n > 1 THEN {} END"
VARIANCES: Mapping[str, str] = {
    "var_pop": "c.s / c.n",
    "stddev_pop": "sqrt(c.s / c.n)",
    "var_samp": OF_SAMPLE.format("c.s / (c.n - 1)"),
    "variance": OF_SAMPLE.format("c.s / (c.n - 1)"),
    "stddev_samp": OF_SAMPLE.format("sqrt(c.s / (c.n - 1))"),
    "stddev": OF_SAMPLE.format("sqrt(c.s / (c.n - 1))"),
}
# Chan, Golub, LeVeque: mean and sum of squared deviations of two parts together, without the cancellation of sums of squares.
COMBINED = (
    "list_reduce(list({{'n': {n}, 'm': {m}, 's': {s}}}) FILTER (WHERE {n} > 0), lambda a, b: "
    "{{'n': a.n + b.n, 'm': a.m + (b.m - a.m) * b.n / (a.n + b.n), "
    "'s': a.s + b.s + (b.m - a.m) * (b.m - a.m) * a.n * b.n / (a.n + b.n)}})"
)


@dataclass(frozen=True, slots=True)
class TwoSteps:
    """Select lists: of each part, and over all parts' rows."""

    of_part: list[str]
    of_all: list[Expression]


class CannotSplit(Exception):
    """An aggregate needs all rows of a group at once."""


def in_two_steps(aggregates: Sequence[Expression], schema: Schema) -> TwoSteps | None:
    """The expressions over rows of these columns, taken in two steps; None if one of them can't be."""
    calls = [call for one in aggregates for call in aggregates_in(one.tree)]
    try:
        steps = _Steps(calls, schema)
        over_parts = parse_all([steps.of_call(call) for call in calls])
    except CannotSplit:
        return None
    replacing = {id(call): tree for call, tree in zip(calls, over_parts, strict=True)}
    return TwoSteps(steps.of_part, labelled([(one.name, _replaced(one.tree, replacing)) for one in aggregates]))


def _replaced(part: Any, replacing: Mapping[int, Tree]) -> Any:
    """A part of a tree with other trees in place of some in it, which are told by their identity."""
    if isinstance(part, dict):
        if id(part) in replacing:
            return replacing[id(part)]
        return {name: _replaced(value, replacing) for name, value in part.items()}
    return [_replaced(value, replacing) for value in part] if isinstance(part, list) else part


class _Steps:
    """Collects what is to be computed of each part.

    Raises:
        CannotSplit: one of the calls can't be taken in two steps.
    """

    def __init__(self, calls: Sequence[Tree], schema: Schema) -> None:
        self.of_part: list[str] = []
        self._names: dict[str, str] = {}
        self._whole = dict(zip(map(id, calls), texts_of([{**call, "alias": ""} for call in calls]), strict=True))
        self._parts = dict(zip(map(id, calls), _parts_of(calls), strict=True))
        texts = {*self._whole.values(), *(text for made in self._parts.values() for text in made)}
        self._types = _types_of(sorted(texts), calls, schema)

    def of_call(self, call: Tree) -> str:
        """An aggregate, as one over the parts. Its type stays what it was."""
        name, kind = function_of(call) or "", str(self._types[self._whole[id(call)]])
        texts = self._parts[id(call)]
        if name in SAME and kind not in ("BIGNUM", "BIT"):
            made = f"{name}({self._part(texts[0])})"
        elif name in COUNTS:
            made = f"coalesce(sum({self._part(texts[0])}), 0)"
        elif name in MEANS and kind == "DOUBLE":
            total, count = map(self._part, texts)
            made = f"CAST(sum({total}) AS DOUBLE) / nullif(CAST(sum({count}) AS DOUBLE), 0)"
        elif name in VARIANCES:
            n, m, s = map(self._part, texts)
            # Written once, as the list's only element: binding it takes long.
            made = f"list_transform([{COMBINED.format(n=n, m=m, s=s)}], lambda c: {VARIANCES[name]})[1]"
        else:
            raise CannotSplit
        return f"CAST({made} AS {kind})"

    def _part(self, sql: str) -> str:
        """What an expression was of each part, which a column holds."""
        if sql not in self._names:
            name = f"{PART}{len(self._names)}"
            self._names[sql] = quote_name(name)
            kind = self._types[sql]
            # Parquet has no integer of 128 bits.
            kept = f"CAST({sql} AS DECIMAL(38, 0))" if kind.id in ("hugeint", "uhugeint") else sql
            if kind.id == "interval":  # nor exact intervals
                kept = f"CAST({sql} AS VARCHAR)"
                self._names[sql] = f"CAST({name} AS INTERVAL)"
            self.of_part.append(f"{kept} AS {quote_name(name)}")
        return self._names[sql]


def _parts_of(calls: Sequence[Tree]) -> list[list[str]]:
    """What is to be known of each part for each call."""
    needed = [(call, name) for call in calls for name in _functions_of_part(call)]
    texts = iter(texts_of([_renamed(call, name) for call, name in needed]))
    return [_as_parts(function_of(call) or "", [next(texts) for _ in _functions_of_part(call)]) for call in calls]


def _functions_of_part(call: Tree) -> Sequence[str]:
    name = function_of(call) or ""
    if call["order_bys"]["orders"] or (call["distinct"] and name not in ("min", "max")):
        raise CannotSplit
    if len(call["arguments"]) != (0 if name == "count_star" else 1):
        raise CannotSplit
    if name in MEANS:
        return ("sum", "count")
    return ("count", "avg", "var_pop") if name in VARIANCES else (name,)


def _as_parts(name: str, texts: Sequence[str]) -> list[str]:
    if name not in VARIANCES:
        return list(texts)
    count, mean, variance = texts
    return [f"CAST({count} AS DOUBLE)", mean, f"{variance} * {count}"]


def _types_of(texts: Sequence[str], calls: Sequence[Tree], schema: Schema) -> dict[str, Any]:
    """The type of each expression. All are bound at once, over the columns that are named: each by itself, or over thousands of other
    columns, takes a hundred times as long."""
    used = {name.lower() for call in calls for part in parts(call) for name in part.get("column_names", ())}
    has_star = any(part["class"] == "STAR" for call in calls for part in parts(call))
    narrow = {name: kind for name, kind in schema.items() if has_star or name.lower() in used}
    select_list = ", ".join(f"{text} AS {quote_name(f'x{number}')}" for number, text in enumerate(texts))
    try:
        found = bound_query(f"SELECT {template(select_list)} FROM {{0}}", [narrow or schema]) if texts else {}
    except InvalidQuery as error:  # avg has a date, sum has none
        raise CannotSplit from error
    if found is None or len(found) != len(texts):
        raise CannotSplit
    return dict(zip(texts, found.values(), strict=True))


def _renamed(call: Tree, name: str) -> Tree:
    """The same call of another function."""
    if name == function_of(call):
        return {**call, "alias": ""}
    return {**call, "alias": "", "function_name": name, "qualified_name": {"path": [name]}}
