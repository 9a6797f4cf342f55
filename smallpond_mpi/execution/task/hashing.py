"""One hash function, and the hash of data that libraries hold: Arrow tables and arrays, NumPy arrays, pandas frames."""

import hashlib
import struct
from typing import Any

DIGEST_BYTES = 16
LENGTH = struct.Struct("<I")


class NotDigestible(Exception):
    """A value whose content nobody can see: it can't be pickled either, or its own way of being pickled raises."""


def new_hash() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


def hash_of(*parts: bytes) -> bytes:
    """The hash of a few parts, told apart by their lengths."""
    hasher = new_hash()
    for part in parts:
        hasher.update(LENGTH.pack(len(part)))
        hasher.update(part)
    return hasher.digest()


def content_of_table(value: Any) -> bytes | None:
    """The content of an Arrow table, array or schema, NumPy array or pandas frame; None for anything else. Nothing is imported for it."""
    package = type(value).__module__.partition(".")[0]
    if package == "numpy":
        return _content_of_numpy(value)
    if package == "pandas" and hasattr(value, "to_records"):
        return _content_of_pandas(value)
    if package == "pyarrow":
        return _content_of_arrow(value)
    return None


def _content_of_numpy(value: Any) -> bytes | None:
    import numpy

    if type(value) is not numpy.ndarray or value.dtype.hasobject:
        return None
    return hash_of(str(value.dtype.descr).encode(), repr(value.shape).encode(), value.tobytes())


def _content_of_pandas(frame: Any) -> bytes:
    import pyarrow

    try:
        table = pyarrow.Table.from_pandas(frame)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise NotDigestible(f"a frame that Arrow can't hold: {error}") from error
    return _content_of_arrow(table) or b""


def _content_of_arrow(value: Any) -> bytes | None:
    import pyarrow

    match value:
        case pyarrow.Schema():
            return bytes(value.serialize())
        case pyarrow.Field():
            return bytes(pyarrow.schema([value]).serialize())
        case pyarrow.DataType():
            return bytes(pyarrow.schema([("", value)]).serialize())
        case pyarrow.Buffer():
            return bytes(value)
        case pyarrow.Array() | pyarrow.ChunkedArray():
            return _content_of_arrow(pyarrow.table({"": value}))
        case pyarrow.RecordBatch():
            return _content_of_arrow(pyarrow.Table.from_batches([value]))
        case pyarrow.Table():
            return _hash_table(value)
    return None


def _hash_table(table: Any) -> bytes:
    """Rows and schema, whatever chunks they come in."""
    import pyarrow

    sink = _HashingSink()
    combined = table.combine_chunks()
    with pyarrow.ipc.new_stream(pyarrow.PythonFile(sink, mode="w"), combined.schema) as writer:
        writer.write_table(combined)
    return sink.hasher.digest()


class _HashingSink:
    """A file that only remembers the hash of what was written to it."""

    def __init__(self) -> None:
        self.hasher = new_hash()
        self.closed = False

    def write(self, data: Any) -> int:
        self.hasher.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
