"""What the facts of the ranks mean: a verdict for each question, with what to do. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]
MB = 1 << 20
MIN_MEMORY_BYTES = 192 * MB
"""What a rank must have left for tasks: a child that reads one small row group by DuckDB takes about half of it."""
FEW_MEMORY_BYTES = 512 * MB
MIN_FREE_BYTES = 1 << 30
MIN_OPEN_FILES = 1024
SLOW_SEEN_SECS = 1.0
CLOCK_SECS = 1.0
SLOW_ROUND_TRIP_SECS = 0.02
"""Ranks poll: a round trip of two that are at rest takes two naps of up to 10 ms at worst."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one question."""

    check: str
    level: Level
    text: str
    advice: str = ""


def world(ranks: Sequence[Mapping[str, Any]], expected: int) -> Iterator[Verdict]:
    """Whether those that should be there are."""
    hosts = Counter(rank["host"] for rank in ranks)
    shape = f"{len(ranks)} ranks on {len(hosts)} nodes" if len(ranks) > 1 else "one process, without MPI"
    if len(ranks) < expected:
        yield Verdict(
            "world",
            "fail",
            f"{shape}, of {expected} that were started",
            "the silent ranks are named above: look at their nodes",
        )
    else:
        launcher = f", started by {ranks[0]['launcher']}" if len(ranks) > 1 else ""
        yield Verdict("world", "ok", shape + launcher)
    for name in ("python", "library"):
        found = Counter(str(rank[name]) for rank in ranks)
        if len(found) > 1:
            yield Verdict(
                "versions", "fail", f"{name}: {dict(found)}", "start all ranks from one environment that all nodes see"
            )
    differing = [name for name in ranks[0]["versions"] if len({rank["versions"][name] for rank in ranks}) > 1]
    if differing:
        yield Verdict(
            "versions", "fail", f"ranks have different {', '.join(differing)}", "use one environment on all nodes"
        )
    else:
        yield Verdict(
            "versions", "ok", ", ".join(f"{name} {text}" for name, text in ranks[0]["versions"].items() if text)
        )


def placement(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Whether no CPU and no GPU is two ranks', and none is left idle."""
    for what, key in (("CPU", "cpus"), ("GPU", "gpus")):
        owners = Counter((rank["host"], one) for rank in ranks for one in rank[key])
        shared = sorted({host for (host, _), count in owners.items() if count > 1})
        if shared:
            yield Verdict(
                "placement",
                "fail",
                f"several ranks share {what}s on {', '.join(shared)}",
                "start fewer ranks a node (--ntasks-per-node), or give the job more CPUs (--cpus-per-task)",
            )
    idle = [rank["rank"] for rank in ranks if rank["rank"] and not rank["cpus"]]
    if idle:
        yield Verdict("placement", "fail", f"ranks {idle} have no CPU", "start fewer ranks a node")
    total = sum(len(rank["cpus"]) for rank in ranks)
    yield Verdict("CPUs", "ok", f"{total} for tasks, {sum(len(rank['gpus']) for rank in ranks)} GPUs")


def memory(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Whether tasks have room."""
    least = min(ranks, key=lambda rank: int(rank["memory_bytes"]))
    source = least["memory_limits"][0]["source"] if least["memory_limits"] else "unknown"
    text = f"at least {least['memory_bytes'] // MB} MB a rank for tasks (rank {least['rank']}; limit: {source})"
    advice = "ask for more (--mem, --mem-per-cpu), or start fewer ranks a node"
    level: Level = "ok"
    if least["memory_bytes"] < MIN_MEMORY_BYTES:
        level = "fail"
    elif least["memory_bytes"] < FEW_MEMORY_BYTES:
        level = "warn"
    yield Verdict("memory", level, text, advice if level != "ok" else "")


def processes(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Fork servers, limits of the shell, clocks."""
    dead = [rank["rank"] for rank in ranks if not rank["fork_server"]]
    if dead:
        yield Verdict("fork server", "fail", f"did not start on ranks {dead}", "what it died of stands above")
    else:
        yield Verdict("fork server", "ok", "runs on all ranks")
    few = [rank["rank"] for rank in ranks if 0 <= rank["open_files"] < MIN_OPEN_FILES]
    if few:
        yield Verdict(
            "limits",
            "warn",
            f"ranks {few} may open fewer than {MIN_OPEN_FILES} files",
            "ulimit -n 4096 in the batch script",
        )
    offsets = [rank["clock_offset"] for rank in ranks if "clock_offset" in rank]
    spread = max(map(abs, offsets), default=0.0)
    if spread > CLOCK_SECS:
        yield Verdict(
            "clocks",
            "warn",
            f"differ by up to {spread:.1f} s",
            "nothing here compares clocks, but times in logs will look odd: ask the administrators",
        )


def messages(trips: Mapping[int, float], rates: Mapping[int, float]) -> Iterator[Verdict]:
    """How fast ranks talk: seconds a round trip, bytes a second, by rank."""
    if not trips:
        return
    slowest = max(trips, key=lambda rank: trips[rank])
    text = f"slowest round trip {trips[slowest] * 1e3:.2f} ms (rank {slowest})"
    if rates:
        text += f", slowest transfer {min(rates.values()) / MB:.0f} MB/s"
    is_slow = trips[slowest] > SLOW_ROUND_TRIP_SECS
    advice = "ranks share cores, or the network is slow: see placement" if is_slow else ""
    yield Verdict("messages", "warn" if is_slow else "ok", text, advice)


def data_root(
    path: str, seen: Mapping[int, Mapping[str, Any]], files: Mapping[str, Any], hosts: Mapping[int, str]
) -> Iterator[Verdict]:
    """Whether all ranks share the data root, and what it can do. `seen`: how each rank saw what rank 0 wrote."""
    if "error" in files:
        yield Verdict(
            "data root",
            "fail",
            f"{path} can't be written: {files['error']}",
            "give another one by --data-root or SP_DATA_ROOT",
        )
        return
    blind = sorted({hosts[rank] for rank, facts in seen.items() if "error" in facts})
    if blind:
        yield Verdict(
            "data root",
            "fail",
            f"{path} is not the same directory on {', '.join(blind)}",
            "give one on a file system that all nodes share (--data-root, SP_DATA_ROOT)",
        )
    else:
        slowest = max((facts["seen_secs"] for facts in seen.values()), default=0.0)
        is_slow = slowest > SLOW_SEEN_SECS
        text = f"{path} is seen by all ranks, at most {slowest * 1e3:.0f} ms after it was written"
        advice = "the client caches names: short tasks wait for it" if is_slow else ""
        yield Verdict("data root", "warn" if is_slow else "ok", text, advice)
    if not files["rename"]:
        yield Verdict("rename", "fail", "a renamed file is not whole at once", "use a file system with POSIX names")
    if not files["link"]:
        yield Verdict(
            "links", "warn", "the file system has no hard links", "results are copied where they would be linked"
        )
    inodes = files["free_inodes"]
    is_full = files["free_bytes"] < MIN_FREE_BYTES or (inodes is not None and inodes < 10_000)
    text = f"{files['free_bytes'] / (1 << 30):,.1f} GB free" + ("" if inodes is None else f", {inodes:,} inodes")
    yield Verdict("space", "warn" if is_full else "ok", text, "clean up, or give another data root" if is_full else "")
    speed = f"{files['write_bytes_per_sec'] / MB:,.0f} MB/s written and synced, {files['small_files_per_sec']:,.0f} small files/s"
    yield Verdict("speed", "ok", speed)
