"""The demo as one job: data, pipeline, check, and what the user sees of it."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import smallpond_mpi
from smallpond_mpi.common import OutputExists
from smallpond_mpi.demo import check, data, flights
from smallpond_mpi.platform.binding import launched_by_mpi

MARKER = ".made_by_smallpond_mpi_demo"
"""In the output directory of a demo: the next one may replace it."""
PLAIN_WIDTH = 80
COLUMNS = {
    "airline": ("airline", "{}"),
    "flights": ("flights", "{:,}"),
    "cancelled": ("cancelled", "{:,}"),
    "mean_departure_delay": ("depart-\nure", "{:.1f}"),
    "mean_departure_delay_in_bad_weather": ("in bad\nweather", "{:.1f}"),
    "mean_arrival_delay": ("arrival", "{:.1f}"),
}
"""Column of the result → its heading and format."""


def what_is_missing() -> str | None:
    """Why the demo can't run here, or None."""
    try:
        data.package_data()
    except data.NoFlights as error:
        return f"smallpond-mpi demo: {error}"
    return None


def run_demo(keep: str | None, env: Mapping[str, str]) -> int:
    """Make the data, run the pipeline, check its result; the exit code. Under a launcher this is rank 0."""
    with _directory(keep, env) as directory:
        output = _fresh_output(directory)
        csv_files = _compute(directory, output)
        # Not before MPI has started: with it loaded, MPICH 5.0.2's exchange of addresses over Slurm's pmi2 was seen to fail each time.
        import pyarrow.dataset as ds

        found = check.in_order(ds.dataset(f"{output}/airlines", format="parquet").to_table())
        wrong = check.differences(found, check.expected(csv_files))
        written = ds.dataset(f"{output}/flights", format="parquet").count_rows()
        if written != sum(row["flights"] for row in found):
            wrong.append(
                f"flights: {written:,} rows were written, the airlines have {sum(row['flights'] for row in found):,}"
            )
        _show(found, wrong, output, is_kept=keep is not None, is_terminal=_is_terminal(env))
    return 1 if wrong else 0


def _compute(directory: str, output: str) -> dict[str, str]:
    """Run the pipeline; the CSV files that its data came from."""
    session = smallpond_mpi.init(data_root=os.path.join(directory, "jobs"), job_name="demo")
    try:
        csv_files = data.extract_csv(directory)
        data.write_parquet(csv_files, os.path.join(directory, "data"))
        session.wait(*flights.pipeline(session, os.path.join(directory, "data"), output))
    finally:
        session.shutdown()  # before the directory goes
    return csv_files


@contextmanager
def _directory(keep: str | None, env: Mapping[str, str]) -> Iterator[str]:
    """Where everything goes: the directory to be kept, or one that is removed. The ranks of all nodes must see it."""
    if keep is not None:
        os.makedirs(keep, exist_ok=True)
        yield os.path.abspath(keep)
        return
    has_many_nodes = env.get("SLURM_JOB_NUM_NODES", "1") != "1"
    with tempfile.TemporaryDirectory(prefix="smallpond_mpi_demo_", dir=os.getcwd() if has_many_nodes else None) as made:
        yield made


def _fresh_output(directory: str) -> str:
    """The output directory, without what an earlier demo has left there.

    Raises:
        OutputExists: it is not a demo's.
    """
    output = os.path.join(directory, "output")
    marker = os.path.join(output, MARKER)
    if os.path.exists(output):
        if not os.path.exists(marker):
            raise OutputExists(f"{output} exists, and no demo has made it: give another directory by --keep")
        shutil.rmtree(output)
    os.makedirs(output)
    with open(marker, "x"):
        return output


def _is_terminal(env: Mapping[str, str]) -> bool:
    """Whether the user reads this on a terminal. Under a launcher that can't be known: Open MPI gives each rank a terminal of its own."""
    return sys.stdout.isatty() and not launched_by_mpi(env)


def _show(found: list[dict[str, Any]], wrong: list[str], output: str, *, is_kept: bool, is_terminal: bool) -> None:
    console = Console(force_terminal=is_terminal, width=None if is_terminal else PLAIN_WIDTH)
    console.print(table_of(found))
    where = "" if is_kept else " (removed now; --keep DIR keeps it)"
    console.print(f"output: {output}/flights and {output}/airlines, Parquet{where}", soft_wrap=True, highlight=False)
    if not wrong:
        console.print(f"check: equal to DuckDB's answer, {len(found)} rows of {len(found[0])} columns", highlight=False)
    for line in wrong:
        console.print(f"DIFFERENT: {line}", style="bold red", soft_wrap=True, highlight=False)


def table_of(found: list[dict[str, Any]]) -> Table:
    """The airlines, to be read: as wide as the longest name needs, which is less than PLAIN_WIDTH."""
    table = Table(
        title="Flights from New York in 2013, and their mean delays in minutes",
        box=SIMPLE_HEAD,
        show_edge=False,  # both would take columns that 80 don't have to spare
        pad_edge=False,
    )
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="left" if heading == "airline" else "right", no_wrap=True)
    for row in found:
        shown = ((row[name], pattern) for name, (_, pattern) in COLUMNS.items())
        table.add_row(*("-" if value is None else pattern.format(value) for value, pattern in shown))
    return table
