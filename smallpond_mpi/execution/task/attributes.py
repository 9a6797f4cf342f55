"""Which attributes of a task travel, and which way: planned on rank 0, to the child that runs an attempt, and back."""

from collections import deque
from numbers import Number

PLAIN = (bool, str, int, float, type(None), bytes, bytearray, range, Number)


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


DECLARED = _names(
    "ctx id node_id location output_name output_root dataset status exception start_time finish_time",
    "retry_count fail_count sched_epoch exec_id runtime_state timeout_secs isolated times_forgotten",
    "_cpu_limit _gpu_limit _memory_limit _cpu_boost _memory_boost _granted_gpus _granted_numa_node",
    "_deps _groups _input_keys _partition_infos _perf_metrics _ray_ref",
    "_temp_output _num_tasks_created _output_files _output_dir _has_written",
)
"""Attributes that belong to every task: the rest is what subclasses added."""

NOT_PAYLOAD = _names(
    "ctx id _deps _groups _partition_infos status exception start_time finish_time exec_cq",
    "retry_count fail_count sched_epoch exec_id runtime_state input_datasets dataset _perf_metrics",
    "_metrics _running _granted_gpus _granted_numa_node _num_tasks_created _ray_ref",
)
"""What never goes to a child with the task: it belongs to rank 0, to the attempt (in the header), or is made anew in the child."""

NOT_STATE = _names("ctx id _deps _groups _input_keys input_datasets exec_cq _metrics _running exception")
"""What never comes back."""

OUTPUT = _names("dataset _output_files _output_dir")
"""What says what an attempt's output is."""


def is_plain(value: object) -> bool:
    """Whether a value is plain data all through: bool, str, int, float, None, or a dict or iterable of them.

    Of the library's own types: a class of the user's, be it derived from int or dict, would have to be unpickled on rank 0.
    """
    if type(value).__module__ not in ("builtins", "collections", "numpy"):
        return False
    if isinstance(value, PLAIN):
        return True
    if isinstance(value, dict):
        if getattr(value, "default_factory", None) not in (None, bool, str, int, float, list, dict, set):
            return False
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    return isinstance(value, (list, tuple, set, frozenset, deque)) and all(map(is_plain, value))
