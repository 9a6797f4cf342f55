"""Code objects without what does not change their result: line numbers, file names, comments, docstrings."""

import dis
import functools
import types
from typing import Any, NamedTuple

_OF_THE_COMPILER = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})
"""Names that the body of a class sets without anybody having written so (or to a docstring)."""
_HAS_DOCSTRING = 0x4000000
_SKIPPED = frozenset({"EXTENDED_ARG", "CACHE", "NOP"})


class Names(NamedTuple):
    """What code, and the code nested in it, mentions."""

    globals: frozenset[str]  # loaded as globals
    attributes: frozenset[str]  # taken from anything, or imported from a module
    imports: frozenset[str]  # modules imported when it runs


def stable_code(code: types.CodeType) -> tuple[bytes, list[Any]]:
    """The instructions, and the constants that they load, in the order they do so.

    Constants are not told by their place among all: a docstring is one of them, though nothing loads it.
    """
    found: list[tuple[str, object]] = []
    constants: list[Any] = []
    instructions = [one for one in dis.get_instructions(code) if one.opname not in _SKIPPED]
    for index, one in enumerate(instructions):
        following = instructions[index + 1] if index + 1 < len(instructions) else None
        if one.opcode in dis.hasconst:
            if following is not None and following.opname == "STORE_NAME" and following.argval in _OF_THE_COMPILER:
                continue
            found.append((one.opname, None))
            constants.append(code.co_consts[one.arg or 0])
        elif one.opname == "STORE_NAME" and one.argval in _OF_THE_COMPILER:
            continue
        elif one.opcode in dis.hasname:
            found.append((one.opname, one.argrepr))
        else:
            found.append((one.opname, one.arg))
    shape = (
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags & ~_HAS_DOCSTRING,
        code.co_exceptiontable,
    )
    return repr((found, shape)).encode(), constants


@functools.lru_cache(4096)
def loaded_names(code: types.CodeType) -> Names:
    """The names that decide what else of the script takes part."""
    loaded: set[str] = set()
    attributes: set[str] = set()
    imports: set[str] = set()
    for one in dis.get_instructions(code):
        if one.opcode not in dis.hasname:
            continue
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            loaded.add(one.argval)
        elif one.opname == "IMPORT_NAME":
            imports.add(one.argval)
        elif one.opname.startswith(("LOAD_", "IMPORT_FROM")):
            attributes.add(one.argval)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            nested = loaded_names(const)
            loaded |= nested.globals
            attributes |= nested.attributes
            imports |= nested.imports
    return Names(frozenset(loaded), frozenset(attributes), frozenset(imports))
