"""Results are kept: computed once in a session, and once in a job that is started again with its id; recompute() forces."""

from pathlib import Path

import pytest

from tests.scripts import Place

SCRIPT = """
    import smallpond_mpi as sp
    session = sp.init(job_id="kept", progress="none")

    def count(table):
        with open({calls!r}, "a") as file:
            file.write("x")
        with open({value!r}) as file:
            return table.append_column("v", pa.array([int(file.read())] * table.num_rows))

    def seen():
        return len(open({calls!r}).read())

    df = session.from_items([{{"a": number}} for number in range(4)]).repartition(2, by_rows=True).map_batches(count)
    more = df.map("a + v as s")
    total = lambda frame, name: sum(frame.to_arrow()[name].to_pylist())
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "value").write_text("10")
    (tmp_path / "calls").write_text("")
    return Place(tmp_path)


def script(place: Place, *lines: str) -> str:
    text = SCRIPT.format(calls=str(place.path / "calls"), value=str(place.path / "value"))
    return text + "".join(f"    {line}\n" for line in lines)


def test_recompute_forces(place: Place) -> None:
    value = repr(str(place.path / "value"))
    ran = place.run(
        script(
            place,
            "say([total(df, 'v'), total(df, 'v'), seen(), df.is_computed()])",
            "say([total(more, 's'), seen()])",
            f"open({value}, 'w').write('20')",
            "say([total(df, 'v'), total(more, 's'), seen()])",
            "say(df.recompute() is df and not df.is_computed())",
            "say([total(df, 'v'), seen(), df.is_computed()])",
            "say([total(sp.DataFrame(session, df.plan, recompute=True), 'v'), seen()])",
            "say([total(more.recompute(), 's'), seen()])",
        )
    )
    assert ran.code == 0, ran.stderr
    assert ran.told == [
        [40, 40, 2, True],
        [46, 2],
        [40, 46, 2],  # kept, whatever the function would say now
        True,
        [80, 4, True],
        [80, 6],
        [86, 6],
    ]


def test_a_job_that_is_started_again_keeps_them_too_unless_forced(place: Place) -> None:
    crash = "import os; os._exit(9)"
    first = "say([total(df, 'v'), seen()])"
    again = "say([total(df.recompute(), 'v'), seen()])"
    assert place.run(script(place, first, crash)).told == [[40, 2]]
    assert place.run(script(place, first, again, crash)).told == [[40, 2], [40, 4]]
    # what was forced is kept as well: a job goes on where it was
    assert place.run(script(place, first, again)).told == [[40, 4], [40, 4]]


def test_what_the_tasks_of_a_run_share_is_not_kept(tmp_path: Path) -> None:
    """A function's closure may be large, and a script that iterates has a new one each time: rank 0 and every executor kept all of them."""
    ran = Place(tmp_path).run("""
        import smallpond_mpi
        session = smallpond_mpi.init(progress="none")
        loop = session._job.loop
        frame = session.from_items(list(range(4)))
        for number in range(3):
            frame.map_batches(lambda table, weights=bytes([number]) * 100: table).count()
            say(len(loop._packer._siblings))
        loop._turn()
        say(len(loop._executor._blobs))
        say(frame.map_batches(lambda table: table).count())
    """)
    assert (ran.code, ran.told) == (0, [0, 0, 0, 0, 4]), ran.stderr
