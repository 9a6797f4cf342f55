"""How rows leave a DataFrame as files: Parquet, CSV and JSON in a directory that appears whole or not at all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smallpond_mpi import arguments
from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.logical import relational
from smallpond_mpi.logical.dataset import CsvDataSet, JsonDataSet
from smallpond_mpi.logical.node import (
    ConsolidateNode,
    DataSinkNode,
    DataSourceNode,
    EvenlyDistributedPartitionNode,
    Node,
    ProjectionNode,
    SqlEngineNode,
    UnionNode,
)
from smallpond_mpi.logical.node.write import WriteFilesNode
from smallpond_mpi.logical.schema import schema_of
from smallpond_mpi.relations import Relations

if TYPE_CHECKING:
    from smallpond_mpi.dataframe import DataFrame
    from smallpond_mpi.execution.task.publish import SinkMode


class Writing(Relations):
    """Ways to write rows."""

    def write_parquet(
        self, path: str, partition_by: "str | Sequence[str] | None" = None, mode: "SinkMode | None" = None
    ) -> None:
        """Write Parquet files into a directory, which appears whole or not at all.

        Args:
            partition_by: columns whose values become directories `column=value/` (and are not in the files).
            mode: what becomes of what is there already: `error`, `overwrite` (all is replaced, in one step), `append` (it stays; a job that
                is started again appends once). None: what this job put there itself is replaced, files of others are an error.

        Raises:
            OutputExists: files are there which the mode does not allow.
        """
        self.write_parquet_lazy(path, partition_by, mode).compute()

    def write_parquet_lazy(
        self, path: str, partition_by: "str | Sequence[str] | None" = None, mode: "SinkMode | None" = None
    ) -> "DataFrame":
        """As write_parquet, when the returned DataFrame is computed (or waited for)."""
        if partition_by is not None:
            there = schema_of(self.plan)
            names = relational.there(arguments.texts(partition_by, "partition_by"), there, "partition_by")
            if there is not None and len(names) >= len(there):
                raise InvalidArgument("partition_by: no column would be left for the files")
            return self._written(path, mode, format="parquet", partition_by=names)
        files = self if is_parquet(self.plan) else self._made(SqlEngineNode, sql_query="select * from {0}")
        return files._sink(path, mode)

    def write_csv(self, path: str, delim: str = ",", header: bool = True, mode: "SinkMode | None" = None) -> None:
        """Write CSV files into a directory, one a partition, which appears whole or not at all. NULL is written as an empty field.

        Args:
            path: the directory.
            delim: what stands between two values.
            header: whether the first line of each file names the columns.
            mode: as in write_parquet.
        """
        self.write_csv_lazy(path, delim, header, mode).compute()

    def write_csv_lazy(
        self, path: str, delim: str = ",", header: bool = True, mode: "SinkMode | None" = None
    ) -> "DataFrame":
        """As write_csv, when the returned DataFrame is computed (or waited for)."""
        return self._written(path, mode, format="csv", delim=delim, header=header)

    def write_json(self, path: str, mode: "SinkMode | None" = None) -> None:
        """Write JSON files, an object a line, into a directory, one a partition, which appears whole or not at all.

        Args:
            path: the directory.
            mode: as in write_parquet.
        """
        self.write_json_lazy(path, mode).compute()

    def write_json_lazy(self, path: str, mode: "SinkMode | None" = None) -> "DataFrame":
        """As write_json, when the returned DataFrame is computed (or waited for)."""
        return self._written(path, mode, format="json")

    def _written(self, path: str, mode: "SinkMode | None", **settings: Any) -> "DataFrame":
        return self._made(WriteFilesNode, **settings)._sink(path, mode, len(settings.get("partition_by", ())))

    def _sink(self, path: str, mode: "SinkMode | None", num_dirs: int = 0) -> "DataFrame":
        place = self.session._place_of_output(arguments.absolute_path(path), mode)
        return self._made(DataSinkNode, output_path=place, type="link_or_copy", mode=mode, num_dirs=num_dirs)

    def _made(self, kind: Any, **settings: Any) -> "DataFrame":
        return self._of(kind(self.plan.ctx, (self.plan,), **settings))


def is_parquet(plan: Node) -> bool:
    """Whether a node's output files are Parquet: all are, but for CSV and JSON sources and what only regroups their files."""
    if isinstance(plan, DataSourceNode):
        return not isinstance(plan.dataset, (CsvDataSet, JsonDataSet))
    if isinstance(plan, (EvenlyDistributedPartitionNode, ConsolidateNode, ProjectionNode, UnionNode)):
        return all(map(is_parquet, plan.input_deps))
    return True
