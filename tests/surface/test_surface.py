"""Our names, parameters and defaults are the contract's (contract.txt), but for the differences that differences.md gives a reason for.

differences.md is what docs/coming_from_smallpond.md shows.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.surface import contract
from tests.surface.contract import ABSENT, CONTRACT, Difference

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "coming_from_smallpond.md"


def listed() -> dict[str, set[str]]:
    """What differs, by name, as differences.md has it. A row may name several, each in backticks."""
    found: dict[str, set[str]] = {}
    for line in (HERE / "differences.md").read_text().splitlines()[2:]:
        names, what, why = (cell.strip() for cell in line.strip("|").split(" | "))
        assert why, f"no reason: {line}"
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in found, f"{name} stands there twice"
            found[name] = set(what.split("; "))
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, set[str]]:
    by_name: dict[str, set[str]] = {}
    for one in contract.differences(contract.read()):
        by_name.setdefault(one.name, set()).add(one.what)
    return by_name


def test_every_line_of_the_contract_is_read() -> None:
    lines = CONTRACT.read_text().splitlines()
    lines = [
        line for line in lines[next(i for i, line in enumerate(lines) if line.startswith("== ")) :] if line.strip()
    ]
    modules = contract.read()
    classes = [one for module in modules for one in module.classes]
    read = len(modules) + len(classes) + sum(len(one.functions) + len(one.constants) for one in modules)
    read += sum(len(one.methods) + len(one.attributes) + bool(one.properties) for one in classes)
    assert read == len(lines)


def test_each_difference_is_listed_with_its_reason(found: dict[str, set[str]]) -> None:
    here = listed()
    unlisted = {name: what for name, what in found.items() if here.get(name) != what}
    assert not unlisted, "list these in differences.md with the reason, or make them as the contract has them"


def test_nothing_is_listed_that_does_not_differ(found: dict[str, set[str]]) -> None:
    gone = {name: what for name, what in listed().items() if found.get(name) != what}
    assert not gone, "these differ no longer, or in another way: correct differences.md"


def test_the_docs_show_the_table() -> None:
    assert (HERE / "differences.md").read_text().strip() in DOCS.read_text(), (
        "copy differences.md into docs/coming_from_smallpond.md"
    )


# the comparison itself


def compared(lines: str, ours: dict[str, object]) -> list[str]:
    """What differs between a module as a contract has it and one of ours."""
    module = contract.Module("m")
    for line in lines.splitlines():
        contract.read_line(line, module)
    return [str(one) for one in contract.module_differences(module, SimpleNamespace(**ours), "m")]


def test_what_is_the_same_does_not_differ() -> None:
    def f(a: int, b: int = 2, *, c: int = 1024, more: int = 0) -> None: ...

    assert compared("def f(a, b=2, c=KB)\nN = 3", {"f": f, "N": 3}) == ["m.f: parameter c can't be given by position"]
    assert compared("def f(a, b=2, *, c=KB)\nN = 3", {"f": f, "N": 3}) == []


@pytest.mark.parametrize(
    ("line", "differs"),
    [
        ("def g(a)", "m.g: absent"),
        ("def f(b, a=1)", "m.f: parameter b is not number 1"),
        ("def f(a=2, b=2)", "m.f: a is 1, not 2"),
        ("def f(a=True, b=2)", "m.f: a is 1, not True"),
        ("def f(a=1, b=2, *, d=0)", "m.f: has no parameter d"),
        ("def f(a=1, b=2, **kwargs)", "m.f: takes no **kwargs"),
        ("def f(a=1)", "m.f: needs c besides"),
        ("N = 4", "m.N: is 3, not 4"),
        ("class C(Exception)", "m.C: is no Exception"),
        ("class C()\n    m(b)", "m.C.m: has no parameter b"),
        ("def f(a=1, b=2, c=3)", "m.f: parameter c can't be given by position"),
        ("class C()\n    static m(a)", "m.C.m: is not static"),
        ("class C()\n     N = 2", "m.C.N: absent"),
        ("class C()\n    properties: x, y, z", "m.C.z: absent"),
    ],
)
def test_each_kind_of_difference_is_seen(line: str, differs: str) -> None:
    def f(a: int = 1, b: int = 2, *, c: int) -> None: ...

    class C:
        y: int

        def __init__(self) -> None:
            self.x = 1

        def m(self, a: int) -> None: ...

    assert differs in compared(line, {"f": f, "N": 3, "C": C})


def test_a_difference_reads_as_a_sentence() -> None:
    assert str(Difference("io.load", ABSENT)) == "io.load: absent"
