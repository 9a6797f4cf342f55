"""Putting results where the user wants them, whole or not at all.

    input partition --> DataSinkTask(type=link | copy | link_or_copy)  one a partition, in parallel: files to staging beside the output path
                              |
                              v
                        DataSinkTask(type=link_manifest | manifest)    one: publishes

How files take their place is told in publish.py. What lies in staging stays there until the publishing attempt is accepted: a repeat finds it
and does the same again.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from smallpond_mpi.common import CorruptInput, InvalidArgument
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.publish import (
    MANIFEST_FILENAME,
    NEVER,
    SinkMode,
    check_can_be_made,
    check_holds_only,
    check_no_foreign_files,
    distinct_names,
    publish,
    unusable,
    write_mark,
    write_text,
)
from smallpond_mpi.faults import fault_point
from smallpond_mpi.io.exchange import is_mount_point, sync
from smallpond_mpi.io.resolve import is_url

if TYPE_CHECKING:
    from smallpond_mpi.io.parquet import FileKind, RowRange
    from smallpond_mpi.logical.dataset import DataSet, ParquetDataSet

DataSinkType = Literal["link_manifest", "link", "copy", "link_or_copy", "manifest"]

MAX_COPY_THREADS = 8
MAX_FOOTER_THREADS = 16
PARTITIONS_ADVICE = "all partitions of what is written must have the same columns"


class DataSinkTask(Task):
    """Collects the files of its inputs for `output_path`, or publishes what others collected.

    `type` link hard-links (to another mount: symlinks), copy copies, link_or_copy links or, across mounts, copies, manifest takes the files
    where they are. Parquet files that were cut are an error, and so are, `is_one_table`, files whose schemas don't fit together: all footers are
    looked at first. `mode` says what becomes of what is there already: an error, it is replaced as a whole, or it stays beside what is added;
    None: what this job put there itself is replaced, anything else is an error. Files keep the `num_dirs` directories that they lie in. A dataset that is not whole Parquet files (rows of a file, slices of a shuffle) is written out.
    """

    manifest_filename = MANIFEST_FILENAME
    mode: SinkMode | None = None
    num_dirs = 0
    is_one_table = True
    # Where in the script the files that it collects are made.
    made_at: str | None = None

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Sequence[Task],
        partition_infos: Sequence[PartitionInfo],
        output_path: str,
        type: DataSinkType = "link_manifest",
        manifest_only: bool = False,
        is_final_node: bool = False,
        mode: SinkMode | None = None,
        num_dirs: int = 0,
        is_one_table: bool = True,
    ) -> None:
        super().__init__(ctx, input_deps, partition_infos)
        if not os.path.isabs(output_path):
            raise InvalidArgument(f"output_path {output_path!r} must be an absolute path")
        self.output_root = os.path.normpath(output_path)
        self._temp_output = False
        self.type: DataSinkType = "manifest" if manifest_only else type
        self.is_final_node = is_final_node
        if mode is not None:
            self.mode = mode
        if num_dirs:
            self.num_dirs = num_dirs
        if not is_one_table:
            self.is_one_table = False
        self.made_at = next((dep.location for dep in self._deps.tasks), None)
        self.publishes = self.type in ("link_manifest", "manifest")
        # Directories that go when this attempt is accepted.
        self.obsolete_paths: list[str] = []
        if self.type == "manifest":
            # What a manifest lists must outlive the job's staging.
            for dep in self._deps.tasks:
                dep.temp_output = False

    @property
    def output_path(self) -> str:
        """The user's directory."""
        assert self.output_root is not None
        return self.output_root

    @property
    def reads_content(self) -> bool:  # type: ignore[override] # an attribute of Task; here it follows from the type
        """A manifest lists files where they are."""
        return self.type != "manifest"

    @property
    def has_own_names(self) -> bool:
        """Whether files are named after the attempt that collects them, of which the journal knows before any is published.

        A sink that is repeated finds what it did by that. Names of its inputs' files would be those of another sink of the same rows, too.
        """
        return self.mode in ("append", "error")

    @property
    def allow_speculative_exec(self) -> bool:
        return False

    @property
    def self_contained_output(self) -> bool:
        return False

    @property
    def _sink_staging(self) -> str:
        """Where files wait to be published, on the same file system: beside the output path, or inside where that can't be."""
        beside, inside = self._stagings
        return inside if _must_stage_inside(self.output_path) and not os.path.isdir(beside) else beside

    @property
    def _stagings(self) -> list[str]:
        # A node's own: several may write to one path, and what one has published must not go with what another still needs.
        return [os.path.join(staging, str(self.node_id)) for staging in self.stagings_of_job]

    @property
    def stagings_of_job(self) -> list[str]:
        """Where files of this job for the output path may be waiting: beside it, inside it."""
        parent, name = os.path.split(self.output_path)
        job = str(self.ctx.job_id)
        return [os.path.join(parent, f".{name}.staging", job), os.path.join(self.output_path, ".staging", job)]

    @property
    def runtime_output_abspath(self) -> str:
        path = os.path.join(self._sink_staging, f"{self.default_output_name}.{self.runtime_id}")
        if self._running:
            try:
                os.makedirs(path, exist_ok=True)
            except OSError as error:
                if error.errno not in NEVER:
                    raise
                raise unusable(self.output_path, error) from error
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
            collected = self.collect_output_files(pool)
        if self.type == "link_manifest" and self.is_one_table:
            self._check_schemas(collected)
        self.dataset = DataSet.merge(collected)
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
            if self.mode in (None, "error"):
                check_no_foreign_files(self.output_path, str(self.ctx.job_id))
            if self.mode == "error" and not self.ctx.sched_epoch:
                check_holds_only(self.output_path, ())
            check_can_be_made(self.output_path)

    # collecting

    def collect_output_files(self, pool: ThreadPoolExecutor) -> "list[DataSet]":
        """The input datasets as whole files in staging (for a manifest: where they are)."""
        return [self._collect(dataset, index, pool) for index, dataset in enumerate(self.input_datasets)]

    def _collect(self, dataset: "DataSet", index: int, pool: ThreadPoolExecutor) -> "DataSet":
        """The dataset as whole files that may be moved: its own (manifest), links, copies, or written out."""
        if not _is_of_whole_files(dataset):
            written = self._write_out(dataset, index)
            written.kinds = self._kinds_to_tell(written)
            return written
        kinds = self._kinds_to_tell(dataset)  # before anything is made in staging
        staging = os.path.dirname(self.runtime_output_abspath) + os.sep
        sources = dataset.resolved_paths
        if self.type == "manifest" or all(path.startswith(staging) for path in sources):
            return dataset
        names = self._own_names(sources, index) if self.has_own_names else distinct_names(sources, self.num_dirs)
        targets = [os.path.join(self.runtime_output_abspath, name) for name in names]
        list(pool.map(self._place, sources, targets))
        collected = dataset.renamed(targets)
        collected.kinds = kinds
        return collected

    def _kinds_to_tell(self, dataset: "DataSet") -> "list[FileKind] | None":
        """What the publishing task has to know of the files' schemas; files that no task told of are checked. None if that needs no look."""
        from smallpond_mpi.logical.dataset import ParquetDataSet

        if self.publishes or not isinstance(dataset, ParquetDataSet):
            return None
        is_alone = dataset.num_files == 1 and all(info.npartitions == 1 for info in self.partition_infos)
        if (is_alone or not self.is_one_table) and len(dataset.recorded_file_sizes) == dataset.num_files:
            return None
        return self._kinds(dataset)

    def _kinds(self, dataset: "ParquetDataSet") -> "list[FileKind]":
        """One file of each schema. Opens every footer."""
        from smallpond_mpi.io.parquet import FileKind, map_in_threads, whole_schema
        from smallpond_mpi.io.partition_writer import digest_of

        items = [(index, item) for index, item in enumerate(dataset._ranges_as_known()) if self._is_parquet(item)]
        try:
            schemas = map_in_threads(whole_schema, [item for _, item in items], MAX_FOOTER_THREADS)
        except CorruptInput as error:
            if not isinstance(error.__cause__, IsADirectoryError) or not dataset._go_into_directories():
                raise
            return self._kinds(dataset)
        kinds: dict[int, FileKind] = {}
        for (index, item), schema in zip(items, schemas, strict=True):
            digest = digest_of(schema)
            kinds.setdefault(digest, FileKind(index, self._name_in_errors(item), digest))
        return list(kinds.values())

    def _is_parquet(self, item: "RowRange") -> bool:
        """Scripts may leave any files in the job's directories."""
        is_ours = item.path.startswith(self.ctx.job_root + os.sep)
        return item.is_promised or not is_ours or item.path.endswith(".parquet")

    def _name_in_errors(self, item: "RowRange") -> str:
        """The path of a user's file; of the job's own, which are gone by then, where they come from."""
        if not item.is_promised or self.made_at is None:
            return item.path
        parts = [str(info) for info in self.partition_infos if info.dimension != PartitionInfo.toplevel_dimension]
        return f"{' '.join(parts) or 'output'} of {self.made_at}"

    def _own_names(self, sources: Sequence[str], index: int) -> list[str]:
        """Names that no other sink gives, in the order of the files; the directories above them stay."""
        width = len(str(len(sources)))
        stem = f"{self.output_filename}-{index}"
        names = [f"{stem}.{number:0{width}}{os.path.splitext(source)[1]}" for number, source in enumerate(sources)]
        parents = [source.split(os.sep)[-1 - self.num_dirs : -1] for source in sources]
        return [os.path.join(*parent, name) for parent, name in zip(parents, names, strict=True)]

    def _write_out(self, dataset: "DataSet", index: int) -> "ParquetDataSet":
        from smallpond_mpi.execution.task.output import copy_dataset

        return copy_dataset(self, dataset, f"{self.output_filename}-{index}.parquet")

    def _place(self, source: str, target: str) -> None:
        if self.num_dirs:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # left by an attempt of the same name: a replay by hand
            os.unlink(target)
        if self.type == "copy" or not _link(source, target):
            self._copy_or_point_to(source, target)
        sync(target)

    def _copy_or_point_to(self, source: str, target: str) -> None:
        """Where no hard link can be. What goes with the job must be copied."""
        if self.type in ("copy", "link_or_copy") or source.startswith(self.ctx.job_root + os.sep):
            shutil.copyfile(source, target)
        else:
            os.symlink(source, target)

    # publishing

    def _check_schemas(self, collected: "Sequence[DataSet]") -> None:
        """Raise SchemaMismatch if the files of all partitions can't be read as one table."""
        from smallpond_mpi.io.arrow_types import UNION_ADVICE, unify
        from smallpond_mpi.io.parquet import map_in_threads, open_parquet
        from smallpond_mpi.logical.dataset import ParquetDataSet

        datasets = [dataset for dataset in collected if isinstance(dataset, ParquetDataSet)]
        if sum(dataset.num_files for dataset in datasets) < 2:
            return
        found: dict[int, tuple[str, str]] = {}
        for dataset in datasets:
            for kind in self._kinds(dataset) if dataset.kinds is None else dataset.kinds:
                found.setdefault(kind.digest, (kind.name, dataset.resolved_paths[kind.index]))
        if len(found) < 2:
            return

        def schema_of(path: str) -> Any:
            with open_parquet(path, promised=True) as file:
                return file.schema_arrow

        names = [name for name, _ in found.values()]
        schemas = map_in_threads(schema_of, [path for _, path in found.values()], MAX_FOOTER_THREADS)
        by_name = any(dataset.union_by_name for dataset in datasets)
        advice = UNION_ADVICE if any(map(os.path.isabs, names)) else PARTITIONS_ADVICE
        unify(list(zip(names, schemas, strict=True)), by_name, advice)

    def _publish(self, dataset: "DataSet") -> None:
        """Make the files of `dataset` appear under the output path, and the manifest after them."""
        self.obsolete_paths = self._stagings
        placed: dict[str, str] = {}
        final: list[str] = []
        sources = dataset.resolved_paths
        for name, source in zip(distinct_names(sources, self.num_dirs), sources, strict=True):
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
        job_id = str(self.ctx.job_id)
        marked = [name for name in placed if job_id not in name]
        if marked:
            write_mark(stage, job_id, marked)
        write_text(os.path.join(stage, self.manifest_filename), "".join(f"{path}\n" for path in final))
        fault_point("publish.staged")
        publish(stage, self.output_path, job_id, self.mode, manifest_only=self.type == "manifest")
        self.dataset = dataset.renamed(final)


def _must_stage_inside(output_path: str) -> bool:
    """Whether nothing can be renamed from beside the path to it: it is a link, something is mounted there, or the place beside is not ours."""
    return os.path.isdir(output_path) and (
        os.path.islink(output_path)
        or is_mount_point(output_path)
        or not os.access(os.path.dirname(output_path), os.W_OK | os.X_OK)
    )


def _link(source: str, target: str) -> bool:
    """A hard link. False for another mount, or a file system without them."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        return False
    return True


def _is_of_whole_files(dataset: "DataSet") -> bool:
    """Whether the files of a dataset are its rows, and can be linked: not in memory, not a part of a file, not on another system."""
    from smallpond_mpi.logical.dataset import ParquetDataSet

    if not getattr(dataset, "is_of_files", True) or any(map(is_url, dataset.paths)):
        return False

    if not isinstance(dataset, ParquetDataSet):
        return True
    if dataset.columns is not None or dataset.generated_columns is not None or dataset.has_columns_of_others:
        return False
    return dataset.is_of_whole_files


def _second_name(source: str, target: str) -> None:
    """Another name for a file in staging, so that publishing can be repeated; a copy where the file system has no links."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        else:
            shutil.copyfile(source, target)
