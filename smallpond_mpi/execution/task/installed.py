"""Which code is the script's, and which is installed, so that the version of its package stands for it."""

import functools
import importlib.util
import os
import sys
import sysconfig
import types
from typing import Any

from smallpond_mpi.execution.by_value import package_dirs

OWN_CODE_VERSION = "1"
"""Our own code is told apart by this number, not by its bytecode: a new version of the package that computes the same keeps results."""


def module_of(value: Any) -> str:
    """The module that a function or class was really made in: decorators copy the name of what they wrap."""
    if isinstance(value, types.FunctionType):
        return str(value.__globals__.get("__name__", ""))
    return str(getattr(value, "__module__", "") or "")


def is_installed_code(value: Any) -> bool:
    return is_installed_module(module_of(value))


@functools.cache
def _installed_roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(
        {os.path.join(os.path.realpath(paths[name]), "") for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    )


def is_installed_module(name: str) -> bool:
    """Whether a module is installed, ours, or the standard library's, so that its version stands for its code."""
    if name in ("__main__", "__mp_main__", ""):
        return False
    if _is_ours_or_standard(name):
        return True
    module = sys.modules.get(name)
    if module is None:
        return False
    path = getattr(module, "__file__", None)
    if path is None:
        places = list(getattr(module, "__path__", ()))
        if not places:
            return name in sys.builtin_module_names
        path = os.path.join(places[0], "")
    return _is_installed_path(path)


def _is_ours_or_standard(name: str) -> bool:
    top = name.partition(".")[0]
    return top == "smallpond_mpi" or top in sys.stdlib_module_names or top.startswith("_cython_")


@functools.cache
def _is_installed_path(path: str) -> bool:
    real = os.path.realpath(path)
    return (
        real.startswith((*_installed_roots(), *(os.path.join(path, "") for path in package_dirs())))
        or f"{os.sep}site-packages{os.sep}" in real
        or f"{os.sep}dist-packages{os.sep}" in real
    )


def version_of(module: str) -> bytes:
    top = module.partition(".")[0]
    if top == "smallpond_mpi":
        return OWN_CODE_VERSION.encode()
    return str(getattr(sys.modules.get(top), "__version__", "")).encode()


@functools.lru_cache(1024)
def source_of_script_module(name: str) -> bytes | None:
    """The source of a module of the script's; None if it is installed, or not there."""
    if not name or _is_ours_or_standard(name):
        return None
    module = sys.modules.get(name)
    path = getattr(module, "__file__", None) if module is not None else _path_of_module(name)
    if not path or not path.endswith(".py") or _is_installed_path(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def _path_of_module(name: str) -> str | None:
    if name.partition(".")[0] != name and name.rpartition(".")[0] not in sys.modules:
        return None  # looking for it would import its package
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return None if spec is None else spec.origin
