"""The Driver: its command line, and what it does with the process."""

import contextlib
import inspect
import io
import time
from pathlib import Path
from typing import Any

import pytest

from smallpond_mpi.execution.driver import Driver
from smallpond_mpi.execution.manager import JobManager
from smallpond_mpi.platform.base import Platform
from smallpond_mpi.platform.mpi import MPI
from tests.scripts import Place, Ran


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def driver_of(*line: str) -> Driver:
    driver = Driver()
    driver.add_argument("-n", "--npartitions", type=int, default=10)
    driver.add_argument("-i", "--input_paths", nargs="+", default=["data"])
    driver.add_argument("--verbose", action="store_true")
    driver.parse_arguments(line)
    return driver


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ("scheduler -n 3 --job_id x", "scheduler"),
        ("-n 3 --job_id x scheduler", "scheduler"),
        ("--job-id x executor -n 3", "executor"),
        ("-n 3 mpi --job_id=x", "mpi"),
        ("-n 3 --job_id x", None),
    ],
)
def test_the_mode_and_options_in_any_order(line: str, mode: str | None) -> None:
    driver = driver_of(*line.split())
    assert (driver.mode, driver.job_id) == (mode, "x")
    assert driver.get_arguments() == {"npartitions": 3, "input_paths": ["data"], "verbose": False}
    assert driver.get_arguments(to_dict=False).npartitions == 3


def test_a_value_that_is_called_like_a_mode_is_a_value() -> None:
    driver = driver_of("-i", "mpi", "--verbose")
    assert (driver.mode, driver.get_arguments()["input_paths"]) == (None, ["mpi"])


def test_options_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_DATA_ROOT", "/from/env")
    plain = driver_of()
    assert (plain.job_id, plain.data_root, plain.num_executors) == (None, "/from/env", 1)
    defaults = plain.get_driver_arguments()
    assert (defaults["max_fail_count"], defaults["memory_allocator"], defaults["mode"]) == (3, "mimalloc", None)
    driver = driver_of(
        *[
            "--data_root",
            "/d",
            "--num_executors",
            "4",
            "--max-fail-count",
            "9",
            "--fail_fast",
            "--malloc",
            "system",
            "--no_manifest_only_final_results",
        ],
        *[
            "--env_variables",
            "A=1",
            "B=2",
            "--speculative_exec",
            "disable",
            "--fault_inject_prob",
            "0.5",
            "--remove_output_root",
            "-n",
            "2",
        ],
    )
    assert (driver.data_root, driver.num_executors) == ("/d", 4)
    given = driver.get_driver_arguments(to_dict=False)
    assert given.max_fail_count == 9
    assert given.fail_fast_on_failure is True
    assert given.memory_allocator == "system"
    assert given.manifest_only_final_results is False
    assert given.env_variables == ["A=1", "B=2"]
    assert (given.speculative_exec, given.fault_inject_prob, given.remove_output_root) == ("disable", 0.5, True)


def test_every_option_of_run_is_one_of_the_command_line() -> None:
    known = set(inspect.signature(JobManager.run).parameters) - {"self", "plan", "kwargs", "sched_state_observers"}
    driver = Driver()
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as left:
        driver.parse_arguments(["--help"])
    assert left.value.code == 0
    missing = {name for name in known if f"--{name}" not in out.getvalue()}
    assert not missing
    assert "--fail_fast" in out.getvalue()
    assert "--malloc" in out.getvalue()


def test_an_option_that_both_have_is_both_s() -> None:
    driver = Driver()
    driver.add_argument("--output_path", default="here")
    driver.add_argument("--output_name")
    driver.parse_arguments(["--output_path", "/o", "mpi"])
    assert driver.get_arguments() == {"output_path": "/o", "output_name": None}
    assert driver.get_driver_arguments()["output_path"] == "/o"


def test_positional_arguments_of_the_script() -> None:
    driver = Driver()
    driver.add_argument("source")
    driver.add_argument("target")
    driver.parse_arguments(["mpi", "--job_id", "x", "a", "b"])
    assert (driver.mode, driver.get_arguments()) == ("mpi", {"source": "a", "target": "b"})
    driver.parse_arguments(["a", "mpi"])
    assert (driver.mode, driver.get_arguments()) == (None, {"source": "a", "target": "mpi"})


@pytest.mark.parametrize(
    "line", ["--no_such_option", "-n many", "--max_fail_count many", "--speculative_exec often", "schedule"]
)
def test_a_wrong_command_line_ends_with_the_usage(line: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as left:
        driver_of(*line.split())
    assert left.value.code == 2
    assert "usage:" in err.getvalue()
    assert line.split()[-1] in err.getvalue()


SCRIPT = """
from smallpond_mpi.execution.driver import Driver
driver = Driver()
driver.add_argument("-n", "--npartitions", type=int, default=4)
driver.add_argument("-b", "--bad", action="store_true")
def build(npartitions, bad):
    def compute(ctx, tables):
        if bad:
            raise ValueError("no such luck")
        return tables[0]
    return compute_plan(compute, npartitions, output_name="numbers")
if __name__ == "__main__":
    driver.run(build(**driver.get_arguments()), tags=["mine"])
    say("not reached")
"""


def ran(place: Place, *args: str) -> Ran:
    return place.run(SCRIPT, args)


def test_a_script_ends_with_0_or_1(place: Place) -> None:
    good = ran(place, "--output_path", str(place.path / "out"), "--job_id", "good")
    assert (good.code, good.told) == (0, [])
    assert len(list((place.path / "out").glob("*.parquet"))) == 4
    bad = ran(place, "--bad", "--fail_fast")
    assert bad.code == 1
    assert "no such luck" in bad.stderr
    assert "Traceback (most recent call last)" in bad.stderr, "of the user's function"


def test_mode_mpi_alone_and_a_scheduler_that_computes_itself(place: Place) -> None:
    alone = ran(place, "mpi")
    assert alone.code == 0
    assert "this process computes alone" in alone.stderr
    assert ran(place, "scheduler", "--num_executors", "0").code == 0


def test_an_executor_needs_to_know_its_job(place: Place) -> None:
    nameless = ran(place, "executor")
    assert nameless.code == 1
    assert "needs the --job_id" in nameless.stderr


def test_platforms_start_and_stop_scripts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_JOBID", "an id")
    assert Platform.is_available()
    assert Platform.default_job_id() == "an id"
    assert Platform.default_memory_allocator() == "system"
    assert abs(Platform.default_job_time() - time.time()) < 60
    script = place.write(
        "import time\nopen(here(sys.argv[1] + os.environ['X'] + str(os.getpid())), 'w').close()\ntime.sleep(600)"
    )
    platform = Platform()
    pids = platform.start_job(2, str(script), ["started-"], {**place.env(), "X": "-"})
    deadline = time.monotonic() + 60
    while len(list(place.path.glob("started-*"))) < 2:
        assert time.monotonic() < deadline
    assert {path.name for path in place.path.glob("started-*")} == {f"started--{pid}" for pid in pids}
    for pid in pids:
        platform.stop_job(pid)
    assert not any(Path("/proc", pid).exists() for pid in pids)
    with pytest.raises(ValueError, match="was not started here"):
        platform.stop_job(pids[0])


def commands(platform: Any, count: int) -> list[list[str]]:
    found: list[list[str]] = platform._commands(count, "python", "s.py", ["-x"])
    return found


def test_mpi_is_one_launch_of_many_ranks() -> None:
    assert commands(MPI(), 3) == [["python", "-m", "smallpond_mpi", "run", "-n", "3", "s.py", "-x"]]
    assert commands(Platform(), 2) == [["python", "s.py", "-x"]] * 2
