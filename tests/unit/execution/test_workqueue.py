"""Queues of work: what is pushed is popped once, in order, by whoever comes, and is what it was when it was pushed."""

import asyncio
import contextlib
import multiprocessing
from datetime import datetime
from pathlib import Path

import pytest

from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.task import PartitionInfo, Task
from smallpond_mpi.execution.workqueue import (
    WorkItem,
    WorkQueue,
    WorkQueueInMemory,
    WorkQueueOnFilesystem,
    WorkStatus,
)


class Count(WorkItem):
    """Pushes a checkpoint after each step."""

    steps = 0

    def run(self) -> bool:
        for _ in range(3):
            self.steps += 1
            assert self.exec_cq is not None
            self.exec_cq.push(self)
        return True


@pytest.fixture(params=["memory", "files"])
def works(request: pytest.FixtureRequest, tmp_path: Path) -> WorkQueue:
    return WorkQueueInMemory() if request.param == "memory" else WorkQueueOnFilesystem(str(tmp_path / "q"))


def test_first_in_first_out(works: WorkQueue) -> None:
    for number in range(5):
        works.push(WorkItem(f"item-{number}"))
    assert [item.key for item in works.pop(2)] == ["item-0", "item-1"]
    assert [item.key for item in works.pop()] == ["item-2"]
    assert [item.key for item in works.pop(9)] == ["item-3", "item-4"]
    assert works.pop(9) == []


def test_what_is_buffered_is_there_after_a_flush(works: WorkQueue) -> None:
    works.push(WorkItem("one"), buffering=True)
    assert works.pop() == []
    works.flush()
    assert [item.key for item in works.pop()] == ["one"]


def test_an_item_is_popped_as_it_was_pushed(works: WorkQueue) -> None:
    item = WorkItem("one", memory_limit=1)
    works.push(item)
    item.memory_limit = 2
    assert works.pop()[0].memory_limit == 1


def test_checkpoints_of_a_running_item(works: WorkQueue) -> None:
    item = Count("count")
    assert item.exec(works) is WorkStatus.SUCCEED
    assert [one.steps for one in works.pop(9) if isinstance(one, Count)] == [1, 2, 3]
    assert item.exec_cq is None


def test_a_task_goes_through_files_and_runs(tmp_path: Path) -> None:
    ctx = RuntimeContext(JobId.new(), datetime.now(), str(tmp_path))
    works = WorkQueueOnFilesystem(str(tmp_path / "q"))
    works.push(Task(ctx, [], [PartitionInfo()]))
    (task,) = works.pop()
    assert isinstance(task, Task)
    assert task() is WorkStatus.SUCCEED


def test_what_a_queue_lists(tmp_path: Path) -> None:
    works = WorkQueueOnFilesystem(str(tmp_path))
    for number in range(4):
        works.push(WorkItem(str(number)))
    works.pop()
    assert works.size() == 3
    assert [item.key for item in works.list_dequeued()] == ["0"]
    assert [item.key for item in works.list_enqueued()] == ["1", "2", "3"]
    assert [item.key for item in works.list_works(expand_batch=False)] == ["0", "1", "2", "3"]


def test_a_full_buffer_is_written(tmp_path: Path) -> None:
    works = WorkQueueOnFilesystem(str(tmp_path))
    works.buffer_size = 1000
    for number in range(3):
        works.push(WorkItem("x" * 600 + str(number)), buffering=True)
    assert works.size() == 2, "written when two of them were more than the buffer holds; the third waits for a flush"


def take_all(root: str, random: bool, taken: "multiprocessing.Queue[list[str]]") -> None:
    works = WorkQueueOnFilesystem(root, random=random)
    keys = []
    while items := works.pop(3):
        keys += [item.key for item in items]
    taken.put(keys)


@pytest.mark.parametrize("random", [False, True])
def test_each_item_goes_to_one_process(random: bool, tmp_path: Path) -> None:
    works = WorkQueueOnFilesystem(str(tmp_path))
    for number in range(300):
        works.push(WorkItem(str(number)), buffering=True)
    works.flush()
    spawn = multiprocessing.get_context("spawn")
    taken = spawn.Queue()
    processes = [spawn.Process(target=take_all, args=(str(tmp_path), random, taken)) for _ in range(3)]
    for process in processes:
        process.start()
    keys = [key for _ in processes for key in taken.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(map(int, keys)) == list(range(300))


class Ended(WorkItem):
    """Ends with any exception."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("ended")
        self.error = error
        self.is_clean = False

    def run(self) -> bool:
        raise self.error

    def cleanup(self) -> None:
        self.is_clean = True


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, asyncio.CancelledError, KeyboardInterrupt])
def test_cleanup_follows_whatever_was_raised(kind: type[BaseException]) -> None:
    item = Ended(kind("the end"))
    with pytest.raises(kind) if kind is KeyboardInterrupt else contextlib.nullcontext():
        assert item.exec() is WorkStatus.CRASHED
    assert (item.status, item.exception, item.is_clean) == (WorkStatus.CRASHED, item.error, True)
    assert item.finish_time is not None
