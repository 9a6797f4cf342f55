"""`smallpond-mpi submit`: the batch script that runs a Python script on all tasks of a Slurm job. Pure: words and an environment in, text out.

    submit [OPTIONS] script.py [OPTIONS] [-- ARGS OF THE SCRIPT]

OPTIONS are ours, or sbatch's, which are passed on as they are.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from smallpond_mpi.common import InvalidArgument

WARNING_SECS = 120
"""How long before the end of its time limit a job is warned. What runs then may still finish; Slurm's clock is good for a minute."""
WARNED_SECS = 600
"""Jobs with a shorter limit are not warned: it would come when they have hardly begun."""
OF_COMMAND_LINE = ("--wrap", "--wait", "-W", "--parsable", "--test-only")
"""Options of sbatch that say nothing of the job."""
FLAGS = (
    *(
        "--dry-run",
        "--wait",
        "--contiguous",
        "--exclusive",
        "--get-user-env",
        "--hold",
        "-H",
        "--ignore-pbs",
        "--nice",
        "--no-kill",
        "-k",
    ),
    *(
        "--no-requeue",
        "--overcommit",
        "-O",
        "--oversubscribe",
        "-s",
        "--propagate",
        "--quiet",
        "-Q",
        "--reboot",
        "--requeue",
        "--spread-job",
    ),
    *("--use-min-nodes", "--verbose", "-v"),
)
"""Options, ours and sbatch's, that have no value, or only one that follows `=`."""


@dataclass
class Request:
    """What is to be submitted. `options` are sbatch's, one a text."""

    script: str
    options: list[str] = field(default_factory=list)
    args: list[str] = field(default_factory=list)
    data_root: str | None = None
    is_dry: bool = False
    waits: bool = False

    @property
    def is_array(self) -> bool:
        """Whether the job is an array."""
        return has_option(self.options, ("--array", "-a"))


def parse(words: Sequence[str]) -> Request:
    """The words after `submit`.

    Raises:
        InvalidArgument: there is no script among them, or an option that makes no sense here.
    """
    ours, dashes, args = _split(words)
    places = [place for place, word in enumerate(ours) if word.endswith(".py")]
    # The value of an option is the script only if nothing else can be.
    places.sort(key=lambda place: place > 0 and _takes_a_value(ours[place - 1]))
    if not places:
        raise InvalidArgument(
            "give a script: smallpond-mpi submit script.py [options of sbatch] [--dry-run] [--wait] [-- arguments of the script]"
        )
    place = places[0]
    request = Request(ours[place], args=list(args))
    rest = [*ours[:place], *ours[place + 1 :]]
    while rest:
        word = rest.pop(0)
        if word == "--dry-run":
            request.is_dry = True
        elif word == "--wait":
            request.waits = True
        elif word.partition("=")[0] == "--data-root":
            request.data_root = word.partition("=")[2] or (rest.pop(0) if rest else None)
            if not request.data_root:
                raise InvalidArgument("--data-root needs a directory")
        elif not word.startswith("-"):
            raise InvalidArgument(f"{word} is no option of sbatch; arguments of {request.script} stand after --")
        elif word.partition("=")[0] in OF_COMMAND_LINE:
            raise InvalidArgument(f"{word} makes no sense here: sbatch gets a script of its own")
        else:
            has_value = bool(rest) and _takes_a_value(word) and not rest[0].startswith("-")
            request.options.append(f"{word} {rest.pop(0)}" if has_value else word)
    if dashes and not args:
        raise InvalidArgument("no argument follows --")
    return request


def _takes_a_value(word: str) -> bool:
    """Whether the next word may be the value of this option: `-N 2` and `--nodes 2`, not `-N2`, `--nodes=2` and `--requeue`."""
    is_bare = word.startswith("-") and "=" not in word and (word.startswith("--") or len(word) == 2)
    return is_bare and word not in FLAGS


def _split(words: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in words:
        return list(words), False, []
    place = list(words).index("--")
    return list(words[:place]), True, list(words[place + 1 :])


def has_option(options: Sequence[str], names: Sequence[str]) -> bool:
    """Whether one of these options was given, in any of the forms that sbatch understands: `-n4`, `-n 4`, `--ntasks=4`, `--ntasks 4`."""
    for option in options:
        word = re.split(r"[ =]", option, maxsplit=1)[0]
        if word in names or (not word.startswith("--") and word[:2] in names):
            return True
    return False


def render(request: Request, python: str, data_root: str, job_id: str, env: Mapping[str, str]) -> str:
    """The batch script. `job_id` is what the job is taken up by when it runs again."""
    options = list(request.options)
    if not has_option(options, ("--job-name", "-J")):
        options.insert(0, f"--job-name={_name_of(request.script)}")
    if not has_option(options, ("--signal",)) and time_limit(options) >= WARNED_SECS:
        options.append(f"--signal=B:USR1@{WARNING_SECS}")
    if not has_option(options, ("--open-mode",)):
        options.append("--open-mode=append")  # a requeue does not empty the log
    exports = {
        "PATH": f"{os.path.dirname(python)}:{env.get('PATH', os.defpath)}",
        "SP_DATA_ROOT": data_root,
        **({} if request.is_array else {"SP_JOBID": job_id}),
    }
    command = [python, "-m", "smallpond_mpi", "run", os.path.abspath(request.script), *request.args]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {_quoted(option)}" for option in options),
            *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
            "# takes the place of this shell: Slurm's signals reach it, and the ranks through it",
            f"exec {shlex.join(command)}",
            "",
        ]
    )


def time_limit(options: Sequence[str]) -> float:
    """Seconds of `-t`, `--time` in any of sbatch's forms; infinite if it is not given, or not understood."""
    for option in options:
        found = re.fullmatch(r"(?:--time[ =]|-t ?)(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", option)
        if found:
            days, first, second, third = (None if part is None else int(part) for part in found.groups())
            if days is not None:  # days-hours[:minutes[:seconds]]
                return days * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)
            if third is not None:  # hours:minutes:seconds
                return (first or 0) * 3600 + (second or 0) * 60 + third
            return (first or 0) * 60 + (second or 0)  # minutes[:seconds]
    return float("inf")


def _name_of(script: str) -> str:
    return re.sub(r"[^\w.-]", "_", os.path.basename(script))


def _quoted(option: str) -> str:
    """As sbatch reads it in a script: a value with spaces in quotes."""
    name, separator, value = re.match(r"([^ =]+)([ =]?)(.*)", option, re.DOTALL).groups()  # type: ignore[union-attr]
    return name + separator + (shlex.quote(value) if value else "")


def log_of(fields: Mapping[str, str], is_array: bool) -> str:
    """Where Slurm writes what the job prints, from what scontrol says of it."""
    path = fields.get("StdOut", "")
    return path or os.path.join(fields.get("WorkDir", "."), "slurm-%A_%a.out" if is_array else "slurm-%j.out")
