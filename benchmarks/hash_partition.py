"""How fast is a shuffle? TPC-H lineitem by hash into 64 partitions, each read back by a consumer that checks its rows.

    python benchmarks/hash_partition.py [--scale 2] [--partitions 64] [--rounds 3] [--small] [--json]

Ours is the whole engine under mpirun: 2 workers of one core each, rank 0 scheduling. Beside it, on the same two cores and with the same
query over each partition: DuckDB's COPY ... PARTITION_BY, read back one partition after the other; and, as the floor, DuckDB reading and
writing the same bytes once, unpartitioned. Contenders run by turns, each in processes of its own that have started before the clock does;
each figure is the best of its rounds. MB are those of the Parquet input.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from tests.launch import mpirun  # noqa: E402 the one way to start a real mpirun

KEY = "l_orderkey"
TARGET = 1.0
COLUMNS = [
    "l_orderkey",
    "l_partkey",
    "l_suppkey",
    "l_linenumber",
    "l_quantity",
    "l_extendedprice",
    "l_discount",
    "l_tax",
    "l_returnflag",
    "l_linestatus",
    "l_shipdate",
    "l_commitdate",
    "l_receiptdate",
    "l_shipinstruct",
    "l_shipmode",
    "l_comment",
]
# Reads every column; adds up over partitions whatever the order of rows.
CHECK = "count(*) AS n, " + ", ".join(f"bit_xor(hash({name})) AS {name}" for name in COLUMNS)

Sums = list[int]


def lineitem(scale: float, cache: Path) -> list[str]:
    """The input, made once and kept in a cache: some files of Parquet."""
    place = cache / f"lineitem-{scale:g}"
    if not place.exists():
        making = Path(tempfile.mkdtemp(dir=cache))
        generator = Path(sys.executable).parent / "tpchgen-cli"
        command = [
            generator,
            "parquet",
            "--scale-factor",
            f"{scale:g}",
            "--tables",
            "lineitem",
            "--parts",
            "8",
            "--output-dir",
            making,
        ]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        making.rename(place)
    return sorted(map(str, place.rglob("*.parquet")))


def combined(parts: list[Sums]) -> Sums:
    """The sums of all partitions as those of the whole."""
    total = list(parts[0])
    for part in parts[1:]:
        total[0] += part[0]
        total[1:] = [left ^ right for left, right in zip(total[1:], part[1:], strict=True)]
    return total


def ours(files: list[str], npartitions: int, scratch: str) -> dict[str, Any]:
    """Run as the script of a session: rank 0 measures, the others serve."""
    import smallpond_mpi as sp

    session = sp.init(data_root=scratch, progress="none")
    check = f"SELECT {CHECK} FROM {{0}}"
    session.partial_sql(check, session.read_parquet(files[:1])).to_arrow()  # children are up, DuckDB is loaded
    begin = time.perf_counter()
    partitions = session.read_parquet(files).repartition(npartitions, hash_by=KEY)
    table = session.partial_sql(check, partitions).to_arrow()
    secs = time.perf_counter() - begin
    sums = [[row[name] for name in ("n", *COLUMNS)] for row in table.to_pylist()]
    session.shutdown()
    return {"secs": secs, "sums": combined(sums), "partitions": sum(row[0] > 0 for row in sums)}


def duckdb_partition_by(files: list[str], npartitions: int, scratch: str) -> dict[str, Any]:
    """One DuckDB with two threads: COPY ... PARTITION_BY, then each partition."""
    import duckdb

    conn = duckdb.connect(config={"threads": 2})
    conn.execute(f"SELECT {CHECK} FROM read_parquet({files[:1]})").fetchall()
    begin = time.perf_counter()
    query = f"SELECT *, hash({KEY}) % {npartitions} AS p FROM read_parquet({files})"
    conn.execute(f"COPY ({query}) TO '{scratch}/parts' (FORMAT parquet, PARTITION_BY (p))")
    written = time.perf_counter()
    sums = [
        list(conn.execute(f"SELECT {CHECK} FROM '{scratch}/parts/p={p}/*.parquet'").fetchall()[0])
        for p in range(npartitions)
    ]
    end = time.perf_counter()
    return {"secs": end - begin, "write_secs": written - begin, "sums": combined(sums), "partitions": len(sums)}


def duckdb_plain(files: list[str], npartitions: int, scratch: str) -> dict[str, Any]:
    """One DuckDB with two threads: the same bytes read, written and read once more, unpartitioned."""
    import duckdb

    conn = duckdb.connect(config={"threads": 2})
    conn.execute(f"SELECT {CHECK} FROM read_parquet({files[:1]})").fetchall()
    begin = time.perf_counter()
    conn.execute(f"COPY (SELECT * FROM read_parquet({files})) TO '{scratch}/plain.parquet' (FORMAT parquet)")
    written = time.perf_counter()
    sums = list(conn.execute(f"SELECT {CHECK} FROM '{scratch}/plain.parquet'").fetchall()[0])
    return {"secs": time.perf_counter() - begin, "write_secs": written - begin, "sums": sums, "partitions": 1}


CONTENDERS = {"ours": ours, "duckdb_partition_by": duckdb_partition_by, "duckdb_plain": duckdb_plain}


def measure(name: str, files: list[str], npartitions: int) -> dict[str, Any]:
    """One round of one contender, in a world of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch, "job.json")
        job.write_text(json.dumps({"files": files, "npartitions": npartitions, "scratch": scratch}))
        command = [sys.executable, str(HERE), "--as", name, str(job)]
        if name == "ours":
            run = mpirun(3, command, timeout=600)
        else:
            run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if run.returncode:
            raise SystemExit(f"{name} failed:\n{run.stdout}\n{run.stderr}")
        measured: dict[str, Any] = json.loads(Path(scratch, "result.json").read_text())
        shutil.rmtree(Path(scratch, "parts"), ignore_errors=True)
        return measured


def contend(name: str, job: str) -> None:
    """Be a contender: on two cores, whatever the machine has."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    what = json.loads(Path(job).read_text())
    measured = CONTENDERS[name](what["files"], what["npartitions"], what["scratch"])
    Path(what["scratch"], "result.json").write_text(json.dumps(measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "smallpond-mpi-benchmarks"))
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--small", action="store_true", help="a run of seconds, for CI: the figures mean little")
    parser.add_argument("--as", dest="contender", nargs=2, metavar=("CONTENDER", "JOB"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        contend(*args.contender)
        return
    if args.small:
        args.scale, args.rounds, args.partitions = 0.05, 1, min(args.partitions, 16)
    args.cache.mkdir(parents=True, exist_ok=True)
    files = lineitem(args.scale, args.cache)
    megabytes = sum(os.path.getsize(path) for path in files) / 1e6
    rounds = [{name: measure(name, files, args.partitions) for name in CONTENDERS} for _ in range(args.rounds)]
    for measured in rounds:
        for name, result in measured.items():
            if result["sums"] != measured["duckdb_plain"]["sums"]:
                raise SystemExit(f"{name}: the rows read back are not those of the input")
    best = {name: min(measured[name]["secs"] for measured in rounds) for name in CONTENDERS}
    figures = {
        "megabytes": megabytes,
        "partitions": args.partitions,
        **{f"{name}_mb_per_s": megabytes / secs for name, secs in best.items()},
        "ratio_to_partition_by": best["duckdb_partition_by"] / best["ours"],
        "ratio_to_plain": best["duckdb_plain"] / best["ours"],
        "target": TARGET,
    }
    if args.json:
        print(json.dumps(figures))
        return
    print(
        f"lineitem SF{args.scale:g}, {megabytes:.0f} MB, {args.partitions} partitions, written and read back on 2 cores, best of {args.rounds}"
    )
    for name, secs in best.items():
        print(f"  {name:<22} {megabytes / secs:8.1f} MB/s  {secs:7.2f} s")
    print(
        f"  ratio to PARTITION_BY  {figures['ratio_to_partition_by']:.2f} (to reach {TARGET}), to plain {figures['ratio_to_plain']:.2f}"
    )


if __name__ == "__main__":
    main()
