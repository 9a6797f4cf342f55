"""Nodes that write results in other formats than this package's own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from smallpond_mpi.logical.node.base import Context, Node

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.partition_info import PartitionInfo
    from smallpond_mpi.execution.task.write import WrittenFormat


class WriteFilesNode(Node):
    """Each partition as files of another format; a DataSinkNode after it puts them where the user wants them.

    Args:
        format: csv, json (an object a line), or parquet.
        delim, header: of CSV files.
        partition_by: columns whose values become directories `column=value/`.
    """

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        format: "WrittenFormat",
        delim: str = ",",
        header: bool = True,
        partition_by: Sequence[str] = (),
        cpu_limit: int = 1,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, cpu_limit=cpu_limit, memory_limit=memory_limit)
        if len(self.input_deps) != 1:
            raise self.invalid(f"one input is written, not {len(self.input_deps)}")
        if format not in ("csv", "json", "parquet"):
            raise self.invalid(f"format must be csv, json or parquet, not {format!r}")
        if not isinstance(delim, str) or len(delim) != 1:
            raise self.invalid(f"delim must be one character, not {delim!r}")
        self.format = format
        self.delim = delim
        self.header = bool(header)
        self.partition_by = list(partition_by)

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.write import WriteFilesTask

        return WriteFilesTask(
            runtime_ctx,
            input_deps,
            partition_infos,
            self.format,
            delim=self.delim,
            header=self.header,
            partition_by=self.partition_by,
            cpu_limit=self.cpu_limit,
            memory_limit=self.memory_limit,
        )
