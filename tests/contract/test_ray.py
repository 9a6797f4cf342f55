"""Tasks on a real Ray, started here on this machine; without Ray, an error that says how to get it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.started import ROOT, Facts, facts_of

has_ray = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not has_ray, reason='Ray is not installed: pip install "smallpond-mpi[ray]"')


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """The job whose plan Ray runs."""
    return facts_of("python", "on_ray", tmp_path_factory.mktemp("ray"), timeout=240)


@needs_ray
def test_a_plan_runs_on_ray(on_ray: Facts) -> None:
    assert on_ray.told["rows"] == [2 * a for a in range(100)]
    assert on_ray.told["same ref"]
    assert all(done for _, done in on_ray.told["tasks"].values())


@needs_ray
def test_failed_attempts_are_counted_by_markers(on_ray: Facts) -> None:
    functions = [key for key in on_ray.told["tasks"] if key.startswith("ArrowComputeTask")]
    assert len(functions) == 3
    assert on_ray.told["noted"] == sorted(f"{key} {retry} {retry}" for key in functions for retry in (0, 1))
    for key, (attempts, _) in on_ray.told["tasks"].items():
        assert attempts == (2 if key in functions else 1)


@needs_ray
def test_markers_and_datasets_lie_where_documented(on_ray: Facts) -> None:
    started, completed = on_ray.told["dirs"]
    for key, (marker, dataset, node_id) in on_ray.told["paths"].items():
        assert marker == os.path.join(started, f"{node_id}.{key}.0")
        assert dataset == os.path.join(completed, str(node_id), f"{key}.pickle")


@needs_ray
def test_what_is_done_is_not_run_again(on_ray: Facts) -> None:
    assert on_ray.told["rows again"] == on_ray.told["rows"]
    assert on_ray.told["noted again"] == on_ray.told["noted"]
    assert on_ray.told["attempts again"] == {key: made for key, (made, _) in on_ray.told["tasks"].items()}


@needs_ray
def test_a_task_that_fails_is_given_up(on_ray: Facts) -> None:
    kind, text, attempts, done = on_ray.told["fails"]
    assert "ZeroDivisionError: every time" in text
    assert "TaskFailed" in kind
    assert (attempts, done) == (2, False)
    assert on_ray.told["dies"][-2:] == [2, False]
    assert on_ray.told["bad query"][-2:] == [1, False]  # another attempt can't help
    assert "1000 CPUs" in on_ray.told["too much"]


@pytest.mark.skipif(has_ray, reason="Ray is installed here: nothing to complain about")
def test_without_ray_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from datetime import datetime\n"
        "from smallpond_mpi.execution.context import JobId, RuntimeContext\n"
        "from smallpond_mpi.execution.task import PartitionInfo, Task\n"
        f"Task(RuntimeContext(JobId.new(), datetime.now(), {str(tmp_path)!r}), [], [PartitionInfo()]).run_on_ray()\n"
    )
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("smallpond_mpi.common.MissingExtra: run_on_ray() needs Ray")
    assert 'pip install "smallpond-mpi[ray]"' in last
