"""A plan of three nodes that call Python, to be varied by the tests: f, then g below it, and h beside them.

Each value between the marks below is what a test replaces.
"""

import os

import resume_helpers

import smallpond_mpi as sp
from smallpond_mpi.logical.node import ArrowComputeNode

NOTES = os.environ["FAULTS_NOTES"]
NUMBER = 3


def note(name):
    with open(os.path.join(NOTES, name), "a") as file:
        file.write("called\n")


def helper(value):
    return value + 1


def f(row):
    note("f")
    return {"k": row["k"], "v": helper(row["v"]) * 2}


def make_g(factor):
    def g(row, offset=0):
        note("g")
        return {"k": row["k"], "v": row["v"] * factor + offset}

    return g


def h(row):
    note("h")
    return {"v": resume_helpers.scaled(row["v"]) + NUMBER}


def drawn(ctx, tables):
    note("drawn")
    column = [ctx.task.random_uint32() for _ in range(tables[0].num_rows)]
    return tables[0].append_column("r", [column])


def main():
    s = sp.init()
    source = s.read_parquet(os.environ["FAULTS_IN"] + "/*.parquet").repartition(2, by_rows=True)
    below = source.map(f).repartition(2, hash_by="k").map(make_g(5))
    beside = source.map("v % 10 as v").map(h)
    random = sp.DataFrame(s, ArrowComputeNode(s._ctx, (source.plan,), process_func=drawn))
    s.wait(below, beside, random)
    with open(os.path.join(NOTES, "result"), "w") as file:
        file.write(repr([sorted(map(repr, df.take_all())) for df in (below, beside, random)]))
    os._exit(9)


main()
