"""A process that looks at an output directory all the time, as any reader would: it is absent or whole.

In a directory that was there before, files come one by one: then it is the manifest that is absent or whole, and no file is ever half.

`watcher.py DIRECTORY ROWS` says "began", looks until its stdin ends, and says how often it looked and, as JSON, what should not have been.
"""

import json
import os
import select
import sys

import pyarrow.parquet as pq


def look(output: str, rows: int, was_there: bool, is_ours: bool) -> tuple[str, bool]:
    """(what is wrong, whether the output is there). `is_ours` if the directory itself is part of the output."""
    inode = inode_of(output)
    try:
        names = os.listdir(output)
    except FileNotFoundError:
        return ("the output was there and is gone" if was_there else ""), False
    try:
        found = sum(pq.read_metadata(os.path.join(output, name)).num_rows for name in names if name[0] not in "._")
        if ".MANIFEST.txt" not in names and not is_ours:
            return ("the manifest was there and is gone" if was_there else ""), False
        with open(os.path.join(output, ".MANIFEST.txt")) as file:
            listed = file.read().splitlines()
        in_manifest = sum(pq.read_metadata(path).num_rows for path in listed)
    except Exception as error:  # noqa: BLE001 - whatever a reader meets is what this looks for
        if inode_of(output) != inode:
            return "", True  # another whole result took its place meanwhile: the next look is at that
        return f"{type(error).__name__}: {error}; there are {sorted(names)}", True
    if not found == in_manifest == rows and inode_of(output) == inode:
        return f"{found} rows, {in_manifest} by the manifest, of {rows}, in {sorted(names)}", True
    return "", True


def inode_of(path: str) -> int:
    """Which directory it is; 0 if there is none."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def main(output: str, rows: int) -> None:
    is_ours = not os.path.isdir(output)
    print("began", flush=True)
    looks, problem, is_there = 0, "", False
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        looks += 1
        if not problem:
            problem, is_there = look(output, rows, is_there, is_ours)
    print(json.dumps([looks, problem]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
