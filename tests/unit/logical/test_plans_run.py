"""Plans of each kind, run task by task in this process: the answers are DuckDB's over the raw rows."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task import ExecutionPlan, WorkStatus
from smallpond_mpi.logical.dataset import ArrowTableDataSet, DataSet, ParquetDataSet
from smallpond_mpi.logical.node import (
    ArrowComputeNode,
    ConsolidateNode,
    Context,
    DataSinkNode,
    DataSourceNode,
    LimitNode,
    LogicalPlan,
    Node,
    ProjectionNode,
    RepeatPartitionNode,
    RootNode,
    UnionNode,
    UserDefinedPartitionNode,
    UserPartitionedDataSourceNode,
)
from smallpond_mpi.logical.optimizer import Optimizer
from smallpond_mpi.logical.planner import Planner
from smallpond_mpi.logical.udf import UDFType, udf
from tests.unit.logical.plan_builders import evenly, hashed, sql

NUM_ROWS = 500


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Rows (i, k, s) in order, in five files."""
    paths = []
    for number in range(5):
        numbers = range(number * 100, number * 100 + 100)
        table = pa.table({"i": numbers, "k": [i % 7 for i in numbers], "s": [f"s{i % 3}" for i in numbers]})
        paths.append(str(tmp_path / f"part-{number}.parquet"))
        pq.write_table(table, paths[-1], row_group_size=30)
    return paths


@pytest.fixture
def rows(ctx: Context, files: list[str]) -> DataSourceNode:
    return DataSourceNode(ctx, ParquetDataSet(files))


def planned(job: RuntimeContext, node: Node) -> ExecutionPlan:
    job.initialize("test", root_exist_ok=True)
    return Planner(job).create_exec_plan(LogicalPlan(node.ctx, node))


def run(job: RuntimeContext, node: Node) -> ExecutionPlan:
    """Run each task of the node's plan, inputs first, as a rank would with nothing in between."""
    plan = planned(job, node)
    for task in plan.tasks.values():
        task.input_datasets = [dep.output for dep in task._deps.tasks]
        assert task.exec() is WorkStatus.SUCCEED, f"{task}: {task.exception!r}"
    return plan


def result(job: RuntimeContext, node: Node) -> list[tuple[Any, ...]]:
    table = run(job, node).final_output.to_arrow_table()
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def answer(files: list[str], query: str) -> list[tuple[Any, ...]]:
    return duckdb.connect().execute(query.replace("{0}", f"read_parquet({files!r})")).fetchall()


def test_rows_stay_in_order(ctx: Context, job: RuntimeContext, rows: Node, files: list[str]) -> None:
    for npartitions in (1, 3, 5, 8):
        node = sql(ctx, evenly(ctx, rows, npartitions, partition_by_rows=npartitions == 8), query="SELECT i FROM {0}")
        assert result(job, node) == [(i,) for i in range(NUM_ROWS)]


def test_aggregate_by_key(ctx: Context, job: RuntimeContext, rows: Node, files: list[str]) -> None:
    query = "SELECT k, count(*), sum(i) FROM {0} GROUP BY k ORDER BY k"
    for node in (hashed(ctx, rows, 3), hashed(ctx, evenly(ctx, rows, 5), 4), hashed(ctx, rows, 1)):
        assert sorted(result(job, sql(ctx, node, query=query))) == answer(files, query)


def test_join_of_two_partitioned_tables_and_a_small_one(
    ctx: Context, job: RuntimeContext, rows: Node, files: list[str]
) -> None:
    names = DataSourceNode(ctx, ArrowTableDataSet(pa.table({"s": ["s0", "s1", "s2"], "name": ["zero", "one", "two"]})))
    right = sql(ctx, rows, query="SELECT k, min(i) AS first FROM {0} GROUP BY k")
    node = sql(
        ctx,
        hashed(ctx, rows, 4),
        hashed(ctx, right, 4),
        names,
        query="SELECT {0}.i, first, name FROM {0} JOIN {1} ON {0}.k = {1}.k JOIN {2} USING (s)",
    )
    names_of = {"s0": "zero", "s1": "one", "s2": "two"}
    assert sorted(result(job, node)) == [(i, i % 7, names_of[f"s{i % 3}"]) for i in range(NUM_ROWS)]


def test_nested_partitions(ctx: Context, job: RuntimeContext, rows: Node, files: list[str]) -> None:
    days = evenly(ctx, rows, 2, dimension="day")
    nested = hashed(ctx, days, 3, dimension="key", nested=True)
    node = sql(ctx, days, nested, query="SELECT {1}.i, {day} AS d, {key} AS k FROM {1} JOIN {0} USING (i)")
    found = result(job, node)
    assert sorted(i for i, _, _ in found) == list(range(NUM_ROWS))
    assert all((i < 300) == (day == 0) for i, day, _ in found)
    assert {key for _, _, key in found} == {0, 1, 2}
    by_key = sql(ctx, ConsolidateNode(ctx, nested, ["key"]), query="SELECT count(DISTINCT k), count(*) FROM {0}")
    counts = result(job, by_key)
    assert (sum(keys for keys, _ in counts), sum(count for _, count in counts)) == (7, NUM_ROWS)


def test_limit_takes_the_first_rows(ctx: Context, job: RuntimeContext, rows: Node) -> None:
    parts = evenly(ctx, rows, 3)
    for limit in (0, 1, 250, 10_000):
        node = sql(ctx, LimitNode(ctx, parts, limit), query="SELECT i FROM {0}")
        assert result(job, node) == [(i,) for i in range(min(limit, NUM_ROWS))]


def test_union_projection_and_repetition(ctx: Context, job: RuntimeContext, rows: Node) -> None:
    node: Node = UnionNode(ctx, (rows, sql(ctx, rows, query="SELECT * FROM {0} WHERE i < 10")))
    projected = ProjectionNode(ctx, node, ["s", "i"])
    assert result(job, sql(ctx, projected, query="SELECT * FROM {0} WHERE i < 2")) == [("s0", 0), ("s1", 1)] * 2
    repeated = RepeatPartitionNode(ctx, (node,), 3, "copy")
    counted = sql(ctx, repeated, query="SELECT {copy} AS c, count(*) FROM {0}")
    assert result(job, counted) == [(0, NUM_ROWS + 10), (1, NUM_ROWS + 10), (2, NUM_ROWS + 10)]


def test_partitions_of_the_user(ctx: Context, job: RuntimeContext, rows: Node, files: list[str]) -> None:
    class Ends(UserDefinedPartitionNode):
        max_num_producer_tasks = 1

        def partition(self, runtime_ctx: RuntimeContext, dataset: DataSet) -> list[DataSet]:
            paths = dataset.resolved_paths
            return [ParquetDataSet(paths[:1]), ParquetDataSet(paths[1:])]

    first_last = "SELECT min(i), max(i) FROM {0}"
    expected = [(0, 99), (100, 499)]
    assert result(job, sql(ctx, Ends(ctx, (rows,), 2), query=first_last)) == expected
    given = UserPartitionedDataSourceNode(ctx, [ParquetDataSet(files[:1]), ParquetDataSet(files[1:])])
    assert result(job, sql(ctx, given, query=first_last)) == expected


class AddOne(ArrowComputeNode):
    def process(self, runtime_ctx: RuntimeContext, input_tables: list[pa.Table]) -> pa.Table:
        (table,) = input_tables
        return pa.table({"i": pc.add(table["i"], 1)})


def test_functions_in_sql(ctx: Context, job: RuntimeContext, rows: Node) -> None:
    ctx.create_function("plus_ten", lambda x: x + 10, [UDFType.BIGINT], UDFType.BIGINT)

    @udf([UDFType.BIGINT], UDFType.BIGINT, use_arrow_type=True)
    def minus_ten(x: pa.Array) -> pa.Array:
        return pc.subtract(x, 10)

    query = "SELECT minus_ten(plus_ten(plus_ten(i))) AS i FROM {0}"
    node = sql(ctx, evenly(ctx, rows, 2), query=query, udfs=["plus_ten", minus_ten])
    assert result(job, node) == [(i + 10,) for i in range(NUM_ROWS)]
    inner = sql(ctx, evenly(ctx, rows, 2), query="SELECT plus_ten(i) AS i FROM {0}", udfs=["plus_ten"])
    outer = sql(ctx, inner, query="SELECT minus_ten(i) AS i FROM {0}", udfs=[minus_ten])
    assert result(job, Optimizer().visit(outer)) == [(i,) for i in range(NUM_ROWS)]


def test_a_process_of_the_user(ctx: Context, job: RuntimeContext, rows: Node) -> None:
    assert result(job, AddOne(ctx, (evenly(ctx, rows, 3),))) == [(i + 1,) for i in range(NUM_ROWS)]


def test_an_optimized_plan_gives_the_same_rows(ctx: Context, job: RuntimeContext, rows: Node, files: list[str]) -> None:
    cleaned = sql(ctx, evenly(ctx, rows, 3), query="SELECT * FROM {0} WHERE k <> 2 ORDER BY s, i DESC")
    node = sql(ctx, sql(ctx, cleaned, query="SELECT i, i * 2 AS d FROM {0}"), query="SELECT d - i AS i FROM {0}")
    optimized = Optimizer().visit(node)
    assert len(planned(job, optimized).tasks) == len(planned(job, node).tasks) - 6
    assert result(job, optimized) == result(job, node)
    assert len(result(job, node)) == len(answer(files, "FROM {0} WHERE k <> 2"))


@pytest.mark.parametrize("type_", ["link", "copy", "link_or_copy", "manifest"])
def test_sinks(ctx: Context, job: RuntimeContext, rows: Node, tmp_path: Path, type_: str) -> None:
    out = tmp_path / "out"
    sink = DataSinkNode(ctx, (hashed(ctx, rows, 3),), str(out), type=type_)  # type: ignore[arg-type]
    plan = run(job, RootNode(ctx, (sink,)))
    listed = (out / ".MANIFEST.txt").read_text().splitlines()
    assert sorted(pa.concat_tables([pq.read_table(path) for path in listed])["i"].to_pylist()) == list(range(NUM_ROWS))
    assert [path for path in listed if Path(path).parent == out] == (listed if type_ != "manifest" else [])
    assert plan.successful
    assert plan.final_output.num_rows == NUM_ROWS


def test_named_outputs_and_metrics(ctx: Context, job: RuntimeContext, rows: Node) -> None:
    query = sql(ctx, evenly(ctx, rows, 3), output_name="cleaned")
    plan = run(job, LimitNode(ctx, query, 7))
    assert plan.named_outputs.keys() >= {"cleaned"}
    output = plan.get_output("cleaned")
    assert output is not None
    assert output.num_rows == NUM_ROWS
    assert (Path(job.output_root) / "cleaned" / ".MANIFEST.txt").exists()
    assert "num output rows: sum 500" in plan.analyzed_logical_plan.explain_str()


def test_the_result_is_copied_to_the_users_path(ctx: Context, job: RuntimeContext, rows: Node, tmp_path: Path) -> None:
    job.final_output_path = str(tmp_path / "final")
    plan = run(job, sql(ctx, evenly(ctx, rows, 3)))
    assert plan.final_output_path == job.final_output_path
    assert pq.read_table([str(path) for path in sorted(Path(job.final_output_path).glob("*.parquet"))])[
        "i"
    ].to_pylist() == list(range(NUM_ROWS))
