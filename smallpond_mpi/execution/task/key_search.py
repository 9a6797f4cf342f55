"""Where keys stand among split points, and among each other: searching and sorting whole arrays of what `create_sort_key` makes.

Keys of few bytes are whole numbers. Others are blobs, of which none is the beginning of another: they are compared eight bytes at a time, as
one number, and only rows that agree with some point so far go on to the next eight. Most rows are placed by their first eight bytes; what a
common beginning of all keys costs is a step for all rows each eight bytes, not a comparison of texts for each row and point. What agrees in its first
512 bytes is compared as bytes after all: a step for each eight of some megabytes would take minutes.
"""

from bisect import bisect_right
from typing import Any

import numpy as np
import pyarrow as pa

from smallpond_mpi.io.packed import Int64s

WORD = 8
MAX_WORDS = 64
"""Compared word by word, from then on as bytes."""
# By how many bytes a key has left: a mask for those bytes of a word that are the key's.
MASKS = np.array([(1 << 64) - (1 << 8 * (WORD - left)) for left in range(WORD + 1)], np.uint64)


def points_at_or_before(keys: pa.Array, points: pa.Array) -> Int64s:
    """For each key how many of `points` (ascending) are equal to it or before it."""
    if pa.types.is_integer(keys.type):
        found: Int64s = np.searchsorted(_numbers(points), _numbers(keys), side="right").astype(np.int64)
        return found
    found = np.zeros(len(keys), np.int64)
    if len(keys) and len(points):
        _place(_Words(keys), _Words(points), found)
    return found


def _numbers(array: pa.Array) -> Any:
    return np.from_dlpack(array)  # to_numpy() would load pandas


class _Words:
    """Blobs as rows of big-endian words of eight bytes, padded with zeros."""

    def __init__(self, blobs: pa.Array) -> None:
        blobs = blobs.cast(pa.large_binary())
        _, offsets, content = blobs.buffers()
        self.starts = np.frombuffer(offsets, np.int64)[blobs.offset : blobs.offset + len(blobs) + 1]
        end = int(self.starts[-1])
        # A word may be read at the last byte.
        self.bytes = np.zeros(end + WORD, np.uint8)
        self.bytes[:end] = np.frombuffer(content or b"", np.uint8)[:end]
        self.at = np.ndarray((end + 1,), ">u8", self.bytes, strides=(1,))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def word(self, rows: Any, number: int) -> Any:
        """The `number`-th word of some rows; 0 for rows that are shorter."""
        begin = self.starts[rows] + number * WORD
        left = np.clip(self.starts[rows + 1] - begin, 0, WORD)
        return self.at[np.minimum(begin, len(self.at) - 1)].astype(np.uint64) & MASKS[left]

    def rest(self, row: Any, number: int) -> bytes:
        """What a row has from its `number`-th word on."""
        begin, end = self.starts[row] + number * WORD, self.starts[row + 1]
        return self.bytes[begin : max(begin, end)].tobytes()

    def longest(self, rows: Any) -> int:
        """Bytes of the longest of some rows."""
        return int((self.starts[rows + 1] - self.starts[rows]).max())


def _place(keys: _Words, points: _Words, found: Int64s) -> None:
    """Fill `found`: groups of rows that agree with a run of points (first..stop-1) in all words so far are placed within that run."""
    groups = [(np.arange(len(keys)), 0, len(points), 0)]
    while groups:
        rows, first, stop, number = groups.pop()
        run = np.arange(first, stop)
        if number == MAX_WORDS:
            rest = [points.rest(point, number) for point in run]
            found[rows] = [first + bisect_right(rest, keys.rest(row, number)) for row in rows]
            continue
        words = points.word(run, number)
        mine = keys.word(rows, number)
        after = np.searchsorted(words, mine, side="right")
        found[rows] = first + after
        if (number + 1) * WORD >= points.longest(run):
            continue  # what agrees to the end is equal
        tied = np.flatnonzero((after > 0) & (words[after - 1] == mine))
        if len(tied):
            # A run that agrees in this word is known by its end.
            order = tied[np.argsort(after[tied], kind="stable")]
            borders = np.flatnonzero(np.diff(after[order])) + 1
            for group in np.split(order, borders):
                stop_here = int(after[group[0]])
                begin = int(np.searchsorted(words, words[stop_here - 1], side="left"))
                groups.append((rows[group], first + begin, first + stop_here, number + 1))


def order_of(keys: pa.Array) -> Int64s:
    """The rows in the order of their keys; equal ones in no particular order."""
    if pa.types.is_integer(keys.type):
        order: Int64s = np.argsort(_numbers(keys))
        return order
    words = _Words(keys)
    rows = np.arange(len(words))
    mine = words.word(rows, 0)
    order = np.argsort(mine)
    sorted_words = mine[order]
    # Runs of rows that agree so far, as positions in the order, are put in order by their next word.
    places = rows
    groups: Int64s = np.cumsum(np.concatenate(([True], sorted_words[1:] != sorted_words[:-1]))[: len(rows)])
    number = 1
    while True:
        begins = np.concatenate(([True], groups[1:] != groups[:-1], [True]))
        tied = np.flatnonzero(~(begins[:-1] & begins[1:])[: len(groups)])
        places, groups = places[tied], groups[tied]
        if not len(places) or number * WORD >= words.longest(order[places]):
            return order
        if number == MAX_WORDS:
            for run in np.split(places, np.flatnonzero(np.diff(groups)) + 1):
                order[run] = sorted(order[run], key=lambda row: words.rest(row, MAX_WORDS))
            return order
        mine = words.word(order[places], number)
        within = np.lexsort((mine, groups))
        order[places] = order[places][within]
        mine = mine[within]
        new = (groups[1:] != groups[:-1]) | (mine[1:] != mine[:-1])
        groups = np.cumsum(np.concatenate(([True], new)))
        number += 1
