"""Where data comes from and where results go."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from smallpond_mpi.logical.node.base import Context, Node, Shape

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.partition_info import PartitionInfo
    from smallpond_mpi.execution.task.publish import SinkMode
    from smallpond_mpi.logical.dataset import DataSet

DataSinkType = Literal["link", "copy", "link_or_copy", "manifest"]


class DataSourceNode(Node):
    """A dataset, as one partition. In-memory and SQL datasets are written as Parquet once."""

    visit_method = "visit_data_source_node"

    def __init__(self, ctx: Context, dataset: "DataSet") -> None:
        super().__init__(ctx, ())
        if not hasattr(
            type(dataset), "resolved_paths"
        ):  # asked of the class: an object would go and look for its files
            raise self.invalid(f"dataset must be a DataSet, not {type(dataset).__name__}")
        self.dataset = dataset

    def shape(self, inputs: list[Shape]) -> Shape:
        return Shape({})

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.source import DataSourceTask

        return DataSourceTask(runtime_ctx, self.dataset, partition_infos)


class DataSinkNode(Node):
    """Put all output files of the inputs into `output_path`.

    Args:
        output_path: absolute.
        type: `link` hard-links (to another mount: symlinks), `copy` copies, `link_or_copy` links or, across mounts, copies,
            `manifest` only writes a list of the files.
        manifest_only: the same as type `manifest`.
        is_final_node: the output is the job's result.
        mode: what becomes of what is at the output path already: `error`, `overwrite` (all of it is replaced), `append` (it stays, and its
            manifest lists the new files too). None: what this job itself put there is replaced, files of others are an error.
        num_dirs: how many of the directories that a file lies in it keeps.
    """

    visit_method = "visit_data_sink_node"

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        output_path: str,
        type: DataSinkType = "link",
        manifest_only: bool = False,
        is_final_node: bool = False,
        mode: "SinkMode | None" = None,
        num_dirs: int = 0,
    ) -> None:
        super().__init__(ctx, input_deps, output_path=output_path)
        if output_path is None:
            raise self.invalid("output_path must be an absolute path, not None")
        if type not in get_args(DataSinkType):
            raise self.invalid(f"type must be one of {', '.join(get_args(DataSinkType))}, not {type!r}")
        if not self.input_deps:
            raise self.invalid("input_deps is empty: there is nothing to put into the output path")
        self.output_path: str = os.path.normpath(output_path)
        self.type: DataSinkType = "manifest" if manifest_only else type
        self.is_final_node = is_final_node
        if mode not in (None, "error", "overwrite", "append"):
            raise self.invalid(f"mode must be error, overwrite or append, not {mode!r}")
        self.mode = mode
        self.num_dirs = num_dirs

    @property
    def manifest_only(self) -> bool:
        """Whether files stay where they are and are only listed."""
        return self.type == "manifest"

    @property
    def is_one_table(self) -> bool:
        """Whether all files must fit together: those of several inputs may be of several tables."""
        return len(self.input_deps) == 1 and not isinstance(self.input_deps[0], RootNode)

    def shape(self, inputs: list[Shape]) -> Shape:
        return Shape({})

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        """The task that publishes: what others collected in staging, or a list of files where they are."""
        from smallpond_mpi.execution.task.sink import DataSinkTask

        return DataSinkTask(
            runtime_ctx,
            input_deps,
            partition_infos,
            self.output_path,
            type="manifest" if self.manifest_only else "link_manifest",
            is_final_node=self.is_final_node,
            mode=self.mode,
            num_dirs=self.num_dirs,
            is_one_table=self.is_one_table,
        )

    def create_collect_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        """A task that puts the files of one partition into staging beside the output path: copies, links, or rows written out."""
        from smallpond_mpi.execution.task.sink import DataSinkTask

        return DataSinkTask(
            runtime_ctx,
            input_deps,
            partition_infos,
            self.output_path,
            type=self.type,
            mode=self.mode,
            num_dirs=self.num_dirs,
            is_one_table=self.is_one_table,
        )


class RootNode(Node):
    """Several nodes as one root of a plan."""

    visit_method = "visit_root_node"

    def __init__(self, ctx: Context, input_deps: Sequence[Node]) -> None:
        super().__init__(ctx, input_deps)

    def shape(self, inputs: list[Shape]) -> Shape:
        return Shape({}, sum(shape.num_partitions for shape in inputs))

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.plan import RootTask

        return RootTask(runtime_ctx, input_deps, partition_infos)
