"""Nodes check what they are given, know where they stand, and travel light."""

import pickle
from pathlib import Path

import cloudpickle
import pytest

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.fingerprint import digest_of
from smallpond_mpi.execution.task.metrics import PerfStats
from smallpond_mpi.logical.node import (
    ArrowBatchNode,
    ArrowComputeNode,
    ArrowStreamNode,
    ConsolidateNode,
    Context,
    DataSetPartitionNode,
    DataSinkNode,
    DataSourceNode,
    HashPartitionNode,
    LimitNode,
    Node,
    PandasBatchNode,
    PandasComputeNode,
    PartitionNode,
    ProjectionNode,
    PythonScriptNode,
    RepeatPartitionNode,
    RootNode,
    ShuffleNode,
    SqlEngineNode,
    UnionNode,
)
from smallpond_mpi.logical.planner import Planner
from smallpond_mpi.logical.udf import UDFType, udf
from tests.unit.logical.plan_builders import evenly, hashed, inputs, source, sql


def line_of(node: Node) -> int:
    return int(node.location.rpartition(":")[2])


def test_nodes_are_numbered_from_one(ctx: Context) -> None:
    nodes = [source(ctx), source(ctx)]
    assert [node.id for node in nodes] == [1, 2]
    assert str(nodes[1].id) == "000002"
    assert source(Context()).id == 1


def test_a_plan_has_one_context(ctx: Context) -> None:
    with pytest.raises(InvalidArgument, match="belongs to another Context"):
        sql(ctx, source(Context()))


def test_the_location_is_the_users_line(ctx: Context) -> None:
    here = SqlEngineNode(ctx, (), "SELECT 1")
    assert here.location == f"{__file__}:{line_of(here)}"
    assert "here = SqlEngineNode" in Path(__file__).read_text().splitlines()[line_of(here) - 1]
    through_the_package = DataSetPartitionNode(ctx, (here,), 1)
    assert through_the_package.location == f"{__file__}:{line_of(here) + 3}"


@pytest.mark.parametrize("name", ["a-b", "", "a b", "a\n", "ä", "a/b", "results.parquet"])
def test_output_names(ctx: Context, name: str) -> None:
    with pytest.raises(InvalidArgument, match="output_name"):
        sql(ctx, output_name=name)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"output_path": "relative/path"}, "absolute path"),
        ({"cpu_limit": 0}, "cpu_limit must be at least 1, not 0"),
        ({"cpu_limit": 1.5}, "cpu_limit must be an int, not 1.5"),
        ({"cpu_limit": True}, "cpu_limit must be an int"),
        ({"memory_limit": 0}, "memory_limit"),
        ({"memory_limit": float("nan")}, "memory_limit"),
        ({"parquet_row_group_size": 0}, "parquet_row_group_size"),
        ({"batched_processing": True}, "batched_processing needs exactly one input, there are 0"),
        ({"udfs": ["missing"]}, r"no function 'missing' in the context \(known: none\)"),
        ({"udfs": [len]}, "made by @udf"),
        ({"sql_query": []}, "sql_query"),
        ({"sql_query": " "}, "sql_query"),
        ({"sql_query": ["SELECT 1", None]}, "sql_query"),
        ({"input_deps": ("x",)}, "input_deps must be nodes, not str"),
    ],
)
def test_arguments_that_can_be_refused_at_once(ctx: Context, arguments: dict, what: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{what}.*SqlEngineNode at .*test_nodes.py:\\d+"):
        SqlEngineNode(ctx, **{"input_deps": (), "sql_query": "SELECT 1"} | arguments)


@pytest.mark.parametrize("npartitions", [0, -1, 1.0, "3", None, True])
@pytest.mark.parametrize("kind", [HashPartitionNode, ShuffleNode, PartitionNode, RepeatPartitionNode])
def test_npartitions(ctx: Context, kind: type[PartitionNode], npartitions: object) -> None:
    more = {"hash_columns": ["k"]} if kind is HashPartitionNode else {"dimension": "d"}
    with pytest.raises(InvalidArgument, match=f"npartitions must be .*not {npartitions!r}.*test_nodes.py"):
        kind(ctx, (source(ctx),), npartitions, **more)  # type: ignore[arg-type]


def test_ten_million_partitions(ctx: Context) -> None:
    with pytest.raises(InvalidArgument, match="at most 4,096,000, not 10,000,000: use fewer, larger partitions"):
        hashed(ctx, source(ctx), 10_000_000)


def test_integers_of_other_kinds_are_integers(ctx: Context) -> None:
    import numpy as np

    assert type(hashed(ctx, source(ctx), np.int64(3)).npartitions) is int  # type: ignore[arg-type]


def test_a_gpu_comes_with_eight_cpus(ctx: Context) -> None:
    def limits(**asked: float) -> tuple[int, int]:
        node = ArrowComputeNode(ctx, (source(ctx),), process_func=lambda ctx, tables: tables[0], **asked)  # type: ignore[arg-type]
        return node.cpu_limit, node.cpu_limit_asked

    assert limits(gpu_limit=1) == (8, 1)
    assert limits(gpu_limit=0.5) == (4, 1)
    assert limits(gpu_limit=0.3, cpu_limit=2) == (3, 2)
    assert limits(gpu_limit=2, cpu_limit=20) == (20, 20)
    assert limits() == (1, 1)


def test_class_attributes_are_settings(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqlEngineNode, "default_cpu_limit", 4)
    monkeypatch.setattr(HashPartitionNode, "default_engine_type", "arrow")
    assert sql(ctx).cpu_limit == 4
    assert sql(ctx, cpu_limit=2).cpu_limit == 2
    assert hashed(ctx, source(ctx), 2).engine_type == "arrow"
    assert hashed(ctx, source(ctx), 2, engine_type="duckdb").engine_type == "duckdb"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda ctx, dep: HashPartitionNode(ctx, (dep,), 2), "hash_columns is empty"),
        (lambda ctx, dep: HashPartitionNode(ctx, (dep,), 2, "host"), "hash_columns must be a list"),
        (lambda ctx, dep: HashPartitionNode(ctx, (dep,), 2, ["k"], engine_type="polars"), "'duckdb' or 'arrow'"),
        (
            lambda ctx, dep: HashPartitionNode(ctx, (dep,), 2, random_shuffle=True, shuffle_only=True),
            "exclude each other",
        ),
        (lambda ctx, dep: HashPartitionNode(ctx, (dep,), 2, ["k"], dimension=""), "dimension must be a name"),
        (lambda ctx, dep: HashPartitionNode(ctx, (), 2, ["k"]), "nothing to partition"),
        (lambda ctx, dep: LimitNode(ctx, dep, -1), "limit must be at least 0, not -1"),
        (lambda ctx, dep: LimitNode(ctx, dep, "5"), "limit must be an int"),
        (lambda ctx, dep: UnionNode(ctx, ()), "at least one input"),
        (lambda ctx, dep: UnionNode(ctx, dep), "tuple of nodes, not a single DataSourceNode"),
        (lambda ctx, dep: ConsolidateNode(ctx, dep, "day"), "dimensions must be a list"),
        (lambda ctx, dep: ProjectionNode(ctx, dep, "a"), "columns must be a list"),
        (lambda ctx, dep: ProjectionNode(ctx, dep, None, ["row"]), "filename, file_row_number, not 'row'"),
        (lambda ctx, dep: DataSinkNode(ctx, (dep,), "out"), "absolute path"),
        (lambda ctx, dep: DataSinkNode(ctx, (dep,), None), "absolute path"),
        (lambda ctx, dep: DataSinkNode(ctx, (dep,), "/out", type="move"), "link, copy, link_or_copy, manifest"),
        (lambda ctx, dep: DataSinkNode(ctx, (), "/out"), "input_deps is empty"),
        (lambda ctx, dep: DataSourceNode(ctx, "/data"), "must be a DataSet, not str"),
        (lambda ctx, dep: PythonScriptNode(ctx, (dep,), process_func="f"), "must be a function"),
    ],
)
def test_what_kinds_refuse(ctx: Context, make, what: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{what}.*test_nodes.py"):
        make(ctx, source(ctx))


@pytest.mark.parametrize(
    "kind", [PythonScriptNode, ArrowComputeNode, ArrowStreamNode, ArrowBatchNode, PandasComputeNode, PandasBatchNode]
)
def test_a_function_is_needed(ctx: Context, kind: type[ArrowComputeNode]) -> None:
    with pytest.raises(InvalidArgument, match=f"process_func.*{kind.__name__}"):
        kind(ctx, (source(ctx),))

    class Processing(kind):  # type: ignore[valid-type, misc]
        def process(self, runtime_ctx: object, given: object, *more: object) -> None:
            return None

    class Spawning(kind):  # type: ignore[valid-type, misc]
        def spawn(self, *args: object, **kwargs: object) -> None:
            return None

    assert Processing(ctx, (source(ctx),))._function_to_send() is not None
    assert Spawning(ctx, (source(ctx),))._function_to_send() is None


# functions for SQL


def test_functions_by_name_and_by_decorator(ctx: Context) -> None:
    @udf([UDFType.INTEGER], UDFType.INTEGER)
    def twice(x: int) -> int:
        return 2 * x

    ctx.create_function("thrice", lambda x: 3 * x, [UDFType.INTEGER], UDFType.INTEGER)
    one, other = sql(ctx, udfs=[twice, "thrice"]), sql(ctx, udfs=["twice", twice])
    assert [found.name for found in one.udfs] == ["twice", "thrice"]
    assert one.udfs[0] is other.udfs[0]
    assert len(other.udfs) == 1


def test_two_functions_of_one_name(ctx: Context) -> None:
    one, other = (udf([UDFType.INTEGER], UDFType.INTEGER, name="f")(function) for function in (abs, hex))
    assert sql(ctx, udfs=[one]).udfs[0] is not sql(ctx, udfs=[other]).udfs[0]
    with pytest.raises(InvalidArgument, match="two different functions are called 'f'"):
        sql(ctx, udfs=[one, other])


def test_python_functions_hold_the_interpreter(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqlEngineNode, "default_cpu_limit", 8)
    ctx.create_function("f", abs, None, None)
    assert sql(ctx, udfs=["f"]).cpu_limit == SqlEngineNode.max_udf_cpu_limit
    assert sql(ctx, udfs=["f"], cpu_limit=6).cpu_limit == 6


def test_files_of_functions_are_named_after_the_file(ctx: Context) -> None:
    assert ctx.create_duckdb_extension("/x/spatial.duckdb_extension") == "spatial"
    assert ctx.create_external_module("/x/own.so", "mine") == "mine"
    node = sql(ctx, extension_paths=["/x/json.duckdb_extension"], udf_module_paths=["/x/fast.so"])
    assert [found.name for found in node.udfs] == ["json", "fast"]


# travelling


class Scaling(ArrowComputeNode):
    def __init__(self, ctx: Context, dep: Node, factor: int) -> None:
        super().__init__(ctx, (dep,))
        self.factor = factor

    def process(self, runtime_ctx: RuntimeContext, input_tables: list) -> int:  # type: ignore[override]
        return self.factor


def test_a_bound_process_carries_its_node_and_not_the_plan(ctx: Context, job: RuntimeContext) -> None:
    big = source(ctx, *(f"/data/{number}" for number in range(10_000)))
    (task,) = Planner(job).plan_node(Scaling(ctx, big, 3))
    sent = cloudpickle.dumps(task.process_func)  # type: ignore[attr-defined]
    assert len(sent) < 5_000
    process = pickle.loads(sent)
    assert process(None, []) == 3
    assert not hasattr(process.__self__, "ctx")
    assert not hasattr(process.__self__, "input_deps")


def test_what_a_result_depends_on_is_neither_place_nor_grant(ctx: Context) -> None:
    one = Scaling(ctx, source(ctx), 3)
    other = Scaling(ctx, source(ctx), 3)
    other.cpu_limit = 7
    other.add_perf_metrics("num output rows", 1)
    assert one.location != other.location
    assert digest_of(one.process) == digest_of(other.process)
    assert digest_of(one.process) != digest_of(Scaling(ctx, source(ctx), 4).process)


def test_the_location_of_a_users_kind_is_where_it_is_used(ctx: Context) -> None:
    node = Scaling(ctx, source(ctx), 3)
    assert "node = Scaling" in Path(__file__).read_text().splitlines()[line_of(node) - 1]


# metrics and sizes


def test_metrics_of_its_tasks(ctx: Context) -> None:
    node = source(ctx)
    assert node.get_perf_stats("secs") is None
    node.add_perf_metrics("secs", [3.0, 1.0])
    node.add_perf_metrics("secs", 2.0)
    assert node.get_perf_stats("secs") == PerfStats(3, 6.0, 1.0, 3.0, 2.0, 2.0, 3.0, 3.0, 3.0)


def test_num_partitions_is_what_the_planner_makes(ctx: Context, job: RuntimeContext) -> None:
    days = evenly(ctx, source(ctx), 2, dimension="day")
    nested = evenly(ctx, days, 3, dimension="host", nested=True)
    nodes: list[Node] = [
        source(ctx),
        days,
        nested,
        sql(ctx),
        sql(ctx, days, nested, query="SELECT 1"),
        sql(ctx, days, evenly(ctx, source(ctx), 5, dimension="x"), query="SELECT 1"),
        UnionNode(ctx, (days, days)),
        sql(ctx, UnionNode(ctx, (days, days)), days, query="SELECT 1"),
        ConsolidateNode(ctx, nested, ["host"]),
        evenly(ctx, UnionNode(ctx, (days, days)), 3, dimension="host", nested=True),
        LimitNode(ctx, nested, 1),
        RootNode(ctx, (days, nested)),
        ProjectionNode(ctx, nested, ["a"]),
        DataSinkNode(ctx, (nested,), "/out"),
    ]
    planner = Planner(job)
    assert [node.num_partitions for node in nodes] == [len(planner.plan_node(node)) for node in nodes]


def test_settings_reach_the_task(ctx: Context, job: RuntimeContext) -> None:
    node = sql(
        ctx,
        source(ctx),
        query=["CREATE TABLE t AS FROM {0}", "FROM t"],  # type: ignore[arg-type]
        materialize_in_memory=True,
        enable_temp_directory=True,
        parquet_row_group_size=1000,
        parquet_compression="SNAPPY",
        cpu_limit=3,
        memory_limit=2**30,
        memory_overcommit_ratio=0.5,
        output_name="out",
        output_path="/out",
    )
    (task,) = Planner(job).plan_node(node)
    for name in (
        *("sql_queries", "materialize_in_memory", "enable_temp_directory", "parquet_row_group_size", "cpu_limit"),
        *("parquet_compression", "memory_limit", "memory_overcommit_ratio", "output_name"),
    ):
        assert getattr(task, name) == getattr(node, name), name
    assert task.output_root == "/out"
    assert len(inputs(task)) == 1


def test_a_context_can_be_shown(ctx: Context) -> None:
    ctx.create_function("f", abs, None, None)
    source(ctx)
    assert str(ctx) == "Context(1 nodes, functions: f)"
