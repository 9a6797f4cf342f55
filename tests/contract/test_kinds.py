"""Every kind of node in a small plan of its own: what it gives, and what its tasks are. See jobs/kinds.py for the plans."""

from pathlib import Path
from typing import Any

import pytest

from tests.contract.started import Facts, facts_of

ALL = list(range(100))
QUARTERS = [ALL[begin : begin + 25] for begin in range(0, 100, 25)]


def flat(parts: list[list[int]]) -> list[int]:
    return [item for part in parts for item in part]


def test_even_partitions_are_contiguous(kinds: Facts) -> None:
    assert kinds.told["evenly_by_files"] == [ALL[:50], ALL[50:75], ALL[75:]]
    by_rows = kinds.told["evenly_by_rows"]
    assert flat(by_rows) == ALL
    assert [len(part) for part in by_rows] == [13, 13, 13, 13, 12, 12, 12, 12]
    assert kinds.told["evenly_more_than_rows"] == [[0], [1], [2], [], []]


def test_shuffled_files_stay_whole(kinds: Facts) -> None:
    for parts in kinds.told["evenly_shuffled"]:
        assert sorted(parts) == QUARTERS


def test_consolidated_partitions_agree_on_the_dimensions(kinds: Facts) -> None:
    by_day, by_key, one = kinds.told["consolidate"]
    assert by_day == [ALL[:50], ALL[50:]]
    assert one == [ALL]
    assert sorted(flat(by_key)) == ALL
    keys = [{i % 7 for i in part} for part in by_key]
    assert len(by_key) == 3
    assert not keys[0] & keys[1] | keys[1] & keys[2] | keys[0] & keys[2]


def test_a_union_has_its_inputs_side_by_side(kinds: Facts) -> None:
    assert kinds.told["union"] == [[0, 1], [98, 99], [0, 1]]


def test_copies_are_whole_and_pair_with_each_partition(kinds: Facts) -> None:
    totals = {0: sum(ALL[:50]), 1: sum(ALL[50:])}
    assert kinds.told["repeat"] == [[copy, half, 50, totals[half]] for copy in range(3) for half in range(2)]


def test_partitions_of_the_user(kinds: Facts) -> None:
    assert kinds.told["user_defined_partition"] == [ALL[:34], ALL[34:67], ALL[67:]]
    assert kinds.told["user_partitioned_source"] == [25, 75]  # of no files at all nothing is written
    assert kinds.told["user_partitioned_source_in_memory"] == [[0, 1], [0, 2], [1, 3]]


def test_a_wrong_number_of_partitions_names_function_and_line(kinds: Facts) -> None:
    message = kinds.told["user_defined_partition_of_wrong_length"]
    assert message.startswith("InvalidArgument: Wrong.partition returned 1 datasets for 3 partitions")
    assert "kinds.py:" in message


def test_partitions_are_loaded_as_they_were_written(kinds: Facts) -> None:
    hashed, behind, parts = kinds.told["load_by_metadata"]
    assert hashed == behind == parts
    assert sorted(flat(parts)) == ALL
    hive = kinds.told["load_by_hive_path"]
    assert hive["loaded"] == hive["hashed"]
    assert sorted(flat(hive["loaded"])) == ALL
    assert hive["paths"] == [f"bucket={number}" for number in range(4)]
    assert kinds.told["load_by_column"] == QUARTERS
    assert "partition key 3 is out of range 0-2" in kinds.told["load_out_of_range"]


def test_a_dataset_partition_node_picks_a_kind(kinds: Facts) -> None:
    told = kinds.told["dataset_partition"]
    assert told["kinds"] == ["ConsolidateNode", "EvenlyDistributedPartitionNode", "LoadPartitionedDataSetNode"]
    assert told["one"] == [ALL]
    assert told["files"] == [ALL[:50], ALL[50:]]
    assert told["rows"] == [ALL[:34], ALL[34:67], ALL[67:]]
    assert told["column"] == QUARTERS


def test_a_shuffle_goes_where_the_column_says(kinds: Facts) -> None:
    expected = [[i for i in ALL if i % 3 == target] for target in range(4)]
    assert kinds.told["shuffle"] == [expected, expected]
    assert "partition key 3 is out of range 0-2" in kinds.told["shuffle_out_of_range"]
    assert "kinds.py:" in kinds.told["shuffle_out_of_range"]


def test_projection_and_limit(kinds: Facts) -> None:
    assert kinds.told["projection"] == [[1, 1, 1], [2, 30, 5]]  # k, i and the row of the file
    assert kinds.told["limit"] == [[i] for i in range(30)]


def test_functions_over_frames_and_batches(kinds: Facts) -> None:
    assert kinds.told["pandas_compute"] == [[k, sum(i for i in ALL if i % 7 == k)] for k in range(7)]
    assert kinds.told["pandas_batch"] == [[40, 0], [40, 40], [20, 80]]
    assert kinds.told["arrow_batch_overridden"] == [[40, 40, 3], [40, 10, 3], [20, 0, 3]]


def test_a_task_of_the_user_is_spawned(kinds: Facts) -> None:
    rows, was_there = kinds.told["spawned_task"]
    assert rows == [[2 * i] for i in ALL]
    assert was_there


def test_scripts_leave_files_or_set_the_dataset(kinds: Facts) -> None:
    assert kinds.told["python_script"] == [ALL]
    assert kinds.told["python_script_with_a_dataset"] == [[0, 1]]
    assert kinds.told["python_script_without_files"] == "0"


def test_outputs_that_refer_to_inputs_files_say_so(kinds: Facts) -> None:
    told = kinds.told["kinds_of_tasks"]
    refer = {name for name, (_, self_contained, _, _) in told.items() if not self_contained}
    assert refer == {
        "MergeDataSetsTask",
        "SplitDataSetTask",
        "ProjectionTask",
        "RepeatPartitionProducerTask",
        "EvenlyDistributedPartitionProducerTask",
        "PartitionConsumerTask",
        "DataSinkTask",
        "RootTask",
    }
    on_scheduler = {name for name, (here, _, _, _) in told.items() if here}
    assert on_scheduler == refer - {"DataSinkTask"} | {"DataSourceTask"}
    assert {name for name, (_, _, speculative, _) in told.items() if not speculative} == {"DataSinkTask"}


def test_what_a_lasting_output_refers_to_lasts_too(kinds: Facts) -> None:
    temporary = {name: temp for name, (_, _, _, temp) in kinds.told["kinds_of_tasks"].items()}
    # The projection is listed in a manifest: its files, which are those of the query behind it, must not go with staging.
    assert not temporary["ProjectionTask"]
    assert not temporary["MergeDataSetsTask"]
    assert not temporary["SqlEngineTask"]
    assert temporary["HashPartitionDuckDbTask"]


@pytest.mark.parametrize("kind", ["link", "copy", "link_or_copy", "manifest"])
def test_sinks_put_or_list_all_files(kinds: Facts, kind: str) -> None:
    told: dict[str, Any] = kinds.told["sinks"][kind]
    assert told["rows"] == ALL
    assert told["absolute"]
    assert told["result"] == 100
    assert told["inside"] == (kind != "manifest")
    assert told["files"] == (0 if kind == "manifest" else 3)
    assert told["links"] == ([1] if kind in ("copy", "manifest") else [2])
    assert told["beside"] == []


def test_a_plan_knows_its_outputs(kinds: Facts) -> None:
    told = kinds.told["outputs_of_a_plan"]
    assert told["named"] == ["cleaned"]
    assert told["cleaned"] == sum(i % 7 < 3 for i in ALL)
    assert told["final"] == [[sum(i for i in ALL if i % 7 < 3)]]
    for name in ("none", "final path", "successful", "keys", "no stats"):
        assert told[name], name
    assert told["leaves"] == ["DataSourceTask"]


def test_a_plan_is_explained_with_what_was_measured(kinds: Facts) -> None:
    told = kinds.told["outputs_of_a_plan"]
    assert "SELECT * FROM {0} WHERE k < 3" in told["explained"]
    assert "num output rows: sum 44, min 11" in told["explained"]
    count, total, least, most, mean, *percentiles = told["stats"]
    assert (count, total, least, most) == (3, 44, 11, 22)
    assert mean == pytest.approx(44 / 3)
    assert percentiles == [11, 22, 22, 22]
    assert told["dot"].startswith("digraph")
    assert told["dot"].count("->") == 4


def test_tasks_with_an_empty_input_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "skip").mkdir()
    (tmp_path / "not").mkdir()
    assert facts_of("python", "skipping", tmp_path / "skip", "yes").told == {"counted": 0, "noted": 0, "called": False}
    assert facts_of("python", "skipping", tmp_path / "not", "no").told == {"counted": 1, "noted": 0, "called": True}
