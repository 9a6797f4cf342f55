"""The 22 queries of TPC-H on DataFrames give DuckDB's answers, whatever the number of ranks and however rows are brought together."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.feather
import pytest

from benchmarks.tpch import answers, data
from benchmarks.tpch.queries import QUERIES
from tests.launch import clean_env, mpirun_command

PROGRAM = Path(__file__).with_name("program.py")
NO_BROADCAST = ("ONE_TASK_BYTES=1", "LARGEST_BROADCAST_BYTES=0", "INLINED_BYTES=0")
BROADCAST = ("ONE_TASK_BYTES=1", "SHUFFLE_COST=1000000", "INLINED_BYTES=0")

Expected = dict[str, pa.Table]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tpch")


class Data:
    """The tables at one scale factor, and DuckDB's answers on them."""

    def __init__(self, scale: float, cache: Path) -> None:
        self.scale = scale
        tables = data.tables(scale, cache)
        self.files = cache / f"{scale}.json"
        self.files.write_text(json.dumps(tables))
        with duckdb.connect(config={"threads": 1}) as conn:
            answers.create_views(conn, tables)
            self.expected: Expected = {name: conn.sql(answers.sql_of(name, scale)).to_arrow_table() for name in QUERIES}


@pytest.fixture(scope="session")
def tenth(cache: Path) -> Iterator[Data]:
    return Data(0.1, cache)


@pytest.fixture(scope="session")
def hundredth(cache: Path) -> Iterator[Data]:
    return Data(0.01, cache)


def differences(tables: Data, ranks: int, place: Path, settings: Sequence[str] = ()) -> list[str]:
    """What is different from DuckDB's answers, query by query."""
    command = [sys.executable, str(PROGRAM), str(tables.files), str(tables.scale), str(place), *settings]
    started = command if ranks == 1 else mpirun_command(ranks, command)
    run = subprocess.run(started, env=clean_env(), capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    found = []
    for name, expected in tables.expected.items():
        ours = pyarrow.feather.read_table(place / f"{name}.arrow", memory_map=False)
        different = answers.difference(ours, expected, answers.sql_of(name, tables.scale))
        found += [] if different is None else [f"{name}: {different}"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(3, marks=pytest.mark.mpi), pytest.param(4, marks=pytest.mark.mpi)])
def test_answers_are_duckdbs(tenth: Data, ranks: int, tmp_path: Path) -> None:
    assert differences(tenth, ranks, tmp_path) == []


@pytest.mark.slow
@pytest.mark.mpi
def test_answers_when_everything_is_shuffled(hundredth: Data, tmp_path: Path) -> None:
    assert differences(hundredth, 3, tmp_path, NO_BROADCAST) == []


@pytest.mark.slow
def test_answers_when_one_side_of_each_join_is_broadcast(hundredth: Data, tmp_path: Path) -> None:
    assert differences(hundredth, 1, tmp_path, BROADCAST) == []


def test_no_answer_is_empty(tenth: Data) -> None:
    empty = [name for name, table in tenth.expected.items() if not table.num_rows]
    assert empty == [], "two empty answers are equal whatever made them"


def test_a_wrong_answer_is_found(tenth: Data) -> None:
    table = tenth.expected["q01"]
    query = answers.sql_of("q01", 0.1)
    assert answers.difference(table, table, query) is None
    assert "rows instead of" in (answers.difference(table.slice(1), table, query) or "")
    assert "columns" in (answers.difference(table.drop_columns(["avg_qty"]), table, query) or "")
    other_sum = table.set_column(2, "sum_qty", pa.array([1] * table.num_rows))
    assert "a row" in (answers.difference(other_sum, table, query) or "")
    backwards = table.take(pa.array(range(table.num_rows - 1, -1, -1)))
    assert "row 0 has" in (answers.difference(backwards, table, query) or "")
