"""What the commands about Slurm jobs do, from their arguments to their exit codes: ask, decide in pure code elsewhere, print."""

import sys
from collections.abc import Mapping

from smallpond_mpi.cli import collect, slurm
from smallpond_mpi.common import SmallpondError
from smallpond_mpi.config import resolve
from smallpond_mpi.execution.arrays import read_collected, read_element


def data_root_of(given: str | None, env: Mapping[str, str]) -> str:
    """The data root of a command: the option, else what jobs started here would have."""
    named = {name: value for name, value in env.items() if given is None or name != "SP_DATA_ROOT"}
    return resolve({"data_root": given}, named).resolved_data_root()


def collect_array(array: str, data_root: str | None, env: Mapping[str, str]) -> int:
    """The exit code: 0 if all is collected, 1 if elements are missing, 2 if something is wrong with the question."""
    try:
        paths, record = collect.load(data_root_of(data_root, env), array.partition("_")[0])
        told = {index: read_element(paths, index) for index in record.indices}
        records = {index: one for index, one in told.items() if one is not None}
        standing = collect.standing(record.indices, records, paths.array, _queue())
        if len(standing.done) < len(record.indices):
            for line in collect.describe(standing, paths.array, record):
                print(line)
            return 1
        before = read_collected(paths)
        made = collect.collect(paths, standing.done)
    except SmallpondError as error:
        sys.stderr.write(f"smallpond-mpi collect: {error}\n")
        return 2
    for one in made:
        print(f"{one.path}: {one.files} files, {one.bytes:,} bytes of {one.elements} elements")
    for path in before:
        print(f"{path}: was collected before")
    if not made and not before:
        print(f"array {paths.array}: its {len(record.indices)} elements have succeeded, and wrote nothing to collect")
    return 0


def _queue() -> list[slurm.QueuedJob]:
    """What Slurm knows; nothing, with a line that says so, where it can't be asked: what elements told themselves remains."""
    try:
        return slurm.my_jobs()
    except slurm.SlurmError as error:
        sys.stderr.write(f"smallpond-mpi: {error}; going by what the elements have told\n")
        return []
