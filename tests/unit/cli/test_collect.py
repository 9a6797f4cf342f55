"""What `smallpond-mpi collect` makes of what elements told and Slurm says, and the merge itself."""

import os
from pathlib import Path

import pytest

from smallpond_mpi.cli.collect import collect, describe, left_over, load, standing
from smallpond_mpi.cli.slurm import QueuedJob
from smallpond_mpi.common import InvalidArgument, OutputExists, SmallpondError
from smallpond_mpi.execution.arrays import ArrayRecord, ElementRecord, Output
from smallpond_mpi.execution.paths import ArrayPaths
from smallpond_mpi.execution.task.publish import SinkMode

ARRAY = ArrayRecord((1, 3, 7, 8), "/home/me/array.sbatch", "/work/my dir")


def told(index: int, state: str, slurm: str = "") -> ElementRecord:
    return ElementRecord(state, slurm or f"40_{index}", "n1", "/data/job")


def queued(index: int, state: str, array: str = "40") -> QueuedJob:
    return QueuedJob(f"{array}_{index}", state, "None", "a", "1:00", array, index)


def test_each_element_stands_somewhere() -> None:
    records = {1: told(1, "success"), 3: told(3, "running"), 7: told(7, "ValueError: no")}
    found = standing(ARRAY.indices, records, "40", [queued(3, "RUNNING"), queued(7, "FAILED")])
    assert set(found.done) == {1}
    assert found.busy == {3: "running (job 40_3)"}
    assert found.failed[7].endswith("ValueError: no")
    assert found.failed[8] == "missing: it never began"


def test_one_that_says_it_runs_and_does_not_has_failed() -> None:
    records = {index: told(index, "running") for index in ARRAY.indices}
    found = standing(ARRAY.indices, records, "40", [queued(1, "TIMEOUT"), queued(3, "PENDING")])
    assert "Slurm says TIMEOUT" in found.failed[1]
    assert set(found.busy) == {3}, "it was requeued"
    assert "Slurm knows it no more" in found.failed[7]


def test_one_that_runs_again_is_looked_for_in_its_new_array() -> None:
    records = {index: told(index, "running", f"45_{index}") for index in ARRAY.indices}
    found = standing(ARRAY.indices, records, "40", [queued(3, "RUNNING", "45"), queued(1, "RUNNING", "40")])
    assert set(found.busy) == {3}


def test_the_line_runs_just_the_failed_ones() -> None:
    records = {1: told(1, "success"), 3: told(3, "running")}
    lines = list(describe(standing(ARRAY.indices, records, "40", [queued(3, "RUNNING")]), "40", ARRAY))
    assert lines[0] == "array 40: 1 of 4 elements have succeeded"
    assert "  cd '/work/my dir' && sbatch --array=7-8 --export=ALL,SP_ARRAY_OF=40 /home/me/array.sbatch" in lines
    assert lines[-1].startswith("still to come: 3.")


def test_an_unknown_array_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "arrays" / "39").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match=r"nothing is known of array 40 .*arrays known there: 39"):
        load(str(tmp_path), "40")


def element(out: Path, index: int, files: dict[str, str], mode: SinkMode = "error") -> ElementRecord:
    """An element that has written these files."""
    place = out.parent / f"{out.name}.elements" / "40" / f"{index:06d}"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    place.mkdir(parents=True, exist_ok=True)
    (place / ".MANIFEST.txt").write_text("".join(f"{place / name}\n" for name in files))
    (place / ".published-by-x").write_text("[]")
    return ElementRecord("success", f"40_{index}", "n1", "/job", (Output(str(out), str(place), mode),))


def tree(directory: Path) -> dict[str, str]:
    return {
        os.path.relpath(path, directory): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_files_of_all_elements_become_one_dataset(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = {1: element(out, 1, {"a": "1", "k=1/b": "2"}), 3: element(out, 3, {"a": "3"}), 7: element(out, 7, {})}
    paths = ArrayPaths(str(tmp_path / "root"), "40")
    (made,) = collect(paths, done)
    assert (made.elements, made.files, made.bytes) == (3, 3, 3)
    assert tree(out) == {"a": "1", "a.3": "3", "k=1/b": "2"}
    listed = (out / ".MANIFEST.txt").read_text().splitlines()
    assert sorted(listed) == sorted(str(out / name) for name in tree(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root"]
    assert collect(paths, done) == [], "a repeat does no harm"
    assert tree(out) == {"a": "1", "a.3": "3", "k=1/b": "2"}


def test_parts_that_a_collect_has_left_behind_go(tmp_path: Path) -> None:
    """It was killed before it could remove them."""
    out, paths = tmp_path / "out", ArrayPaths(str(tmp_path / "root"), "40")
    collect(paths, {1: element(out, 1, {"a": "1"})})
    done = {1: element(out, 1, {"a": "1"})}
    assert collect(paths, done) == []
    assert not (tmp_path / "out.elements").exists()
    assert list(left_over(paths, done)) == []


def test_files_of_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    paths = ArrayPaths(str(tmp_path / "root"), "40")
    with pytest.raises(OutputExists, match="mine"):
        collect(paths, {1: element(out, 1, {"a": "1"})})
    assert tree(out) == {"mine": "x"}
    collect(paths, {1: element(out, 1, {"a": "1"}, "append")})
    assert tree(out) == {"mine": "x", "a": "1"}


def test_an_element_whose_files_are_gone_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = {1: element(out, 1, {"a": "1"}), 3: element(out, 3, {"b": "2"})}
    (tmp_path / "out.elements" / "40" / "000003" / "b").unlink()
    with pytest.raises(SmallpondError, match=r"element 3: .*b is gone"):
        collect(ArrayPaths(str(tmp_path / "root"), "40"), done)
    assert not out.exists()
