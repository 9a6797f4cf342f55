"""Text, memory, SQL, file sets, partitioned datasets: each read by Arrow, by SQL, and after a journey."""

import pickle
from collections.abc import Iterator
from contextlib import closing

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from smallpond_mpi.common import (
    ColumnNotFound,
    CorruptInput,
    InputNotFound,
    InvalidArgument,
    InvalidQuery,
    OutOfMemory,
    TaskFailed,
)
from smallpond_mpi.io.memory import limit_duckdb
from smallpond_mpi.logical import dataset as package
from smallpond_mpi.logical.dataset import (
    ArrowTableDataSet,
    CsvDataSet,
    DataSet,
    FileSet,
    JsonDataSet,
    PandasDataSet,
    ParquetDataSet,
    PartitionedDataSet,
    SqlQueryDataSet,
)
from smallpond_mpi.logical.dataset.base import connect
from smallpond_mpi.logical.dataset.errors import translate
from smallpond_mpi.logical.dataset.sniffing import csv_schema

TABLE = pa.table(
    {
        "i": pa.array([1, None, 3], pa.int8()),
        "s": pa.array(["a", None, "ü"], pa.string()),
        "d": pa.array(["x", "y", "x"]).dictionary_encode(),
        "t": pa.array([0, 1, None], pa.timestamp("ms", "Europe/Berlin")),
        "n": pa.array([[{"k": "v"}], None, []], pa.list_(pa.struct([("k", pa.string())]))),
    }
)


def text_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def query(dataset, sql):
    with duckdb.connect() as conn:
        return conn.sql(sql.format(dataset.sql_query_fragment(conn=conn))).fetchall()


def test_every_public_name_is_there():
    for name in package.NAMES:
        assert getattr(package, name).__name__ == name
    assert "has_magic" in dir(package)
    with pytest.raises(AttributeError, match="nope"):
        package.nope


def test_an_arrow_table_is_what_it_was(tmp_path):
    dataset = ArrowTableDataSet(TABLE)
    assert dataset.to_arrow_table() is TABLE
    assert pickle.loads(pickle.dumps(dataset)).to_arrow_table().equals(TABLE)
    assert dataset.to_batch_reader(2).read_all().equals(TABLE)
    assert query(dataset, "SELECT sum(i), count(*) FROM {}") == [(4, 3)]
    parts = dataset.partition_by_files(2)
    assert [part.num_rows for part in parts] == [2, 1]
    assert DataSet.merge(parts).to_arrow_table().equals(TABLE)
    assert len(pickle.dumps(ArrowTableDataSet(pa.table({"a": range(100000)}).slice(5, 1)))) < 5000


def test_a_pandas_frame_is_what_it_was():
    frame = pd.DataFrame({"a": [1, 2, 3], "s": ["x", "y", None], "f": [1.5, None, 3]}, index=[7, 8, 9])
    dataset = pickle.loads(pickle.dumps(PandasDataSet(frame)))
    pd.testing.assert_frame_equal(dataset.to_pandas(), frame)
    assert dataset.to_arrow_table().column_names == ["a", "s", "f"]
    assert query(dataset, "SELECT sum(a), count(s) FROM {}") == [(6, 2)]
    parts = dataset.partition_by_rows(2)
    assert [part.num_rows for part in parts] == [2, 1]
    merged = PandasDataSet.merge(parts).to_pandas()
    pd.testing.assert_frame_equal(merged, frame.reset_index(drop=True))


def test_data_in_memory_needs_a_connection_and_is_a_view_of_its_own_each_time():
    dataset = ArrowTableDataSet(TABLE)
    with pytest.raises(InvalidArgument, match="connection"):
        dataset.sql_query_fragment()
    with duckdb.connect() as conn:
        one, other = dataset.sql_query_fragment(conn=conn), dataset.sql_query_fragment(conn=conn)
        assert one != other


def test_csv(tmp_path):
    path = text_file(tmp_path, "it's {0}.csv", '1|a\n2|"b|c"\n')
    schema = {"id": "BIGINT", "na\"me '{x}": "VARCHAR"}
    dataset = pickle.loads(pickle.dumps(CsvDataSet([path], schema, delim="|")))
    expected = {"id": [1, 2], "na\"me '{x}": ["a", "b|c"]}
    assert dataset.to_arrow_table().to_pydict() == expected
    assert dataset.to_arrow_table().schema.types == [pa.int64(), pa.large_string()]
    assert dataset.to_batch_reader(1).read_all().to_pydict() == expected
    assert [batch.num_rows for batch in dataset.to_batch_reader(1)] == [1, 1]
    assert (dataset.num_rows, dataset.empty) == (2, False)
    assert query(dataset, "SELECT sum(id) FROM {}") == [(3,)]
    with duckdb.connect() as conn:
        assert dataset.to_arrow_table(conn=conn).to_pydict() == expected
    assert CsvDataSet([path], schema, delim="|", columns=["id"]).to_arrow_table().to_pydict() == {"id": [1, 2]}
    with pytest.raises(ColumnNotFound, match="nope"):
        CsvDataSet([path], schema, columns=["nope"]).to_arrow_table()


def test_csv_with_header_and_many_files(tmp_path):
    paths = [text_file(tmp_path, f"{i}.csv", f"a,b\n{i},x\n") for i in range(5)]
    schema = {"a": "INT", "b": "VARCHAR"}
    dataset = CsvDataSet([str(tmp_path / "*.csv")], schema, header=True)
    parts = dataset.partition_by_files(2)
    assert [part.resolved_paths for part in parts] == [paths[:3], paths[3:]]
    merged = CsvDataSet.merge(parts)
    assert merged.to_arrow_table().column("a").to_pylist() == [0, 1, 2, 3, 4]
    assert CsvDataSet([], schema).to_arrow_table().schema.names == ["a", "b"]
    assert CsvDataSet([], schema).empty
    with pytest.raises(InvalidArgument, match="format"):
        DataSet.merge([merged, CsvDataSet(paths, schema, delim=";")])


UNUSUAL = {
    "quote": "a,b\n1,'x,y'\n2,'it''s'\n3,'z'\n",
    "quoted numbers": "'1','x'\n'2','y'\n",
    "escape": 'a,b\n1,"x\\"y"\n2,"z"\n',
    "lines before the header": "# hello\n# more\na,b\n1,x\n2,y\n",
    "comments": "# hello, you\na,b\n1,x\n# mid\n2,y\n",
    "title": "Some title\n\na,b\n1,x\n2,y\n",
    "no quotes": 'a,b\n1,"abc\n2,5" pipe\n3,y\n',
    "line ends": "a,b\r\n1,x\r\n2,y\r\n",
}


def sniffed(*paths, delim=",", header=None):
    found = csv_schema(paths, delim, header)
    return CsvDataSet(list(paths), found.schema, delim, header=found.header, dialect=found.dialect)


@pytest.mark.parametrize("text", UNUSUAL.values(), ids=UNUSUAL)
def test_csv_is_read_as_it_was_found_to_be_written(tmp_path, text):
    paths = [text_file(tmp_path, f"{i}.csv", text) for i in range(3)]
    known = duckdb.read_csv(paths[0])
    rows, types = known.fetchall(), list(map(str, known.types))
    alone = pickle.loads(pickle.dumps(sniffed(paths[0])))
    assert (list(alone.schema), list(alone.schema.values())) == (known.columns, types)
    assert query(alone, "FROM {}") == rows
    assert alone.to_batch_reader().read_all().num_rows == alone.num_rows == len(rows)
    parts = pickle.loads(pickle.dumps(sniffed(*paths).partition_by_files(2)))
    assert query(parts[0], "FROM {}") == rows * 2
    assert query(CsvDataSet.merge(parts), "FROM {}") == rows * 3
    declared = CsvDataSet(paths[1:], alone.schema, header=alone.header)
    if text == UNUSUAL["line ends"]:
        assert query(CsvDataSet.merge([alone, declared]), "FROM {}") == rows * 3
    else:
        with pytest.raises(InvalidArgument, match="format"):
            CsvDataSet.merge([alone, declared])


def test_quotes_after_the_rows_that_are_looked_into(tmp_path):
    """What was not seen may still come, in this file or in another, as the usual dialect has it."""
    many = "".join(f"{i},w{i}\n" for i in range(50_000))
    late = text_file(tmp_path, "0.csv", f'a,b\n{many}7,"x,""y"""\n')
    assert query(sniffed(late), "SELECT b FROM {} WHERE a = 7 AND b <> 'w7'") == [('x,"y"',)]
    paths = [text_file(tmp_path, "1.csv", "a,b\n1,x\n"), text_file(tmp_path, "2.csv", 'a,b\n2,"y,z"\n')]
    assert query(sniffed(*paths), "SELECT b FROM {}") == [("x",), ("y,z",)]


def test_what_is_said_of_csv_counts_more_than_what_is_found(tmp_path):
    path = text_file(tmp_path, "0.csv", "a;b\n1;'x;y'\n")
    assert query(sniffed(path, delim=";"), "FROM {}") == [(1, "x;y")]
    assert query(sniffed(path, delim=";", header=False), "FROM {}") == [("a", "b"), ("1", "x;y")]
    path = text_file(tmp_path, "1.csv", "1,'x'\n")
    assert query(CsvDataSet([path], {"a": "INT", "b": "VARCHAR"}), "FROM {}") == [(1, "'x'")]


@pytest.mark.parametrize("text", ["1,2\n3,x\n", "1,2\n3\n", "1,2\n3,4,5\n"])
def test_csv_that_does_not_fit_names_file_and_line(tmp_path, text):
    dataset = CsvDataSet([text_file(tmp_path, "bad.csv", text)], {"a": "INT", "b": "INT"})
    for read in (dataset.to_arrow_table, lambda: dataset.to_batch_reader().read_all()):
        with pytest.raises(CorruptInput, match=r"bad.csv.*line 2"):
            read()


@pytest.mark.parametrize("text", ['{"a":1}\n{"a":"x"}\n', '{"a":1}\n{"a":\n'])
def test_json_that_does_not_fit_names_file_and_line(tmp_path, text):
    dataset = JsonDataSet([text_file(tmp_path, "bad.json", text)], {"a": "INT"})
    with pytest.raises(CorruptInput, match=r"bad.json.*line [23]"):
        dataset.to_arrow_table()


def test_json(tmp_path):
    path = text_file(tmp_path, "a.json", '{"a": 1, "b": {"c": ["x"]}}\n{"b": null}\n')
    schema = {"a": "BIGINT", "b": "STRUCT(c VARCHAR[])"}
    dataset = pickle.loads(pickle.dumps(JsonDataSet([path], schema)))
    assert dataset.to_arrow_table().to_pydict() == {"a": [1, None], "b": [{"c": ["x"]}, None]}
    assert dataset.to_arrow_table().schema.field("b").type == pa.struct([("c", pa.list_(pa.large_string()))])
    array = text_file(tmp_path, "array.json", '[{"a": 1}, {"a": 2}]')
    assert JsonDataSet([array], {"a": "INT"}, format="array").num_rows == 2
    with pytest.raises(InvalidArgument, match="xml"):
        JsonDataSet([path], schema, format="xml")


def test_missing_text_files_are_named(tmp_path):
    for dataset in (
        CsvDataSet([str(tmp_path / "no.csv")], {"a": "INT"}),
        JsonDataSet([str(tmp_path / "no.json")], {"a": "INT"}),
    ):
        with pytest.raises(InputNotFound, match=r"no\.(csv|json)"):
            dataset.to_arrow_table()


def test_sql_query():
    dataset = SqlQueryDataSet("SELECT i FROM range(5) t(i); ")
    assert (dataset.num_rows, dataset.empty) == (5, False)
    assert query(dataset, "SELECT sum(i) FROM {}") == [(10,)]
    assert SqlQueryDataSet("SELECT 1 WHERE false -- nothing").empty
    built = SqlQueryDataSet("", lambda conn, fs: "SELECT 7 AS x")
    assert built.to_arrow_table().to_pydict() == {"x": [7]}
    assert DataSet.merge([dataset, SqlQueryDataSet("SELECT 9::BIGINT")]).to_arrow_table().column(0).to_pylist() == [
        0,
        1,
        2,
        3,
        4,
        9,
    ]
    with pytest.raises(InvalidQuery, match="SELEC 1"):
        SqlQueryDataSet("SELEC 1").to_arrow_table()
    with pytest.raises(InvalidQuery, match="Could not convert string 'x'"):
        SqlQueryDataSet("SELECT CAST('x' AS INT)").to_arrow_table()


def test_an_exception_in_a_function_of_the_user_is_not_a_bad_query():
    with duckdb.connect() as conn:
        conn.create_function("fails", lambda: 1 / 0, [], "BIGINT", side_effects=True)
        with pytest.raises(duckdb.Error) as raised:
            conn.sql("SELECT fails()").fetchall()
    error = translate(raised.value, "SELECT fails()")
    assert isinstance(error, TaskFailed)
    assert "ZeroDivisionError" in str(error)


def test_file_set(tmp_path):
    paths = [text_file(tmp_path, f"{i}.bin", "x") for i in range(3)]
    dataset = FileSet([str(tmp_path / "*.bin")])
    assert dataset.num_rows == 3
    assert dataset.to_arrow_table().to_pydict() == {"resolved_paths": paths}
    assert dataset.to_batch_reader(2).read_all().to_pydict() == {"resolved_paths": paths}
    merged = FileSet.merge(dataset.partition_by_files(2))
    assert merged.resolved_paths == paths


def test_partitioned_dataset(write):
    parts = [ParquetDataSet([write(f"{i}.parquet", {"a": [i]})]) for i in range(4)]
    dataset = pickle.loads(pickle.dumps(PartitionedDataSet(parts[:2])))
    assert (len(dataset), dataset.num_rows, dataset.num_files) == (2, 2, 2)
    assert dataset[1].to_arrow_table().to_pydict() == {"a": [1]}
    assert dataset.to_arrow_table().to_pydict() == {"a": [0, 1]}
    merged = PartitionedDataSet.merge([dataset, PartitionedDataSet(parts[2:])])
    assert merged[0].to_arrow_table().to_pydict() == {"a": [0, 2]}
    assert query(merged, "SELECT sum(a) FROM {}") == [(6,)]
    with pytest.raises(InvalidArgument, match="partitions"):
        PartitionedDataSet.merge([dataset, PartitionedDataSet(parts)])


def test_different_kinds_do_not_merge(tmp_path, write):
    csv = CsvDataSet([text_file(tmp_path, "a.csv", "1\n")], {"a": "INT"})
    with pytest.raises(InvalidArgument, match="kinds"):
        DataSet.merge([csv, ParquetDataSet([write("a.parquet", {"a": [1]})])])


def test_log_shows_rows(caplog):
    with caplog.at_level("INFO"):
        ArrowTableDataSet(TABLE).log(2)
    assert "ü" not in caplog.text
    assert "a" in caplog.text


@pytest.fixture
def a_small_grant() -> Iterator[None]:
    limit_duckdb(1 << 30)
    threads = pa.cpu_count()
    pa.set_cpu_count(2)
    yield
    pa.set_cpu_count(threads)
    limit_duckdb(None)


def test_json_is_read_with_little_memory_whatever_an_object_might_take(tmp_path, a_small_grant) -> None:
    path = tmp_path / "some.json"
    path.write_text("".join(f'{{"a": {number}, "b": "{"x" * 1000}"}}\n' for number in range(40_000)))
    dataset = JsonDataSet([str(path)], {"a": "BIGINT", "b": "VARCHAR"})
    assert dataset.to_arrow_table().num_rows == 40_000


def test_a_json_object_too_long_for_the_memory_there_is_means_that_it_ran_out(tmp_path, a_small_grant) -> None:
    path = tmp_path / "long.json"
    path.write_text(f'{{"a": 1, "b": "{"x" * (200 << 20)}"}}\n')
    with pytest.raises(OutOfMemory, match="too long for the memory limit"):
        JsonDataSet([str(path)], {"a": "BIGINT", "b": "VARCHAR"}).to_arrow_table()
    with pytest.raises(InvalidQuery, match="maximum_object_size"):
        JsonDataSet([str(path)], {"a": "BIGINT", "b": "VARCHAR"}, max_object_size=32 << 20).to_arrow_table()


def test_the_duckdb_of_a_dataset_keeps_to_the_grant(a_small_grant) -> None:
    with closing(connect()) as conn:
        settings = conn.sql("SELECT current_setting('memory_limit'), current_setting('temp_directory')").fetchall()
    assert settings == [("1.0 GiB", "")]
