"""Large types at any depth, row ranges, batches, and what writers tell."""

import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import CorruptInput, InvalidArgument
from smallpond_mpi.io import arrow as io_arrow
from smallpond_mpi.io.arrow import (
    RowRange,
    build_batch_reader_from_files,
    cast_columns_to_large_string,
    convert_type_to_large,
    convert_types_to_large_string,
    dump_to_parquet_files,
    filter_schema,
    load_from_parquet_files,
    parquet_write_table,
    read_parquet_files_into_table,
)
from smallpond_mpi.io.parquet import FileFacts, pack_ranges, unpack_ranges

ROWS = pa.table({"a": list(range(100)), "s": pa.array([str(i) for i in range(100)], pa.large_string())})

SMALL_AND_LARGE = [
    (pa.string(), pa.large_string()),
    (pa.binary(), pa.large_binary()),
    (pa.string_view(), pa.large_string()),
    (pa.binary_view(), pa.large_binary()),
    (pa.list_(pa.string()), pa.list_(pa.large_string())),
    (pa.large_list(pa.string()), pa.large_list(pa.large_string())),
    (pa.list_(pa.string(), 2), pa.list_(pa.large_string(), 2)),
    (pa.struct([("a", pa.binary()), ("b", pa.int8())]), pa.struct([("a", pa.large_binary()), ("b", pa.int8())])),
    (pa.map_(pa.string(), pa.list_(pa.string())), pa.map_(pa.large_string(), pa.list_(pa.large_string()))),
    (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
    (pa.int64(), pa.int64()),
    (pa.binary(3), pa.binary(3)),
]


@pytest.mark.parametrize(("small", "large"), SMALL_AND_LARGE, ids=str)
def test_types(small, large):
    assert convert_type_to_large(small) == large
    assert convert_type_to_large(large) == large
    schema = pa.schema([pa.field("x", small, nullable=False)], {"k": "v"})
    assert convert_types_to_large_string(schema).equals(
        pa.schema([pa.field("x", large, nullable=False)], {"k": "v"}), check_metadata=True
    )


VALUES = [
    (pa.string(), ["a", None, "ü" * 50]),
    (pa.string_view(), ["a", None, "long enough not to be inline"]),
    (pa.binary_view(), [b"a", None, b"\0" * 20]),
    (pa.list_(pa.string_view()), [["a", None], None, []]),
    (pa.struct([("a", pa.string_view()), ("b", pa.int8())]), [{"a": "x", "b": 1}, None, {"a": None, "b": 2}]),
    (pa.map_(pa.string(), pa.binary()), [[("k", b"v")], None, []]),
    (pa.dictionary(pa.int8(), pa.string()), ["a", None, "a"]),
    (pa.struct([("d", pa.dictionary(pa.int8(), pa.string()))]), [{"d": "x"}, None, {"d": None}]),
    (pa.list_(pa.dictionary(pa.int32(), pa.string())), [["a"], None, ["b", "a"]]),
]


@pytest.mark.parametrize(
    ("type_", "values"), VALUES, ids=lambda value: str(value) if isinstance(value, pa.DataType) else ""
)
def test_values_are_the_same_after_the_cast(type_, values):
    table = pa.table({"x": pa.array(values, type_)})
    for given in (table, table.slice(1), pa.concat_tables([table, table]), table.slice(0, 0)):
        cast = cast_columns_to_large_string(given)
        assert cast.schema == convert_types_to_large_string(given.schema)
        assert cast.to_pylist() == given.to_pylist()
        cast.validate(full=True)


@pytest.mark.parametrize(
    ("type_", "values"), VALUES[:7], ids=lambda value: str(value) if isinstance(value, pa.DataType) else ""
)
def test_files_come_back_as_large_types(tmp_path, type_, values):
    table = pa.table({"x": pa.array(values, type_)})
    path = str(tmp_path / "x.parquet")
    pq.write_table(table, path)
    expected = convert_types_to_large_string(table.schema)
    for read in (
        load_from_parquet_files([path, path]),
        read_parquet_files_into_table([path]),
        build_batch_reader_from_files([path], batch_size=2).read_all(),
    ):
        assert read.schema == expected
        assert read.slice(0, 3).to_pylist() == table.to_pylist()


def test_columns_are_cast_only_if_need_be():
    table = pa.table({"a": pa.array(["x"], pa.large_string()), "b": pa.array(["y"])})
    cast = cast_columns_to_large_string(table)
    assert cast.column("a").chunk(0).buffers()[2].address == table.column("a").chunk(0).buffers()[2].address
    assert cast_columns_to_large_string(pa.table({})).num_columns == 0


def test_filter_schema():
    schema = pa.schema([("a", pa.int8()), ("b", pa.int8()), ("c", pa.int8())])
    assert filter_schema(schema).names == ["a", "b", "c"]
    assert filter_schema(schema, ["c", "a"]).names == ["a", "c"]
    assert filter_schema(schema, excluded_cols=["b"]).names == ["a", "c"]
    assert filter_schema(schema, ["a", "b"], ["b"]).names == ["a"]


def test_row_range_arithmetic():
    item = RowRange("/x", 1000, 100, 10, 30)
    assert (item.num_rows, item.estimated_data_size) == (20, 200)
    assert item.take(5) == RowRange("/x", 1000, 100, 10, 15)
    assert item.take(50) == item
    assert RowRange("/x", 0, 0, 0, 0).estimated_data_size == 0
    parts = RowRange.partition_by_rows([item, RowRange("/y", 1, 1, 0, 1)], 4)
    assert [sum(piece.num_rows for piece in part) for part in parts] == [6, 5, 5, 5]
    assert RowRange.partition_by_rows([], 2) == [[], []]


def test_packed_ranges_are_the_same():
    ranges = [RowRange("/a/x", 5, 4, 1, 3, 77, (2, 1)), RowRange("/a/y\n'", 2**40, 2**35, 0, 2**35)]
    for some in (ranges, ranges[:1], [], [RowRange("", 0, 0, 0, 0)] * 2):
        again = unpack_ranges(pack_ranges(some))
        assert again == some
        assert [(r.file_bytes, r.row_groups) for r in again] == [(r.file_bytes, r.row_groups) for r in some]


@pytest.fixture
def path(tmp_path):
    pq.write_table(ROWS, tmp_path / "x.parquet", row_group_size=7)
    return str(tmp_path / "x.parquet")


@pytest.mark.parametrize(("begin", "end"), [(0, 100), (0, 7), (7, 14), (6, 8), (13, 50), (99, 100), (5, 5), (100, 100)])
def test_a_range_is_read_exactly(path, begin, end):
    item = RowRange(path, 1000, 100, begin, end)
    expected = list(range(begin, end))
    assert load_from_parquet_files([item]).column("a").to_pylist() == expected
    batches = list(build_batch_reader_from_files([item], batch_size=4))
    assert [row for batch in batches for row in batch.column("a").to_pylist()] == expected
    assert all(0 < batch.num_rows <= 4 for batch in batches)


def test_only_the_row_groups_of_a_range_are_read(path, monkeypatch):
    read = []
    original = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, groups, *a, **k: read.append(groups) or original(self, groups, *a, **k),
    )
    load_from_parquet_files([RowRange(path, 1000, 100, 13, 22)])
    assert read == [[1, 2, 3]]


def test_a_range_beyond_the_file(path):
    with pytest.raises(CorruptInput, match="100 rows"):
        load_from_parquet_files([RowRange(path, 1000, 200, 150, 200)])


def test_columns_and_order_of_many_ranges(path):
    ranges = [RowRange(path, 1000, 100, begin, begin + 3) for begin in range(90, 0, -9)]
    table = load_from_parquet_files(ranges, columns=["s"], max_workers=4)
    assert table.column_names == ["s"]
    assert table.column("s").to_pylist() == [str(i) for item in ranges for i in range(item.begin, item.end)]


def test_batches_of_few_bytes(path):
    reader = build_batch_reader_from_files([path], max_batch_byte_size=1)
    assert {batch.num_rows for batch in reader} == {1}
    with pytest.raises(InvalidArgument, match="batch_size"):
        build_batch_reader_from_files([path], batch_size=0)


def test_dump_tells_what_it_wrote(tmp_path):
    (facts,) = dump_to_parquet_files(ROWS, str(tmp_path / "out"), row_group_size=30)
    metadata = pq.read_metadata(facts.path)
    assert facts == FileFacts(facts.path, 100, facts.num_bytes, os.path.getsize(facts.path))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [30, 30, 30, 10]
    assert facts.num_bytes == sum(metadata.row_group(i).total_byte_size for i in range(4))
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_dump_splits_at_the_size_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(io_arrow, "MAX_PARQUET_FILE_BYTES", ROWS.nbytes // 3)
    files = dump_to_parquet_files(ROWS, str(tmp_path), "part")
    assert len(files) == 4
    assert sum(item.num_rows for item in files) == 100
    assert load_from_parquet_files([item.path for item in files]).equals(ROWS)


def test_a_table_without_rows_keeps_its_schema(tmp_path):
    (facts,) = dump_to_parquet_files(ROWS.slice(0, 0), str(tmp_path))
    assert load_from_parquet_files([facts.path]).schema == ROWS.schema


@pytest.mark.parametrize("compression", ["LZ4", "SNAPPY", "NONE", "ZSTD", "GZIP"])
def test_a_level_goes_only_to_codecs_that_have_one(tmp_path, compression):
    path = str(tmp_path / "x.parquet")
    assert parquet_write_table(ROWS, path, compression=compression, compression_level=3).num_rows == 100
    assert pq.read_table(path).equals(ROWS)


def test_another_file_system(tmp_path):
    memory = fsspec.filesystem("memory")
    where = f"/{tmp_path.name}"
    (dumped,) = dump_to_parquet_files(ROWS, where, filesystem=memory, row_group_size=40)
    assert dumped.file_bytes == memory.size(f"{where}/data-0.parquet")
    written = parquet_write_table(ROWS.slice(0, 5), f"{where}/more.parquet", memory)
    assert written.num_rows == 5
    both = [dumped.path, written.path]
    expected = pa.concat_tables([ROWS, ROWS.slice(0, 5)])
    assert load_from_parquet_files(both, filesystem=memory).equals(expected)
    assert read_parquet_files_into_table(both, ["s"], memory).equals(expected.select(["s"]))
    assert build_batch_reader_from_files(both, batch_size=7, filesystem=memory).read_all().equals(expected)
