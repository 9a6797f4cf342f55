"""What the elements of a job array tell each other, and `smallpond-mpi collect`, through files below the data root.

    first element ─▶ array.json             which elements there are      made once, then only read
                  ─▶ shares-{digest}.json   which files are whose         (elements may start days apart: what was cut once stays)
    first writer  ─▶ claim-{digest}.json    whose an output path is, of elements that write without sharing
    each element  ─▶ elements/{index}.json  running, success or why not, and what it wrote where
    collect       ─▶ collected.json         what has been merged into which output path, file by file

Each element is a job of its own, with a journal of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from smallpond_mpi.common import DataRootUnusable, InputNotFound, InvalidArgument, OutputExists
from smallpond_mpi.execution.paths import ArrayPaths
from smallpond_mpi.execution.task.publish import MANIFEST_FILENAME, SinkMode
from smallpond_mpi.io.filesystem import whole_file
from smallpond_mpi.io.resolve import is_url, resolve
from smallpond_mpi.platform import arrays
from smallpond_mpi.platform.arrays import Element

ASK_SECS = 20.0
RUNNING, SUCCESS = "running", "success"


@dataclass(frozen=True, slots=True)
class ArrayRecord:
    """An array: the indices of its elements; the batch script with its arguments, and where it runs, if Slurm told it."""

    indices: tuple[int, ...]
    script: str = ""
    directory: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """What an element wrote: the user's path, where the files wait to be collected, and what becomes of what is at the path."""

    path: str
    place: str
    mode: SinkMode | None


@dataclass(frozen=True, slots=True)
class ElementRecord:
    """An element. `state` is `running`, `success`, or why it failed; `slurm` the id of the Slurm job that ran it last."""

    state: str
    slurm: str
    host: str
    job_root: str
    outputs: tuple[Output, ...] = ()


class ThisElement:
    """This process's element: its share of inputs, its places for outputs.

    Raises:
        InvalidArgument: the other elements can't be known, or this is none of them.
    """

    def __init__(self, element: Element, paths: ArrayPaths, env: Mapping[str, str], job_root: str) -> None:
        self.element = element
        self.paths = paths
        self.env = env
        self.job_root = job_root
        self.outputs: list[Output] = []
        self.record = read_array(self.paths) or self._make_record()
        known = arrays.known_indices(self.env) if self.env.get(arrays.ARRAY_OF) is None else None
        if known is not None and known != self.record.indices:
            raise InvalidArgument(
                f"{self.paths.root} is of another array {self.element.array}, of the elements {arrays.show_indices(self.record.indices)}: remove it"
            )
        if self.element.index not in self.record.indices:
            raise InvalidArgument(
                f"array {self.element.array} has no element {self.element.index}: it has {arrays.show_indices(self.record.indices)}"
            )
        self._tell(RUNNING)

    def _make_record(self) -> ArrayRecord:
        if self.env.get(arrays.ARRAY_OF):
            raise InvalidArgument(
                f"{arrays.ARRAY_OF}={self.element.array}: {self.paths.root} does not exist. Use the data root of that array, or leave the variable out"
            )
        shown = _ask(["scontrol", "show", "job", "-o", self.env["SLURM_ARRAY_JOB_ID"]])
        indices = arrays.known_indices(self.env) or arrays.indices_in(shown)
        count = self.env.get("SLURM_ARRAY_TASK_COUNT", "")
        if not indices or (not self.env.get(arrays.INDICES) and count.isdigit() and len(indices) != int(count)):
            raise InvalidArgument(
                f"array {self.element.array} has gaps, and Slurm can't be asked which elements it has: give the batch script "
                f"`export {arrays.INDICES}=...` with the list that sbatch got by --array"
            )
        script, directory = arrays.script_in(shown)
        record = ArrayRecord(indices, script if os.path.isabs(script) else "", directory)
        return _array_of(_write_once(self.paths.array_file, asdict(record)))

    def share(self, paths: Sequence[str], recursive: bool = False) -> list[str]:
        """This element's files of those that the paths, patterns and directories stand for."""
        digest = hashlib.sha256(json.dumps([list(paths), recursive]).encode()).hexdigest()[:16]
        target = self.paths.shares(digest)
        cut = _read(target)
        if cut is None:
            files = resolve(paths, recursive)
            bounds = arrays.shares([_size(path) for path in files], len(self.record.indices))
            cut = _write_once(target, {"files": files, "bounds": bounds})
        begin, end = cut["bounds"][self.record.indices.index(self.element.index)]
        files = cut["files"]
        return list(files[begin:end])

    def place_of(self, path: str, mode: SinkMode | None) -> str:
        """Where this element writes what is to be at `path` once the array is collected."""
        place = os.path.join(f"{path.rstrip(os.sep)}.elements", self.element.array, f"{self.element.index:06d}")
        output = Output(path, place, mode)
        if output not in self.outputs:
            self.outputs.append(output)
        return place

    def ended(self, failure: str | None) -> None:
        """Say how this element's job ended, and what it wrote."""
        written = [one for one in self.outputs if os.path.exists(os.path.join(one.place, MANIFEST_FILENAME))]
        self._tell(SUCCESS if failure is None else failure, tuple(written))

    def _tell(self, state: str, outputs: tuple[Output, ...] = ()) -> None:
        slurm = f"{self.env['SLURM_ARRAY_JOB_ID']}_{self.element.index}"
        record = ElementRecord(state, slurm, os.uname().nodename, self.job_root, outputs)
        _write(self.paths.element(self.element.index), asdict(record))


def claim_output(paths: ArrayPaths, element: Element, path: str) -> None:
    """Make an output path this element's own: what it writes there is not collected, so no other may write there.

    Raises:
        OutputExists: it is another element's.
    """
    digest = hashlib.sha256(path.encode()).hexdigest()[:16]
    owner = _write_once(paths.claim(digest), {"path": path, "index": element.index})["index"]
    if owner != element.index:
        raise OutputExists(
            f"element {owner} of array {element.array} writes to {path}, so that element {element.index} must not: call shard() before anything is "
            "written, for one dataset of all elements, or give each a path of its own (SLURM_ARRAY_TASK_ID)"
        )


def read_array(paths: ArrayPaths) -> ArrayRecord | None:
    """The array's record; None if no element of it has begun."""
    values = _read(paths.array_file)
    return None if values is None else _array_of(values)


def _array_of(values: dict[str, Any]) -> ArrayRecord:
    return replace(ArrayRecord(**values), indices=tuple(values["indices"]))


def read_element(paths: ArrayPaths, index: int) -> ElementRecord | None:
    """What an element told last; None if it never began."""
    values = _read(paths.element(index))
    if values is None:
        return None
    return ElementRecord(**{**values, "outputs": tuple(Output(**one) for one in values["outputs"])})


def read_collected(paths: ArrayPaths) -> dict[str, list[str]]:
    """Output paths that have been collected → the elements' files that were merged there."""
    return _read(paths.collected) or {}


def write_collected(paths: ArrayPaths, collected: Mapping[str, Sequence[str]]) -> None:
    """Remember what has been collected."""
    _write(paths.collected, collected)


def _size(path: str) -> int:
    """Bytes of a file, 0 of one on another file system.

    Raises:
        InputNotFound: it is not there.
    """
    if is_url(path):
        return 0
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        raise InputNotFound(f"shard: there is no file {path}") from None


def _ask(command: Sequence[str]) -> str:
    """What a command of Slurm's says; nothing if it can't be run here."""
    env = {**os.environ, "SLURM_BITSTR_LEN": "0"}  # or it cuts lists of indices to 64 bytes
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_SECS, stdin=subprocess.DEVNULL, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"smallpond_mpi: {command[0]} can't be asked: {error}\n")
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            values: dict[str, Any] = json.load(file)
            return values
    except FileNotFoundError:
        return None


def _write(path: str, values: Mapping[str, Any]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with whole_file(path) as file:
            file.write(json.dumps(values).encode())
    except OSError as error:
        raise DataRootUnusable(error.errno, f"{path} can't be written: {error.strerror}") from None


def _write_once(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write a file unless another element was first; what it holds now, which is then the same for all."""
    beside = f"{path}.{uuid.uuid4().hex}"
    _write(beside, values)
    try:
        os.link(beside, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links: the last of those who begin in the same instant wins
        if not os.path.exists(path):
            os.rename(beside, path)
            return _read(path) or dict(values)
    os.unlink(beside)
    return _read(path) or dict(values)
