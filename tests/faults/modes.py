"""The job that is killed while it writes into one directory again and again. Told by its environment what to do.

FAULTS_OUT   output path        FAULTS_MODE   append, overwrite, error, partition_by (which appends), or counted (which appends too)
"""

import os

import smallpond_mpi as sp

ROWS = 12


def main():
    s = sp.init()
    output, mode = os.environ["FAULTS_OUT"], os.environ["FAULTS_MODE"]
    rows = s.from_items([{"id": number, "k": number % 2} for number in range(ROWS)]).repartition(3, by_rows=True)
    if mode == "overwrite":
        rows.map("id + 1000 as id, k").write_parquet(output)
        rows.write_parquet(output, mode="overwrite")
    elif mode == "counted":
        rows = rows.map("id, k")
        assert rows.count() == ROWS  # which a restart does again
        rows.write_parquet(output, mode="append")
        rows.write_parquet(output, mode="append")
    elif mode == "error":
        rows.write_parquet(output, mode="error")
    else:
        columns = "k" if mode == "partition_by" else None
        rows.write_parquet(output, partition_by=columns, mode="overwrite")
        rows.write_parquet(output, partition_by=columns, mode="append")
        rows.write_parquet(output, partition_by=columns, mode="append")


if __name__ == "__main__":
    main()
