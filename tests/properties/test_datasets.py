"""However files are cut and joined, the rows are the same in the same order; what is packed comes back."""

import os
import pickle
import tempfile

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallpond_mpi.io.parquet import RowRange
from smallpond_mpi.io.partition_writer import PackedWriter, PartitionFileWriter, WriteOptions
from smallpond_mpi.logical.dataset import PackedPartitions, ParquetDataSet, PartitionedDataSet

common = settings(max_examples=40, suppress_health_check=list(HealthCheck))

cuts = st.lists(
    st.tuples(st.sampled_from(["files", "rows", "size", "pickle", "merge"]), st.integers(1, 6)), min_size=1, max_size=5
)


def files_of(directory, counts, row_group_size):
    paths, start = [], 0
    for number, count in enumerate(counts):
        path = os.path.join(directory, f"{number}.parquet")
        pq.write_table(pa.table({"a": list(range(start, start + count))}), path, row_group_size=row_group_size)
        paths.append(path)
        start += count
    return paths


def spread(sizes):
    return max(sizes) - min(sizes)


def cut(dataset, how, n):
    if how == "files":
        parts = dataset.partition_by_files(n)
        assert spread([part.num_files for part in parts]) <= 1
    elif how == "rows":
        parts = dataset.partition_by_rows(n)
        assert len(parts) == n
        assert spread([part.num_rows for part in parts]) <= 1
    elif how == "size":
        parts = dataset.partition_by_size(n * 10)
    elif how == "pickle":
        parts = [pickle.loads(pickle.dumps(dataset))]
    else:
        parts = [ParquetDataSet.merge(dataset.partition_by_rows(n))]
    assert sum(part.num_rows for part in parts) == dataset.num_rows
    return parts


@common
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6), group=st.integers(1, 5), steps=cuts, sql=st.booleans()
)
def test_any_cuts_joined_again_are_the_same_rows(counts, group, steps, sql):
    with tempfile.TemporaryDirectory() as directory, duckdb.connect() as conn:
        parts = [ParquetDataSet(files_of(directory, counts, group))]
        for how, n in steps:
            parts = [piece for part in parts[:20] for piece in cut(part, how, n)] + parts[20:]
        rows = [
            part.to_arrow_table(conn=conn if sql else None).column("a").to_pylist() for part in parts if not part.empty
        ]
        expected = list(range(sum(counts)))
        assert [value for part in rows for value in part] == expected
        merged = ParquetDataSet.merge(parts)
        assert merged.num_rows == sum(counts)
        if expected:
            assert merged.to_arrow_table(conn=conn if sql else None).column("a").to_pylist() == expected
            assert merged.to_batch_reader(3).read_all().column("a").to_pylist() == expected
            assert conn.sql(f"SELECT a FROM {merged.sql_query_fragment()}").fetchall() == [(v,) for v in expected]


@common
@given(counts=st.lists(st.integers(0, 50), max_size=8), n=st.integers(1, 70))
def test_partition_by_rows_is_even_and_contiguous(counts, n):
    ranges = [RowRange(f"/{i}", 10, count + 7, 3, 3 + count) for i, count in enumerate(counts)]
    parts = RowRange.partition_by_rows(ranges, n)
    sizes = [sum(item.num_rows for item in part) for part in parts]
    assert len(parts) == n
    assert sum(sizes) == sum(counts)
    assert spread(sizes) <= 1
    rows = [(item.path, row) for part in parts for item in part for row in range(item.begin, item.end)]
    assert rows == [(item.path, row) for item in ranges for row in range(item.begin, item.end)]


values = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "s": st.none() | st.text(max_size=300),
        "b": st.none() | st.binary(max_size=20),
        "l": st.none() | st.lists(st.none() | st.text(max_size=5), max_size=3),
        "r": st.none()
        | st.fixed_dictionaries({"x": st.none() | st.floats(allow_nan=False), "y": st.none() | st.booleans()}),
    }
)
SCHEMA = pa.schema(
    [
        ("i", pa.int64()),
        ("s", pa.large_string()),
        ("b", pa.large_binary()),
        ("l", pa.list_(pa.large_string())),
        ("r", pa.struct([("x", pa.float64()), ("y", pa.bool_())])),
    ]
)


@common
@given(
    batches=st.lists(st.lists(st.tuples(st.integers(0, 4), values), max_size=12), min_size=1, max_size=3),
    group=st.integers(1, 4),
    packed=st.booleans(),
    producers=st.integers(1, 3),
)
def test_what_is_packed_comes_back(batches, group, packed, producers):
    make = PackedWriter if packed else PartitionFileWriter
    expected = [[] for _ in range(5)]
    outputs = []
    with tempfile.TemporaryDirectory() as directory, duckdb.connect() as conn:
        for producer in range(producers):
            writer = make(directory, f"p{producer}", 5, options=WriteOptions(row_group_size=group))
            for batch in batches:
                rows = sorted(batch, key=lambda row: row[0])
                counts = np.bincount([partition for partition, _ in rows], minlength=5) if rows else [0] * 5
                writer.append(pa.Table.from_pylist([row for _, row in rows], SCHEMA), counts)
                for partition, row in rows:
                    expected[partition].append(row)
            outputs.append(PackedPartitions([pickle.loads(pickle.dumps(writer.close()))]))
        merged = PartitionedDataSet.merge(outputs)
        for partition in range(5):
            part = pickle.loads(pickle.dumps(merged[partition]))
            table = part.to_arrow_table()
            assert table.schema == SCHEMA
            assert table.to_pylist() == expected[partition]
            assert part.num_rows == merged[partition].num_rows == len(expected[partition])
            assert part.to_arrow_table(conn=conn).to_pylist() == expected[partition]
            halves = part.partition_by_rows(2)
            assert [row for half in halves for row in half.to_arrow_table().to_pylist()] == expected[partition]
