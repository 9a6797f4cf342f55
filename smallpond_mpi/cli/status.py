"""`smallpond-mpi status`: what becomes of jobs, from what they leave below the data root and from what Slurm says. Reads only."""

import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from smallpond_mpi.cli.slurm import OVER, QueuedJob
from smallpond_mpi.execution.journal import epochs_of
from smallpond_mpi.execution.lease import PERIOD_SECS, read_owner
from smallpond_mpi.execution.paths import JobPaths, job_uuid
from smallpond_mpi.platform import arrays
from smallpond_mpi.platform.arrays import Element

COUNTS = re.compile(r"^\S+ \S+ (\d[\d,]* of \d[\d,]* tasks .*)")
TAIL_BYTES = 64 * 1024
SHOWN_JOBS = 20


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as its directory shows it. `state` is running, success, failure, or ended early; `slurm` the Slurm job that ran it last; `again` what takes it up."""

    id: str
    root: str
    state: str
    why: str
    runs: int
    changed: float
    progress: str
    owner: str
    slurm: str
    slurm_ids: frozenset[str]
    again: str


def look_at(data_root: str, job: str, now: float) -> JobState | None:
    """One job of the data root, None if there is none of this id."""
    paths = JobPaths(data_root, job)
    runs = len(epochs_of(paths))
    if not runs and not os.path.exists(paths.status):
        return None
    owner, _ = read_owner(paths.owner)
    beat = _changed(paths.owner)
    said = _text(paths.status).strip()
    word, _, why = said.partition(": ")
    if owner is not None:
        # A lease that is released is empty; one that nobody has renewed is of a process that was killed.
        is_alive = now - beat < 3 * PERIOD_SECS
        state, why = ("running", "") if is_alive else ("ended early", "it was killed, or its node was lost")
    else:
        state = word or "ended early"
    slurm = slurm_of(paths)
    ids, shown, again = {slurm.get("job", "")}, slurm.get("job", ""), f"start the script with SP_JOBID={job}"
    if slurm.get("array"):
        element = Element(slurm["array"], int(slurm["index"]))
        first = Element(
            slurm.get("of") or slurm["array"], element.index
        )  # it may have run again in an array of its own
        ids |= {element.array, str(element), first.array, str(first)}
        shown, again = str(element), arrays.again(first)
    changed = max(_changed(paths.status), beat, _changed(paths.scheduler_log))
    where = str(owner) if owner is not None else ""
    progress = last_counts(_tail(paths.scheduler_log))
    return JobState(job, paths.root, state, why, runs, changed, progress, where, shown, frozenset(ids - {""}), again)


def slurm_of(paths: JobPaths) -> dict[str, str]:
    """The Slurm job that ran a job last: `job`, for an array's element `array` and `index`, if it ran again `of` which array; nothing outside Slurm."""
    text = _text(paths.slurm)
    return {str(name): str(value) for name, value in json.loads(text).items()} if text else {}


def all_jobs(data_root: str, now: float) -> list[JobState]:
    """The jobs of a data root, the last one first."""
    names = os.listdir(data_root) if os.path.isdir(data_root) else []
    found = [look_at(data_root, name, now) for name in names if os.path.isdir(os.path.join(data_root, name))]
    return sorted((one for one in found if one is not None), key=lambda one: -one.changed)


def find(jobs: Sequence[JobState], wanted: str) -> list[JobState]:
    """The jobs that a user means by an id: ours (or a text that was given as job_id), or Slurm's. Pure."""
    uuid = str(job_uuid(wanted))
    return [one for one in jobs if one.id == uuid or wanted in one.slurm_ids]


def last_counts(log: str) -> str:
    """What the job's log said of its progress last. Pure."""
    for line in reversed(log.splitlines()):
        matched = COUNTS.match(line)
        if matched:
            return matched[1]
    return ""


def describe(job: JobState) -> Iterator[str]:
    """A job, in lines. Pure."""
    when = datetime.fromtimestamp(job.changed).isoformat(" ", "seconds")
    yield f"job {job.id}: {job.state}" + (f" ({job.why})" if job.why else "")
    if job.slurm:
        yield f"  slurm     {job.slurm}"
    if job.owner:
        yield f"  owner     {job.owner}"
    if job.progress:
        yield f"  progress  {job.progress}"
    yield f"  changed   {when}, run {job.runs} of it"
    yield f"  files     {job.root}"
    if job.state != "running" and job.state != "success":
        yield f"  go on     {job.again}"


def describe_queued(job: QueuedJob) -> str:
    """A job as Slurm has it. Pure."""
    reason = f" ({job.reason})" if job.reason not in ("None", "") else ""
    left = f", {job.time_left} left" if job.state not in OVER else ""
    return f"slurm job {job.id} {job.name}: {job.state}{reason}{left}"


def is_meant(job: QueuedJob, wanted: str) -> bool:
    """Whether a user means this job of Slurm's: by its id, or that of its array or heterogeneous job."""
    return wanted in (job.id, job.array, job.id.partition("+")[0])


def lines(wanted: str | None, jobs: Sequence[JobState], queue: Collection[QueuedJob]) -> list[str]:
    """All there is to say; nothing if nothing is known. Pure."""
    if wanted is None:
        shown = [
            f"{one.id}  {one.state:12} {one.slurm:>10}  {_first_line(one.progress or one.why)}"
            for one in jobs[:SHOWN_JOBS]
        ]
        rest = [f"and {len(jobs) - SHOWN_JOBS} older ones"] if len(jobs) > SHOWN_JOBS else []
        alive = [describe_queued(job) for job in queue if job.state not in OVER]
        return [*shown, *rest, *alive]
    ours = find(jobs, wanted)
    ids: Mapping[str, None] = dict.fromkeys([wanted, *(slurm for one in ours for slurm in one.slurm_ids)])
    queued = [describe_queued(job) for job in queue if any(is_meant(job, one) for one in ids)]
    return [*dict.fromkeys(queued), *(line for one in ours for line in describe(one))]


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def now() -> float:
    """Seconds since the epoch, as files are dated."""
    return time.time()


def _changed(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
