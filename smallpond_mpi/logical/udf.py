"""Functions of the user in SQL: Python functions, Python extension modules, DuckDB extensions, and the types of their arguments.

A UDFContext travels with the tasks that need it and is bound to the connection that runs their queries.
"""

import importlib.machinery
import importlib.util
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Protocol

import duckdb
from duckdb import func as _duckdb_func

from smallpond_mpi.common import InputNotFound, InvalidArgument


class UDFType(Enum):
    """DuckDB's types by name."""

    SQLNULL = 1
    BOOLEAN = 2
    TINYINT = 3
    UTINYINT = 4
    SMALLINT = 5
    USMALLINT = 6
    INTEGER = 7
    UINTEGER = 8
    BIGINT = 9
    UBIGINT = 10
    HUGEINT = 11
    UUID = 12
    FLOAT = 13
    DOUBLE = 14
    DATE = 15
    TIMESTAMP = 16
    TIMESTAMP_MS = 17
    TIMESTAMP_NS = 18
    TIMESTAMP_S = 19
    TIME = 20
    TIME_TZ = 21
    TIMESTAMP_TZ = 22
    VARCHAR = 23
    BLOB = 24
    BIT = 25
    INTERVAL = 26

    def to_duckdb_type(self) -> Any:
        """The type as DuckDB's Python API takes it."""
        return duckdb.sqltype(SQL_NAMES.get(self.name, self.name))


SQL_NAMES = {"SQLNULL": '"NULL"', "TIME_TZ": "TIMETZ", "TIMESTAMP_TZ": "TIMESTAMPTZ"}
"""Where SQL spells a type in another way."""


class UDFTypeLike(Protocol):
    """A type that can be said in DuckDB's terms."""

    def to_duckdb_type(self) -> Any:
        """The type as DuckDB's Python API takes it."""
        ...


def as_duckdb_type(type_: Any) -> Any:
    """Any way to name a type: ours, SQL text, or DuckDB's own."""
    if hasattr(type_, "to_duckdb_type"):
        return type_.to_duckdb_type()
    return duckdb.sqltype(type_) if isinstance(type_, str) else type_


class UDFStructType:
    """A struct; its fields by name, or types alone (then the names are v1, v2 and so on)."""

    def __init__(self, fields: Mapping[str, Any] | Sequence[Any]) -> None:
        self.fields = fields

    def to_duckdb_type(self) -> Any:
        """The type as DuckDB's Python API takes it."""
        fields = self.fields
        if not isinstance(fields, Mapping):
            fields = {f"v{number}": type_ for number, type_ in enumerate(fields, start=1)}
        return duckdb.struct_type({name: as_duckdb_type(type_) for name, type_ in fields.items()})


class UDFListType:
    """A list of `child`."""

    def __init__(self, child: Any) -> None:
        self.child = child

    def to_duckdb_type(self) -> Any:
        """The type as DuckDB's Python API takes it."""
        return duckdb.list_type(as_duckdb_type(self.child))


class UDFMapType:
    """A map from `key` to `value`."""

    def __init__(self, key: Any, value: Any) -> None:
        self.key = key
        self.value = value

    def to_duckdb_type(self) -> Any:
        """The type as DuckDB's Python API takes it."""
        return duckdb.map_type(as_duckdb_type(self.key), as_duckdb_type(self.value))


class UDFAnyParameters:
    """Any number of arguments of any type."""

    def __init__(self) -> None:
        pass

    def to_duckdb_type(self) -> Any:
        """None: what DuckDB takes for parameters that are not to be checked."""
        return None


class UDFContext:
    """Something that gives SQL more functions."""

    name: str
    # Whether a connection must be one that loads extensions which DuckDB's makers did not sign.
    needs_unsigned_extensions = False

    @abstractmethod
    def bind(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Make the functions known to a connection."""
        raise NotImplementedError


class PythonUDFContext(UDFContext):
    """A Python function, called with Python values row by row, or with Arrow arrays if `use_arrow_type`.

    `params` and `return_type` of None are taken from the function's annotations.
    """

    def __init__(
        self,
        name: str,
        func: Callable[..., Any],
        params: "Sequence[UDFTypeLike] | UDFAnyParameters | None",
        return_type: UDFTypeLike | None,
        use_arrow_type: bool = False,
    ) -> None:
        if not callable(func):
            raise InvalidArgument(f"function {name!r} is not callable: {func!r}")
        self.name = name
        self.func = func
        self.params = params
        self.return_type = return_type
        self.use_arrow_type = use_arrow_type

    def __repr__(self) -> str:
        return f"PythonUDFContext({self.name!r})"

    def bind(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Create the function on a connection, in place of one of that name that an earlier task has left."""
        with suppress(duckdb.InvalidInputException):  # the usual case: there is none
            conn.remove_function(self.name)
        kinds = _duckdb_func.PythonUDFType
        try:
            conn.create_function(
                self.name,
                self.func,
                self._parameters(),
                None if self.return_type is None else as_duckdb_type(self.return_type),
                type=kinds.ARROW if self.use_arrow_type else kinds.NATIVE,
            )
        except duckdb.Error as error:
            raise InvalidArgument(f"DuckDB refuses function {self.name!r}: {error}") from error

    def _parameters(self) -> list[Any] | None:
        if self.params is None or isinstance(self.params, UDFAnyParameters):
            return None
        if any(isinstance(type_, UDFAnyParameters) for type_ in self.params):
            return None
        return [as_duckdb_type(type_) for type_ in self.params]


class ExternalModuleContext(UDFContext):
    """A Python extension module (`.so`, or `.py`) whose `create_duckdb_functions(conn)`, or `bind(conn)`, creates functions."""

    ENTRY_POINTS = ("create_duckdb_functions", "bind")

    def __init__(self, name: str, module_path: str) -> None:
        self.name = name
        self.module_path = os.path.abspath(module_path)

    def __repr__(self) -> str:
        return f"ExternalModuleContext({self.name!r}, {self.module_path!r})"

    def bind(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Load the module and let it create its functions."""
        module = self._load()
        for entry_point in self.ENTRY_POINTS:
            create = getattr(module, entry_point, None)
            if create is not None:
                create(conn)
                return
        raise InvalidArgument(f"module {self.module_path!r} has none of: {', '.join(self.ENTRY_POINTS)}")

    def _load(self) -> Any:
        if not os.path.isfile(self.module_path):
            raise InputNotFound(f"module {self.module_path!r} does not exist")
        # `name.cpython-311-x86_64-linux-gnu.so`: an extension module's init function is called by the bare name
        module_name = os.path.basename(self.module_path).partition(".")[0]
        spec = importlib.util.spec_from_file_location(module_name, self.module_path)
        if spec is None or spec.loader is None:
            suffixes = ", ".join(importlib.machinery.all_suffixes())
            raise InvalidArgument(f"{self.module_path!r} is no Python module; their names end in: {suffixes}")
        loaded = sys.modules.get(module_name)
        if isinstance(spec.loader, importlib.machinery.ExtensionFileLoader) and loaded is not None:
            if getattr(loaded, "__file__", None) != self.module_path:
                raise InvalidArgument(
                    f"can't load module {self.module_path!r}: another module is called {module_name!r}"
                )
            return loaded  # an extension module can be loaded once
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise InvalidArgument(f"can't load module {self.module_path!r}: {error}") from error
        if isinstance(spec.loader, importlib.machinery.ExtensionFileLoader):
            sys.modules[module_name] = module
        return module


class DuckDbExtensionContext(UDFContext):
    """A `.duckdb_extension` file; one that DuckDB's makers did not sign needs a connection made with `allow_unsigned_extensions`.

    A task's connection is made so: who names the file wants it loaded.
    """

    needs_unsigned_extensions = True

    def __init__(self, name: str, extension_path: str) -> None:
        self.name = name
        self.extension_path = os.path.abspath(extension_path)

    def __repr__(self) -> str:
        return f"DuckDbExtensionContext({self.name!r}, {self.extension_path!r})"

    def bind(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Load the extension."""
        if not os.path.isfile(self.extension_path):
            raise InputNotFound(f"extension {self.extension_path!r} does not exist")
        try:
            conn.load_extension(self.extension_path)
        except duckdb.Error as error:
            raise InvalidArgument(f"DuckDB can't load {self.extension_path!r}: {error}") from error


class UserDefinedFunction:
    """What `@udf` makes of a function: it can be listed among the `udfs` of a SQL node, and still be called."""

    def __init__(
        self,
        name: str,
        func: Callable[..., Any],
        params: Sequence[UDFTypeLike] | UDFAnyParameters | None,
        return_type: UDFTypeLike | None,
        use_arrow_type: bool = False,
    ) -> None:
        self.name = name
        self.func = func
        self.params = params
        self.return_type = return_type
        self.use_arrow_type = use_arrow_type
        self.__doc__ = func.__doc__

    def __repr__(self) -> str:
        return f"UserDefinedFunction({self.name!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as it was written."""
        return self.func(*args, **kwargs)


def udf(
    params: Sequence[UDFTypeLike] | UDFAnyParameters,
    return_type: UDFTypeLike,
    use_arrow_type: bool = False,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], UserDefinedFunction]:
    """Decorator: make a function usable in SQL, under its own name unless `name` is given."""

    def decorate(func: Callable[..., Any]) -> UserDefinedFunction:
        return UserDefinedFunction(name or func.__name__, func, params, return_type, use_arrow_type)

    return decorate
