"""What does a task cost? No-op tasks through the whole engine, beside mpi4py.futures and a bare mpi4py master/worker, 2 workers each.

    python benchmarks/task_overhead.py [--small] [--json]

Each of our tasks is a planned Task with a runtime_id of its own: executed in a child, recorded in the journal, its state read back on rank 0. A
second row commits one small Parquet file a task. The contenders run by turns, several rounds; each figure is the best of its rounds (the
machine is shared), ratios are of these.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from tests.launch import mpirun  # noqa: E402 the one way to start a real mpirun

TARGETS = {"tasks_per_s": 10_000, "ratio_to_futures": 2.0, "round_trip_ms": 2.0, "first_task_s": 2.0}


def ours(count: int, with_file: bool) -> dict[str, float]:
    """Run as the script of a session: rank 0 measures, the others serve."""
    import smallpond_mpi as sp
    from smallpond_mpi.execution.task import PartitionInfo, Task

    class NoOp(Task):
        def run(self) -> bool:
            return True

    class OneFile(Task):
        def run(self) -> bool:
            import pyarrow as pa

            from smallpond_mpi.logical.dataset import ParquetDataSet

            self.dataset = ParquetDataSet.create_from(
                pa.table({"id": [int(self.id)]}), self.runtime_output_abspath, self.output_filename
            )
            return True

    with tempfile.TemporaryDirectory() as root:
        session = sp.init(data_root=root, progress="none")

        def run(kind: type[Task], count: int) -> tuple[float, list[Task]]:
            tasks: list[Task] = [kind(session._runtime_ctx, [], [PartitionInfo()]) for _ in range(count)]
            begin = time.perf_counter()
            session._job.loop.run(tasks)
            secs = time.perf_counter() - begin
            assert all(task.is_done and task.exec_id for task in tasks)
            return secs, tasks

        run(NoOp, 1)
        first = time.time()
        trips = sorted(run(NoOp, 1)[0] for _ in range(50))
        kind: type[Task] = OneFile if with_file else NoOp
        run(kind, min(200, count))
        secs, tasks = run(kind, count)
        if with_file:
            assert sum(task.output.num_rows for task in tasks) == count
        session.shutdown()
    return {"tasks_per_s": count / secs, "round_trip_ms": trips[len(trips) // 2] * 1e3, "first_task_at": first}


def _nothing(number: int) -> int:
    return number


def futures(count: int) -> dict[str, float]:
    """`mpirun -n 3 python -m mpi4py.futures`: one master, 2 workers."""
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor() as pool:
        pool.submit(_nothing, 0).result()
        begin = time.perf_counter()
        assert (
            sum(future.result() for future in [pool.submit(_nothing, number) for number in range(count)])
            == count * (count - 1) // 2
        )
        return {"tasks_per_s": count / (time.perf_counter() - begin)}


def bare(count: int) -> dict[str, float] | None:
    """The least that a master and workers can do over mpi4py: pickled numbers there and back, one in flight a worker."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.rank:
        while (number := comm.recv(source=0)) is not None:
            comm.send(number, 0)
        return None
    begin = time.perf_counter()
    waiting, done, total, status = iter(range(count)), 0, 0, MPI.Status()
    for rank in range(1, comm.size):
        comm.send(next(waiting), rank)
    while done < count:
        total += comm.recv(status=status)
        done += 1
        number = next(waiting, None)
        if number is not None:
            comm.send(number, status.source)
    secs = time.perf_counter() - begin
    for rank in range(1, comm.size):
        comm.send(None, rank)
    assert total == count * (count - 1) // 2
    return {"tasks_per_s": count / secs}


def measure(contender: str, count: int) -> dict[str, float]:
    """One round of one contender, in a world of its own."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as result:
        args = [
            sys.executable,
            *(["-m", "mpi4py.futures"] if contender == "futures" else []),
            str(HERE),
            "--as",
            contender,
            str(count),
            result.name,
        ]
        begin = time.time()
        run = mpirun(3, args, timeout=300)
        if run.returncode:
            raise SystemExit(f"{contender} failed:\n{run.stdout}\n{run.stderr}")
        measured: dict[str, float] = json.load(result)
    return measured | {"start": begin}


def first_task_secs() -> float:
    """From nothing to the first task done on 4 ranks, beyond what `mpirun -n 4 true` takes."""
    begin = time.time()
    mpirun(4, ["true"], timeout=60)
    launch = time.time() - begin
    with tempfile.NamedTemporaryFile("r", suffix=".json") as result:
        begin = time.time()
        run = mpirun(4, [sys.executable, str(HERE), "--as", "ours", "1", result.name], timeout=120)
        if run.returncode:
            raise SystemExit(run.stderr)
        return float(json.load(result)["first_task_at"]) - begin - launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--small", action="store_true", help="a run of seconds, for CI: the figures mean little")
    parser.add_argument(
        "--as", dest="contender", nargs=3, metavar=("CONTENDER", "COUNT", "FILE"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.contender:
        name, count, path = args.contender
        kinds = {
            "ours": lambda n: ours(n, False),
            "ours_file": lambda n: ours(n, True),
            "futures": futures,
            "bare": bare,
        }
        measured = kinds[name](int(count))
        if measured is not None:
            Path(path).write_text(json.dumps(measured))
        return
    rounds, count, files = (1, 2_000, 200) if args.small else (5, 50_000, 3_000)
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for contender, number in (("ours", count), ("futures", count // 4), ("bare", count), ("ours_file", files)):
            measured = measure(contender, number)
            known = best.setdefault(contender, measured)
            known["tasks_per_s"] = max(known["tasks_per_s"], measured["tasks_per_s"])
            if "round_trip_ms" in measured:
                known["round_trip_ms"] = min(known["round_trip_ms"], measured["round_trip_ms"])
    figures = {
        "tasks_per_s": best["ours"]["tasks_per_s"],
        "futures_tasks_per_s": best["futures"]["tasks_per_s"],
        "bare_tasks_per_s": best["bare"]["tasks_per_s"],
        "with_file_tasks_per_s": best["ours_file"]["tasks_per_s"],
        "ratio_to_futures": best["ours"]["tasks_per_s"] / best["futures"]["tasks_per_s"],
        "ratio_to_bare": best["ours"]["tasks_per_s"] / best["bare"]["tasks_per_s"],
        "with_file_ratio_to_futures": best["ours_file"]["tasks_per_s"] / best["futures"]["tasks_per_s"],
        "round_trip_ms": best["ours"]["round_trip_ms"],
        "first_task_s": min(first_task_secs() for _ in range(rounds)),
    }
    if args.json:
        print(json.dumps(figures | {"targets": TARGETS, "count": count, "cpus": os.cpu_count()}))
        return
    print(f"no-op tasks, 2 workers, {count:,} tasks, best of {rounds} rounds")
    print(
        f"  smallpond_mpi            {figures['tasks_per_s']:>10,.0f} tasks/s   ({figures['ratio_to_futures']:.2f} x mpi4py.futures, to reach 2; {figures['ratio_to_bare']:.2f} x bare)"
    )
    print(f"  mpi4py.futures           {figures['futures_tasks_per_s']:>10,.0f} tasks/s")
    print(f"  bare mpi4py              {figures['bare_tasks_per_s']:>10,.0f} tasks/s")
    print(
        f"  with a Parquet file each {figures['with_file_tasks_per_s']:>10,.0f} tasks/s   ({figures['with_file_ratio_to_futures']:.2f} x mpi4py.futures without)"
    )
    print(f"  round trip of one task   {figures['round_trip_ms']:>10.2f} ms")
    print(f"  start to first task      {figures['first_task_s']:>10.2f} s beyond `mpirun -n 4 true`")


if __name__ == "__main__":
    main()
