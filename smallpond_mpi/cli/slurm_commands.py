"""What the commands about Slurm jobs do, from their arguments to their exit codes: ask, decide in pure code elsewhere, print."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from smallpond_mpi.cli import collect, slurm, status, submit
from smallpond_mpi.common import InvalidArgument, SmallpondError
from smallpond_mpi.config import resolve
from smallpond_mpi.execution.arrays import read_collected, read_element
from smallpond_mpi.execution.context import JobId
from smallpond_mpi.execution.paths import JobPaths, job_uuid, submitted_script
from smallpond_mpi.io.filesystem import whole_file

POLL_SECS = 2.0


def data_root_of(given: str | None, env: Mapping[str, str]) -> str:
    """The data root of a command: the option, else what jobs started here would have."""
    named = {name: value for name, value in env.items() if given is None or name != "SP_DATA_ROOT"}
    return resolve({"data_root": given}, named).resolved_data_root()


def collect_array(array: str, data_root: str | None, env: Mapping[str, str]) -> int:
    """The exit code: 0 if all is collected, 1 if elements are missing or wrote what can no longer be collected, 2 if something is wrong with the question."""
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
    left_over = list(collect.left_over(paths, standing.done))
    for line in left_over:
        print(line)
    return 1 if left_over else 0


def submit_script(words: Sequence[str], env: Mapping[str, str]) -> int:
    """The exit code: 0 if the job was submitted (with --wait: if it succeeded), 2 if something is wrong with the request."""
    try:
        request = submit.parse(words)
        if not os.path.isfile(request.script):
            raise InvalidArgument(f"there is no script {request.script} (looked in {os.getcwd()})")
        data_root = data_root_of(request.data_root, env)
        job_id = env.get("SP_JOBID") or str(JobId.new())
        text = submit.render(request, sys.executable, data_root, job_id, env)
        print(text)
        if request.is_dry:
            return 0
        path = submitted_script(data_root, job_id)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole_file(path) as file:
            file.write(text.encode())
        slurm_id = slurm.call(["sbatch", "--parsable", path], outside_step(env)).strip().partition(";")[0]
        for line in _where(request, slurm_id, path, data_root, job_id):
            print(line, flush=True)
        return _wait(slurm_id) if request.waits else 0
    except SmallpondError as error:
        sys.stderr.write(f"smallpond-mpi submit: {error}\n")
        return 2


def _where(request: submit.Request, slurm_id: str, path: str, data_root: str, job_id: str) -> Iterator[str]:
    """What was submitted, and where everything goes."""
    fields = slurm.shown_job(slurm_id)
    yield f"submitted: Slurm job {slurm_id}"
    yield f"  script   {path}"
    yield f"  log      {submit.log_of(fields, request.is_array)}"
    if request.is_array:
        yield f"  collect  smallpond-mpi collect {slurm_id} --data-root {data_root}"
        return
    yield f"  job      {JobPaths(data_root, str(job_uuid(job_id))).root} (logs of ranks and tasks, journal, status)"
    yield f"  status   smallpond-mpi status {slurm_id} --data-root {data_root}"
    yield f"  again    SP_JOBID={job_id} takes it up where it was"


def _wait(slurm_id: str) -> int:
    """Wait until Slurm runs none of it any more; 0 if all of it has succeeded. (`sbatch --wait` looks every ten seconds only.)"""
    while True:
        jobs = [job for job in slurm.my_jobs() if status.is_meant(job, slurm_id)]
        if all(job.state in slurm.OVER for job in jobs):
            break
        time.sleep(POLL_SECS)
    for job in jobs:
        print(status.describe_queued(job))
    if not jobs:
        print(f"slurm job {slurm_id} is over, and Slurm has forgotten it")
    return 0 if jobs and all(job.state == "COMPLETED" for job in jobs) else 1


def outside_step(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without what says that this process is part of a Slurm job: sbatch would take options from it."""
    return {name: value for name, value in env.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def show_status(wanted: str | None, data_root: str | None, env: Mapping[str, str]) -> int:
    """The exit code: 0, or 1 if a job was asked for that nobody knows."""
    try:
        root = data_root_of(data_root, env)
    except SmallpondError as error:
        sys.stderr.write(f"smallpond-mpi status: {error}\n")
        return 2
    lines = status.lines(wanted, status.all_jobs(root, status.now()), _queue())
    for line in lines:
        print(line)
    if not lines:
        what = "no job" if wanted is None else f"nothing of job {wanted}"
        sys.stderr.write(f"smallpond-mpi status: {what} below data root {root}, nor does Slurm know of any\n")
    return 0 if lines or wanted is None else 1


def _queue() -> list[slurm.QueuedJob]:
    """What Slurm knows; nothing, with a line that says so, where it can't be asked: what elements told themselves remains."""
    try:
        return slurm.my_jobs()
    except slurm.SlurmError as error:
        sys.stderr.write(f"smallpond-mpi: {error}; going by what lies below the data root\n")
        return []
