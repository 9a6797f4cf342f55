"""Runs small scripts as users do, alone or on ranks, and reads what they said with plan_script.say."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launch import clean_env, mpirun_command

ROOT = Path(__file__).parents[1]
SECS = 150.0
PREAMBLE = "from tests.plan_script import *\n"


@dataclass(frozen=True)
class Ran:
    """A script that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def told(self) -> list[Any]:
        """What it said, in order."""
        return [json.loads(line[5:]) for line in self.stdout.splitlines() if line.startswith("TOLD ")]


@dataclass(frozen=True)
class Place:
    """A directory of a test, with scripts and a data root."""

    path: Path

    @property
    def data_root(self) -> Path:
        """Where jobs are."""
        return self.path / "root"

    def write(self, text: str, name: str = "script.py") -> Path:
        """A script that begins with the names of plan_script."""
        script = self.path / name
        script.write_text(PREAMBLE + textwrap.dedent(text))
        return script

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What the script's processes get."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        ours = {"PLACE": str(self.path), "SP_DATA_ROOT": str(self.data_root), "PYTHONPATH": path}
        return clean_env({**ours, **(more or {})})

    def start(
        self, script: Path, args: Sequence[str] = (), ranks: int = 0, env: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """A process of the script, or its launcher; in a session of its own."""
        command = [sys.executable, str(script), *args]
        return subprocess.Popen(
            mpirun_command(ranks, command) if ranks else command,
            env=self.env(env),
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, text: str, args: Sequence[str] = (), ranks: int = 0, env: Mapping[str, str] | None = None) -> Ran:
        """A script, to its end."""
        return finished(self.start(self.write(text), args, ranks, env))


def finished(process: "subprocess.Popen[str]", secs: float = SECS) -> Ran:
    """Wait for a process; one that does not end is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=secs)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"not over within {secs:g} s\n{out}\n{err}") from None
    return Ran(process.returncode, out, err)
