"""Driver: a script that makes a plan and runs it, with a command line for both.

`python script.py [mode] [options of the job] [options of the script]`

(none)      as ranks when a launcher started several, else on this machine alone
mpi         this process is one of the ranks that a launcher started
scheduler   schedules for executors that are started by themselves and join through the data root
executor    such an executor, for the job of --job_id below --data_root
"""

import argparse
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.config import LogLevel, ProgressStyle, SpeculativeExec
from smallpond_mpi.execution.joining import Allowance, serve_job
from smallpond_mpi.execution.manager import JobManager
from smallpond_mpi.execution.paths import JobPaths, job_uuid
from smallpond_mpi.execution.task.plan import ExecutionPlan
from smallpond_mpi.logical.node import LogicalPlan
from smallpond_mpi.platform.base import Platform
from smallpond_mpi.platform.binding import launched_size, launcher_of

Mode = Literal["scheduler", "executor", "mpi"]

TEXTS = {
    "data_root": "a directory that all processes share (default: SP_DATA_ROOT, then ~/.smallpond_mpi/data)",
    "job_id": "what the job's directory is found by; one that did not finish is taken up where it was",
    "job_time": "seconds since the epoch, or a date in ISO 8601",
    "job_name": "what the job is called",
    "output_path": "copy the result of the plan to this directory",
    "resource_group": "no effect here",
    "python_venv": "no effect here",
    "task_image": "no effect here",
    "platform": "no effect here",
}
NUMBERS: dict[str, tuple[type, str]] = {
    "num_executors": (int, "with mode scheduler: wait for that many executors; 0: compute in the scheduler alone"),
    "num_executors_per_task": (int, "no effect here"),
    "job_priority": (int, "no effect here"),
    "random_seed": (int, "what all randomness follows from"),
    "max_retry_count": (int, "attempts of a task beyond which no speculative one is started"),
    "max_fail_count": (int, "failures at which a task, and the job, is given up"),
    "fault_inject_prob": (float, "with which probability a task fails on purpose"),
    "memory_purge_delay": (int, "no effect here"),
    "heartbeat_secs": (float, "how often an executor says that it lives"),
    "late_secs": (float, "silence of an executor, after which it gets no new tasks"),
    "gone_secs": (float, "silence after which its tasks go to others"),
    "max_usable_cpu_count": (int, "with mode executor: use at most so many CPUs"),
    "max_usable_gpu_count": (int, "with mode executor: use at most so many GPUs"),
    "max_usable_memory_size": (int, "with mode executor: use at most so many bytes of memory"),
}
FLAGS = {
    "prioritize_retry": "a task that failed is tried again before others",
    "stop_executor_on_failure": "an executor on which a task failed gets no more tasks, unless it is the last",
    "fail_fast": "the first failure of a task ends the job",
    "nonzero_exitcode_as_oom": "a task that ended with an exit code is tried again with more memory",
    "enable_profiling": "profile tasks",
    "enable_diagnostic_metrics": "count and measure the files of each task",
    "enable_sched_state_dump": "no effect here",
    "remove_empty_parquet": "files without rows are no output",
    "remove_output_root": "remove outputs below the job's directory when it has succeeded",
    "skip_task_with_empty_input": "don't run tasks that have an empty input",
    "manifest_only_final_results": "list the files of the result in FinalResults instead of linking them there",
    "bind_numa_node": "accepted: tasks are always bound to their CPUs and NUMA node",
    "enforce_memory_limit": "run tasks under an RLIMIT_DATA of 1.5 times their memory limit",
    "share_log_analytics": "no effect here",
    "disable_log_rotation": "no effect here",
    "keep_intermediate": "keep staging and temporary files after success",
}
CHOICES: dict[str, tuple[tuple[str, ...], str]] = {
    "speculative_exec": (get_args(SpeculativeExec), "whether slow attempts get a twin"),
    "malloc": (("system", "jemalloc", "mimalloc"), "Arrow's memory pool in tasks"),
    "console_log_level": (get_args(LogLevel), "how much is said on stderr"),
    "file_log_level": (get_args(LogLevel), "how much goes into log/scheduler.log"),
    "progress": (get_args(ProgressStyle), "how progress is shown"),
}
LISTS = {
    "env_variables": "NAME=value, set for every task",
    "sidecars": "no effect here",
    "user_tags": "no effect here",
}
SYNONYMS = {"fail_fast": "fail_fast_on_failure", "malloc": "memory_allocator"}
"""Options whose name is shorter than that of the parameter of JobManager.run; the longer one works too."""
OF_EXECUTORS = ("max_usable_cpu_count", "max_usable_gpu_count", "max_usable_memory_size")
OF_JOB_MANAGER = ("data_root", "python_venv", "task_image", "platform")


class Driver:
    """The command line of a script, and the place where it runs its plan.

    Options of the script are added with `add_argument`, as argparse has it; `get_arguments` gives their values. Options of the job come before,
    after or between them: those of JobManager.run, with underscores or hyphens, and --fail_fast, --malloc, --data_root.
    """

    def __init__(self) -> None:
        self._users = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        self._mode: str | None = None
        self._user_arguments: argparse.Namespace | None = None
        self._driver_arguments: dict[str, Any] = {}

    def add_argument(self, *args: Any, **kwargs: Any) -> None:
        """Declare an option of the script, as argparse.ArgumentParser.add_argument does."""
        self._users.add_argument(*args, **kwargs)
        self._user_arguments = None

    def parse_arguments(self, args: Sequence[str] | None = None) -> None:
        """Read a command line (None: the process's own). What is wrong with it ends the process with 2 and the usage."""
        given = list(sys.argv[1:] if args is None else args)
        own, _ = _options(()).parse_known_args(given)
        # An option that script and driver both have is both's.
        _, rest = _options(self._users._option_string_actions).parse_known_args(given)
        whole = self._whole_parser()
        if any(one in ("-h", "--help") for one in rest) and "-h" not in self._users._option_string_actions:
            whole.print_help()
            raise SystemExit(0)
        mode, rest = self._take_mode(rest)
        self._users.prog, self._users.usage = whole.prog, whole.format_usage().removeprefix("usage: ")
        self._user_arguments = self._users.parse_args(rest)
        self._mode = mode
        self._driver_arguments = vars(own)

    def _take_mode(self, rest: list[str]) -> tuple[str | None, list[str]]:
        """The mode: the first argument, or the only one that is nobody else's."""
        if rest and rest[0] in get_args(Mode):
            return rest[0], rest[1:]
        modes = [one for one in rest if one in get_args(Mode)]
        if modes and not self._users._get_positional_actions():
            _, unknown = self._users.parse_known_args(rest)
            if unknown and unknown[0] in modes:
                at = max(index for index, one in enumerate(rest) if one == unknown[0])
                return unknown[0], rest[:at] + rest[at + 1 :]
        return None, rest

    def _whole_parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            usage=f"{os.path.basename(sys.argv[0])} [{' | '.join(get_args(Mode))}] [options]",
            conflict_handler="resolve",
            parents=[_options(()), self._users],
            epilog="Without a mode: the ranks that a launcher started, or this machine alone.",
        )
        parser._optionals.title = "options of the script"
        return parser

    def _parsed(self) -> argparse.Namespace:
        if self._user_arguments is None:
            self.parse_arguments()
        assert self._user_arguments is not None
        return self._user_arguments

    def get_user_arguments(self, to_dict: bool = True) -> Any:
        """Values of the script's own options: a dict, or argparse's Namespace."""
        found = self._parsed()
        return dict(vars(found)) if to_dict else found

    get_arguments = get_user_arguments

    def get_driver_arguments(self, to_dict: bool = True) -> Any:
        """Values of the job's options, by the names of JobManager.run; those that were not given have its defaults. And `mode`."""
        self._parsed()
        found = {**_defaults(), **self._driver_arguments, "mode": self._mode}
        return found if to_dict else argparse.Namespace(**found)

    @property
    def mode(self) -> str | None:
        """`scheduler`, `executor`, `mpi`, or None."""
        self._parsed()
        return self._mode

    @property
    def job_id(self) -> str | None:
        """The job's id, if it was given (--job_id, SP_JOBID)."""
        self._parsed()
        return self._driver_arguments.get("job_id") or os.environ.get("SP_JOBID") or None

    @property
    def data_root(self) -> str:
        """Where the job's directory lies (--data_root, SP_DATA_ROOT)."""
        self._parsed()
        return os.path.abspath(
            os.path.expanduser(self._driver_arguments.get("data_root") or Platform.default_data_root())
        )

    @property
    def num_executors(self) -> int:
        """--num_executors."""
        self._parsed()
        return int(self._driver_arguments.get("num_executors", _defaults()["num_executors"]))

    def run(
        self, plan: LogicalPlan, stop_process_on_done: bool = True, tags: list[str] | None = None
    ) -> ExecutionPlan | None:
        """Run the plan as the command line says.

        With `stop_process_on_done` the process ends when the job has: with 0 after success, 1 after failure (an executor that was told to leave by a
        signal: 128 and the signal). Otherwise returns the finished plan in the process that schedules, None in an executor; ranks other than
        0 never return.

        Raises:
            InvalidArgument: the mode does not fit how the process was started. See also JobManager.run.
        """
        self._parsed()
        if self._mode == "executor":
            code = self._work()
            exec_plan = None
        else:
            exec_plan = self._schedule(plan, tags)
            code = 0 if exec_plan.successful else 1
        if stop_process_on_done:
            sys.stdout.flush()
            raise SystemExit(code)
        return exec_plan

    def _schedule(self, plan: LogicalPlan, tags: list[str] | None) -> ExecutionPlan:
        options = dict(self._driver_arguments)
        size = launched_size(os.environ)
        if self._mode == "scheduler":
            if size > 1:
                raise InvalidArgument(
                    f"mode scheduler: {launcher_of(os.environ)} started {size} processes, and one job has one scheduler: use mode mpi, or start one process"
                )
            options["transport"] = "files"
        elif self._mode == "mpi" and size == 1:
            sys.stderr.write(
                "smallpond_mpi: mode mpi, but no launcher started other ranks: this process computes alone (mpirun -n 4 python script.py mpi)\n"
            )
        if tags:
            options["user_tags"] = [*options.get("user_tags", []), *tags]
        for name in OF_EXECUTORS:
            options.pop(name, None)
        manager = JobManager(**{name: options.pop(name) for name in OF_JOB_MANAGER if name in options})
        return manager.run(plan, **options)

    def _work(self) -> int:
        """Be an executor; the exit code."""
        if self.job_id is None:
            raise InvalidArgument("mode executor needs the --job_id (or SP_JOBID) of the scheduler that it works for")
        given = self._driver_arguments
        allowance = Allowance(*(given.get(name) for name in OF_EXECUTORS))
        return serve_job(JobPaths(self.data_root, str(job_uuid(self.job_id))), os.environ, allowance)


def _options(without: Mapping[str, Any] | tuple[()]) -> argparse.ArgumentParser:
    """A parser of the job's options, those named in `without` aside. What was not given is not in its result."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    group = parser.add_argument_group("options of the job")

    def add(name: str, **settings: Any) -> None:
        longer = SYNONYMS.get(name)
        spelt = [spelling for one in (name, longer) if one for spelling in (f"--{one}", f"--{one.replace('_', '-')}")]
        spelt = [one for one in dict.fromkeys(spelt) if one not in without]
        if spelt:
            group.add_argument(*spelt, dest=longer or name, **settings)

    for name, text in TEXTS.items():
        add(name, help=text, metavar=name.rpartition("_")[2].upper())
    for name, (kind, text) in NUMBERS.items():
        add(name, type=kind, help=text, metavar="N")
    for name, (choices, text) in CHOICES.items():
        add(name, choices=choices, help=text)
    for name, text in LISTS.items():
        add(name, nargs="+", action="extend", help=text, metavar="TEXT")
    for name, text in FLAGS.items():
        add(name, action="store_true", help=text)
        longer = SYNONYMS.get(name, name)
        spelt = [one for one in (f"--no_{name}", f"--no-{name.replace('_', '-')}") if one not in without]
        if spelt:
            group.add_argument(*spelt, dest=longer, action="store_false", help=argparse.SUPPRESS)
    return parser


def _defaults() -> dict[str, Any]:
    """What JobManager.run does where nothing was given."""
    parameters = inspect.signature(JobManager.run).parameters.values()
    plain = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    return {name: value for name, value in plain.items() if name != "sched_state_observers"} | {"data_root": None}
