"""What the demo prints is read on terminals of 80 columns."""

import io
from pathlib import Path

from rich.console import Console

from smallpond_mpi.demo.check import expected
from smallpond_mpi.demo.data import extract_csv
from smallpond_mpi.demo.job import PLAIN_WIDTH, table_of


def test_the_airlines_fit_into_80_columns(tmp_path: Path) -> None:
    found = expected(extract_csv(str(tmp_path)))
    assert len(found) == 16
    text = io.StringIO()
    Console(file=text, width=PLAIN_WIDTH).print(table_of(found))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= PLAIN_WIDTH
    assert "…" not in text.getvalue()
    for row in found:
        (line,) = [line for line in lines if line.startswith(row["airline"])]
        assert f"{row['flights']:,}" in line
        assert f"{row['mean_arrival_delay']:.1f}" in line
