"""initialize, run, finalize, cleanup: which is called when, what status an attempt ends with, and what rank 0 learns of it."""

from typing import Any

import pytest

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task import PartitionInfo, Task, WorkStatus
from smallpond_mpi.execution.workqueue import WorkQueueInMemory
from tests.contract.started import HOWS, Facts, facts_of


@pytest.fixture(
    scope="module", params=[how if how == "python" else pytest.param(how, marks=pytest.mark.mpi) for how in HOWS]
)
def failing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """The job whose tasks fail, two attempts each."""
    return facts_of(request.param, "failing", tmp_path_factory.mktemp("failing"))


def hooks(failing: Facts, name: str) -> list[str]:
    """What was called, and the status then, by the first attempt."""
    return [line.partition(" ")[2] for line in failing.told[name]["hooks"] if line.startswith("0 ")]


def test_hooks_come_in_order(failing: Facts) -> None:
    done = ["initialize INCOMPLETE", "run INCOMPLETE", "finalize SUCCEED", "cleanup SUCCEED"]
    assert hooks(failing, "nothing in run") == done
    assert failing.told["nothing in run"]["status"] == "SUCCEED"
    assert failing.told["nothing in run"]["exception"] == "NoneType"


def test_a_false_return_fails_the_attempt(failing: Facts) -> None:
    assert hooks(failing, "false in run") == ["initialize INCOMPLETE", "run INCOMPLETE", "cleanup FAILED"]
    assert failing.told["false in run"]["status"] == "FAILED"


def test_an_exception_anywhere_crashes_it_and_cleanup_is_called(failing: Facts) -> None:
    assert hooks(failing, "user error in initialize") == ["initialize INCOMPLETE", "cleanup CRASHED"]
    assert hooks(failing, "user error in run") == ["initialize INCOMPLETE", "run INCOMPLETE", "cleanup CRASHED"]
    assert hooks(failing, "user error in finalize")[-2:] == ["finalize SUCCEED", "cleanup CRASHED"]
    assert hooks(failing, "user error in cleanup")[-1] == "cleanup SUCCEED"
    for where in ("initialize", "run", "finalize", "cleanup"):
        told = failing.told[f"user error in {where}"]
        assert (told["status"], told["fail_count"], told["retry_count"]) == ("CRASHED", 2, 1)


def test_a_users_exception_comes_back_as_text(failing: Facts) -> None:
    told = failing.told["user error in run"]
    assert (told["module"], told["exception"]) == ("smallpond_mpi.common", "TaskFailed")
    assert "Mine: a thing of " in told["text"]
    assert "failing.py" in told["text"]
    assert "in fail" in told["text"]
    assert "Mine: a thing of " in told["message"]


def test_want_of_memory_and_exit_codes_have_classes_of_their_own(failing: Facts) -> None:
    memory = failing.told["memory in run"]
    assert (memory["exception"], memory["oom"]) == ("OutOfMemory", [True, True])
    assert memory["limit raised"] > 100 << 20  # to the most that a rank can give, before the task was given up
    assert "MemoryError: no room" in memory["text"]
    assert "failing.py" in memory["text"]
    for name in ("exit in run", "hard exit in run"):
        told = failing.told[name]
        assert (told["exception"], told["oom"], told["status"]) == ("NonzeroExitCode", [False, True], "CRASHED")


def test_attributes_of_the_users_classes_stay_in_the_child(failing: Facts) -> None:
    assert failing.told["nothing in run"]["own attributes"] == ["my_plain"]


def test_what_a_task_added_comes_back_if_it_is_plain(probe: Facts) -> None:
    # my_function was given on rank 0 and stays there; a generator and a closure made in the child don't come back
    assert probe.told["after"]["named"]["own attributes"] == [
        "my_facts",
        "my_fail_first",
        "my_function",
        "my_plain",
        "my_rows",
    ]


def test_the_context_names_the_running_task(probe: Facts) -> None:
    for name in ("first", "named", "placed"):
        facts = probe.of_attempt(name)
        assert facts["ctx.task is self"]
        assert facts["status"] == "WorkStatus.INCOMPLETE"
        assert facts["exec_cq"]


def test_hooks_may_be_overridden_without_super(probe: Facts) -> None:
    placed = probe.told["after"]["placed"]
    assert placed["status"] == "WorkStatus.SUCCEED"
    assert "my_hooks" in placed["own attributes"]
    assert placed["rows"] == 3


class Checkpoints(Task):
    """Pushes a checkpoint while it runs."""

    def run(self) -> bool:
        self.runtime_state = {"done": 1}
        assert self.exec_cq is not None
        self.exec_cq.push(self)
        self.runtime_state = {"done": 2}
        return True


def test_exec_pushes_checkpoints_and_acts_once(ctx: RuntimeContext) -> None:
    queue = WorkQueueInMemory()
    task = Checkpoints(ctx, [], [PartitionInfo()])
    assert task.exec(queue) is WorkStatus.SUCCEED
    pushed: list[Any] = queue.pop(5)
    assert [item.runtime_state for item in pushed] == [{"done": 1}]
    assert task.exec_cq is None
    task.runtime_state = None
    assert task() is WorkStatus.SUCCEED  # not INCOMPLETE: nothing is done
    assert task.runtime_state is None


def test_clean_output_removes_what_is_temporary(ctx: RuntimeContext) -> None:
    import os

    class Writes(Task):
        def run(self) -> bool:
            with open(os.path.join(self.runtime_output_abspath, "x.parquet"), "w") as file:
                file.write("x")
            return True

    temporary = Writes(ctx, [], [PartitionInfo()])
    named = Writes(ctx, [], [PartitionInfo()], output_name="kept")
    for task in (temporary, named):
        assert task.exec() is WorkStatus.SUCCEED
        task.clean_output()
    assert not os.path.exists(temporary.final_output_abspath)
    assert os.path.exists(named.final_output_abspath)
    named.clean_output(force=True)
    assert not os.path.exists(named.final_output_abspath)


def test_temporary_output_can_only_become_lasting(ctx: RuntimeContext) -> None:
    from smallpond_mpi.common import InvalidArgument
    from smallpond_mpi.execution.task import MergeDataSetsTask

    source = Task(ctx, [], [PartitionInfo()])
    merged = MergeDataSetsTask(ctx, [source], [PartitionInfo()])
    assert source.temp_output
    merged.temp_output = False  # its output refers to the source's files: these must last too
    assert not source.temp_output
    with pytest.raises(InvalidArgument, match="only be set to False"):
        source.temp_output = True


def test_only_plain_data_makes_the_way_back(ctx: RuntimeContext) -> None:
    from collections import Counter, OrderedDict, defaultdict, deque

    import numpy as np

    class Mine(dict):
        pass

    task = Task(ctx, [], [PartitionInfo()])
    plain = {
        "a": [1, (2.5, {"x"}), None],
        "b": deque([1, 2]),
        "c": defaultdict(int, a=1),
        "d": OrderedDict(a=b"x"),
        "e": Counter("aab"),
        "f": np.float64(1.5),
        "g": np.int64(3),
        "h": range(3),
        "i": True,
        "j": "text",
    }
    complex_ = {
        "k": Mine(a=1),
        "l": [lambda: 1],
        "m": (i for i in range(3)),
        "n": defaultdict(lambda: 1),
        "o": {1: object()},
        "p": np.zeros(3),
    }
    task.__dict__.update(plain | complex_)
    task.numpy_random_gen.random()
    task.python_random_gen.random()
    task.clean_complex_attrs()
    assert plain.keys() <= task.__dict__.keys()
    assert not complex_.keys() & task.__dict__.keys()
    assert not {"_numpy_random_gen", "_python_random_gen"} & task.__dict__.keys()
