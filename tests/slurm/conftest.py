"""One cluster for all tests of a run; where the machine can't have one, each test says why."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.fake_nvml import NO_COMPILER, Gpu, build
from tests.slurm.cluster.cluster import Cluster, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm_here() -> None:
    """Skips, with the reason, where there can be no cluster."""
    reason = why_not()
    if reason:
        pytest.skip(f"NO SLURM TESTS: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failed test comes what its jobs printed."""
    report = yield
    shared = getattr(item, "funcargs", {}).get("shared")
    if report.failed and shared is not None:
        for path in sorted(shared.rglob("*.out")):
            if path.is_file():
                report.sections.append((str(path), path.read_text(errors="replace")[-4000:]))
    return report


@pytest.fixture(scope="session")
def one_cluster(slurm_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three idle nodes. Tests put what the nodes are to share below `cluster.shared`."""
    running = Cluster()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def cluster(one_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster without a job, whatever became of the tests before."""
    yield one_cluster
    one_cluster.clear()


@pytest.fixture
def shared(cluster: Cluster, request: pytest.FixtureRequest) -> Path:
    """A directory of this test's own that all nodes see."""
    directory = cluster.shared / request.node.name.translate(str.maketrans("[]/ ", "____"))
    directory.mkdir()
    return directory


@pytest.fixture
def gpus(cluster: Cluster) -> dict[str, str]:
    """Variables by which ranks find four GPUs a node, those that the job's cgroup lets them open."""
    if NO_COMPILER:
        pytest.skip("no C compiler for the library that answers as NVML")
    devices = [Gpu(f"GPU-%h-{index}", "00000000:01:00.0", f"{cluster.box}/dev/nvidia{index}") for index in range(4)]
    return build(cluster.shared / "nvml", devices)
