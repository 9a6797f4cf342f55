"""Fingerprints: what does not change a result does not change them, what may change it does."""

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import logging
import operator
import os
import random
import re
import subprocess
import sys
import threading
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.fingerprint import Fingerprinter, NotDigestible, digest_of
from smallpond_mpi.execution.task.partition_info import TOPLEVEL, PartitionInfo
from smallpond_mpi.execution.task.sink import DataSinkTask
from smallpond_mpi.execution.task.source import DataSourceTask
from smallpond_mpi.execution.task.sql import SqlEngineTask
from smallpond_mpi.execution.task.views import MergeDataSetsTask, SplitDataSetTask
from smallpond_mpi.logical.dataset import (
    ArrowTableDataSet,
    CsvDataSet,
    JsonDataSet,
    PandasDataSet,
    ParquetDataSet,
    SqlQueryDataSet,
)
from smallpond_mpi.logical.dataset.text import Dialect


def made(source: str, name: str = "f") -> Any:
    """What a script of that source defines under a name."""
    module: dict[str, Any] = {"__name__": "script"}
    exec(compile(source, "script.py", "exec", dont_inherit=True), module)
    return module[name]


BASE = """
import re
CONSTANT = 3
TABLE = {"a": 1, "b": {2, 3}}
WORDS = re.compile("a+")

def helper(x, by=1):
    return other(x) + by

def other(x):
    return x if x < 2 else helper(x - 1)

class Base:
    factor = 2
    def scaled(self, x):
        return x * self.factor

class Thing(Base):
    limit = 5
    def __init__(self, start):
        self.start = start
    def __call__(self, x):
        return self.scaled(x) + self.start

thing = Thing(7)

def make(n):
    def inner(x):
        return x + n
    return inner

closure = make(4)

def f(row, *, extra={"p", "q", "r"}):
    kept = [word for word in ("x", "y", "z") if word in extra and word not in {"s", "t", "u"}]
    def nested(y):
        return helper(y) * CONSTANT
    return nested(row["v"]) + TABLE["a"] + len(WORDS.findall(kept[0])) + thing(1) + closure(2)
"""

SAME = {
    "a comment and lines above": lambda s: "# hello\n\n\n\n" + s,
    "a comment within": lambda s: s.replace("    kept =", "    # why\n\n    kept ="),
    "a docstring": lambda s: s.replace("    kept =", '    """What it does."""\n    kept ='),
    "a docstring of a nested function": lambda s: s.replace("        return helper(y)", '        "doc"\n        return helper(y)'),
    "a docstring of a class": lambda s: s.replace("    limit = 5", '    "A thing."\n    limit = 5'),
    "a docstring of a helper": lambda s: s.replace("    return other(x)", '    """Helps."""\n    return other(x)'),
    "a docstring of the module": lambda s: '"""The script."""\n' + s,
    "a global that is not used": lambda s: s + "\nv = 9\nfindall = 3\nUNUSED = 1\n",
    "an annotation": lambda s: s.replace("def other(x):", "def other(x: int) -> int:"),
    "the order of a set's display": lambda s: s.replace('{"p", "q", "r"}', '{"r", "p", "q"}'),
}  # fmt: skip

OTHER = {
    "a constant": lambda s: s.replace('("x", "y", "z")', '("x", "y", "w")'),
    "a constant set": lambda s: s.replace('{"s", "t", "u"}', '{"s", "t"}'),
    "a default": lambda s: s.replace('{"p", "q", "r"}', '{"p", "q"}'),
    "a default of a helper": lambda s: s.replace("by=1", "by=2"),
    "a global number": lambda s: s.replace("CONSTANT = 3", "CONSTANT = 4"),
    "a global number's type": lambda s: s.replace("CONSTANT = 3", "CONSTANT = 3.0"),
    "what a global dict holds": lambda s: s.replace("{2, 3}", "{2, 4}"),
    "a pattern": lambda s: s.replace('compile("a+")', 'compile("a*")'),
    "a pattern's flags": lambda s: s.replace('compile("a+")', 'compile("a+", re.I)'),
    "an operator": lambda s: s.replace("* CONSTANT", "- CONSTANT"),
    "a helper": lambda s: s.replace("+ by", "- by"),
    "a helper's helper": lambda s: s.replace("x < 2", "x < 3"),
    "the state of an object": lambda s: s.replace("Thing(7)", "Thing(8)"),
    "a class attribute": lambda s: s.replace("factor = 2", "factor = 3"),
    "an inherited method": lambda s: s.replace("x * self.factor", "x + self.factor"),
    "a method": lambda s: s.replace("+ self.start", "- self.start"),
    "a closure's value": lambda s: s.replace("make(4)", "make(5)"),
    "a closure's code": lambda s: s.replace("x + n", "x - n"),
    "the name of a column": lambda s: s.replace('row["v"]', 'row["w"]'),
    "a method that is called": lambda s: s.replace("WORDS.findall(", "WORDS.split("),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_means_nothing(change: Callable[[str], str]) -> None:
    assert change(BASE) != BASE
    assert digest_of(made(change(BASE))) == digest_of(made(BASE))


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_what_means_something(change: Callable[[str], str]) -> None:
    assert change(BASE) != BASE
    assert digest_of(made(change(BASE))) != digest_of(made(BASE))


class Color(enum.Enum):
    RED = 1
    GREEN = "g"

    def shout(self) -> str:
        return self.name + str({"a", "b", "c"})


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str] = dataclasses.field(default_factory=set)
    ys: list[int] = dataclasses.field(default_factory=lambda: [1, 2])

    @functools.cached_property
    def size(self) -> int:
        return len(self.tags)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: int


class Named(typing.NamedTuple):
    x: int
    y: str = "s"


class MyDict(dict[str, int]):
    pass


class MyList(list[int]):
    pass


class MySet(set[str]):
    pass


class MyInt(int):
    def __repr__(self) -> str:
        return "always the same"


class OldSlots:
    __slots__ = ("a", "b")

    def __init__(self, a: int) -> None:
        self.a = a


class Reducing:
    def __init__(self, value: int) -> None:
        self.value = value
        self.cache = object()

    def __reduce__(self) -> Any:
        return Reducing, (self.value,)


@functools.lru_cache
def remembered(x: int) -> int:
    return x + CONSTANT


CONSTANT = 3


def myself() -> Any:
    itself: dict[str, Any] = {"list": []}
    itself["list"].append(itself)
    return itself


def tree(leaf: int) -> Any:
    parent = types.SimpleNamespace(children=[], leaf=leaf)
    parent.children = [types.SimpleNamespace(parent=parent) for _ in range(3)]
    return parent


def shared(value: int) -> Any:
    """A value whose parts are shared over and over: walked as a tree it has 2**200 leaves."""
    level: Any = [value]
    for _ in range(200):
        level = [level, level]
    return level


def series(n: int) -> "pd.Series[int]":
    return pd.Series([n, 2])


# Each a way to make a value from a number: equal numbers are equal values, different ones are not.
VALUES: dict[str, Callable[[int], Any]] = {
    "int": lambda n: n,
    "big int": lambda n: 10**5000 + n,
    "float": lambda n: n / 3,
    "bytes": lambda n: bytes([n]),
    "bytearray": lambda n: bytearray([n]),
    "list": lambda n: [1, [n]],
    "tuple": lambda n: (1, (n,)),
    "set of strings": lambda n: {f"a{n}", "b", "c", "d"},
    "frozenset in a set": lambda n: {frozenset({f"a{n}", "b"}), frozenset({"c"})},
    "dict of sets": lambda n: {"x": {"p", "q", f"r{n}"}},
    "dict's order": lambda n: dict(sorted({"a": 1, "b": 2}.items(), reverse=n % 2 == 0)),
    "enum": lambda n: list(Color)[n % 2],
    "dataclass": lambda n: Point(n, {"u", "v", "w"}),
    "slots": lambda n: Slotted(n),
    "old slots": lambda n: OldSlots(n),
    "named tuple": lambda n: Named(n),
    "collections.namedtuple": lambda n: collections.namedtuple("Pair", "a b")(n, 1),
    "dict subclass": lambda n: MyDict(a=n),
    "list subclass": lambda n: MyList([n]),
    "set subclass": lambda n: MySet({f"a{n}", "b", "c"}),
    "int subclass": lambda n: MyInt(n),
    "defaultdict": lambda n: collections.defaultdict(list, {"a": [n]}),
    "defaultdict's default": lambda n: collections.defaultdict(functools.partial(int, n)),
    "counter": lambda n: collections.Counter({"a": n}),
    "deque": lambda n: collections.deque([n], maxlen=7),
    "ordered dict": lambda n: collections.OrderedDict(a=n),
    "pattern": lambda n: re.compile(f"a{{{n}}}"),
    "date": lambda n: datetime.date(2020, 1, n),
    "decimal": lambda n: decimal.Decimal(n) / 3,
    "path": lambda n: Path(f"/a/{n}"),
    "range": lambda n: range(n),
    "partial": lambda n: functools.partial(operator.add, n),
    "item getter": lambda n: operator.itemgetter(n),
    "bound method": lambda n: Point(n).__eq__,
    "bound builtin": lambda n: {"a": n}.get,
    "lambda": lambda n: lambda x: x + n,
    "default of a lambda": lambda n: lambda x, y=n: x + y,
    "method of a class": lambda n: (str.upper, str.lower)[n % 2],
    "builtin": lambda n: (len, abs)[n % 2],
    "class": lambda n: (Point, Slotted)[n % 2],
    "annotation": lambda n: (int | None, list[int], typing.Optional[str])[n % 3],  # noqa: UP045
    "own reduce": lambda n: Reducing(n),
    "itself": lambda n: [myself(), n],
    "tree with parents": lambda n: tree(n),
    "shared parts": lambda n: shared(n),
    "random": lambda n: random.Random(n),
    "logger": lambda n: logging.getLogger(f"l{n}"),
    "array": lambda n: np.arange(5) + n,
    "array's type": lambda n: np.arange(5).astype(("i4", "i8")[n % 2]),
    "array of objects": lambda n: np.array(["a", None, n], dtype=object),
    "structured array": lambda n: np.array([(n, 1.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "masked array": lambda n: np.ma.array([1, 2, n], mask=[0, 1, 0]),
    "numpy number": lambda n: np.float32(n),
    "generator": lambda n: np.random.default_rng(n),
    "frame": lambda n: pd.DataFrame({"a": [n, 2], "s": ["x", None]}),
    "frame's index": lambda n: pd.DataFrame({"a": [1]}, index=[n]),
    "series": series,
    "timestamp": lambda n: pd.Timestamp(2020, 1, n),
    "table": lambda n: pa.table({"a": [1, 2, n]}),
    "table's name": lambda n: pa.table({f"a{n}": [1]}),
    "table's metadata": lambda n: pa.table({"a": [1]}).replace_schema_metadata({"k": str(n)}),
    "batch": lambda n: pa.record_batch({"a": [n]}),
    "long array": lambda n: pa.array([*range(500), n, *range(500)]),
    "chunked array": lambda n: pa.chunked_array([[1], [n]]),
    "schema": lambda n: pa.schema([(f"a{n}", pa.int64())]),
    "schema's metadata": lambda n: pa.schema([("a", pa.int64())], metadata={"k": "v" * 500 + str(n)}),
    "field": lambda n: pa.field("a", pa.int64(), nullable=n % 2 == 0),
    "type": lambda n: pa.decimal128(10 + n, 2),
    "scalar": lambda n: pa.scalar(n),
    "buffer": lambda n: pa.py_buffer(bytes([n])),
    "cached function": lambda n: (remembered, functools.lru_cache(made("def f(x): return x")))[n % 2],
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_values(make: Callable[[int], Any]) -> None:
    assert digest_of(make(1)) == digest_of(make(1))
    assert digest_of(make(1)) != digest_of(make(2))


SEEDS = f"""
import sys
sys.path.insert(0, {os.getcwd()!r})
from tests.unit.execution.test_fingerprint import BASE, VALUES, digest_of, made
print(digest_of(made(BASE)).hex(), *(digest_of(make(1)).hex() for make in VALUES.values()))
"""


def test_every_process_says_the_same() -> None:
    """Whatever the hash seed, and wherever things lie in memory."""
    said = [
        subprocess.run(
            [sys.executable, "-c", SEEDS], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.split()
        for seed in ("0", "1", "2")
    ]  # fmt: skip
    names = ["the function", *VALUES]
    different = [name for name, *digests in zip(names, *said, strict=True) if len(set(digests)) > 1]
    assert not different


def test_what_is_hidden_is_not_digestible() -> None:
    for value in ((x for x in ()), sys.stdout, threading.local()):
        with pytest.raises(NotDigestible):
            digest_of(value)


def test_reduce_that_raises_is_not_digestible() -> None:
    class Raises:
        def __reduce__(self) -> Any:
            raise KeyError("mine")

    with pytest.raises(NotDigestible, match="mine"):
        digest_of([Raises()])


def test_locks_are_alike() -> None:
    assert digest_of(threading.Lock()) == digest_of(threading.Lock())


def test_a_chain_of_functions_may_be_long() -> None:
    calls = "\n".join(f"def f{n}(x): return f{n + 1}(x)" for n in range(2000)) + "\ndef f2000(x): return {}"
    assert digest_of(made(calls.format(1), "f0")) != digest_of(made(calls.format(2), "f0"))


def test_functions_that_all_call_each_other() -> None:
    """As a tree of calls it has 30! leaves."""
    calls = "\n".join(f"def f{n}(x): return [{', '.join(f'f{m}' for m in range(30))}]" for n in range(30))
    assert digest_of(made(calls, "f0")) == digest_of(made(calls, "f0"))
    assert digest_of(made(calls, "f0")) != digest_of(made(calls.replace("def f29(x)", "def f29(y)"), "f0"))


def test_a_set_that_holds_what_refers_to_it() -> None:
    source = "HANDLERS = set()\ndef f(x): return len(HANDLERS) + {}\nHANDLERS.add(f)"
    assert digest_of(made(source.format(1))) == digest_of(made(source.format(1)))
    assert digest_of(made(source.format(1))) != digest_of(made(source.format(2)))


def test_modules_beside_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that a function takes from them; by the whole source where it imports them itself. Packages need no __init__."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "space_of_mine").mkdir()
    script = (
        "import helpers_of_mine\nimport space_of_mine.inner as inner\n"
        "def f(x): return helpers_of_mine.scaled(x) + inner.shift(x)\n"
        "def g(x):\n    import lazy_of_mine\n    return lazy_of_mine.late(x)\n"
    )

    def digests(scaled: str = "x * 2", unused: str = "x", shift: str = "x", late: str = "x") -> tuple[bytes, bytes]:
        for name in [name for name in sys.modules if "of_mine" in name]:
            del sys.modules[name]
        (tmp_path / "helpers_of_mine.py").write_text(
            f"def scaled(x): return {scaled}\ndef unused(x): return {unused}\n"
        )
        (tmp_path / "space_of_mine" / "inner.py").write_text(f"def shift(x): return {shift}\n")
        (tmp_path / "lazy_of_mine.py").write_text(f"def late(x): return {late}\n")
        for cached in tmp_path.rglob("__pycache__"):
            for file in cached.iterdir():
                file.unlink()
        import importlib

        from smallpond_mpi.execution.task import installed

        importlib.invalidate_caches()
        installed.source_of_script_module.cache_clear()
        module: dict[str, Any] = {"__name__": "script"}
        exec(script, module)
        return digest_of(module["f"]), digest_of(module["g"])

    f, g = digests()
    assert digests(unused="x + 1") == (f, g)
    assert digests(scaled="x * 3")[0] != f
    assert digests(shift="x + 1")[0] != f
    assert digests(late="x + 1")[0] == f
    assert digests(late="x + 1")[1] != g
    assert digests(late="x  # a comment")[1] == g
    before = digests()
    __import__("lazy_of_mine")
    module: dict[str, Any] = {"__name__": "script"}
    exec(script, module)
    assert digest_of(module["g"]) == before[1], "whether rank 0 happens to have imported it does not matter"


def test_a_decorator_that_copies_names_hides_nothing() -> None:
    source = (
        "import functools, json\n"
        "def wrapped(by):\n    @functools.wraps(json.dumps)\n    def inner(x): return by + x\n    return inner\n"
        "f = wrapped({})"
    )
    assert made(source.format(1)).__module__ == "json"
    assert digest_of(made(source.format(1))) != digest_of(made(source.format(2)))


def test_what_an_installed_function_was_made_with_counts() -> None:
    closures = [functools.singledispatch(made(f"def f(x): return {n}")) for n in (1, 1, 2)]
    assert digest_of(closures[0]) == digest_of(closures[1]) != digest_of(closures[2])


@given(st.recursive(st.integers() | st.text(max_size=3) | st.none() | st.booleans(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3) | st.tuples(inner, inner), max_leaves=12), st.recursive(st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=4), max_leaves=6))  # fmt: skip
def test_data_is_told_apart_by_what_it_is(one: Any, other: Any) -> None:
    assert digest_of(one) == digest_of(eval(repr(one)))
    assert (repr(one) == repr(other)) == (digest_of(one) == digest_of(other))


# tasks


@pytest.fixture
def ctx(tmp_path: Path) -> RuntimeContext:
    return RuntimeContext(JobId.new(), datetime.datetime(2026, 1, 1), str(tmp_path / "root"), random_seed=7)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"in-{number}.parquet"))
        pq.write_table(pa.table({"a": [number]}), paths[-1])
    return paths


def fingerprint(task: Task, fingerprinter: Fingerprinter | None = None) -> bytes:
    """Of a task, that of its inputs taken before."""
    prints = fingerprinter or Fingerprinter()

    def take(one: Task) -> bytes:
        for dep in one._deps.tasks:
            take(dep)
        return prints.of_task(one)

    return take(task)


def sql(ctx: RuntimeContext, dep: Task, query: str = "select * from {0}", **options: Any) -> Task:
    return SqlEngineTask(ctx, [dep], [TOPLEVEL], query, **options)


def test_neither_ids_nor_places_nor_grants_count(ctx: RuntimeContext, files: list[str]) -> None:
    one = sql(ctx, DataSourceTask(ctx, ParquetDataSet(files), [TOPLEVEL]))
    ctx.new_task_id()
    other = sql(ctx, DataSourceTask(ctx, ParquetDataSet(list(files)), [TOPLEVEL]), cpu_limit=2, memory_limit=1 << 30)
    other.node_id, other.location, other.retry_count, other.timeout_secs = 9, "x.py:3", 4, 5.0
    assert fingerprint(one) == fingerprint(other)


def test_class_parameters_partitions_and_inputs_count(ctx: RuntimeContext, files: list[str]) -> None:
    source = DataSourceTask(ctx, ParquetDataSet(files), [TOPLEVEL])
    merged = MergeDataSetsTask(ctx, [source], [TOPLEVEL])
    tasks = [
        sql(ctx, source),
        sql(ctx, source, "select 1 from {0}"),
        sql(ctx, source, output_name="named"),
        sql(ctx, merged),
        SqlEngineTask(ctx, [source, source], [TOPLEVEL], "select * from {0}"),
        SqlEngineTask(ctx, [source], [PartitionInfo(1, 2)], "select * from {0}"),
        SqlEngineTask(ctx, [source], [PartitionInfo(0, 2)], "select * from {0}"),
        SqlEngineTask(ctx, [source], [PartitionInfo(0, 3)], "select * from {0}"),
        merged,
    ]
    assert len({fingerprint(task) for task in tasks}) == len(tasks)


def test_a_result_that_must_stay_is_another_one(ctx: RuntimeContext, files: list[str]) -> None:
    """Where it lies follows from that: what a manifest lists may not be in staging."""
    source = DataSourceTask(ctx, ParquetDataSet(files), [TOPLEVEL])
    temporary, lasting = sql(ctx, source), sql(ctx, source)
    lasting.temp_output = False
    assert fingerprint(temporary) != fingerprint(lasting)


def test_tasks_that_are_alike_are_told_apart_by_their_order(ctx: RuntimeContext, files: list[str]) -> None:
    def plan() -> list[bytes]:
        prints = Fingerprinter()
        source = DataSourceTask(ctx, ParquetDataSet(files), [TOPLEVEL])
        return [fingerprint(sql(ctx, source), prints) for _ in range(3)]

    first = plan()
    assert len(set(first)) == 3
    assert plan() == first


def touch(path: str) -> None:
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_size_and_time_of_files_count_for_who_reads_them(ctx: RuntimeContext, files: list[str], tmp_path: Path) -> None:
    def plan() -> dict[str, bytes]:
        source = DataSourceTask(ctx, ParquetDataSet(files), [TOPLEVEL])
        split = SplitDataSetTask(ctx, [MergeDataSetsTask(ctx, [source], [TOPLEVEL])], [PartitionInfo(0, 2)])
        return {
            "reads": fingerprint(sql(ctx, split)),
            "links": fingerprint(DataSinkTask(ctx, [split], [TOPLEVEL], str(tmp_path / "out"), "link")),
            "names": fingerprint(DataSinkTask(ctx, [split], [TOPLEVEL], str(tmp_path / "out"), "manifest")),
        }

    before = plan()
    assert plan() == before
    touch(files[1])
    touched = plan()
    pq.write_table(pa.table({"a": [1, 2, 3]}), files[1])
    rewritten = plan()
    os.unlink(files[1])
    gone = plan()
    for who in ("reads", "links"):
        assert len({before[who], touched[who], rewritten[who], gone[who]}) == 4
    assert len({before["names"], touched["names"], rewritten["names"], gone["names"]}) == 1


def test_files_that_nobody_reads_are_not_looked_at(ctx: RuntimeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    source = DataSourceTask(ctx, ParquetDataSet([str(tmp_path / f"{n}.parquet") for n in range(1000)]), [TOPLEVEL])
    manifest = DataSinkTask(
        ctx, [MergeDataSetsTask(ctx, [source], [TOPLEVEL])], [TOPLEVEL], str(tmp_path / "o"), "manifest"
    )
    looked: list[object] = []
    monkeypatch.setattr(os, "stat", lambda path, **_: looked.append(path) or os.lstat(path))
    fingerprint(manifest)
    assert not looked
    fingerprint(sql(ctx, source))
    assert len(looked) == 1000


def test_a_pattern_is_what_it_matches(ctx: RuntimeContext, files: list[str], tmp_path: Path) -> None:
    def pattern(text: str = "*.parquet") -> bytes:
        return fingerprint(sql(ctx, DataSourceTask(ctx, ParquetDataSet(str(tmp_path / text)), [TOPLEVEL])))

    before = pattern()
    assert pattern() == before
    pq.write_table(pa.table({"a": [9]}), tmp_path / "in-9.parquet")
    assert pattern() != before
    os.unlink(tmp_path / "in-9.parquet")
    assert pattern() == before
    directory = pattern("")
    touch(files[0])
    assert pattern() != before
    assert pattern("") != directory
    assert pattern("nothing*") == pattern("nothing*"), "what is missing is told by the task, not by its fingerprint"


def test_every_setting_of_a_dataset_counts(files: list[str]) -> None:
    pq.write_table(pa.table({"a": list(range(5))}), files[0])
    ranges = ParquetDataSet(files[:1]).partition_by_rows(2)
    datasets = [
        ParquetDataSet(files),
        ParquetDataSet(files[:2]),
        ParquetDataSet(files, columns=["a"]),
        ParquetDataSet(files, union_by_name=True),
        ParquetDataSet(files, generated_columns=["filename"]),
        ParquetDataSet(files, recursive=True),
        *ranges,
        CsvDataSet(files, {"a": "INT"}),
        CsvDataSet(files, {"a": "BIGINT"}),
        CsvDataSet(files, {"a": "INT"}, delim="|"),
        CsvDataSet(files, {"a": "INT"}, header=True),
        CsvDataSet(files, {"a": "INT"}, dialect=Dialect(quote="'")),
        CsvDataSet(files, {"a": "INT"}, dialect=Dialect(skip_rows=1)),
        CsvDataSet(files, {"a": "INT", "b": "INT"}),
        CsvDataSet(files, {"b": "INT", "a": "INT"}),
        JsonDataSet(files, {"a": "INT"}),
        JsonDataSet(files, {"a": "INT"}, format="array"),
        SqlQueryDataSet("select 1"),
        SqlQueryDataSet("select 2"),
        SqlQueryDataSet("x", made("def f(conn, fs): return 'select 1'")),
        SqlQueryDataSet("x", made("def f(conn, fs): return 'select 2'")),
        ArrowTableDataSet(pa.table({"a": [1]})),
        ArrowTableDataSet(pa.table({"a": [2]})),
        PandasDataSet(pd.DataFrame({"a": [1]})),
        PandasDataSet(pd.DataFrame({"a": [2]})),
    ]
    assert len({digest_of(dataset) for dataset in datasets}) == len(datasets)


def test_what_was_found_out_about_a_dataset_does_not_count(files: list[str], tmp_path: Path) -> None:
    fresh, known = ParquetDataSet(files), ParquetDataSet(files)
    assert known.num_rows == 3
    assert digest_of(known) == digest_of(fresh)
    by_pattern = ParquetDataSet(str(tmp_path / "*.parquet"))
    before = digest_of(by_pattern)
    assert by_pattern.num_files == 3
    assert digest_of(by_pattern) == before
    chunks = pa.concat_tables([pa.table({"a": [1]}), pa.table({"a": [2]})])
    assert digest_of(ArrowTableDataSet(chunks)) == digest_of(ArrowTableDataSet(chunks.combine_chunks()))


def test_what_can_not_be_hashed_is_like_nothing_else(ctx: RuntimeContext) -> None:
    def task() -> Task:
        one = Task(ctx, [], [TOPLEVEL])
        one.__dict__["stream"] = sys.stdout
        return one

    assert fingerprint(task()) != fingerprint(task())
    one, prints = task(), Fingerprinter()
    assert fingerprint(one, prints) == fingerprint(one, prints)


def test_thousands_of_views_upon_each_other(ctx: RuntimeContext, files: list[str]) -> None:
    prints = Fingerprinter()
    task: Task = DataSourceTask(ctx, ParquetDataSet(files), [TOPLEVEL])
    prints.of_task(task)
    for _ in range(3000):
        task = MergeDataSetsTask(ctx, [task], [TOPLEVEL])
        prints.of_task(task)
    assert prints.of_task(sql(ctx, task))


def test_a_thousand_consumers_share_one_look_at_their_inputs(
    ctx: RuntimeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [Task(ctx, [], [PartitionInfo(n, 1000)]) for n in range(1000)]
    group = Dependencies(sources)
    consumers = [Task(ctx, group, [PartitionInfo(n, 1000)]) for n in range(1000)]
    prints = Fingerprinter()
    for one in sources:
        prints.of_task(one)
    looks: list[int] = []
    really = Fingerprinter._content_of
    monkeypatch.setattr(Fingerprinter, "_content_of", lambda self, task: looks.append(1) or really(self, task))
    assert len({prints.of_task(one) for one in consumers}) == 1000
    assert len(looks) == 1000
