"""A Python function over whole inputs: Arrow tables or pandas frames in, one table out, written to Parquet."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from smallpond_mpi.common import DEFAULT_ROW_GROUP_SIZE, WrongReturnType
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin
from smallpond_mpi.execution.task.output import is_unknown, nothing_of, write_table, written_dataset
from smallpond_mpi.execution.task.partition_info import PartitionInfo

if TYPE_CHECKING:
    import pandas as pd

    from smallpond_mpi.logical.dataset import DataSet


class ArrowComputeTask(ExecSqlQueryMixin, Task):
    """`process_func(runtime_ctx, [table of each input]) -> table`, or an override of `process`.

    Args:
        process_func: gets the context and the inputs, returns the output.
        use_duckdb_reader: read inputs through DuckDB instead of Arrow.
        parquet_*: how the output is written.
    """

    cpu_overcommit_ratio = 0.5
    memory_overcommit_ratio = 0.5

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: "Sequence[Task] | Dependencies",
        partition_infos: Iterable[PartitionInfo],
        process_func: Callable[[RuntimeContext, list[Any]], Any] | None = None,
        parquet_row_group_size: int = DEFAULT_ROW_GROUP_SIZE,
        parquet_dictionary_encoding: bool = False,
        parquet_compression: str | None = "ZSTD",
        parquet_compression_level: int | None = 3,
        use_duckdb_reader: bool = False,
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int | None = None,
        gpu_limit: float | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            ctx, input_deps, partition_infos, output_name, output_path, cpu_limit or 1, gpu_limit or 0, memory_limit
        )
        self.process_func = process_func
        self.parquet_row_group_size = parquet_row_group_size
        self.parquet_row_group_bytes = 0
        self.parquet_dictionary_encoding = parquet_dictionary_encoding
        self.parquet_compression = parquet_compression
        self.parquet_compression_level = parquet_compression_level
        self.use_duckdb_reader = use_duckdb_reader

    def clean_complex_attrs(self) -> None:
        self.process_func = None
        super().clean_complex_attrs()

    def process(self, runtime_ctx: RuntimeContext, input_tables: list[Any]) -> Any:
        """The work: by default what process_func returns."""
        if self.process_func is None:
            raise NotImplementedError(f"{self.key} has neither a process_func nor a process() of its own")
        return self.process_func(runtime_ctx, input_tables)

    def run(self) -> bool:
        if any(map(is_unknown, self.input_datasets)) or self.skip_when_any_input_empty:
            self.dataset = nothing_of(self, self.input_datasets)
            return True
        self.add_elapsed_time()
        tables = self._read(list(self.input_datasets))
        self.perf_metrics["num input rows"] = sum(table.num_rows for table in tables)
        self.add_elapsed_time("input load time (secs)")
        output = self._checked(self.process(self.ctx, self._arguments(tables)))
        self.add_elapsed_time("compute time (secs)")
        self.dump_output(output)
        self.add_elapsed_time("output dump time (secs)")
        return True

    def _read(self, datasets: "list[DataSet]") -> list[pa.Table]:
        if not self.use_duckdb_reader:
            return [dataset.to_arrow_table(max_workers=self.cpu_limit) for dataset in datasets]
        with self.connection() as conn:
            return [dataset.to_arrow_table(max_workers=self.cpu_limit, conn=conn) for dataset in datasets]

    def _arguments(self, tables: list[pa.Table]) -> list[Any]:
        return tables

    def _checked(self, output: Any) -> pa.Table:
        if not isinstance(output, pa.Table):
            raise wrong_return(self, output, "a pyarrow.Table")
        return output

    def dump_output(self, output_table: pa.Table) -> None:
        """Write the output, row groups neither too many nor too big, and make it the task's dataset."""
        self.adjust_row_group_size(output_table.nbytes, output_table.num_rows)
        files = write_table(self, output_table)
        self.perf_metrics["num output rows"] = output_table.num_rows
        self.dataset = written_dataset(self, files)


class PandasComputeTask(ArrowComputeTask):
    """`process_func(runtime_ctx, [frame of each input]) -> frame`, or an override of `process`."""

    def process(self, runtime_ctx: RuntimeContext, input_dfs: "list[pd.DataFrame]") -> Any:
        """The work: by default what process_func returns."""
        return super().process(runtime_ctx, input_dfs)

    def _arguments(self, tables: list[pa.Table]) -> list[Any]:
        return [table.to_pandas() for table in tables]

    def _checked(self, output: Any) -> pa.Table:
        return frame_to_table(self, output)


def frame_to_table(task: Task, output: Any) -> pa.Table:
    """A frame that a user's function returned, without its index."""
    import pandas as pd

    if not isinstance(output, pd.DataFrame):
        raise wrong_return(task, output, "a pandas.DataFrame")
    return pa.Table.from_pandas(output, preserve_index=False)


def wrong_return(task: Task, output: object, wanted: str) -> WrongReturnType:
    """The error for a user's function that returned something else."""
    func = getattr(task, "process_func", None) or task.process  # type: ignore[attr-defined]
    name = getattr(func, "__qualname__", None) or repr(func)
    shown = repr(output)
    shown = shown if len(shown) <= 200 else shown[:200] + "..."
    return WrongReturnType(f"{name} returned {type(output).__qualname__} {shown} and should return {wanted}")
