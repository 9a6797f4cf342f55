"""Which rows of Parquet files to look at for what is true of all: whole row groups, spread evenly over the rows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from smallpond_mpi.io.parquet import RowRange, open_parquet, read_footers

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset.parquet import ParquetDataSet

MAX_FOOTERS = 1000
"""Of more files whose numbers of rows nobody knows, so many are looked at."""


def sampled_ranges(dataset: "ParquetDataSet") -> list[RowRange]:
    """The rows of a dataset by file; of those of very many unknown files, some, evenly spread."""
    ranges = dataset._ranges_as_known()
    if sum(not item.is_known for item in ranges) <= MAX_FOOTERS:
        return dataset.resolved_row_ranges
    chosen = [ranges[number * len(ranges) // MAX_FOOTERS] for number in range(MAX_FOOTERS)]
    footers = iter(read_footers([item.path for item in chosen if not item.is_known]))
    return [item if item.is_known else RowRange.of_file(next(footers).facts) for item in chosen]


def row_groups_at(ranges: Sequence[RowRange], count: int) -> Iterator[tuple[RowRange, int]]:
    """The row groups at `count` evenly spaced rows of all ranges, each with how many of these rows are in it: it stands for so many of `count`."""
    ends = list(accumulate(item.num_rows for item in ranges))
    total = ends[-1] if ends else 0
    rows = [(2 * number + 1) * total // (2 * count) for number in range(count)] if total else []
    position = 0
    for item, end in zip(ranges, ends, strict=True):
        begin = end - item.num_rows
        first = position
        while position < len(rows) and rows[position] < end:
            position += 1
        if position > first:
            yield from _groups_with([row - begin for row in rows[first:position]], item)


def _groups_with(rows: Sequence[int], item: RowRange) -> Iterator[tuple[RowRange, int]]:
    """The row groups of a range that hold some of its rows, and how many."""
    groups = row_groups(item)
    ends = list(accumulate(group.num_rows for group in groups))
    position = 0
    for group, end in zip(groups, ends, strict=True):
        first = position
        while position < len(rows) and rows[position] < end:
            position += 1
        if position > first:
            yield group, position - first


def row_groups(item: RowRange) -> list[RowRange]:
    """A range cut where row groups end."""
    with open_parquet(item.path, promised=item.is_promised) as file:
        counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    parts = []
    for number, (count, end) in enumerate(zip(counts, accumulate(counts), strict=True)):
        begin, stop = max(end - count, item.begin), min(end, item.end)
        if begin < stop:
            hint = (number, 1) if stop - begin == count else None
            parts.append(replace(item, begin=begin, end=stop, row_groups=hint))
    return parts
