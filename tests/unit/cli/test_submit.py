"""The batch script of `smallpond-mpi submit`, and what is refused."""

import math
import subprocess
from pathlib import Path

import pytest

from smallpond_mpi.cli.submit import has_option, parse, render, time_limit
from smallpond_mpi.common import InvalidArgument


def script_of(*words: str) -> str:
    return render(parse(words), "/venv/bin/python", "/data", "an id", {"PATH": "/bin"})


def test_options_are_sbatchs_and_arguments_the_scripts() -> None:
    request = parse(["-n", "4", "a.py", "--time=1:00", "-N2", "--exclusive", "--dry-run", "--", "-n", "x y"])
    assert request.script == "a.py"
    assert request.options == ["-n 4", "--time=1:00", "-N2", "--exclusive"]
    assert request.args == ["-n", "x y"]
    assert request.is_dry
    assert not request.waits


def test_our_options_may_stand_anywhere() -> None:
    assert parse(["a.py", "--data-root", "/d", "--wait"]).data_root == "/d"
    request = parse(["--data-root=/d", "-t", "5", "a.py"])
    assert (request.data_root, request.options) == ("/d", ["-t 5"])


def test_the_value_of_an_option_is_not_the_script() -> None:
    request = parse(["--comment", "v.py", "s.py", "-J", "x.py"])
    assert (request.script, request.options) == ("s.py", ["--comment v.py", "-J x.py"])
    assert parse(["--exclusive", "s.py"]).script == "s.py"
    request = parse(["-J", "x.py", "-N2", "s.py"])
    assert (request.script, request.options) == ("s.py", ["-J x.py", "-N2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a script"),
        (["--time=1", "in"], "give a script"),
        (["a.py", "in"], "arguments of a.py stand after --"),
        (["a.py", "-N2", "in"], "in is no option of sbatch"),
        (["a.py", "--requeue", "in"], "in is no option of sbatch"),
        (["-N1", ":", "-N2", "a.py"], ": is no option of sbatch"),
        (["a.py", "--data-root"], "--data-root needs a directory"),
        (["a.py", "--wrap=ls"], "makes no sense here"),
        (["a.py", "--"], "no argument follows --"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse(words)


def test_the_script_is_one_that_a_shell_understands(tmp_path: Path) -> None:
    text = script_of("a b.py", "--comment=two words", "-J", "it's", "--", "$HOME", "x'y", "")
    path = tmp_path / "job"
    path.write_text(text.replace("exec ", "printf '%s\\n' "))
    said = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        "/venv/bin/python",
        *["-m", "smallpond_mpi", "run", str(Path.cwd() / "a b.py")],
        *["$HOME", "x'y", ""],
    ]
    assert "#SBATCH --comment='two words'\n" in text
    assert "--job-name" not in text


def test_a_job_gets_a_warning_a_log_and_an_id_of_its_own() -> None:
    text = script_of("a.py")
    assert "#SBATCH --job-name=a.py\n" in text
    assert "#SBATCH --signal=B:USR1@120\n" in text
    assert "#SBATCH --open-mode=append\n" in text
    assert "export SP_JOBID='an id'\n" in text
    assert "export SP_DATA_ROOT=/data\n" in text


def test_what_was_said_is_not_said_otherwise() -> None:
    text = script_of("a.py", "--signal=USR1@30", "--open-mode", "truncate", "-J", "x")
    assert text.count("--signal") == text.count("--open-mode") == 1
    assert "B:USR1" not in text
    assert "--signal" not in script_of("a.py", "-t5"), "it would come when the job has hardly begun"
    assert "SP_JOBID" not in script_of("a.py", "--array=0-4"), "each element makes one of its own"


@pytest.mark.parametrize(
    ("option", "seconds"),
    [
        ("-t5", 300),
        ("-t 5", 300),
        ("--time=5:30", 330),
        ("--time 1:00:01", 3601),
        ("--time=2-0", 172800),
        ("-t 1-2:03:04", 86400 + 2 * 3600 + 3 * 60 + 4),
        ("--time=UNLIMITED", math.inf),
        ("--time-min=5", math.inf),
    ],
)
def test_time_limits(option: str, seconds: float) -> None:
    assert time_limit([option]) == seconds


def test_forms_of_options() -> None:
    assert has_option(["-a0-4"], ("--array", "-a"))
    assert has_option(["--array 0-4"], ("--array", "-a"))
    assert not has_option(["--account=a"], ("--array", "-a"))
