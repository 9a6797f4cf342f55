"""What a task depends on and what depends on it: tasks where it was planned, keys alone where it travelled to."""

from tests.contract.started import Facts


def test_inputs_are_tasks_at_home_and_keys_abroad(probe: Facts) -> None:
    keys = ["Probe-000001", "Probe-000002"]
    assert probe.told["before"]["named"]["input_deps"] == dict(zip(keys, keys, strict=True))
    assert probe.of_attempt("named")["input_deps"] == dict.fromkeys(keys)
    assert probe.told["after"]["named"]["input_deps"] == dict(zip(keys, keys, strict=True))


def test_dependants_are_keys(probe: Facts) -> None:
    assert probe.told["before"]["first"]["output_deps"] == ["Probe-000003"]
    assert probe.told["after"]["named"]["output_deps"] == ["ByHand-000004"]
    assert probe.of_attempt("placed")["output_deps"] == []


def test_input_datasets_are_one_for_each_input_in_order(probe: Facts) -> None:
    assert probe.of_attempt("named", 1)["rows of inputs"] == [3, 0]
    assert probe.of_attempt("first")["rows of inputs"] == []


def test_an_empty_input_is_noticed(probe: Facts) -> None:
    assert probe.of_attempt("named")["any_input_empty"]
    assert not probe.of_attempt("placed")["any_input_empty"]
    assert not probe.of_attempt("named")["skip_when_any_input_empty"]  # the job did not ask for it


def test_output_is_the_dataset_or_whatever_parquet_was_left(probe: Facts) -> None:
    after = probe.told["after"]
    assert after["named"]["rows"] == after["placed"]["rows"] == 3
    for name in ("named", "placed"):
        assert [path.startswith(after[name]["final_output_abspath"] + "/") for path in after[name]["files"]] == [True]


def test_a_task_runs_elsewhere_unless_it_says_so(probe: Facts) -> None:
    assert not probe.told["after"]["first"]["exec_on_scheduler"]
    assert probe.told["after"]["first"]["self_contained_output"]
    assert probe.told["after"]["first"]["allow_speculative_exec"]
