"""A job of many small plans, one for each kind of node, and what they give.

python kinds.py DATA_ROOT FACTS.json
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from engine import run_plan

import smallpond_mpi as sp
from smallpond_mpi.common import JobFailed, SmallpondError
from smallpond_mpi.execution.task import ArrowComputeTask, ExecutionPlan, PythonScriptTask, Task
from smallpond_mpi.logical.dataset import ArrowTableDataSet, DataSet, PandasDataSet, ParquetDataSet
from smallpond_mpi.logical.node import (
    ArrowBatchNode,
    ArrowComputeNode,
    ConsolidateNode,
    Context,
    DataSetPartitionNode,
    DataSinkNode,
    DataSourceNode,
    EvenlyDistributedPartitionNode,
    HashPartitionNode,
    LimitNode,
    LoadPartitionedDataSetNode,
    Node,
    PandasBatchNode,
    PandasComputeNode,
    ProjectionNode,
    PythonScriptNode,
    RepeatPartitionNode,
    RootNode,
    ShuffleNode,
    SqlEngineNode,
    UnionNode,
    UserDefinedPartitionNode,
    UserPartitionedDataSourceNode,
)

NUM_ROWS, NUM_FILES = 100, 4
CASES: dict[str, Callable[["World"], Any]] = {}


def case(function: Callable[["World"], Any]) -> Callable[["World"], Any]:
    CASES[function.__name__] = function
    return function


class World:
    """A session, a context of nodes, and a source of 100 rows in four files: i, k = i % 7, part = i // 25."""

    def __init__(self, session: Any, directory: str) -> None:
        self.session = session
        self.directory = directory
        self.ctx = Context()
        self.files = []
        for number in range(NUM_FILES):
            rows = range(number * 25, number * 25 + 25)
            table = pa.table({"i": rows, "k": [i % 7 for i in rows], "part": [number] * 25})
            path = os.path.join(directory, f"in-{number}.parquet")
            pq.write_table(table, path, row_group_size=10)
            self.files.append(path)
        self.source = DataSourceNode(self.ctx, ParquetDataSet(self.files))

    def run(self, node: Node) -> ExecutionPlan:
        return run_plan(self.session, node)

    def rows(self, node: Node) -> list[list[Any]]:
        """All rows of the result."""
        return rows_of(self.run(node).final_output)

    def sql(self, query: str, *inputs: Node, **options: Any) -> SqlEngineNode:
        return SqlEngineNode(self.ctx, inputs, query, **options)

    def numbers(self, node: Node) -> list[list[int]]:
        """The values of i of each partition, in the order of the partitions."""
        found = self.rows(self.sql("SELECT list(i) AS i FROM {0}", node))
        return [values or [] for (values,) in found]

    def evenly(self, npartitions: int, **options: Any) -> Node:
        return EvenlyDistributedPartitionNode(self.ctx, (self.source,), npartitions, **options)


def rows_of(dataset: DataSet) -> list[list[Any]]:
    table = dataset.to_arrow_table()
    return [list(row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


# cutting and putting together


@case
def evenly_by_files(world: World) -> Any:
    return world.numbers(world.evenly(3))


@case
def evenly_by_rows(world: World) -> Any:
    return world.numbers(world.evenly(8, partition_by_rows=True))


@case
def evenly_shuffled(world: World) -> Any:
    return [world.numbers(world.evenly(4, random_shuffle=True)) for _ in range(2)]


@case
def evenly_more_than_rows(world: World) -> Any:
    few = world.sql("SELECT * FROM {0} LIMIT 3", world.source)
    return world.numbers(EvenlyDistributedPartitionNode(world.ctx, (few,), 5, partition_by_rows=True))


@case
def consolidate(world: World) -> Any:
    days = world.evenly(2, dimension="day")
    nested = HashPartitionNode(world.ctx, (days,), 3, ["k"], dimension="key", nested=True)
    by_day = ConsolidateNode(world.ctx, nested, ["day"])
    by_key = ConsolidateNode(world.ctx, nested, ["key"])
    one = ConsolidateNode(world.ctx, nested, [])
    return [[sorted(part) for part in world.numbers(node)] for node in (by_day, by_key, one)]


@case
def union(world: World) -> Any:
    first = world.sql("SELECT i FROM {0} WHERE i < 2", world.source)
    second = world.sql("SELECT i FROM {0} WHERE i >= 98", world.source)
    return world.numbers(UnionNode(world.ctx, (first, second, first)))


@case
def repeat(world: World) -> Any:
    copies = RepeatPartitionNode(world.ctx, (world.source,), 3, "copy")
    parts = world.evenly(2, dimension="half")
    return world.rows(
        world.sql(
            "SELECT {copy} AS copy, {half} AS half, count(*) AS n, sum({0}.i)::BIGINT AS total FROM {0} JOIN {1} USING (i)",
            copies,
            parts,
        )
    )


class ByThirds(UserDefinedPartitionNode):
    max_num_producer_tasks = 1

    def partition(self, runtime_ctx: Any, dataset: DataSet) -> list[DataSet]:
        assert runtime_ctx.task.key.startswith("UserDefinedPartitionProducerTask")
        return dataset.partition_by_rows(3)


class Wrong(UserDefinedPartitionNode):
    def partition(self, runtime_ctx: Any, dataset: DataSet) -> list[DataSet]:
        return [dataset]


@case
def user_defined_partition(world: World) -> Any:
    return world.numbers(ByThirds(world.ctx, (world.source,), 3))


@case
def user_defined_partition_of_wrong_length(world: World) -> Any:
    return world.numbers(Wrong(world.ctx, (world.source,), 3))


@case
def user_partitioned_source(world: World) -> Any:
    parts: list[DataSet] = [ParquetDataSet(world.files[:1]), ParquetDataSet([]), ParquetDataSet(world.files[1:])]
    return [len(part) for part in world.numbers(UserPartitionedDataSourceNode(world.ctx, parts))]


@case
def user_partitioned_source_in_memory(world: World) -> Any:
    parts: list[DataSet] = [ArrowTableDataSet(pa.table({"i": [1, 2]})), PandasDataSet(pd.DataFrame({"i": [3]}))]
    node = UserPartitionedDataSourceNode(world.ctx, parts, dimension="mine")
    return world.rows(world.sql("SELECT {mine} AS mine, i FROM {0}", node))


@case
def load_by_metadata(world: World) -> Any:
    """Below a hash partition: files tell their partition, those of tasks behind it too."""
    hashed = HashPartitionNode(world.ctx, (world.source,), 4, ["k"], output_name="hashed")
    behind = world.sql("SELECT i, k FROM {0}", hashed, output_name="behind")
    plan = world.run(behind)
    found = []
    for name in ("hashed", "behind"):
        output = plan.get_output(name)
        loaded = LoadPartitionedDataSetNode(world.ctx, (DataSourceNode(world.ctx, output),), 4)
        found.append([sorted(part) for part in world.numbers(loaded)])
    found.append([sorted(part) for part in world.numbers(world.sql("SELECT i FROM {0}", hashed))])
    return found


@case
def load_by_hive_path(world: World) -> Any:
    hive = HashPartitionNode(
        world.ctx, (world.source,), 4, ["k"], data_partition_column="bucket", hive_partitioning=True, output_name="hive"
    )
    plan = world.run(world.sql("SELECT i FROM {0}", hive))
    output = plan.get_output("hive")
    loaded = LoadPartitionedDataSetNode(
        world.ctx, (DataSourceNode(world.ctx, output),), 4, data_partition_column="bucket", hive_partitioning=True
    )
    return {
        "loaded": [sorted(part) for part in world.numbers(loaded)],
        "hashed": [sorted(part) for part in world.numbers(hive)],
        "paths": sorted({path.split("/")[-2] for path in output.resolved_paths}),
    }


@case
def load_by_column(world: World) -> Any:
    loaded = LoadPartitionedDataSetNode(world.ctx, (world.source,), 4, data_partition_column="part")
    return world.numbers(loaded)


@case
def load_out_of_range(world: World) -> Any:
    return world.numbers(LoadPartitionedDataSetNode(world.ctx, (world.source,), 3, data_partition_column="part"))


@case
def dataset_partition(world: World) -> Any:
    make = lambda n, **options: DataSetPartitionNode(world.ctx, (world.source,), n, **options)  # noqa: E731
    return {
        "one": world.numbers(make(1)),
        "files": world.numbers(make(2)),
        "rows": world.numbers(make(3, partition_by_rows=True)),
        "column": world.numbers(make(4, data_partition_column="part")),
        "kinds": [type(make(1)).__name__, type(make(2)).__name__, type(make(2, data_partition_column="part")).__name__],
    }


@case
def shuffle(world: World) -> Any:
    numbered = world.sql("SELECT i, (i % 3)::INTEGER AS target FROM {0}", world.evenly(2))
    engines = [ShuffleNode(world.ctx, (numbered,), 4, "target", engine_type=engine) for engine in ("duckdb", "arrow")]
    return [[sorted(part) for part in world.numbers(node)] for node in engines]


@case
def shuffle_out_of_range(world: World) -> Any:
    return world.numbers(ShuffleNode(world.ctx, (world.source,), 3, "part"))


@case
def projection(world: World) -> Any:
    some = ProjectionNode(world.ctx, world.source, ["k", "i"], ["file_row_number"])
    return world.rows(world.sql("SELECT * FROM {0} WHERE i IN (1, 30)", some))


@case
def limit(world: World) -> Any:
    return world.rows(LimitNode(world.ctx, ProjectionNode(world.ctx, world.evenly(3), ["i"]), 30))


# functions


@case
def pandas_compute(world: World) -> Any:
    def totals(runtime_ctx: Any, frames: list[pd.DataFrame]) -> pd.DataFrame:
        return frames[0].groupby("k", as_index=False)["i"].sum()

    return world.rows(PandasComputeNode(world.ctx, (world.source,), process_func=totals))


@case
def pandas_batch(world: World) -> Any:
    def sizes(runtime_ctx: Any, frames: list[pd.DataFrame]) -> pd.DataFrame:
        return pd.DataFrame({"rows": [len(frames[0])], "first": [frames[0]["i"].iloc[0]]})

    return world.rows(PandasBatchNode(world.ctx, (world.source,), process_func=sizes, streaming_batch_size=40))


class Adds(ArrowBatchNode):
    def __init__(self, *args: Any, amount: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.amount = amount

    def process(self, runtime_ctx: Any, input_tables: list[pa.Table]) -> pa.Table:
        left, right = input_tables
        return pa.table({"left": [left.num_rows], "right": [right.num_rows], "amount": [self.amount]})


@case
def arrow_batch_overridden(world: World) -> Any:
    fewer = world.sql("SELECT * FROM {0} WHERE i < 50", world.source)
    return world.rows(Adds(world.ctx, (world.source, fewer), streaming_batch_size=40, amount=3))


class Doubles(ArrowComputeTask):
    def process(self, runtime_ctx: Any, input_tables: list[pa.Table]) -> pa.Table:
        return pa.table({"i": pc.multiply(input_tables[0]["i"], self.factor)})

    factor = 1


class Spawns(ArrowComputeNode):
    def spawn(self, *args: Any, **kwargs: Any) -> Task:
        task = Doubles(*args, **kwargs)
        task.factor = 2
        return task


@case
def spawned_task(world: World) -> Any:
    plan = world.run(Spawns(world.ctx, (world.evenly(2),)))
    kinds = sorted({type(task).__name__ for task in plan.tasks.values()})
    return [rows_of(plan.final_output), "Doubles" in kinds]


@case
def python_script(world: World) -> Any:
    def split(runtime_ctx: Any, datasets: list[DataSet], output_path: str) -> bool:
        table = datasets[0].to_arrow_table()
        for name, part in (("b", table.slice(50)), ("a", table.slice(0, 50))):
            pq.write_table(part, os.path.join(output_path, f"{name}.parquet"))
        return True

    return world.numbers(PythonScriptNode(world.ctx, (world.source,), process_func=split))


@case
def python_script_without_files(world: World) -> Any:
    said = os.path.join(world.directory, "said")

    def say(runtime_ctx: Any, datasets: list[DataSet], output_path: str) -> bool:
        Path(said).write_text(str(datasets[0].num_rows))
        return True

    for inputs in (world.source, DataSourceNode(world.ctx, ParquetDataSet([]))):
        plan = world.run(PythonScriptNode(world.ctx, (inputs,), process_func=say))
        assert plan.final_output.num_rows == 0
    return Path(said).read_text()


class Leaves(PythonScriptTask):
    """Sets its output itself."""

    def process(self, runtime_ctx: Any, input_datasets: list[DataSet], output_path: str) -> bool:
        path = os.path.join(output_path, "mine.parquet")
        pq.write_table(input_datasets[0].to_arrow_table().slice(0, 2), path)
        pq.write_table(input_datasets[0].to_arrow_table(), os.path.join(output_path, "other.parquet"))
        self.dataset = ParquetDataSet([path])
        return True


class LeavesNode(PythonScriptNode):
    def spawn(self, *args: Any, **kwargs: Any) -> Task:
        return Leaves(*args, **kwargs)


@case
def python_script_with_a_dataset(world: World) -> Any:
    return world.numbers(LeavesNode(world.ctx, (world.source,), output_name="left"))


# what is known of tasks


def facts_of_tasks(plan: ExecutionPlan) -> dict[str, list[Any]]:
    return {
        type(task).__name__: [
            task.exec_on_scheduler,
            task.self_contained_output,
            task.allow_speculative_exec,
            task.temp_output,
        ]
        for task in plan.tasks.values()
    }


@case
def kinds_of_tasks(world: World) -> Any:
    hashed = HashPartitionNode(world.ctx, (UnionNode(world.ctx, (world.source, world.source)),), 3, ["k"])
    repeated = RepeatPartitionNode(world.ctx, (world.source,), 2, "copy")
    even = world.evenly(2, dimension="half")
    query = world.sql("SELECT i FROM {0}", hashed)
    nodes = (
        ProjectionNode(world.ctx, ConsolidateNode(world.ctx, query, []), ["i"]),
        world.sql("SELECT i FROM {0}", repeated),
        world.sql("SELECT i FROM {0}", even),
    )
    return facts_of_tasks(world.run(RootNode(world.ctx, nodes)))


# sinks


@case
def sinks(world: World) -> Any:
    found = {}
    parts = world.sql("SELECT i FROM {0}", world.evenly(3))
    for kind in ("link", "copy", "link_or_copy", "manifest"):
        path = os.path.join(world.directory, f"sink-{kind}")
        plan = world.run(DataSinkNode(world.ctx, (parts,), path, type=kind))  # type: ignore[arg-type]
        listed = Path(path, ".MANIFEST.txt").read_text().splitlines()
        inside = sorted(name for name in os.listdir(path) if name != ".MANIFEST.txt")
        found[kind] = {
            "rows": sorted(row for (row,) in rows_of(ParquetDataSet(listed))),
            "inside": [os.path.join(path, name) for name in inside] == sorted(listed),
            "files": len(inside),
            "absolute": all(map(os.path.isabs, listed)),
            "links": sorted({os.stat(file).st_nlink for file in listed}),
            "beside": sorted(name for name in os.listdir(world.directory) if "sink-" in name and "staging" in name),
            "result": plan.final_output.num_rows,
        }
    return found


# plans


@case
def outputs_of_a_plan(world: World) -> Any:
    cleaned = world.sql("SELECT * FROM {0} WHERE k < 3", world.evenly(3), output_name="cleaned")
    total = world.sql("SELECT sum(i)::BIGINT AS total FROM {0}", ConsolidateNode(world.ctx, cleaned, []))
    plan = world.run(total)
    nowhere = plan.get_output("nothing")
    return {
        "named": sorted(plan.named_outputs),
        "cleaned": plan.get_output("cleaned").num_rows,
        "none": nowhere is None,
        "final": rows_of(plan.final_output),
        "final path": os.path.isdir(plan.final_output_path or ""),
        "successful": plan.successful,
        "leaves": sorted({type(task).__name__ for task in plan.leaves}),
        "tasks": len(plan.tasks),
        "keys": all(key == task.key for key, task in plan.tasks.items()),
        "explained": plan.analyzed_logical_plan.explain_str(),
        "stats": list(cleaned.get_perf_stats("num output rows") or ()),
        "no stats": cleaned.get_perf_stats("nothing of the kind") is None,
        "dot": plan.logical_plan.graph().source,
    }


def made_of(plan: ExecutionPlan, node: Node) -> list[dict[str, Any]]:
    return [
        {
            "node": type(node).__name__,
            "kind": type(task).__name__,
            "key": task.key,
            "node_id": int(task.node_id),
            "location": task.location,
            "default_output_name": task.default_output_name,
        }
        for task in plan.tasks.values()
        if task.node_id == node.id
    ]


def made(world: World) -> list[dict[str, Any]]:
    """What some nodes became: each is made on the line that its tasks must name."""
    hashed = HashPartitionNode(world.ctx, (world.source,), 2, ["k"])
    query = SqlEngineNode(world.ctx, (hashed,), "SELECT * FROM {0}")
    plan = world.run(query)
    return [*made_of(plan, hashed), *made_of(plan, query)]


def main(data_root: str, facts_path: str) -> None:
    session = sp.init(data_root=data_root, progress="none", max_fail_count=1, keep_intermediate=True)
    told: dict[str, Any] = {}
    world = World(session, os.path.dirname(facts_path))
    for name, function in CASES.items():
        try:
            told[name] = function(world)
        except (SmallpondError, JobFailed) as error:
            told[name] = f"{type(error).__name__}: {error}"
    told["made"] = made(world)
    Path(facts_path).write_text(json.dumps(told))
    session.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
