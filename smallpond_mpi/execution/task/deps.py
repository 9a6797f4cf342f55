"""Which tasks a task depends on, and the other way round, without P x C objects for P producers and C consumers.

Consumers of the same producers share one Dependencies; each producer holds the groups it is in.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.logical.dataset import DataSet


class Dependencies(Mapping[str, "Task"]):
    """`{key: Task}` in order. A task may stand in it more than once: `tasks` has them all, the mapping shows one a key."""

    __slots__ = ("_by_key", "_outputs", "dependants", "tasks")

    def __init__(self, tasks: "Iterable[Task]") -> None:
        self.tasks = tuple(tasks)
        self.dependants: list[Task] = []
        self._by_key: dict[str, Task] | None = None
        self._outputs: list[DataSet] | None = None

    @property
    def outputs(self) -> "list[DataSet]":
        """What the tasks have made, in order: one list for all that depend on them, to be asked for when all are done."""
        if self._outputs is None:
            self._outputs = [task.output for task in self.tasks]
        return self._outputs

    @property
    def _index(self) -> "dict[str, Task]":
        if self._by_key is None:
            self._by_key = {task.key: task for task in self.tasks}
        return self._by_key

    def __getitem__(self, key: str) -> "Task":
        return self._index[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"Dependencies({', '.join(self)})"


class DependantKeys(Set[str]):
    """The keys of the tasks that depend on a task: a view over the groups that the task is in."""

    __slots__ = ("_groups",)

    def __init__(self, groups: tuple[Dependencies, ...]) -> None:
        self._groups = groups

    def __contains__(self, key: object) -> bool:
        return any(task.key == key for group in self._groups for task in group.dependants)

    def __iter__(self) -> Iterator[str]:
        return iter({task.key: None for group in self._groups for task in group.dependants})

    def __len__(self) -> int:
        return len({task.key for group in self._groups for task in group.dependants})

    @classmethod
    def _from_iterable(cls, keys: Iterable[str]) -> set[str]:  # type: ignore[override] # results of & and | are plain sets
        return set(keys)
