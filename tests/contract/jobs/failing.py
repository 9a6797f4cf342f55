"""A job whose tasks fail, each in its own way: what rank 0 learns of it. Hooks tell into a file that they were called.

python failing.py DATA_ROOT FACTS.json
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from engine import run_tasks

import smallpond_mpi as sp
from smallpond_mpi.common import JobFailed
from smallpond_mpi.execution.task import PartitionInfo, Task


class Mine(Exception):
    """An error that can be unpickled nowhere: rank 0 must never have to."""

    def __init__(self, first: str, second: object) -> None:
        super().__init__(f"{first} of {second}")
        self.lock = threading.Lock()


class Number(int):
    """Plain but for its class, which is the user's."""


class Failing(Task):
    """Fails where and how it is told."""

    def __init__(self, ctx: Any, log: str, where: str, how: str) -> None:
        super().__init__(ctx, [], [PartitionInfo()], memory_limit=100 << 20)
        self.log = log
        self.where = where
        self.how = how

    def tell(self, hook: str) -> None:
        with open(self.log, "a") as file:
            file.write(f"{self.retry_count} {hook} {self.status.name}\n")
        if hook == self.where:
            self.fail()

    def fail(self) -> None:
        match self.how:
            case "user error":
                raise Mine("a thing", threading.Lock)
            case "memory":
                raise MemoryError("no room")
            case "exit":
                sys.exit(3)
            case "hard exit":
                os._exit(4)

    def initialize(self) -> None:
        self.tell("initialize")

    def run(self) -> bool:
        self.tell("run")
        self.my_number = Number(3)
        self.my_plain = 3
        return self.how != "false"

    def finalize(self) -> None:
        self.tell("finalize")

    def cleanup(self) -> None:
        self.tell("cleanup")


CASES = [
    ("run", "nothing"),
    ("run", "false"),
    ("run", "user error"),
    ("initialize", "user error"),
    ("finalize", "user error"),
    ("cleanup", "user error"),
    ("run", "memory"),
    ("run", "exit"),
    ("run", "hard exit"),
]


def main(data_root: str, facts_path: str) -> None:
    session = sp.init(data_root=data_root, progress="none", max_fail_count=2)
    stem = os.path.splitext(facts_path)[0]
    told = {}
    for where, how in CASES:
        name = f"{how} in {where}"
        task = Failing(session._runtime_ctx, f"{stem}.{name}.log", where, how)
        message = ""
        try:
            run_tasks(session, [task])
        except JobFailed as error:
            message = str(error)
        told[name] = {
            "status": task.status.name,
            "exception": type(task.exception).__name__,
            "module": type(task.exception).__module__,
            "text": str(task.exception),
            "message": message,
            "oom": [task.oom(), task.oom(nonzero_exitcode_as_oom=True)],
            "limit raised": task.memory_limit,
            "fail_count": task.fail_count,
            "retry_count": task.retry_count,
            "own attributes": sorted(attr for attr in task.__dict__ if attr.startswith("my_")),
            "hooks": Path(task.log).read_text().splitlines(),
        }
    Path(facts_path).write_text(json.dumps(told))
    session.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
