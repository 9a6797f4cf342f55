"""Directories of results that users named: one an attempt ({root}/{name}/{job}.{attempt}), of which only accepted ones may stay.

An attempt may die between the rename that makes its output whole and the record that makes it the task's. What it left is found by its
name: at the start of a submission, at its end, and at the end of the job. It leaves in one step, as it came.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import PurePath

from smallpond_mpi.execution.task.base import Task


class NamedOutputs:
    """The directories that a session's tasks leave their named results in."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._kept: set[str] = set()  # attempts whose output is a task's
        self._trash_of: dict[str, str] = {}  # directory of attempts -> staging on the same file system

    def expect(self, tasks: Iterable[Task]) -> None:
        """These tasks will be run."""
        for task in tasks:
            if has_directory_of_its_own(task):
                parent = os.path.dirname(task.final_output_abspath)
                self._trash_of[parent] = task.staging_root or task.ctx.staging_root

    def keep(self, task: Task, attempt: str) -> None:
        """This attempt's output is the task's."""
        if not task.temp_output:
            self._kept.add(attempt)

    def sweep(self, also_kept: Iterable[str] = ()) -> None:
        """Remove what attempts of this job left that are nobody's output, but for `also_kept`.

        Raises:
            OSError: a directory can't be listed (any longer); what is in the others has gone.
        """
        kept = self._kept.union(also_kept)
        unlisted: list[OSError] = []
        for parent, trash in self._trash_of.items():
            try:
                attempts = self._attempts_in(parent)
            except OSError as error:
                unlisted.append(error)
                continue
            for attempt in attempts:
                if attempt not in kept:
                    remove_at_once(os.path.join(parent, f"{self._job_id}.{attempt}"), trash)
        if unlisted:
            raise unlisted[0]

    def remove(self, files: Iterable[str], attempt: str, trash: str) -> None:
        """Remove the directory of an attempt that left these files; never one that attempts share."""
        for directory in {self._directory_of(path, attempt) for path in files} - {None}:
            remove_at_once(str(directory), trash)

    def _directory_of(self, path: str, attempt: str) -> str | None:
        own = f"{self._job_id}.{attempt}"
        return next((str(parent) for parent in PurePath(path).parents if parent.name == own), None)

    def _attempts_in(self, parent: str) -> list[str]:
        try:
            names = os.listdir(parent)
        except FileNotFoundError:
            return []
        parts = (name.partition(".") for name in names)
        return [attempt for job, _, attempt in parts if job == self._job_id]


def has_directory_of_its_own(task: Task) -> bool:
    """Whether each of its attempts leaves a result where the user said."""
    return not (task.temp_output or task.runs_here or hasattr(task, "publishes"))


def remove_at_once(directory: str, trash: str) -> None:
    """Remove a directory that readers can see: it is gone in one step, its content afterwards."""
    hidden = os.path.join(trash, f"removed.{os.path.basename(directory)}")
    try:
        os.makedirs(trash, exist_ok=True)
        os.rename(directory, hidden)
    except OSError:  # not there any more, or on another file system after all
        hidden = directory
    shutil.rmtree(hidden, ignore_errors=True)
