"""How a task travels and comes back: everything it is, nothing of its siblings twice, only plain state on the way home."""

import datetime
import functools
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallpond_mpi.common import CannotPickle, DataRootUnusable, InvalidArgument, OutOfMemory, TaskFailed
from smallpond_mpi.execution import failures, payload
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.failures import exception_of
from smallpond_mpi.execution.model import Capacity, Failure, FailureKind, Grant, TaskRuntimeId, WorkStatus
from smallpond_mpi.execution.payload import Packed, Packer, Performer, merge_state
from smallpond_mpi.execution.protocol import RunTask, Welcome
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.io.memory import limit_duckdb
from smallpond_mpi.logical.dataset import ParquetDataSet

CAPACITY = Capacity((0, 1), 8 << 30)
GRANT = Grant((0,), 4 << 30)


class Work(Task):
    """Calls a function; tells what it saw."""

    def __init__(self, ctx: RuntimeContext, deps: Any, part: int = 0, func: Any = None, **given: Any) -> None:
        super().__init__(ctx, deps, [PartitionInfo(part, 10)])
        self.func = func
        self.given = given

    def run(self) -> bool:
        self.told = self.func(self) if self.func is not None else None
        return True


@pytest.fixture(autouse=True)
def no_limit_is_left() -> Iterator[None]:
    """A child is held to its grant as a process; here that is the tests' own."""
    yield
    limit_duckdb(None)


@pytest.fixture
def ctx(tmp_path: Path) -> RuntimeContext:
    context = RuntimeContext(JobId.new(), datetime.datetime(2026, 1, 1), str(tmp_path), random_seed=7)
    context.initialize("test")
    return context


def performer(ctx: RuntimeContext) -> Performer:
    welcome = Welcome(3, cloudpickle.dumps(ctx, protocol=5), "", 1.0)
    return Performer(welcome, 2, "host")


def pack(ctx: RuntimeContext, task: Task, packer: Packer | None = None, retry: int = 0, **options: Any) -> Packed:
    attempt = TaskRuntimeId(task.id, 3, retry)
    datasets = [dep.output for dep in task._deps.tasks]
    return (packer or Packer(ctx)).pack(
        task, attempt, options.get("fail_count", 0), CAPACITY, datasets, options.get("runtime_state")
    )


def perform(
    ctx: RuntimeContext, task: Task, packed: Packed, by: Performer | None = None, retry: int = 0, grant: Grant = GRANT
) -> tuple[bytes, Failure | None]:
    """As a child would; its checkpoints are kept in `task.checkpoints`."""
    run = RunTask(
        TaskRuntimeId(task.id, 3, retry),
        grant,
        packed.header,
        packed.payload,
        tuple(digest for digest, _ in packed.blobs),
    )
    return (by or performer(ctx)).perform(run, dict(packed.blobs), lambda state: None)


def there_and_back(ctx: RuntimeContext, task: Task, **options: Any) -> Failure | None:
    state, failure = perform(ctx, task, pack(ctx, task, **options))
    merge_state(task, state)
    return failure


def test_what_a_task_is_arrives(ctx: RuntimeContext, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1, 2]}), path)
    source = Task(ctx, [], [PartitionInfo()])
    source.dataset = ParquetDataSet([str(path)])

    def look(task: Task) -> dict[str, Any]:
        return {
            "id": int(task.id),
            "runtime_id": str(task.runtime_id),
            "key": task.key,
            "fail_count": task.fail_count,
            "partition": str(task.partition_infos),
            "input_deps": list(task.input_deps.items()),
            "rows": [dataset.num_rows for dataset in task.input_datasets],
            "limit": task.memory_limit,
            "cpus": task.ctx.usable_cpu_count,
            "created": task._num_tasks_created,
            "state": task.runtime_state,
            "exec_id": task.exec_id,
            "given": str(sorted(task.given.items())),  # type: ignore[attr-defined]
            "node_id": task.node_id,
            "location": task.location,
        }

    task = Work(ctx, [source], 4, look, a=1, b="x")
    task.node_id, task.location = 9, "script.py:3"
    packed = pack(ctx, task, retry=2, fail_count=1, runtime_state=pickle.dumps([7]))
    state, failure = perform(ctx, task, packed, retry=2)
    assert failure is None
    merge_state(task, state)
    assert task.status is WorkStatus.SUCCEED
    assert task.told == {
        "id": task.id,
        "runtime_id": f"{task.id}.3.2",
        "key": task.key,
        "fail_count": 1,
        "partition": str(task.partition_infos),
        "input_deps": [(source.key, None)],
        "rows": [2],
        "limit": 4 << 30,
        "cpus": 2,
        "created": ctx.num_tasks_created,
        "state": [7],
        "exec_id": "host.2",
        "given": "[('a', 1), ('b', 'x')]",
        "node_id": 9,
        "location": "script.py:3",
    }


def test_only_plain_state_comes_back(ctx: RuntimeContext) -> None:
    def litter(task: Any) -> str:
        task.number, task.table = 5, {"a": [1, (2, "x")]}
        task.closure, task.lock, task.array = lambda: 1, threading.Lock(), pa.array([1])
        task.numpy_random_gen.random()
        return "told"

    task = Work(ctx, [], 0, litter)
    state, failure = perform(ctx, task, pack(ctx, task))
    assert failure is None
    back = pickle.loads(state)
    assert (back["number"], back["table"], back["told"]) == (5, {"a": [1, (2, "x")]}, "told")
    assert not {"closure", "lock", "array", "func", "ctx", "_numpy_random_gen", "_metrics"} & back.keys()
    before = task.func
    merge_state(task, state)
    assert task.func is before, "what was planned stays"
    assert task.number == 5  # type: ignore[attr-defined]
    assert task.perf_metrics["elapsed wall time (secs)"] >= 0


def test_state_that_can_not_be_pickled_costs_its_attributes_only(ctx: RuntimeContext) -> None:
    class Spoilt(Work):
        def clean_complex_attrs(self) -> None:
            """Leaves everything."""

    task = Spoilt(ctx, [], 0, lambda task: setattr(task, "lock", threading.Lock()))
    assert there_and_back(ctx, task) is None
    assert task.status is WorkStatus.SUCCEED
    assert not hasattr(task, "lock")


def own_ring() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("name", "make"),
    [("runtime_state", threading.Lock), ("runtime_state", lambda: (n for n in range(3))), ("ring", own_ring)],
)
def test_an_attribute_that_can_not_travel_costs_no_output(
    ctx: RuntimeContext, name: str, make: Callable[[], Any]
) -> None:
    def write(task: Any) -> None:
        path = Path(task.runtime_output_abspath, "a.parquet")
        pq.write_table(pa.table({"a": [1, 2]}), path)
        task.dataset = ParquetDataSet([str(path)])
        setattr(task, name, make())

    task = Work(ctx, [], 0, write)
    assert there_and_back(ctx, task) is None
    assert task.output.num_rows == 2
    assert task._output_files
    assert name not in task.__dict__


def test_an_output_that_can_not_travel_is_a_failure(ctx: RuntimeContext) -> None:
    def write(task: Any) -> None:
        pq.write_table(pa.table({"a": [1, 2]}), Path(task.runtime_output_abspath, "a.parquet"))
        task.dataset = threading.Lock()

    task = Work(ctx, [], 0, write)
    failure = there_and_back(ctx, task)
    assert failure is not None
    assert (failure.kind, failure.type_name) == (FailureKind.BAD_INPUT, "CannotPickle")
    assert "its dataset can't be pickled: TypeError: cannot pickle '_thread.lock' object" in failure.message
    assert task.status is WorkStatus.CRASHED
    assert not [path for path in Path(ctx.staging_root).rglob("*") if path.is_file()]


def test_siblings_share_what_is_alike(ctx: RuntimeContext) -> None:
    big = "x" * 100_000
    func = functools.partial(len, big)
    packer = Packer(ctx)
    tasks = [Work(ctx, [], part, lambda task, func=func: func(), option=big) for part in range(3)]
    for task in tasks:
        task.func = tasks[0].func
        task.given = tasks[0].given
    packed = [pack(ctx, task, packer) for task in tasks]
    assert len({digest for one in packed for digest, _ in one.blobs}) == 1
    assert all(len(one.header) + len(one.payload) < 1000 for one in packed)
    by = performer(ctx)
    for task, one in zip(tasks, packed, strict=True):
        state, failure = perform(ctx, task, one, by)
        assert failure is None
        assert pickle.loads(state)["told"] == len(big)


def test_a_sibling_may_have_more_or_less_than_the_first(ctx: RuntimeContext) -> None:
    first, second = Work(ctx, [], 0, lambda task: sorted(vars(task)), a=1), Work(ctx, [], 1, None, b=2)
    second.func = lambda task: (hasattr(task, "extra"), hasattr(task, "given"), task.more)
    first.extra = "of the first"  # type: ignore[attr-defined]
    second.more = "of the second"  # type: ignore[attr-defined]
    del second.given
    packer, by = Packer(ctx), performer(ctx)
    for task in (first, second):
        state, failure = perform(ctx, task, pack(ctx, task, packer), by)
        assert failure is None
        merge_state(task, state)
    assert second.told == (False, False, "of the second")


def test_what_is_large_goes_by_file(ctx: RuntimeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "MAX_INLINE_BYTES", 1000)
    large = "y" * 5000
    source = Task(ctx, [], [PartitionInfo()])
    source.dataset = ParquetDataSet([f"/{'z' * 2000}/{n}.parquet" for n in range(3)])

    def look(task: Any, shared: str = large) -> tuple[int, ...]:
        return len(shared), len(task.given["own"]), len(task.input_datasets[0].paths), len(task.runtime_state)

    packer, by = Packer(ctx), performer(ctx)
    for part in range(2):
        task = Work(ctx, [source], part, look, own=large + str(part))
        packed = pack(ctx, task, packer, runtime_state=pickle.dumps(large))
        sizes = [len(packed.header), len(packed.payload), *(len(content) for _, content in packed.blobs)]
        assert max(sizes) < 1000, sizes
        state, failure = perform(ctx, task, packed, by)
        assert failure is None, failure
        assert pickle.loads(state)["told"] == (5000, 5001, 3, 5000)
    assert all(
        path.parent == Path(ctx.paths.messages) for path in Path(ctx.staging_root).rglob("*.*") if path.is_file()
    )


def test_no_room_for_what_is_large_is_no_mistake_of_the_users(
    ctx: RuntimeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "MAX_INLINE_BYTES", 10)
    Path(ctx.paths.messages).write_text("in the way")
    with pytest.raises(DataRootUnusable, match="can't be written"):
        pack(ctx, Work(ctx, [], 0, None, a="x" * 100))


def test_what_went_by_file_and_can_not_be_read_is_worth_another_attempt(
    ctx: RuntimeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "MAX_INLINE_BYTES", 10)
    task = Work(ctx, [], 0, None, a="x" * 100)
    packed = pack(ctx, task)
    for path in Path(ctx.paths.messages).iterdir():
        path.unlink()
        path.mkdir()  # reading it is an error of the file system, and not that it isn't there
    _, failure = perform(ctx, task, packed)
    assert failure is not None
    assert failure.kind is FailureKind.EXCEPTION
    assert "can't be read: Is a directory" in failure.message


class Unpicklable:
    def __reduce__(self) -> Any:
        raise KeyError("not me")


@pytest.mark.parametrize(
    ("caught", "text", "hint"),
    [
        (threading.Lock(), "cannot pickle", "a logger, lock or open connection is caught in a closure"),
        (Unpicklable(), "KeyError: 'not me'", "make it inside the function"),
        ((n for n in range(3)), "generator", "make it inside the function"),
    ],
)
def test_what_can_not_be_pickled_is_named(ctx: RuntimeContext, caught: Any, text: str, hint: str) -> None:
    task = Work(ctx, [], 0, lambda task: caught)
    task.location = "script.py:42"
    with pytest.raises(CannotPickle) as error:
        pack(ctx, task)
    message = str(error.value)
    assert message.startswith(f"Can't pickle task {task.key}")
    assert "script.py:42" in message
    assert text in message
    assert hint in message


def test_loggers_travel(ctx: RuntimeContext) -> None:
    log = logging.getLogger("of the script")
    task = Work(ctx, [], 0, lambda task: log.name)
    assert there_and_back(ctx, task) is None
    assert task.told == "of the script"


@pytest.mark.parametrize(
    ("raised", "kind", "back", "text"),
    [
        (ValueError("bad"), FailureKind.EXCEPTION, TaskFailed, "ValueError: bad"),
        (MemoryError("no room"), FailureKind.OUT_OF_MEMORY, OutOfMemory, "no room"),
        (InvalidArgument("wrong"), FailureKind.BAD_INPUT, InvalidArgument, "wrong"),
        (SystemExit(3), FailureKind.EXIT_CODE, None, "3"),
    ],
)
def test_failures_come_back_as_data(ctx: RuntimeContext, raised: Any, kind: FailureKind, back: Any, text: str) -> None:
    def fail(task: Task) -> None:
        raise raised

    task = Work(ctx, [], 0, fail)
    failure = there_and_back(ctx, task)
    assert failure is not None
    assert (failure.kind, failure.type_name, failure.host, failure.rank) == (kind, type(raised).__name__, "host", 2)
    assert text in str(exception_of(failure))
    assert type(exception_of(failure)) is back or back is None
    assert task.status is WorkStatus.CRASHED


def test_of_a_very_long_message_both_ends_come_back(ctx: RuntimeContext) -> None:
    def fail(task: Task) -> None:
        raise ValueError("the begin" + "x" * 1_000_000 + "the end")

    failure = there_and_back(ctx, Work(ctx, [], 0, fail))
    assert failure is not None
    for text in (failure.message, failure.traceback):
        assert len(text) < 2 * failures.MAX_TEXT
        assert "the begin" in text
        assert "characters left out]" in text
        assert "the end" in text


def test_what_a_failed_attempt_wrote_goes(ctx: RuntimeContext) -> None:
    def write_and_fail(task: Task) -> None:
        Path(task.runtime_output_abspath, "half").write_text("x")
        raise ValueError("later")

    task = Work(ctx, [], 0, write_and_fail)
    assert there_and_back(ctx, task) is not None
    assert not [path for path in Path(ctx.staging_root).rglob("*") if path.is_file()]


def test_a_message_that_can_not_be_read_is_bad_input(ctx: RuntimeContext) -> None:
    task = Work(ctx, [], 0, None)
    packed = pack(ctx, task)
    _, failure = perform(ctx, task, packed._replace(payload=b"garbage"))
    assert failure is not None
    assert failure.kind is FailureKind.BAD_INPUT
    assert "can't be unpickled" in failure.message


def test_checkpoints_are_the_runtime_state(ctx: RuntimeContext) -> None:
    def push(task: Any) -> None:
        for step in range(3):
            task.runtime_state = {"step": step}
            task.exec_cq.push(task)

    task = Work(ctx, [], 0, push)
    packed = pack(ctx, task)
    pushed: list[bytes] = []
    run = RunTask(TaskRuntimeId(task.id, 3, 0), GRANT, packed.header, packed.payload, (packed.blobs[0][0],))
    performer(ctx).perform(run, dict(packed.blobs), pushed.append)
    assert [pickle.loads(state) for state in pushed] == [{"step": 0}, {"step": 1}, {"step": 2}]


def test_an_error_of_ours_has_no_traceback_of_ours() -> None:
    """What a function raised within a query DuckDB tells in a message only: how the engine got there says nothing more."""

    def raised(error: Exception) -> Exception:
        try:
            raise error
        except Exception as caught:  # noqa: BLE001 that is the error
            return caught

    namespace: dict[str, Any] = {"TaskFailed": TaskFailed}
    exec(compile("def ours():\n    raise TaskFailed('said by DuckDB')", failures.__file__, "exec"), namespace)
    with pytest.raises(TaskFailed) as ours:
        namespace["ours"]()
    without_this_test = ours.value.with_traceback(ours.tb.tb_next)
    assert failures.failure_from(without_this_test, "host", 0).traceback == ""
    without_this_test.__cause__ = raised(ValueError("of the user's"))
    assert "of the user's" in failures.failure_from(without_this_test, "host", 0).traceback
