"""HashPartition: every row in one partition, equal keys together, in both engines."""

import datetime as dt
import errno
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import ColumnNotFound, DataRootUnusable, InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.task import PartitionConsumerTask, PartitionInfo
from smallpond_mpi.execution.task.engine import connect
from smallpond_mpi.io.partition_writer import MAX_PARTITIONS_A_FILE
from smallpond_mpi.logical.dataset import CsvDataSet, ParquetDataSet, PartitionedDataSet
from tests.unit.task.task_builders import attempt, hashed, rows, run

ENGINES = ["duckdb", "arrow"]
N = 8


def where(ctx: RuntimeContext, engine: str, values: pa.Array) -> dict[int, int]:
    """The partition of each row number of a single key column."""
    path = Path(ctx.job_root) / f"keys-{ctx.new_task_id()}.parquet"
    pq.write_table(pa.table({"i": pa.array(range(len(values)), pa.int32()), "k": values}), path)
    output = run(hashed(ctx, engine, ParquetDataSet([str(path)]), "k"))
    return {i: p for p in range(N) for i, _, number in rows(output[p]) if number == p}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_row_is_in_the_partition_of_its_key(ctx, parquet, engine: str) -> None:
    dataset = parquet(
        {"a": list(range(1000)), "b": [f"s{i % 7}" for i in range(1000)]},
        {"a": list(range(1000, 1500)), "b": [None if i % 3 else "" for i in range(500)]},
    )
    task = hashed(ctx, engine, dataset, "a", "b")
    output = run(task)
    assert isinstance(output, PartitionedDataSet)
    assert len(output) == N
    found = [row for p in range(N) for row in rows(output[p])]
    assert sorted(row[0] for row in found) == list(range(1500))
    assert all(number == p for p in range(N) for _, _, number in rows(output[p]))
    assert all(output[p].num_rows > 100 for p in range(N))
    assert all(rows(output[p]) == sorted(rows(output[p])) for p in range(N)), "input order within a partition"
    assert task.perf_metrics["num output rows"] == 1500


def test_one_packed_file_a_producer_that_tells_what_it_is(ctx, parquet) -> None:
    task = hashed(ctx, "duckdb", parquet({"a": list(range(100))}), "a")
    output = run(task)
    (path,) = set(output.resolved_paths)
    assert Path(path).name.startswith(task.output_filename)
    metadata = pq.read_metadata(path).metadata
    assert metadata[b"SMALLPOND:__task_key__"] == task.key.encode()
    again = ParquetDataSet([path]).load_partitioned_datasets(N, "part")
    assert [part.num_rows for part in again] == [output[p].num_rows for p in range(N)]


def test_engines_agree(ctx, parquet) -> None:
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "i": rng.integers(-5, 5, 500),
            "f": pa.array(rng.choice([0.0, -0.0, 1.5, np.nan, np.inf], 500)),
            "s": pa.array(rng.choice(["", "a", "b", "ab"], 500)).dictionary_encode(),
            "d": pa.array([dt.date(2020, 1, 1 + i % 28) for i in range(500)]),
            "t": pa.array([dt.datetime(2020, 1, 1 + i % 28, tzinfo=dt.UTC) for i in range(500)]),
            "l": pa.array([[i % 3, None] for i in range(500)]),
            "m": pa.array([{"x": i % 4, "y": "z"} for i in range(500)]),
        }
    )
    for columns in (["i"], ["f", "s"], ["d", "t"], ["l"], ["m", "i"], table.column_names):
        dataset = parquet(table.append_column("n", pa.array(range(500))))
        duck, arrow = (run(hashed(ctx, engine, dataset, *columns)) for engine in ENGINES)
        for p in range(N):
            assert [row[-2:] for row in rows(duck[p])] == [row[-2:] for row in rows(arrow[p])]


EQUAL = [
    [
        pa.array([1, 0, 7, None], pa.int8()),
        pa.array([1, 0, 7, None], pa.int64()),
        pa.array([1, 0, 7, None], pa.uint32()),
        pa.array([1.0, -0.0, 7.0, None], pa.float64()),
        pa.array([1.0, 0.0, 7.0, None], pa.float32()),
        pa.array([Decimal("1.00"), Decimal("0.00"), Decimal("7.00"), None], pa.decimal128(4, 2)),
        pa.array([Decimal("1.000"), Decimal("0.000"), Decimal("7.000"), None], pa.decimal128(38, 3)),
    ],
    [
        pa.array([Decimal("12345678901234567.10"), Decimal("0.10")], pa.decimal128(38, 2)),
        pa.array([Decimal("12345678901234567.1"), Decimal("0.1")], pa.decimal128(20, 1)),
    ],
    [
        pa.array([dt.date(2020, 2, 29), dt.date(1969, 1, 1), None]),
        pa.array([dt.datetime(2020, 2, 29), dt.datetime(1969, 1, 1), None], pa.timestamp("us")),
        pa.array([dt.datetime(2020, 2, 29), dt.datetime(1969, 1, 1), None], pa.timestamp("ms")),
        pa.array([dt.datetime(2020, 2, 29), dt.datetime(1969, 1, 1), None], pa.timestamp("ns")),
        pa.array([dt.datetime(2020, 2, 29), dt.datetime(1969, 1, 1), None], pa.timestamp("us", "UTC")),
    ],
    [
        pa.array(["x", "", "long enough not to be inlined", None]),
        pa.array(["x", "", "long enough not to be inlined", None], pa.large_string()),
        pa.array(["x", "", "long enough not to be inlined", None]).dictionary_encode(),
    ],
    [
        pa.array([float("nan")], pa.float64()),
        pa.array([-float("nan")], pa.float64()),
        pa.array([float("nan")], pa.float32()),
    ],
    [pa.array([[1, 2], []], pa.list_(pa.int32())), pa.array([[1.0, 2.0], []], pa.list_(pa.float64()))],
    [pa.array([{"a": 1}], pa.struct([("a", pa.int8())])), pa.array([{"a": 1}], pa.struct([("a", pa.float64())]))],
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("group", EQUAL, ids=lambda group: str(group[0].type))
def test_keys_that_compare_equal_go_together_whatever_their_type(ctx, engine: str, group: list[pa.Array]) -> None:
    places = [where(ctx, engine, values) for values in group]
    assert all(place == places[0] for place in places)
    assert len(places[0]) == len(group[0])


def test_keys_of_several_columns_are_not_run_together(ctx, parquet) -> None:
    pairs = [("a" * i, "a" * (12 - i)) for i in range(13)]
    output = run(hashed(ctx, "duckdb", parquet({"x": [x for x, _ in pairs], "y": [y for _, y in pairs]}), "x", "y"))
    assert len([p for p in range(N) if output[p].num_rows]) > 2


@pytest.mark.parametrize("engine", ENGINES)
def test_types_survive(ctx, parquet, engine: str) -> None:
    table = pa.table(
        {
            "k": pa.array([1, 2], pa.uint16()),
            "ms": pa.array([1, 2], pa.timestamp("ms")),
            "tz": pa.array([1, 2], pa.timestamp("us", "Europe/Berlin")),
            "d": pa.array(["a", "b"]).dictionary_encode(),
            "l": pa.array([[1], [2]], pa.large_list(pa.int8())),
            "dec": pa.array([Decimal("1.5"), None], pa.decimal128(10, 2)),
            "t": pa.array([1, 2], pa.time64("us")),
        }
    )
    dataset = parquet(table)
    output = run(hashed(ctx, engine, dataset, "k", n=1, drop_partition_column=True))
    assert output[0].to_arrow_table().schema == dataset.to_arrow_table().schema
    assert rows(output[0]) == rows(dataset)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["", " ", "a.b", "{0}", '"q"'])
def test_names_of_columns_survive(ctx, parquet, engine: str, name: str) -> None:
    output = run(hashed(ctx, engine, parquet({"k": [1, 2], name: [3, 4]}), "k", n=1, drop_partition_column=True))
    assert output[0].to_arrow_table().column_names == ["k", name]


@pytest.mark.parametrize("engine", ENGINES)
def test_partition_number_given_in_a_column(ctx, parquet, engine: str) -> None:
    dataset = parquet({"a": list(range(20)), "p": pa.array([i % 10 for i in range(20)], pa.int16())})
    output = run(hashed(ctx, engine, dataset, n=10, shuffle_only=True, data_partition_column="p"))
    assert [rows(output[p]) for p in range(10)] == [[(p, p), (p + 10, p)] for p in range(10)]
    dropped = run(
        hashed(ctx, engine, dataset, n=10, shuffle_only=True, data_partition_column="p", drop_partition_column=True)
    )
    assert rows(dropped[3]) == [(3,), (13,)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("number", "shown"), [(10, "10"), (-1, "-1"), (None, "NULL")])
def test_partition_number_out_of_range(ctx, parquet, engine: str, number: int | None, shown: str) -> None:
    dataset = parquet({"p": [0, number, 3]})
    task = hashed(ctx, engine, dataset, n=10, shuffle_only=True, data_partition_column="p")
    assert attempt(task) is WorkStatus.CRASHED
    assert isinstance(task.exception, InvalidArgument)
    assert f"partition key {shown} is out of range 0-9" in str(task.exception)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.decimal128(5, 1)])
def test_partition_number_must_be_whole(ctx, parquet, engine: str, kind: pa.DataType) -> None:
    whole = parquet({"a": [5, 6], "p": pa.array([2.0, 0.0]).cast(kind)})
    output = run(hashed(ctx, engine, whole, n=3, shuffle_only=True, data_partition_column="p"))
    assert [rows(part, "a") for part in output] == [[(6,)], [], [(5,)]]
    broken = parquet({"a": [5, 6], "p": pa.array([2.0, 0.5]).cast(kind)})
    task = hashed(ctx, engine, broken, n=3, shuffle_only=True, data_partition_column="p")
    assert attempt(task) is WorkStatus.CRASHED
    assert "partition key 0.5 is not a whole number" in str(task.exception)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"shuffle_only": True, "data_partition_column": "nope"}])
def test_unknown_column_is_told_with_those_there_are(ctx, parquet, engine: str, options: dict[str, Any]) -> None:
    task = hashed(ctx, engine, parquet({"a": [1], "b c": [2]}), "nope", **options)
    attempt(task)
    assert isinstance(task.exception, ColumnNotFound)
    assert "'nope'" in str(task.exception)
    assert "a, b c" in str(task.exception)


@pytest.mark.parametrize("engine", ENGINES)
def test_random_shuffle_is_the_same_for_every_attempt(ctx, parquet, engine: str) -> None:
    dataset = parquet({"a": list(range(2000))})
    task = hashed(ctx, engine, dataset, random_shuffle=True)
    first = [rows(part, "a") for part in run(task)]
    again = hashed(ctx, engine, dataset, random_shuffle=True)
    again.id, again.retry_count = task.id, 1
    assert [rows(part, "a") for part in run(again)] == first
    assert sorted(row for part in first for row in part) == [(a,) for a in range(2000)]
    assert all(len(part) > 150 and part != sorted(part) for part in first)
    assert [rows(part, "a") for part in run(hashed(ctx, engine, dataset, random_shuffle=True))] != first


@pytest.mark.parametrize("engine", ENGINES)
def test_no_rows_keep_the_schema(ctx, parquet, engine: str) -> None:
    output = run(hashed(ctx, engine, parquet({"a": pa.array([], pa.int32())}), "a"))
    assert len(output) == N
    assert output[5].num_rows == 0
    assert output[5].to_arrow_table().schema == pa.schema([("a", pa.int32()), ("__data_partition__", pa.int64())])


def test_input_of_no_files(ctx) -> None:
    output = run(hashed(ctx, "duckdb", ParquetDataSet([]), "a"))
    assert len(output) == N
    assert output[0].empty


@pytest.mark.parametrize("engine", ENGINES)
def test_more_than_fits_is_written_in_batches(ctx, parquet, engine: str) -> None:
    dataset = parquet({"a": list(range(50_000))}, row_group_size=5_000)
    task = hashed(ctx, engine, dataset, "a")
    task.__class__ = type("Small", (type(task),), {"max_batch_size": 100_000, "chunk_rows": 7_000})
    output = run(task)
    assert len(set(output.resolved_paths)) > 1
    assert sorted(row[0] for part in output for row in rows(part)) == list(range(50_000))
    assert all(rows(part) == sorted(rows(part)) for part in output)


@pytest.mark.parametrize("engine", ENGINES)
def test_named_output_is_a_file_a_partition(ctx, parquet, engine: str) -> None:
    task = hashed(ctx, engine, parquet({"a": list(range(100))}), "a", output_name="parts")
    output = run(task)
    paths = output.resolved_paths
    assert len(paths) == len(set(paths)) == N
    assert all(path.startswith(task.final_output_abspath) for path in paths)
    found = ParquetDataSet(sorted(paths)).load_partitioned_datasets(N, "part")
    assert [rows(part) for part in found] == [rows(part) for part in output]


def test_hive_partitioning(ctx, parquet) -> None:
    task = hashed(
        ctx, "duckdb", parquet({"a": list(range(100))}), "a", data_partition_column="h", hive_partitioning=True
    )
    output = run(task)
    assert {Path(path).parent.name for path in output.resolved_paths} == {f"h={p}" for p in range(N)}
    found = ParquetDataSet(output.resolved_paths).load_partitioned_datasets(N, "h", hive_partitioning=True)
    assert [part.num_rows for part in found] == [part.num_rows for part in output]


def test_an_earlier_partition_column_is_replaced(ctx, parquet) -> None:
    dataset = parquet({"__data_partition__": [99] * 10, "a": list(range(10))})
    output = run(hashed(ctx, "duckdb", dataset, "a"))
    assert all(number == p for p in range(N) for _, number in rows(output[p]))


def test_csv_input(ctx, tmp_path) -> None:
    (tmp_path / "x.csv").write_text("".join(f"{i},v{i % 3}\n" for i in range(100)))
    dataset = CsvDataSet([str(tmp_path / "x.csv")], {"n": "INTEGER", "s": "VARCHAR"})
    output = run(hashed(ctx, "duckdb", dataset, "s", n=50))
    assert sum(bool(part.num_rows) for part in output) <= 3
    assert sorted(row[0] for part in output for row in rows(part)) == list(range(100))


def test_a_consumer_takes_its_partition_from_all_producers(ctx, parquet) -> None:
    tasks = [
        hashed(ctx, engine, parquet({"a": list(range(i, 300, 3))}), "a")
        for i, engine in enumerate(["duckdb", "arrow", "duckdb"])
    ]
    for task in tasks:
        run(task)
    seen: list[int] = []
    for p in range(N):
        consumer = PartitionConsumerTask(ctx, tasks, [PartitionInfo(), PartitionInfo(p, N, "part")])
        assert consumer.runs_here
        output = run(consumer)
        assert all(number == p for _, number in rows(output))
        seen += [a for a, _ in rows(output)]
    assert sorted(seen) == list(range(300))


def test_a_key_is_needed(ctx, parquet) -> None:
    with pytest.raises(InvalidArgument, match="hash_columns"):
        hashed(ctx, "duckdb", parquet({"a": [1]}))
    with pytest.raises(InvalidArgument, match="duckdb, arrow"):
        hashed(ctx, "spark", parquet({"a": [1]}), "a")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "keys",
    [pa.array([Decimal(10) ** 60, None], pa.decimal256(70, 2)), pa.array([np.float16(1.5), None], pa.float16())],
    ids=["wide decimal", "half float"],
)
def test_a_key_of_a_type_that_duckdb_lacks_is_refused(ctx, parquet, engine: str, keys: pa.Array) -> None:
    task = hashed(ctx, engine, parquet(pa.table({"a": [1, 2], "k": keys})), "k")
    attempt(task)
    assert isinstance(task.exception, InvalidArgument)
    assert f"'k' ({keys.type})" in str(task.exception)
    assert "cast" in str(task.exception)


@pytest.mark.parametrize("engine", ENGINES)
def test_names_of_all_sorts(ctx, parquet, engine: str) -> None:
    odd = ["a", "A", "q\"uo'te", "{0} x", "__number", "#z", "ü"]
    table = pa.table([pa.array([i, i + 1]) for i in range(len(odd))], names=odd)
    for names in (odd[2:], odd):
        dataset = parquet(table.select(names))
        output = run(hashed(ctx, engine, dataset, *names, drop_partition_column=True))
        found = [row for p in range(N) for row in rows(output[p])]
        assert sorted(found) == sorted(rows(dataset))
        assert output[0].to_arrow_table().column_names == names


def test_a_full_disk_is_told(ctx, parquet, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", full)
    task = hashed(ctx, "duckdb", parquet({"a": [1]}), "a")
    attempt(task)
    assert isinstance(task.exception, DataRootUnusable)


def test_columns_with_few_values_are_written_with_a_dictionary(ctx, parquet) -> None:
    rng = np.random.default_rng(3)
    many = rng.integers(0, 1 << 40, 20_000)
    columns = {
        "few": pa.array(rng.choice(["red", "green"], 20_000)),
        "few_sums": pa.array(rng.integers(0, 50, 20_000)).cast(pa.decimal128(21, 2)),
        "many": pa.array(many),
        "many_sums": pa.array(many).cast(pa.decimal128(21, 2)),
    }
    output = run(hashed(ctx, "duckdb", parquet(pa.table(columns)), "many", drop_partition_column=True))
    (path,) = set(output.resolved_paths)
    group = pq.read_metadata(path).row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    with_dictionary = {name for name, used in encodings.items() if any("DICTIONARY" in one for one in used)}
    assert with_dictionary == {"few", "few_sums"}
    assert sorted(row for p in range(N) for row in rows(output[p])) == sorted(
        zip(*(column.to_pylist() for column in columns.values()), strict=True)
    )


def test_numbers_close_together_and_texts_have_delta_encodings(ctx, parquet) -> None:
    rng = np.random.default_rng(3)
    n = 20_000
    some = rng.random(n) < 0.2
    near = rng.integers(0, 1 << 20, n)
    columns = {
        "near": pa.array(near - (1 << 62), mask=some),
        "near_unsigned": pa.array(near.astype(np.uint64) + np.uint64(1 << 63)),
        "near_small": pa.array(near.astype(np.int32) - 7),
        "near_sums": pa.array(near.astype(np.int32), mask=some).cast(pa.decimal128(18, 3)),
        "near_small_sums": pa.array((near % 30_000).astype(np.int16)).cast(pa.decimal128(9, 2)),
        "near_days": pa.array(near.astype(np.int32) % 9000).cast(pa.date32()),
        "near_times": pa.array(near * 1_000_000).cast(pa.timestamp("us", "UTC")),
        "near_hours": pa.array(near).cast(pa.time64("us")),
        "near_tiny": pa.array((near % 99 - 50).astype(np.int8)),
        "text": pa.array([f"the number {i}" if i % 3 else None for i in near.tolist()]),
        "far": pa.array(rng.integers(-(1 << 63), (1 << 63) - 1, n)),
        "far_sums": pa.array(near).cast(pa.decimal128(38, 2)),
        "nothing": pa.nulls(n, pa.int64()),
        "s.a": pa.array(near),
        "s": pa.StructArray.from_arrays([pa.array(near).cast(pa.float64())], ["a"]),
    }
    output = run(hashed(ctx, "duckdb", parquet(pa.table(columns)), "near", drop_partition_column=True))
    (path,) = set(output.resolved_paths)
    group = pq.read_metadata(path).row_group(0)
    used = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    delta = {name for name, encodings in used.items() if any("DELTA" in one for one in encodings)}
    assert delta == {name for name in columns if name.startswith("near")} - {"near_tiny"} | {"text"}, used
    assert "RLE_DICTIONARY" in used["near_tiny"], "it has few values"
    expected = sorted(zip(*(column.to_pylist() for column in columns.values()), strict=True), key=repr)
    assert sorted((row for p in range(N) for row in rows(output[p])), key=repr) == expected
    conn = connect()
    by_duckdb = [
        row for p in range(N) for row in zip(*output[p].to_arrow_table(conn=conn).to_pydict().values(), strict=True)
    ]
    assert sorted(by_duckdb, key=repr) == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_many_more_partitions_than_rows(ctx, parquet, engine: str) -> None:
    output = run(hashed(ctx, engine, parquet({"a": list(range(600))}), "a", n=3000))
    assert len(output) == 3000
    assert sum(part.num_rows for part in output) == 600
    assert len(set(output.resolved_paths)) <= -(-600 // MAX_PARTITIONS_A_FILE)
