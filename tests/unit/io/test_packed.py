"""The partition output seam: both writers, every append, read back partition by partition."""

import os
import pickle

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.io.packed import PartitionSlices
from smallpond_mpi.io.packed_index import index_of_packed
from smallpond_mpi.io.parquet import own_metadata, pack_ranges
from smallpond_mpi.io.partition_writer import PackedWriter, PartitionFileWriter, WriteOptions, split_files
from smallpond_mpi.logical.dataset import PackedPartitions, ParquetDataSet, PartitionedDataSet

WRITERS = [PackedWriter, PartitionFileWriter]


def table_of(counts, producer=0):
    keys = np.repeat(np.arange(len(counts)), counts)
    return pa.table({"p": keys, "v": pa.array([f"{producer}:{i}" for i in range(len(keys))], pa.large_string())})


def written(writer, *appends, producer=0):
    for counts in appends:
        writer.append(table_of(counts, producer), counts)
    return writer.close()


def expected_rows(appends, partition, producer=0):
    return [
        value
        for counts in appends
        for key, value in zip(*table_of(counts, producer).to_pydict().values(), strict=True)
        if key == partition
    ]


@pytest.mark.parametrize("make", WRITERS)
@pytest.mark.parametrize("appends", [[[3, 0, 2]], [[0, 0, 0]], [[0, 5, 0], [1, 1, 1], [0, 0, 0]]], ids=str)
def test_partitions_come_back(tmp_path, make, appends):
    output = pickle.loads(pickle.dumps(written(make(str(tmp_path), "x", 3), *appends)))
    partitions = PackedPartitions([output])
    assert partitions.num_rows == sum(map(sum, appends))
    with duckdb.connect() as conn:
        for partition in range(3):
            part = partitions[partition]
            expected = expected_rows(appends, partition)
            assert (part.num_rows, part.empty) == (len(expected), not expected)
            assert (part.estimated_data_size > 0) == bool(expected)
            again = pickle.loads(pickle.dumps(part))
            assert type(again) is ParquetDataSet
            for dataset in (part, again):
                assert dataset.to_arrow_table().column("v").to_pylist() == expected
                assert dataset.to_arrow_table(conn=conn).column("v").to_pylist() == expected
                assert dataset.to_batch_reader(2).read_all().column("v").to_pylist() == expected
            assert again.to_arrow_table().schema.names == ["p", "v"]


def test_row_groups_end_where_partitions_end(tmp_path):
    options = WriteOptions(row_group_size=4, kv_metadata={"SMALLPOND:__task_id__": "7"})
    output = written(PackedWriter(str(tmp_path), "x", 4, "dim", options), [3, 0, 9, 1])
    (segment,) = output.segments
    metadata = pq.read_metadata(segment.files[0].path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 3, 3, 3, 1]
    assert [item.row_groups for p in (0, 2, 3) for item in PartitionSlices([output]).ranges(p)] == [
        (0, 1),
        (1, 3),
        (4, 1),
    ]
    assert not metadata.row_group(0).column(0).is_stats_set
    own = own_metadata(metadata.metadata)
    assert own["__task_id__"] == "7"
    index = index_of_packed(own, "dim")
    assert (index.npartitions, index.partitions, index.rows, index.groups) == (4, (0, 2, 3), (3, 9, 1), (1, 3, 1))
    assert index_of_packed(own, "other") is None


def test_a_file_holds_at_most_64_partitions_with_rows(tmp_path):
    counts = [0, 1, 0] * 75
    output = written(PackedWriter(str(tmp_path), "x", 225), counts)
    assert len(os.listdir(tmp_path)) == len(output.segments[0].files) == 2
    slices = PartitionSlices([output])
    assert [slices.num_rows(p) for p in range(225)] == counts
    for p in (1, 190, 193, 223):
        assert PackedPartitions([output])[p].to_arrow_table().column("p").to_pylist() == [p] * counts[p]
    assert split_files(np.zeros(5, np.int64), 64) == [(0, 5)]
    assert split_files(np.array([1, 1, 0, 1]), 2) == [(0, 3), (3, 4)]


def test_many_producers_side_by_side(tmp_path):
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 3, (6, 10)).tolist()
    outputs = [written(PackedWriter(str(tmp_path), f"x{i}", 10), c, producer=i) for i, c in enumerate(counts)]
    merged = PartitionedDataSet.merge([PackedPartitions([pickle.loads(pickle.dumps(output))]) for output in outputs])
    assert isinstance(merged, PackedPartitions)
    for p in range(10):
        expected = [row for i, c in enumerate(counts) for row in expected_rows([c], p, i)]
        assert merged[p].to_arrow_table().column("v").to_pylist() == expected
        assert merged.slices.packed(p) == pack_ranges(merged.slices.ranges(p))
        assert merged.slices.num_bytes(p) == sum(output.segments[0].num_bytes[p] for output in outputs)
    found = ParquetDataSet([f"{tmp_path}/*.parquet"]).load_partitioned_datasets(10, "__data_partition__")
    for p in range(10):
        assert found[p].to_arrow_table().equals(merged[p].to_arrow_table())
    everything = merged.to_arrow_table()
    assert everything.column("p").to_pylist() == sorted(everything.column("p").to_pylist())
    assert everything.num_rows == merged.num_rows == np.sum(counts)


def test_a_slice_of_a_slice(tmp_path):
    output = written(PackedWriter(str(tmp_path), "x", 3), [0, 10, 5])
    part = PackedPartitions([output])[1].project(columns=["v"])
    halves = part.partition_by_rows(2)
    merged = ParquetDataSet.merge([*halves, PackedPartitions([output])[2].project(columns=["v"])])
    assert merged.to_arrow_table().column("v").to_pylist() == [f"0:{i}" for i in range(15)]
    assert pickle.loads(pickle.dumps(part)).to_arrow_table().column_names == ["v"]


def test_what_is_kept_of_a_slice_is_24_bytes(tmp_path):
    output = written(PackedWriter(str(tmp_path), "x", 4096), [0] * 4095 + [1])
    segment = output.segments[0]
    arrays = [segment.row_offsets, segment.group_offsets, segment.num_bytes, segment.file_index]
    assert sum(array.nbytes for array in arrays) <= 24 * 4097
    assert len(pickle.dumps(output)) < 24 * 4097 + 2000
    stacked = PartitionSlices([output])
    assert segment.row_offsets.base is stacked._row_offsets


def test_a_file_a_partition_tells_its_partition(tmp_path):
    output = written(PartitionFileWriter(str(tmp_path), "x", 3, "dim"), [1, 0, 2])
    assert sorted(os.listdir(tmp_path)) == ["x-0.parquet", "x-2.parquet"]
    parts = ParquetDataSet([str(tmp_path / "*")]).load_partitioned_datasets(3, "dim")
    assert [part.num_rows for part in parts] == [1, 0, 2]
    assert PartitionSlices([output]).num_rows(2) == 2


def test_hive_directories(tmp_path):
    output = written(PartitionFileWriter(str(tmp_path), "x", 3, "a b", hive_partitioning=True), [1, 0, 2])
    assert sorted(os.listdir(tmp_path)) == ["a%20b=0", "a%20b=2"]
    parts = ParquetDataSet([str(tmp_path / "*/*")]).load_partitioned_datasets(3, "a b", hive_partitioning=True)
    assert [part.num_rows for part in parts] == [1, 0, 2]
    assert PackedPartitions([output])[2].num_rows == 2


def test_moved_output(tmp_path):
    output = written(PackedWriter(str(tmp_path), "x", 2), [1, 2])
    target = f"{tmp_path}-moved"
    os.rename(tmp_path, target)
    moved = PackedPartitions([output]).moved(str(tmp_path), target)
    assert moved[1].to_arrow_table().num_rows == 2
    assert set(moved.recorded_file_sizes) == {f"{target}/x-0-0.parquet"}


@pytest.mark.parametrize("make", WRITERS)
@pytest.mark.parametrize("counts", [[1, 1], [1, 1, 2], [4, -1, 0]], ids=str)
def test_counts_that_do_not_fit(tmp_path, make, counts):
    with pytest.raises(InvalidArgument, match="counts"):
        make(str(tmp_path), "x", 3).append(table_of([1, 1, 1]), counts)


def test_outputs_that_do_not_fit_each_other(tmp_path):
    outputs = [written(PackedWriter(str(tmp_path), f"x{n}", n), [1] * n) for n in (2, 3)]
    with pytest.raises(InvalidArgument, match=r"\[2, 3\]"):
        PartitionSlices(outputs)
    with pytest.raises(IndexError):
        PartitionSlices(outputs[:1]).ranges(2)
