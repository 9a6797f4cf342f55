"""From what a user writes (paths, patterns, directories) to files. Plain paths are not looked at, however many there are."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence

from smallpond_mpi.common import InputNotFound

MAGIC = re.compile(r"[*?\[]")
RECURSIVE = "**"
FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(?=/)", re.IGNORECASE)


def has_magic(s: str) -> bool:
    """Whether a path is a pattern: holds `*`, `?` or `[`."""
    return MAGIC.search(s) is not None


def is_url(path: str) -> bool:
    """Whether a path names its file system (`s3://...`): such paths are taken as they are."""
    return "://" in path


def without_scheme(path: str) -> str:
    """A `file:` URL as the path that it is (as it stands there: `%20` is no space, as in Spark and fsspec); others stay."""
    return FILE_URL.sub("", path, count=1) if FILE_URL.match(path) else path


def absolute(path: str, root_dir: str) -> str:
    """A path or pattern below `root_dir`, unless it is absolute already."""
    path = without_scheme(path)
    return path if is_url(path) or os.path.isabs(path) else os.path.normpath(os.path.join(root_dir, path))


def resolve(paths: Sequence[str], recursive: bool = False) -> list[str]:
    """The files, in the order of `paths`; those of a pattern or directory sorted. A path listed twice counts twice.

    A path is looked at only if it may be more than one file: patterns, names without a suffix (which are directories more often than
    not), and every path with `recursive`. What is there under a pattern's own name is meant by it. Raises InputNotFound for a pattern that matches nothing, and a directory of directories.
    """
    files: list[str] = []
    for path in map(without_scheme, paths):
        if is_url(path):
            files.append(path)
        elif has_magic(path) and not os.path.exists(path):
            files.extend(match(path, recursive))
        elif (recursive or not os.path.splitext(path)[1]) and os.path.isdir(path):
            found = files_in(path, recursive)
            if not found and not recursive and files_in(path, True):
                raise InputNotFound(
                    f"{path!r} holds directories and no files of its own: say recursive=True to look into them (and hive_partitioning=True in "
                    "read_parquet if their names are columns, such as day=1)"
                )
            files.extend(found)
        else:
            files.append(path)
    return files


def not_there(path: str, more: str = "") -> InputNotFound:
    """The error to raise for a file that does not exist."""
    return InputNotFound(
        f"input file {path!r} does not exist{more}: correct its path, or put it where all nodes of the job see it"
    )


def match(pattern: str, recursive: bool = False) -> list[str]:
    """The files that a pattern matches, sorted; with `recursive` also those in directories that it matches."""
    found: list[str] = []
    for path, is_directory in _matches(pattern):
        if not is_directory:
            found.append(path)
        elif recursive:
            found.extend(files_in(path, recursive))
    if not found:
        raise InputNotFound(f"pattern {pattern!r} matches no file: correct it, or its directory")
    return sorted(set(found))


def _matches(pattern: str) -> Iterator[tuple[str, bool]]:
    """What a pattern matches, and whether it is a directory."""
    directory, name = os.path.split(pattern)
    if has_magic(directory) or RECURSIVE in name:
        yield from ((path, os.path.isdir(path)) for path in glob.iglob(pattern, recursive=True))
    elif os.path.isdir(directory):
        # One directory: its listing tells what is a file, where glob would ask the file system for each.
        matches = re.compile(fnmatch.translate(name)).match
        with os.scandir(directory) as entries:
            for entry in entries:
                if matches(entry.name) and (name.startswith(".") or not entry.name.startswith(".")):
                    yield entry.path, entry.is_dir()


def files_in(directory: str, recursive: bool = False) -> list[str]:
    """The files of a directory, and of those below it if `recursive`, sorted. Names that start with a dot or underscore are not data."""
    found: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith((".", "_")):
                continue
            if not entry.is_dir():
                found.append(entry.path)
            elif recursive:
                found.extend(files_in(entry.path, recursive))
    return sorted(found)
