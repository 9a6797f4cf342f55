"""Sorts that need no ranges: of few rows, and of which only the first rows are wanted.

sort -> limit      the first rows of each partition -> one partition -> the first rows of these
sort of few rows   one partition -> sort

How many rows groups or joins give nobody knows beforehand: what is sorted is computed first, then it is known.
"""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import pyarrow as pa

from smallpond_mpi.common import BadInput, ColumnNotFound
from smallpond_mpi.execution.task.sort_key import InputKeys, SortKey
from smallpond_mpi.io.arrow_types import survives_sql
from smallpond_mpi.logical.expressions import template
from smallpond_mpi.logical.node.base import Node, topological
from smallpond_mpi.logical.node.compute import ArrowComputeNode, ProcessNode
from smallpond_mpi.logical.node.range_partition import RangePartitionNode
from smallpond_mpi.logical.node.sort import SortNode
from smallpond_mpi.logical.node.source_sink import DataSourceNode
from smallpond_mpi.logical.node.sql import LimitNode, SqlEngineNode
from smallpond_mpi.logical.query_columns import SchemaWithTwins
from smallpond_mpi.logical.schema import arrow_schema_of_dataset, schema_of

_keeps_values: "WeakKeyDictionary[Node, bool]" = WeakKeyDictionary()
MAX_TOP_ROWS = 100_000
"""So many rows of each partition are collected in one task at most."""


def rows_of_sort(node: Node) -> Node | None:
    """The node whose rows are sorted, if the sort itself chose how to cut them."""
    if not isinstance(node, SortNode) or node.output_name is not None or node.output_path is not None:
        return None
    (ranges,) = node.input_deps
    if not isinstance(ranges, RangePartitionNode):
        return None
    points = ranges.input_deps[-1]
    return ranges.input_deps[0] if getattr(points, "min_rows", 1) > 1 else None


def to_be_known_first(plans: Sequence[Node], is_known: Callable[[Node], bool]) -> list[Node]:
    """What is sorted in plans and is to be computed before the sort is planned; nothing that needs another such node."""
    order = topological(plans, known=is_known)
    tops = {node.input_deps[0] for node in order if isinstance(node, LimitNode) and has_top_rows(node)}
    found = [rows for node in order if node not in tops and (rows := rows_of_sort(node)) is not None]
    waiting = {rows for rows in found if not is_known(rows) and not isinstance(rows, DataSourceNode)}
    needed = {other for rows in waiting for other in topological([rows], known=is_known) if other is not rows}
    return [rows for rows in order if rows in waiting and rows not in needed]


def has_top_rows(node: LimitNode) -> bool:
    """Whether only the first rows of a sort are wanted, so few that each partition can find its own."""
    (sort,) = node.input_deps
    rows = rows_of_sort(sort)
    return (
        rows is not None
        and isinstance(sort, SortNode)
        and node.limit <= MAX_TOP_ROWS
        and order_of(sort.sort_keys, rows) is not None
    )


def order_of(keys: Sequence[SortKey], rows: Node) -> str | None:
    """ORDER BY for a node's rows; None if their columns are not known or would come out of SQL as others, or there is no such column (whoever
    runs it says so)."""
    schema = schema_of(rows)
    if schema is None or isinstance(schema, SchemaWithTwins) or not keeps_values(rows):
        return None
    columns = list(schema)
    try:
        found = InputKeys.among(keys, columns)
    except ColumnNotFound:
        return None
    terms = [f"{key.expression(columns)} {key.direction}" for key in found.keys]
    return template(f"ORDER BY {', '.join(terms)}")


def keeps_values(rows: Node) -> bool:
    """Whether rows that no SQL has made so far come out of SQL with the values that they have."""
    if rows not in _keeps_values:
        try:
            _keeps_values[rows] = _comes_out_the_same(rows)
        except (BadInput, OSError, pa.ArrowException):
            return True  # whoever runs it says what is wrong, and where
    return _keeps_values[rows]


def _comes_out_the_same(node: Node) -> bool:
    func = getattr(node, "process_func", None)
    match node:
        case SqlEngineNode() if not isinstance(node, LimitNode):
            return True
        case DataSourceNode():
            schema = arrow_schema_of_dataset(node.dataset)
            return schema is None or survives_sql(schema)
        case ArrowComputeNode() if isinstance(schema := getattr(func, "schema", None), pa.Schema):
            return survives_sql(schema)
        case ProcessNode() if not getattr(func, "keeps_columns", False):
            return False  # nobody knows what it returns
    return all(map(keeps_values, node.input_deps))
