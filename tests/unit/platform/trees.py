"""Machines as text: what discovery reads of one, in one file, and the way back to a directory that it can be read from.

`python -m tests.unit.platform.trees > tests/unit/platform/trees/NAME.txt` captures the machine, and the rank, that it runs on.
"""

import glob
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smallpond_mpi.forgotten import arrived
from smallpond_mpi.platform import discover

TREES = Path(__file__).parent / "trees"
LAUNCH = re.compile(r"SLURM|OMPI_COMM|PMI|PMIX|MPI_LOCAL|CUDA|ROCR|HIP|GPU_DEVICE")
SECRETS = re.compile(r"PATH|KEY|TOKEN|SECRET|NAMESPACE|SECURITY|SERVER|ADDR|CONF|USER|DIR|BIND|HOST$|PORT")
CONTENT = {
    "/proc/self/status": "Cpus_allowed_list",
    "/proc/meminfo": "Mem",
    "/proc/self/cgroup": "memory|cpuset|0::",
    "/proc/self/mountinfo": " - cgroup2? .*(memory|cpuset|cgroup2)",
}
"""Of these files only lines that match."""


@dataclass
class Machine:
    """A machine by its files, and the variables of a process on it."""

    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    def write(self, root: Path) -> str:
        """Make it a directory; what is to be given as `root`."""
        for path, text in self.files.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return str(root)


def capture(env: Mapping[str, str]) -> Machine:
    """This machine, and this process."""
    paths = [
        "/proc/self/status",
        "/proc/meminfo",
        "/proc/self/cgroup",
        "/proc/self/mountinfo",
        f"{discover.CPUS}/online",
    ]
    paths += glob.glob(f"{discover.NODES}/node*/cpulist")
    paths += [f"{discover.CPUS}/cpu{cpu}/topology/thread_siblings_list" for cpu in discover.allowed_cpus()]
    for controller, names in (("memory", discover.MEMORY_FILES), ("cpuset", discover.CPUSET_FILES)):
        paths += [f"{directory}/{name}" for directory in discover._cgroups(controller, "") for name in names]
    machine = Machine(env={name: env[name] for name in sorted(env) if LAUNCH.match(name) and not SECRETS.search(name)})
    for path in dict.fromkeys(paths):
        if os.path.exists(path):
            lines = Path(path).read_text().splitlines(keepends=True)
            machine.files[path] = "".join(line for line in lines if re.search(CONTENT.get(path, ""), line))
    return machine


def dump(machine: Machine, title: str) -> str:
    """A machine as one text."""
    env = "".join(f"{name}={value}\n" for name, value in machine.env.items())
    return f"{title}\n=== env\n{env}" + "".join(f"=== {path}\n{text}" for path, text in machine.files.items())


def load(name: str) -> Machine:
    """A captured machine."""
    _, env, *files = re.split(r"^=== ", (TREES / f"{name}.txt").read_text(), flags=re.MULTILINE)
    machine = Machine(env=dict(line.split("=", 1) for line in env.splitlines()[1:]))
    for part in files:
        path, _, text = part.partition("\n")
        machine.files[path] = text
    return machine


if __name__ == "__main__":
    arrived()  # a rank that is only looked at
    print(
        dump(capture(os.environ), f"captured: {' '.join(sys.argv[1:])}; {platform.system()} {platform.release()}"),
        end="",
    )
