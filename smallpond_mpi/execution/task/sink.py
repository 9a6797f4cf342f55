"""Putting results where the user wants them, whole or not at all.

    input partition --> DataSinkTask(type=link | copy | link_or_copy)  one a partition, in parallel: files to staging beside the output path
                              |
                              v
                        DataSinkTask(type=link_manifest | manifest)    one: publishes

An output path that does not exist appears by one rename of a directory. Into one that exists files are renamed, the manifest last. What lies
in staging stays there until the publishing attempt is accepted: a repeat finds it and does the same again.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

from smallpond_mpi.common import InvalidArgument, OutputExists, OutputUnusable
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.faults import fault_point

if TYPE_CHECKING:
    from smallpond_mpi.logical.dataset import DataSet

DataSinkType = Literal["link_manifest", "link", "copy", "link_or_copy", "manifest"]

MAX_COPY_THREADS = 8


class DataSinkTask(Task):
    """Collects the files of its inputs for `output_path`, or publishes what others collected.

    `type` link hard-links (to another mount: symlinks), copy copies, link_or_copy links or, across mounts, copies, manifest takes the files
    where they are. A dataset that is not whole Parquet files (rows of a file, slices of a shuffle) is written out.
    """

    manifest_filename = ".MANIFEST.txt"

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Sequence[Task],
        partition_infos: Sequence[PartitionInfo],
        output_path: str,
        type: DataSinkType = "link_manifest",
        manifest_only: bool = False,
        is_final_node: bool = False,
    ) -> None:
        super().__init__(ctx, input_deps, partition_infos)
        if not os.path.isabs(output_path):
            raise InvalidArgument(f"output_path {output_path!r} must be an absolute path")
        self.output_root = os.path.normpath(output_path)
        self._temp_output = False
        self.type: DataSinkType = "manifest" if manifest_only else type
        self.is_final_node = is_final_node
        self.publishes = self.type in ("link_manifest", "manifest")
        # Directories that go when this attempt is accepted.
        self.obsolete_paths: list[str] = []
        if self.type == "manifest":
            # What a manifest lists must outlive the job's staging.
            for dep in self._deps.tasks:
                dep.temp_output = False

    @property
    def output_path(self) -> str:
        assert self.output_root is not None
        return self.output_root

    @property
    def reads_content(self) -> bool:  # type: ignore[override] # an attribute of Task; here it follows from the type
        """A manifest lists files where they are."""
        return self.type != "manifest"

    @property
    def manifest_path(self) -> str:
        return os.path.join(self.output_path, self.manifest_filename)

    @property
    def allow_speculative_exec(self) -> bool:
        return False

    @property
    def self_contained_output(self) -> bool:
        return False

    @property
    def _sink_staging(self) -> str:
        """Where files wait to be published, on the same file system: beside the output path, or inside if that was there before."""
        beside, inside = self._stagings
        return inside if os.path.isdir(self.output_path) and not os.path.isdir(beside) else beside

    @property
    def _stagings(self) -> tuple[str, str]:
        parent, name = os.path.split(self.output_path)
        job = str(self.ctx.job_id)
        return os.path.join(parent, f".{name}.staging", job), os.path.join(self.output_path, ".staging", job)

    @property
    def runtime_output_abspath(self) -> str:
        path = os.path.join(self._sink_staging, f"{self.default_output_name}.{self.runtime_id}")
        if self._running:
            os.makedirs(path, exist_ok=True)
        return path

    @property
    def final_output_abspath(self) -> str:
        """Of the publishing task: the user's path. Of the others: staging, until it is published."""
        return self.output_path if self.publishes else self.runtime_output_abspath

    def clean_output(self, force: bool = False) -> None:
        """Remove what this attempt has in staging; what is published stays."""
        running, self._running = self._running, False
        shutil.rmtree(self.runtime_output_abspath, ignore_errors=True)
        self._running = running

    def _commit(self) -> None:
        """Publishing is the commit: nothing is renamed here, only measured."""
        self._running = False
        assert self._metrics is not None
        self._metrics.finish(self)

    def run(self) -> bool:
        self.add_elapsed_time()
        from smallpond_mpi.logical.dataset import DataSet

        with ThreadPoolExecutor(max(1, min(MAX_COPY_THREADS, self.cpu_limit * 2))) as pool:
            self.dataset = DataSet.merge(self.collect_output_files(pool))
        fault_point("publish.collected")
        if self.publishes:
            self._publish(self.dataset)
        own = (self.output_path + os.sep, self._sink_staging + os.sep)
        self._output_files = [
            (path, os.path.getsize(path)) for path in self.dataset.resolved_paths if path.startswith(own)
        ]
        self.add_elapsed_time("output dump time (secs)")
        return True

    def check_before_run(self) -> None:
        if self.publishes:
            check_no_foreign_files(self.output_path, str(self.ctx.job_id), self.manifest_filename)
            check_can_be_made(self.output_path)

    # collecting

    def collect_output_files(self, pool: ThreadPoolExecutor) -> "list[DataSet]":
        """The input datasets as whole files in staging (for a manifest: where they are)."""
        return [self._collect(dataset, index, pool) for index, dataset in enumerate(self.input_datasets)]

    def _collect(self, dataset: "DataSet", index: int, pool: ThreadPoolExecutor) -> "DataSet":
        """The dataset as whole files that may be moved: its own (manifest), links, copies, or written out."""
        if not _is_of_whole_files(dataset):
            return self._write_out(dataset, index)
        staging = os.path.dirname(self.runtime_output_abspath) + os.sep
        sources = dataset.resolved_paths
        if self.type == "manifest" or all(path.startswith(staging) for path in sources):
            return dataset
        targets = [os.path.join(self.runtime_output_abspath, name) for name in distinct_names(sources)]
        list(pool.map(self._place, sources, targets))
        return dataset.renamed(targets)

    def _write_out(self, dataset: "DataSet", index: int) -> "DataSet":
        from smallpond_mpi.execution.task.output import copy_dataset

        return copy_dataset(self, dataset, f"{self.output_filename}-{index}.parquet")

    def _place(self, source: str, target: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # left by an attempt of the same name: a replay by hand
            os.unlink(target)
        if self.type == "copy":
            shutil.copyfile(source, target)
            return
        try:
            os.link(os.path.realpath(source), target)
        except OSError:  # another mount, or a file system without hard links
            if self.type == "link_or_copy":
                shutil.copyfile(source, target)
            else:
                os.symlink(source, target)

    # publishing

    def _publish(self, dataset: "DataSet") -> None:
        """Make the files of `dataset` appear under the output path, and the manifest after them."""
        check_no_foreign_files(self.output_path, str(self.ctx.job_id), self.manifest_filename)
        self.obsolete_paths = list(self._stagings)
        placed: dict[str, str] = {}
        final: list[str] = []
        sources = dataset.resolved_paths
        for name, source in zip(distinct_names(sources), sources, strict=True):
            if self.type == "manifest" and not source.startswith(self._sink_staging + os.sep):
                final.append(source)  # it stays where it is, unlike what was written out for lack of a file of its own
                continue
            placed[name] = source
            final.append(os.path.join(self.output_path, name))
        stage = os.path.join(self._sink_staging, f"publish.{self.runtime_id}")
        shutil.rmtree(stage, ignore_errors=True)
        os.makedirs(stage)
        for name, source in placed.items():
            _second_name(source, os.path.join(stage, name))
        marked = [name for name in placed if str(self.ctx.job_id) not in name]
        if marked:
            _write(os.path.join(stage, _mark(str(self.ctx.job_id))), json.dumps(marked))
        _write(os.path.join(stage, self.manifest_filename), "".join(f"{path}\n" for path in final))
        fault_point("publish.staged")
        if not self._publish_directory(stage):
            self._publish_files(stage, placed)
        fault_point("publish.done")
        self.dataset = dataset.renamed(final)

    def _publish_directory(self, stage: str) -> bool:
        """One rename, if there is nothing at the output path."""
        if os.path.lexists(self.output_path):
            return False
        try:
            os.rename(stage, self.output_path)
        except OSError:
            if not os.path.isdir(self.output_path):
                raise
            return False  # somebody made the directory in the meantime
        return True

    def _publish_files(self, stage: str, placed: dict[str, str]) -> None:
        """File by file into a directory that is there, the manifest last; then what an earlier result of this job had besides goes."""
        mark = _mark(str(self.ctx.job_id))
        earlier = set(_listed(self.manifest_path))
        if os.path.exists(os.path.join(stage, mark)):
            os.replace(os.path.join(stage, mark), os.path.join(self.output_path, mark))
        for name in placed:
            os.replace(os.path.join(stage, name), os.path.join(self.output_path, name))
            fault_point("publish.file")
        os.replace(os.path.join(stage, self.manifest_filename), self.manifest_path)
        fault_point("publish.manifest")
        for path in earlier - set(_listed(self.manifest_path)):
            if os.path.dirname(path) == self.output_path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def _is_of_whole_files(dataset: "DataSet") -> bool:
    """Whether the files of a dataset are its rows: not a part of a file's rows or columns."""
    from smallpond_mpi.logical.dataset import ParquetDataSet

    if not isinstance(dataset, ParquetDataSet):
        return True
    return dataset.columns is None and dataset.generated_columns is None and dataset.is_of_whole_files


def distinct_names(paths: Sequence[str]) -> list[str]:
    """File names, kept unless two are alike: then the later ones get a number before their suffix."""
    taken: set[str] = set()
    names: list[str] = []
    for path in paths:
        name = base = os.path.basename(path)
        number = 0
        while name in taken:
            number += 1
            stem, suffix = os.path.splitext(base)
            name = f"{stem}.{number}{suffix}"
        taken.add(name)
        names.append(name)
    return names


def check_no_foreign_files(
    output_path: str, job_id: str, manifest_filename: str = DataSinkTask.manifest_filename
) -> None:
    """Refuse an output path that holds anything which this job did not put there.

    Raises:
        OutputExists: naming the path and some of what is there.
    """
    if not os.path.lexists(output_path):
        return
    if not os.path.isdir(output_path):
        raise OutputExists(f"output path {output_path} is a file: give a directory, or one that does not exist yet")
    foreign = sorted(_foreign_entries(output_path, job_id, manifest_filename))
    if foreign:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise OutputExists(
            f"output path {output_path} holds files that this job did not write ({shown}): remove them or give another path"
        )


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


def _foreign_entries(directory: str, job_id: str, manifest_filename: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        present = {entry.name: entry for entry in entries}
    ours: set[str] = {".staging"}
    if _mark(job_id) in present:
        with open(present[_mark(job_id)].path) as file:
            ours.update(json.load(file))
    data = {name for name in present if name not in ours and name != manifest_filename and job_id not in name}
    for name in data:
        entry = present[name]
        if not (entry.is_dir(follow_symlinks=False) and _holds_only_ours(entry.path, job_id)):
            yield name
    if (
        manifest_filename in present
        and len(present) == 1
        and any(job_id not in path for path in _listed(present[manifest_filename].path))
    ):
        yield manifest_filename


def _holds_only_ours(directory: str, job_id: str) -> bool:
    """Whether a node's output directory ({name}/{job_id}.{attempt}) holds results of this job alone."""
    names = os.listdir(directory)
    return bool(names) and all(job_id in name for name in names)


def _mark(job_id: str) -> str:
    """A file that lists what a job put into a directory under names that don't tell."""
    return f".published-by-{job_id}"


def _listed(manifest: str) -> Iterable[str]:
    try:
        with open(manifest) as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return ()


def _second_name(source: str, target: str) -> None:
    """Another name for a file in staging, so that publishing can be repeated; a copy where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        else:
            shutil.copyfile(source, target)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
