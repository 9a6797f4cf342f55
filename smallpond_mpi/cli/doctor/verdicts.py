"""What the facts of the ranks mean: a verdict for each question, with what to do. Pure."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
MIN_PROCESSES_A_CPU = 64
IDLE_SHARE = 0.05
"""Of a core, what a rank without work may take."""
BUSY_SHARE = 0.25
DUCKDB_DIGITS = 0.04
"""DuckDB tells its memory with one digit after the point."""
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
    yield from _crowded(ranks)
    yield from _left_over(ranks)
    total = sum(len(rank["cpus"]) for rank in ranks)
    yield Verdict("CPUs", "ok", f"{total} for tasks, {sum(len(rank['gpus']) for rank in ranks)} GPUs")


def _by_host(ranks: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found = defaultdict(list)
    for rank in ranks:
        found[str(rank["host"])].append(rank)
    return found


def _crowded(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Ranks that somebody bound to fewer CPUs than they are, while their cgroup has others."""
    for host, here in _by_host(ranks).items():
        bound = defaultdict(list)
        for rank in here:
            if rank["cpuset"] and set(rank["allowed_cpus"]) < set(rank["cpuset"]):
                bound[tuple(rank["allowed_cpus"])].append(rank["rank"])
        for cpus, numbers in bound.items():
            if len(numbers) > len(cpus):
                yield Verdict(
                    "binding",
                    "fail",
                    f"ranks {numbers} on {host} are bound to the same CPUs {list(cpus)}, and others of the job are left over",
                    "leave out --cpu-bind, or give --cpu-bind=cores; with mpirun --bind-to none",
                )


def _left_over(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """CPUs and nodes that the job has and no rank uses."""
    for host, here in _by_host(ranks).items():
        used = {cpu for rank in here for cpu in rank["cpus"]}
        granted = here[0]["job_cpus"]
        allowed = {cpu for rank in here for cpu in rank["allowed_cpus"]}
        if granted is not None and len(allowed) > granted:
            yield Verdict(
                "binding",
                "warn",
                f"ranks on {host} may run on {len(allowed)} CPUs, and the job was granted {granted}: nothing holds it to them, and it takes "
                f"{sorted(used)}, which other jobs may use too",
                "ask for TaskPlugin=task/affinity or task/cgroup with ConstrainCores=yes in slurm.conf, or give --exclusive",
            )
        if granted is not None and len(used) < granted:
            yield Verdict(
                "binding",
                "warn",
                f"ranks on {host} use {len(used)} of the {granted} CPUs that the job has there",
                "unless other steps are to use them: srun --cpus-per-task=$SLURM_CPUS_PER_TASK (srun doesn't take it from sbatch), or one rank a node",
            )
    nodes = max((rank["job_nodes"] or 0 for rank in ranks), default=0)
    hosts = len({rank["host"] for rank in ranks})
    if hosts < nodes:
        yield Verdict(
            "nodes",
            "warn",
            f"ranks run on {hosts} of the {nodes} nodes of the job",
            "start a rank on each: smallpond-mpi run, or srun --ntasks-per-node=1",
        )


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
    """Limits of the shell, clocks."""
    few = [rank["rank"] for rank in ranks if 0 <= rank["open_files"] < MIN_OPEN_FILES]
    if few:
        yield Verdict(
            "limits",
            "warn",
            f"ranks {few} may open fewer than {MIN_OPEN_FILES} files",
            "ulimit -n 4096 in the batch script",
        )
    tight = [rank["rank"] for rank in ranks if 0 <= rank["processes"] < MIN_PROCESSES_A_CPU * max(1, len(rank["cpus"]))]
    if tight:
        yield Verdict(
            "limits",
            "warn",
            f"ranks {tight} may have fewer than {MIN_PROCESSES_A_CPU} processes and threads a CPU",
            "ulimit -u 16384 in the batch script, or ask the administrators",
        )
    if not few and not tight:
        yield Verdict("limits", "ok", f"at least {_least(rank['open_files'] for rank in ranks)} open files a rank")
    offsets = [rank["clock_offset"] for rank in ranks if "clock_offset" in rank]
    spread = max(map(abs, offsets), default=0.0)
    if spread > CLOCK_SECS:
        yield Verdict(
            "clocks",
            "warn",
            f"differ by up to {spread:.1f} s",
            "nothing here compares clocks, but times in logs will look odd: ask the administrators",
        )
    elif offsets:
        yield Verdict("clocks", "ok", f"differ by at most {spread * 1e3:.0f} ms")


def _least(limits: Iterable[int]) -> str:
    """The least of limits of which -1 is none."""
    finite = [limit for limit in limits if limit >= 0]
    return f"{min(finite):,}" if finite else "any number of"


def tasks(seen: Mapping[int, Mapping[str, Any]], ranks: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """What a task that was given all of a rank's CPUs, memory and GPUs found there. `seen`: by rank."""
    by_rank = {int(rank["rank"]): rank for rank in ranks}
    failed = {rank: told["error"] for rank, told in seen.items() if "error" in told}
    for rank, error in sorted(failed.items()):
        yield Verdict(
            "task",
            "fail",
            f"a task on rank {rank} ({by_rank[rank]['host']}) did not succeed: {error}",
            "the fork server, its children or DuckDB don't work there: look at the error, at free memory and at limits",
        )
    ran = {rank: told for rank, told in seen.items() if rank not in failed}
    if not ran:
        return
    if not failed:
        slowest = max(ran, key=lambda rank: float(ran[rank]["secs"]))
        yield Verdict(
            "task",
            "ok",
            f"a first one takes {ran[slowest]['secs']:.1f} s at most (rank {slowest}), fork server and all",
        )
    yield from _bound(ran, by_rank)
    yield from _duckdb(ran, by_rank)


def _bound(ran: Mapping[int, Mapping[str, Any]], by_rank: Mapping[int, Mapping[str, Any]]) -> Iterator[Verdict]:
    """Whether threads of tasks run where their grant says, and see its GPUs."""
    is_right = True
    for rank, told in sorted(ran.items()):
        wanted = by_rank[rank]
        for what, seen, given in (
            ("CPUs", told["cpus"], sorted(wanted["cpus"])),
            ("GPUs", told["gpus"], list(wanted["gpus"])),
        ):
            if seen != given:
                is_right = False
                yield Verdict(
                    "binding",
                    "fail",
                    f"tasks of rank {rank} on {wanted['host']} run with {what} {seen}, not {given}",
                    "something else binds processes there (a wrapper, a container, a changed cpuset): start ranks without it",
                )
    if is_right:
        yield Verdict("binding", "ok", "every thread of a task runs on the CPUs of its rank, and on no others")


def _duckdb(ran: Mapping[int, Mapping[str, Any]], by_rank: Mapping[int, Mapping[str, Any]]) -> Iterator[Verdict]:
    wrong = []
    for rank, told in sorted(ran.items()):
        cpus = len(by_rank[rank]["cpus"])
        is_near = abs(told["memory_bytes"] - told["memory_wanted"]) <= DUCKDB_DIGITS * told["memory_wanted"] + MB
        if (told["threads"], told["threads_of_own"]) != (cpus, cpus) or not is_near:
            wrong.append(rank)
            yield Verdict(
                "DuckDB",
                "fail",
                f"on rank {rank} it has {told['threads']} threads ({told['threads_of_own']} if a function opens one) and "
                f"{told['memory_bytes'] // MB} MB, for a grant of {cpus} CPUs and {told['memory_limit'] // MB} MB",
                "this version of DuckDB is not held to grants: install the one that this package was released with",
            )
    if not wrong:
        least = min(ran.values(), key=lambda told: int(told["memory_bytes"]))
        text = (
            f"sees the grant: a task of a whole rank has {least['memory_bytes'] // MB} MB at least and a thread a CPU"
        )
        yield Verdict("DuckDB", "ok", text)


def idle(rests: Mapping[int, Mapping[str, Any]], hosts: Mapping[int, str]) -> Iterator[Verdict]:
    """What ranks without work take of a core, and whether the CPUs for tasks are idle while all of them rest."""
    greedy = max(rests, key=lambda rank: float(rests[rank]["own_share"]))
    share = rests[greedy]["own_share"]
    text = f"a rank at rest takes {share:.1%} of a core at most (rank {greedy})"
    is_much = share > IDLE_SHARE
    advice = (
        "the MPI library works in the background: look for progress threads (MPICH_ASYNC_PROGRESS)" if is_much else ""
    )
    yield Verdict("idle CPU", "warn" if is_much else "ok", text, advice)
    busy = {rank: told["busy_share"] for rank, told in rests.items() if told["busy_share"] > BUSY_SHARE}
    if busy:
        worst = max(busy, key=lambda rank: busy[rank])
        yield Verdict(
            "other work",
            "warn",
            f"while all ranks rest, the CPUs of rank {worst} on {hosts[worst]} are {busy[worst]:.0%} busy (of {len(busy)} ranks: over {BUSY_SHARE:.0%})",
            "others compute on them: look there with top for what an earlier job has left; if the node is shared without bound CPUs, ask for it --exclusive",
        )
    else:
        yield Verdict("other work", "ok", "the CPUs for tasks are idle while ranks rest")


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


def _unrenamed(files: Mapping[str, Any]) -> str:
    return " and ".join(
        what for what, key in (("files", "rename"), ("directories", "rename_directory")) if not files[key]
    )


def silence(silent: Collection[int], hosts: Mapping[int, str]) -> Iterator[Verdict]:
    """Ranks that left a question unanswered: nothing more was asked of them."""
    for rank in sorted(silent):
        where = f" on {hosts[rank]}" if rank in hosts else ""
        yield Verdict(
            "silence",
            "fail",
            f"rank {rank}{where} did not answer in time, and was left out of the checks after that",
            "look there for a process that is stopped, or that waits for a file server; leave the node out (sbatch --exclude) if it is ill",
        )


def is_shared(seen: Mapping[int, Mapping[str, Any]], files: Mapping[str, Any]) -> bool:
    """Whether all ranks can work in the data root."""
    return "error" not in files and not any("error" in told or "unwritable" in told for told in seen.values())


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
    for rank, told in seen.items():
        if "unwritable" in told:
            yield Verdict(
                "data root",
                "fail",
                f"{path} can't be written on {hosts[rank]}: {told['unwritable']}",
                "all nodes must be able to write there: give another one by --data-root or SP_DATA_ROOT",
            )
    if is_shared(seen, files):
        slowest = max((facts["seen_secs"] for facts in seen.values()), default=0.0)
        is_slow = slowest > SLOW_SEEN_SECS
        who = "all ranks" if hosts.keys() - {0} <= seen.keys() else "the ranks that answer"
        text = f"{path} is seen by {who}, at most {slowest * 1e3:.0f} ms after it was written"
        advice = "the client caches names: short tasks wait for it" if is_slow else ""
        yield Verdict("data root", "warn" if is_slow else "ok", text, advice)
    if not files["rename"] or not files["rename_directory"]:
        yield Verdict(
            "rename",
            "fail",
            f"{_unrenamed(files)} don't move whole at once when they are renamed, as results do",
            "use a file system with POSIX names as the data root (--data-root, SP_DATA_ROOT)",
        )
    if not files["exclusive"]:
        yield Verdict(
            "exclusive creation",
            "fail",
            "a file that exists can be created again: two jobs could run under one id",
            "use a file system with POSIX semantics (NFS 3 or later) as the data root",
        )
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
