"""SqlEngineTask: queries over inputs, formatted, written to Parquet, with errors in the user's terms."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import InputNotFound, InvalidQuery, OutOfMemory, TaskFailed
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.model import WorkStatus
from smallpond_mpi.execution.task import PartitionInfo, SqlEngineTask, engine
from smallpond_mpi.execution.task.sql import format_query
from smallpond_mpi.io.partition_writer import PackedWriter
from smallpond_mpi.logical.dataset import CsvDataSet, PackedPartitions, ParquetDataSet, parquet_sql
from smallpond_mpi.logical.dataset import parquet as parquet_dataset
from smallpond_mpi.logical.udf import PythonUDFContext, UDFType
from tests.unit.task.task_builders import TOP, attempt, given, rows, run, values


def sql(
    ctx: RuntimeContext, queries: str | list[str], *datasets: Any, infos: Any = TOP, **options: Any
) -> SqlEngineTask:
    return SqlEngineTask(
        ctx, given(ctx, *datasets), infos, [queries] if isinstance(queries, str) else queries, **options
    )


NAMES = {"0": "v0", "1": "v1", "cpu_limit": 2, "@toplevel@": 0}


@pytest.mark.parametrize(
    ("query", "formatted"),
    [
        ("from {0} join {1}", "from v0 join v1"),
        ("{1}.host = {0}.host", "v1.host = v0.host"),
        ("{cpu_limit} {@toplevel@}", "2 0"),
        (r"x ~ '^\d{3}$' from {0}", r"x ~ '^\d{3}$' from v0"),
        ("""'{"a": 1}' from {0}""", """'{"a": 1}' from v0"""),
        ("{'a': {'b': 1}} from {0}", "{'a': {'b': 1}} from v0"),
        ("'{}' from {0}", "'{}' from v0"),
        (r"x ~ '^\d{{3}}$' from {0}", r"x ~ '^\d{3}$' from v0"),  # as smallpond's scripts write it
        ("'{{' || '{\"a\": 1}' from {0}", "'{{' || '{\"a\": 1}' from v0"),
        ("{unknown} {0", "{unknown} {0"),
    ],
)
def test_names_are_replaced_and_other_braces_survive(query: str, formatted: str) -> None:
    assert format_query(query, NAMES) == formatted


def test_result_is_parquet_in_input_order_with_known_facts(ctx, parquet) -> None:
    left = parquet({"a": [3, 1]}, {"a": [2]})
    task = sql(ctx, "select a, a * 2 as b from {0}", left)
    output = run(task)
    assert rows(output) == [(3, 6), (1, 2), (2, 4)]
    (item,) = output.resolved_row_ranges
    assert item.num_rows == 3
    assert item.file_bytes == Path(item.path).stat().st_size
    assert Path(item.path).name.startswith(task.output_filename)
    assert task.perf_metrics["num input rows"] == 3
    assert task.perf_metrics["num output rows"] == 3
    metadata = pq.read_metadata(item.path).metadata
    assert metadata[b"SMALLPOND:__task_key__"] == task.key.encode()
    assert metadata[b"SMALLPOND:@toplevel@"] == b"0"


def test_all_queries_run_and_the_last_statement_is_the_output(ctx, parquet) -> None:
    queries = [
        "create temp table t as select a + {query_index} as a from {0}; insert into t values (100)",
        "select a + {query_index} as a from t; -- all of them\n -- really ; yes",
    ]
    assert values(run(sql(ctx, queries, parquet({"a": [1]}))), "a") == [2, 101]


def test_what_queries_see_of_the_task(ctx, parquet) -> None:
    infos = [PartitionInfo(), PartitionInfo(3, 10, "color"), PartitionInfo(1, 2, "__data_partition__")]
    query = (
        "select {cpu_limit} cpus, {memory_limit} memory, {batch_index} batch, {query_index} query, {rand_seed} seed, "
        "'{output_filename}' as name, {color} as color, {__data_partition__} part, {@toplevel@} top"
    )
    task = sql(ctx, query, infos=infos, memory_limit=1 << 30)
    assert rows(run(task)) == [(1, 1 << 30, 0, 0, task.rand_seed_uint32, task.output_filename, 3, 1, 0)]


def test_several_inputs_many_times(ctx, parquet) -> None:
    query = "select {0}.a, {1}.b, (select count(*) from {0}) n from {0} join {1} on {1}.a = {0}.a order by 1"
    output = run(sql(ctx, query, parquet({"a": [1, 2]}), parquet({"a": [2, 1], "b": ["x", "y"]})))
    assert rows(output) == [(1, "y", 2), (2, "x", 2)]


def test_no_rows_keep_the_schema(ctx, parquet) -> None:
    output = run(sql(ctx, "select a, 'x' as b from {0} where a > 5", parquet({"a": [1]})))
    assert output.num_rows == 0
    assert output.to_arrow_table().schema.names == ["a", "b"]


def test_empty_files_go_when_the_job_wants_it(ctx, parquet) -> None:
    ctx.remove_empty_parquet = True
    output = run(sql(ctx, "select a from {0} where a > 5", parquet({"a": [1]})))
    assert output.num_files == 0


def test_input_of_no_files_makes_an_empty_output(ctx, parquet) -> None:
    task = sql(ctx, "select a from {0}", ParquetDataSet([]))
    assert run(task).empty
    assert not Path(ctx.staging_root, task.output_dirname).exists()


def test_input_without_rows_is_skipped_only_when_asked_for(ctx, parquet) -> None:
    empty = parquet({"a": pa.array([], pa.int64())})
    assert values(run(sql(ctx, "select count(*) n from {0}", empty)), "n") == [0]
    ctx.skip_task_with_empty_input = True
    assert run(sql(ctx, "select count(*) n from {0}", empty)).num_files == 0


def test_csv_input(ctx, tmp_path) -> None:
    (tmp_path / "x.csv").write_text("1,a\n2,b\n")
    dataset = CsvDataSet([str(tmp_path / "x.csv")], {"n": "INTEGER", "s": "VARCHAR"})
    assert rows(run(sql(ctx, "select s, n from {0} where n > 1", dataset))) == [("b", 2)]


def test_batches_are_processed_one_by_one(ctx, parquet) -> None:
    dataset = parquet({"a": list(range(10_000))}, row_group_size=1000)
    task = sql(
        ctx, "select a, {batch_index} as batch from {0}", dataset, batched_processing=True, memory_limit=100_000_000
    )
    assert len({batch for _, batch in rows(run(task))}) == 1
    small = sql(ctx, "select a, {batch_index} as batch from {0}", dataset, batched_processing=True)
    small.__class__ = type("Small", (SqlEngineTask,), {"max_batch_size": 20_000})
    output = run(small)
    assert values(output, "a") == list(range(10_000))
    assert output.num_files == len({batch for _, batch in rows(output)}) > 1


def test_materialized_in_memory_first(ctx, parquet) -> None:
    task = sql(ctx, "select a from {0} order by a", parquet({"a": [2, 1]}), materialize_in_memory=True)
    assert values(run(task), "a") == [1, 2]
    assert "output dump time (secs)" in task.perf_metrics


def test_query_left_to_its_readers(ctx, parquet) -> None:
    task = sql(ctx, "select {0}.a, '{0' as b from {0} where a > 1", parquet({"a": [1, 2]}), materialize_output=False)
    output = run(task)
    assert not task.self_contained_output
    assert not Path(ctx.staging_root, task.output_dirname).exists()
    assert rows(run(sql(ctx, "select * from {0}", output))) == [(2, "{0")]


def test_order_survives_many_threads(ctx, parquet) -> None:
    dataset = parquet({"a": list(range(300_000))}, row_group_size=10_000)
    output = run(sql(ctx, "select a from {0} where a % 3 <> 1", dataset, cpu_limit=4))
    assert values(output, "a") == [a for a in range(300_000) if a % 3 != 1]


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("selec a from {0}", "syntax error"),
        ("select b from {0}", '"a"'),
        ("select nofunc(a) from {0}", "nofunc"),
        ("select * from nowhere", "nowhere"),
        ("select cast('x' || a as int) from {0}", "x1"),
        ("select error('stop here') from {0}", "stop here"),
        ("create table t (a int)", "SELECT"),
    ],
)
def test_what_duckdb_refuses_is_shown_with_the_query(ctx, parquet, query: str, shown: str) -> None:
    task = sql(ctx, query, parquet({"a": [1]}))
    assert attempt(task) is WorkStatus.CRASHED
    assert isinstance(task.exception, InvalidQuery)
    assert shown in str(task.exception)
    assert query.split("{")[0].strip() in str(task.exception)


def test_missing_input_file_is_named(ctx) -> None:
    task = sql(ctx, "select * from {0}", ParquetDataSet(["/nowhere/x.parquet"]))
    attempt(task)
    assert isinstance(task.exception, InputNotFound)
    assert "/nowhere/x.parquet" in str(task.exception)


def test_too_little_memory_is_out_of_memory_unless_it_may_spill(ctx) -> None:
    query = "select a, count(*) n from (select range % {groups} as a from range(4_000_000)) group by a order by a"
    task = sql(ctx, query.replace("{groups}", "4_000_000"), memory_limit=24_000_000)  # keys and counts alone are 64 MB
    attempt(task)
    assert isinstance(task.exception, OutOfMemory)
    assert task.oom()
    spilling = sql(ctx, query.replace("{groups}", "500_000"), memory_limit=64_000_000, enable_temp_directory=True)
    assert run(spilling).num_rows == 500_000


def test_the_instance_is_kept_between_tasks_that_leave_no_trace(ctx, parquet) -> None:
    engine.forget_kept()
    dataset = parquet({"a": [1]})
    run(sql(ctx, "select * from {0}", dataset))
    kept = engine._kept
    assert kept is not None
    run(sql(ctx, "select * from {0}", dataset, cpu_limit=2))
    assert engine._kept is kept
    run(sql(ctx, ["create table trace as select 1 as a", "set threads=1", "from trace"]))
    assert engine._kept is kept
    run(
        sql(ctx, ["create table trace as from {0}", "from trace"], dataset)
    )  # a text with an input in it is looked at too
    assert kept.conn.execute("select count(*) from duckdb_tables() where table_name = 'trace'").fetchall() == [(0,)]
    assert kept.conn.execute("select count(*) from duckdb_views() where view_name like '__input%'").fetchall() == [(0,)]
    failing = sql(ctx, "select * from trace")
    attempt(failing)
    assert isinstance(failing.exception, InvalidQuery)


@pytest.mark.parametrize("spills", [False, True], ids=["kept instance", "one of its own"])
def test_sums_are_not_pushed_below_joins_by_guesses(ctx, parquet, spills: bool) -> None:
    asked = "SELECT current_setting('disabled_optimizers') AS without FROM {0}"
    output = run(sql(ctx, asked, parquet({"n": [1]}), enable_temp_directory=spills))
    assert values(output, "without") == ["partial_aggregate_pushdown"]


def test_optimizers_that_this_duckdb_lacks_are_not_turned_off(monkeypatch) -> None:
    monkeypatch.setattr(engine, "GUESSING_OPTIMIZERS", frozenset({"of_a_later_version"}))
    with engine.connect() as conn:
        assert conn.sql("SELECT current_setting('disabled_optimizers')").fetchall() == [("",)]


def test_same_seed_same_random_numbers(ctx, parquet) -> None:
    task = sql(ctx, "select random() as r from range(5)")
    first = values(run(task), "r")
    again = sql(ctx, "select random() as r from range(5)")
    again.id = task.id
    assert values(run(again), "r") == first
    other = sql(ctx, "select random() as r from range(5)")
    assert values(run(other), "r") != first


def test_named_output_is_in_its_final_place(ctx, parquet) -> None:
    task = sql(ctx, "select * from {0}", parquet({"a": [1]}), output_name="result")
    output = run(task)
    (path,) = output.resolved_paths
    assert path.startswith(task.final_output_abspath)
    assert task.final_output_abspath.startswith(ctx.output_root)
    assert values(output, "a") == [1]


def test_functions_of_the_user_are_bound_and_their_errors_are_not_the_querys(ctx, parquet) -> None:
    def plus(a: int) -> int:
        if a > 1:
            raise KeyError("no such thing")
        return a + 1

    udf = PythonUDFContext("plus", plus, [UDFType.BIGINT], UDFType.BIGINT)
    assert values(run(sql(ctx, "select plus(a) a from {0}", parquet({"a": [1]}), udfs=[udf])), "a") == [2]
    failing = sql(ctx, "select plus(a) a from {0}", parquet({"a": [2]}), udfs=[udf])
    attempt(failing)
    assert isinstance(failing.exception, TaskFailed)
    assert "no such thing" in str(failing.exception)
    unknown = sql(ctx, "select plus(a) a from {0}", parquet({"a": [1]}))
    attempt(unknown)
    assert isinstance(unknown.exception, InvalidQuery), "it went with the connection"


def test_what_ran_out_of_memory_spills_when_it_is_tried_again(ctx, parquet) -> None:
    query = "select count(*) n from (select distinct range + a as x from {0}, range(3_000_000))"
    # DuckDB 2.0.1 fails, spilling or not, where its hash table fits and twice the table doesn't (70 to 76 and 125 to 140 MiB here).
    first = sql(ctx, query, parquet({"a": [1]}), memory_limit=48_000_000)
    attempt(first)
    assert isinstance(first.exception, OutOfMemory)
    second = sql(ctx, query, parquet({"a": [1]}), memory_limit=48_000_000)
    second.retry_count = 1
    assert values(run(second), "n") == [3_000_000]


def test_one_line(ctx) -> None:
    assert sql(ctx, ["select\n 1", "select  2"]).oneline_query == "select 1; select 2"


def shuffled(tmp_path: Path, *tables: pa.Table) -> PackedPartitions:
    """What producers write who send every second row to partition 1."""
    outputs = []
    for number, table in enumerate(tables):
        order = [*range(0, table.num_rows, 2), *range(1, table.num_rows, 2)]
        tmp_path.mkdir(exist_ok=True)
        writer = PackedWriter(str(tmp_path), f"producer-{number}", 2)
        writer.append(table.take(order), [-(-table.num_rows // 2), table.num_rows // 2])
        outputs.append(writer.close())
    return PackedPartitions(outputs)


def arrived(dataset: ParquetDataSet) -> ParquetDataSet:
    """As a task gets it."""
    found: ParquetDataSet = pickle.loads(pickle.dumps(dataset))
    return found


FOOTERS_ARE_KEPT = "select *, current_setting('parquet_metadata_cache') as kept from {0} order by a"


def test_footers_are_kept_from_one_part_of_a_file_to_the_next(ctx, parquet, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_sql, "MAX_VIEW_BYTES", 0)
    table = pa.table({"a": list(range(100))})
    parts = shuffled(tmp_path, table, table)
    whole = parquet(table)
    expected = [
        (arrived(parts[0]), [(a, True) for a in range(0, 100, 2) for _ in "ab"]),
        (whole, [(a, False) for a in range(100)]),
        (arrived(parts[1]), [(a, True) for a in range(1, 100, 2) for _ in "ab"]),
    ]
    for dataset, found in expected:
        assert rows(run(sql(ctx, FOOTERS_ARE_KEPT, dataset))) == found
    kept = engine._kept
    assert kept is not None
    assert not engine.holds_many_footers(kept.conn)
    monkeypatch.setattr(engine, "MAX_CACHED_FOOTER_BYTES", 0)
    assert rows(run(sql(ctx, FOOTERS_ARE_KEPT, arrived(parts[0])))) == expected[0][1]
    assert engine._kept is None, "an idle process holds few footers"


def test_files_of_one_shuffle_are_not_opened_to_compare_them(tmp_path, monkeypatch) -> None:
    opened: list[str] = []
    schema_of = parquet_dataset.schema_of

    def counted(item: Any, *args: Any) -> pa.Schema:
        opened.append(item.path)
        return schema_of(item, *args)

    monkeypatch.setattr(parquet_dataset, "schema_of", counted)
    monkeypatch.setattr(parquet_sql, "MAX_VIEW_BYTES", 0)
    narrow = pa.table({"a": pa.array([1, 2, 3, 4], pa.int32())})
    wide = pa.table({"a": pa.array([5, 6, 1 << 40, 8], pa.int64())})
    alike, different = shuffled(tmp_path / "alike", narrow, narrow), shuffled(tmp_path / "different", narrow, wide)
    conn = engine.connect()
    query = f"select a, typeof(a) from {arrived(alike[0]).sql_query_fragment(conn=conn)}"
    assert sorted(conn.execute(query).fetchall()) == [(1, "INTEGER")] * 2 + [(3, "INTEGER")] * 2
    assert opened == []
    query = f"select a, typeof(a) from {arrived(different[0]).sql_query_fragment(conn=conn)}"
    assert sorted(conn.execute(query).fetchall()) == [(a, "BIGINT") for a in (1, 3, 5, 1 << 40)]
    assert len(opened) == 2


def test_windows_over_many_parts_of_files_take_no_more_memory_than_over_one(
    ctx, parquet, monkeypatch, tmp_path
) -> None:
    """DuckDB held what it needs for a window once a part: this limit was too little."""
    monkeypatch.setattr(
        parquet_sql, "MAX_VIEW_BYTES", 0
    )  # parts of some MB are read by a scan each; these are not so large
    path = str(tmp_path / "packed.parquet")
    numbers = pa.array(range(80 * 20_000), pa.int64())
    table = pa.table({"k": pc.divide(numbers, 4), "v": numbers, "w": pc.cast(numbers, pa.float64())})
    pq.write_table(table, path, row_group_size=10_000)
    whole = ParquetDataSet([path])
    parts = [item for part in whole.partition_by_rows(80) for item in part.resolved_row_ranges]
    query = (
        "select *, sum(v) over (partition by k) as s, row_number() over (partition by k order by v desc) as r from {0}"
    )
    task = sql(ctx, query, whole._with_ranges(parts), memory_limit=500_000_000)
    found = run(task).to_arrow_table().sort_by("v")
    assert found.num_rows == len(numbers)
    assert found["s"][:8].to_pylist() == [0 + 1 + 2 + 3] * 4 + [4 + 5 + 6 + 7] * 4
    assert found["r"][:8].to_pylist() == [4, 3, 2, 1] * 2
