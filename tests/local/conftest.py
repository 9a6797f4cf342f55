"""The session that a file's tests share, unless it has one of its own."""

from collections.abc import Iterator

import pytest

import smallpond_mpi as sp


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sp.Session]:
    made = sp.init(data_root=str(tmp_path_factory.mktemp("root")), progress="none")
    yield made
    made.shutdown()
