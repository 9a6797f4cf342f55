"""A task's function that forks, and a script whose threads share a session."""

from pathlib import Path
from typing import Any

import pytest

from tests.scripts import Place

FORKS = """
    import smallpond_mpi as sp

    def name_of(pid):
        with open(f"/proc/{{pid}}/comm") as file:
            return file.read()

    def forks(table):
        attempt = name_of("self")
        if os.fork() == 0:
            while name_of(os.getppid()) == attempt:  # until what it is a copy of has written its result
                pass
            {ends}
        return pa.table({{"x": ["right"] * table.num_rows}})

    session = sp.init(progress="none")
    rows = session.from_items(list(range(20))).repartition(4, by_rows=True)
    for frame in (rows.map_batches(forks), rows.map_batches(forks, batch_size=2)):
        say(sorted(set(frame.to_arrow()["x"].to_pylist())))
"""
THREADS = """
    import threading
    import smallpond_mpi as sp

    session = sp.init(progress="none")
    shared = session.from_items(list(range(20))).repartition(4, by_rows=True).map("item + 1 as a")
    found = []

    def work(number):
        own = shared.filter(f"a > {number}").repartition(2, hash_by="a")
        found.append([number, shared.count(), own.count(), own.map(lambda row: {"b": row["a"]}).count()])

    for _ in range(3):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    say(sorted(found))
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    "ends", ["sys.exit(3)", "raise ValueError('in the copy')", "return pa.table({'x': ['WRONG'] * table.num_rows})"]
)
def test_a_forked_copy_of_a_task_has_no_say(place: Place, ends: str) -> None:
    ran = place.run(FORKS.replace("{ends}", ends).replace("{{", "{").replace("}}", "}"))
    assert (ran.code, ran.told) == (0, [["right"], ["right"]]), ran.stderr


def test_the_threads_of_a_script_take_turns(place: Place) -> None:
    ran = place.run(THREADS)
    expected: list[Any] = sorted([number, 20, 20 - number, 20 - number] for number in range(8) for _ in range(3))
    assert (ran.code, ran.told) == (0, [expected]), ran.stderr
