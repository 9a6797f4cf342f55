"""The scheduler's events as JSON lines, one an event with its time: what a job went through, to be replayed against a fresh core.

Reading a line back gives an event that equals the one written.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from smallpond_mpi.execution import model
from smallpond_mpi.execution.scheduler import events

_NAMES = {
    cls.__name__: cls
    for module in (model, events)
    for cls in vars(module).values()
    if isinstance(cls, type) and cls.__module__ == module.__name__ and (is_dataclass(cls) or issubclass(cls, Enum))
}


def to_line(event: events.Event, now: float) -> str:
    """One line, without its end."""
    return json.dumps({"now": now, "event": _plain(event)}, separators=(",", ":"))


def from_line(line: str) -> tuple[events.Event, float]:
    """The event of a line, and its time."""
    record = json.loads(line)
    event: events.Event = _typed(record["event"])
    return event, record["now"]


def read(lines: Iterable[str]) -> Iterator[tuple[events.Event, float]]:
    """The events of a trace. A last line that a crash has cut off (it has no end) is left out."""
    for line in lines:
        if line.endswith("\n"):
            yield from_line(line)


def _plain(value: object) -> Any:
    if isinstance(value, Enum):
        return {"": type(value).__name__, "name": value.name}
    if is_dataclass(value):
        named = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"": type(value).__name__, **named}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_typed(item) for item in value)
    if not isinstance(value, dict):
        return value
    named = {name: _typed(item) for name, item in value.items() if name}
    cls = _NAMES[value[""]]
    if issubclass(cls, Enum):
        return cls[named["name"]]
    if cls in _IDS:
        named["id"] = model.TaskId(named["id"])
    for name in ("deps", "done"):
        if name in named:
            named[name] = tuple(model.TaskId(item) for item in named[name])
    return cls(**named)


_IDS = {cls for cls in _NAMES.values() if is_dataclass(cls) and "id" in {field.name for field in fields(cls)}}
