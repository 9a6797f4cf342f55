"""The command `smallpond-mpi`. A rank other than 0 serves and never learns what the command was; the rest is in `app`, which loads typer."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from smallpond_mpi import forgotten
from smallpond_mpi.cli import watched
from smallpond_mpi.cli.ranks import send_home, serve
from smallpond_mpi.execution.model import SCHEDULER_RANK
from smallpond_mpi.platform import slurm
from smallpond_mpi.platform.binding import launched_by_mpi, launched_rank

IN_RANKS = ("run", "demo", "doctor")
"""Commands that are jobs: started by a launcher, all ranks but one work for it."""


def main() -> NoReturn:
    """Entry of the command."""
    forgotten.unwatch()
    arguments = sys.argv[1:]
    is_job = arguments[:1] != [] and arguments[0] in IN_RANKS
    rank = launched_rank(os.environ) if is_job else None
    if is_job:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Slurm's warning may come before anybody can answer it
    if rank not in (None, SCHEDULER_RANK):
        if arguments[0] == "doctor":
            from smallpond_mpi.cli.doctor import talk

            talk.serve(os.environ)
        serve(os.environ)
    pid = os.getpid()
    if rank == SCHEDULER_RANK:
        watched.mark(watched.BEGUN, os.environ)
    try:
        _command(arguments)
    except SystemExit as leaving:
        if rank == SCHEDULER_RANK and leaving.code in (None, 0) and os.getpid() == pid:
            watched.mark(watched.SUCCEEDED, os.environ)
        raise
    finally:
        if rank == SCHEDULER_RANK and not forgotten.has_arrived() and os.getpid() == pid:
            send_home(os.environ)


def _command(arguments: Sequence[str]) -> NoReturn:
    is_plain = arguments[:1] == ["run"] and len(arguments) > 1 and not arguments[1].startswith("-")
    if is_plain and (launched_by_mpi(os.environ) or not slurm.is_job(os.environ)):
        # without an option of ours, and no ranks to start: a script should not have to wait for typer
        from smallpond_mpi.cli.script import run

        sys.exit(run(arguments[1], arguments[2:], os.environ))
    from smallpond_mpi.cli.app import app

    app(prog_name="smallpond-mpi")
    sys.exit(0)
