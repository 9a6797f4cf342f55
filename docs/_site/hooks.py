"""What the docs site has besides the pages in docs/: README, CHANGELOG and the examples' README as pages, and one page of reference for each
public module, made from the names that it offers (no list to keep up). Links out of docs/ become the path that they point to.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "examples.md": "examples/README.md"}
"""Page -> the file that it shows."""

REFERENCE = {
    "api/dataframe.md": ("smallpond_mpi", "smallpond_mpi.dataframe"),
    "api/dataset.md": ("smallpond_mpi.logical.dataset",),
    "api/node.md": ("smallpond_mpi.logical.node",),
    "api/udf.md": ("smallpond_mpi.logical.udf",),
    "api/contrib.md": ("smallpond_mpi.contrib.copy_table", "smallpond_mpi.contrib.log_dataset"),
    "api/planner.md": ("smallpond_mpi.logical.planner", "smallpond_mpi.logical.optimizer"),
    "api/task.md": ("smallpond_mpi.execution.task",),
    "api/manager.md": (
        "smallpond_mpi.execution.driver",
        "smallpond_mpi.execution.manager",
        "smallpond_mpi.execution.scheduler",
        "smallpond_mpi.platform.base",
        "smallpond_mpi.platform.mpi",
    ),
    "api/workqueue.md": ("smallpond_mpi.execution.workqueue",),
    "api/arrow.md": ("smallpond_mpi.io.arrow", "smallpond_mpi.io.arrow_types", "smallpond_mpi.utility"),
    "api/filesystem.md": ("smallpond_mpi.io.filesystem",),
    "api/common.md": ("smallpond_mpi.common",),
    "api/config.md": ("smallpond_mpi.config",),
}
"""Page -> the modules that it tells of."""

INHERITED = "\n    options: {inherited_members: true}"
OPTIONS = {"Session": INHERITED, "DataFrame": INHERITED}
"""What mkdocstrings is told besides: half of what a session, and a frame, can do is defined in their bases."""

BESIDES = {"api/dataframe.md": ("smallpond_mpi.relations.Groups",)}
"""Page -> classes that its modules give out and others define."""

LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for page, modules in REFERENCE.items():
        content = "\n\n".join([*map(reference, modules), *(f"::: {name}" for name in BESIDES.get(page, ()))])
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def relinked(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        if "://" in target:
            return match.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        found = page_of(path)
        if found is not None:
            return f"[{text}]({posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"
        if not (ROOT / path).exists():
            return match.group(0)  # mkdocs says what is wrong with it
        return text if text == path else f"{text} (`{path}`)"

    return LINK.sub(relinked, markdown)


def page_of(path: str) -> str | None:
    """The page that shows a file of the repository."""
    for page, source in PAGES.items():
        if path == source:
            return page
    inside = path.startswith("docs/") and path.endswith(".md") and (ROOT / path).exists()
    return path.removeprefix("docs/") if inside else None


def reference(module: str) -> str:
    """A page's part on a module: its docstring and every public name."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text())
    places = lazy_names(tree) or dict.fromkeys(own_names(tree), module)
    parts = [f"# {module}", ast.get_docstring(tree) or ""]
    parts += [f"::: {place}.{name}" + OPTIONS.get(name, "") for name, place in places.items()]
    return "\n\n".join(parts)


def lazy_names(tree: ast.Module) -> dict[str, str]:
    """The table of a package whose names live in modules below it."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] in (["_NAMES"], ["NAMES"]):
            found: dict[str, str] = ast.literal_eval(node.value)
            return found if "init" not in own_names(tree) else {"init": "smallpond_mpi"}
    return {}


def own_names(tree: ast.Module) -> list[str]:
    """Public functions, classes and constants of a module, in their order."""
    found = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name) and target.id.isupper()]
    return [name for name in found if not name.startswith("_")]
