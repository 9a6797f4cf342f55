"""Scripts with mistakes in them, one a function: run all in one session, or one alone so that its error ends the process.

    python bad_input_program.py all DATA_ROOT INPUTS OUT     every case, each followed by a computation that must work; reports to OUT as JSON lines
    python bad_input_program.py CASE DATA_ROOT INPUTS        one case, nothing caught

The line that is at fault bears the comment `HERE`: the error must name it.
"""

import inspect
import json
import logging
import os
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
        return next(number for number, text in enumerate(lines, first) if "# HERE" in text)


CASES: dict[str, Case] = {}


def fails(
    *kinds: type[BaseException], says: tuple[str, ...] = ()
) -> Callable[[Callable[[sp.Session, str], object]], Callable[[sp.Session, str], object]]:
    def register(run: Callable[[sp.Session, str], object]) -> Callable[[sp.Session, str], object]:
        CASES[run.__name__] = Case(run, kinds, says)
        return run

    return register


# files


@fails(InputNotFound, FileNotFoundError, says=("nowhere.parquet", "does not exist"))
def missing_file(session, inputs):
    df = session.read_parquet(f"{inputs}/nowhere.parquet")  # HERE
    df.filter("a > 1").count()


@fails(InputNotFound, FileNotFoundError, says=("nowhere.parquet", "does not exist"))
def missing_file_among_others(session, inputs):
    df = session.read_parquet([f"{inputs}/good.parquet", f"{inputs}/nowhere.parquet"])  # HERE
    df.repartition(4, hash_by="a").to_arrow()


@fails(InputNotFound, FileNotFoundError, says=("nowhere.csv", "does not exist"))
def missing_csv(session, inputs):
    session.read_csv(f"{inputs}/nowhere.csv", {"a": "bigint"}).take_all()  # HERE


@fails(InputNotFound, FileNotFoundError, says=("nothing-*.parquet", "matches no file"))
def unmatched_pattern(session, inputs):
    df = session.read_parquet(f"{inputs}/nothing-*.parquet")  # HERE
    df.count()


@fails(InputNotFound, FileNotFoundError, says=("no_such_directory", "does not exist"))
def missing_directory(session, inputs):
    session.read_parquet(f"{inputs}/no_such_directory").take(1)  # HERE


@fails(CorruptInput, ValueError, says=("bad_footer.parquet",))
def corrupt_footer(session, inputs):
    session.read_parquet(f"{inputs}/bad_footer.parquet").map("a + 1 as b").to_arrow()  # HERE


@fails(CorruptInput, ValueError, says=("bad_footer.parquet",))
def corrupt_footer_counted(session, inputs):
    session.read_parquet(f"{inputs}/bad_footer.parquet").count()  # HERE


@fails(CorruptInput, ValueError, says=("text.parquet",))
def not_parquet_at_all(session, inputs):
    session.read_parquet(f"{inputs}/text.parquet").repartition(2, hash_by="a").count()  # HERE


@fails(CorruptInput, ValueError, says=("empty.parquet",))
def empty_file(session, inputs):
    session.read_parquet(f"{inputs}/empty.parquet").map("*").count()  # HERE


@fails(CorruptInput, ValueError, says=("truncated.parquet",))
def truncated_data_by_sql(session, inputs):
    session.read_parquet(f"{inputs}/truncated.parquet").map("a, b").to_arrow()  # HERE


@fails(CorruptInput, ValueError, says=("truncated.parquet",))
def truncated_data_by_arrow(session, inputs):
    session.read_parquet(f"{inputs}/truncated.parquet").map(lambda row: row).count()  # HERE


@fails(CorruptInput, ValueError, says=("truncated.parquet",))
def truncated_data_by_batches(session, inputs):
    session.read_parquet(f"{inputs}/truncated.parquet").map_batches(lambda table: table).count()  # HERE


@fails(CorruptInput, ValueError, says=("truncated.parquet",))
def truncated_data_by_hash(session, inputs):
    session.read_parquet(f"{inputs}/truncated.parquet").repartition(3, hash_by="a").count()  # HERE


@fails(CorruptInput, ValueError, says=("text.parquet",))
def not_parquet_at_all_written(session, inputs):
    session.read_parquet(f"{inputs}/text.parquet").write_parquet(f"{inputs}/out")  # HERE


@fails(CorruptInput, ValueError, says=("cut.parquet",))
def cut_data_written(session, inputs):
    session.read_parquet(f"{inputs}/cut.parquet").write_parquet(f"{inputs}/out")  # HERE


@fails(SchemaMismatch, ValueError, says=("good.parquet", "other.parquet", "'c' is only in the second"))
def schemas_that_do_not_fit_written(session, inputs):
    files = [f"{inputs}/good.parquet", f"{inputs}/other.parquet"]
    session.read_parquet(files).repartition(2).write_parquet(f"{inputs}/out")  # HERE


@fails(CorruptInput, ValueError, says=("words.csv", "line 3", "x,three"))
def csv_that_does_not_fit(session, inputs):
    session.read_csv(f"{inputs}/words.csv", {"a": "bigint", "b": "varchar"}).map("a").to_arrow()  # HERE


@fails(CorruptInput, ValueError, says=("words.csv", "line"))
def csv_with_more_columns(session, inputs):
    session.read_csv(f"{inputs}/words.csv", {"a": "varchar"}).map("a").to_arrow()  # HERE


@fails(CorruptInput, ValueError, says=("words.csv",))
def csv_by_python(session, inputs):
    session.read_csv(f"{inputs}/words.csv", {"a": "bigint", "b": "varchar"}).map(lambda row: row).to_arrow()  # HERE


@fails(CorruptInput, ValueError, says=("broken.json",))
def json_that_is_none(session, inputs):
    session.read_json(f"{inputs}/broken.json", {"a": "bigint"}).map("a").to_arrow()  # HERE


@fails(BadInput, ValueError, says=("biggint",))
def csv_type_that_is_none(session, inputs):
    session.read_csv(f"{inputs}/words.csv", {"a": "biggint", "b": "varchar"}).map("a").to_arrow()  # HERE


@fails(SchemaMismatch, ValueError, says=("good.parquet", "other.parquet"))
def schemas_that_do_not_fit(session, inputs):
    session.read_parquet([f"{inputs}/good.parquet", f"{inputs}/other.parquet"]).map("*").to_arrow()  # HERE


@fails(SchemaMismatch, ValueError, says=("good.parquet", "typed.parquet", "'a'"))
def types_that_do_not_fit(session, inputs):
    session.read_parquet([f"{inputs}/good.parquet", f"{inputs}/typed.parquet"]).map(lambda row: row).to_arrow()  # HERE


@fails(ColumnNotFound, LookupError, says=("'wrong'", "a, b"))
def unknown_column_to_read(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet", columns=["wrong"]).map("*").to_arrow()  # HERE


# columns and SQL


@fails(ColumnNotFound, LookupError, says=("'wrong'", "a, b"))
def unknown_column_in_hash_by(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet")
    df.repartition(4, hash_by=["a", "wrong"]).count()  # HERE


@fails(InvalidQuery, ValueError, says=("syntax error", "selec"))
def sql_syntax_error(session, inputs):
    df = session.read_parquet(f"{inputs}/good.parquet")
    session.partial_sql("selec a from {0}", df).count()  # HERE


@fails(InvalidQuery, ValueError, says=("wrong",))
def unknown_column_in_filter(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").filter("wrong > 1").count()  # HERE


@fails(InvalidQuery, ValueError, says=("wrong",))
def unknown_column_in_map(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").map("a, wrong + 1 as c").count()  # HERE


@fails(InvalidQuery, ValueError, says=("wrong",))
def unknown_column_in_partial_sort(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").partial_sort(by=["a", "wrong desc"]).count()  # HERE


@fails(InvalidQuery, ValueError, says=("Could not convert string", "one"))
def sql_cast_of_bad_text(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").map("cast(b as integer) as c").count()  # HERE


@fails(InvalidQuery, ValueError, says=("nosuch",))
def unknown_function_in_sql(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").map("nosuch(a)").count()  # HERE


@fails(InvalidQuery, ValueError, says=("drop table",))
def sql_without_rows(session, inputs):
    session.partial_sql("drop table if exists nothing", session.read_parquet(f"{inputs}/good.parquet")).count()  # HERE


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
    ),
)
def partition_number_out_of_range(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition(4, by="a * 10").count()  # HERE


@fails(InvalidArgument, ValueError, says=("NULL",))
def partition_number_null(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition(4, by="null").count()  # HERE


@fails(InvalidArgument, ValueError, says=("at least 1", "0"))
def no_partitions(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition(0, hash_by="a")  # HERE


@fails(InvalidArgument, ValueError, says=("at least 1", "-3"))
def negative_partitions(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition(-3)  # HERE


@fails(InvalidArgument, ValueError, says=("10,000,000", "at most"))
def ten_million_partitions(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").repartition(10_000_000, hash_by="a").count()  # HERE


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
    session.read_parquet(f"{inputs}/good.parquet").limit(-1).count()  # HERE


# functions


@fails(CannotPickle, TypeError, says=("Can't pickle task", "lock", "make it inside the function"))
def lock_in_a_closure(session, inputs):
    lock = threading.Lock()
    session.from_items([1, 2]).map(lambda row: {"a": lock.locked()}).take_all()  # HERE


@fails(CannotPickle, TypeError, says=("Can't pickle task", "make it inside the function"))
def logger_in_a_closure(session, inputs):
    class Holder:
        def __init__(self):
            self.log = logging.StreamHandler()

    held = Holder()
    session.from_items([1, 2]).map(lambda row: {"a": str(held)}).take_all()  # HERE


@fails(CannotPickle, TypeError, says=("Can't pickle task", "make it inside the function"))
def open_file_in_a_closure(session, inputs):
    with open(f"{inputs}/words.csv", "a") as file:
        session.from_items([1, 2]).map(lambda row: {"a": file.name}).take_all()  # HERE


@fails(CannotPickle, TypeError, says=("Can't pickle task", "generator", "inside the function"))
def generator_in_a_closure(session, inputs):
    numbers = (number for number in range(3))
    session.from_items([1, 2]).map(lambda row: {"a": next(numbers)}).take_all()  # HERE


@fails(JobFailed, RuntimeError, says=("ZeroDivisionError: division by zero", "in divide", "dividing 1", "rank "))
def function_that_raises(session, inputs):
    def divide(row):
        print("dividing", row["item"])
        return {"a": row["item"] / 0}

    session.from_items([1, 2]).map(divide).take_all()  # HERE


@fails(JobFailed, RuntimeError, says=("KeyError: 'wrong'", "pick"))
def function_that_takes_an_unknown_column(session, inputs):
    def pick(row):
        return {"a": row["wrong"]}

    session.from_items([1, 2]).map(pick).take_all()  # HERE


@fails(JobFailed, RuntimeError, says=("SystemExit", "leave"))
def function_that_exits(session, inputs):
    def leave(row):
        sys.exit("enough")

    session.from_items([1]).map(leave).take_all()  # HERE


@fails(JobFailed, RuntimeError, says=("exit code 7",))
def function_that_ends_its_process(session, inputs):
    session.from_items([1]).map(lambda row: os._exit(7)).take_all()  # HERE


@fails(WrongReturnType, TypeError, says=("listed", "a dict", "[1]"))
def map_function_of_the_wrong_type(session, inputs):
    def listed(row):
        return [row["item"]]

    session.from_items([1, 2]).map(listed).take_all()  # HERE


@fails(WrongReturnType, TypeError, says=("single", "a list of dicts"))
def flat_map_function_of_the_wrong_type(session, inputs):
    def single(row):
        return 3

    session.from_items([1, 2]).flat_map(single).take_all()  # HERE


@fails(WrongReturnType, TypeError, says=("nothing", "Table", "None"))
def batch_function_of_the_wrong_type(session, inputs):
    def nothing(table):
        return None

    session.from_items([1, 2]).map_batches(nothing).take_all()  # HERE


@fails(SchemaMismatch, ValueError, says=("item",))
def batch_function_with_another_schema_in_one_batch(session, inputs):
    def changing(table):
        return table if table["item"][0].as_py() < 20 else table.rename_columns(["other"])

    session.from_items(list(range(40))).map_batches(changing, batch_size=10).take_all()  # HERE


@fails(SchemaMismatch, ValueError, says=("item",))
def partitions_with_other_schemas(session, inputs):
    def changing(table):
        return table if table["item"][0].as_py() < 20 else table.rename_columns(["other"])

    session.from_items(list(range(40))).repartition(2, by_rows=True).map_batches(changing).take_all()  # HERE


@fails(SchemaMismatch, ValueError, says=("int", "str"))
def rows_of_mixed_types(session, inputs):
    session.from_items([1, 2]).map(lambda row: {"a": row["item"] if row["item"] == 1 else "two"}).take_all()  # HERE


@fails(SchemaMismatch, ValueError, says=("schema",))
def rows_that_do_not_fit_the_schema(session, inputs):
    import pyarrow as pa

    session.from_items([1]).map(lambda row: {"a": "x"}, schema=pa.schema({"a": pa.int64()})).take_all()  # HERE


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
    session.from_items([1, 2]).map(lambda row: {}).count()  # HERE


@fails(WrongType, TypeError, says=("timeout_secs", "soon"))
def timeout_that_is_no_number(session, inputs):
    session.from_items([1]).map(lambda row: row, timeout_secs="soon").count()  # HERE


@fails(JobFailed, RuntimeError, says=("TimeoutError", "0.2 s", "failed 3 times"))
def function_that_hangs(session, inputs):
    session.from_items([1]).map(lambda row: time.sleep(60), timeout_secs=0.2).count()  # HERE


# what ranks have


@fails(ResourcesUnavailable, ValueError, says=("bytes of memory", "no rank has more than"))
def more_memory_than_the_machine(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").map("a", memory_limit=1 << 50).count()  # HERE


@fails(ResourcesUnavailable, ValueError, says=("10,000 CPUs", "no rank has more than"))
def more_cpus_than_any_rank(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").map(lambda row: row, cpu_limit=10_000).count()  # HERE


@fails(ResourcesUnavailable, ValueError, says=("64 GPUs", "no rank has more than"))
def more_gpus_than_any_rank(session, inputs):
    session.read_parquet(f"{inputs}/good.parquet").map_batches(lambda table: table, gpu_limit=64).count()  # HERE


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


@fails(InvalidArgument, ValueError, says=("no columns",))
def items_without_columns(session, inputs):
    session.from_items([{}, {}]).map("1 as one").take_all()  # HERE


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
