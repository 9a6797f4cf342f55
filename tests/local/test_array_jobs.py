"""Elements of a job array, one after the other and at the same time, with the variables that Slurm sets."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCRIPT = """
import os, sys
import smallpond_mpi
sp = smallpond_mpi.init(data_root="root", progress="none")
files = sp.shard(sys.argv[1])
print(len(files))
sp.read_parquet(files).map("n + 1 as n").write_parquet("out")
if "again" in sys.argv:
    sp.read_parquet(files).map("n as n").write_parquet("second")
"""


def start(
    directory: Path, index: int, indices: str, *words: str, script: str = SCRIPT, **env: str
) -> "subprocess.Popen[str]":
    (directory / "script.py").write_text(script)
    count = {"SLURM_ARRAY_TASK_COUNT": str(len(indices.split(",")))}
    variables = {"SLURM_JOB_ID": str(500 + index), "SLURM_ARRAY_JOB_ID": "500", "SLURM_ARRAY_TASK_ID": str(index)}
    return subprocess.Popen(
        [sys.executable, "script.py", *(words or ("in/*.parquet",))],
        cwd=directory,
        env={**os.environ, **variables, **count, "SP_ARRAY": indices, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def collect(directory: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "smallpond_mpi", "collect", "500", "--data-root", "root"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)


def write_numbers(directory: Path, files: int) -> None:
    (directory / "in").mkdir()
    for number in range(files):
        pq.write_table(pa.table({"n": [number]}), directory / "in" / f"{number}.parquet")


def numbers(directory: Path) -> list[int]:
    return sorted(pq.read_table(directory).column("n").to_pylist())


def test_elements_at_the_same_time_have_all_of_it_once(tmp_path: Path) -> None:
    write_numbers(tmp_path, 7)
    ended = [end(process) for process in [start(tmp_path, index, "2,4,9") for index in (2, 4, 9)]]
    assert [code for code, _, _ in ended] == [0, 0, 0], ended
    assert sorted(int(out) for _, out, _ in ended) == [2, 2, 3]
    done = collect(tmp_path)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "out") == list(range(1, 8))


def test_shares_are_balanced_by_bytes(tmp_path: Path) -> None:
    """By files each of the two would have four."""
    write_numbers(tmp_path, 8)
    pq.write_table(pa.table({"n": list(range(100, 50_100))}), tmp_path / "in" / "0.parquet")
    ended = [end(start(tmp_path, index, "0,1")) for index in (0, 1)]
    assert [(code, int(out)) for code, out, _ in ended] == [(0, 1), (0, 7)], ended
    assert collect(tmp_path).returncode == 0
    assert len(numbers(tmp_path / "out")) == 50_007


def test_files_that_come_later_are_nobodys_and_some_elements_have_none(tmp_path: Path) -> None:
    write_numbers(tmp_path, 1)
    assert end(start(tmp_path, 0, "0,1,2"))[0] == 0
    pq.write_table(pa.table({"n": [100]}), tmp_path / "in" / "late.parquet")
    assert collect(tmp_path).returncode == 1
    assert [end(start(tmp_path, index, "0,1,2"))[0] for index in (1, 2)] == [0, 0]
    assert collect(tmp_path).returncode == 0
    assert numbers(tmp_path / "out") == [1]


def test_what_an_element_writes_after_a_collect_is_kept(tmp_path: Path) -> None:
    write_numbers(tmp_path, 2)
    assert [end(start(tmp_path, index, "0,1"))[0] for index in (0, 1)] == [0, 0]
    assert collect(tmp_path).returncode == 0
    assert collect(tmp_path).returncode == 0, "a repeat does no harm"
    code, _, err = end(start(tmp_path, 1, "0,1", SLURM_ARRAY_JOB_ID="501", SP_ARRAY_OF="500"))
    assert code == 0, err
    place = tmp_path / "out.elements" / "500" / "000001"
    for _ in range(2):
        done = collect(tmp_path)
        assert done.returncode == 1
        assert (
            f"element 1 ran again after it was collected: what it wrote then is not in it, and stays in {place}"
            in done.stdout
        )
    assert numbers(place) == [2]
    assert numbers(tmp_path / "out") == [1, 2]


def test_every_output_of_the_script_is_collected(tmp_path: Path) -> None:
    write_numbers(tmp_path, 4)
    for index in (0, 1):
        assert end(start(tmp_path, index, "0,1", "in/*.parquet", "again"))[0] == 0
    assert collect(tmp_path).returncode == 0
    assert numbers(tmp_path / "out") == [1, 2, 3, 4]
    assert numbers(tmp_path / "second") == [0, 1, 2, 3]


WITHOUT_SHARES = """
import os, sys
import smallpond_mpi
sp = smallpond_mpi.init(data_root="root", progress="none")
if "shard first" in sys.argv:
    sp.shard("in/*.parquet")
frame = sp.read_parquet("in/*.parquet").map(f"n, {os.environ['SLURM_ARRAY_TASK_ID']} as element")
frame.write_parquet(sys.argv[1].format(os.environ["SLURM_ARRAY_TASK_ID"]), mode="overwrite")
if "shard later" in sys.argv:
    sp.shard("in/*.parquet")
    frame.write_parquet("shared")
"""


def test_elements_that_do_not_share_never_write_to_one_path(tmp_path: Path) -> None:
    """All at once, and in a mode that would have each replace the other's rows: one has the path, the others are told, before they compute."""
    write_numbers(tmp_path, 3)
    script = tmp_path / "script.py"
    ended = [
        end(process)
        for process in [start(tmp_path, index, "0,1,2", "out", script=WITHOUT_SHARES) for index in range(3)]
    ]
    assert sorted(code for code, _, _ in ended) == [0, 1, 1], ended
    (owner,) = [index for index, (code, _, _) in enumerate(ended) if code == 0]
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert sorted((row["n"], row["element"]) for row in rows) == [(n, owner) for n in range(3)]
    for index in {0, 1, 2} - {owner}:
        _, _, err = ended[index]
        assert f"{script}:8: smallpond_mpi: OutputExists: element {owner} of array 500 writes to {tmp_path}/out" in err
        assert "call shard() before anything is written" in err
    assert end(start(tmp_path, owner, "0,1,2", "out", script=WITHOUT_SHARES))[0] == 0, (
        "it is this element's still when it runs again"
    )


def test_elements_that_do_not_share_have_paths_of_their_own(tmp_path: Path) -> None:
    write_numbers(tmp_path, 3)
    ended = [
        end(process) for process in [start(tmp_path, index, "0,1", "out-{}", script=WITHOUT_SHARES) for index in (0, 1)]
    ]
    assert [code for code, _, _ in ended] == [0, 0], ended
    for index in (0, 1):
        assert pq.read_table(tmp_path / f"out-{index}").column("element").to_pylist() == [index] * 3


def test_what_is_written_before_shares_are_asked_for_is_not_collected(tmp_path: Path) -> None:
    write_numbers(tmp_path, 3)
    for index in (0, 1):
        assert end(start(tmp_path, index, "0,1", "out-{}", "shard later", script=WITHOUT_SHARES))[0] == 0
    assert not (tmp_path / "shared").exists()
    assert collect(tmp_path).returncode == 0
    assert sorted(pq.read_table(tmp_path / "shared").column("element").to_pylist()) == [0] * 3 + [1] * 3
    assert {path.name for path in tmp_path.glob("out*")} == {"out-0", "out-1"}


SCONTROL = """#!/bin/sh
# as Slurm's: of a list of indices it shows 64 bytes, unless it is told otherwise
list=1,3,7,12,20,31,45,62,82,105,131,160,192,227,265,306,350,397,447,500
[ "$SLURM_BITSTR_LEN" = 0 ] || list=$(printf %.61s $list)...
echo "JobId=500 ArrayJobId=500 ArrayTaskId=$list JobName=a Command=/a.sbatch WorkDir=/work StdErr=/work/err"
"""


def test_a_long_list_with_gaps_is_asked_from_slurm(tmp_path: Path) -> None:
    write_numbers(tmp_path, 20)
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    count, path = {"SLURM_ARRAY_TASK_COUNT": "20"}, f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    code, out, err = end(start(tmp_path, 12, "", SP_ARRAY="", PATH=path, **count))
    assert (code, out) == (0, "1\n"), err


def test_status_says_how_an_element_goes_on(tmp_path: Path) -> None:
    """Not by its id, with which the script would be one job over all files; and it is found by the array that it is of."""
    write_numbers(tmp_path, 2)
    command = [sys.executable, "-m", "smallpond_mpi", "status", "500_3", "--data-root", "root"]
    for run in ({}, {"SLURM_ARRAY_JOB_ID": "501", "SP_ARRAY_OF": "500"}):
        assert end(start(tmp_path, 3, "1,3", script=SCRIPT.replace("n + 1", "n / nothing"), **run))[0] == 1
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout
        assert f"slurm     {run.get('SLURM_ARRAY_JOB_ID', '500')}_3\n" in said
        assert "go on     sbatch --array=3 --export=ALL,SP_ARRAY_OF=500 and the batch script\n" in said


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    write_numbers(tmp_path, 2)
    code, _, err = end(start(tmp_path, 7, "0,1"))
    assert (code, "script.py:5" in err) == (1, True)
    assert "array 500 has no element 7: it has 0-1" in err
    code, _, err = end(start(tmp_path, 0, "0,1", SP_ARRAY_OF="499"))
    assert code == 1
    assert "SP_ARRAY_OF=499" in err
    assert "does not exist" in err
    code, _, err = end(start(tmp_path, 0, "0,1", "nowhere/*.parquet"))
    assert code == 1
    assert "matches no file" in err
    told = collect(tmp_path).stdout
    assert "element 0: failed" in told
    assert "matches no file" in told
    assert "element 1: missing: it never began" in told
