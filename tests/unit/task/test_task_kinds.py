"""Sources, views, partition producers and consumers, Arrow and pandas functions, scripts, and the plan above them."""

import pickle
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import ColumnNotFound, InvalidArgument, WrongReturnType
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.task import (
    ArrowComputeTask,
    DataSourceTask,
    EvenlyDistributedPartitionProducerTask,
    ExecutionPlan,
    LoadPartitionedDataSetProducerTask,
    MergeDataSetsTask,
    PandasComputeTask,
    PartitionConsumerTask,
    PartitionInfo,
    ProjectionTask,
    PythonScriptTask,
    RepeatPartitionProducerTask,
    RootTask,
    SplitDataSetTask,
    Task,
    UserDefinedPartitionProducerTask,
)
from smallpond_mpi.logical.dataset import (
    ArrowTableDataSet,
    CsvDataSet,
    PandasDataSet,
    ParquetDataSet,
    PartitionedDataSet,
    SqlQueryDataSet,
)
from tests.unit.task.task_builders import TOP, attempt, given, rows, run, values

# sources


def test_listed_files_are_named_without_a_look(ctx) -> None:
    task = DataSourceTask(ctx, ParquetDataSet(["/nowhere/a.parquet", "/nowhere/b.parquet"]), TOP)
    assert task.runs_here
    assert task.exec_on_scheduler
    assert run(task).resolved_paths == ["/nowhere/a.parquet", "/nowhere/b.parquet"]


def test_a_pattern_is_resolved_once_by_a_child(ctx, parquet, tmp_path) -> None:
    parquet({"a": [1]}, {"a": [2]})
    task = DataSourceTask(ctx, ParquetDataSet([str(tmp_path / "in-*.parquet")]), TOP)
    assert not task.runs_here
    output = pickle.loads(pickle.dumps(run(task)))
    parquet({"a": [3]})
    assert values(output, "a") == [1, 2]


@pytest.mark.parametrize(
    "dataset",
    [
        ArrowTableDataSet(pa.table({"a": pa.array([1, None], pa.uint8()), "s": ["x", "y"]})),
        PandasDataSet(pd.DataFrame({"a": [1, 2], "s": ["x", "y"]})),
        SqlQueryDataSet("select 1 as a, 'x' as s -- one row"),
    ],
    ids=["arrow", "pandas", "sql"],
)
def test_rows_in_memory_and_queries_become_parquet(ctx, dataset: Any) -> None:
    task = DataSourceTask(ctx, dataset, TOP)
    assert not task.runs_here
    assert task.dataset is None
    output = run(task)
    assert isinstance(output, ParquetDataSet)
    assert rows(output) == rows(dataset)
    metadata = pq.read_metadata(output.resolved_paths[0]).metadata
    assert metadata[b"SMALLPOND:__task_key__"] == task.key.encode()


def test_a_table_that_parquet_cannot_hold_is_bad_input(ctx) -> None:
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
    task = DataSourceTask(ctx, ArrowTableDataSet(pa.table({"u": union})), TOP)
    attempt(task)
    assert isinstance(task.exception, InvalidArgument)
    assert "Parquet can't hold" in str(task.exception)


# views


def test_merge_keeps_order_and_row_ranges(ctx, parquet) -> None:
    dataset = parquet({"a": list(range(10))})
    parts = dataset.partition_by_rows(3)
    task = MergeDataSetsTask(ctx, given(ctx, parts[2], parts[0]), TOP)
    assert task.runs_here
    assert not task.self_contained_output
    assert values(run(task), "a") == [7, 8, 9, 0, 1, 2, 3]


@pytest.mark.parametrize(("files", "parts"), [(6, 3), (2, 5), (1, 4)])
def test_split_covers_its_input_once(ctx, parquet, files: int, parts: int) -> None:
    dataset = parquet(*({"a": list(range(i * 10, i * 10 + 10))} for i in range(files)))
    deps = given(ctx, dataset)
    outputs = [run(SplitDataSetTask(ctx, deps, [PartitionInfo(i, parts)])) for i in range(parts)]
    assert [a for output in outputs for a in values(output, "a")] == list(range(files * 10))
    if files >= parts:
        assert [output.num_files for output in outputs] == [files // parts] * parts
    else:
        assert max(output.num_rows for output in outputs) - min(output.num_rows for output in outputs) <= 1


def test_split_along_an_inner_dimension(ctx, parquet) -> None:
    deps = given(ctx, parquet({"a": [1]}, {"a": [2]}))
    task = SplitDataSetTask(ctx, deps, [PartitionInfo(), PartitionInfo(1, 2, "x")])
    assert values(run(task), "a") == [2]


def test_projection(ctx, parquet) -> None:
    dataset = parquet({"a": [1], "b": [2]}, {"b": [4], "a": [3]})
    task = ProjectionTask(ctx, given(ctx, dataset), TOP, ["b"], ["file_row_number"], None)
    output = run(task)
    assert output.to_arrow_table().column_names == ["b", "file_row_number"]
    assert values(output, "b") == [2, 4]
    assert dataset.columns is None
    by_name = ProjectionTask(ctx, given(ctx, parquet({"a": [1]}, {"b": [2]})), TOP, None, None, True)
    assert rows(run(by_name)) == [(1, None), (None, 2)]
    with pytest.raises(InvalidArgument, match="file_row_number"):
        ProjectionTask(ctx, given(ctx, dataset), TOP, None, ["nope"], None)
    missing = run(ProjectionTask(ctx, given(ctx, dataset), TOP, ["z"], None, None))
    with pytest.raises(ColumnNotFound, match="'z'"):
        missing.to_arrow_table()


# partitions


def evenly(ctx: Any, dataset: Any, n: int, **options: Any) -> EvenlyDistributedPartitionProducerTask:
    return EvenlyDistributedPartitionProducerTask(ctx, given(ctx, dataset), TOP, n, "d", **options)


def test_evenly_by_files(ctx, parquet) -> None:
    task = evenly(ctx, parquet({"a": [1]}, {"a": [2]}, {"a": [3]}), 2)
    assert task.runs_here
    assert [values(part, "a") for part in run(task)] == [[1, 2], [3]]


def test_parts_without_files_are_empty_and_have_the_schema(ctx, parquet) -> None:
    output = run(evenly(ctx, parquet({"a": [1]}), 3))
    assert [values(part, "a") for part in output] == [[1], [], []]
    assert output[2].to_arrow_table().schema.names == ["a"]


def test_evenly_by_rows(ctx, parquet) -> None:
    task = evenly(ctx, parquet({"a": [1, 2, 3]}, {"a": [4]}), 3, partition_by_rows=True)
    assert task.exec_on_scheduler
    assert not task.runs_here
    assert [values(part, "a") for part in run(task)] == [[1, 2], [3], [4]]


def test_shuffled_files_are_the_same_for_every_attempt_and_leave_the_users_generator_alone(ctx, parquet) -> None:
    dataset = parquet(*({"a": [i]} for i in range(20)))
    task = evenly(ctx, dataset, 4, random_shuffle=True)
    before = random.getstate()
    first = [values(part, "a") for part in run(task)]
    assert random.getstate() == before
    again = evenly(ctx, dataset, 4, random_shuffle=True)
    again.id = task.id
    assert [values(part, "a") for part in run(again)] == first
    assert sorted(a for part in first for a in part) == list(range(20)) != [a for part in first for a in part]


def test_repeat_and_consume(ctx, parquet) -> None:
    producer = RepeatPartitionProducerTask(ctx, given(ctx, parquet({"a": [1]})), TOP, 3, "copies")
    assert producer.runs_here
    run(producer)
    consumer = PartitionConsumerTask(ctx, [producer], [PartitionInfo(), PartitionInfo(2, 3, "copies")])
    assert values(run(consumer), "a") == [1]


def test_user_defined_partitions(ctx, parquet) -> None:
    def halves(_: Any, dataset: Any) -> Any:
        return dataset.partition_by_rows(2)

    dataset = parquet({"a": [1, 2]})
    task = UserDefinedPartitionProducerTask(ctx, given(ctx, dataset), TOP, 2, "d", halves)
    assert not task.runs_here
    assert [values(part, "a") for part in run(task)] == [[1], [2]]
    for n, func, error in ((3, halves, InvalidArgument), (2, lambda _, dataset: dataset, WrongReturnType)):
        wrong = UserDefinedPartitionProducerTask(ctx, given(ctx, dataset), TOP, n, "d", func)
        attempt(wrong)
        assert isinstance(wrong.exception, error)


def test_partitions_are_loaded_by_a_column(ctx, parquet) -> None:
    dataset = parquet({"p": [1, 1, 0], "a": [1, 2, 3]}, {"p": [2], "a": [4]})
    task = LoadPartitionedDataSetProducerTask(ctx, given(ctx, dataset), TOP, 3, "p", "p", False)
    assert [values(part, "a") for part in run(task)] == [[3], [1, 2], [4]]


def test_consumers_share_what_was_made_of_the_producers(ctx, parquet) -> None:
    producers = [evenly(ctx, parquet({"a": [i, i + 1]}), 2, partition_by_rows=True) for i in (0, 10)]
    for producer in producers:
        run(producer)
    consumers = [PartitionConsumerTask(ctx, producers, [PartitionInfo(), PartitionInfo(i, 2, "d")]) for i in range(2)]
    assert [values(run(consumer), "a") for consumer in consumers] == [[0, 10], [1, 11]]


def test_npartitions_must_be_positive(ctx, parquet) -> None:
    with pytest.raises(InvalidArgument, match="at least 1"):
        evenly(ctx, parquet({"a": [1]}), 0)


# functions


def test_arrow_compute(ctx, parquet) -> None:
    def add(runtime_ctx: Any, tables: list[pa.Table]) -> pa.Table:
        assert runtime_ctx.task.key.startswith("ArrowComputeTask-")
        return pa.table({"n": [table.num_rows for table in tables]})

    task = ArrowComputeTask(ctx, given(ctx, parquet({"a": [1, 2]}), parquet({"b": [1]})), TOP, add)
    assert values(run(task), "n") == [2, 1]
    assert task.perf_metrics["num input rows"] == 3
    for name in ("input load time (secs)", "compute time (secs)", "output dump time (secs)", "num output rows"):
        assert name in task.perf_metrics


@pytest.mark.parametrize("returned", [None, [1, 2], {"a": 1}])
def test_wrong_return_type_of_arrow_compute(ctx, parquet, returned: Any) -> None:
    def my_function(_: Any, tables: Any) -> Any:
        return returned

    task = ArrowComputeTask(ctx, given(ctx, parquet({"a": [1]})), TOP, my_function)
    attempt(task)
    assert isinstance(task.exception, WrongReturnType)
    assert "my_function" in str(task.exception)
    assert repr(returned) in str(task.exception)


def test_arrow_compute_by_duckdb_and_by_override(ctx, parquet) -> None:
    class Sorted(ArrowComputeTask):
        def process(self, runtime_ctx: Any, input_tables: list[pa.Table]) -> pa.Table:
            return input_tables[0].sort_by("a")

    task = Sorted(ctx, given(ctx, parquet({"a": [3, 1]})), TOP, use_duckdb_reader=True)
    assert values(run(task), "a") == [1, 3]


def test_arrow_compute_of_no_files_and_of_no_rows(ctx, parquet) -> None:
    assert run(ArrowComputeTask(ctx, given(ctx, ParquetDataSet([])), TOP, lambda _, t: t[0])).num_files == 0
    output = run(ArrowComputeTask(ctx, given(ctx, parquet({"a": pa.array([], pa.int8())})), TOP, lambda _, t: t[0]))
    assert output.to_arrow_table().schema.names == ["a"]


def test_arrow_compute_types_and_options_survive(ctx, parquet) -> None:
    table = pa.table(
        {"d": pa.array(["a", "b", "a"]).dictionary_encode(), "t": pa.array([1, 2, 3], pa.timestamp("ms", "UTC"))}
    )
    task = ArrowComputeTask(
        ctx,
        given(ctx, parquet({"a": [1]})),
        TOP,
        lambda _, __: table,
        parquet_compression="SNAPPY",
        parquet_row_group_size=2,
    )
    output = run(task)
    assert output.to_arrow_table().schema.types[1] == pa.timestamp("ms", "UTC")
    metadata = pq.read_metadata(output.resolved_paths[0])
    assert metadata.num_row_groups == 2
    assert metadata.row_group(0).column(0).compression == "SNAPPY"


def test_pandas_compute(ctx, parquet) -> None:
    task = PandasComputeTask(ctx, given(ctx, parquet({"a": [2, 1]})), TOP, lambda _, dfs: dfs[0].sort_values("a"))
    assert rows(run(task)) == [(1,), (2,)]


def test_script_leaves_files(ctx, parquet) -> None:
    def script(_: Any, datasets: list[Any], output_path: str) -> bool:
        pq.write_table(datasets[0].to_arrow_table(), Path(output_path) / "mine.parquet")
        return True

    task = PythonScriptTask(ctx, given(ctx, parquet({"a": [1]})), TOP, script, output_name="mine")
    output = run(task)
    assert values(output, "a") == [1]
    assert output.resolved_paths == [f"{task.final_output_abspath}/mine.parquet"]


def test_script_that_fails_or_returns_something_else(ctx) -> None:
    assert attempt(PythonScriptTask(ctx, [], TOP, lambda *_: False)) is WorkStatus.FAILED
    forgotten = PythonScriptTask(ctx, [], TOP, lambda *_: None)
    attempt(forgotten)
    assert isinstance(forgotten.exception, WrongReturnType)


def test_functions_do_not_come_back(ctx, parquet) -> None:
    for task in (
        ArrowComputeTask(ctx, given(ctx, parquet({"a": [1]})), TOP, lambda _, t: t[0]),
        PythonScriptTask(ctx, [], TOP, lambda *_: True),
    ):
        attempt(task)
        task.clean_complex_attrs()
        assert task.process_func is None


# the plan


def test_plan_of_a_very_deep_chain(ctx) -> None:
    task = Task(ctx, [], TOP)
    for _ in range(5000):
        task = Task(ctx, [task], TOP)
    root = RootTask(ctx, [task], TOP)
    found = list(ExecutionPlan.iter_tasks(root))
    assert len(found) == 5002
    assert found[-1] is root
    assert not found[0].input_deps


def test_plan_finds_outputs(ctx, parquet) -> None:
    first, second = (Task(ctx, [], TOP, output_name="named") for _ in range(2))
    first.dataset, second.dataset = parquet({"a": [1]}), parquet({"a": [2]})
    root = RootTask(ctx, [first, second], TOP)
    plan = ExecutionPlan(ctx, root, None)  # type: ignore[arg-type] # no logical plan is looked at
    assert not plan.successful
    run(root)
    assert plan.successful
    assert root.runs_here
    assert list(plan.tasks) == [first.key, second.key, root.key]
    assert plan.leaves == [first, second]
    assert values(plan.get_output("named"), "a") == [1, 2]
    assert plan.get_output("other") is None
    assert list(plan.named_outputs) == ["named"]
    assert isinstance(plan.final_output, PartitionedDataSet)
    assert plan.final_output_path is None


def test_iteration_of_a_shuffle_is_not_quadratic(ctx) -> None:
    producers = [Task(ctx, [], TOP) for _ in range(300)]
    first = Task(ctx, producers, TOP)
    consumers = [first, *(Task(ctx, first._deps, TOP) for _ in range(2000))]
    steps = 0

    class Counting(tuple):
        def __iter__(self) -> Any:
            nonlocal steps
            for task in super().__iter__():
                steps += 1
                yield task

    first._deps.tasks = Counting(first._deps.tasks)
    assert len(list(ExecutionPlan.iter_tasks(RootTask(ctx, consumers, TOP)))) == 2302
    assert steps <= 300


def test_csv_parts_go_on_as_csv(ctx, tmp_path) -> None:
    (tmp_path / "x.csv").write_text("1\n2\n")
    dataset = CsvDataSet([str(tmp_path / "x.csv")], {"n": "INTEGER"})
    output = run(evenly(ctx, dataset, 2))
    assert [part.num_files for part in output] == [1, 0]
