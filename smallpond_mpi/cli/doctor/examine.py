"""The examination, from rank 0's arrival to its exit code."""

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from smallpond_mpi.cli.doctor import facts, verdicts
from smallpond_mpi.cli.doctor.talk import Others, library_of
from smallpond_mpi.cli.doctor.verdicts import MB, Verdict
from smallpond_mpi.common import SmallpondError
from smallpond_mpi.execution.worker import Place, arrive
from smallpond_mpi.platform.binding import launched_size

ANSWER_SECS = 20.0
FILES_SECS = 60.0
START_SECS = 120
"""For all ranks to meet in MPI_Init, where nothing can interrupt this process but the kernel's alarm."""
MARK = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def examine(data_root: str, env: Mapping[str, str], as_json: bool) -> int:
    """Ask, judge, print; the exit code: 1 if anything failed."""
    signal.alarm(START_SECS)
    try:
        place = arrive(env)
    except SmallpondError as error:
        _show([], [Verdict("launch", "fail", str(error))], as_json)
        return 1
    signal.alarm(0)
    others = Others(place)
    try:
        ranks, found = _examine(place, others, data_root, env)
    finally:
        if place.transport is not None:
            others.dismiss()
            place.is_dismissed = True
    _show(ranks, found, as_json)
    place.leave(exit_code_if_stuck=1)
    return 1 if any(one.level == "fail" for one in found) else 0


def _examine(
    place: Place, others: Others, data_root: str, env: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[Verdict]]:
    own = facts.rank_facts(place, env, library_of(place))
    asked_at = time.time()
    answers = others.ask("facts", ANSWER_SECS) if place.size > 1 else {}
    middle = (asked_at + time.time()) / 2
    for answer in answers.values():
        answer["clock_offset"] = answer["clock"] - middle
    ranks = [own, *(answers[rank] for rank in sorted(answers))]
    hosts = {int(rank["rank"]): str(rank["host"]) for rank in ranks}
    trips = others.round_trips(ANSWER_SECS) if place.size > 1 else {}
    rates = others.transfer_rates(ANSWER_SECS) if place.size > 1 else {}
    seen, files = _try_data_root(data_root, others)
    found = [
        *verdicts.world(ranks, launched_size(env)),
        *verdicts.placement(ranks),
        *verdicts.memory(ranks),
        *verdicts.processes(ranks),
        *verdicts.messages(trips, rates),
        *verdicts.data_root(data_root, seen, files, hosts),
        *(
            Verdict("silence", "fail", f"rank {rank} did not answer in time", "look at its node")
            for rank in sorted(others.silent)
        ),
    ]
    return ranks, found


def _within(deadline_secs: float, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `act` returns; an error if it doesn't in time. A client of a dead file server can't be interrupted, only left behind."""
    result: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: result.append(act()), daemon=True)
    thread.start()
    thread.join(deadline_secs)
    return result[0] if result else {"error": f"no answer within {deadline_secs:g} seconds"}


def _try_data_root(data_root: str, others: Others) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """How the others see what this rank writes, and what the file system can do."""
    place = os.path.join(data_root, f".doctor-{socket.gethostname()}-{os.getpid()}")
    mark, content = os.path.join(data_root, f".doctor-{uuid.uuid4().hex}"), uuid.uuid4().hex
    files = _within(FILES_SECS, lambda: facts.try_files(place))
    if "error" in files:
        return {}, files
    written = _within(FILES_SECS, lambda: facts.write(mark, content))
    if written:
        return {}, written
    try:
        seen = others.ask("see", facts.SEEN_SECS + ANSWER_SECS, path=mark, content=content)
    finally:
        os.unlink(mark)
    return seen, files


def table(ranks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The ranks, a line each."""
    local: dict[str, int] = {}
    yield f"{'rank':>4} {'host':12} {'local':>5} {'CPUs':14} {'NUMA':6} {'GPUs':>4} {'memory':>9}  limited by"
    for rank in ranks:
        number = local[rank["host"]] = local.get(rank["host"], -1) + 1
        cpus = ",".join(map(str, rank["cpus"])) or "none"
        numa = ",".join(map(str, rank["numa_nodes"])) or "-"
        limits = rank["memory_limits"]
        source = f"{limits[0]['source']} ({limits[0]['bytes'] // MB} MB a node)" if limits else ""
        memory = f"{rank['memory_bytes'] // MB} MB"
        shown = cpus if len(cpus) <= 14 else f"{len(rank['cpus'])} CPUs"
        yield f"{rank['rank']:>4} {rank['host']:12} {number:>5} {shown:14} {numa:6} {len(rank['gpus']):>4} {memory:>9}  {source}"
    yield f"MPI: {ranks[0]['library'] or 'not started'}; launcher: {ranks[0]['launcher'] if len(ranks) > 1 else 'none'}"


def _show(ranks: Sequence[Mapping[str, Any]], found: Sequence[Verdict], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"version": 1, "ranks": ranks, "checks": [asdict(one) for one in found]}, indent=1))
    else:
        for line in [*(table(ranks) if ranks else ()), *map(_line, found)]:
            print(line)
    sys.stdout.flush()


def _line(one: Verdict) -> str:
    return f"{MARK[one.level]} {one.check}: {one.text}" + (f"\n       -> {one.advice}" if one.advice else "")
