"""Input files with something wrong, for the tests of bad input."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def make(directory: Path) -> Path:
    """good.parquet (a: int64, b: string) and its broken relatives."""
    directory.mkdir()
    good = pa.table({"a": pa.array([1, 2, 3], pa.int64()), "b": ["one", "two", "three"]})
    pq.write_table(good, directory / "good.parquet")
    whole = (directory / "good.parquet").read_bytes()
    (directory / "bad_footer.parquet").write_bytes(whole[:-40] + b"\xff" * 32 + whole[-8:])
    (directory / "text.parquet").write_text("a,b\n1,one\n" * 10)
    (directory / "empty.parquet").write_bytes(b"")
    rows = pa.table({"a": pa.array(range(100_000), pa.int64()), "b": [str(number) * 3 for number in range(100_000)]})
    pq.write_table(rows, directory / "truncated.parquet", row_group_size=10_000, compression="ZSTD")
    _lose_the_middle(directory / "truncated.parquet")
    content = (directory / "truncated.parquet").read_bytes()
    (directory / "cut.parquet").write_bytes(content[:1000] + content[2000:])
    pq.write_table(pa.table({"c": [1.5], "d": [True]}), directory / "other.parquet")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), directory / "typed.parquet")
    (directory / "words.csv").write_text("1,one\n2,two\nx,three\n4,four\n")
    (directory / "broken.json").write_text('{"a": 1}\n{"a": \n')
    (directory / "taken").mkdir()
    (directory / "taken" / "keep.txt").write_text("mine")
    return directory


def _lose_the_middle(path: Path) -> None:
    """Cut pages out of a file and keep its footer at the end: what a copy that was cut off and padded looks like."""
    content = bytearray(path.read_bytes())
    begin, end = len(content) // 3, 2 * len(content) // 3
    content[begin:end] = bytes(end - begin)
    path.write_bytes(bytes(content))
