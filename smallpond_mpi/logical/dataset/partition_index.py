"""Which partition the rows of a file belong to: told by the file's metadata, by its hive path, or by a column."""

import re
from collections.abc import Iterator
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.io.arrow import read_range
from smallpond_mpi.io.packed_index import index_of_packed
from smallpond_mpi.io.parquet import RowRange, check_columns, open_parquet, own_metadata

PARTITION_INFO = re.compile(r"^(?:.*\[)?(\d+)(?:/\d+\])?$")
"""A partition number alone, or as PartitionInfo prints: `dim[3/10]`."""


def partitions_of_file(
    item: RowRange, npartition: int, column: str, hive_partitioning: bool = False
) -> Iterator[tuple[int, RowRange]]:
    """(partition, rows) in the order of the rows; partitions without rows may be left out."""
    if hive_partitioning:
        yield check_partition(_hive_value(item.path, column), npartition, item.path), item
        return
    with open_parquet(item.path, promised=item.is_promised) as file:
        metadata = own_metadata(file.metadata.metadata)
        schema = file.schema_arrow
    packed = index_of_packed(metadata, column)
    if packed is not None:
        for partition, rows in packed.cut(item):
            yield check_partition(partition, npartition, item.path), rows
    elif column in metadata:
        yield check_partition(_number(metadata[column], item.path), npartition, item.path), item
    else:
        check_columns([column], schema, item.path)
        for partition, rows in _runs(item, column):
            yield check_partition(partition, npartition, item.path), rows


def check_partition(partition: int, npartition: int, path: str = "") -> int:
    """The number itself if it is one of 0..npartition-1."""
    if not 0 <= partition < npartition:
        where = f" ({path})" if path else ""
        raise InvalidArgument(f"partition key {partition} is out of range 0-{npartition - 1}{where}")
    return partition


def _hive_value(path: str, column: str) -> int:
    for part in reversed(path.split("/")[:-1]):
        name, equals, value = part.partition("=")
        if equals and unquote(name) == column:
            return _number(unquote(value), path)
    raise InvalidArgument(f"no directory of {path!r} is a hive partition {column + '=...'!r}")


def _number(text: str, path: str) -> int:
    found = PARTITION_INFO.match(text)
    if found is None:
        raise InvalidArgument(f"partition key {text!r} of {path!r} is not a number")
    return int(found.group(1))


def _runs(item: RowRange, column: str) -> Iterator[tuple[int, RowRange]]:
    """The runs of rows of equal partition number in a column."""
    values = read_range(item, [column]).column(0)
    if not pa.types.is_integer(values.type) or values.null_count:
        held = f"{values.null_count} NULLs" if values.null_count else f"values of type {values.type}"
        raise InvalidArgument(f"column {column!r} of {item.path!r} can't tell partition numbers: it holds {held}")
    numbers = values.to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1)) if len(numbers) else np.array([], np.int64)
    for begin, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
        yield int(numbers[begin]), item.cut(int(begin), int(end))
