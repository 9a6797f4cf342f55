"""A node that writes the first rows of its inputs into the log, for a look at what flows through a plan."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smallpond_mpi.execution.task.script import PythonScriptTask
from smallpond_mpi.logical.node.base import Context, Node
from smallpond_mpi.logical.node.compute import PythonScriptNode

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.logical.dataset import DataSet


class LogDataSetTask(PythonScriptTask):
    """Writes the first `num_rows` rows of each input into the log of its rank; its output is its first input."""

    num_rows = 200

    @property
    def exec_on_scheduler(self) -> bool:
        """True: one log, rank 0's, has them all."""
        return True

    @property
    def self_contained_output(self) -> bool:
        return False

    def process(self, runtime_ctx: "RuntimeContext", input_datasets: "list[DataSet]", output_path: str) -> bool:
        """Log each input."""
        for dataset in input_datasets:
            dataset.log(self.num_rows)
        self.dataset = input_datasets[0]
        return True


class LogDataSet(PythonScriptNode):
    """Logs the first `num_rows` rows of each partition of its inputs and hands the first input on."""

    def __init__(self, ctx: Context, input_deps: Sequence[Node], num_rows: int = 200, **kwargs: Any) -> None:
        super().__init__(ctx, input_deps, **kwargs)
        self.num_rows = self._whole_number("num_rows", num_rows, 1)

    def spawn(self, *args: Any, **kwargs: Any) -> "Task":
        """The task of one partition."""
        task = LogDataSetTask(*args, **kwargs)
        task.num_rows = self.num_rows
        return task
