"""The docs site tells of every public module. (That it builds without a warning is a step of .ci/run.)"""

import ast
import importlib.util
from pathlib import Path

from tests.surface import contract

ROOT = Path(__file__).parents[2]
WITHOUT_A_PAGE = {"smallpond_mpi.execution.executor"}
"""Nothing of it is for users (differences.md)."""


def reference() -> dict[str, tuple[str, ...]]:
    """Page -> modules, as the site's hooks have it."""
    for node in ast.parse((ROOT / "docs" / "_site" / "hooks.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REFERENCE":
            found: dict[str, tuple[str, ...]] = ast.literal_eval(node.value)
            return found
    raise AssertionError("hooks.py has no REFERENCE")


def test_every_public_module_has_a_page() -> None:
    told = {module for modules in reference().values() for module in modules}
    public = {module.name for module in contract.read()} - WITHOUT_A_PAGE
    assert not public - told, "add these to REFERENCE in docs/_site/hooks.py, and their page to mkdocs.yml"
    assert all(importlib.util.find_spec(module) is not None for module in told)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [*reference(), *(path.name for path in (ROOT / "docs").glob("*.md"))]
    assert [page for page in pages if f": {page}\n" not in navigation] == []
