"""How fast is a sort? 100-byte records with random 10-byte keys, sorted into files whose order is that of their names.

    python benchmarks/gray_sort.py [--megabytes 1000] [--partitions N] [--rounds 3] [--small] [--json]

Ours is the whole engine under mpirun: 2 workers of one core each, rank 0 scheduling; DataFrame.sort (sample, range partitions, a sort of each) and
write_parquet. Beside it, on the same two cores: one DuckDB, COPY (... ORDER BY key) TO, with its output synced to disk as ours is; and, as the
floor, the disk alone: the bytes of the input read once and written once. Contenders run by turns, each in processes of its own that have started
before the clock does; each figure is the best of its rounds. Afterwards each output is checked: keys in order over all files, the number
of records, and a checksum of all of them. MB are those of the records.
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

KEY_BYTES, VALUE_BYTES = 10, 90
RECORD_BYTES = KEY_BYTES + VALUE_BYTES
RECORDS_A_FILE = 1_000_000
CODEC = "SNAPPY"
TARGET = 1.0
SEED = 20260101


def records(megabytes: int, cache: Path) -> list[str]:
    """The input, made once and kept in a cache: files of up to a million records."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = cache / f"records-{megabytes}"
    if not place.exists():
        making = Path(tempfile.mkdtemp(dir=cache))
        total = megabytes * 1_000_000 // RECORD_BYTES
        for number, first in enumerate(range(0, total, RECORDS_A_FILE)):
            count = min(RECORDS_A_FILE, total - first)
            drawn = np.random.default_rng([SEED, number])
            table = pa.table({"key": blobs(drawn, count, KEY_BYTES), "value": blobs(drawn, count, VALUE_BYTES)})
            path = making / f"records-{number:05d}.parquet"
            pq.write_table(table, path, compression=CODEC, use_dictionary=False, row_group_size=122_880)
        making.rename(place)
    return sorted(map(str, place.glob("*.parquet")))


def blobs(drawn: Any, count: int, width: int) -> Any:
    """Random blobs of one width, as an Arrow array."""
    import numpy as np
    import pyarrow as pa

    offsets = np.arange(0, (count + 1) * width, width, dtype=np.int64)
    content = pa.py_buffer(drawn.bytes(count * width))
    return pa.Array.from_buffers(pa.large_binary(), count, [None, pa.py_buffer(offsets), content])


def ours(files: list[str], npartitions: int | None, output: str, scratch: str) -> float:
    """Run as the script of a session: rank 0 measures, the others serve."""
    import smallpond_mpi as sp

    session = sp.init(data_root=scratch, progress=os.environ.get("GRAY_SORT_PROGRESS", "none"))
    warm = session.read_parquet(files[:1]).limit(1000).repartition(8, hash_by="key")
    warm.count()  # children are up, DuckDB is loaded
    begin = time.perf_counter()
    ordered = session.read_parquet(files).sort("key", npartitions=npartitions, parquet_compression=CODEC)
    ordered.write_parquet(output)
    secs = time.perf_counter() - begin
    session.shutdown()
    return secs


def duckdb_order_by(files: list[str], npartitions: int | None, output: str, scratch: str) -> float:
    """One DuckDB with two threads."""
    import duckdb

    conn = duckdb.connect(config={"threads": 2, "temp_directory": scratch})
    conn.execute(f"SELECT count(key) FROM read_parquet({files[:1]})").fetchall()
    os.makedirs(output)
    begin = time.perf_counter()
    path = os.path.join(output, "sorted.parquet")
    conn.execute(f"COPY (FROM read_parquet({files}) ORDER BY key) TO '{path}' (FORMAT parquet, COMPRESSION {CODEC})")
    sync(path)
    return time.perf_counter() - begin


def disk(files: list[str], npartitions: int | None, output: str, scratch: str) -> float:
    """The files read and written once."""
    os.makedirs(output)
    begin = time.perf_counter()
    for path in files:
        copy = os.path.join(output, os.path.basename(path))
        with open(path, "rb") as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)
        sync(copy)
    return time.perf_counter() - begin


def sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


CONTENDERS = {"ours": ours, "duckdb_order_by": duckdb_order_by, "disk": disk}


def checksum(files: list[str]) -> list[int]:
    """How many records there are, and the sum of their hashes, whatever their order."""
    import duckdb

    query = f"SELECT count(*), sum(hash(key, value)) FROM read_parquet({files})"
    return [int(value) for value in duckdb.connect(config={"threads": 2}).execute(query).fetchall()[0]]


def check_order(files: list[str]) -> None:
    """Raise SystemExit unless keys ascend, from each record to the next and from each file to the next."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    last = b""
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1 << 20, columns=["key"]):
                keys = batch.column(0)
                if not len(keys):
                    continue
                if keys[0].as_py() < last or pc.any(pc.less(keys[1:], keys[:-1])).as_py():
                    raise SystemExit(f"{path}: keys are not in order")
                last = keys[-1].as_py()


def measure(name: str, files: list[str], npartitions: int | None, expected: list[int], cache: Path) -> float:
    """One round of one contender, in a world of its own; its output is checked and removed."""
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        job = Path(scratch, "job.json")
        output = os.path.join(scratch, "sorted")
        work = {"files": files, "npartitions": npartitions, "output": output, "scratch": os.path.join(scratch, "work")}
        job.write_text(json.dumps(work))
        command = [sys.executable, str(HERE), "--as", name, str(job)]
        if name == "ours":
            run = mpirun(3, command, timeout=900)
        else:
            run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if run.returncode:
            raise SystemExit(f"{name} failed:\n{run.stdout}\n{run.stderr}")
        if "GRAY_SORT_PROGRESS" in os.environ:
            print(run.stdout, run.stderr, file=sys.stderr)
        written = sorted(map(str, Path(output).glob("*.parquet")))
        if checksum(written) != expected:
            raise SystemExit(f"{name}: the records written are not those of the input")
        if name != "disk":
            check_order(written)
        return float(Path(scratch, "secs").read_text())


def contend(name: str, job: str) -> None:
    """Be a contender: on two cores, whatever the machine has."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    what = json.loads(Path(job).read_text())
    secs = CONTENDERS[name](what["files"], what["npartitions"], what["output"], what["scratch"])
    Path(job).with_name("secs").write_text(repr(secs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--partitions", type=int, help="of None: what sort() chooses")
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
        args.megabytes, args.rounds = min(args.megabytes, 20), 1
    args.cache.mkdir(parents=True, exist_ok=True)
    # Input, intermediate files and output of one contender at a time.
    if shutil.disk_usage(args.cache).free < 5 * args.megabytes * 1_000_000:
        raise SystemExit(
            f"{args.cache} has less than {5 * args.megabytes} MB free: give another --cache or fewer --megabytes"
        )
    files = records(args.megabytes, args.cache)
    expected = checksum(files)
    rounds = [
        {name: measure(name, files, args.partitions, expected, args.cache) for name in CONTENDERS}
        for _ in range(args.rounds)
    ]
    best = {name: min(secs[name] for secs in rounds) for name in CONTENDERS}
    figures = {
        "megabytes": args.megabytes,
        "records": expected[0],
        **{f"{name}_mb_per_s": args.megabytes / secs for name, secs in best.items()},
        "ratio_to_duckdb": best["duckdb_order_by"] / best["ours"],
        "ratio_to_disk": best["disk"] / best["ours"],
        "target": TARGET,
    }
    if args.json:
        print(json.dumps(figures))
        return
    print(f"{expected[0]:,} records, {args.megabytes} MB, sorted and written on 2 cores, best of {args.rounds}")
    for name, secs in best.items():
        print(f"  {name:<16} {args.megabytes / secs:8.1f} MB/s  {secs:7.2f} s")
    print(
        f"  ratio to DuckDB {figures['ratio_to_duckdb']:.2f} (to reach {TARGET}), to the disk {figures['ratio_to_disk']:.2f}"
    )


if __name__ == "__main__":
    main()
