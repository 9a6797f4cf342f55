"""What the user sees of an examination: a table of ranks, then a line for each check; or all of it as JSON. Pure, but for `show`."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from smallpond_mpi.cli.doctor.verdicts import MB, Verdict
from smallpond_mpi.platform.discover import AVAILABLE

MANY = 8
MARK = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def show(ranks: Sequence[Mapping[str, Any]], found: Sequence[Verdict], as_json: bool) -> None:
    """Print it."""
    sys.stdout.write(text(ranks, found, as_json))
    sys.stdout.flush()


def text(ranks: Sequence[Mapping[str, Any]], found: Sequence[Verdict], as_json: bool) -> str:
    """All of it, whole lines."""
    if as_json:
        return json.dumps({"version": 1, "ranks": ranks, "checks": [asdict(one) for one in found]}, indent=1) + "\n"
    return "".join(f"{line}\n" for line in [*(table(ranks) if ranks else ()), *map(_line, found)])


def table(ranks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The ranks, a line each; then, for each kind of node, what limits the memory of its ranks."""
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
    yield from _limits(ranks)
    yield f"MPI: {ranks[0]['library'] or 'not started'}; launcher: {ranks[0]['launcher'] if len(ranks) > 1 else 'none'}"


def _limits(ranks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where limits of memory come from, the least first, nodes that have the same together. (What is just available is not the same anywhere.)"""
    hosts: dict[str, dict[str, None]] = {}
    for rank in ranks:
        shown = [
            limit["source"] if limit["source"] == AVAILABLE else f"{limit['bytes'] // MB} MB {limit['source']}"
            for limit in rank["memory_limits"]
        ]
        hosts.setdefault(", ".join(shown), {})[rank["host"]] = None
    for limits, names in list(hosts.items())[:MANY]:
        yield f"memory of {', '.join(list(names)[:MANY])}{' …' if len(names) > MANY else ''}: {limits}"


def _line(one: Verdict) -> str:
    return f"{MARK[one.level]} {one.check}: {one.text}" + (f"\n       -> {one.advice}" if one.advice else "")
