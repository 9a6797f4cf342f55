"""Nodes that only rearrange what files a partition consists of."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from smallpond_mpi.common import GENERATED_COLUMNS
from smallpond_mpi.logical.node.base import Context, Node, Shape

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.partition_info import PartitionInfo


class UnionNode(Node):
    """The partitions of all inputs, side by side. All inputs must have the same dimensions."""

    visit_method = "visit_union_node"

    def __init__(self, ctx: Context, input_deps: Sequence[Node]) -> None:
        super().__init__(ctx, input_deps)
        if not self.input_deps:
            raise self.invalid("input_deps is empty: a union needs at least one input")

    def shape(self, inputs: list[Shape]) -> Shape:
        return Shape(inputs[0].dims, sum(shape.copies for shape in inputs))


class ConsolidateNode(Node):
    """Fewer, larger partitions without moving data: those that agree on `dimensions` become one."""

    visit_method = "visit_consolidate_node"

    def __init__(self, ctx: Context, input_dep: Node, dimensions: list[str]) -> None:
        super().__init__(ctx, (input_dep,))
        if isinstance(dimensions, str) or not all(isinstance(dimension, str) for dimension in dimensions):
            raise self.invalid(f"dimensions must be a list of names, not {dimensions!r}")
        self.dimensions = list(dimensions)

    def shape(self, inputs: list[Shape]) -> Shape:
        return Shape({name: count for name, count in inputs[0].dims.items() if name in self.dimensions})

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.views import MergeDataSetsTask

        return MergeDataSetsTask(runtime_ctx, input_deps, partition_infos)


class ProjectionNode(Node):
    """Only some columns of the input, in this order; no data is moved.

    Args:
        columns: names; None is all.
        generated_columns: also `filename` and `file_row_number` of each row.
        union_by_name: whether files are matched by the names of their columns; None: as the input says.
    """

    visit_method = "visit_projection_node"

    def __init__(
        self,
        ctx: Context,
        input_dep: Node,
        columns: list[str] | None = None,
        generated_columns: "list[Literal['filename', 'file_row_number']] | None" = None,
        union_by_name: bool | None = None,
    ) -> None:
        super().__init__(ctx, (input_dep,))
        for name, names in (("columns", columns), ("generated_columns", generated_columns)):
            if isinstance(names, str) or not (names is None or isinstance(names, Iterable)):
                raise self.invalid(f"{name} must be a list of names, not {names!r}")
        for column in generated_columns or ():
            if column not in GENERATED_COLUMNS:
                raise self.invalid(f"generated_columns can be {', '.join(GENERATED_COLUMNS)}, not {column!r}")
        self.columns = None if columns is None else list(columns)
        self.generated_columns: list[str] | None = None if generated_columns is None else list(generated_columns)
        self.union_by_name = union_by_name

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        from smallpond_mpi.execution.task.views import ProjectionTask

        return ProjectionTask(
            runtime_ctx, input_deps, partition_infos, self.columns, self.generated_columns, self.union_by_name
        )
