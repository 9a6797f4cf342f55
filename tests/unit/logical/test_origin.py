"""Which line of the script an error is about: of a query that several lines made, of data that another line reads."""

import pickle
from collections.abc import Sequence

import pytest

from smallpond_mpi.logical.dataset import DataSet, ParquetDataSet
from smallpond_mpi.logical.node import Context, DataSourceNode, SqlEngineNode
from smallpond_mpi.logical.optimizer import fuse
from smallpond_mpi.logical.origin import asked_at, of_partitions, place_of_both, read_at, read_text

FILTER = "select * from {0} where (\na > 0\n)"
CAST = "select a, cast(b as integer) as c\nfrom {0}"
SUM = "select a + c as d from {0}"


def place_of(*steps: tuple[int, str]) -> str:
    """The place of a query that does steps given as (line, query), the first one first."""
    place, done = "", ""
    for line, query in steps:
        here = f"s.py:{line}"
        place = place_of_both(here, query, place, done) if place else here
        done = query
    return place


def marked(shown: str, part: str, before: str = "") -> str:
    """An error as DuckDB shows it, with a part of a line of the query marked."""
    carets = " " * (len("LINE 3: ") + shown.index(part)) + "^" * len(part)
    return f"Conversion Error: bad\n\nLINE 3: {shown}\n{carets}\nin the query: {before}"


STEPS = place_of((1, FILTER), (2, CAST), (3, SUM))


def test_the_place_is_that_of_the_last_step() -> None:
    assert STEPS == "s.py:3"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (marked("select a, cast(b as integer) as c", "cast(b as integer)"), "what failed was asked for at s.py:2"),
        (marked("... cast(b as integer) as...", "cast(b as integer)"), "what failed was asked for at s.py:2"),
        (marked("select a + c as d from (", "a + c"), ""),  # of the place itself
        (marked("a > 0", "a > 0"), "what failed was asked for at s.py:1"),
        (marked("select a", "a"), "one query did what was asked for at s.py:1, s.py:2 and s.py:3"),
        (marked("select nothing", "nothing"), "one query did what was asked for at s.py:1, s.py:2 and s.py:3"),
        ("Out of Range Error: Overflow", "one query did what was asked for at s.py:1, s.py:2 and s.py:3"),
    ],
)
def test_of_several_steps_the_one_that_is_marked_is_named_or_all(error: str, says: str) -> None:
    assert asked_at(STEPS, error) == says


def test_steps_of_one_line_are_no_news() -> None:
    place = place_of((7, FILTER), (7, CAST))
    assert (place, asked_at(place, "any error")) == ("s.py:7", "")
    assert asked_at("s.py:7", "any error") == asked_at(None, "any error") == ""


def test_fused_nodes_know_their_steps_and_tasks_carry_none_of_it() -> None:
    ctx = Context()
    source = DataSourceNode(ctx, ParquetDataSet(["/a.parquet"]))
    inner = SqlEngineNode(ctx, (source,), CAST)
    outer = SqlEngineNode(ctx, (inner,), SUM)
    fused = fuse(outer, inner)
    assert fused is not None
    assert asked_at(fused.location, "any error") == (
        f"one query did what was asked for at {inner.location} and {outer.location}"
    )
    assert b"select" not in pickle.dumps(fused.location)
    assert type(pickle.loads(pickle.dumps(fused.location))) is str


def sources() -> "Sequence[tuple[str, DataSet]]":
    return [
        ("s.py:1", ParquetDataSet(["/data/a.parquet", "/data/b.parquet"])),
        ("s.py:2", ParquetDataSet(["/data/c.parquet"])),
    ]


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        ("can't read '/data/c.parquet' as Parquet: ZSTD", ["s.py:2"]),
        ('Failed to read file "/data/b.parquet": it isn\'t whole', ["s.py:1"]),
        ("schemas of '/data/a.parquet' and '/data/c.parquet' differ", ["s.py:1", "s.py:2"]),
        ("can't read '/data/a.parquet.old'", []),
        ("some text in 'quotes'", []),
    ],
)
def test_lines_that_read_the_files_which_are_named(error: str, lines: list[str]) -> None:
    assert read_at(error, sources()) == lines


def test_an_error_of_no_file_is_that_of_all_sources_if_it_must_be_of_one() -> None:
    assert read_at("Out of buffer", sources(), all_if_unnamed=True) == ["s.py:1", "s.py:2"]
    assert read_at("can't read '/job/staging/x'", sources(), all_if_unnamed=True) == []


def test_a_line_that_is_known_is_not_said_again() -> None:
    assert read_text(["s.py:1"], "s.py:1") == read_text([], "s.py:1") == ""
    assert read_text(["s.py:1", "s.py:2"], "s.py:3") == "the data are read at s.py:1 and s.py:2"


@pytest.mark.parametrize(
    "advice",
    ["", " (union_by_name=True fills missing columns with NULL)", "; read what has other types apart, and cast it"],
)
def test_files_of_the_job_itself_are_partitions(advice: str) -> None:
    text = f"schemas of '/job/1.parquet' and '/job/2.parquet' differ: 'a' is int64 and double{advice}"
    assert of_partitions(text) == (
        "the columns of two partitions differ: 'a' is int64 and double; make all partitions with the same columns and types"
    )
