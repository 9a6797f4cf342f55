"""What a rank does for the doctor beside answering: runs a task that it never opens, and rests as it would between tasks."""

import base64
import time
from collections.abc import Callable
from typing import Any

from smallpond_mpi.execution.model import SCHEDULER_RANK
from smallpond_mpi.execution.protocol import Ended, decode
from smallpond_mpi.execution.transport import PeerGone, Received, nap_secs
from smallpond_mpi.execution.worker import Place
from smallpond_mpi.platform import discover

TRIAL_SECS = 60.0
REST_SECS = 1.0
SETTLE_SECS = 0.5
"""Before a rank counts as resting: its last child is gone, and its naps are as long as they get."""
NAP_SECS = 0.002


def run_task(place: Place, frame: str) -> dict[str, Any]:
    """Let this rank's executor run what rank 0 packed; what became of it."""
    end, executor = place.own_executor()
    end.send(SCHEDULER_RANK, base64.b64decode(frame))
    began = time.monotonic()
    while time.monotonic() - began < TRIAL_SECS:
        if not executor.step(0.0):
            executor.nap(NAP_SECS)
        for news in end.poll():
            ended = [one for one in decode(news.frame) if isinstance(one, Ended)] if isinstance(news, Received) else []
            if ended:
                return _told(ended[0], time.monotonic() - began)
    return {"error": f"a task did not end within {TRIAL_SECS:g} seconds"}


def _told(ended: Ended, secs: float) -> dict[str, Any]:
    if ended.failure is not None:
        last = ended.failure.log_tail.strip().rpartition("\n")[2]
        return {"error": f"{ended.failure.type_name}: {ended.failure.message}" + (f" ({last})" if last else "")}
    return {"secs": secs, "start_secs": ended.start_secs, "state": base64.b64encode(ended.state or b"").decode()}


def rest(place: Place, keep: Callable[[Received | PeerGone], None]) -> dict[str, Any]:
    """Poll for REST_SECS as a rank without work does. The share of a core that this takes, and how busy the CPUs for tasks are meanwhile.

    What comes over the transport is for `keep`.
    """
    _idle(place, keep, SETTLE_SECS, 0.0)
    used, before, began = _used_secs(place), discover.cpu_ticks(), time.monotonic()
    _idle(place, keep, REST_SECS, SETTLE_SECS)
    used, after, elapsed = _used_secs(place) - used, discover.cpu_ticks(), time.monotonic() - began
    mine = [cpu for cpu in place.capacity.cpus if cpu in before and cpu in after]
    busy = sum(after[cpu].busy - before[cpu].busy for cpu in mine)
    total = sum(after[cpu].total - before[cpu].total for cpu in mine)
    return {"own_share": used / elapsed, "busy_share": busy / total if total else 0.0}


def _idle(place: Place, keep: Callable[[Received | PeerGone], None], secs: float, idle_since_secs: float) -> None:
    """Poll as the loop of a rank to which nothing has come for so long."""
    _, executor = place.own_executor()
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < secs:
        if place.transport is not None:
            for news in place.transport.poll():
                keep(news)
        executor.step(0.0)
        executor.nap(nap_secs(elapsed + idle_since_secs))


def _used_secs(place: Place) -> float:
    """Processor time of this rank and its fork server so far."""
    try:
        with open(f"/proc/{place.server.pid}/schedstat") as file:
            server_secs = int(file.read().split()[0]) / 1e9
    except OSError:  # a kernel without it
        server_secs = 0.0
    return time.process_time() + server_secs
