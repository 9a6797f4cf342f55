"""Whatever is public says what it means: each name of the public modules, and what its classes let a user call or read, has a docstring.

A method that a base class of ours documents need not repeat it.
"""

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.surface import contract

PUBLIC = [module.name for module in contract.read()]
# ... and the modules whose classes DataFrame and Session are made of.
PUBLIC += [f"smallpond_mpi.{name}" for name in ("relations", "results", "writing", "session")]


def public_names(module: ModuleType) -> list[str]:
    """What a package lists, or what a module defines."""
    if hasattr(module, "__path__"):
        return [
            name for name in dir(module) if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
        ]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def undocumented(name: str, value: object) -> Iterator[str]:
    if not (inspect.isclass(value) or inspect.isroutine(value)) or not value.__module__.startswith("smallpond_mpi"):
        return
    if not (value.__doc__ or "").strip():
        yield name
    if inspect.isclass(value):
        for member, thing in vars(value).items():
            is_code = isinstance(thing, (property, staticmethod, classmethod)) or inspect.isfunction(thing)
            if is_code and not member.startswith("_") and not (inspect.getdoc(getattr(value, member)) or "").strip():
                yield f"{name}.{member}"


@pytest.mark.parametrize("module_name", PUBLIC)
def test_public_names_have_docstrings(module_name: str) -> None:
    module = importlib.import_module(module_name)
    assert (module.__doc__ or "").strip(), f"{module_name} has no docstring"
    missing = [one for name in public_names(module) for one in undocumented(name, getattr(module, name))]
    assert not missing, f"without a docstring in {module_name}: {', '.join(missing)}"


def test_what_has_no_docstring_is_found() -> None:
    class Bare:
        """Has one."""

        def method(self) -> None: ...

        @property
        def prop(self) -> int:
            """Has one."""
            return 1

    Bare.__module__ = "smallpond_mpi.made_up"
    assert list(undocumented("Bare", Bare)) == ["Bare.method"]
