"""A script that uses every relational operation once, on files, and prints what comes of each.

python relations_program.py DATA_ROOT WORK      makes its inputs in WORK; the same rows are printed on any number of ranks
"""

import sys
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import smallpond_mpi as sp
from smallpond_mpi.common import ColumnNotFound
from smallpond_mpi.logical import lowering

NUM_ROWS = 20_000


def make_inputs(work: str) -> None:
    rng = np.random.default_rng(7)
    keys = rng.integers(0, 500, NUM_ROWS)
    sales = pa.table(
        {
            "item": pa.array([None if key == 3 else int(key) for key in keys]),
            "unit price": rng.integers(1, 1000, NUM_ROWS) / 4,
            "count": rng.integers(1, 9, NUM_ROWS),
            "sold": pa.array(rng.integers(0, 10**9, NUM_ROWS) * 10**6, pa.timestamp("us", "UTC")),
        }
    )
    for number in range(4):
        pq.write_table(sales.slice(number * 5000, 5000), f"{work}/sales-{number}.parquet", row_group_size=1000)
    names = {
        "item": range(400),
        "name": [f"näme {{{i % 50}}}" for i in range(400)],
        "count": [i % 3 for i in range(400)],
    }
    pq.write_table(pa.table(names), f"{work}/items.parquet")


def shown(name: str, df: sp.DataFrame) -> None:
    """The rows, in an order that does not depend on how they were computed."""
    known = df.columns
    table = df.to_arrow()
    assert table.column_names == known, (name, table.column_names, known)
    rows = sorted(repr([rounded(value) for value in row.values()]) for row in table.to_pylist())
    print(name, known, len(rows), *rows[:3], flush=True)


def rounded(value: Any) -> Any:
    return float(f"{value:.9g}") if isinstance(value, float) else value


def main(data_root: str, work: str, one_task_bytes: int) -> None:
    session = sp.init(data_root=data_root, progress="none")
    lowering.ONE_TASK_BYTES = one_task_bytes
    make_inputs(work)
    sales = session.read_parquet(f"{work}/sales-*.parquet").rename({"unit price": "price"})
    items = session.read_parquet(f"{work}/items.parquet")
    total = sales.with_columns(total="price * count").filter("total > 100")
    shown("select", total.select("item", duckdb.ColumnExpression("total") * 2, hour="hour(sold)"))
    for how in ("inner", "left", "right", "full", "semi", "anti"):
        joined = total.join(items, on="item", how=how)
        shown(how, joined)
    shown("cross", items.agg(most="max(item)").join(total.agg("sum(total)"), how="cross"))
    by_name = total.join(items, on="item").group_by("name")
    shown("split", by_name.agg("count(*) as n", mean="avg(price)", sd="stddev(price)", latest="max(sold)"))
    shown("whole", by_name.agg(mid="median(price)", kinds="count(distinct count)"))
    shown("groups", total.group_by("year(sold) as year", odd="item % 2 = 1").count())
    shown("distinct", total.select("item", "count").distinct())
    shown("union", total.select("item", "count").union(items.select("count", "item")))
    best = total.with_columns(place="row_number() over (partition by item order by total desc, sold)", key="item")
    shown("window", best.filter("place = 1").drop("place"))
    shown("describe", total.describe())
    shown("head", total.sort("total", descending=True).head(3).select("total"))
    print("batches", sum(batch.num_rows for batch in total.iter_batches(777)))
    total.select("item", "count", "total").write_csv(f"{work}/csv")
    shown("csv", session.read_csv(f"{work}/csv/*.csv"))
    items.write_json(f"{work}/json", mode="overwrite")
    shown("json", session.read_json(f"{work}/json/*.json"))
    total.select("item", "count").write_parquet(f"{work}/parquet", partition_by="count", mode="append")
    shown("parquet", session.read_parquet(f"{work}/parquet/*/*.parquet"))
    assert "HashPartition" in by_name.agg("median(price)").explain() or one_task_bytes > 1
    try:
        total.select("totl")
    except ColumnNotFound as error:
        print("did you mean 'total'?" in str(error))
    assert not repr(total).startswith("DataFrame[?]")
    assert "total" in total._repr_html_()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
