"""What a task would compute, as a hash that is the same in every run of the same script.

A job that is started again takes a recorded output for a task only if the fingerprints match, so what counts is what the result depends
on: kind, parameters, code, inputs. Never ids, places in the script, or what the task is granted.

    names(task)    = H(class, attributes, partitions, names of its inputs)                      rows don't count, only which files they are in
    content(task)  = H(class, attributes, partitions, content stamp, contents of its inputs)    size and time of source files count too

The fingerprint of a task that reads is its content; that of one which only deals with names (a view, a manifest) is its names: files that
nobody reads are not looked at, however many there are. Tasks that are alike in everything are told apart by how many came before.
"""

import logging
import os

from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.digest import digest_of
from smallpond_mpi.execution.task.hashing import DIGEST_BYTES, NotDigestible, hash_of, new_hash

__all__ = ["DIGEST_BYTES", "Fingerprinter", "NotDigestible", "digest_of"]

logger = logging.getLogger(__name__)

# Attributes that say where a task stands, or what it is granted: not what it computes.
_NOT_PART = frozenset(
    {
        *("ctx", "id", "node_id", "location", "made_at", "_deps", "_groups", "_input_keys", "_partition_infos"),
        *("status", "exception", "start_time", "finish_time", "exec_cq", "exec_id"),
        *("retry_count", "fail_count", "sched_epoch", "runtime_state", "input_datasets", "dataset"),
        *(
            "_perf_metrics",
            "_metrics",
            "_running",
            "_output_files",
            "_output_dir",
            "_has_written",
            "_num_tasks_created",
            "_ray_ref",
        ),
        *(
            "_granted_gpus",
            "_granted_numa_node",
            "_cpu_limit",
            "_gpu_limit",
            "_memory_limit",
            "_cpu_boost",
            "_memory_boost",
        ),
        *("timeout_secs", "isolated", "_numpy_random_gen", "_python_random_gen"),
    }
)
_NO_INPUTS = b"no inputs"
_SIMPLE = (int, str, float, bool, type(None))


class Fingerprinter:
    """Fingerprints of the tasks of a session; what tasks share is hashed once (held by identity while this object lives)."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}
        self._held: list[object] = []  # keeps identities valid
        self._by_task: dict[int, bytes] = {}
        self._contents: dict[int, bytes] = {}  # of tasks that don't read: of the others it is the fingerprint
        self._of_deps: dict[tuple[int, bool], bytes] = {}
        self._times: dict[bytes, int] = {}

    def of_task(self, task: Task) -> bytes:
        """The fingerprint of a task whose inputs' fingerprints were taken before (plans are walked from the sources)."""
        known = self._by_task.get(task.id)
        if known is not None:
            return known
        hasher = new_hash()
        hasher.update(self._shared(type(task)))
        attrs = task.__dict__
        for name in sorted(attrs.keys() - _NOT_PART):
            value = attrs[name]
            hasher.update(name.encode())
            hasher.update(repr(value).encode() if type(value) in _SIMPLE else self._shared(value))
        hasher.update(repr(task.partition_infos).encode())
        if _reads(task):
            hasher.update(self._stamp(task))
            hasher.update(self._of_inputs(task._deps, contents=True))
        else:
            hasher.update(self._of_inputs(task._deps, contents=False))
        digest = self._by_task[task.id] = self._told_apart(hasher.digest())
        return digest

    def _told_apart(self, digest: bytes) -> bytes:
        """Two tasks that are alike have outputs of their own (they may draw random numbers): the second is another one."""
        times = self._times.get(digest, 0)
        self._times[digest] = times + 1
        return digest if not times else hash_of(digest, str(times).encode())

    def _of_inputs(self, deps: Dependencies, contents: bool) -> bytes:
        if not deps.tasks:
            return _NO_INPUTS
        key = (id(deps), contents)
        known = self._of_deps.get(key)
        if known is None:
            of_one = self._content_of if contents else self.of_task
            known = self._of_deps[key] = hash_of(*(of_one(task) for task in deps.tasks))
            self._held.append(deps)
        return known

    def _content_of(self, task: Task) -> bytes:
        """What a reader of the task's output depends on."""
        if _reads(task):
            return self._by_task[task.id]
        # Not by recursion: thousands of views may stand on each other.
        stack = [task]
        while stack:
            view = stack[-1]
            unknown = [dep for dep in view._deps.tasks if not _reads(dep) and dep.id not in self._contents]
            if view.id in self._contents or not unknown:
                stack.pop()
                if view.id not in self._contents:
                    inputs = self._of_inputs(view._deps, contents=True)
                    self._contents[view.id] = hash_of(self.of_task(view), self._stamp(view), inputs)
            else:
                stack.extend(unknown)
        return self._contents[task.id]

    def _stamp(self, task: Task) -> bytes:
        stamp = task.content_stamp()
        return b"" if stamp is None else self._shared(stamp)

    def _shared(self, value: object) -> bytes:
        """The digest of a value that siblings are likely to share."""
        known = self._digests.get(id(value))
        if known is None:
            self._held.append(value)
            known = self._digests[id(value)] = self._digest(value)
        return known

    def _digest(self, value: object) -> bytes:
        try:
            return digest_of(value)
        except NotDigestible as error:
            # It is like nothing else: the task runs in every epoch. If it can't be pickled either, that is said when it is sent.
            logger.info("a restart of this job can't take up what depends on %s", error)
            return os.urandom(DIGEST_BYTES)


def _reads(task: Task) -> bool:
    return task.reads_content and not task.runs_here
