"""ParquetDataSet: what is known without opening files, how rows are cut and joined, what SQL and Arrow read."""

import builtins
import copy
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import (
    ColumnNotFound,
    CorruptInput,
    InputNotFound,
    InvalidArgument,
    InvalidQuery,
    SchemaMismatch,
)
from smallpond_mpi.io.parquet import FileFacts, RowRange
from smallpond_mpi.logical.dataset import DataSet, ParquetDataSet, parquet_sql
from smallpond_mpi.logical.dataset.errors import translate

ROWS = pa.table({"a": list(range(10)), "b": pa.array([f"x{i}" for i in range(10)], pa.large_string())})


@pytest.fixture
def three(write):
    return ParquetDataSet([write(f"{i}.parquet", ROWS.slice(*part)) for i, part in enumerate([(0, 5), (5, 0), (5, 5)])])


def rows(dataset, conn=None):
    return dataset.to_arrow_table(conn=conn).column("a").to_pylist()


def both(dataset):
    """Rows by Arrow, after it was held against SQL and the batch readers."""
    with duckdb.connect() as conn:
        found = rows(dataset)
        assert rows(dataset, conn) == found
        assert dataset.to_batch_reader(3, conn=conn).read_all().column("a").to_pylist() == found
        assert conn.sql(f"SELECT a FROM {dataset.sql_query_fragment(conn=conn)}").fetchall() == [(v,) for v in found]
        assert conn.sql(f"SELECT a FROM {dataset.sql_query_fragment()}").fetchall() == [(v,) for v in found]
    reader = dataset.to_batch_reader(3)
    batches = list(reader)
    assert all(0 < batch.num_rows <= 3 for batch in batches)
    assert pa.Table.from_batches(batches, reader.schema).column("a").to_pylist() == found
    return found


def test_listed_paths_are_not_touched(monkeypatch):
    touched = []
    for module, name in [(os, "stat"), (os, "lstat"), (os, "scandir"), (os, "listdir"), (builtins, "open")]:
        monkeypatch.setattr(module, name, lambda path, *args, **kwargs: touched.append(path))
    for name in ("isdir", "isfile", "exists", "lexists"):
        monkeypatch.setattr(os.path, name, lambda path: touched.append(path))
    monkeypatch.setattr(pq, "ParquetFile", lambda *args, **kwargs: touched.append(args))
    dataset = ParquetDataSet([f"/nowhere/{i}.parquet" for i in range(1000)])
    assert dataset.num_files == 1000
    parts = dataset.partition_by_files(7)
    assert [part.num_files for part in parts] == [143] * 6 + [142]
    merged = ParquetDataSet.merge(pickle.loads(pickle.dumps(parts)))
    assert merged.resolved_paths == dataset.paths
    assert not touched


def test_facts_of_the_writer_spare_footers(monkeypatch):
    monkeypatch.setattr(pq, "ParquetFile", None)
    dataset = ParquetDataSet.of_files(
        [FileFacts("/nowhere/a.parquet", 10, 1000, 500), FileFacts("/nowhere/b", 0, 0, 90)]
    )
    dataset = pickle.loads(pickle.dumps(dataset))
    assert (dataset.num_rows, dataset.empty, dataset.estimated_data_size) == (10, False, 1000)
    assert dataset.recorded_file_sizes == {"/nowhere/a.parquet": 500, "/nowhere/b": 90}
    assert [part.num_rows for part in dataset.partition_by_rows(3)] == [4, 3, 3]
    assert dataset.partition_by_files(2)[1].empty


def test_rows_sizes_and_emptiness(three, write):
    assert (three.num_files, three.num_rows, three.empty) == (3, 10, False)
    assert three.estimated_data_size == sum(item.data_size for item in three.resolved_row_ranges if item.num_rows)
    assert ParquetDataSet([write("none.parquet", ROWS.slice(0, 0))]).empty
    assert both(three) == list(range(10))
    three.remove_empty_files()
    assert three.num_files == 2
    assert both(three) == list(range(10))


def test_no_paths_is_an_empty_dataset_without_schema():
    nothing = ParquetDataSet([])
    assert (nothing.num_files, nothing.num_rows, nothing.empty) == (0, 0, True)
    assert nothing.to_arrow_table().num_columns == 0
    assert list(nothing.to_batch_reader()) == []
    assert [part.num_rows for part in nothing.partition_by_rows(2)] == [0, 0]
    with duckdb.connect() as conn:
        assert conn.sql(f"SELECT count(*) FROM {nothing.sql_query_fragment(conn=conn)}").fetchall() == [(0,)]


def test_a_path_listed_twice_counts_twice(three):
    path = three.paths[0]
    assert both(ParquetDataSet([path, path])) == [0, 1, 2, 3, 4] * 2


def test_paths_may_be_appended(three):
    dataset = ParquetDataSet(three.paths[:1])
    assert dataset.num_rows == 5
    dataset.paths.append(three.paths[2])
    assert dataset.num_files == 2
    assert both(dataset) == list(range(10))
    part = three.partition_by_rows(5)[0]
    part.paths.append(three.paths[2])
    assert both(part) == [0, 1, 5, 6, 7, 8, 9]


def test_cut_and_merged_again(three):
    parts = three.partition_by_rows(4)
    assert [part.num_rows for part in parts] == [3, 3, 2, 2]
    assert both(parts[1]) == [3, 4, 5]
    again = [smaller for part in parts for smaller in part.partition_by_rows(2)]
    assert [part.num_rows for part in again] == [2, 1, 2, 1, 1, 1, 1, 1]
    assert both(DataSet.merge(again)) == list(range(10))
    assert [part.num_files for part in DataSet.merge(parts).partition_by_files(3)] == [2, 2, 1]


def test_more_partitions_than_rows_leave_empty_ones_with_the_schema(three):
    parts = three.partition_by_rows(12)
    assert [part.num_rows for part in parts] == [1] * 10 + [0, 0]
    assert parts[11].empty
    assert parts[11].to_arrow_table().schema.names == ["a", "b"]
    assert both(parts[11]) == []


def test_shuffled_partitions_hold_the_same_rows(three):
    for parts in (three.partition_by_files(2, random_shuffle=True), three.partition_by_rows(3, random_shuffle=True)):
        assert sorted(row for part in parts for row in rows(part)) == list(range(10))


def test_partition_by_size(three):
    size = three.resolved_row_ranges[0].data_size
    parts = three.partition_by_size(size // 2)
    assert all(part.estimated_data_size <= size // 2 for part in parts)
    assert [row for part in parts for row in rows(part)] == list(range(10))
    assert [part.num_rows for part in three.partition_by_size(1)] == [1] * 10
    assert [part.num_rows for part in three.partition_by_size(10**9)] == [10]


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_a_number_of_partitions_that_is_none(three, n):
    for cut in (three.partition_by_files, three.partition_by_rows):
        with pytest.raises(InvalidArgument, match=str(n)):
            cut(n)


def test_columns_and_generated_columns(three):
    view = three.project(columns=["b"], generated_columns=["filename", "file_row_number"])
    part = view.partition_by_rows(2)[1]
    with duckdb.connect() as conn:
        for conn_or_none in (None, conn):
            table = part.to_arrow_table(conn=conn_or_none)
            assert table.column_names == ["b", "filename", "file_row_number"]
            assert table.column("filename").to_pylist() == [three.paths[2]] * 5
            assert table.column("file_row_number").to_pylist() == [0, 1, 2, 3, 4]
        whole = three.project(generated_columns=["file_row_number"]).to_arrow_table(conn=conn)
    assert whole.column_names == ["a", "b", "file_row_number"]
    assert whole.equals(three.project(generated_columns=["file_row_number"]).to_arrow_table())
    assert three.columns is None
    with pytest.raises(InvalidArgument, match="nope"):
        ParquetDataSet([], generated_columns=["nope"])


def test_unknown_column(three):
    with duckdb.connect() as conn, pytest.raises(ColumnNotFound, match=r"'zz'.*a, b"):
        three.project(columns=["zz"]).to_arrow_table(conn=conn)
    with pytest.raises(ColumnNotFound, match="'zz'"):
        three.project(columns=["zz"]).to_batch_reader()


NAMES = ["it's", 'say "hi"', "{0} {x}", "a b", "größe", "[1]", "st*r", "q?", "semi;--x", "back\\slash", "$x%d"]


@pytest.mark.parametrize("name", NAMES)
def test_names_with_any_characters(write, name):
    path = write(f"{name}/{name}.parquet", {name: [1, 2, 3], "a": [1, 2, 3]})
    dataset = ParquetDataSet([path])
    assert both(dataset) == [1, 2, 3]
    part = dataset.partition_by_rows(3)[1].project(columns=[name])
    with duckdb.connect() as conn:
        assert part.to_arrow_table(conn=conn).to_pydict() == part.to_arrow_table().to_pydict() == {name: [2]}
        assert conn.sql(f"SELECT * FROM {part.sql_query_fragment()}").fetchall() == [(2,)]
    assert pickle.loads(pickle.dumps(dataset)).num_rows == 3


@pytest.mark.parametrize("sql", [False, True])
def test_a_missing_file_is_named(tmp_path, sql):
    with duckdb.connect() as conn, pytest.raises(InputNotFound, match=r"gone\.parquet"):
        ParquetDataSet([str(tmp_path / "gone.parquet")]).to_arrow_table(conn=conn if sql else None)


@pytest.mark.parametrize("sql", [False, True])
@pytest.mark.parametrize("damage", ["text", "truncated", "garbled", "short"])
def test_a_corrupt_file_is_named(write, tmp_path, sql, damage):
    values = list(range(50000))
    content = Path(write("good.parquet", {"a": values, "b": [str(v) for v in values]})).read_bytes()
    broken = {
        "text": b"hello, this is no parquet",
        "truncated": content[: len(content) // 2],
        "garbled": content[:100] + bytes(range(256)) * 40 + content[100 + 256 * 40 :],
        "short": content[:1000] + content[-1500:],
    }[damage]
    path = tmp_path / "broken.parquet"
    path.write_bytes(broken)
    with duckdb.connect() as conn, pytest.raises(CorruptInput, match=r"broken\.parquet"):
        ParquetDataSet([str(path)]).to_arrow_table(conn=conn if sql else None)


def test_schemas_that_differ_name_both_files_and_the_columns(write):
    one, two = write("one.parquet", {"a": [1], "b": [1]}), write("two.parquet", {"a": [1], "c": ["x"]})
    dataset = ParquetDataSet([one, two])
    with duckdb.connect() as conn:
        for read in (
            lambda: dataset.num_rows,
            lambda: dataset.to_arrow_table(),
            lambda: dataset.to_batch_reader(),
            lambda: dataset.sql_query_fragment(conn=conn),
        ):
            with pytest.raises(SchemaMismatch, match=r"one.parquet.*two.parquet.*'b'.*'c'"):
                read()
        merged = ParquetDataSet.merge([ParquetDataSet.of_files([FileFacts(path, 1, 8, 9)]) for path in (one, two)])
        with pytest.raises(SchemaMismatch, match=r"one.parquet.*two.parquet"):
            merged.sql_query_fragment(conn=conn)


def test_types_that_do_not_fit(write):
    paths = [write("one.parquet", {"a": [1]}), write("two.parquet", {"a": ["x"]})]
    for by_name in (False, True):
        with pytest.raises(SchemaMismatch, match=r"'a' is int64 and large_string"):
            ParquetDataSet(paths, union_by_name=by_name).to_arrow_table()


def test_types_that_fit_are_widened_whichever_comes_first(write):
    narrow = write("narrow.parquet", pa.table({"a": pa.array([1], pa.int32())}))
    wide = write("wide.parquet", pa.table({"a": pa.array([2**40], pa.int64())}))
    null = write("null.parquet", pa.table({"a": pa.nulls(1)}))
    assert both(ParquetDataSet([narrow, null, wide])) == [1, None, 2**40]
    assert both(ParquetDataSet([null, wide])) == [None, 2**40]


def test_union_by_name(write):
    paths = [write("one.parquet", {"a": [1], "b": ["x"]}), write("two.parquet", {"c": [2.5], "a": [2]})]
    dataset = ParquetDataSet(paths, union_by_name=True)
    expected = {"a": [1, 2], "b": ["x", None], "c": [None, 2.5]}
    assert both(dataset) == [1, 2]
    with duckdb.connect() as conn:
        for conn_or_none in (None, conn):
            assert dataset.to_arrow_table(conn=conn_or_none).to_pydict() == expected
            halves = [part.to_arrow_table(conn=conn_or_none).to_pydict() for part in dataset.partition_by_rows(2)]
            assert [half["a"] for half in halves] == [[1], [2]]
    assert dataset.project(columns=["b", "a"]).to_arrow_table().to_pydict() == {"b": ["x", None], "a": [1, 2]}


def test_columns_in_another_order_are_matched_by_name(write):
    paths = [write("one.parquet", {"a": [1], "b": ["x"]}), write("two.parquet", {"b": ["y"], "a": [2]})]
    assert both(ParquetDataSet(paths)) == [1, 2]


def test_parts_of_files_with_columns_in_another_order_are_matched_by_name(write, monkeypatch):
    monkeypatch.setattr(parquet_sql, "SCANNED_BYTES", 0)  # each part by a scan of its own
    paths = [write("one.parquet", {"a": [1, 2], "b": [-1, -2]}), write("two.parquet", {"b": [-3, -4], "a": [3, 4]})]
    middle = ParquetDataSet(paths).partition_by_rows(4)
    assert both(ParquetDataSet.merge([middle[1], middle[2]])) == [2, 3]


def test_files_are_held_against_each_other_by_what_is_read_of_them(write):
    old, new = write("old.parquet", {"a": [1]}), write("new.parquet", {"a": [2], "b": [3]})
    assert both(ParquetDataSet([old, new], columns=["a"])) == [1, 2]
    for merged in (
        [ParquetDataSet([old]), ParquetDataSet([new], columns=["a"])],
        [ParquetDataSet([new], columns=["a"]), ParquetDataSet([old])],
    ):
        assert both(ParquetDataSet.merge(merged)) == ([1, 2] if merged[0].paths == [old] else [2, 1])


def test_merge_needs_equal_columns(three):
    with pytest.raises(InvalidArgument, match="columns"):
        ParquetDataSet.merge([three.project(columns=["a"]), three.project(columns=["b"])])
    with pytest.raises(InvalidArgument):
        ParquetDataSet.merge([])


def test_a_dataset_of_no_files_merges_with_any(three):
    assert rows(DataSet.merge([ParquetDataSet([]), three])) == list(range(10))


@pytest.mark.parametrize("column", ["file_row_number", "FILE_ROW_NUMBER", "filename"])
def test_data_with_a_column_of_a_generated_name(write, column):
    dataset = ParquetDataSet([write("own.parquet", {"a": list(range(10)), column: [7] * 10})])
    assert [both(part) for part in dataset.partition_by_rows(2)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    with duckdb.connect() as conn:
        assert dataset.partition_by_rows(2)[1].to_arrow_table(conn=conn).column(column).to_pylist() == [7] * 5


def test_load_partitioned_datasets_by_column_metadata_and_path(write):
    sorted_rows = {"a": [1, 2, 3, 4], "p": [2, 2, 0, 2]}
    by_column = ParquetDataSet([write("column.parquet", sorted_rows)]).load_partitioned_datasets(3, "p")
    assert [rows(part) for part in by_column] == [[3], [], [1, 2, 4]]
    noted = [
        write(f"noted{i}.parquet", ROWS.slice(i, 1).replace_schema_metadata({"SMALLPOND:dim": text}))
        for i, text in enumerate(["2", "dim[0/3]"])
    ]
    assert [rows(part) for part in ParquetDataSet(noted).load_partitioned_datasets(3, "dim")] == [[1], [], [0]]
    hive = [write(f"hive/p={i}/x.parquet", ROWS.slice(i, 1)) for i in (1, 0)]
    assert [rows(part) for part in ParquetDataSet(hive).load_partitioned_datasets(2, "p", True)] == [[0], [1]]


def test_a_partition_number_out_of_range(write):
    dataset = ParquetDataSet([write("x.parquet", {"p": [0, 10]})])
    with pytest.raises(InvalidArgument, match="partition key 10 is out of range 0-9"):
        dataset.load_partitioned_datasets(10, "p")
    with pytest.raises(ColumnNotFound, match="'q'"):
        dataset.load_partitioned_datasets(10, "q")
    with pytest.raises(InvalidArgument, match="hive"):
        dataset.load_partitioned_datasets(10, "p", hive_partitioning=True)


def test_what_we_noted_in_a_file_is_not_read_as_metadata(write):
    table = ROWS.replace_schema_metadata({"SMALLPOND:dim": "2", "user": "kept"})
    read = ParquetDataSet([write("x.parquet", table)])
    assert read.to_arrow_table().schema.metadata == read.to_batch_reader().schema.metadata == {b"user": b"kept"}


def test_create_from_knows_what_it_wrote(tmp_path, monkeypatch):
    dataset = ParquetDataSet.create_from(ROWS, str(tmp_path / "out"), "name")
    assert dataset.to_arrow_table().equals(ROWS)
    assert os.path.basename(dataset.paths[0]).startswith("name")
    (file_bytes,) = dataset.recorded_file_sizes.values()
    assert file_bytes == os.path.getsize(dataset.paths[0])
    monkeypatch.setattr(pq, "ParquetFile", None)
    assert dataset.num_rows == 10


def test_a_file_that_has_changed_is_not_misread(write):
    path = write("x.parquet", ROWS.slice(0, 3))
    stale = ParquetDataSet.of_ranges([RowRange(path, 100, 10, 5, 10)])
    with pytest.raises(CorruptInput, match=r"x.parquet.* 3 rows"):
        stale.to_arrow_table()


def test_copies_and_reset(three):
    copied = copy.copy(three)
    copied.columns = ["a"]
    assert three.columns is None
    copied.reset(three.paths[:1])
    assert (copied.num_rows, three.num_rows) == (5, 10)
    copied.reset()
    assert copied.empty


def test_moved_files_keep_their_ranges(three, tmp_path):
    part = three.partition_by_rows(5)[3]
    expected = rows(part)
    target = tmp_path.parent / f"{tmp_path.name}-moved"
    moved = part.moved(str(tmp_path), str(target))
    os.rename(tmp_path, target)
    assert rows(moved) == expected


def test_messages_are_small():
    paths = [f"/data/root/job/output/Stage.12/{i:06d}/part-{i}.parquet" for i in range(1000)]
    dataset = ParquetDataSet.of_files([FileFacts(path, 10, 1000, 500) for path in paths])
    assert len(pickle.dumps(dataset)) < 100 * 1000


def test_a_directory_with_a_suffix_is_entered_when_rows_are_needed(write, tmp_path):
    for i in range(3):
        write(f"spark.parquet/part-{i}.parquet", ROWS.slice(i, 1))
    write("spark.parquet/_metadata", ROWS)
    dataset = ParquetDataSet([str(tmp_path / "spark.parquet")])
    assert (dataset.num_rows, dataset.num_files) == (3, 3)
    assert both(dataset) == [0, 1, 2]
    assert not ParquetDataSet([str(tmp_path / "spark.parquet")]).empty


def test_files_of_another_file_system(tmp_path):
    """Nothing of what is read, footers included, is looked for on the local one."""
    memory = fsspec.filesystem("memory")
    paths = []
    for number in range(3):
        path = f"memory://{tmp_path.name}/{number}.parquet"
        with memory.open(path, "wb") as file:
            pq.write_table(ROWS.slice(number, 2), file)
        paths.append(path)
    expected = [0, 1, 1, 2, 2, 3]

    def dataset():
        return ParquetDataSet(paths)

    assert dataset().to_arrow_table(filesystem=memory).column("a").to_pylist() == expected
    assert dataset().to_batch_reader(4, filesystem=memory).read_all().column("a").to_pylist() == expected
    with duckdb.connect() as conn:
        assert dataset().to_arrow_table(filesystem=memory, conn=conn).column("a").to_pylist() == expected
        fragment = dataset().sql_query_fragment(memory, conn)
        assert conn.sql(f"SELECT a FROM {fragment}").fetchall() == [(a,) for a in expected]


@pytest.mark.parametrize("compression", ["NONE", "SNAPPY", "ZSTD", "GZIP"])
@pytest.mark.parametrize("with_zeros", [True, False])
def test_an_error_of_broken_pages_names_the_file(write: Callable[..., str], compression: str, with_zeros: bool) -> None:
    """DuckDB fails in many words over broken pages, few of which name the file or are of a class of their own."""
    numbers = list(range(10_000))
    table = pa.table(
        {"a": numbers, "b": [str(number) * 3 for number in numbers], "l": [[n] * (n % 3) for n in numbers]}
    )
    good = write("good.parquet", table, compression=compression)
    broken = write("broken.parquet", table, compression=compression, row_group_size=1000)
    whole = Path(broken).read_bytes()
    data_bytes = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    dataset = ParquetDataSet([good, broken])
    failed = 0
    for number in range(8):
        rng = random.Random(number)
        begin = rng.randrange(4, data_bytes - 1000)
        noise = bytes(1000) if with_zeros else rng.randbytes(1000)
        Path(broken).write_bytes(whole[:begin] + noise + whole[begin + 1000 :])
        with duckdb.connect() as conn:
            try:
                conn.sql(f"SELECT sum(a), min(b), sum(len(l)) FROM {dataset.sql_query_fragment(conn=conn)}").fetchall()
            except duckdb.Error as error:
                failed += 1
                found = translate(error, "SELECT", [dataset])
                assert isinstance(found, CorruptInput), found
                assert broken in str(found)
    assert failed


def test_an_error_of_a_query_over_good_files_is_of_the_query(write: Callable[..., str]) -> None:
    dataset = ParquetDataSet([write("good.parquet", {"a": ["1", "x"]})])
    with duckdb.connect() as conn, pytest.raises(duckdb.Error) as raised:
        conn.sql(f"SELECT sum(a::INT) FROM {dataset.sql_query_fragment(conn=conn)}").fetchall()
    assert isinstance(translate(raised.value, "SELECT sum(a::INT)", [dataset]), InvalidQuery)
    assert isinstance(translate(duckdb.Error("something else"), "SELECT", [dataset]), InvalidQuery)
