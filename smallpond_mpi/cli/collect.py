"""`smallpond-mpi collect ARRAYJOB`: one dataset of what the elements of a job array wrote, once all of them have succeeded.

    {path}.elements/{array}/{index}/*  ── links ─▶  .{name}.staging/collect-{array}  ── one rename ─▶  {path}

What it does is repeated without harm: it is remembered what is collected before the elements' own directories go.
"""

import os
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from smallpond_mpi.cli.slurm import OVER, QueuedJob
from smallpond_mpi.common import InvalidArgument, SmallpondError
from smallpond_mpi.execution.arrays import (
    RUNNING,
    SUCCESS,
    ArrayRecord,
    ElementRecord,
    Output,
    read_array,
    read_collected,
    write_collected,
)
from smallpond_mpi.execution.paths import ArrayPaths
from smallpond_mpi.execution.task.publish import (
    MANIFEST_FILENAME,
    check_can_be_made,
    check_no_foreign_files,
    listed,
    publish,
    remove_staging,
    write_mark,
    write_text,
)
from smallpond_mpi.io.filesystem import link_or_copy
from smallpond_mpi.io.walk import walk
from smallpond_mpi.platform.arrays import ARRAY_OF, show_indices

SHOWN_ELEMENTS = 20


@dataclass(frozen=True, slots=True)
class Standing:
    """How the elements of an array stand: index → what is to be said of it."""

    done: dict[int, ElementRecord]
    busy: dict[int, str]
    failed: dict[int, str]


@dataclass(frozen=True, slots=True)
class Collected:
    """A dataset that was made: of so many elements, files and bytes."""

    path: str
    elements: int
    files: int
    bytes: int


def load(data_root: str, array: str) -> tuple[ArrayPaths, ArrayRecord]:
    """An array's record.

    Raises:
        InvalidArgument: nothing is known of it below this data root.
    """
    paths = ArrayPaths(data_root, array)
    record = read_array(paths)
    if record is None:
        directory = os.path.dirname(paths.root)
        known = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
        there = f"arrays known there: {', '.join(known)}" if known else "no array is known there"
        raise InvalidArgument(
            f"nothing is known of array {array} below data root {data_root} ({there}): its elements have not begun, don't call shard(), "
            "or have another data root (--data-root)"
        )
    return paths, record


def standing(
    indices: Sequence[int], records: Mapping[int, ElementRecord], array: str, queue: Collection[QueuedJob]
) -> Standing:
    """What has become of each element, from what it told and from what Slurm says of its job. Pure."""
    states = {f"{job.array}_{job.index}": job for job in queue if job.index is not None}
    result = Standing({}, {}, {})
    for index in indices:
        record = records.get(index)
        job = states.get(record.slurm if record is not None else f"{array}_{index}")
        is_alive = job is not None and job.state not in OVER
        if record is not None and record.state == SUCCESS:
            result.done[index] = record
        elif job is not None and is_alive:
            result.busy[index] = f"{job.state.lower()} (job {job.id})"
        elif record is None:
            result.failed[index] = "missing: it never began" + (f" ({job.state})" if job is not None else "")
        elif record.state == RUNNING:
            ended = f"Slurm says {job.state}" if job is not None else "Slurm knows it no more"
            result.failed[index] = f"ended in the midst of its work on {record.host} ({ended}), job {record.slurm}"
        else:
            result.failed[index] = f"failed on {record.host}, job {record.slurm}: {record.state}"
    return result


def rerun_line(array: str, indices: Collection[int], record: ArrayRecord) -> str:
    """The sbatch line that runs just these elements again, where they were."""
    script = record.script or "SCRIPT"
    place = f"cd {shlex.quote(record.directory)} && " if record.directory else ""
    return f"{place}sbatch --array={show_indices(indices)} --export=ALL,{ARRAY_OF}={array} {script}"


def describe(found: Standing, array: str, record: ArrayRecord) -> Iterator[str]:
    """Why there is nothing to collect yet, and what to do. Pure."""
    total = len(record.indices)
    yield f"array {array}: {len(found.done)} of {total} elements have succeeded"
    for elements in (found.busy, found.failed):
        for index in list(elements)[:SHOWN_ELEMENTS]:
            yield f"  element {index}: {elements[index]}"
        if len(elements) > SHOWN_ELEMENTS:
            yield f"  and {len(elements) - SHOWN_ELEMENTS} more"
    if found.failed:
        yield "run these again, and collect then:"
        yield f"  {rerun_line(array, found.failed, record)}"
        yield "  (with the options that sbatch got on its command line before, if any, but for --array)"
        if not record.script:
            yield "  (SCRIPT is the batch script)"
    if found.busy:
        yield f"still to come: {show_indices(found.busy)}. Collect when Slurm has run them"


def collect(paths: ArrayPaths, done: Mapping[int, ElementRecord]) -> list[Collected]:
    """Merge what the elements wrote, path by path. A path is made once: what an element has written since stays where it is.

    Raises:
        OutputExists: files of others are at an output path. SmallpondError: files of an element are gone.
    """
    collected = read_collected(paths)
    made = []
    for path, parts in _parts(done).items():
        if path not in collected:
            made.append(_merge(path, parts, paths.array))
            collected[path] = [file for _, output in parts for file in _written(output)]
            write_collected(paths, collected)
        if not _unmerged(parts, collected[path]):
            _remove_parts(path, paths.array)
    return made


def left_over(paths: ArrayPaths, done: Mapping[int, ElementRecord]) -> Iterator[str]:
    """What is to be said of what elements wrote that ran again after they were collected."""
    collected = read_collected(paths)
    for path, parts in _parts(done).items():
        for index, output in _unmerged(parts, collected.get(path, ())):
            yield (
                f"{path}: element {index} ran again after it was collected: what it wrote then is not in it, and stays in {output.place}. Remove that "
                "directory; or, if the dataset is to have it, start the whole array anew"
            )


def _parts(done: Mapping[int, ElementRecord]) -> dict[str, list[tuple[int, Output]]]:
    """Output path → what each element wrote for it."""
    places: dict[str, list[tuple[int, Output]]] = {}
    for index, element in sorted(done.items()):
        for output in element.outputs:
            places.setdefault(output.path, []).append((index, output))
    return places


def _unmerged(parts: Sequence[tuple[int, Output]], merged: Collection[str]) -> list[tuple[int, Output]]:
    """Those parts that have files which were not merged. Names of files hold the attempt: who runs again writes others."""
    known = set(merged)
    return [(index, output) for index, output in parts if not known.issuperset(_written(output))]


def _written(output: Output) -> list[str]:
    """The files that an element wrote, by its manifest; none once they were collected and removed."""
    return listed(os.path.join(output.place, MANIFEST_FILENAME))


def _merge(path: str, parts: Sequence[tuple[int, Output]], array: str) -> Collected:
    """Make the dataset at `path` appear."""
    name = f"collect-{array}"
    mode = parts[0][1].mode
    if mode in (None, "error"):
        check_no_foreign_files(path, name)
    check_can_be_made(path)
    parent, base = os.path.split(path)
    stage = os.path.join(parent, f".{base}.staging", name)
    shutil.rmtree(stage, ignore_errors=True)
    os.makedirs(stage)
    names: dict[str, str] = {}
    for index, output in parts:
        for file in _files_of(index, output):
            names[_distinct(os.path.relpath(file, output.place), index, names)] = file
    for target, file in names.items():
        os.makedirs(os.path.dirname(os.path.join(stage, target)), exist_ok=True)
        link_or_copy(file, os.path.join(stage, target))
    size = sum(os.path.getsize(os.path.join(stage, target)) for target in names)
    write_text(os.path.join(stage, MANIFEST_FILENAME), "".join(f"{os.path.join(path, target)}\n" for target in names))
    write_mark(stage, name, list(names))
    publish(stage, path, name, mode)
    remove_staging(stage)
    return Collected(path, len(parts), len(names), size)


def _files_of(index: int, output: Output) -> list[str]:
    """The files of an element, which its manifest lists."""
    # What goes while it is looked at is missing, which is told below.
    there = {os.path.join(output.place, name) for name in walk(output.place, ignored=(FileNotFoundError,))}
    files = _written(output)
    missing = [file for file in files if file not in there]
    if missing or not os.path.isdir(output.place):
        raise SmallpondError(
            f"element {index}: {missing[0] if missing else output.place} is gone. Run the element again, or bring the file back"
        )
    return files


def _distinct(name: str, index: int, taken: Collection[str]) -> str:
    """Names of files hold the job's id, but for those of the input that an element only passed on."""
    if name not in taken:
        return name
    stem, suffix = os.path.splitext(name)
    return f"{stem}.{index}{suffix}"


def _remove_parts(path: str, array: str) -> None:
    """The elements' own directories: the dataset has their files now."""
    remove_staging(os.path.join(f"{path}.elements", array))
