"""What of the user's script travels by value, so that workers need no copy of it: functions and classes of `__main__` (cloudpickle does
that by itself), those of modules that lie beside the script, and functions of both that remember their results (`functools.cache`). All of them
still know the file that they come from: tracebacks name it.
"""

import contextlib
import functools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, ModuleType
from typing import Any

import cloudpickle

from smallpond_mpi import common

_real_path = functools.cache(os.path.realpath)
"""Hundreds of modules are looked at before each run: following the links of their paths each time takes 40 ms."""


def script_dirs() -> list[str]:
    """The directories whose modules are the user's script: where it lies, or, in a notebook or shell, the working directory."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    return [os.path.dirname(os.path.abspath(path))] if path else [os.getcwd()]


def import_dirs() -> list[str]:
    """What children are to find modules in besides: the script's directories, and those of packages below them, which it may have added itself."""
    dirs = script_dirs()
    below = tuple(os.path.join(_real_path(path), "") for path in dirs)
    return [*dirs, *(path for path in package_dirs() if path.startswith(below))]


def package_dirs() -> list[str]:
    """Directories of sys.path that packages were installed into (`pip install --target`, say): their metadata lies beside them."""
    return [path for path in map(_real_path, filter(None, sys.path)) if _holds_packages(path)]


@functools.cache
def _holds_packages(directory: str) -> bool:
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(directory))
    except OSError:  # a zip file, or not there
        return False


def pickle_by_value_what_lies_beside(
    script_dirs: Iterable[str], modules: Mapping[str, ModuleType] = sys.modules
) -> None:
    """Let functions and classes of modules in these directories travel by value: workers need no copy of them.

    Installed packages, even in an environment or a directory of packages below such a directory, travel by name.
    """
    roots = tuple(os.path.join(_real_path(path), "") for path in script_dirs if path)
    installed = tuple(
        os.path.join(_real_path(path), "")
        for path in {*sysconfig.get_paths().values(), sys.prefix, os.path.dirname(common.__file__), *package_dirs()}
        if path
    )
    for name, module in list(modules.items()):
        path = getattr(module, "__file__", None)
        if not path or name in ("__main__", "__mp_main__") or name.partition(".")[0] == "smallpond_mpi":
            continue
        path = _real_path(path)
        if path.startswith(roots) and not path.startswith(
            tuple(root for root in installed if not _within(root, roots))
        ):
            with contextlib.suppress(ValueError):  # a module that took itself out of sys.modules
                cloudpickle.register_pickle_by_value(module)


def _within(installed: str, roots: tuple[str, ...]) -> bool:
    """Whether a script's directory lies in this installed one (a script in the environment's own bin, say): then it's the script's."""
    return any(root.startswith(installed) for root in roots)


def _reduce_cached(function: Any) -> str | tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function that remembers its results: by name if the function inside goes by name, else made anew, with nothing remembered."""
    inner = function.__wrapped__
    if not _goes_by_value(inner):
        return str(function.__qualname__)
    parameters = function.cache_parameters()
    return _cached, (inner, parameters["maxsize"], parameters["typed"])


def _goes_by_value(function: Any) -> bool:
    module, name = str(function.__module__), str(function.__qualname__)
    by_value = ("__main__", "__mp_main__", *cloudpickle.list_registry_pickle_by_value())
    return "<locals>" in name or any(module == one or module.startswith(f"{one}.") for one in by_value)


def _cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


_reduce_nameless: Callable[[CodeType], tuple[Any, ...]] = cloudpickle.CloudPickler.dispatch_table[CodeType]


def _reduce_code(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    """Code with the name of its file, for which cloudpickle (3.1.3) puts "<dynamic-code>"."""
    return _code, (code.co_filename, _reduce_nameless(code)[1])


def _code(filename: str, arguments: tuple[Any, ...]) -> CodeType:
    return CodeType(*arguments).replace(co_filename=filename)


cloudpickle.CloudPickler.dispatch_table[functools._lru_cache_wrapper] = _reduce_cached
cloudpickle.CloudPickler.dispatch_table[CodeType] = _reduce_code
