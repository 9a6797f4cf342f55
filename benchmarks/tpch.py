"""How fast are queries? The 22 of TPC-H on DataFrames beside one DuckDB that has the same cores and the same memory.

    python benchmarks/tpch.py [--scale 1] [--ranks 1] [--rounds 3] [--queries q01,q06] [--small] [--json]

Ours is the whole engine on two cores: one rank with both of them (`--ranks 1`), or `mpirun` with as many ranks, of which two work on a core
each and rank 0 schedules (`--ranks 3`). DuckDB is one process with two threads and as much memory as all our grants together. Both have started, and read
the same Parquet files, before the clock starts; both run each query anew, from its text or its DataFrames to its rows as an Arrow table. They run by
turns, query by query; a query's figure is the best of its rounds, and every answer of ours is compared with DuckDB's.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.tpch import answers, data  # noqa: E402
from smallpond_mpi.platform.discover import memory_limit  # noqa: E402 what our ranks divide among themselves
from tests.launch import clean_env, mpirun_command  # noqa: E402 the one way to start a real mpirun

TARGET_TOTAL = 1.5
TARGET_QUERY = 3.0
QUERIES = [f"q{number:02}" for number in range(1, 23)]


def two_cores() -> None:
    """Take two cores, whatever the machine has."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))


# DuckDB: a process that answers one query after the other


def serve_duckdb(place: Path) -> None:
    """Run each query that is named on stdin; write its rows to a file, and the seconds to stdout."""
    import duckdb
    import pyarrow.feather

    job = json.loads((place / "job.json").read_text())
    conn = duckdb.connect(config={"threads": 2, "memory_limit": f"{job['memory_bytes']} B"})
    answers.create_views(conn, job["files"])
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        text = answers.sql_of(name, job["scale"])
        begin = time.perf_counter()
        table = conn.sql(text).to_arrow_table()
        secs = time.perf_counter() - begin
        pyarrow.feather.write_feather(table, place / f"{name}.arrow", compression="uncompressed")
        print(secs, flush=True)


class DuckDB:
    """That process, seen from rank 0."""

    def __init__(self, place: Path) -> None:
        self._place = place
        command = [sys.executable, str(HERE), "--as", "duckdb", str(place)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._next_line()

    def run(self, name: str) -> tuple[float, Any]:
        """The seconds that a query took, and its rows."""
        import pyarrow.feather

        assert self._process.stdin is not None
        print(name, file=self._process.stdin, flush=True)
        secs = float(self._next_line())
        return secs, pyarrow.feather.read_table(self._place / f"{name}.arrow", memory_map=False)

    def _next_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"DuckDB's process ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        """Let it end."""
        self._process.communicate(timeout=60)


# ours: the script of a session, which asks the other


def contend(place: Path) -> None:
    """Run as the script of a session: rank 0 measures both, by turns."""
    import smallpond_mpi as sp
    from benchmarks.tpch.queries import QUERIES as DATAFRAMES
    from benchmarks.tpch.queries import Tables

    session = sp.init(data_root=str(place), progress="none")
    job = json.loads((place / "job.json").read_text())
    tables = Tables.read(session, job["files"], job["scale"])
    for table in data.TABLES:  # children are up, DuckDB is loaded, on both sides
        getattr(tables, table).count()
    other = DuckDB(place)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in job["queries"]}
    for _ in range(job["rounds"]):
        for name in job["queries"]:
            theirs_secs, theirs = other.run(name)
            begin = time.perf_counter()
            ours = DATAFRAMES[name](tables).to_arrow()
            ours_secs = time.perf_counter() - begin
            different = answers.difference(ours, theirs, answers.sql_of(name, job["scale"]))
            if different is not None:
                raise SystemExit(f"{name}: the answer is not DuckDB's: {different}")
            measured[name].append((ours_secs, theirs_secs))
    other.close()
    session.shutdown()
    (place / "result.json").write_text(json.dumps(measured))


def measure(args: argparse.Namespace, queries: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Seconds of ours and of DuckDB, for each query and round."""
    with tempfile.TemporaryDirectory() as scratch:
        job = {
            "files": data.tables(args.scale, args.cache),
            "scale": args.scale,
            "queries": queries,
            "rounds": args.rounds,
            "memory_bytes": memory_limit(os.environ).bytes,
        }
        Path(scratch, "job.json").write_text(json.dumps(job))
        command = [sys.executable, str(HERE), "--as", "ours", scratch]
        started = command if args.ranks == 1 else mpirun_command(args.ranks, command)
        run = subprocess.run(started, env=clean_env(), timeout=args.timeout, check=False)
        if run.returncode:
            raise SystemExit(run.returncode)
        measured: dict[str, list[tuple[float, float]]] = json.loads(Path(scratch, "result.json").read_text())
        return measured


def figures_of(measured: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """The best of each query's rounds on both sides, and their ratios."""
    queries = {}
    for name, rounds in measured.items():
        ours, theirs = (min(secs) for secs in zip(*rounds, strict=True))
        queries[name] = {"ours_secs": ours, "duckdb_secs": theirs, "ratio": ours / theirs}
    ours_total = sum(one["ours_secs"] for one in queries.values())
    duckdb_total = sum(one["duckdb_secs"] for one in queries.values())
    ratios = [one["ratio"] for one in queries.values()]
    return {
        "queries": queries,
        "ours_secs": ours_total,
        "duckdb_secs": duckdb_total,
        "ratio_total": ours_total / duckdb_total,
        "ratio_geometric_mean": math.exp(sum(map(math.log, ratios)) / len(ratios)),
        "ratio_worst": max(ratios),
        "target_total": TARGET_TOTAL,
        "target_query": TARGET_QUERY,
    }


def show(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    print(f"TPC-H SF{args.scale:g} on 2 cores, {args.ranks} rank(s), best of {args.rounds}; all answers are DuckDB's")
    print("  query      ours s  DuckDB s   ratio")
    for name, one in figures["queries"].items():
        print(f"  {name:<8} {one['ours_secs']:8.3f}  {one['duckdb_secs']:8.3f}  {one['ratio']:6.2f}")
    total, worst = figures["ratio_total"], figures["ratio_worst"]
    print(f"  total    {figures['ours_secs']:8.3f}  {figures['duckdb_secs']:8.3f}  {total:6.2f}")
    print(f"  to reach: total {TARGET_TOTAL}, no query over {TARGET_QUERY} (the worst is {worst:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", default=",".join(QUERIES), help="such as q01,q06")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for all")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "smallpond-mpi-benchmarks"))
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--small", action="store_true", help="a run of seconds, for CI: the figures mean little")
    parser.add_argument("--as", dest="role", nargs=2, metavar=("ROLE", "PLACE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    two_cores()
    if args.role:
        role, place = args.role
        (serve_duckdb if role == "duckdb" else contend)(Path(place))
        return
    if args.small:
        args.scale, args.rounds = 0.01, 1
    queries = args.queries.split(",")
    unknown = sorted(set(queries) - set(QUERIES))
    if unknown:
        raise SystemExit(f"there is no {', '.join(unknown)}: the queries are q01 to q22")
    figures = figures_of(measure(args, queries))
    if args.json:
        print(json.dumps(figures))
    else:
        show(args, figures)


if __name__ == "__main__":
    main()
