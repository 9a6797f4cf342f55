"""Starts real `mpirun`s for tests: the launcher beside the running interpreter, with what it needs as root and on few cores."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

OVERSUBSCRIBE = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
"""Open MPI refuses root, and more ranks than cores, without these; MPICH doesn't know them."""


def launcher() -> Path | None:
    """The mpirun of this environment, None where it has no MPI."""
    found = Path(sys.executable).parent / "mpirun"
    return found if found.exists() else None


def is_open_mpi() -> bool:
    """Whether that mpirun is Open MPI's (its options differ from MPICH's)."""
    found = launcher()
    return found is not None and (found.parent / "ompi_info").exists()


def clean_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with the launcher's needs, and `env` over it.

    Open MPI's session directory is named by mpirun's process id, and stays when mpirun is killed; one that gets the same id later fails over
    it (213). So each launch has a place of its own for it.
    """
    sessions = tempfile.mkdtemp(prefix="sp-")  # short: sockets lie in it, whose paths may have 107 characters
    atexit.register(shutil.rmtree, sessions, ignore_errors=True)
    return {**os.environ, **OVERSUBSCRIBE, "PRTE_MCA_prte_tmpdir_base": sessions, **(env or {})}


def mpirun_command(n: int, args: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The command line that starts `args` on n ranks."""
    found = launcher()
    assert found is not None, f"no mpirun beside {sys.executable}"
    return [str(found), *options, "-n", str(n), *args]


def mpirun(
    n: int,
    args: Sequence[str],
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
    options: Sequence[str] = (),
    cwd: Path | str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `args` on n ranks to its end. Past `timeout` seconds the launcher's whole session is killed and TimeoutExpired raised."""
    command = mpirun_command(n, args, options)
    process = subprocess.Popen(
        command,
        env=clean_env(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise subprocess.TimeoutExpired(command, timeout, out, err) from error
    return subprocess.CompletedProcess(command, process.returncode, out, err)
