"""Operations in a row give the same rows whether each is computed by itself or all are planned as one: whatever is fused, left out, broadcast or
recomputed in between."""

import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import smallpond_mpi as sp
from smallpond_mpi.logical import lowering

common = settings(
    max_examples=max(1, int(os.environ.get("SP_TEST_EXAMPLES", "100")) // 8),
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)

NAMES = ["k", "a", "b c", 'q"{0}']
SCHEMA = pa.schema([(name, pa.int64()) for name in NAMES])
values = st.none() | st.integers(-2, 3)
tables = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, values)), max_size=10).map(
    lambda rows: pa.Table.from_pylist(rows, schema=SCHEMA)
)

Step = Callable[[sp.DataFrame, sp.DataFrame], sp.DataFrame]
STEPS: dict[str, Step] = {
    "filter": lambda df, other: df.filter('a > 0 or "b c" is null'),
    "with_columns": lambda df, other: df.with_columns(a="k + 1", d='coalesce("b c", 0) * 2'),
    "window": lambda df, other: df.with_columns(a="sum(a) over (partition by k)"),
    "join": lambda df, other: df.join(other, on="k", suffix="_o").select(
        "k", "a_o as a", '"b c"', '"q""{0}_o" as "q""{0}"'
    ),
    "left": lambda df, other: df.join(other, on=["k", "a"], how="left").select(
        "k", "a", '"b c"', '"q""{0}_right" as "q""{0}"'
    ),
    "semi": lambda df, other: df.join(other.filter("a >= 0"), on="k", how="semi"),
    "anti": lambda df, other: df.join(other.filter("a = 0"), on="k", how="anti"),
    "of groups": lambda df, other: df.join(
        df.group_by("k").agg(most="max(a)", n="count(*)").filter("n < 4"), on="k"
    ).select("k", "most as a", '"b c"', '"q""{0}"'),
    "groups": lambda df, other: df.group_by("k", "a").agg(
        **{"b c": 'sum("b c")', 'q"{0}': 'max("q""{0}")', "unread": "avg(k)"}
    ),
    "sql": lambda df, other: df.session.partial_sql(
        'with t as (select *, k + a as sum, "b c" from {0}) select k, a, "b c", "q""{{0}}" from t where sum > -3', df
    ),
    "python": lambda df, other: df.filter(lambda row: row["k"] != 2),
    "sort": lambda df, other: df.sort(["k", "a desc"]),
    "union": lambda df, other: df.select("k", "a", '"b c"', '"q""{0}"').union(other),
    "repartition": lambda df, other: df.repartition(2, hash_by="k"),
}
ENDS: dict[str, Step] = {
    "all": lambda df, other: df,
    "some": lambda df, other: df.select("a"),
    "count": lambda df, other: df.agg(n="count(*)"),
    "first": lambda df, other: df.sort(["k", "a", '"b c"', '"q""{0}"']).limit(3).select("k", "a"),
    "groups": lambda df, other: df.group_by("a").agg(s='sum("b c")'),
}

WAYS = {
    "as guessed": {},
    "inlined": {"ONE_TASK_BYTES": 1, "SHUFFLE_COST": 1 << 40},
    "broadcast": {"ONE_TASK_BYTES": 1, "SHUFFLE_COST": 1 << 40, "INLINED_BYTES": 0},
    "shuffled": {"ONE_TASK_BYTES": 1, "SHUFFLE_COST": 0, "INLINED_BYTES": 0},
}


def rows_of(df: sp.DataFrame) -> tuple[list[str], list[str]]:
    table = df.to_arrow()
    return table.column_names, sorted(map(repr, (tuple(row.values()) for row in table.to_pylist())))


def run(
    steps: list[Step], one: sp.DataFrame, other: sp.DataFrame, after_each: Callable[[sp.DataFrame], Any]
) -> sp.DataFrame:
    for step in steps:
        one = step(one, other)
        after_each(one)
    return one


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@common
@given(tables, tables, st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5), st.sampled_from(sorted(ENDS)))
def test_lazily_as_step_by_step(
    session: sp.Session, way: str, t: pa.Table, u: pa.Table, steps: list[str], end: str
) -> None:
    functions = [*(STEPS[name] for name in steps), ENDS[end]]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WAYS[way].items():
            patch.setattr(lowering, name, value)
        lazy = run(functions, session.from_arrow(t), session.from_arrow(u), lambda df: None)
        found = rows_of(lazy)
    eager = run(functions, session.from_arrow(t), session.from_arrow(u), lambda df: df.compute())
    assert found == rows_of(eager)
    assert rows_of(lazy) == found, "and computed again from what was kept"
