"""Bad input under a real mpirun: one worker, and several."""

import pytest

from tests.bad_input import BadInput
from tests.launch import launcher

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")]


class TestTwoRanks(BadInput):
    ranks = 2


class TestThreeRanks(BadInput):
    ranks = 3
