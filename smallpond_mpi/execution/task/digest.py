"""A hash of any value that is the same in every process: data by content, functions and classes by their code and what they use.

Pickle bytes won't do (sets follow the hash seed, code carries line numbers); neither will reprs (addresses). So a value is walked, in an
order that depends on nothing but the value, and what is met goes into one hash:

    data       content; what was met before is told by its number (cycles, shared parts)
    function   bytecode, constants, defaults, closure, and the globals that its code loads, if they are the script's
    class      its members, if it is the script's
    installed  module, name, version of the package: it stands for the code
"""

import copyreg
import functools
import types
import weakref
from collections.abc import Iterable, Mapping
from enum import Enum, EnumType
from typing import Any

from smallpond_mpi.execution.task.code import loaded_names, stable_code
from smallpond_mpi.execution.task.hashing import LENGTH, NotDigestible, content_of_table, new_hash
from smallpond_mpi.execution.task.installed import (
    is_installed_code,
    is_installed_module,
    module_of,
    source_of_script_module,
    version_of,
)

_NOT_MEMBERS = frozenset(
    {
        *("__module__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("_abc_impl", "__abstractmethods__"),
    }
)
_LOCKS = ("_thread.lock", "_thread.RLock")


def digest_of(value: object) -> bytes:
    """The digest of any value.

    Raises:
        NotDigestible: nobody can tell what its content is.
    """
    walk = _Walk(())
    try:
        walk.value(value)
        walk.finish()
    except RecursionError as error:
        raise NotDigestible(f"{type(value).__name__} is nested too deeply") from error
    return walk.digest()


class _Walk:
    """One walk. `within` are the sets whose elements are being walked apart, by identity."""

    def __init__(self, within: tuple[int, ...]) -> None:
        self._hasher = new_hash()
        self._within = within
        self._numbers: dict[int, int] = {}
        self._held: list[object] = []  # what has a number must live: identities are used again
        # Functions and classes come last, one after the other: they refer to each other in circles, however deep.
        self._later: list[Any] = []
        self._imports: set[str] = set()

    def digest(self) -> bytes:
        return self._hasher.digest()

    def finish(self) -> None:
        for value in self._later:  # grows while it is walked
            if isinstance(value, types.FunctionType):
                self._function(value)
            else:
                self._class(value)

    def _put(self, tag: str, *parts: bytes) -> None:
        update = self._hasher.update
        update(tag.encode())
        update(LENGTH.pack(len(parts)))
        for part in parts:
            update(LENGTH.pack(len(part)))
            update(part)

    def value(self, value: Any) -> None:
        kind = type(value)
        plain = _PLAIN.get(kind)
        if plain is not None:
            self._put(kind.__name__, plain(value))
        elif kind is tuple:
            self._put("tuple", LENGTH.pack(len(value)))
            for item in value:
                self.value(item)
        elif kind is types.CodeType:
            self._code(value)
        else:
            self._numbered(value, kind)

    def _values(self, values: Iterable[object]) -> None:
        for value in values:
            self.value(value)

    def _numbered(self, value: Any, kind: type) -> None:
        known = self._numbers.get(id(value))
        if known is not None:
            self._put("again", LENGTH.pack(known))
            return
        self._numbers[id(value)] = len(self._held)
        self._held.append(value)
        if kind is list:
            self._put("list", LENGTH.pack(len(value)))
            self._values(value)
        elif kind is dict:
            self._mapping(value)
        elif isinstance(value, (set, frozenset)):
            self._set(value, kind)
        elif isinstance(value, (types.FunctionType, type)) and not is_installed_code(value):
            self._put("code")
            self._later.append(value)
        else:
            self._other(value)

    def _mapping(self, value: Mapping[Any, Any]) -> None:
        """In its order, which may be that of columns."""
        self._put("dict", LENGTH.pack(len(value)))
        for key, item in value.items():
            self.value(key)
            self.value(item)

    def _set(self, value: "set[Any] | frozenset[Any]", kind: type) -> None:
        """Elements in the order of their own digests: that of the set follows the hash seed."""
        if id(value) in self._within:
            self._put("set around", LENGTH.pack(self._within.index(id(value))))
            return
        digests = []
        for element in value:
            walk = _Walk((*self._within, id(value)))
            walk.value(element)
            walk.finish()
            digests.append(walk.digest())
        self._put("set", *sorted(digests))
        if kind not in (set, frozenset):
            self.value(kind)
            self._attributes(getattr(value, "__dict__", {}))

    def _attributes(self, state: Mapping[str, Any]) -> None:
        """In the order of names: that in which they were set means nothing."""
        for name in sorted(state):
            self._put("attribute", name.encode())
            self.value(state[name])

    def _other(self, value: Any) -> None:
        """Everything that is not data of the language itself."""
        match value:
            case types.FunctionType() | type():
                self._installed(value)
            case Enum():
                self.value(type(value))
                self._put("enum", value.name.encode())
            case types.ModuleType():
                self._put("module", value.__name__.encode(), version_of(value.__name__))
            case types.MethodType():
                self._put("method")
                self._values((value.__func__, value.__self__))
            case types.BuiltinFunctionType():
                self._put("builtin", _name_of(value))
                if value.__self__ is not None and not isinstance(value.__self__, types.ModuleType):
                    self.value(value.__self__)
            case functools.partial():
                self._put("partial")
                self._values((value.func, value.args, value.keywords))
            case staticmethod() | classmethod():
                self._put(type(value).__name__)
                self.value(value.__func__)
            case property():
                self._put("property")
                self._values((value.fget, value.fset, value.fdel))
            case types.CellType():
                self._cell(value)
            case types.MappingProxyType():
                self._mapping(value)
            case weakref.ref():
                self._put("weakref")
                self.value(value())
            case bytearray() | memoryview():
                self._put("bytes", bytes(value))
            case _:
                self._object(value)

    def _cell(self, cell: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:
            self._put("empty cell")
        else:
            self.value(content)

    # code

    def _installed(self, value: Any) -> None:
        """Module, name and version; of a function that another one made also what it was made with."""
        self._put("installed", _name_of(value), version_of(module_of(value)))
        if isinstance(value, types.FunctionType) and "<locals>" in value.__code__.co_qualname:
            self._values((value.__defaults__, value.__kwdefaults__, value.__closure__))

    def _function(self, function: types.FunctionType) -> None:
        self._put("function")
        code = function.__code__
        self._code(code)
        self._values((function.__defaults__, function.__kwdefaults__, function.__closure__))
        self._attributes(function.__dict__)
        names = loaded_names(code)
        for name in sorted(names.globals & function.__globals__.keys()):
            self._put("global", name.encode())
            self._used(function.__globals__[name], names.attributes)
        self._imported(names.imports, str(function.__globals__.get("__package__") or ""))

    def _used(self, value: Any, attributes: frozenset[str], depth: int = 0) -> None:
        """A global: of a module of the script what the function takes from it, by the names that its code mentions."""
        if not isinstance(value, types.ModuleType) or is_installed_module(value.__name__) or depth > 8:
            self.value(value)
            return
        self._put("script's module", value.__name__.encode())
        for name in sorted(attributes & vars(value).keys()):
            self._put("global", name.encode())
            self._used(vars(value)[name], attributes, depth + 1)

    def _imported(self, names: Iterable[str], package: str) -> None:
        """Modules of the script that a function imports when it is called: whole, since they may not be there yet to look into."""
        for name in sorted(names):
            for candidate in dict.fromkeys((name, f"{package}.{name}".strip("."))):
                if candidate in self._imports:
                    break
                source = source_of_script_module(candidate)
                if source is not None:
                    self._imports.add(candidate)
                    self._put("imported", candidate.encode())
                    code = compile(source, candidate, "exec", dont_inherit=True)
                    self._code(code)
                    self._imported(loaded_names(code).imports, candidate.rpartition(".")[0])
                    break

    def _code(self, code: types.CodeType) -> None:
        instructions, constants = stable_code(code)
        self._put("bytecode", instructions)
        self._values(constants)

    def _class(self, cls: type) -> None:
        self._put("class", cls.__name__.encode())
        self._values(cls.__bases__)
        members = vars(cls)
        if isinstance(cls, EnumType):
            named: Mapping[str, Any] = cls.__members__
            self._attributes({name: member.value for name, member in named.items()})
            members = {name: one for name, one in members.items() if name not in named and _is_code(one)}  # type: ignore[assignment]
        self._attributes({name: member for name, member in members.items() if name not in _NOT_MEMBERS})

    # objects

    def _object(self, value: Any) -> None:
        own = getattr(type(value), "fingerprint_parts", None)
        if own is not None:
            self._put("parts")
            self.value(type(value))
            self.value(list(own(value)))
            return
        table = content_of_table(value)
        if table is not None:
            self._put("table", _name_of(type(value)), table)
            return
        if isinstance(value, functools._lru_cache_wrapper):
            self._put("cached")
            self.value(value.__wrapped__)
            return
        if _name_of(type(value)).decode() in _LOCKS:
            self._put("lock")
            return
        self._reduced(_reduce(value))

    def _reduced(self, reduced: Any) -> None:
        """What the object would be pickled as."""
        if isinstance(reduced, str):
            self._put("name", reduced.encode())
            return
        make, args, state, items, pairs = (tuple(reduced) + (None,) * 3)[:5]
        self._put("object")
        self._values((make, args))
        if isinstance(state, dict) and all(isinstance(name, str) for name in state):
            self._put("state")
            self._attributes(state)
        else:
            self.value(state)
        for part in (items, pairs):
            self.value(None if part is None else list(part))


_PLAIN: dict[type, Any] = {
    type(None): lambda value: b"",
    type(...): lambda value: b"",
    type(NotImplemented): lambda value: b"",
    bool: lambda value: b"1" if value else b"0",
    int: lambda value: b"%x" % value,
    float: lambda value: value.hex().encode(),
    complex: lambda value: f"{value.real.hex()} {value.imag.hex()}".encode(),
    str: lambda value: value.encode("utf-8", "surrogatepass"),
    bytes: lambda value: value,
}


def _is_code(value: object) -> bool:
    return isinstance(value, (types.FunctionType, property, staticmethod, classmethod))


def _reduce(value: Any) -> Any:
    reducer = copyreg.dispatch_table.get(type(value))
    try:
        return reducer(value) if reducer is not None else value.__reduce_ex__(2)
    except Exception as error:  # it runs the user's __reduce__ and __getstate__: anything can come out
        raise NotDigestible(f"{type(value).__name__}: {error}") from error


def _name_of(value: Any) -> bytes:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{getattr(value, '__module__', '') or ''}.{name}".encode()
