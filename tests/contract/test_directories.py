"""Where a task writes, where its output lies in the end, and that the one becomes the other in one step."""

import os
import pickle
from pathlib import Path

from tests.contract.started import Facts


def test_names_are_built_of_class_node_job_and_attempt(probe: Facts) -> None:
    job = probe.told["job"]["job_id"]
    first, named = probe.told["after"]["first"], probe.told["after"]["named"]
    assert first["default_output_name"] == "Probe"
    assert first["output_dirname"] == f"Probe/{job}.000001.0.0"
    assert first["output_filename"] == f"Probe-{job}.000001.0.0"
    assert (named["output_name"], first["output_name"]) == ("result", None)
    assert named["output_dirname"] == f"result/{job}.000003.0.1"
    assert named["output_filename"] == f"result-{job}.000003.0.1"


def test_temporary_output_stays_in_staging(probe: Facts) -> None:
    job, first = probe.told["job"], probe.told["after"]["first"]
    assert first["temp_output"]
    assert (first["output_root"], first["staging_root"]) == (None, None)
    path = os.path.join(job["staging_root"], first["output_dirname"])
    assert first["runtime_output_abspath"] == first["final_output_abspath"] == path


def test_named_output_is_moved_out_of_staging(probe: Facts) -> None:
    job, named = probe.told["job"], probe.told["after"]["named"]
    assert not named["temp_output"]
    assert named["final_output_abspath"] == os.path.join(job["output_root"], named["output_dirname"])
    assert named["runtime_output_abspath"] == os.path.join(job["staging_root"], named["output_dirname"])
    assert os.listdir(named["final_output_abspath"]) == [named["output_filename"] + ".parquet"]
    assert not os.path.exists(named["runtime_output_abspath"])


def test_output_with_a_path_is_staged_beside_it(probe: Facts) -> None:
    placed, users = probe.told["after"]["placed"], str(probe.data_root / "users")
    assert (placed["output_root"], placed["staging_root"]) == (users, os.path.join(users, ".staging"))
    assert placed["final_output_abspath"] == os.path.join(users, placed["output_dirname"])
    assert placed["runtime_output_abspath"] == os.path.join(users, ".staging", placed["output_dirname"])
    assert os.path.dirname(placed["files"][0]) == placed["final_output_abspath"]


def test_a_running_attempt_has_its_directories_and_not_the_final_one(probe: Facts) -> None:
    for name in ("named", "placed"):
        facts = probe.of_attempt(name)
        assert facts["runtime directory is there"]
        assert facts["temp directory is there"]
        assert not facts["final directory is there"]


def test_the_output_of_a_failed_attempt_is_removed(probe: Facts) -> None:
    lost = probe.of_attempt("named", 0)
    assert lost["runtime_output_abspath"] != probe.told["after"]["named"]["runtime_output_abspath"]
    assert not os.path.exists(lost["runtime_output_abspath"])
    assert not os.path.exists(lost["final_output_abspath"])


def test_scratch_lies_under_temp(probe: Facts) -> None:
    job, first = probe.told["job"], probe.told["after"]["first"]
    assert first["temp_abspath"] == os.path.join(job["temp_root"], first["output_dirname"])
    assert Path(first["temp_abspath"], "scratch").read_text() == "x"


def test_roots_lie_under_one_job_root(probe: Facts) -> None:
    job = probe.told["job"]
    assert job["job_root"] == str(probe.data_root / job["job_id"])
    for name in ("output", "staging", "temp"):
        assert job[f"{name}_root"] == os.path.join(job["job_root"], name)


def test_a_dumped_task_can_be_replayed(probe: Facts) -> None:
    first = probe.told["after"]["first"]
    with open(os.path.join(first["temp_abspath"], f"{first['key']}.pickle"), "rb") as file:
        task = pickle.load(file)
    assert task.key == first["key"]
    replayed = os.path.join(first["temp_abspath"], "replayed")
    task.my_facts = replayed
    task()
    assert task.status.name == "SUCCEED", repr(task.exception)
    assert os.path.exists(f"{replayed}.0")
    assert task.output.num_rows == 3
