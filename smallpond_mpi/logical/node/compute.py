"""Nodes that run a Python function of the user on each partition.

The function is given as `process_func`, or by overriding `process` (then the node itself travels with its tasks, without the plan),
or inside a Task subclass that `spawn` returns.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from smallpond_mpi.common import DEFAULT_BATCH_SIZE, DEFAULT_ROW_GROUP_SIZE
from smallpond_mpi.logical.node.base import Context, Node

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as arrow

    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.partition_info import PartitionInfo
    from smallpond_mpi.logical.dataset import DataSet


class ProcessNode(Node):
    """What the kinds of this module share: where the function comes from."""

    process_func: Callable[..., Any] | None

    def _set_process_func(self, process_func: Callable[..., Any] | None) -> None:
        if process_func is not None and not callable(process_func):
            raise self.invalid(f"process_func must be a function, not {type(process_func).__name__}")
        self.process_func = process_func
        if process_func is None and not self._overrides("process") and not self._overrides("spawn"):
            raise self.invalid("give process_func, or override process() or spawn()")

    def _overrides(self, method: str) -> bool:
        """Whether the user, not this package, defined a method."""
        defined = getattr(type(self), method)
        return method in self.__dict__ or not getattr(defined, "_default", False)

    def _function_to_send(self) -> Callable[..., Any] | None:
        """What each task calls: one object for all of them, so that it is pickled and hashed once."""
        if self.process_func is None and self._overrides("process"):
            bound: Callable[..., Any] = self.__dict__.setdefault("_process_func", getattr(self, "process"))  # noqa: B009
            return bound
        return self.process_func

    def _settings(self) -> dict[str, Any]:
        """Arguments of the task besides its inputs and partition."""
        return {
            "process_func": self._function_to_send(),
            "output_name": self.output_name,
            "output_path": self.output_path,
            "cpu_limit": self.cpu_limit,
            "gpu_limit": self.gpu_limit,
            "memory_limit": self.memory_limit,
        }

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        return self.spawn(runtime_ctx, input_deps, partition_infos, **self._settings())

    def spawn(self, *args: Any, **kwargs: Any) -> "Task":
        """The task of one partition."""
        raise NotImplementedError

    def _unset(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} was given neither process_func nor a process() of its own")


def default(method: Callable[..., Any]) -> Any:
    """Marks a method that is there for users to override."""
    method._default = True  # type: ignore[attr-defined]
    return method


class PythonScriptNode(ProcessNode):
    """`process_func(ctx, input_datasets, output_dir) -> bool` for each partition; its output is the Parquet files it leaves there."""

    visit_method = "visit_python_script_node"

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        *,
        process_func: "Callable[[RuntimeContext, list[DataSet], str], bool] | None" = None,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int = 1,
        gpu_limit: float = 0,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, output_name, output_path, cpu_limit, gpu_limit, memory_limit)
        self._set_process_func(process_func)

    @default
    def spawn(self, *args: Any, **kwargs: Any) -> "Task":
        from smallpond_mpi.execution.task.script import PythonScriptTask

        return PythonScriptTask(*args, **kwargs)

    @default
    def process(self, runtime_ctx: "RuntimeContext", input_datasets: "list[DataSet]", output_path: str) -> bool:
        """The work, if `process_func` is not given; true when it succeeded."""
        self._unset()
        return False


class ParquetWritingNode(ProcessNode):
    """A function whose tables are written as Parquet."""

    default_row_group_size = DEFAULT_ROW_GROUP_SIZE

    def _set_parquet_options(
        self,
        row_group_size: int | None,
        dictionary_encoding: bool,
        compression: str,
        compression_level: int | None,
        use_duckdb_reader: bool,
    ) -> None:
        self.parquet_row_group_size = (
            self.default_row_group_size
            if row_group_size is None
            else self._whole_number("parquet_row_group_size", row_group_size, 1)
        )
        self.parquet_dictionary_encoding = dictionary_encoding
        self.parquet_compression = compression
        self.parquet_compression_level = compression_level
        self.use_duckdb_reader = use_duckdb_reader

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "parquet_row_group_size": self.parquet_row_group_size,
            "parquet_dictionary_encoding": self.parquet_dictionary_encoding,
            "parquet_compression": self.parquet_compression,
            "parquet_compression_level": self.parquet_compression_level,
            "use_duckdb_reader": self.use_duckdb_reader,
        }


class ArrowComputeNode(ParquetWritingNode):
    """`process_func(ctx, input_tables) -> table` for each partition."""

    visit_method = "visit_arrow_compute_node"

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        *,
        process_func: "Callable[[RuntimeContext, list[arrow.Table]], arrow.Table] | None" = None,
        parquet_row_group_size: int | None = None,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str = "ZSTD",
        parquet_compression_level: int | None = 3,
        use_duckdb_reader: bool = False,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int = 1,
        gpu_limit: float = 0,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, output_name, output_path, cpu_limit, gpu_limit, memory_limit)
        self._set_process_func(process_func)
        self._set_parquet_options(
            parquet_row_group_size,
            parquet_dictionary_encoding,
            parquet_compression,
            parquet_compression_level,
            use_duckdb_reader,
        )

    @default
    def spawn(self, *args: Any, **kwargs: Any) -> "Task":
        from smallpond_mpi.execution.task.compute import ArrowComputeTask

        return ArrowComputeTask(*args, **kwargs)

    @default
    def process(self, runtime_ctx: "RuntimeContext", input_tables: "list[arrow.Table]") -> "arrow.Table":
        """The work, if `process_func` is not given."""
        return self._unset()


class PandasComputeNode(ArrowComputeNode):
    """`process_func(ctx, input_dataframes) -> dataframe` for each partition."""

    @default
    def spawn(self, *args: Any, **kwargs: Any) -> "Task":
        from smallpond_mpi.execution.task.compute import PandasComputeTask

        return PandasComputeTask(*args, **kwargs)

    @default
    def process(self, runtime_ctx: "RuntimeContext", input_dfs: "list[pd.DataFrame]") -> "pd.DataFrame":
        """The work, if `process_func` is not given."""
        return self._unset()


class ArrowStreamNode(ParquetWritingNode):
    """`process_func(ctx, input_readers) -> iterator of tables or StreamOutput` for each partition, with checkpoints.

    Args:
        background_io_thread: whether reading, computing and writing overlap.
        streaming_batch_size: rows a batch that readers give.
        secs_checkpoint_interval: an attempt that is interrupted goes on from what it had at most so long ago.
    """

    default_batch_size = DEFAULT_BATCH_SIZE
    default_secs_checkpoint_interval = 180
    visit_method = "visit_arrow_stream_node"

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        *,
        process_func: "Callable[[RuntimeContext, list[arrow.RecordBatchReader]], Iterable[arrow.Table]] | None" = None,
        background_io_thread: bool = True,
        streaming_batch_size: int | None = None,
        secs_checkpoint_interval: int | None = None,
        parquet_row_group_size: int | None = None,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str = "ZSTD",
        parquet_compression_level: int | None = 3,
        use_duckdb_reader: bool = False,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int = 1,
        gpu_limit: float = 0,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, output_name, output_path, cpu_limit, gpu_limit, memory_limit)
        self._set_process_func(process_func)
        self._set_parquet_options(
            parquet_row_group_size,
            parquet_dictionary_encoding,
            parquet_compression,
            parquet_compression_level,
            use_duckdb_reader,
        )
        self.background_io_thread = background_io_thread
        self.streaming_batch_size = self._whole_number(
            "streaming_batch_size", self.default_batch_size if streaming_batch_size is None else streaming_batch_size, 1
        )
        self.secs_checkpoint_interval = self._number(
            "secs_checkpoint_interval",
            self.default_secs_checkpoint_interval if secs_checkpoint_interval is None else secs_checkpoint_interval,
            0,
        )

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "background_io_thread": self.background_io_thread,
            "streaming_batch_size": self.streaming_batch_size,
            "secs_checkpoint_interval": self.secs_checkpoint_interval,
        }

    @default
    def spawn(self, *args: Any, **kwargs: Any) -> "Task":
        from smallpond_mpi.execution.task.stream import ArrowStreamTask

        return ArrowStreamTask(*args, **kwargs)

    @default
    def process(
        self, runtime_ctx: "RuntimeContext", input_readers: "list[arrow.RecordBatchReader]"
    ) -> "Iterable[arrow.Table]":
        """The work, if `process_func` is not given."""
        yield self._unset()


class ArrowBatchNode(ArrowStreamNode):
    """`process_func(ctx, input_tables) -> table` for each batch of a partition; inputs advance together."""

    @default
    def spawn(self, *args: Any, **kwargs: Any) -> "Task":
        from smallpond_mpi.execution.task.stream import ArrowBatchTask

        return ArrowBatchTask(*args, **kwargs)

    @default
    def process(self, runtime_ctx: "RuntimeContext", input_tables: "list[arrow.Table]") -> "arrow.Table":
        """The work, if `process_func` is not given."""
        return self._unset()


class PandasBatchNode(ArrowStreamNode):
    """`process_func(ctx, input_dataframes) -> dataframe` for each batch of a partition."""

    @default
    def spawn(self, *args: Any, **kwargs: Any) -> "Task":
        from smallpond_mpi.execution.task.stream import PandasBatchTask

        return PandasBatchTask(*args, **kwargs)

    @default
    def process(self, runtime_ctx: "RuntimeContext", input_dfs: "list[pd.DataFrame]") -> "pd.DataFrame":
        """The work, if `process_func` is not given."""
        return self._unset()
