"""The commands of `smallpond-mpi` and their options."""

import os
import sys
from typing import Annotated

import typer

import smallpond_mpi
from smallpond_mpi.cli import script as scripts
from smallpond_mpi.cli import slurm_commands
from smallpond_mpi.cli.doctor.examine import examine
from smallpond_mpi.cli.launch import NoLauncher, launch, tasks_of_allocation
from smallpond_mpi.common import SmallpondError
from smallpond_mpi.demo.job import run_demo, what_is_missing
from smallpond_mpi.platform.binding import launched_by_mpi

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="DataFrames and task graphs over Parquet, CSV and JSON, scheduled over MPI.",
)

Ranks = Annotated[
    int | None, typer.Option("-n", min=1, help="Start on this many ranks, under the mpirun of this environment's MPI.")
]
Ulfm = Annotated[
    bool,
    typer.Option("--ulfm/--no-ulfm", help="Let Open MPI 5 go on when a rank other than 0 dies.", show_default=True),
]
DataRoot = Annotated[
    str | None,
    typer.Option(
        "--data-root", metavar="DIR", help="The jobs' data root (default: SP_DATA_ROOT, ~/.smallpond_mpi/data)."
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"smallpond-mpi {smallpond_mpi.__version__}")
        raise typer.Exit


@app.callback()
def _command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    script: Annotated[str, typer.Argument(help="The Python script. What follows it belongs to the script.")],
    args: Annotated[list[str] | None, typer.Argument(help="The script's own arguments.")] = None,
    n: Ranks = None,
    ulfm: Ulfm = True,
) -> None:
    """Run a script, on several ranks with -n or under a launcher, otherwise in this process."""
    n = _ranks_of_job(n)
    if _starts_ranks(n):
        if not os.path.exists(script) or os.path.isdir(script):  # once, instead of once a rank
            sys.exit(scripts.run(script, [], {}))
        _launch(n, ["run", script, *(args or [])], ulfm)
    sys.exit(scripts.run(script, args or [], os.environ))


@app.command()
def demo(
    n: Ranks = None,
    keep: Annotated[
        str | None, typer.Option(metavar="DIR", help="Keep data and results in this directory. All ranks must see it.")
    ] = None,
    ulfm: Ulfm = True,
) -> None:
    """Compute the delays of New York's airlines in 2013 from real data, and check the result against DuckDB."""
    missing = what_is_missing()
    if missing is not None:
        sys.exit(missing)
    n = _ranks_of_job(n)
    if _starts_ranks(n):
        _launch(n, ["demo", *(["--keep", keep] if keep is not None else [])], ulfm)
    sys.exit(run_demo(keep, os.environ))


@app.command(name="collect")
def collect_array(
    array: Annotated[str, typer.Argument(metavar="ARRAYJOB", help="The id that sbatch printed for the array.")],
    data_root: DataRoot = None,
) -> None:
    """Make one dataset of what the elements of a Slurm job array wrote; or name those that are missing or failed, and how to run just these again."""
    sys.exit(slurm_commands.collect_array(array, data_root, os.environ))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": ["--help"]}
)
def submit(
    words: Annotated[
        list[str],
        typer.Argument(metavar="script.py [OPTIONS OF SBATCH] [--dry-run] [--wait] [--data-root DIR] [-- ARGS]"),
    ],
) -> None:
    """Submit a script as a Slurm job that runs it on all its tasks: options are those of sbatch, as in sbatch (-N2 --ntasks-per-node=1 -c16 -t 2:00:00).

    The batch script is shown; --dry-run leaves it at that. --wait waits for the job's end, and has its exit code.
    """
    sys.exit(slurm_commands.submit_script(words, os.environ))


@app.command()
def status(
    job: Annotated[str | None, typer.Argument(help="An id of ours, or Slurm's (also of an array, or 40_3).")] = None,
    data_root: DataRoot = None,
) -> None:
    """Tell what becomes of a job, or of the last ones: from what they leave below the data root, and from Slurm."""
    sys.exit(slurm_commands.show_status(job, data_root, os.environ))


@app.command()
def doctor(
    n: Ranks = None,
    data_root: DataRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    ulfm: Ulfm = True,
) -> None:
    """Show what each rank of a launch has, and check what jobs need: world, placement, memory, messages, the data root. Exit code 1 if something fails."""
    n = _ranks_of_job(n)
    if _starts_ranks(n):
        options = [*(["--data-root", data_root] if data_root is not None else []), *(["--json"] if as_json else [])]
        _launch(n, ["doctor", *options], ulfm)
    try:
        root = slurm_commands.data_root_of(data_root, os.environ)
    except SmallpondError as error:
        sys.exit(f"smallpond-mpi doctor: {error}")
    sys.exit(examine(root, os.environ, as_json))


def _ranks_of_job(n: int | None) -> int | None:
    """As many ranks as were asked for, else as the Slurm job has tasks, unless a step of it runs this already."""
    return tasks_of_allocation(os.environ) if n is None and not launched_by_mpi(os.environ) else n


def _starts_ranks(n: int | None) -> bool:
    if launched_by_mpi(os.environ):
        if n is not None:
            sys.stderr.write(f"smallpond-mpi: a launcher has started the ranks: -n {n} says nothing here\n")
        return False
    return n is not None and n > 1


def _launch(n: int | None, arguments: list[str], ulfm: bool) -> None:
    try:
        launch(n or 1, arguments, os.environ, ulfm=ulfm)
    except NoLauncher as error:
        sys.exit(f"smallpond-mpi: {error}")
