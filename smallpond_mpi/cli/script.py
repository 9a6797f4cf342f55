"""`smallpond-mpi run` in the process that runs the script: alone, or as rank 0 of a launch.

The script sees what it would see under `python script.py`: `__main__`, sys.argv, sys.path[0], tracebacks without our frames, its exit code.
"""

import builtins
import importlib.machinery
import io
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from smallpond_mpi import forgotten
from smallpond_mpi.cli.stdin import take_over
from smallpond_mpi.platform.binding import launched_by_mpi, launched_size

ExitCode = int | str | None
"""As sys.exit takes it: a text is printed, and the code is 1."""
INTERRUPTED = 130


def run(script: str, args: Sequence[str], env: Mapping[str, str]) -> ExitCode:
    """Run a script to its end; its exit code. To leave other ranks without work is an error."""
    pid = os.getpid()
    take_over(env)
    if os.path.exists(script) and not os.path.isdir(script):
        code = execute(script, args)
        if code not in (None, 0):
            _fail_job(code)
    else:
        sys.stderr.write(f"smallpond-mpi run: {_what_is_wrong(script)}\n")
        code = 2
    if code in (None, 0) and launched_by_mpi(env) and not forgotten.has_arrived() and os.getpid() == pid:
        sys.stdout.flush()
        sys.stderr.write(_no_session(script, env))
        return 1
    return code


def _fail_job(code: ExitCode) -> None:
    """A script that ends by sys.exit with anything but 0 says that all is not well: so its job has failed, too."""
    from smallpond_mpi import entry  # a script that ends well may never need it

    job = entry.current()
    if job is not None and not job.is_closed and job.failure is None:
        job.failure = f"the script ended by sys.exit({code!r})"


def execute(script: str, args: Sequence[str]) -> ExitCode:
    """Run a file as `__main__`. Unlike runpy this leaves it `__main__`: what is pickled or called at exit still belongs to the script."""
    path = os.path.abspath(script)
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=path, __builtins__=builtins, __loader__=importlib.machinery.SourceFileLoader("__main__", path)
    )
    sys.modules["__main__"] = main
    sys.argv = [script, *args]
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    try:
        with io.open_code(path) as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, main.__dict__)
    except SystemExit as leaving:
        return leaving.code
    except BaseException as error:  # noqa: BLE001 the edge: what the interpreter does with any exception of a script
        return _show(error)
    return None


def _show(error: BaseException) -> int:
    """As the interpreter shows an exception that nobody caught, less our frame."""
    traceback = error.__traceback__.tb_next if error.__traceback__ is not None else None
    error = error.with_traceback(traceback)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, traceback
    sys.stdout.flush()
    sys.excepthook(type(error), error, traceback)
    sys.stderr.flush()
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _what_is_wrong(script: str) -> str:
    if os.path.isdir(script):
        return f"{script} is a directory, not a script"
    return f"there is no script {script} (looked in {os.getcwd()})"


def _no_session(script: str, env: Mapping[str, str]) -> str:
    return (
        f"{script}: smallpond_mpi: the script never called smallpond_mpi.init(): rank 0 has run it, and the other {launched_size(env) - 1} ranks "
        f"waited for nothing. Call init() near the top, or start one process: python {script}\n"
    )
