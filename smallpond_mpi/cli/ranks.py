"""What the ranks of a launched command do beside the script: serve it, and leave with it when it never became a job.

rank 0    script ── init() ──▶ session ──▶ shutdown
          script ── ends without init() ─▶ send_home: Shutdown to all, Finalize
others    serve: join, work until Shutdown, Finalize
"""

import os
import signal
import sys
from collections.abc import Mapping
from typing import NoReturn

from smallpond_mpi.common import SmallpondError
from smallpond_mpi.execution.worker import arrive

JOIN_SECS = 60
"""How long rank 0 waits for the other ranks only to send them home."""


def serve(env: Mapping[str, str]) -> NoReturn:
    """Be a rank other than 0: work for whatever rank 0 runs, and never open its script."""
    try:
        place = arrive(env)
    except SmallpondError as error:
        sys.stderr.write(f"smallpond_mpi: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    place.serve()


def send_home(env: Mapping[str, str]) -> None:
    """Rank 0 has no work: meet the others, who have been waiting for that since they started, and let them go."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(JOIN_SECS)  # one that is dead already would be waited for in vain
    place = arrive(env)
    signal.alarm(0)
    place.dismiss()
    place.leave(exit_code_if_stuck=1)
