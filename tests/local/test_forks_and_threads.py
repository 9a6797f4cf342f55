"""A task's function that forks, a script that does, and one whose threads share a session."""

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
COPIES = """
    import multiprocessing
    import smallpond_mpi as sp
    from smallpond_mpi.common import InvalidArgument

    session = sp.init(progress="none")
    rows = session.from_items(list(range(20))).repartition(4, by_rows=True)
    say(rows.map_batches(lambda table: table[:3]).count())

    def refused(call):
        try:
            call()
        except InvalidArgument as error:
            return str(error)

    copy = os.fork()
    if copy == 0:
        with open("refused", "w") as file:
            json.dump([refused(sp.init), refused(rows.map_batches(lambda table: table[:2]).count)], file)
        session.shutdown()
        {ends}
    os.waitpid(copy, 0)
    say(json.load(open("refused")))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        say(pool.map(abs, [-1, -2]))
    say(rows.map_batches(lambda table: table[:1]).count())
    session.shutdown()
    copy = os.fork()
    if copy == 0:
        own = sp.init(progress="none")
        with open("own", "w") as file:
            json.dump(own.from_items([1, 2]).map_batches(lambda table: table).count(), file)
        sys.exit(0)
    os.waitpid(copy, 0)
    say(json.load(open("own")))
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

INIT_IN_A_THREAD = """
    import threading
    import smallpond_mpi as sp
    from smallpond_mpi.common import InvalidArgument

    def begin():
        hook = sys.excepthook
        try:
            sp.init(progress="none")
        except InvalidArgument as error:
            say([str(error), sys.excepthook is hook])

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    session = sp.init(progress="none")
    say(session.from_items([1, 2]).count())
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


@pytest.mark.parametrize("ends", ["sys.exit(3)", "raise ValueError('in the copy')"])
def test_a_forked_copy_of_the_script_has_no_say(place: Place, ends: str) -> None:
    """It has the handlers, the job and the socket to the fork server, and must use none of them. (Its exit code says nothing: DuckDB crashes at the end of a copy.)"""
    ran = place.run(COPIES.replace("{ends}", ends))
    assert ran.code == 0, ran.stderr
    counted, refused, mapped, counted_again, own = ran.told
    assert (counted, mapped, counted_again, own) == (12, [1, 2], 4, 2)
    assert ["forked copy" in text for text in refused] == [True, True]
    assert "terminated" not in ran.stderr
    first, second = sorted(place.data_root.glob("*/status"))
    assert (first.read_text(), second.read_text()) == ("success\n", "success\n")


def test_the_threads_of_a_script_take_turns(place: Place) -> None:
    ran = place.run(THREADS)
    expected: list[Any] = sorted([number, 20, 20 - number, 20 - number] for number in range(8) for _ in range(3))
    assert (ran.code, ran.told) == (0, [expected]), ran.stderr


def test_init_belongs_into_the_main_thread(place: Place) -> None:
    """Said before anything is changed: the main thread can still call it."""
    ran = place.run(INIT_IN_A_THREAD)
    assert ran.code == 0, ran.stderr
    (said, is_unchanged), counted = ran.told
    assert "call it in the main thread" in said
    assert (is_unchanged, counted) == (True, 2)
