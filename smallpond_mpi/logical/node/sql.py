"""Nodes whose tasks run SQL in DuckDB."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallpond_mpi.common import DEFAULT_ROW_GROUP_SIZE
from smallpond_mpi.logical.node.base import Context, Node, Shape

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.partition_info import PartitionInfo
    from smallpond_mpi.logical.udf import UDFContext, UserDefinedFunction


class SqlEngineNode(Node):
    """SQL on each partition: all queries run, the last one's result is the output.

    Args:
        sql_query: a query or several; inputs are `{0}`, `{1}`, ...
        udfs: functions that the queries call: names given to `Context.create_*`, or what `@udf` made.
        per_thread_output: whether each thread of DuckDB writes a file of its own.
        materialize_output: whether the result is written; otherwise the query travels on and runs where it is read.
        materialize_in_memory: whether the result is computed as a whole before it is written.
        relax_memory_if_oom: accepted and without a meaning here: a task that runs out of memory gets more by itself.
        batched_processing: whether the (only) input is processed batch by batch.
        extension_paths: `.duckdb_extension` files to load.
        udf_module_paths: `.so` modules to load.
        enable_temp_directory: whether DuckDB may spill to the task's scratch directory already in the first attempt.
        cpu_overcommit_ratio: DuckDB threads for each CPU.
        memory_overcommit_ratio: DuckDB's share of the memory limit.
    """

    max_udf_cpu_limit = 3
    default_cpu_limit = 1
    default_memory_limit: int | None = None
    default_row_group_size = DEFAULT_ROW_GROUP_SIZE
    enable_resource_boost = True
    visit_method = "visit_query_engine_node"
    # Whether the result is the same however the rows of the first input are cut into partitions.
    is_by_row = False
    # Of a query that is `SELECT ... FROM ...`: what stands for each column of the result, so that some can be left out.
    select_list: Mapping[str, str] = {}
    # Whether it leaves rows out: a hint of how many there will be.
    is_filter = False

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        sql_query: str | Iterable[str],
        *,
        udfs: "list[str | UserDefinedFunction] | None" = None,
        per_thread_output: bool = True,
        materialize_output: bool = True,
        materialize_in_memory: bool = False,
        relax_memory_if_oom: bool | None = None,
        batched_processing: bool = False,
        extension_paths: list[str] | None = None,
        udf_module_paths: list[str] | None = None,
        enable_temp_directory: bool = False,
        parquet_row_group_size: int | None = None,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str = "ZSTD",
        parquet_compression_level: int | None = 3,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
        cpu_overcommit_ratio: float = 1.0,
        memory_overcommit_ratio: float = 0.9,
    ) -> None:
        default_cpus = self.default_cpu_limit
        if udfs or udf_module_paths:
            # A Python function holds the interpreter's lock: more threads than a few only wait for each other.
            default_cpus = min(default_cpus, self.max_udf_cpu_limit)
        super().__init__(
            ctx,
            input_deps,
            output_name,
            output_path,
            default_cpus if cpu_limit is None else cpu_limit,
            memory_limit=self.default_memory_limit if memory_limit is None else memory_limit,
        )
        self.sql_queries = self._checked_queries(sql_query)
        if batched_processing and len(self.input_deps) != 1:
            raise self.invalid(f"batched_processing needs exactly one input, there are {len(self.input_deps)}")
        self.udfs = self._resolved_udfs(udfs, extension_paths, udf_module_paths)
        self.per_thread_output = per_thread_output
        self.materialize_output = materialize_output
        self.materialize_in_memory = materialize_in_memory
        self.batched_processing = batched_processing
        self.enable_temp_directory = enable_temp_directory
        self.parquet_row_group_size = (
            self.default_row_group_size
            if parquet_row_group_size is None
            else self._whole_number("parquet_row_group_size", parquet_row_group_size, 1)
        )
        self.parquet_dictionary_encoding = parquet_dictionary_encoding
        self.parquet_compression = parquet_compression
        self.parquet_compression_level = parquet_compression_level
        self.cpu_overcommit_ratio = self._number("cpu_overcommit_ratio", cpu_overcommit_ratio, 0)
        self.memory_overcommit_ratio = self._number("memory_overcommit_ratio", memory_overcommit_ratio, 0)

    def _checked_queries(self, sql_query: Any) -> list[str]:
        queries = [sql_query] if isinstance(sql_query, str) else list(sql_query)
        if not queries or not all(isinstance(query, str) and query.strip() for query in queries):
            raise self.invalid(f"sql_query must be a query or several, not {sql_query!r}")
        return queries

    def _resolved_udfs(
        self, udfs: Any, extension_paths: list[str] | None, udf_module_paths: list[str] | None
    ) -> "list[UDFContext]":
        found = [self._known_udf(udf) if isinstance(udf, str) else self._made_udf(udf) for udf in udfs or ()]
        found += [self.ctx.udfs[self.ctx.create_duckdb_extension(path)] for path in extension_paths or ()]
        found += [self.ctx.udfs[self.ctx.create_external_module(path)] for path in udf_module_paths or ()]
        by_name = {udf.name: udf for udf in found}
        for udf in found:
            if by_name[udf.name] is not udf:
                raise self.invalid(f"two different functions are called {udf.name!r}")
        return list(by_name.values())

    def _known_udf(self, name: str) -> "UDFContext":
        if name not in self.ctx.udfs:
            known = ", ".join(self.ctx.udfs) or "none"
            raise self.invalid(f"there is no function {name!r} in the context (known: {known})")
        return self.ctx.udfs[name]

    def _made_udf(self, udf: "UserDefinedFunction") -> "UDFContext":
        """The context's version of what `@udf` made, the same one for all nodes that list it."""
        if not hasattr(udf, "func"):
            raise self.invalid(f"udfs must be names or functions made by @udf, not {udf!r}")
        known = self.ctx.udfs.get(udf.name)
        signature = (udf.func, udf.params, udf.return_type, udf.use_arrow_type)
        if known is None or signature != tuple(
            getattr(known, name, None) for name in ("func", "params", "return_type", "use_arrow_type")
        ):
            self.ctx.create_function(udf.name, *signature)
        return self.ctx.udfs[udf.name]

    @property
    def oneline_query(self) -> str:
        """The queries without line breaks."""
        return "; ".join(" ".join(query.split()) for query in self.sql_queries)

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        return self.spawn(
            runtime_ctx,
            input_deps,
            partition_infos,
            sql_queries=self.sql_queries,
            udfs=self.udfs,
            per_thread_output=self.per_thread_output,
            materialize_output=self.materialize_output,
            materialize_in_memory=self.materialize_in_memory,
            batched_processing=self.batched_processing,
            enable_temp_directory=self.enable_temp_directory,
            parquet_row_group_size=self.parquet_row_group_size,
            parquet_dictionary_encoding=self.parquet_dictionary_encoding,
            parquet_compression=self.parquet_compression,
            parquet_compression_level=self.parquet_compression_level,
            output_name=self.output_name,
            output_path=self.output_path,
            cpu_limit=self.cpu_limit,
            memory_limit=self.memory_limit,
            cpu_overcommit_ratio=self.cpu_overcommit_ratio,
            memory_overcommit_ratio=self.memory_overcommit_ratio,
        )

    def spawn(self, *args: Any, **kwargs: Any) -> "Task":
        """The task of one partition."""
        from smallpond_mpi.execution.task.sql import SqlEngineTask

        return SqlEngineTask(*args, **kwargs)


class LimitNode(SqlEngineNode):
    """The first `limit` rows, as one partition: of each partition first, then of all."""

    visit_method = "visit_limit_node"

    def __init__(self, ctx: Context, input_dep: Node, limit: int) -> None:
        super().__init__(ctx, (input_dep,), "SELECT * FROM {0}")
        self.limit = self._whole_number("limit", limit, 0)
        self.sql_queries = [self._query]

    @property
    def _query(self) -> str:
        return f"SELECT * FROM {{0}} LIMIT {self.limit}"

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.sql import SqlEngineTask

        task = super().create_task(runtime_ctx, input_deps, partition_infos)
        if isinstance(task, SqlEngineTask) and self.sql_queries == [
            self._query
        ]:  # the optimizer may have put in an order
            task.limit = self.limit
        return task

    def shape(self, inputs: list[Shape]) -> Shape:
        return Shape({})

    def create_merge_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        """The task that puts together what is left of the partitions."""
        from smallpond_mpi.execution.task.views import MergeDataSetsTask

        return MergeDataSetsTask(runtime_ctx, input_deps, partition_infos)
