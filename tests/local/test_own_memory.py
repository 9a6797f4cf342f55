"""What rank 0's own process holds, such as tables of the script, is not granted to tasks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import smallpond_mpi as sp
from smallpond_mpi.common import GB
from smallpond_mpi.execution.scheduler import loop
from smallpond_mpi.logical.node import ArrowComputeNode
from smallpond_mpi.platform.binding import OWN_BYTES


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sp.Session]:
    monkeypatch.setenv("SP_PROGRESS", "none")
    opened = sp.init(data_root=str(tmp_path / "root"))
    yield opened
    opened.shutdown()


def granted(session: sp.Session) -> int:
    """Bytes that a task may take that names none."""

    def look(ctx: Any, tables: list[pa.Table]) -> pa.Table:
        return pa.table({"bytes": [ctx.task.memory_limit]})

    rows = session.from_items([1])
    node = ArrowComputeNode(session._ctx, (rows.plan,), process_func=look)
    return int(sp.DataFrame(session, node).to_arrow()["bytes"][0].as_py())


def test_what_the_script_holds_is_not_granted(session: sp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = session._job.loop.capacities[0].memory_bytes
    share = granted(session)

    def holds(held: int) -> None:
        monkeypatch.setattr(loop, "unreclaimable_bytes", lambda pid: OWN_BYTES + held)

    holds(whole // 2)
    assert granted(session) == pytest.approx(share / 2, rel=0.001)
    holds(whole // 2 + whole // 100)  # not worth counting
    assert granted(session) == pytest.approx(share / 2, rel=0.001)
    holds(3 * whole)  # an eighth is left to try with
    assert granted(session) == pytest.approx(share / 8, rel=0.001)
    holds(-OWN_BYTES)
    assert granted(session) == share


def test_a_table_of_the_script_counts(session: sp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WORTH_COUNTING", 0.001)
    before = granted(session)
    cpus = len(session._job.loop.capacities[0].cpus)
    table = bytearray(b"1") * GB
    less = before - granted(session)
    assert GB * 0.9 * 0.8 / cpus < less < GB * 0.9 * 1.3 / cpus
    del table
