"""What a packed file says of itself: which partitions are where in it. Found again later, by whoever, it is still known for what it is."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from smallpond_mpi.common import CorruptInput
from smallpond_mpi.io.parquet import RowRange

INDEX_KEY = "__packed__"
INDEX_VERSION = 1


@dataclass(frozen=True, slots=True)
class PackedIndex:
    """What a packed file says of itself: the partitions that have rows in it, their rows and their row groups, in order."""

    dimension: str
    npartitions: int
    partitions: tuple[int, ...]
    rows: tuple[int, ...]
    groups: tuple[int, ...]

    def to_json(self) -> str:
        """As it stands in the file's key-value metadata."""
        return json.dumps(
            {
                "version": INDEX_VERSION,
                "dimension": self.dimension,
                "npartitions": self.npartitions,
                "partitions": self.partitions,
                "rows": self.rows,
                "groups": self.groups,
            },
            separators=(",", ":"),
        )

    def cut(self, item: RowRange) -> Iterator[tuple[int, RowRange]]:
        """The rows of a range of this file by partition."""
        if sum(self.rows) != item.file_num_rows:
            raise CorruptInput(
                f"the partition index of {item.path!r} tells {sum(self.rows)} rows, not {item.file_num_rows}"
            )
        row, group = 0, 0
        for partition, rows, groups in zip(self.partitions, self.rows, self.groups, strict=True):
            begin, end = max(row, item.begin), min(row + rows, item.end)
            if begin < end:
                hint = (group, groups) if end - begin == rows else None
                yield partition, replace(item, begin=begin, end=end, row_groups=hint)
            row, group = row + rows, group + groups


def index_of_packed(metadata: Mapping[str, str], dimension: str) -> PackedIndex | None:
    """The index in a file's own metadata, if the file is packed along this dimension."""
    text = metadata.get(INDEX_KEY)
    if text is None:
        return None
    index = json.loads(text)
    if index["version"] != INDEX_VERSION:
        raise CorruptInput(f"a packed file of version {index['version']}: this is {INDEX_VERSION}")
    if index["dimension"] != dimension:
        return None
    return PackedIndex(
        dimension, index["npartitions"], tuple(index["partitions"]), tuple(index["rows"]), tuple(index["groups"])
    )
