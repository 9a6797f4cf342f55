"""A shuffle as wide as the contract allows: 1,000 producers into 4,096 partitions, really run, and what rank 0 needs for it.

    python benchmarks/wide_shuffle.py [--producers 1000] [--partitions 4096] [--rows 4096000] [--small] [--json]

Two one-core workers under mpirun; the planner is told that the cluster has slots for so many producers. Every partition is read by a consumer
that counts and adds up its rows, and the sums must be those of the input. What is printed: rank 0's largest resident set beside the 1 GiB that it
may take, and the time beside that of a shuffle of the same rows by few producers into few partitions, which is the same work in few slices.
Exit code 1 if rank 0 took more.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from tests.launch import mpirun  # noqa: E402 the one way to start a real mpirun

GIB = 1 << 30
FEW = 16


def write_input(place: Path, producers: int, rows: int) -> None:
    """A file a producer; `v` of row i is i, and `k` a key that spreads."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    bounds = np.linspace(0, rows, producers + 1).astype(np.int64)
    for number in range(producers):
        values = np.arange(bounds[number], bounds[number + 1])
        table = pa.table({"k": values * 2654435761 % (1 << 32), "v": values})
        pq.write_table(table, place / f"part-{number:05}.parquet")


def shuffle(job: dict[str, Any]) -> dict[str, Any]:
    """Run as the script of a session: rank 0 measures, the others serve."""
    import smallpond_mpi as sp
    from smallpond_mpi.logical import planner

    planner.PRODUCERS_PER_SLOT = job["producers"]  # as on a cluster that is large enough
    session = sp.init(data_root=job["data_root"], progress="none")
    session.partial_sql(
        "SELECT count(*) FROM {0}", session.read_parquet(f"{job['input']}/part-00000.parquet")
    ).to_arrow()
    begin = time.perf_counter()
    rows = session.read_parquet(f"{job['input']}/*.parquet").repartition(job["partitions"], hash_by="k")
    sums = session.partial_sql("SELECT count(*) AS n, sum(v)::BIGINT AS v FROM {0}", rows).to_arrow()
    secs = time.perf_counter() - begin
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = [sum(sums.column(name).to_pylist()) for name in ("n", "v")]
    session.shutdown()
    return {"secs": secs, "rank_0_bytes": largest, "partitions": sums.num_rows, "found": found}


def measure(producers: int, partitions: int, rows: int, source: Path, timeout: float) -> dict[str, Any]:
    """One shuffle in a world of its own; its sums are checked."""
    with tempfile.TemporaryDirectory() as scratch:
        job = {"producers": producers, "partitions": partitions, "data_root": scratch, "input": str(source)}
        result = Path(scratch, "result.json")
        command = [sys.executable, str(HERE), "--as", json.dumps(job), str(result)]
        run = mpirun(3, command, timeout=timeout)
        if run.returncode:
            raise SystemExit(f"the shuffle failed:\n{run.stdout}\n{run.stderr}")
        measured: dict[str, Any] = json.loads(result.read_text())
    expected = [rows, rows * (rows - 1) // 2]
    if measured["found"] != expected or measured["partitions"] != partitions:
        raise SystemExit(f"wrong rows: {measured} instead of {expected} in {partitions} partitions")
    return measured


def main() -> int:
    """Measure and print; 1 if rank 0 took more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--producers", type=int, default=1000)
    parser.add_argument("--partitions", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=4_096_000)
    parser.add_argument("--timeout", type=float, default=7200.0, help="seconds that a run may take")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--small", action="store_true", help="a run of seconds, for CI: the figures mean little")
    parser.add_argument("--as", dest="job", nargs=2, metavar=("JOB", "RESULT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        Path(args.job[1]).write_text(json.dumps(shuffle(json.loads(args.job[0]))))
        return 0
    if args.small:
        args.producers, args.partitions, args.rows = 50, 128, 64_000
    with tempfile.TemporaryDirectory() as source:
        write_input(Path(source), args.producers, args.rows)
        few = measure(FEW, FEW, args.rows, Path(source), args.timeout)
        wide = measure(args.producers, args.partitions, args.rows, Path(source), args.timeout)
    slices = args.producers * args.partitions
    figures = {
        "producers": args.producers,
        "partitions": args.partitions,
        "rows": args.rows,
        "secs": wide["secs"],
        "slices_per_s": slices / wide["secs"],
        "ratio_to_few": wide["secs"] / few["secs"],
        "rank_0_bytes": wide["rank_0_bytes"],
        "rank_0_ratio_to_1_gib": wide["rank_0_bytes"] / GIB,
        "rank_0_bytes_a_slice": (wide["rank_0_bytes"] - few["rank_0_bytes"]) / slices,
    }
    code = 1 if wide["rank_0_bytes"] > GIB else 0
    if args.json:
        print(json.dumps(figures))
        return code
    print(
        f"{args.rows:,} rows, {args.producers:,} producers x {args.partitions:,} partitions = {slices:,} slices on 2 cores"
    )
    print(
        f"  {wide['secs']:8.1f} s, {figures['slices_per_s']:,.0f} slices a second; {FEW} x {FEW} of the same rows: {few['secs']:.1f} s"
    )
    print(
        f"  rank 0: {wide['rank_0_bytes'] / (1 << 20):,.0f} MiB, {figures['rank_0_ratio_to_1_gib']:.2f} of the 1 GiB it may take"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
