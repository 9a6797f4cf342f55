"""What a task would compute, as a hash that is the same in every run of the same script.

A job that is started again takes a recorded output for a task only if the fingerprints match, so what counts is what the result depends
on: kind, parameters, code, inputs. Never line numbers, ids, memory addresses or pickle bytes (sets follow the hash seed).

    digest(task) = H(class, attributes, partition, digests of its inputs)
"""

import dis
import functools
import hashlib
import inspect
import os
import struct
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies

DIGEST_BYTES = 16

# Attributes that say where a task stands, not what it computes.
_NOT_PART = frozenset(
    {
        *(
            "ctx",
            "id",
            "node_id",
            "location",
            "_deps",
            "_groups",
            "status",
            "exception",
            "start_time",
            "finish_time",
            "exec_cq",
            "exec_id",
        ),
        *(
            "retry_count",
            "fail_count",
            "sched_epoch",
            "runtime_state",
            "input_datasets",
            "_perf_metrics",
            "_metrics",
            "_running",
        ),
        *(
            "_granted_gpus",
            "_granted_numa_node",
            "_num_tasks_created",
            "_cpu_limit",
            "_gpu_limit",
            "_memory_limit",
            "timeout_secs",
        ),
        *(
            "_temp_output",
            "isolated",
            "_partition_infos",
            "_input_keys",
            "_numpy_random_gen",
            "_python_random_gen",
            "_output_files",
            "_has_written",
        ),
    }
)
# Our own code is told apart by this number, not by its bytecode: a new version of the package that computes the same keeps results.
_OWN_CODE_VERSION = b"1"
_NO_INPUTS = b"no inputs"


class Fingerprinter:
    """Digests of tasks; what tasks share is hashed once (held by identity while this object lives)."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}
        self._held: list[object] = []  # keeps ids valid
        self._by_task: dict[int, bytes] = {}

    def of_task(self, task: Task) -> bytes:
        """The digest of a task whose inputs' digests were taken before (plans are walked from the sources)."""
        known = self._by_task.get(task.id)
        if known is not None:
            return known
        hasher = _new()
        hasher.update(self._shared(type(task)))
        attrs = task.__dict__
        for name in sorted(attrs):
            if name not in _NOT_PART:
                hasher.update(name.encode())
                hasher.update(self._shared(attrs[name]))
        hasher.update(repr(task.partition_infos).encode())
        hasher.update(self._of_dependencies(task._deps))
        digest = self._by_task[task.id] = hasher.digest()
        return digest

    def _of_dependencies(self, deps: Dependencies) -> bytes:
        if not deps.tasks:
            return _NO_INPUTS
        known = self._digests.get(id(deps))
        if known is None:
            known = self._hold(deps, _hash(b"deps", *(self._by_task[task.id] for task in deps.tasks)))
        return known

    def _shared(self, value: object) -> bytes:
        """The digest of a value that siblings are likely to share."""
        if isinstance(value, (int, str, float, bool, type(None))):
            return digest_of(value)
        known = self._digests.get(id(value))
        return known if known is not None else self._hold(value, digest_of(value))

    def _hold(self, value: object, digest: bytes) -> bytes:
        self._held.append(value)
        self._digests[id(value)] = digest
        return digest


def _new() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


def _hash(*parts: bytes) -> bytes:
    hasher = _new()
    for part in parts:
        hasher.update(struct.pack("<Q", len(part)))
        hasher.update(part)
    return hasher.digest()


def digest_of(value: object) -> bytes:
    """The digest of any value: by content for data, by code for functions and classes, by state for other objects."""
    return _Walk().digest(value)


class _Walk:
    """One walk over a value. Objects that refer back to themselves are told by the depth at which they were entered."""

    def __init__(self) -> None:
        self._entered: dict[int, int] = {}

    def digest(self, value: Any) -> bytes:
        match value:
            case None | bool() | int() | str() | float() | complex() | bytes() | PurePath():
                if isinstance(value, Enum):
                    return _hash(b"enum", _name_of(type(value)), value.name.encode())
                return _hash(b"plain", type(value).__name__.encode(), repr(value).encode())
            case bytearray() | memoryview():
                return _hash(b"bytes", bytes(value))
            case Enum():
                return _hash(b"enum", _name_of(type(value)), value.name.encode())
        if id(value) in self._entered:
            return _hash(b"cycle", str(len(self._entered) - self._entered[id(value)]).encode())
        self._entered[id(value)] = len(self._entered)
        try:
            return self._composite(value)
        finally:
            del self._entered[id(value)]

    def _composite(self, value: Any) -> bytes:
        match value:
            case list() | tuple():
                return _hash(b"seq", _name_of(type(value)), *map(self.digest, value))
            case set() | frozenset():
                return _hash(b"set", *sorted(map(self.digest, value)))
            case Mapping() if type(value).__module__ in ("builtins", "collections"):
                return _hash(
                    b"map", *(part for key, item in value.items() for part in (self.digest(key), self.digest(item)))
                )
            case types.FunctionType():
                return self._function(value)
            case types.MethodType():
                return _hash(b"method", self.digest(value.__func__), self.digest(value.__self__))
            case functools.partial():
                return _hash(b"partial", self.digest(value.func), self.digest(value.args), self.digest(value.keywords))
            case types.BuiltinFunctionType() | types.ModuleType():
                return _hash(b"name", _name_of(value))
            case types.CodeType():
                return self._code(value)
            case type():
                return self._class(value)
            case types.CellType():
                return self._cell(value)
            case property():
                return _hash(b"property", *(self.digest(part) for part in (value.fget, value.fset, value.fdel)))
            case staticmethod() | classmethod():
                return _hash(b"wrapped", self.digest(value.__func__))
        return self._object(value)

    def _cell(self, cell: types.CellType) -> bytes:
        try:
            return self.digest(cell.cell_contents)
        except ValueError:
            return _hash(b"empty cell")

    def _function(self, function: types.FunctionType) -> bytes:
        if _is_installed(function):
            return _hash(b"name", _name_of(function), _version_of(function))
        # What else of the script the function calls, by the names that its code (and the code nested in it) loads.
        names = sorted(_global_names(function.__code__) & function.__globals__.keys())
        used = [self.digest(function.__globals__[name]) for name in names]
        return _hash(
            b"function",
            self._code(function.__code__),
            self.digest(function.__defaults__),
            self.digest(function.__kwdefaults__),
            self.digest(tuple(function.__closure__ or ())),
            *(name.encode() for name in names),
            *used,
        )

    def _code(self, code: types.CodeType) -> bytes:
        """Instructions, constants and names; neither line numbers nor the file."""
        doc = _doc_index(code)
        consts = [None if index == doc else const for index, const in enumerate(code.co_consts)]
        instructions = [(one.opname, one.arg) for one in dis.get_instructions(code)]
        return _hash(
            b"code",
            repr(instructions).encode(),
            *map(self.digest, consts),
            repr(
                (
                    code.co_names,
                    code.co_varnames,
                    code.co_freevars,
                    code.co_argcount,
                    code.co_kwonlyargcount,
                    code.co_flags,
                )
            ).encode(),
        )

    def _class(self, cls: type) -> bytes:
        if _is_installed(cls):
            return _hash(b"name", _name_of(cls), _version_of(cls))
        skip = {
            "__module__",
            "__doc__",
            "__dict__",
            "__weakref__",
            "__firstlineno__",
            "__static_attributes__",
            "__annotations__",
        }
        members = [(name, member) for name, member in sorted(vars(cls).items()) if name not in skip]
        return _hash(
            b"class",
            cls.__name__.encode(),
            *map(self.digest, cls.__bases__),
            *(part for name, member in members for part in (name.encode(), self.digest(member))),
        )

    def _object(self, value: Any) -> bytes:
        own: Callable[[], Iterable[object]] | None = getattr(value, "fingerprint_parts", None)
        if own is not None:
            return _hash(b"parts", self.digest(type(value)), *map(self.digest, own()))
        content = _content_of_table(value)
        if content is not None:
            return _hash(b"table", _name_of(type(value)), content)
        has_own_way = _overrides(value, "__reduce_ex__") or _overrides(value, "__reduce__")
        reduced = value.__reduce_ex__(2) if has_own_way else None
        if isinstance(reduced, str):
            return _hash(b"name", _name_of(type(value)), reduced.encode())
        if reduced is not None:
            make, args, *rest = reduced
            state = rest[0] if rest else None
            items = [list(part) if part is not None else None for part in rest[1:3]]
            return _hash(b"reduced", self.digest(make), self.digest(args), self.digest(state), self.digest(items))
        return _hash(b"object", self.digest(type(value)), self.digest(_state_of(value)))


def _overrides(value: object, method: str) -> bool:
    """Whether a value's class defines a method that every object has."""
    return getattr(type(value), method, None) is not getattr(object, method, None)


def _state_of(value: Any) -> Any:
    if _overrides(value, "__getstate__"):
        return value.__getstate__()
    slots = [name for cls in type(value).__mro__ for name in _as_names(getattr(cls, "__slots__", ()))]
    state = {
        name: getattr(value, name) for name in slots if hasattr(value, name) and name not in ("__dict__", "__weakref__")
    }
    return dict(sorted((state | getattr(value, "__dict__", {})).items()))


def _as_names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _name_of(value: Any) -> bytes:
    return (
        f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}".encode()
    )


@functools.cache
def _is_installed_module(name: str) -> bool:
    """Whether a module is installed (or the standard library's), so that its version stands for its code."""
    if name in ("__main__", "__mp_main__"):
        return False
    top = sys.modules.get(name.partition(".")[0])
    path = getattr(top, "__file__", None)
    if path is None or top is None:
        return True  # built in, or a namespace: there is no code of the user's to look at
    if name.partition(".")[0] == "smallpond_mpi" or name.partition(".")[0] in sys.stdlib_module_names:
        return True
    return f"{os.sep}site-packages{os.sep}" in path or f"{os.sep}dist-packages{os.sep}" in path


def _is_installed(value: Any) -> bool:
    module = getattr(value, "__module__", None)
    return module is not None and _is_installed_module(module)


@functools.cache
def _version_of_package(name: str) -> bytes:
    if name == "smallpond_mpi":
        return _OWN_CODE_VERSION
    return str(getattr(sys.modules.get(name), "__version__", "")).encode()


def _version_of(value: Any) -> bytes:
    return _version_of_package(str(value.__module__).partition(".")[0])


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for const in code.co_consts:
        if inspect.iscode(const):
            names |= _global_names(const)
    return names


def _doc_index(code: types.CodeType) -> int | None:
    """Where a function's docstring lies among its constants: first, if it has one (a lambda or comprehension has none)."""
    if code.co_name.startswith("<") or not code.co_flags & inspect.CO_OPTIMIZED:
        return None
    return 0 if code.co_consts and isinstance(code.co_consts[0], str) else None


def _content_of_table(value: Any) -> bytes | None:
    """The content of an Arrow table, NumPy array or pandas frame; None for anything else. Nothing is imported for it."""
    module = type(value).__module__.partition(".")[0]
    if module == "numpy" and hasattr(value, "tobytes") and hasattr(value, "dtype"):
        if value.dtype.hasobject:
            return _hash(
                str(value.dtype).encode(),
                repr(value.shape).encode(),
                *(digest_of(item) for item in value.ravel().tolist()),
            )
        return _hash(str(value.dtype).encode(), repr(value.shape).encode(), value.tobytes())
    if module == "pandas" and hasattr(value, "to_records"):
        import pyarrow

        with_index = pyarrow.Table.from_pandas(value)
        return _content_of_table(with_index)
    if module == "pyarrow" and hasattr(value, "schema") and hasattr(value, "to_batches"):
        import pyarrow

        sink = _HashingSink()
        combined = value.combine_chunks()
        with pyarrow.ipc.new_stream(pyarrow.PythonFile(sink, mode="w"), combined.schema) as writer:
            writer.write_table(combined)
        return sink.hasher.digest()
    if module == "pyarrow" and hasattr(value, "equals"):
        return str(value).encode() + repr(getattr(value, "metadata", None)).encode()
    return None


class _HashingSink:
    """A file that only remembers the hash of what was written to it."""

    def __init__(self) -> None:
        self.hasher = _new()
        self.closed = False

    def write(self, data: Any) -> int:
        self.hasher.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
