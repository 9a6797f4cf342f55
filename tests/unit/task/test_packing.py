"""Rows on their way through a shuffle are held in fewer bytes than their types say, and come out as they went in."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import cloudpickle
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given as every
from hypothesis import settings
from hypothesis import strategies as st

from smallpond_mpi.execution.task.keyed_rows import NARROW_DECIMALS, gains_by_narrow_decimals
from smallpond_mpi.execution.task.packing import MAX_DICTIONARY_BYTES, Packing, widened
from smallpond_mpi.execution.task.row_partition import Chunk, batched
from smallpond_mpi.io.arrow import from_numpy
from smallpond_mpi.logical.dataset import ParquetDataSet
from tests.unit.task.task_builders import hashed, run


def texts(*values: str | None, kind: pa.DataType | None = None) -> pa.RecordBatch:
    return pa.record_batch({"t": pa.array(values, kind or pa.large_string())})


def packing(first: pa.RecordBatch, rows_a_partition: int = 100) -> Packing:
    made = Packing(first, rows_a_partition)
    assert made.repeated == ["t"]
    return made


def out(packed: Packing, *held: pa.RecordBatch) -> pa.Table:
    """What was held, as its readers are to take it."""
    return pa.Table.from_batches(packed.united(held)).cast(packed.schema)


def test_texts_of_few_values_are_numbers_into_one_dictionary_that_grows() -> None:
    first, second = texts(*"aab" * 9), texts("a", None, "c", "")
    packed = packing(first)
    held = [packed.held(first), packed.held(second)]
    assert [str(batch.column("t").type) for batch in held] == [
        "dictionary<values=large_string, indices=int32, ordered=0>"
    ] * 2
    united = packed.united(held)
    assert {tuple(batch.column("t").dictionary.to_pylist()) for batch in united} == {("a", "b", "c", "")}
    assert out(packed, *held).column("t").to_pylist() == [*"aab" * 9, "a", None, "c", ""]


@every(
    st.lists(
        st.lists(st.none() | st.sampled_from(["", "a", "b", "ü", "long" * 9]), max_size=20), min_size=1, max_size=5
    )
)
@settings(deadline=None)
def test_whatever_comes_is_what_comes_out(batches: list[list[str | None]]) -> None:
    first = texts(*["a"] * 30)
    packed = packing(first)
    given_batches = [first, *(texts(*values) for values in batches)]
    held = [packed.held(batch) for batch in given_batches]
    assert out(packed, *held).equals(pa.Table.from_batches(given_batches))


@pytest.mark.parametrize(
    "later", [[f"v{number}" for number in range(26)], ["x" * (MAX_DICTIONARY_BYTES + 1)]], ids=["many", "long"]
)
def test_a_dictionary_that_gets_too_large_is_given_up_for_what_comes_then(later: list[str]) -> None:
    first, second = texts(*"aab" * 9), texts(*later)
    packed = packing(first)
    chunks = [Chunk(packed.held(batch), np.array([batch.num_rows])) for batch in (first, second, first)]
    written = [[chunk.rows for chunk in batch] for batch in batched(chunks, 1 << 30)]
    assert [len(batch) for batch in written] == [1, 2], "a file holds what has one schema"
    assert pa.types.is_large_string(written[1][0].column("t").type)
    assert [out(packed, *batch).column("t").to_pylist() for batch in written] == [[*"aab" * 9], [*later, *"aab" * 9]]


def test_narrow_types_of_duckdb_are_the_same_when_widened() -> None:
    conn = duckdb.connect()
    conn.execute("SET arrow_large_buffer_size = true")
    query = """SELECT 1::TINYINT a, 1::UBIGINT b, 1::HUGEINT c, 1.5::DECIMAL(4, 1) d, 1.5::DECIMAL(9, 1) e, 1.5::DECIMAL(18, 1) f,
        1.5::DECIMAL(19, 1) g, 1::FLOAT h, 'x' i, true j, DATE '2020-01-01' k, TIME '10:00' l, TIMESTAMP '2020-01-01' m,
        TIMESTAMP_NS '2020-01-01' n, TIMESTAMPTZ '2020-01-01' o, uuid() p, [1.5::DECIMAL(4, 1)] q, {'a': 1.5::DECIMAL(4, 1)} r,
        MAP {'a': 1.5::DECIMAL(4, 1)} s, 'a'::ENUM ('a') t, NULL u"""
    types = list(map(str, conn.sql(query).types))
    assert gains_by_narrow_decimals(types)
    wide = conn.sql(query).to_arrow_table().schema
    cursor = conn.cursor()
    cursor.execute(NARROW_DECIMALS)
    narrow = cursor.sql(query).to_arrow_table()
    assert [narrow.schema.field(name).type.byte_width for name in "def"] == [4, 4, 8]
    assert widened(narrow.schema).equals(wide)
    assert conn.cursor().sql(query).to_arrow_table().schema.equals(wide), "other cursors are not told"
    assert narrow.take(from_numpy(np.array([0, 0]))).num_rows == 2


@pytest.mark.parametrize("kind", ["BLOB", "BIT", "STRUCT(b BLOB)", "BLOB[]"])
def test_blobs_would_become_views_that_arrow_can_not_pick_from(kind: str) -> None:
    assert not gains_by_narrow_decimals(["DECIMAL(15,2)", kind])
    assert not gains_by_narrow_decimals(["INTEGER", "VARCHAR"])


def money(values: list[str | None], kind: pa.DataType) -> pa.Array:
    return pa.array([None if value is None else Decimal(value) for value in values], kind)


@pytest.mark.parametrize("engine", ["duckdb", "arrow"])
def test_columns_and_notes_of_a_shuffle_are_those_of_its_input(ctx, tmp_path: Path, engine: str) -> None:
    """Decimals of all widths, texts of few and of many values, blobs beside them or not: by whoever reads a partition."""
    n = 900
    table = pa.table(
        {
            "i": pa.array(range(n), pa.int32()),
            "small": money([None if i % 5 == 0 else f"-{i}.25" for i in range(n)], pa.decimal128(7, 2)),
            "mid": money([f"{10**15 + i % 3}.5" for i in range(n)], pa.decimal128(18, 1)),
            "big": money([f"{10**30 + i}.125" for i in range(n)], pa.decimal128(38, 3)),
            "few": pa.array([("x", "yy", None)[i % 3] for i in range(n)], pa.large_string()),
            "many": pa.array([f"text {i}" for i in range(n)], pa.large_string()),
        }
    ).replace_schema_metadata({"who": "made it"})
    for name, given_table in {
        "plain": table,
        "blob": table.append_column("blob", pa.array([b"\0" * (i % 3) for i in range(n)], pa.large_binary())),
    }.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(given_table, path)
        output = run(hashed(ctx, engine, ParquetDataSet([str(path)]), "i", drop_partition_column=True))
        assert len(set(output.resolved_paths)) == 1
        parts = [part.to_arrow_table() for part in output]
        assert all(part.schema.equals(given_table.schema) for part in parts)
        assert pa.concat_tables(parts).sort_by("i").equals(given_table)
        (packed,) = set(output.resolved_paths)
        assert b"ARROW:schema" not in (pq.read_schema(packed).metadata or {})
        scanned = duckdb.sql(f"SELECT * FROM read_parquet('{packed}') ORDER BY i").to_arrow_table()
        assert scanned.column("mid").equals(given_table.column("mid"))
        assert scanned.column("few").to_pylist() == given_table.column("few").to_pylist()


def test_values_that_come_late_in_a_file(ctx, tmp_path: Path) -> None:
    """A file in order of a column: its first rows, by which is judged, have one value, all others another each."""
    n = 300_000
    values = pc.if_else(pa.array(np.arange(n) < 200_000), "same", pc.cast(pa.array(np.arange(n)), pa.string()))
    path = tmp_path / "sorted.parquet"
    pq.write_table(pa.table({"i": np.arange(n), "t": values}), path)
    output = run(hashed(ctx, "duckdb", ParquetDataSet([str(path)]), "i", drop_partition_column=True))
    read = pa.concat_tables([part.to_arrow_table() for part in output]).sort_by("i")
    assert read.column("t").combine_chunks().equals(values.cast(pa.large_string()))


def test_a_shuffle_loads_no_pandas(ctx, parquet, tmp_path: Path) -> None:
    """Which takes a child a third of a second."""
    task = hashed(ctx, "duckdb", parquet({"a": list(range(100)), "b": ["x", "y"] * 50}), "a")
    task.input_datasets = [dep.output for dep in task._deps.tasks]
    (tmp_path / "task").write_bytes(cloudpickle.dumps(task))
    program = (
        "import pickle, sys; task = pickle.load(open(sys.argv[1], 'rb'));"
        "assert task.exec().name == 'SUCCEED', task.exception; print('pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "task")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["False"], done.stderr
