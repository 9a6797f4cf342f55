"""How a directory of staged files takes its place at the user's output path.

    nothing there                    one rename of the directory
    an earlier result of this job    the two directories change places
    a directory that was there       files by rename, the manifest last
    anything of others               an error

That is what happens without a mode; a manifest of files elsewhere is always moved in. `error` takes an earlier result of this job for one of
others, `overwrite` changes places with whatever is there, `append` adds its files to it, the manifest that names them all last.

A repeat, after a death at any step, does the same again: the files keep their names. By these, modes `error` and `append` tell what the repeat
of a sink finds there of its own from what another sink put there (`DataSinkTask.has_own_names`).
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

from smallpond_mpi.common import OutputExists, OutputUnusable
from smallpond_mpi.faults import fault_point
from smallpond_mpi.io.exchange import exchange, sync
from smallpond_mpi.io.filesystem import remove_tree
from smallpond_mpi.io.walk import files_below, walk

NEVER = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EROFS})
"""Why a directory can't be made, now or when it is tried again."""
MANIFEST_FILENAME = ".MANIFEST.txt"
GONE = (FileNotFoundError,)
"""Ignored in a walk of an output path: other sinks, and rank 0, remove what is theirs there at any time. Never in a walk of a stage."""
MAX_COUNTED = 1000
"""Of files that stand in the way, as many are counted for the error."""


SinkMode = Literal["error", "overwrite", "append"]


def publish(
    stage: str, output_path: str, job_id: str, mode: SinkMode | None = None, manifest_only: bool = False
) -> None:
    """Make what lies in `stage` (files, the manifest, perhaps a mark) the content of the output path, or add it.

    `manifest_only`: the manifest lists files where they are. These may lie below the output path, so that the directory there must stay.

    Raises:
        OutputExists: files of others are there, or, in mode `error`, any that are not in `stage` too.
    """
    sync(stage)
    if not _appear(stage, output_path):
        match mode:
            case "overwrite":
                _replace_all(stage, output_path)
            case "append":
                _add(stage, output_path)
            case "error":
                check_holds_only(output_path, files_below(stage))
                _add(stage, output_path, keep_listed=False)
            case None:
                check_no_foreign_files(output_path, job_id)
                if manifest_only or not _replace_earlier(stage, output_path):
                    _move_in(stage, output_path, job_id, manifest_only)
    sync(os.path.dirname(output_path))
    fault_point("publish.done")


def _appear(stage: str, output_path: str) -> bool:
    """One rename, if there is nothing at the output path."""
    if os.path.lexists(output_path):
        return False
    try:
        os.rename(stage, output_path)
    except OSError:
        if not os.path.isdir(output_path):
            raise
        return False  # somebody made the directory in the meantime
    return True


def _replace_earlier(stage: str, output_path: str) -> bool:
    """Change places with an earlier whole result of this job. False if there is none, or it is this very one."""
    earlier = listed(os.path.join(output_path, MANIFEST_FILENAME))
    if not earlier or earlier == listed(os.path.join(stage, MANIFEST_FILENAME)):
        return False
    if stage.startswith(output_path + os.sep):
        return False
    _change_places(stage, output_path)
    return True


def _change_places(stage: str, output_path: str) -> None:
    shutil.copystat(output_path, stage)
    fault_point("publish.replace")
    if not exchange(stage, output_path):
        aside = f"{stage}.earlier"
        os.rename(output_path, aside)
        fault_point("publish.aside")
        os.rename(stage, output_path)


def _replace_all(stage: str, output_path: str) -> None:
    """Change places with whatever is there. Where the stage lies inside, files are moved in, and what was there goes after the manifest."""
    if not stage.startswith(output_path + os.sep):
        # A repeat finds its own result there, which is as good as any.
        _change_places(stage, output_path)
        return
    staged = files_below(stage)
    # What may not be read may not be removed either: lost+found where a disk is mounted.
    before = set(_data_below(output_path, ignored=(*GONE, PermissionError)))
    _add(stage, output_path, keep_listed=False)
    _remove(output_path, before - set(staged))


def _add(stage: str, output_path: str, keep_listed: bool = True) -> None:
    """File by file, the manifest last, which lists what it did before too. A repeat finds its own files, and they are the same."""
    manifest = os.path.join(output_path, MANIFEST_FILENAME)
    for name in files_below(stage):
        if name != MANIFEST_FILENAME:
            target = os.path.join(output_path, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.replace(os.path.join(stage, name), target)
            fault_point("publish.file")
    staged = os.path.join(stage, MANIFEST_FILENAME)
    with _alone_in(output_path):
        before = listed(manifest) if keep_listed else []
        write_text(staged, "".join(f"{path}\n" for path in dict.fromkeys([*before, *listed(staged)])))
        os.replace(staged, manifest)
    fault_point("publish.manifest")
    sync(output_path)


@contextlib.contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """While no other sink that appends to this directory rewrites its manifest, on file systems that have locks."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(
            OSError
        ):  # no locks here: of two manifests that are written in one instant the later one stays
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _move_in(stage: str, output_path: str, job_id: str, manifest_only: bool) -> None:
    """File by file, the manifest last. What other files this job left there, whole results or parts of them, goes."""
    mark = mark_of(job_id)
    names = [name for name in files_below(stage) if name not in (MANIFEST_FILENAME, mark)]
    before = _own_files(output_path, job_id)
    if names:
        _mark_published(stage, output_path, job_id, before)
    manifest = os.path.join(output_path, MANIFEST_FILENAME)
    had_result = os.path.exists(manifest)
    staged = os.path.join(stage, MANIFEST_FILENAME)
    kept = {os.path.relpath(path, output_path) for path in listed(staged)}
    # A manifest alone takes no other's place: it may lie beside what it lists by other paths.
    obsolete = set() if manifest_only and not names else before - kept
    if not had_result:
        _remove(output_path, obsolete)
    for name in names:
        target = os.path.join(output_path, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(os.path.join(stage, name), target)
        fault_point("publish.file")
    os.replace(staged, manifest)
    fault_point("publish.manifest")
    if had_result:
        _remove(output_path, obsolete)
    sync(output_path)


def _mark_published(stage: str, output_path: str, job_id: str, before: set[str]) -> None:
    """The mark goes first: what it names is known for this job's from then on, and what an earlier mark named still is."""
    mark = mark_of(job_id)
    names = marked_names(stage, job_id)
    if names:
        write_mark(stage, job_id, sorted({*names, *(name for name in before if job_id not in name)}))
        os.replace(os.path.join(stage, mark), os.path.join(output_path, mark))


def _remove(directory: str, names: Collection[str]) -> None:
    """Files, and the directories that hold nothing then."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
    for place in {os.path.dirname(name) for name in names}:
        with contextlib.suppress(OSError):  # there is something in it, or somebody removed it
            while place:
                os.rmdir(os.path.join(directory, place))
                place = os.path.dirname(place)


def _own_files(directory: str, job_id: str) -> set[str]:
    """Files of this job, but for those in directories of nodes with an output name."""
    marked = set(marked_names(directory, job_id))
    return {
        name
        for name in _data_below(directory)
        if name not in (MANIFEST_FILENAME, mark_of(job_id))
        and (name in marked or job_id in name)
        and not _is_of_a_node(name, job_id)
    }


def _is_of_a_node(name: str, job_id: str) -> bool:
    """Whether a file lies in {name}/{job_id}.{attempt}."""
    parts = name.split(os.sep)
    return len(parts) > 2 and parts[1].startswith(f"{job_id}.")


# names


def distinct_names(paths: Sequence[str], num_dirs: int = 0) -> list[str]:
    """File names, with so many of the directories above them, kept unless two are alike: then the later ones get a number before their suffix."""
    bases = [os.sep.join(path.split(os.sep)[-1 - num_dirs :]) for path in paths]
    taken = set(bases)
    used: set[str] = set()
    numbers: dict[str, int] = {}
    names: list[str] = []
    for base in bases:
        name = base
        while name in used:
            stem, suffix = os.path.splitext(base)
            numbers[base] = number = numbers.get(base, 0) + 1
            name = f"{stem}.{number}{suffix}"
            if name in taken:  # the name of a file that comes later
                name = base
        used.add(name)
        names.append(name)
    return names


def mark_of(job_id: str) -> str:
    """A file that lists what a job put into a directory under names that don't tell."""
    return f".published-by-{job_id}"


def write_mark(directory: str, job_id: str, names: Sequence[str]) -> None:
    write_text(os.path.join(directory, mark_of(job_id)), json.dumps(names))


def marked_names(directory: str, job_id: str) -> list[str]:
    """What the mark in a directory lists; nothing if there is none."""
    try:
        with open(os.path.join(directory, mark_of(job_id))) as file:
            names: list[str] = json.load(file)
            return names
    except FileNotFoundError:
        return []


def listed(manifest: str) -> list[str]:
    """The paths in a manifest; none if it is not there."""
    try:
        with open(manifest) as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def write_text(path: str, text: str) -> None:
    """A small file that stays."""
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


# checks before anything runs


def check_no_foreign_files(output_path: str, job_id: str) -> None:
    """Refuse an output path that holds anything which this job did not put there.

    Raises:
        OutputExists: naming the path and some of what is there.
    """
    if not _is_there(output_path):
        return
    if not os.path.isdir(output_path):
        raise OutputExists(f"output path {output_path} is a file: give a directory, or one that does not exist yet")
    foreign = sorted(_foreign_entries(output_path, job_id))
    if foreign:
        raise OutputExists(
            f"output path {output_path} holds files that this job did not write ({_shown(foreign)}): remove them or give another path"
        )


def _is_there(path: str) -> bool:
    """Whether anything is at a path. Raises an error that leaves it open."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno not in NEVER:
            raise
        return False
    return True


def check_holds_only(output_path: str, names: Iterable[str]) -> None:
    """Refuse an output path that holds anything but these files, whoever put it there.

    Raises:
        OutputExists: naming the path and some of what is there.
    """
    allowed = set(names)
    others = sorted(itertools.islice((name for name in _data_below(output_path) if name not in allowed), MAX_COUNTED))
    if others:
        more = " at least" if len(others) == MAX_COUNTED else ""
        raise OutputExists(
            f"output path {output_path} holds files already ({_shown(others, more)}), and mode='error' was given: remove them, give another path, "
            "or mode='overwrite' or 'append'"
        )


def _shown(names: Sequence[str], at_least: str = "") -> str:
    return ", ".join(names[:3]) + (f" and{at_least} {len(names) - 3} more" if len(names) > 3 else "")


def _data_below(output_path: str, ignored: tuple[type[OSError], ...] = GONE) -> Iterator[str]:
    """The files at an output path but for those that wait in staging within it; none if it is not there.

    As they are found: who asks whether there is one of others must not wait for millions of them.
    """
    return walk(output_path, ignored, skipped=(".staging",))


def check_can_be_made(output_path: str) -> None:
    """Raise OutputUnusable if there is no way to make files at the output path: a file stands in the way, or it may not be written to."""
    existing = output_path
    while not os.path.lexists(existing) and existing != os.path.dirname(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise OutputUnusable(
            f"output path {output_path} can't be made: {existing} is not a directory; give another path"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputUnusable(
            f"output path {output_path} can't be made: {existing} can't be written to; give another path, or ask for the right to write there"
        )
    if existing != output_path:
        _try_to_make_one_in(existing, output_path)


def _try_to_make_one_in(directory: str, output_path: str) -> None:
    """Rights don't tell all: in /proc and its like nobody makes directories, whatever they say."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".smallpond_mpi-", dir=directory))
    except OSError as error:
        if error.errno not in NEVER:
            return  # the disk is full, say: whoever writes says what is wrong
        raise unusable(output_path, error) from None


def unusable(output_path: str, error: OSError) -> OutputUnusable:
    """The error to raise where nothing can be made at the output path, for a reason of its own that stays (`NEVER`)."""
    directory = os.path.dirname(error.filename) if error.filename else "there"
    return OutputUnusable(
        f"output path {output_path} can't be made: nothing can be made in {directory} ({error.strerror}); give another path"
    )


def _foreign_entries(directory: str, job_id: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        present = {entry.name: entry for entry in entries}
    marked = set(marked_names(directory, job_id))
    ours = {".staging", *marked}
    data = {name for name in present if name not in ours and name != MANIFEST_FILENAME and job_id not in name}
    for name in data:
        if not (present[name].is_dir(follow_symlinks=False) and _holds_only_ours(directory, name, job_id, marked)):
            yield name
    is_alone = MANIFEST_FILENAME in present and len(present) == 1
    if is_alone and any(job_id not in path for path in listed(present[MANIFEST_FILENAME].path)):
        yield MANIFEST_FILENAME


def _holds_only_ours(output_path: str, name: str, job_id: str, marked: Collection[str]) -> bool:
    """Whether a directory there, of a node ({name}/{job_id}.{attempt}) or of a value, holds results of this job alone.

    Empty ones are nobody's: an attempt that dies leaves some, which it made for files or took them from.
    """
    try:
        found = walk(os.path.join(output_path, name), ignored=GONE)
        return all(job_id in inner or os.path.join(name, inner) in marked for inner in found)
    except PermissionError:
        return False  # nothing of ours is hidden from us


def remove_staging(path: str, levels_above: int = 1) -> list[str]:
    """Remove a directory of staging, and so many above it if nothing else is in them; returns what can't be removed, with why."""
    left = remove_tree(path)
    with contextlib.suppress(OSError):  # staging of others is there too, or somebody removed it
        for _ in range(levels_above):
            path = os.path.dirname(path)
            os.rmdir(path)
    return left
