"""The local transport does what every transport must do."""

import pytest

from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank
from smallpond_mpi.execution.transport import PeerGone
from smallpond_mpi.execution.transport.local import local_pair
from tests.conformance import CASES, End


@pytest.mark.parametrize("case", CASES)
def test_conformance(case: str) -> None:
    one, other = (End(transport, SCHEDULER_RANK, chunk_bytes=1 << 16) for transport in local_pair())
    first, second = CASES[case]
    running = [first(one), second(other)]
    for _ in range(1_000_000):
        if not running:
            break
        for script in list(running):
            try:
                next(script)
            except StopIteration:
                running.remove(script)
    assert not running, "the two ends wait for each other"


def test_a_closed_end_is_told_of_once() -> None:
    one, other = local_pair()
    one.close(1.0)
    one.close(1.0)
    one.send(SCHEDULER_RANK, b"too late")
    assert other.poll() == [PeerGone(SCHEDULER_RANK, "closed")]
    assert not other.poll()


def test_there_is_nobody_else_to_send_to() -> None:
    one, _ = local_pair()
    with pytest.raises(ValueError, match="rank 0 only"):
        one.send(Rank(1), b"")
