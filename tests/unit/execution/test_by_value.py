"""What of a script travels by value: each test opens it in another process, which can't import the script."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cloudpickle
import pyarrow as pa
import pytest

from smallpond_mpi.execution.by_value import import_dirs, pickle_by_value_what_lies_beside
from smallpond_mpi.execution.task.installed import source_of_script_module

BESIDE = """
import functools

def helper(x):
    return x + 1

@functools.cache
def remembered(x):
    return helper(x) * 10

@functools.lru_cache(maxsize=7, typed=True)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

class Kind:
    def f(self, x):
        return helper(x) * 2
"""


def test_modules_beside_the_script_travel_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process elsewhere, which can't import them, opens what was pickled."""
    (tmp_path / "beside_the_script.py").write_text(BESIDE)
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("beside_the_script")
    pickle_by_value_what_lies_beside([str(tmp_path)])
    data = cloudpickle.dumps(module.Kind().f)
    assert run_elsewhere(data, "3") == "8"


def test_functions_that_remember_their_results_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cached_beside_the_script.py").write_text(BESIDE)
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("cached_beside_the_script")
    pickle_by_value_what_lies_beside([str(tmp_path)])
    module.remembered(3)
    assert run_elsewhere(cloudpickle.dumps(module.remembered), "3") == "40"
    assert run_elsewhere(cloudpickle.dumps(module.fibonacci), "30") == "832040"
    made = cloudpickle.loads(cloudpickle.dumps(module.fibonacci))
    assert made.cache_parameters() == {"maxsize": 7, "typed": True}
    assert made.cache_info().currsize == 0
    assert made is made.__wrapped__.__globals__["fibonacci"]


def test_an_installed_function_that_remembers_travels_by_name() -> None:
    assert cloudpickle.loads(cloudpickle.dumps(source_of_script_module)) is source_of_script_module


def test_installed_modules_travel_by_name() -> None:
    """Even where the script lies above them."""
    root = Path(pa.__file__).parents[2]
    pickle_by_value_what_lies_beside([str(root)], {"pyarrow": pa, "broken": ModuleType("broken")})
    assert b"site-packages" not in cloudpickle.dumps(pa.array)
    assert len(cloudpickle.dumps(pa.array)) < 200


def test_packages_below_the_script_travel_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pip install --target` leaves them: where they were found is where children look."""
    packages = tmp_path / "packages"
    (packages / "some_package-1.0.dist-info").mkdir(parents=True)
    (packages / "of_some_package.py").write_text(BESIDE)
    monkeypatch.syspath_prepend(packages)
    module = __import__("of_some_package")
    pickle_by_value_what_lies_beside([str(tmp_path)])
    assert cloudpickle.loads(cloudpickle.dumps(module.Kind)) is module.Kind
    assert source_of_script_module("of_some_package") is None
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "script.py"), raising=False)
    assert import_dirs() == [str(tmp_path), str(packages)]


def run_elsewhere(data: bytes, argument: str) -> str:
    program = "import sys, pickle; print(pickle.load(sys.stdin.buffer)(int(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", program, argument], input=data, capture_output=True, cwd="/", check=True
    )
    return done.stdout.decode().strip()


def test_functions_know_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracebacks name it and show its lines; and an error in the user's own code is told from one in ours by it."""
    (tmp_path / "knows_its_file.py").write_text(
        "def outer(x):\n    def inner():\n        return 1 // x\n    return inner\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("knows_its_file")
    pickle_by_value_what_lies_beside([str(tmp_path)])
    for function in (module.outer, module.outer(0)):
        assert cloudpickle.loads(cloudpickle.dumps(function)).__code__.co_filename == module.__file__
    made = cloudpickle.loads(cloudpickle.dumps(module.outer))(0)
    assert made.__code__.co_filename == module.__file__
    assert made.__code__.co_firstlineno == 2
