"""docs/task_contract.md has a row for each name of smallpond's Task, and each row's test exists."""

import ast
import re
from pathlib import Path

import pytest

from smallpond_mpi.execution.task import Task

HERE = Path(__file__).parent
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (test_\w+\.py)::(test_\w+) \|$")
NAMES = (HERE / "seed_names.txt").read_text().split()
PARAMETERS = {"output_path"}
"""Of the constructor alone: what was given as output_path is the attribute output_root."""


def rows() -> dict[str, tuple[str, str, str]]:
    lines = (HERE.parents[1] / "docs" / "task_contract.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| `")]
    found = [ROW.match(line) for line in table]
    assert all(found), f"not a row: {[line for line, match in zip(table, found, strict=True) if not match]}"
    named = {match[1]: (match[2], match[3], match[4]) for match in found if match}
    assert len(named) == len(table), "a name has two rows"
    return named


def test_the_table_has_every_name_of_the_seed_page_and_no_other() -> None:
    assert len(NAMES) == len(set(NAMES)) == 78
    assert set(rows()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_there_and_its_test_exists(name: str) -> None:
    what, file, test = rows()[name]
    assert len(what) > 10
    tests = {node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert test in tests, f"{file} has no test {test}"
    if name not in PARAMETERS:
        planned = {"ctx", "id"}  # set by the constructor; everything else has its default on the class
        assert hasattr(Task, name) or name in planned
