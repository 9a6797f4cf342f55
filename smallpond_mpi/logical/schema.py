"""Which columns a node's output has, known on rank 0 before anything runs.

Sources are asked (one Parquet footer, the schema of text files), SQL is bound by DuckDB over empty tables of its inputs' columns, and nodes that
only move rows have the columns of their input. What a Python function returns is not known before it ran: columns after it are checked when
they are read.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import duckdb
import pyarrow as pa

from smallpond_mpi.common import BadInput
from smallpond_mpi.io.arrow_types import with_durations_as
from smallpond_mpi.io.resolve import files_in
from smallpond_mpi.logical.dataset import (
    ArrowTableDataSet,
    CsvDataSet,
    DataSet,
    JsonDataSet,
    PandasDataSet,
    ParquetDataSet,
    PartitionedDataSet,
    SqlQueryDataSet,
)
from smallpond_mpi.logical.node.base import Node, topological
from smallpond_mpi.logical.node.compute import ArrowComputeNode
from smallpond_mpi.logical.node.hash_partition import HashPartitionNode
from smallpond_mpi.logical.node.keyed import KeyedSqlNode
from smallpond_mpi.logical.node.partition import PartitionNode
from smallpond_mpi.logical.node.range_partition import RangePartitionNode
from smallpond_mpi.logical.node.reshape import ConsolidateNode, ProjectionNode, UnionNode
from smallpond_mpi.logical.node.sort import SortNode
from smallpond_mpi.logical.node.source_sink import DataSinkNode, DataSourceNode
from smallpond_mpi.logical.node.sql import SqlEngineNode
from smallpond_mpi.logical.query_columns import Schema, SchemaWithTwins, bound_query, columns_of_table, scratch

RENAMED = re.compile(r"_\d+$")
"""What DuckDB adds to the second of two names that it takes for one."""
MAX_FILES_UNITED = 64
"""Files with different columns that are opened to learn all of them; of more the columns are not known beforehand."""

_known: "WeakKeyDictionary[Node, Schema | None]" = WeakKeyDictionary()


def schema_of(node: Node) -> Schema | None:
    """The columns of a node's output, None if they are not known yet."""
    for needed in topological([node], known=_known.__contains__):
        try:
            _known[needed] = _found(needed)
        except (BadInput, OSError, duckdb.Error, pa.ArrowException):
            _known[needed] = None  # whoever runs it says what is wrong, and where
    return _known[node]


def remember(node: Node, schema: Schema | None) -> None:
    """Take a node's columns from what was computed."""
    _known[node] = schema


def forget(node: Node) -> None:
    """Look at a node again: it was changed."""
    _known.pop(node, None)


def _found(node: Node) -> Schema | None:
    match node:
        case DataSourceNode():
            return schema_of_dataset(node.dataset)
        case SqlEngineNode():
            return stored(bound(node))
        case DataSinkNode():
            return None
        case ProjectionNode():
            return _projected(_known[node.input_deps[0]], node)
        case ArrowComputeNode():
            return _of_function(node)
        case RangePartitionNode() | SortNode():
            return _known[node.input_deps[0]]  # the other input of ranges is where they are cut
        case UnionNode() | ConsolidateNode() | PartitionNode():
            return _moved(node)
    return None


def _projected(schema: Schema | None, node: ProjectionNode) -> Schema | None:
    if schema is None or node.generated_columns or node.union_by_name:
        return None
    return schema if node.columns is None else {name: schema[name] for name in node.columns if name in schema}


def _of_function(node: ArrowComputeNode) -> Schema | None:
    """What our own row functions say of their result."""
    func = node.process_func
    if getattr(func, "keeps_columns", False):
        return _known[node.input_deps[0]]
    schema = getattr(func, "schema", None)
    return schema_of_arrow(schema) if isinstance(schema, pa.Schema) else None


def _moved(node: Node) -> Schema | None:
    """The columns of a node that moves rows: those of its inputs, which are the same."""
    first, *others = (_known[dep] for dep in node.input_deps)
    if first is None or any(other is None or list(other) != list(first) for other in others):
        return None
    if isinstance(node, HashPartitionNode):
        if node.query is not None:
            return stored(bound_query(node.query, [_known[dep] for dep in node.input_deps]))
        if not node.shuffle_only and not node.drop_partition_column:
            return _with_twins_of(first, {**first, node.data_partition_column: duckdb.type("BIGINT")})
        if node.drop_partition_column:
            left = {name: kind for name, kind in first.items() if name != node.data_partition_column}
            return _with_twins_of(first, left)
    return first


def _with_twins_of(before: Schema, columns: dict[str, Any]) -> Schema:
    """A column more or less, and the same that differ in case only."""
    if not isinstance(before, SchemaWithTwins):
        return columns
    made = SchemaWithTwins(columns)
    made.twins = before.twins
    return made


# sources


def schema_of_dataset(dataset: DataSet) -> Schema | None:
    """The columns of a dataset; opens one file where that must be. None if that does not tell."""
    match dataset:
        case PartitionedDataSet():
            return schema_of_dataset(dataset[0]) if len(dataset) else None
        case ArrowTableDataSet():
            return schema_of_arrow(dataset.to_arrow_table().schema)
        case PandasDataSet():
            return schema_of_arrow(pa.Schema.from_pandas(dataset.to_pandas(), preserve_index=False))
        case CsvDataSet() | JsonDataSet():
            names = dataset.columns or list(dataset.schema)
            return {name: duckdb.type(dataset.schema[name]) for name in names}
        case ParquetDataSet():
            return _schema_of_parquet(dataset)
        case SqlQueryDataSet():
            with scratch(alone=True) as conn:
                return _columns(conn.sql(f"SELECT * FROM {dataset.sql_query_fragment(None, conn)}"))
    return None


def arrow_schema_of_dataset(dataset: DataSet) -> pa.Schema | None:
    """The types that the columns have before SQL reads them; None where it is SQL that makes the rows, or that can't be said."""
    match dataset:
        case PartitionedDataSet():
            return arrow_schema_of_dataset(dataset[0]) if len(dataset) else None
        case ArrowTableDataSet():
            return dataset.to_arrow_table().schema
        case PandasDataSet():
            return pa.Schema.from_pandas(dataset.to_pandas(), preserve_index=False)
        case ParquetDataSet():
            read = _files_with_all_columns(dataset)
            return None if read is None else read.to_batch_reader().schema
    return None


def _files_with_all_columns(dataset: ParquetDataSet) -> ParquetDataSet | None:
    """One file, or those that are united by name; None if they are too many to open."""
    files = dataset.resolved_paths
    if not files or (dataset.union_by_name and len(files) > MAX_FILES_UNITED):
        return None
    if not dataset.union_by_name:
        first = files[0]
        files = files_in(first, dataset.recursive)[:1] if os.path.isdir(first) else [first]
    return dataset._of_files(files)


def _schema_of_parquet(dataset: ParquetDataSet) -> Schema | None:
    read = _files_with_all_columns(dataset)
    if read is None:
        return None
    with scratch() as conn:
        columns = _columns(conn.sql(f"SELECT * FROM {read.sql_query_fragment()}"))
    may_have_twins = any(RENAMED.search(name) for name in columns)
    return _with_twins(columns, read.to_batch_reader().schema.names) if may_have_twins else columns


def _with_twins(columns: Schema, names: Sequence[str]) -> Schema:
    """The columns that SQL reads of those with these names."""
    count = Counter(name.lower() for name in names)
    made = SchemaWithTwins(columns)
    made.twins = [name for name in names if count[name.lower()] > 1]
    return made if made.twins else columns


def schema_of_arrow(schema: pa.Schema) -> Schema:
    """The DuckDB types that columns of Arrow's types have, once they were written as Parquet: there a duration is a number."""
    schema = with_durations_as(schema, pa.int64())
    with scratch() as conn:
        conn.register("given", schema.empty_table())
        try:
            return _with_twins(_columns(conn.sql("FROM given")), schema.names)
        finally:
            conn.unregister("given")


def arrow_schema(schema: Schema) -> pa.Schema:
    """The Arrow types that columns of DuckDB's types are read as."""
    with scratch() as conn:
        conn.execute(f"CREATE TEMP TABLE __of_arrow ({columns_of_table(schema)})")
        return conn.sql("FROM __of_arrow").to_arrow_table().schema


def _columns(relation: Any) -> Schema:
    return {name: _stored(kind) for name, kind in zip(relation.columns, relation.types, strict=True)}


def stored(schema: Schema | None) -> Schema | None:
    """The types that columns have once they were written as Parquet."""
    return None if schema is None else {name: _stored(kind) for name, kind in schema.items()}


def _stored(kind: Any) -> Any:
    if kind.id in ("hugeint", "uhugeint"):
        return duckdb.type("DOUBLE")
    if kind.id == "enum":
        return duckdb.type("VARCHAR")
    return duckdb.type("INTEGER") if str(kind) in ('"NULL"', "NULL") else kind


def holds_intervals(nodes: Iterable[Node]) -> bool:
    """Whether any node is known to have a column of type INTERVAL, at any depth."""
    return any(_holds_interval(kind) for node in nodes for kind in (schema_of(node) or {}).values())


def check_storable(nodes: Iterable[Node]) -> None:
    """Refuse nodes whose rows files can't hold as they are: Parquet's intervals lose microseconds, and can't be negative.

    Raises:
        InvalidArgument: naming the column, the line of the script, and what to do.
    """
    for node in nodes:
        schema = schema_of(node) if isinstance(node, (SqlEngineNode, HashPartitionNode)) else None
        for name, kind in (schema or {}).items():
            if _holds_interval(kind):
                raise node.invalid(
                    f"column {name!r} is of type {kind}, which files of intermediate results can't hold exactly: make it a number or a text "
                    f"where it is made, by epoch_us(...) (microseconds) or CAST(... AS VARCHAR), and CAST(... AS INTERVAL) or to_microseconds(...) "
                    "where an INTERVAL is needed"
                )


def _holds_interval(kind: Any) -> bool:
    if kind.id in ("list", "array", "struct", "map", "union"):
        return any(hasattr(part, "id") and _holds_interval(part) for _, part in kind.children)
    return bool(kind.id == "interval")


# queries


def bound(node: SqlEngineNode) -> Schema | None:
    """The columns that a node's query gives, see `bound_query`; None where the node makes its tasks in a way of its own."""
    schemas = [schema_of(dep) if dep not in _known else _known[dep] for dep in node.input_deps]
    if len(node.sql_queries) != 1 or type(node).spawn is not SqlEngineNode.spawn or "spawn" in node.__dict__:
        return None
    query = node.whole_query if isinstance(node, KeyedSqlNode) else node.sql_queries[0]
    return bound_query(query, schemas, node, node.udfs)
