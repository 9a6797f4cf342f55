"""What lies below a directory. One that can't be read is an error: who takes it for an empty one loses its rows."""

import os
import stat
from collections.abc import Collection, Iterator


def walk(directory: str, ignored: tuple[type[OSError], ...] = (), skipped: Collection[str] = ()) -> Iterator[str]:
    """The files in a directory and in those below it, by their paths within it, as they are found; none if it is not there itself.

    Links to directories are not followed. Directories in it that are named in `skipped` are not looked into.

    Raises:
        OSError: one of the directories can't be read, for a reason that is not `ignored`, or it went meanwhile.
    """

    def on_error(error: OSError) -> None:
        is_absent = isinstance(error, FileNotFoundError) and error.filename == directory
        if not is_absent and not isinstance(error, ignored):
            raise error

    for place, below, names in os.walk(directory, onerror=on_error):
        if place == directory:
            below[:] = [name for name in below if name not in skipped]
        for name in names:
            yield os.path.relpath(os.path.join(place, name), directory)


def files_below(directory: str) -> list[str]:
    """The same of a directory that nobody else changes, sorted."""
    return sorted(walk(directory))


def is_directory(path: str) -> bool:
    """Whether a directory is there. Raises what hinders the answer, where os.path.isdir says no."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
