"""Sorts that need no ranges: of few rows, and of which only the first rows are wanted.

sort -> limit      the first rows of each partition -> one partition -> the first rows of these
sort of few rows   one partition -> sort
"""

from collections.abc import Sequence

from smallpond_mpi.common import ColumnNotFound
from smallpond_mpi.execution.task.sort_key import InputKeys, SortKey
from smallpond_mpi.logical.expressions import template
from smallpond_mpi.logical.node.base import Node
from smallpond_mpi.logical.node.range_partition import RangePartitionNode
from smallpond_mpi.logical.node.sort import SortNode
from smallpond_mpi.logical.schema import schema_of

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


def order_of(keys: Sequence[SortKey], rows: Node) -> str | None:
    """ORDER BY for a node's rows; None if their columns are not known, or there is no such column (whoever runs it says so)."""
    schema = schema_of(rows)
    if schema is None:
        return None
    columns = list(schema)
    try:
        found = InputKeys.among(keys, columns)
    except ColumnNotFound:
        return None
    terms = [f"{key.expression(columns)} {key.direction}" for key in found.keys]
    return template(f"ORDER BY {', '.join(terms)}")
