"""Batch jobs on the test cluster: submitted as a user would, judged by what Slurm says of them."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.launch import OVERSUBSCRIBE
from tests.slurm.cluster.cluster import Cluster

BIN = Path(sys.executable).parent
MPI = {
    **{name: value for name, value in OVERSUBSCRIBE.items() if "oversubscribe" not in value},
    "OPAL_PREFIX": str(Path(sys.prefix)),  # under srun Open MPI's wheel doesn't find its texts by itself
}
END_SECS = 240.0
"""Long: the machine may be busy with other tests, and then everything takes ten times as long."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that is over: Slurm's state and exit code of it, and what its batch script and ranks printed."""

    id: int
    state: str
    exit_code: str
    output: str


def submit(
    cluster: Cluster, directory: Path, body: str, options: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> int:
    """The id of a batch job that runs the shell lines `body`; its output goes to `directory`."""
    script = directory / "job.sh"
    exports = "".join(f"export {name}='{value}'\n" for name, value in {**MPI, **(env or {})}.items())
    script.write_text(f"#!/bin/bash\nexport PATH={BIN}:$PATH\n{exports}cd {directory}\n{body}\n")
    said = cluster.run(["sbatch", "--parsable", "-o", str(directory / "%j.out"), *options, str(script)]).stdout
    return int(said.split(";")[0])


def end_of(cluster: Cluster, job: int) -> tuple[str, str] | None:
    """(state, exit code) of a job that is over, None while it isn't."""
    log = (cluster.box / "log" / "jobcomp.txt").read_text()
    found = re.search(rf"^JobId={job} .*? JobState=(\w+) .* ExitCode=(\S+)", log, re.MULTILINE)
    return (found[1], found[2]) if found else None


def wait(
    cluster: Cluster,
    job: int,
    directory: Path,
    timeout: float = END_SECS,
    meanwhile: Callable[[], None] = lambda: None,
) -> Ended:
    """The job's end; until then `meanwhile` is called again and again.

    Raises:
        AssertionError: it is not over after `timeout` seconds; it is cancelled then.
    """
    deadline = time.monotonic() + timeout
    while True:
        output = directory / f"{job}.out"
        ended = end_of(cluster, job)
        if ended:
            text = output.read_text(errors="replace") if output.exists() else ""
            return Ended(job, *ended, text)
        if time.monotonic() > deadline:
            queue = cluster.run(["squeue"], check=False).stdout
            cluster.run(["scancel", "--signal=KILL", "--full", str(job)], check=False)
            said = output.read_text(errors="replace") if output.exists() else ""
            raise AssertionError(f"job {job} is not over after {timeout:.0f} s\n{queue}\n{said}")
        meanwhile()
        time.sleep(0.05)


def batch(
    cluster: Cluster,
    directory: Path,
    body: str,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout: float = END_SECS,
) -> Ended:
    """Submit and wait for a job that must end well.

    Raises:
        AssertionError: it did not, with what it printed.
    """
    ended = wait(cluster, submit(cluster, directory, body, options, env), directory, timeout)
    assert (ended.state, ended.exit_code) == ("COMPLETED", "0:0"), f"{ended.state} {ended.exit_code}\n{ended.output}"
    return ended
