"""The job that the fault tests disturb: read, work, hash-partition two tables, join, work, write. Told by its environment what to do,
so that a job that is started again is told the same.

    FAULTS_IN     directory of the input files          FAULTS_OUT    output path
    FAULTS_NOTES  directory of notes                    FAULTS_SECS   how long each piece of work takes
    FAULTS_NAMED  output path of the node before the write, if that is to have one
    FAULTS_LEASE_SECS  how often the lease is renewed
    FAULTS_SPECULATIVE speculative_exec
    FAULTS_STOP   leave at once, as a crash would, after the write (1)
    FAULTS_HOLD   a file: work on joined rows is not done as long as it is there
"""

import os
import time

import pyarrow as pa

import smallpond_mpi as sp
from smallpond_mpi.execution import lease
from smallpond_mpi.logical.node import ArrowComputeNode

SECS = float(os.environ.get("FAULTS_SECS", "0.05"))
NOTES = os.environ["FAULTS_NOTES"]
HOLD = os.environ.get("FAULTS_HOLD", "")
lease.PERIOD_SECS = float(os.environ.get("FAULTS_LEASE_SECS", lease.PERIOD_SECS))


def work(ctx, tables):
    """Takes its time; a note says which attempt runs in which process as long as it does, another that it came to its end."""
    attempt = ctx.task.runtime_id
    note = os.path.join(NOTES, f"running.{attempt}.{os.getpid()}")
    table = tables[0]
    with open(note, "w"):
        time.sleep(SECS)
        while "name" in table.column_names and os.path.exists(HOLD):
            time.sleep(0.05)
    values = [value * 2 + 1 for value in table.column("v").to_pylist()]
    os.rename(note, os.path.join(NOTES, f"done.{attempt}.{os.getpid()}"))
    return table.set_column(table.schema.get_field_index("v"), "v", pa.array(values, pa.int64()))


def worked(df, output_path=None):
    node = ArrowComputeNode(df.session._ctx, (df.plan,), process_func=work, output_path=output_path)
    return sp.DataFrame(df.session, node)


def main():
    speculative = os.environ.get("FAULTS_SPECULATIVE", "enable")
    s = sp.init(heartbeat_secs=0.5, late_secs=3.0, gone_secs=6.0, speculative_exec=speculative)
    facts = worked(s.read_parquet(os.environ["FAULTS_IN"] + "/facts-*.parquet").repartition(8, by_rows=True))
    names = s.from_items([{"k": k, "name": f"name {k}"} for k in range(37)])
    joined = s.partial_sql(
        "select a.k, a.v, b.name from {0} a join {1} b on a.k = b.k",
        facts.repartition(6, hash_by="k"),
        names.repartition(6, hash_by="k"),
    )
    worked(joined, os.environ.get("FAULTS_NAMED")).write_parquet(os.environ["FAULTS_OUT"])
    if os.environ.get("FAULTS_STOP"):
        os._exit(9)


if __name__ == "__main__":
    main()
