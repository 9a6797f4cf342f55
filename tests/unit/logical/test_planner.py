"""What tasks the planner makes of a plan."""

import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import InvalidArgument, UnpairedPartitions
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task import DataSinkTask, MergeDataSetsTask, SplitDataSetTask, Task
from smallpond_mpi.logical import planner as planner_module
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.node import (
    ArrowComputeNode,
    ConsolidateNode,
    Context,
    DataSetPartitionNode,
    DataSinkNode,
    DataSourceNode,
    LimitNode,
    LogicalPlan,
    Node,
    ProjectionNode,
    PythonScriptNode,
    RepeatPartitionNode,
    RootNode,
    UnionNode,
    UserPartitionedDataSourceNode,
)
from smallpond_mpi.logical.planner import Planner
from tests.unit.logical.plan_builders import evenly, hashed, inputs, kinds, loaded, partitions, source, sql, upstream


def test_a_pipeline_from_source_to_root(ctx: Context, job: RuntimeContext) -> None:
    query = sql(ctx, hashed(ctx, source(ctx), 3))
    root = RootNode(ctx, (LimitNode(ctx, query, 10),))
    plan = Planner(job).create_exec_plan(LogicalPlan(ctx, root))
    assert Counter(kinds(plan.tasks.values())) == {
        "DataSourceTask": 1,
        "SplitDataSetTask": 8,
        "HashPartitionDuckDbTask": 8,
        "PartitionConsumerTask": 3,
        "SqlEngineTask": 3 + 3 + 1,
        "MergeDataSetsTask": 1,
        "DataSinkTask": 1,
        "RootTask": 1,
    }
    locations = {int(node.id): node.location for node in plan.logical_plan.nodes.values()}
    assert all(task.location == locations[task.node_id] for task in plan.tasks.values() if task.node_id <= root.id)
    assert [int(task.node_id) for task in plan.leaves] == [1]


def test_tasks_know_their_node_and_its_settings(ctx: Context, job: RuntimeContext) -> None:
    node = sql(ctx, evenly(ctx, source(ctx), 2))
    node.timeout_secs = 7.5
    node.isolated = True
    tasks = Planner(job).plan_node(node)
    assert [(task.node_id, task.location, task.timeout_secs, task.isolated) for task in tasks] == [
        (node.id, node.location, 7.5, True)
    ] * 2
    (producer,) = upstream(tasks, lambda task: "Producer" in type(task).__name__)
    assert producer.timeout_secs is None
    assert not producer.isolated


def test_a_node_is_planned_once_for_all_plans_that_share_it(ctx: Context, job: RuntimeContext) -> None:
    planner = Planner(job)
    shared = sql(ctx, source(ctx))
    one = planner.plan_node(sql(ctx, shared))
    other = planner.plan_node(sql(ctx, shared))
    assert inputs(one[0]) == inputs(other[0]) == planner.plan_node(shared)
    planner.forget(shared)
    assert not planner.is_planned(shared)
    again = planner.plan_node(shared)
    assert again != inputs(one[0])
    assert inputs(again[0]) == inputs(inputs(one[0])[0]), "what is below is not forgotten"


def test_nodes_of_different_contexts_are_not_taken_for_each_other(ctx: Context, job: RuntimeContext) -> None:
    planner, elsewhere = Planner(job), Context()
    here, there = source(ctx, "/data/here"), source(elsewhere, "/data/there")
    assert here.id == there.id
    assert planner.plan_node(here) != planner.plan_node(there)


def test_a_plan_of_five_thousand_chained_nodes(ctx: Context, job: RuntimeContext) -> None:
    node: Node = source(ctx)
    for _ in range(2500):
        node = ProjectionNode(ctx, sql(ctx, node), ["a"])
    plan = Planner(job).create_exec_plan(LogicalPlan(ctx, node))
    assert len(plan.tasks) == 5000 + 3


# partition nodes


def test_one_input_is_split_among_producers(ctx: Context, job: RuntimeContext) -> None:
    consumers = Planner(job).plan_node(hashed(ctx, source(ctx), 5))
    producers = inputs(consumers[0])
    assert len(producers) == 2 * job.num_slots
    assert partitions(producers) == [f"@toplevel@[{index}/8]" for index in range(8)]
    splits = [inputs(producer)[0] for producer in producers]
    assert kinds(splits) == ["SplitDataSetTask"] * 8
    assert partitions(splits) == partitions(producers)
    assert len({id(split._deps) for split in splits}) == 1
    assert partitions(consumers) == [f"__data_partition__[{index}/5]" for index in range(5)]
    assert all("@toplevel@" in task.partition_dims for task in consumers)


def test_producers_that_match_the_inputs_take_one_each(ctx: Context, job: RuntimeContext) -> None:
    below = evenly(ctx, source(ctx), 8)
    planner = Planner(job)
    producers = inputs(planner.plan_node(hashed(ctx, below, 3))[0])
    assert [inputs(producer) for producer in producers] == [[task] for task in planner.plan_node(below)]


def test_other_numbers_of_inputs_are_merged_and_split(ctx: Context, job: RuntimeContext) -> None:
    below = evenly(ctx, source(ctx), 7)
    planner = Planner(job)
    producers = inputs(planner.plan_node(hashed(ctx, below, 3))[0])
    assert len(producers) == 8
    (merge,) = {inputs(inputs(producer)[0])[0] for producer in producers}
    assert isinstance(merge, MergeDataSetsTask)
    assert inputs(merge) == planner.plan_node(below)


def test_several_input_nodes_are_put_together(ctx: Context, job: RuntimeContext) -> None:
    one, other = source(ctx, "/data/one"), source(ctx, "/data/other")
    planner = Planner(job)
    (producer,) = inputs(planner.plan_node(evenly(ctx, one, 4, extra=(other,)))[0])
    (merge,) = inputs(producer)
    assert inputs(merge) == planner.plan_node(one) + planner.plan_node(other)


@pytest.mark.parametrize(
    ("slots", "node_max", "npartitions", "expected"),
    [
        (4, 1000, 10, 8),
        (4, 5, 10, 5),
        (10_000, 1000, 10, 1000),
        (10_000, 1000, 4096, 1000),
        (10_000, 1000, 40_960, 100),
        (10_000, 1000, 4_096_000, 1),
    ],
)
def test_number_of_producers(
    ctx: Context, job: RuntimeContext, slots: int, node_max: int, npartitions: int, expected: int
) -> None:
    job.num_slots = slots
    node = hashed(ctx, source(ctx), npartitions)
    node.max_num_producer_tasks = node_max
    assert Planner(job).max_producers(node) == expected


def test_large_inputs_are_cut_by_more_producers(
    ctx: Context, job: RuntimeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "a.parquet")
    node = hashed(ctx, DataSourceNode(ctx, ParquetDataSet([str(tmp_path / "a.parquet")])), 8)
    job.num_slots = 2
    assert Planner(job).max_producers(node) == 4
    monkeypatch.setattr(planner_module, "PRODUCER_BYTES", 1000)
    assert Planner(job).max_producers(node) == 8  # of 8000 bytes
    node.max_num_producer_tasks = 5
    assert Planner(job).max_producers(node) == 5


def test_slots_of_a_cluster_that_nobody_counted(ctx: Context, job: RuntimeContext) -> None:
    job.num_slots = None
    job.num_executors = 3
    job.rank_resources = (5, 1 << 30, 0)
    assert Planner(job).max_producers(hashed(ctx, source(ctx), 2)) == 2 * 3 * 5
    job.num_executors = 0
    assert Planner(job).max_producers(hashed(ctx, source(ctx), 2)) == 2 * 5


def test_consumers_share_their_dependencies(ctx: Context, job: RuntimeContext) -> None:
    job.num_slots = 500
    node = hashed(ctx, source(ctx), 4096)
    planner = Planner(job)
    tracemalloc.start()
    consumers = planner.plan_node(node)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(inputs(consumers[0])) == 1000
    assert len(consumers) == 4096
    assert len({id(task._deps) for task in consumers}) == 1
    # 1,000 x 4,096 references alone would be 33 MB.
    assert used < 16 * 2**20


def test_nested_partitions_cut_each_existing_one_again(ctx: Context, job: RuntimeContext) -> None:
    outer = evenly(ctx, source(ctx), 2, dimension="day")
    planner = Planner(job)
    consumers = planner.plan_node(hashed(ctx, outer, 3, dimension="host", nested=True))
    assert partitions(consumers) == [f"day[{day}/2] host[{host}/3]" for day in range(2) for host in range(3)]
    producers = list(dict.fromkeys(inputs(task)[0] for task in consumers))
    assert [inputs(producer) for producer in producers] == [[task] for task in planner.plan_node(outer)]
    assert partitions(producers) == ["day[0/2]", "day[1/2]"]


def test_nested_partitions_of_a_union_go_together(ctx: Context, job: RuntimeContext) -> None:
    one, other = (evenly(ctx, source(ctx), 2, dimension="day") for _ in range(2))
    consumers = Planner(job).plan_node(hashed(ctx, UnionNode(ctx, (one, other)), 3, dimension="host", nested=True))
    assert len(consumers) == 6
    assert len({task.partition_infos for task in consumers}) == 6
    merge = inputs(inputs(consumers[0])[0])[0]
    assert isinstance(merge, MergeDataSetsTask)
    assert partitions(inputs(merge)) == ["day[0/2]"] * 2


def test_a_dimension_can_be_cut_only_once(ctx: Context, job: RuntimeContext) -> None:
    node = hashed(ctx, evenly(ctx, source(ctx), 2, dimension="day"), 3, dimension="day", nested=True)
    with pytest.raises(InvalidArgument, match=r"already partitioned along 'day'.*plan_builders\.py:\d+"):
        Planner(job).plan_node(node)


def test_too_many_nested_partitions(ctx: Context, job: RuntimeContext) -> None:
    node = hashed(ctx, evenly(ctx, source(ctx), 3, dimension="day"), 2_000_000, dimension="host", nested=True)
    with pytest.raises(InvalidArgument, match=r"2,000,000 partitions in each of 3 are more than 4,096,000"):
        Planner(job).plan_node(node)


def test_partitions_that_are_not_nested_replace_existing_ones(ctx: Context, job: RuntimeContext) -> None:
    consumers = Planner(job).plan_node(hashed(ctx, evenly(ctx, source(ctx), 2, dimension="day"), 2, dimension="host"))
    assert partitions(consumers) == ["host[0/2]", "host[1/2]"]


def test_the_top_level_can_be_cut(ctx: Context, job: RuntimeContext) -> None:
    planner = Planner(job)
    cut = evenly(ctx, source(ctx), 3, dimension="@toplevel@")
    assert partitions(planner.plan_node(cut)) == [f"@toplevel@[{index}/3]" for index in range(3)]
    joined = sql(ctx, source(ctx, "/data/small"), cut, query="SELECT * FROM {0}, {1}")
    assert partitions(planner.plan_node(joined)) == [f"@toplevel@[{index}/3]" for index in range(3)]


def test_repeat(ctx: Context, job: RuntimeContext) -> None:
    consumers = Planner(job).plan_node(RepeatPartitionNode(ctx, (evenly(ctx, source(ctx), 4),), 3, "copy"))
    assert partitions(consumers) == [f"copy[{index}/3]" for index in range(3)]
    assert kinds(inputs(consumers[0])) == ["RepeatPartitionProducerTask"]


def test_datasets_that_are_partitions_already(ctx: Context, job: RuntimeContext) -> None:
    parts = [source(ctx, f"/data/{name}").dataset for name in "abc"]
    consumers = Planner(job).plan_node(UserPartitionedDataSourceNode(ctx, parts))
    assert partitions(consumers) == [f"__data_partition__[{index}/3]" for index in range(3)]
    (producer,) = inputs(consumers[0])
    assert kinds(inputs(producer)) == ["DataSourceTask"]


def test_dataset_partition_node_picks_a_kind(ctx: Context, job: RuntimeContext) -> None:
    deps = (source(ctx), source(ctx, "/data/b"))
    assert type(DataSetPartitionNode(ctx, deps, 3)).__name__ == "EvenlyDistributedPartitionNode"
    assert type(DataSetPartitionNode(ctx, deps, 3, data_partition_column="p")).__name__ == "LoadPartitionedDataSetNode"
    (task,) = Planner(job).plan_node(DataSetPartitionNode(ctx, deps, 1))
    assert len(inputs(task)) == 2
    with pytest.raises(InvalidArgument, match="data_partition_column"):
        DataSetPartitionNode(ctx, deps, 3, data_partition_column="p", random_shuffle=True)


# several inputs


def test_partitions_are_paired_along_a_shared_dimension(ctx: Context, job: RuntimeContext) -> None:
    one, other = hashed(ctx, source(ctx), 3), hashed(ctx, source(ctx, "/data/b"), 3)
    planner = Planner(job)
    tasks = planner.plan_node(sql(ctx, one, other, query="SELECT * FROM {0} JOIN {1} USING (k)"))
    assert partitions(tasks) == [f"__data_partition__[{index}/3]" for index in range(3)]
    assert [inputs(task) for task in tasks] == [
        list(pair) for pair in zip(planner.plan_node(one), planner.plan_node(other), strict=True)
    ]


def test_an_input_without_the_dimension_is_joined_to_each(ctx: Context, job: RuntimeContext) -> None:
    small, big = source(ctx, "/data/small"), evenly(ctx, source(ctx), 3)
    planner = Planner(job)
    for deps in ((small, big), (big, small)):
        tasks = planner.plan_node(sql(ctx, *deps, query="SELECT * FROM {0}, {1}"))
        assert partitions(tasks) == [f"__data_partition__[{index}/3]" for index in range(3)]
        assert all(planner.plan_node(small)[0] in inputs(task) for task in tasks)


def test_different_dimensions_are_combined(ctx: Context, job: RuntimeContext) -> None:
    days, hosts = evenly(ctx, source(ctx), 2, dimension="day"), evenly(ctx, source(ctx), 3, dimension="host")
    tasks = Planner(job).plan_node(sql(ctx, hosts, days, query="SELECT * FROM {0}, {1}"))
    assert partitions(tasks) == [f"day[{day}/2] host[{host}/3]" for host in range(3) for day in range(2)]


def test_a_nested_side_is_paired_where_it_agrees(ctx: Context, job: RuntimeContext) -> None:
    days = evenly(ctx, source(ctx), 2, dimension="day")
    nested = evenly(ctx, days, 3, dimension="host", nested=True)
    tasks = Planner(job).plan_node(sql(ctx, days, nested, query="SELECT * FROM {0}, {1}"))
    assert partitions(tasks) == [f"day[{day}/2] host[{host}/3]" for day in range(2) for host in range(3)]
    assert all(
        one.get_partition_info("day") == other.get_partition_info("day")
        for one, other in (inputs(task) for task in tasks)
    )


def test_three_inputs(ctx: Context, job: RuntimeContext) -> None:
    days = evenly(ctx, source(ctx), 2, dimension="day")
    hosts = evenly(ctx, source(ctx), 2, dimension="host")
    both = evenly(ctx, days, 2, dimension="host", nested=True)
    tasks = Planner(job).plan_node(sql(ctx, days, hosts, both, query="SELECT 1"))
    assert partitions(tasks) == [f"day[{day}/2] host[{host}/2]" for day in range(2) for host in range(2)]
    for task in tasks:
        day, host, pair = inputs(task)
        assert {*day.partition_infos, *host.partition_infos} == {*pair.partition_infos}


def test_no_inputs_at_all(ctx: Context, job: RuntimeContext) -> None:
    (task,) = Planner(job).plan_node(sql(ctx, query="SELECT 1 AS a"))
    assert inputs(task) == []
    assert str(task.partition_infos[0]) == "@toplevel@[0/1]"


@pytest.mark.parametrize("kind", ["sql", "union", "nested"])
def test_partitions_that_cannot_be_paired(ctx: Context, job: RuntimeContext, kind: str) -> None:
    three, four = evenly(ctx, source(ctx), 3), evenly(ctx, source(ctx, "/data/b"), 4)
    match kind:
        case "sql":
            node: Node = sql(ctx, three, four, query="SELECT * FROM {0}, {1}")
        case "union":
            node = UnionNode(ctx, (three, four))
        case _:
            node = evenly(ctx, three, 2, dimension="x", nested=True, extra=(four,))
    with pytest.raises(UnpairedPartitions) as error:
        Planner(job).plan_node(node)
    message = str(error.value)
    assert isinstance(error.value, AssertionError)
    assert str(node.location) in message
    assert f"{three} at {three.location}: __data_partition__[3], 3 partitions" in message
    assert f"{four} at {four.location}: __data_partition__[4], 4 partitions" in message
    assert "has 3 partitions in input 0 and 4 in input 1" in message


def test_a_partition_without_counterpart(ctx: Context, job: RuntimeContext) -> None:
    class First(UnionNode):
        """Drops all partitions but the first."""

    class Dropping(Planner):
        def visit_union_node(self, node: UnionNode, depth: int) -> list[Task]:
            return super().visit_union_node(node, depth)[:1]

    days = evenly(ctx, source(ctx), 2, dimension="day")
    for deps in ((First(ctx, (days,)), days), (days, First(ctx, (days,)))):
        with pytest.raises(UnpairedPartitions, match=r"day\[1/2\].* no counterpart"):
            Dropping(job).plan_node(sql(ctx, *deps, query="SELECT * FROM {0}, {1}"))


# reshaping


def test_union_has_the_partitions_of_all_side_by_side(ctx: Context, job: RuntimeContext) -> None:
    one, other = evenly(ctx, source(ctx), 2), evenly(ctx, source(ctx), 2)
    planner = Planner(job)
    assert planner.plan_node(UnionNode(ctx, (one, other))) == planner.plan_node(one) + planner.plan_node(other)
    over = planner.plan_node(sql(ctx, UnionNode(ctx, (one, other))))
    assert partitions(over) == ["__data_partition__[0/2]", "__data_partition__[1/2]"] * 2


def test_union_needs_the_same_dimensions(ctx: Context, job: RuntimeContext) -> None:
    node = UnionNode(ctx, (evenly(ctx, source(ctx), 2, dimension="day"), source(ctx)))
    with pytest.raises(UnpairedPartitions, match="same dimensions"):
        Planner(job).plan_node(node)


def test_consolidate_keeps_the_named_dimensions(ctx: Context, job: RuntimeContext) -> None:
    nested = evenly(ctx, evenly(ctx, source(ctx), 2, dimension="day"), 3, dimension="host", nested=True)
    planner = Planner(job)
    by_host = planner.plan_node(ConsolidateNode(ctx, nested, ["host"]))
    assert partitions(by_host) == [f"host[{index}/3]" for index in range(3)]
    assert partitions(inputs(by_host[1])) == ["day[0/2] host[1/3]", "day[1/2] host[1/3]"]
    (whole,) = planner.plan_node(ConsolidateNode(ctx, nested, []))
    assert len(inputs(whole)) == 6
    assert planner.plan_node(ConsolidateNode(ctx, nested, ["host", "day"])) == planner.plan_node(nested)


def test_consolidate_along_a_dimension_that_is_not_there(ctx: Context, job: RuntimeContext) -> None:
    node = ConsolidateNode(ctx, evenly(ctx, source(ctx), 2, dimension="day"), ["hour"])
    with pytest.raises(InvalidArgument, match=r"not partitioned along 'hour' \(its dimensions: day\).*test_planner"):
        Planner(job).plan_node(node)


def test_projection_has_a_task_for_each_partition(ctx: Context, job: RuntimeContext) -> None:
    tasks = Planner(job).plan_node(ProjectionNode(ctx, evenly(ctx, source(ctx), 2), ["a"], ["filename"]))
    assert kinds(tasks) == ["ProjectionTask"] * 2


def test_limit_of_one_partition_is_one_task(ctx: Context, job: RuntimeContext) -> None:
    (task,) = Planner(job).plan_node(LimitNode(ctx, source(ctx), 5))
    assert kinds(inputs(task)) == ["DataSourceTask"]


def test_limit_of_several_partitions(ctx: Context, job: RuntimeContext) -> None:
    below = evenly(ctx, source(ctx), 3)
    planner = Planner(job)
    (last,) = planner.plan_node(LimitNode(ctx, below, 5))
    (merge,) = inputs(last)
    assert [inputs(part) for part in inputs(merge)] == [[task] for task in planner.plan_node(below)]
    assert {task.oneline_query for task in (last, *inputs(merge))} == {"SELECT * FROM {0} LIMIT 5"}  # type: ignore[attr-defined]


# users' own kinds


def test_spawn_and_process_of_a_subclass(ctx: Context, job: RuntimeContext) -> None:
    from smallpond_mpi.execution.task import ArrowComputeTask

    class OwnTask(ArrowComputeTask):
        pass

    class Spawning(ArrowComputeNode):
        def spawn(self, *args: object, **kwargs: object) -> Task:
            return OwnTask(*args, **kwargs)  # type: ignore[arg-type]

    class Processing(PythonScriptNode):
        def process(self, runtime_ctx: object, input_datasets: object, output_path: str) -> bool:
            return True

    planner = Planner(job)
    (task,) = planner.plan_node(Spawning(ctx, (source(ctx),), cpu_limit=2))
    assert type(task) is OwnTask
    assert task.process_func is None
    assert task.cpu_limit == 2
    node = Processing(ctx, (evenly(ctx, source(ctx), 2),))
    one, other = planner.plan_node(node)
    assert one.process_func == node.process  # type: ignore[attr-defined]
    assert one.process_func is other.process_func, "one object, so that it is pickled once"  # type: ignore[attr-defined]


def test_a_kind_of_node_that_the_planner_does_not_know(ctx: Context, job: RuntimeContext) -> None:
    class Own(Node):
        def create_task(self, runtime_ctx: RuntimeContext, input_deps: list[Task], partition_infos: list) -> Task:
            return Task(runtime_ctx, input_deps, partition_infos, self.output_name)

    node = Own(ctx, (evenly(ctx, source(ctx), 3),), output_name="own")
    assert node.num_partitions == 3
    assert kinds(Planner(job).plan_node(node)) == ["Task"] * 3


# sinks and the plan as a whole


def sinks_of(plan_tasks: list[Task]) -> list[DataSinkTask]:
    return [task for task in plan_tasks if isinstance(task, DataSinkTask)]


@pytest.mark.parametrize(
    ("type_", "collects"), [("copy", True), ("link_or_copy", True), ("link", True), ("manifest", False)]
)
def test_a_sink_collects_in_parallel_and_publishes_once(
    ctx: Context, job: RuntimeContext, type_: str, collects: bool
) -> None:
    below = evenly(ctx, source(ctx), 3)
    planner = Planner(job)
    (publishing,) = sinks_of(planner.plan_node(DataSinkNode(ctx, (below,), "/out", type=type_)))  # type: ignore[arg-type]
    assert publishing.type == ("link_manifest" if collects else "manifest")
    if collects:
        assert [(task.type, inputs(task)) for task in sinks_of(inputs(publishing))] == [  # type: ignore[comparison-overlap]
            (type_, [task]) for task in planner.plan_node(below)
        ]
        assert partitions(inputs(publishing)) == partitions(planner.plan_node(below))
    else:
        assert inputs(publishing) == planner.plan_node(below)


def test_final_results_are_listed(ctx: Context, job: RuntimeContext) -> None:
    query = sql(ctx, source(ctx))
    plan = Planner(job).create_exec_plan(LogicalPlan(ctx, query))
    sink = plan.root_task.final_sink
    assert isinstance(sink, DataSinkTask)
    assert (sink.type, sink.output_path) == ("manifest", os.path.join(job.output_root, "FinalResults"))
    assert sink.location == query.location
    assert not inputs(sink)[0].temp_output, "what a manifest lists is kept"
    linked = (
        Planner(job).create_exec_plan(LogicalPlan(ctx, query), manifest_only_final_results=False).root_task.final_sink
    )
    assert isinstance(linked, DataSinkTask)
    assert linked.type == "link_manifest"


def test_final_results_are_copied_to_where_the_user_wants_them(ctx: Context, job: RuntimeContext) -> None:
    job.final_output_path = "/results"
    sink = Planner(job).create_exec_plan(LogicalPlan(ctx, sql(ctx, source(ctx)))).root_task.final_sink
    assert isinstance(sink, DataSinkTask)
    assert sink.output_path == "/results"
    assert [task.type for task in sinks_of(inputs(sink))] == ["copy"]


def test_each_output_name_has_a_sink(ctx: Context, job: RuntimeContext) -> None:
    first = sql(ctx, source(ctx), output_name="one")
    second = sql(ctx, first, output_name="two")
    also_one = sql(ctx, first, output_name="one")
    plan = Planner(job).create_exec_plan(LogicalPlan(ctx, RootNode(ctx, (second, also_one))))
    by_path = {os.path.basename(task.output_path): task for task in sinks_of(inputs(plan.root_task))}
    assert sorted(by_path) == ["FinalResults", "one", "two"]
    assert {task.node_id for task in inputs(by_path["one"])} == {first.id, also_one.id}
    assert {task.node_id for task in inputs(by_path["FinalResults"])} == {second.id, also_one.id}


def test_two_sinks_into_one_directory(ctx: Context, job: RuntimeContext) -> None:
    sinks = [DataSinkNode(ctx, (sql(ctx, source(ctx)),), path) for path in ("/out", "/elsewhere", "/out/")]
    with pytest.raises(InvalidArgument, match=f"output_path /out is also that of {sinks[0]} at .*test_planner"):
        Planner(job).create_exec_plan(LogicalPlan(ctx, RootNode(ctx, sinks)))
    Planner(job).create_exec_plan(LogicalPlan(ctx, RootNode(ctx, sinks[:2])))


def test_the_name_of_the_result_is_taken(ctx: Context, job: RuntimeContext) -> None:
    with pytest.raises(InvalidArgument, match="FinalResults"):
        Planner(job).create_exec_plan(LogicalPlan(ctx, sql(ctx, output_name="FinalResults")))


def test_a_name_for_partitions_of_which_no_data_is_moved(ctx: Context, job: RuntimeContext) -> None:
    consumers = Planner(job).plan_node(evenly(ctx, source(ctx), 2, output_name="cut"))
    assert [(task.output_name, task.temp_output) for task in inputs(consumers[0])] == [("cut", False)]


def test_a_plan_can_be_planned_again(ctx: Context, job: RuntimeContext) -> None:
    plan = LogicalPlan(ctx, sql(ctx, hashed(ctx, source(ctx), 3), output_name="named"))
    one, other = (Planner(job).create_exec_plan(plan) for _ in range(2))
    assert [type(task) for task in one.tasks.values()] == [type(task) for task in other.tasks.values()]
    assert not one.tasks.keys() & other.tasks.keys()


def test_splits_take_their_share(ctx: Context, job: RuntimeContext) -> None:
    producers = inputs(Planner(job).plan_node(loaded(ctx, source(ctx), 2))[0])
    splits = [inputs(producer)[0] for producer in producers]
    assert all(isinstance(split, SplitDataSetTask) for split in splits)
    assert [split.split.index for split in splits if isinstance(split, SplitDataSetTask)] == list(range(8))
