"""Computes, lets the test kill a rank, computes again from what was computed before it."""

import os
import time

import smallpond_mpi as sp

NOTES = os.environ["FAULTS_NOTES"]


def note(name, df):
    with open(os.path.join(NOTES, f".{name}"), "w") as file:
        file.write(f"{df.count()} rows")
    os.rename(os.path.join(NOTES, f".{name}"), os.path.join(NOTES, name))


def main():
    s = sp.init(heartbeat_secs=0.2, late_secs=1.5, gone_secs=3.0)
    df = s.from_items([{"k": k % 10, "v": k} for k in range(1000)]).repartition(8, hash_by="k")
    first = df.map("k, v + 1 as v")
    note("first", first)
    deadline = time.monotonic() + 30
    while not os.path.exists(os.path.join(NOTES, "go")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(9.5)  # the script takes more than three times as long as a rank may be silent
    note("second", first.map("k, v + 2 as v"))


if __name__ == "__main__":
    main()
