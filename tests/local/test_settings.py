"""What a session is told: SP_* variables override the arguments of init(), and what nobody says has a default."""

from datetime import datetime
from pathlib import Path

import pytest

from smallpond_mpi.config import ENV_OF, resolve
from tests.scripts import Place

POOL = """
    import smallpond_mpi as sp
    session = sp.init(data_root=here("argument"), progress="none"{more})
    def pool(table):
        return pa.table({{"pool": [pa.default_memory_pool().backend_name]}})
    say(session.from_items([1]).map_batches(pool).take_all()[0]["pool"])
"""
SAID = {
    "job_id": ("argument", "variable", "variable"),
    "job_time": (1, "86400", datetime.fromtimestamp(86400)),
    "job_name": ("argument", "variable", "variable"),
    "data_root": ("argument", "/variable", "/variable"),
    "num_executors": (7, "3", 3),
    "bind_numa_node": (False, "1", True),
    "memory_allocator": ("system", "jemalloc", "jemalloc"),
    "platform": ("argument", "variable", "variable"),
    "progress": ("none", "lines", "lines"),
}
"""Of each setting that has a variable: an argument, what the variable says, and what holds."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_each_variable_overrides_its_argument() -> None:
    assert set(SAID) == set(ENV_OF)
    arguments = {name: argument for name, (argument, _, _) in SAID.items()}
    for name, (_, text, value) in SAID.items():
        config, alone = resolve(arguments, {ENV_OF[name]: text}), resolve(arguments, {})
        assert getattr(config, name) == value != getattr(alone, name)
        assert all(getattr(config, other) == getattr(alone, other) for other in SAID if other != name)


def test_a_script_goes_where_its_variables_say(place: Place) -> None:
    """Places and names of the run itself, not only of its settings."""
    variables = {"SP_DATA_ROOT": str(place.path / "variable"), "SP_JOBID": "mine", "SP_PROGRESS": "lines"}
    ran = place.run(POOL.format(more=", job_id='argument'"), env=variables)
    assert ran.code == 0, ran.stderr
    assert "smallpond_mpi: job" in ran.stderr  # the argument was: say nothing
    assert not (place.path / "argument").exists()
    assert len(list((place.path / "variable").iterdir())) == 1


@pytest.mark.parametrize(
    ("more", "env", "pool"),
    [
        ("", {}, "system"),
        ("", {"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc"),
        (", memory_allocator='system'", {"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "system"),
        (", memory_allocator='mimalloc'", {}, "mimalloc"),
        (", memory_allocator='mimalloc'", {"SP_MEMORY_ALLOCATOR": "system"}, "system"),
    ],
)
def test_the_memory_of_tasks_comes_from(place: Place, more: str, env: dict[str, str], pool: str) -> None:
    ran = place.run(POOL.format(more=more), env=env)
    assert (ran.code, ran.told) == (0, [pool]), ran.stderr
