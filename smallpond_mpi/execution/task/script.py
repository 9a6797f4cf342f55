"""A Python function that does as it likes with its inputs and leaves files in a directory."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.compute import wrong_return
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin
from smallpond_mpi.execution.task.partition_info import PartitionInfo

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet


class PythonScriptTask(ExecSqlQueryMixin, Task):
    """`process_func(runtime_ctx, input_datasets, output_path) -> bool`, or an override of `process`.

    What it leaves under output_path is its output, `*` as Parquet, unless it sets `dataset`. A false return fails the attempt.
    """

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: "Sequence[Task] | Dependencies",
        partition_infos: Iterable[PartitionInfo],
        process_func: "Callable[[RuntimeContext, list[DataSet], str], bool] | None" = None,
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

    def clean_complex_attrs(self) -> None:
        self.process_func = None
        super().clean_complex_attrs()

    def process(self, runtime_ctx: RuntimeContext, input_datasets: "list[DataSet]", output_path: str) -> bool:
        """The work: by default what process_func returns."""
        if self.process_func is None:
            raise NotImplementedError(f"{self.key} has neither a process_func nor a process() of its own")
        return self.process_func(runtime_ctx, input_datasets, output_path)

    def run(self) -> bool:
        if self.skip_when_any_input_empty:
            return True
        self.add_elapsed_time()
        done = self.process(self.ctx, list(self.input_datasets), self.runtime_output_abspath)
        self.add_elapsed_time("compute time (secs)")
        # None, which a forgotten return gives, and a result that was meant to be the output are mistakes, not verdicts.
        if not isinstance(done, (bool, int)):
            raise wrong_return(self, done, "True when it succeeded, or False")
        return bool(done)
