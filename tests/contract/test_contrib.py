"""The ready-made nodes of smallpond_mpi.contrib, in one plan."""

from pathlib import Path

import pytest

from tests.contract.started import HOWS, facts_of


@pytest.mark.parametrize("how", [how if how == "python" else pytest.param(how, marks=pytest.mark.mpi) for how in HOWS])
def test_copies_are_the_same_and_the_first_rows_are_logged(how: str, tmp_path: Path) -> None:
    told = facts_of(how, "ready_made", tmp_path).told
    assert told["rows"] == [{"a": i, "b": f"row {i}"} for i in range(100)]
    assert told["nothing"] == ["a", "b"]
    assert told["left"] == ["ArrowStreamTask.5"], "no staging is left in the user's directory"
    assert told["status"] == "success\n"
    assert not {"staging", "temp"} & set(told["job"])
    logged = [f"row {i}" for i in range(100) if f"row {i}\n" in told["log"]]
    assert logged == ["row 0", "row 1", "row 2", "row 50", "row 51", "row 52"]
