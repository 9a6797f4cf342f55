"""How much data a node will give, guessed before it runs: from the files of its sources, and by rule of thumb from there.

Used to choose between ways that all give the same rows: a wrong guess costs time, never a result.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from smallpond_mpi.common import SmallpondError
from smallpond_mpi.io.parquet import read_footer
from smallpond_mpi.io.resolve import files_in, is_url
from smallpond_mpi.logical.dataset import DataSet, ParquetDataSet
from smallpond_mpi.logical.dataset.memory import InMemoryDataSet
from smallpond_mpi.logical.dataset.text import TextDataSet
from smallpond_mpi.logical.node.base import Node, topological
from smallpond_mpi.logical.node.keyed import KeyedSqlNode
from smallpond_mpi.logical.node.partition import RepeatPartitionNode
from smallpond_mpi.logical.node.reshape import UnionNode
from smallpond_mpi.logical.node.source_sink import DataSourceNode
from smallpond_mpi.logical.node.sql import LimitNode, SqlEngineNode
from smallpond_mpi.logical.query_columns import Schema, bound_query
from smallpond_mpi.logical.schema import schema_of

MAX_FILES_LOOKED_AT = 1000
UNKNOWN_ROWS = 10_000_000.0
"""Of what nobody can guess: enough that it is taken for large."""

FILTERED = 0.3
GROUPED = 0.2
NUMBER_BYTES = 8
TEXT_BYTES = 20
NESTED_BYTES = 64
UNKNOWN_COLUMNS = 10


class Estimates:
    """Rows and bytes of nodes. `computed` gives the outputs of those that were computed already."""

    def __init__(self, computed: Callable[[Node], Sequence[DataSet] | None]) -> None:
        self._computed = computed
        self._rows: dict[Node, float] = {}

    def rows(self, node: Node) -> float:
        """Rows of a node's output."""
        for needed in topological([node], known=self._rows.__contains__):
            self._rows[needed] = self._guess(needed)
        return self._rows[node]

    def num_bytes(self, node: Node) -> float:
        """Uncompressed bytes of a node's output."""
        return self.rows(node) * row_bytes(schema_of(node))

    def bytes_before_moving(self, node: Node, before: str) -> float:
        """Bytes of the rows of a query that sums up parts of a node's output."""
        schema = schema_of(node)
        columns = None if schema is None else bound_query(before, [schema])
        return self.rows(node) * GROUPED * row_bytes(columns)

    def _guess(self, node: Node) -> float:
        datasets = self._computed(node)
        if datasets is not None:
            return sum(map(rows_of_dataset, datasets))
        inputs = [self._rows[dep] for dep in node.input_deps]
        match node:
            case DataSourceNode():
                return rows_of_dataset(node.dataset)
            case LimitNode():
                return min(inputs[0], node.limit)
            case KeyedSqlNode():
                return max(inputs) * (GROUPED if len(inputs) == 1 else 1)
            case SqlEngineNode():
                return max(inputs, default=UNKNOWN_ROWS) * (FILTERED if node.is_filter else 1)
            case UnionNode():
                return sum(inputs)
            case RepeatPartitionNode():
                return sum(inputs) * node.npartitions
        return max(inputs, default=UNKNOWN_ROWS)


def row_bytes(schema: Schema | None) -> int:
    """Bytes a row of these columns, by their types."""
    if schema is None:
        return UNKNOWN_COLUMNS * NUMBER_BYTES
    return max(1, sum(_column_bytes(kind.id) for kind in schema.values()))


def _column_bytes(kind: str) -> int:
    if kind in ("list", "array", "map", "struct", "union"):
        return NESTED_BYTES
    return TEXT_BYTES if kind in ("varchar", "blob") else NUMBER_BYTES


def rows_of_dataset(dataset: DataSet) -> float:
    """Rows of a dataset: as known, or from the sizes of some files and the footer of one."""
    if isinstance(dataset, InMemoryDataSet):
        return float(dataset.num_rows)
    with suppress(OSError, SmallpondError):
        if isinstance(dataset, ParquetDataSet):
            return _rows_of_parquet(dataset)
        if isinstance(dataset, TextDataSet):
            return _size_of(dataset.resolved_paths) / max(1, NUMBER_BYTES * len(dataset.schema))
    return UNKNOWN_ROWS


def _rows_of_parquet(dataset: ParquetDataSet) -> float:
    known = dataset._ranges_as_known()
    if all(item.is_known for item in known):
        return float(sum(item.num_rows for item in known))
    files = [item.path for item in known]
    first = next((file for path in files for file in _files(path)), None)
    if first is None:
        return 0.0
    if is_url(first):
        return UNKNOWN_ROWS
    return read_footer(first).facts.num_rows * _size_of(files) / max(1, os.path.getsize(first))


def _files(path: str) -> list[str]:
    return files_in(path, True) if not is_url(path) and os.path.isdir(path) else [path]


def _size_of(paths: Sequence[str]) -> float:
    """Bytes of all files, from those of some."""
    looked_at = paths[:MAX_FILES_LOOKED_AT]
    size = sum(os.path.getsize(file) for path in looked_at for file in _files(path) if not is_url(file))
    return size * len(paths) / max(1, len(looked_at))
