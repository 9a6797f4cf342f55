"""Aggregates in two steps: what each part of the rows comes to, and what these come to together.

Where every aggregate of a group_by can be taken so, parts are summed up before the shuffle and only the sums move.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.expressions import Expression, Tree, aggregates_in, function_of, parse, sql_of, template
from smallpond_mpi.logical.schema import Schema, bound_query

PART = "__part"
"""What the names of columns with sums of parts begin with."""

SAME = frozenset(
    {"min", "max", "sum", "any_value", "arbitrary", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor", "product"}
)
COUNTS = frozenset({"count", "count_star", "count_if", "countif"})
MEANS = frozenset({"avg", "mean"})
VARIANCES: Mapping[str, str] = {
    "var_pop": "{s} / {n}",
    "stddev_pop": "sqrt({s} / {n})",
    "var_samp": "CASE WHEN {n} > 1 THEN {s} / ({n} - 1) END",
    "variance": "CASE WHEN {n} > 1 THEN {s} / ({n} - 1) END",
    "stddev_samp": "CASE WHEN {n} > 1 THEN sqrt({s} / ({n} - 1)) END",
    "stddev": "CASE WHEN {n} > 1 THEN sqrt({s} / ({n} - 1)) END",
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
    steps = _Steps(schema)
    try:
        of_all = [Expression(steps.over_parts(one.tree), one.name) for one in aggregates]
    except CannotSplit:
        return None
    return TwoSteps(steps.of_part, of_all)


class _Steps:
    """Collects what is to be computed of each part."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.of_part: list[str] = []
        self._names: dict[str, str] = {}

    def over_parts(self, tree: Tree) -> Tree:
        """An expression with each aggregate in it replaced by one over the parts."""
        calls = {id(call): call for call in aggregates_in(tree)}

        def replaced(part: Any) -> Any:
            if isinstance(part, dict):
                if id(part) in calls:
                    return parse(self._of_call(part))[0].tree
                return {name: replaced(value) for name, value in part.items()}
            return list(map(replaced, part)) if isinstance(part, list) else part

        made: Tree = replaced(tree)
        return made

    def _of_call(self, call: Tree) -> str:
        """An aggregate, as one over the parts. Its type stays what it was."""
        name = function_of(call) or ""
        call = {**call, "alias": ""}
        if call["order_bys"]["orders"] or (call["distinct"] and name not in ("min", "max")):
            raise CannotSplit
        if len(call["arguments"]) != (0 if name == "count_star" else 1):
            raise CannotSplit
        kind = self._type_of(sql_of(call))
        made = self._way_of(name, str(kind))(call)
        return f"CAST({made} AS {kind})"

    def _way_of(self, name: str, kind: str) -> Callable[[Tree], str]:
        if name in SAME and kind not in ("BIGNUM", "BIT"):
            return lambda call: f"{name}({self._part(sql_of(call))})"
        if name in COUNTS:
            return lambda call: f"coalesce(sum({self._part(sql_of(call))}), 0)"
        if name in MEANS and kind == "DOUBLE":
            return self._mean
        if name in VARIANCES:
            return lambda call: self._variance(call, VARIANCES[name])
        raise CannotSplit

    def _mean(self, call: Tree) -> str:
        total = self._part(sql_of(_renamed(call, "sum")))
        count = self._part(sql_of(_renamed(call, "count")))
        return f"CAST(sum({total}) AS DOUBLE) / nullif(CAST(sum({count}) AS DOUBLE), 0)"

    def _variance(self, call: Tree, formula: str) -> str:
        count = sql_of(_renamed(call, "count"))
        n = self._part(f"CAST({count} AS DOUBLE)")
        m = self._part(sql_of(_renamed(call, "avg")))
        s = self._part(f"{sql_of(_renamed(call, 'var_pop'))} * {count}")
        combined = COMBINED.format(n=n, m=m, s=s)
        return formula.format(n=f"({combined}).n", s=f"({combined}).s")

    def _part(self, sql: str) -> str:
        """What an expression was of each part, which a column holds."""
        if sql not in self._names:
            name = f"{PART}{len(self._names)}"
            self._names[sql] = quote_name(name)
            kind = self._type_of(sql)
            # Parquet has no integer of 128 bits.
            kept = f"CAST({sql} AS DECIMAL(38, 0))" if kind.id in ("hugeint", "uhugeint") else sql
            if kind.id == "interval":  # nor exact intervals
                kept = f"CAST({sql} AS VARCHAR)"
                self._names[sql] = f"CAST({name} AS INTERVAL)"
            self.of_part.append(f"{kept} AS {quote_name(name)}")
        return self._names[sql]

    def _type_of(self, sql: str) -> Any:
        bound = bound_query(f"SELECT {template(sql)} AS x FROM {{0}}", [self._schema_for(sql)])
        if bound is None:
            raise CannotSplit
        return bound["x"]

    def _schema_for(self, sql: str) -> Schema:
        """The columns that an expression may name: to bind it over thousands of others takes a hundred times as long."""
        text = sql.lower()
        named = {name: kind for name, kind in self._schema.items() if quote_name(name)[1:-1].lower() in text}
        return named or self._schema


def _renamed(call: Tree, name: str) -> Tree:
    """The same call of another function."""
    return {**call, "function_name": name, "qualified_name": {"path": [name]}}
