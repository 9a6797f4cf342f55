"""Scripts with mistakes in them, one a function: run all in one session, or one alone so that its error ends the process.

    python bad_input_program.py all DATA_ROOT INPUTS OUT     every case, each followed by a computation that must work; reports to OUT as JSON lines
    python bad_input_program.py CASE DATA_ROOT INPUTS        one case, nothing caught

The line that is at fault bears the comment `HERE`: the error must name it. What only triggers the run stands in another line.
"""

import inspect
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import smallpond_mpi as sp
from smallpond_mpi.common import (
    BadInput,
    CannotPickle,
    ColumnNotFound,
    CorruptInput,
    InputNotFound,
    InvalidArgument,
    InvalidQuery,
    JobFailed,
    OutputExists,
    OutputUnusable,
    ResourcesUnavailable,
    SchemaMismatch,
    SmallpondError,
    WrongReturnType,
    WrongType,
)

RUNS = re.compile(r"\.(count|take|take_all|to_arrow|compute)\(")


@dataclass(frozen=True)
class Case:
    """What must come of a mistake: an error of these classes that says all of `says` (file names, columns, values, advice)."""

    run: Callable[[sp.Session, str], object]
    kinds: tuple[type[BaseException], ...]
    says: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def line(self) -> int:
        """The line at fault."""
        lines, first = inspect.getsourcelines(self.run)
        number, text = next((number, text) for number, text in enumerate(lines, first) if "# HERE" in text)
        assert not RUNS.search(text), f"the line of {self.name} that is at fault must not be the one that runs it"
        return number


CASES: dict[str, Case] = {}


def fails(
    *kinds: type[BaseException], says: tuple[str, ...] = ()
) -> Callable[[Callable[[sp.Session, str], object]], Callable[[sp.Session, str], object]]:
    def register(run: Callable[[sp.Session, str], object]) -> Callable[[sp.Session, str], object]:
        CASES[run.__name__] = Case(run, kinds, says)
        return run

    return register


# files


@fails(InputNotFound, FileNotFoundError, says=("nowhere.parquet", "does not exist", "correct its path"))
def missing_file(session, inputs):
    df = session.read_parquet(f"{inputs}/nowhere.parquet")  # HERE
    df.filter("a > 1").count()


@fails(InputNotFound, FileNotFoundError, says=("nowhere.parquet", "does not exist", "correct its path"))
def missing_file_among_others(session, inputs):
    df = session.read_parquet([f"{inputs}/good.parquet", f"{inputs}/nowhere.parquet"])  # HERE
    df.repartition(4, hash_by="a").to_arrow()


@fails(InputNotFound, FileNotFoundError, says=("nowhere.csv", "does not exist", "correct its path"))
def missing_csv(session, inputs):
    df = session.read_csv(f"{inputs}/nowhere.csv", {"a": "bigint"})  # HERE
    df.take_all()


@fails(InputNotFound, FileNotFoundError, says=("nothing-*.parquet", "matches no file", "correct it"))
def unmatched_pattern(session, inputs):
    df = session.read_parquet(f"{inputs}/nothing-*.parquet")  # HERE
    df.count()


@fails(InputNotFound, FileNotFoundError, says=("no_such_directory", "does not exist", "correct its path"))
def missing_directory(session, inputs):
    df = session.read_parquet(f"{inputs}/no_such_directory")  # HERE
    df.take(1)


@fails(CorruptInput, ValueError, says=("bad_footer.parquet", "make or copy the file again"))
def corrupt_footer(session, inputs):
    df = session.read_parquet(f"{inputs}/bad_footer.parquet")  # HERE
    df.map("a + 1 as b").to_arrow()


@fails(CorruptInput, ValueError, says=("bad_footer.parquet", "make or copy the file again"))
def corrupt_footer_counted(session, inputs):
    df = session.read_parquet(f"{inputs}/bad_footer.parquet")  # HERE
    df.count()


@fails(CorruptInput, ValueError, says=("text.parquet", "make or copy the file again"))
def not_parquet_at_all(session, inputs):
    df = session.read_parquet(f"{inputs}/text.parquet")  # HERE
    df.repartition(2, hash_by="a").count()


@fails(CorruptInput, ValueError, says=("empty.parquet", "make or copy the file again"))
def empty_file(session, inputs):
    df = session.read_parquet(f"{inputs}/empty.parquet")  # HERE
    df.map("*").count()


@fails(CorruptInput, ValueError, says=("truncated.parquet", "make or copy the file again"))
def truncated_data_by_sql(session, inputs):
    df = session.read_parquet(f"{inputs}/truncated.parquet")  # HERE
    df.map("a, b").to_arrow()


@fails(CorruptInput, ValueError, says=("truncated.parquet", "make or copy the file again"))
def truncated_data_by_arrow(session, inputs):
    df = session.read_parquet(f"{inputs}/truncated.parquet")  # HERE
    df = df.repartition(2, by_rows=True)
    df.map(lambda row: row).count()


@fails(CorruptInput, ValueError, says=("truncated.parquet", "make or copy the file again"))
def truncated_data_by_batches(session, inputs):
    df = session.read_parquet(f"{inputs}/truncated.parquet")  # HERE
    df.map_batches(lambda table: table).count()


@fails(CorruptInput, ValueError, says=("truncated.parquet", "make or copy the file again"))
def truncated_data_by_hash(session, inputs):
    df = session.read_parquet(f"{inputs}/truncated.parquet")  # HERE
    df.repartition(3, hash_by="a").count()


@fails(CorruptInput, ValueError, says=("text.parquet", "make or copy the file again"))
def not_parquet_at_all_written(session, inputs):
    df = session.read_parquet(f"{inputs}/text.parquet")  # HERE
    df.write_parquet(f"{inputs}/out")


@fails(CorruptInput, ValueError, says=("cut.parquet", "make or copy the file again"))
def cut_data_written(session, inputs):
    df = session.read_parquet(f"{inputs}/cut.parquet")  # HERE
    df.write_parquet(f"{inputs}/out")


@fails(CorruptInput, ValueError, says=("truncated.parquet", "make or copy the file again"))
def truncated_data_written(session, inputs):
    df = session.read_parquet(f"{inputs}/truncated.parquet")  # HERE
    df.repartition(1).write_parquet(f"{inputs}/out")


@fails(SchemaMismatch, ValueError, says=("good.parquet", "other.parquet", "'c' is only in the second"))
def schemas_that_do_not_fit_written(session, inputs):
    files = [f"{inputs}/good.parquet", f"{inputs}/other.parquet"]
    df = session.read_parquet(files)  # HERE
    df.repartition(2).write_parquet(f"{inputs}/out")


@fails(CorruptInput, ValueError, says=("words.csv", "line 3", "x,three", "correct the file, or"))
def csv_that_does_not_fit(session, inputs):
    df = session.read_csv(f"{inputs}/words.csv", {"a": "bigint", "b": "varchar"})  # HERE
    df = df.filter("b != 'x'")
    df.map("a").to_arrow()


@fails(CorruptInput, ValueError, says=("words.csv", "line 3", "x,three", "correct the file, or"))
def csv_that_does_not_fit_joined(session, inputs):
    good = session.read_parquet(f"{inputs}/good.parquet")
    words = session.read_csv(f"{inputs}/words.csv", {"a": "bigint", "b": "varchar"})  # HERE
    df = good.join(words, on="a")
    df.count()


@fails(CorruptInput, ValueError, says=("words.csv", "line", "correct the file, or"))
def csv_with_more_columns(session, inputs):
    df = session.read_csv(f"{inputs}/words.csv", {"a": "varchar"})  # HERE
    df.map("a").to_arrow()


@fails(CorruptInput, ValueError, says=("words.csv", "correct the file, or"))
def csv_by_python(session, inputs):
    df = session.read_csv(f"{inputs}/words.csv", {"a": "bigint", "b": "varchar"})  # HERE
    df.map(lambda row: row).to_arrow()


@fails(CorruptInput, ValueError, says=("broken.json", "make or copy the file again"))
def json_that_is_none(session, inputs):
    df = session.read_json(f"{inputs}/broken.json", {"a": "bigint"})  # HERE
    df.map("a").to_arrow()


@fails(BadInput, ValueError, says=("biggint", "words.csv", "Correct its schema="))
def csv_type_that_is_none(session, inputs):
    df = session.read_csv(f"{inputs}/words.csv", {"a": "biggint", "b": "varchar"})  # HERE
    df.map("a").to_arrow()


@fails(SchemaMismatch, ValueError, says=("good.parquet", "other.parquet", "union_by_name=True"))
def schemas_that_do_not_fit(session, inputs):
    df = session.read_parquet([f"{inputs}/good.parquet", f"{inputs}/other.parquet"])  # HERE
    df.map("*").to_arrow()


@fails(SchemaMismatch, ValueError, says=("good.parquet", "typed.parquet", "'a'", "and cast it"))
def types_that_do_not_fit(session, inputs):
    df = session.read_parquet([f"{inputs}/good.parquet", f"{inputs}/typed.parquet"])  # HERE
    df.map(lambda row: row).to_arrow()


@fails(ColumnNotFound, LookupError, says=("'wrong'", "a, b"))
def unknown_column_to_read(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet", columns=["wrong"])  # HERE
    df.map("*").to_arrow()


# columns and SQL


@fails(ColumnNotFound, LookupError, says=("'wrong'", "a, b"))
def unknown_column_in_hash_by(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet")
    df = df.repartition(4, hash_by=["a", "wrong"])  # HERE
    df.count()


@fails(InvalidQuery, ValueError, says=("syntax error", "selec", "correct the query where it is marked"))
def sql_syntax_error(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet")
    df = session.partial_sql("selec a from {0}", df)  # HERE
    df.count()


@fails(InvalidQuery, ValueError, says=("wrong",))
def unknown_column_in_filter(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").filter("wrong > 1")  # HERE
    df.count()


@fails(InvalidQuery, ValueError, says=("wrong",))
def unknown_column_in_map(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").map("a, wrong + 1 as c")  # HERE
    df.count()


@fails(InvalidQuery, ValueError, says=("wrong",))
def unknown_column_in_partial_sort(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").partial_sort(by=["a", "wrong desc"])  # HERE
    df.count()


@fails(InvalidQuery, ValueError, says=("Could not convert string", "one", "try_cast"))
def sql_cast_of_bad_text(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").map("cast(b as integer) as c")  # HERE
    df.count()


@fails(InvalidQuery, ValueError, says=("Could not convert string", "one", "try_cast", "what failed was asked for at"))
def sql_cast_among_other_steps(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet")
    df = df.filter("a > 0")
    df = df.map("a, cast(b as integer) as c")  # HERE
    df = df.filter("c > 1")
    df = session.partial_sql("select a + c as d from {0}", df)
    df.count()


@fails(InvalidQuery, ValueError, says=("Could not convert string", "what failed was asked for at"))
def sql_cast_before_rows_are_grouped(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").repartition(2, by_rows=True)
    df = df.map("a, cast(b as integer) as c")  # HERE
    df = df.filter("a > 0")
    df = df.group_by("a").agg(total="sum(c)")
    df.take_all()


@fails(InvalidQuery, ValueError, says=("Overflow", "one query did what was asked for at"))
def sql_overflow_that_is_not_marked(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet")
    df = df.filter("a > 1")
    df = df.map("a * 9223372036854775807 as x")  # HERE
    df = df.map("x + 1 as y")
    df.to_arrow()


@fails(InvalidQuery, ValueError, says=("nosuch",))
def unknown_function_in_sql(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").map("nosuch(a)")  # HERE
    df.count()


@fails(InvalidQuery, ValueError, says=("drop table",))
def sql_without_rows(session, inputs):
    df = session.partial_sql("drop table if exists nothing", session.read_parquet(f"{inputs}/good.parquet"))  # HERE
    df.count()


@fails(SmallpondError, ValueError, says=("{1}",))
def sql_of_an_input_that_is_not_there(session, inputs):
    rows = session.read_parquet(f"{inputs}/good.parquet")
    session.partial_sql("select * from {0} join {1} using (a)", rows)  # HERE


@fails(
    InvalidArgument,
    ValueError,
    says=(
        "partition key",
        "is out of range 0-3",
        "must be numbers of partitions",
    ),
)
def partition_number_out_of_range(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").repartition(4, by="a * 10")  # HERE
    df.count()


@fails(InvalidArgument, ValueError, says=("NULL", "must be numbers of partitions"))
def partition_number_null(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").repartition(4, by="null")  # HERE
    df.count()


@fails(InvalidArgument, ValueError, says=("at least 1", "0"))
def no_partitions(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition(0, hash_by="a")  # HERE


@fails(InvalidArgument, ValueError, says=("at least 1", "-3"))
def negative_partitions(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition(-3)  # HERE


@fails(InvalidArgument, ValueError, says=("10,000,000", "at most"))
def ten_million_partitions(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").repartition(10_000_000, hash_by="a")  # HERE
    df.count()


@fails(InvalidArgument, ValueError, says=("npartitions", "'4'"))
def partitions_as_text(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition("4", hash_by="a")  # HERE


@fails(WrongType, TypeError, says=("hash_by", "3"))
def hash_by_a_number(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition(4, hash_by=3)  # HERE


@fails(InvalidArgument, ValueError, says=("condition", "empty"))
def empty_condition(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").filter(" ")  # HERE


@fails(InvalidArgument, ValueError, says=("hash_by", "by_rows"))
def two_ways_to_partition(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition(4, hash_by="a", by_rows=True)  # HERE


@fails(InvalidArgument, ValueError, says=("limit", "-1"))
def negative_limit(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").limit(-1)  # HERE
    df.count()


# functions


@fails(CannotPickle, TypeError, says=("Can't pickle task", "lock", "make it inside the function"))
def lock_in_a_closure(session, inputs):
    lock = threading.Lock()
    df = session.from_items([1, 2]).map(lambda row: {"a": lock.locked()})  # HERE
    df.take_all()


@fails(CannotPickle, TypeError, says=("Can't pickle task", "a session stays where it was made", "to_arrow", "join"))
def dataframe_in_a_closure(session, inputs):
    others = session.from_items([1, 2])

    def among(row):
        return {"of": others.count()}

    df = session.from_items([1]).map(among)  # HERE
    df.take_all()


@fails(CannotPickle, TypeError, says=("Can't pickle task", "make it inside the function"))
def logger_in_a_closure(session, inputs):
    class Holder:
        def __init__(self):
            self.log = logging.StreamHandler()

    held = Holder()
    df = session.from_items([1, 2]).map(lambda row: {"a": str(held)})  # HERE
    df.take_all()


@fails(CannotPickle, TypeError, says=("Can't pickle task", "make it inside the function"))
def open_file_in_a_closure(session, inputs):
    with open(f"{inputs}/words.csv", "a") as file:
        df = session.from_items([1, 2]).map(lambda row: {"a": file.name})  # HERE
        df.take_all()


@fails(CannotPickle, TypeError, says=("Can't pickle task", "generator", "inside the function"))
def generator_in_a_closure(session, inputs):
    numbers = (number for number in range(3))
    df = session.from_items([1, 2]).map(lambda row: {"a": next(numbers)})  # HERE
    df.take_all()


@fails(JobFailed, RuntimeError, says=("ZeroDivisionError: division by zero", "in divide", "dividing 1", "rank "))
def function_that_raises(session, inputs):
    def divide(row):
        print("dividing", row["item"])
        return {"a": row["item"] / 0}

    df = session.from_items([1, 2]).map(divide)  # HERE
    df.take_all()


@fails(JobFailed, RuntimeError, says=("KeyError: 'wrong'", "pick"))
def function_that_takes_an_unknown_column(session, inputs):
    def pick(row):
        return {"a": row["wrong"]}

    df = session.from_items([1, 2]).map(pick)  # HERE
    df.take_all()


@fails(JobFailed, RuntimeError, says=("SystemExit", "leave"))
def function_that_exits(session, inputs):
    def leave(row):
        sys.exit("enough")

    df = session.from_items([1]).map(leave)  # HERE
    df.take_all()


@fails(JobFailed, RuntimeError, says=("KeyboardInterrupt\n  ArrowComputeTask", "in interrupt"))
def function_that_interrupts(session, inputs):
    def interrupt(row):
        raise KeyboardInterrupt

    df = session.from_items([1]).map(interrupt)  # HERE
    df.take_all()


@fails(JobFailed, RuntimeError, says=("exit code 7",))
def function_that_ends_its_process(session, inputs):
    df = session.from_items([1]).map(lambda row: os._exit(7))  # HERE
    df.take_all()


@fails(WrongReturnType, TypeError, says=("listed", "a dict", "[1]"))
def map_function_of_the_wrong_type(session, inputs):
    def listed(row):
        return [row["item"]]

    df = session.from_items([1, 2]).map(listed)  # HERE
    df.take_all()


@fails(WrongReturnType, TypeError, says=("single", "a list of dicts"))
def flat_map_function_of_the_wrong_type(session, inputs):
    def single(row):
        return 3

    df = session.from_items([1, 2]).flat_map(single)  # HERE
    df.take_all()


@fails(WrongReturnType, TypeError, says=("nothing", "Table", "None"))
def batch_function_of_the_wrong_type(session, inputs):
    def nothing(table):
        return None

    df = session.from_items([1, 2]).map_batches(nothing)  # HERE
    df.take_all()


@fails(SchemaMismatch, ValueError, says=("item", "return the same columns"))
def batch_function_with_another_schema_in_one_batch(session, inputs):
    def changing(table):
        return table if table["item"][0].as_py() < 20 else table.rename_columns(["other"])

    df = session.from_items(list(range(40))).map_batches(changing, batch_size=10)  # HERE
    df.take_all()


@fails(SchemaMismatch, ValueError, says=("two partitions differ: 'item'", "make all partitions with the same columns"))
def partitions_with_other_schemas(session, inputs):
    def changing(table):
        return table if table["item"][0].as_py() < 20 else table.rename_columns(["other"])

    df = session.from_items(list(range(40))).repartition(2, by_rows=True).map_batches(changing)  # HERE
    df.take_all()


@fails(SchemaMismatch, ValueError, says=("two partitions differ: 'item'", "they are made at"))
def partitions_with_other_schemas_put_together(session, inputs):
    def changing(table):
        return table if table["item"][0].as_py() < 20 else table.rename_columns(["other"])

    df = session.from_items(list(range(40))).repartition(2, by_rows=True)
    df = df.map_batches(changing)  # HERE
    df = df.repartition(1)
    df = df.map(lambda row: row)
    df.take_all()


@fails(SchemaMismatch, ValueError, says=("int", "str"))
def rows_of_mixed_types(session, inputs):
    df = session.from_items([1, 2]).map(lambda row: {"a": row["item"] if row["item"] == 1 else "two"})  # HERE
    df.take_all()


@fails(SchemaMismatch, ValueError, says=("schema", "correct the one or the other"))
def rows_that_do_not_fit_the_schema(session, inputs):
    import pyarrow as pa

    df = session.from_items([1]).map(lambda row: {"a": "x"}, schema=pa.schema({"a": pa.int64()}))  # HERE
    df.take_all()


@fails(SchemaMismatch, ValueError, says=("'at'", "NaT", "give schema="))
def value_that_arrow_does_not_know(session, inputs):
    import pandas as pd

    df = session.from_items([1]).map(lambda row: {"at": pd.NaT})  # HERE
    df.take_all()


@fails(SchemaMismatch, ValueError, says=("'a'", "non-nullable", "leave it out of the schema"))
def null_where_the_schema_has_none(session, inputs):
    import pyarrow as pa

    schema = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    df = session.from_items([1]).map(lambda row: {"a": None}, schema=schema)  # HERE
    df.take_all()


@fails(WrongType, TypeError, says=("function", "42"))
def not_a_function(session, inputs):
    session.from_items([1]).map(42)  # HERE


@fails(InvalidArgument, ValueError, says=("batch_size", "at least 1", "0"))
def batches_of_no_rows(session, inputs):
    session.from_items([1]).map_batches(lambda table: table, batch_size=0)  # HERE


@fails(WrongType, TypeError, says=("batch_size", "many"))
def batches_of_many_rows(session, inputs):
    session.from_items([1]).map_batches(lambda table: table, batch_size="many")  # HERE


@fails(WrongType, TypeError, says=("schema", "pyarrow.Schema", "{'a': 'int'}"))
def schema_that_is_a_dict(session, inputs):
    session.from_items([1]).map(lambda row: row, schema={"a": "int"})  # HERE


@fails(WrongReturnType, TypeError, says=("without columns",))
def rows_without_columns(session, inputs):
    df = session.from_items([1, 2]).map(lambda row: {})  # HERE
    df.count()


@fails(WrongType, TypeError, says=("timeout_secs", "soon"))
def timeout_that_is_no_number(session, inputs):
    df = session.from_items([1]).map(lambda row: row, timeout_secs="soon")  # HERE
    df.count()


@fails(JobFailed, RuntimeError, says=("TimeoutError", "0.2 s", "failed 3 times"))
def function_that_hangs(session, inputs):
    df = session.from_items([1]).map(lambda row: time.sleep(60), timeout_secs=0.2)  # HERE
    df.count()


# what ranks have


@fails(ResourcesUnavailable, ValueError, says=("bytes of memory", "no rank has more than"))
def more_memory_than_the_machine(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").map("a", memory_limit=1 << 50)  # HERE
    df.count()


@fails(ResourcesUnavailable, ValueError, says=("10,000 CPUs", "no rank has more than"))
def more_cpus_than_any_rank(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").map(lambda row: row, cpu_limit=10_000)  # HERE
    df.count()


@fails(ResourcesUnavailable, ValueError, says=("64 GPUs", "no rank has more than"))
def more_gpus_than_any_rank(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet").map_batches(lambda table: table, gpu_limit=64)  # HERE
    df.count()


@fails(InvalidArgument, ValueError, says=("cpu_limit", "0"))
def no_cpus(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").map("a", cpu_limit=0)  # HERE


@fails(WrongType, TypeError, says=("cpus",))
def setting_that_does_not_exist(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").map("a", cpus=3)  # HERE


# output


@fails(OutputExists, FileExistsError, says=("taken", "keep.txt", "another path"))
def output_path_with_files_of_others(session, inputs):
    session.from_items([1]).write_parquet(f"{inputs}/taken")  # HERE


@fails(OutputExists, FileExistsError, says=("is a file",))
def output_path_that_is_a_file(session, inputs):
    session.from_items([1]).write_parquet(f"{inputs}/words.csv")  # HERE


@fails(WrongType, TypeError, says=("path", "None"))
def output_path_that_is_none(session, inputs):
    session.from_items([1]).write_parquet(None)  # HERE


@fails(OutputUnusable, OSError, says=("words.csv/below",))
def output_path_below_a_file(session, inputs):
    session.from_items([1]).write_parquet(f"{inputs}/words.csv/below")  # HERE


@fails(
    OutputUnusable,
    OSError,
    says=("/proc/nope/x", "nothing can be made in /proc", "another path", "before anything was run"),
)
def output_path_where_nothing_can_be_made(session, inputs):
    session.from_items([1]).write_parquet("/proc/nope/x")  # HERE


@fails(
    OutputUnusable,
    OSError,
    says=("/proc/nope/x", "nothing can be made in /proc", "another path", "before anything was run"),
)
def csv_output_where_nothing_can_be_made(session, inputs):
    session.from_items([1]).write_csv("/proc/nope/x")  # HERE


@fails(
    OutputUnusable,
    OSError,
    says=("/proc/nope/x", "nothing can be made in /proc", "another path", "before anything was run"),
)
def json_output_where_nothing_can_be_made(session, inputs):
    session.from_items([1]).write_json("/proc/nope/x")  # HERE


@fails(OutputUnusable, OSError, says=("x" * 300, "File name too long", "another path"))
def output_path_that_is_too_long(session, inputs):
    session.from_items([1]).write_parquet(f"{inputs}/{'x' * 300}")  # HERE


# arguments of the wrong type


@fails(WrongType, TypeError, says=("paths", "42"))
def path_that_is_a_number(session, inputs):
    session.read_parquet(42)  # HERE


@fails(WrongType, TypeError, says=("paths", "None"))
def paths_with_a_none_in_them(session, inputs):
    session.read_parquet([f"{inputs}/good.parquet", None])  # HERE


@fails(WrongType, TypeError, says=("schema", "column"))
def csv_schema_that_is_a_list(session, inputs):
    session.read_csv(f"{inputs}/words.csv", ["a", "b"])  # HERE


@fails(InvalidArgument, ValueError, says=("from_items", "two", "str"))
def items_of_mixed_types(session, inputs):
    session.from_items([1, "two"])  # HERE


@fails(WrongType, TypeError, says=("from_arrow", "Table", "[1]"))
def arrow_that_is_none(session, inputs):
    session.from_arrow([1])  # HERE


@fails(WrongType, TypeError, says=("from_pandas", "DataFrame"))
def pandas_that_is_none(session, inputs):
    session.from_pandas([1])  # HERE


@fails(InvalidArgument, ValueError, says=("Parquet can't hold", "null encoded in dictionary", "another type"))
def dictionary_with_a_null_in_it(session, inputs):
    import pyarrow as pa

    table = pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(["x", None]))})
    df = session.from_arrow(table)  # HERE
    df.map_batches(lambda rows: rows).to_arrow()


@fails(InvalidArgument, ValueError, says=("no columns",))
def items_without_columns(session, inputs):
    df = session.from_items([{}, {}]).map("1 as one")  # HERE
    df.take_all()


@fails(InvalidArgument, ValueError, says=("init()", "before"))
def init_called_twice(session, inputs):
    sp.init()  # HERE


@fails(ZeroDivisionError)
def mistake_of_the_script_itself(session, inputs):
    1 / 0  # HERE


def works(session: sp.Session) -> list[int]:
    """A computation that must go on to work whatever happened before: it needs several tasks on any rank."""
    df = session.from_items(list(range(10))).repartition(2, by_rows=True).map(lambda row: {"a": row["item"] * 2})
    return [row["a"] for row in df.take_all()]


def lines_of_this_file(error: BaseException) -> list[int]:
    """Where in this file an exception passed."""
    return [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]


def run_all(session: sp.Session, inputs: str, out: str) -> None:
    """Each case, what came of it, and whether the session still works."""
    with open(out, "w") as report:
        for name, case in CASES.items():
            began = time.monotonic()
            record: dict[str, object] = {"case": name, "kinds": [], "text": "nothing was raised"}
            try:
                case.run(session, inputs)
            except Exception as error:  # noqa: BLE001 what comes is what the tests look at
                record.update(
                    kinds=[kind.__name__ for kind in type(error).__mro__],
                    text=str(error),
                    lines=lines_of_this_file(error),
                )
            record["secs"] = time.monotonic() - began
            try:
                record["after"] = works(session)
            except SmallpondError as error:
                record["after"] = f"{type(error).__name__}: {error}"
            report.write(json.dumps(record) + "\n")
            report.flush()


def main() -> None:
    what, data_root, inputs, *rest = sys.argv[1:]
    session = sp.init(data_root=data_root, progress="none")
    if what == "all":
        run_all(session, inputs, rest[0])
    else:
        CASES[what].run(session, inputs)


if __name__ == "__main__":
    main()
