"""The test cluster itself: what it constrains, that a crash is one, and that nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.executor_bench import wait_until
from tests.slurm.cluster import remains
from tests.slurm.cluster.cluster import PARENT, Cluster, NoCluster, why_not
from tests.slurm.cluster.shape import Shape

ROOT = Path(__file__).parents[2]


def traces() -> dict[str, set[str]]:
    """What a cluster could leave on this machine, but for processes (which have cgroups)."""
    return {
        "mounts": set(Path("/proc/self/mountinfo").read_text().splitlines()),
        "network": set(os.listdir("/sys/class/net")),
        "named networks": set(os.listdir("/run/netns")) if Path("/run/netns").exists() else set(),
        "clusters": {str(path) for path in remains.clusters(PARENT) if f"{remains.PREFIX}{os.getpid()}." in path.name},
    }


@pytest.mark.usefixtures("slurm_here")
def test_nothing_is_left() -> None:
    before = traces()
    cluster = Cluster(plan=Shape(nodes=1, cpus=1))
    cluster.start()
    try:
        assert cluster.run(["srun", "--mem=100", "hostname"]).stdout == "n1\n"
        lingering = subprocess.Popen(cluster.command(["srun", "--mem=100", "sleep", "1000"]))
        wait_until(lambda: len(remains.processes_of(cluster.box)) > 8)
        processes = remains.processes_of(cluster.box)
        assert traces()["clusters"] == before["clusters"] | {str(cluster.box)}
    finally:
        cluster.stop()
    lingering.wait(10)
    assert not [pid for pid in processes if Path(f"/proc/{pid}/root").exists()]
    assert traces() == before


@pytest.mark.usefixtures("slurm_here")
def test_what_a_killed_run_has_left_goes_at_the_next_start() -> None:
    code = (
        "import sys, time; from tests.slurm.cluster.cluster import Cluster; from tests.slurm.cluster.shape import Shape\n"
        "one = Cluster(plan=Shape(nodes=1, cpus=1)); one.start(); print(one.box, flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    with process.stdout:
        box = Path(process.stdout.readline().strip())
    left = remains.processes_of(box)
    assert len(left) >= 4, "slurmctld, slurmd, munged and the machines' own"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert remains.is_forsaken(box)
    assert remains.processes_of(box)
    other = Cluster(plan=Shape(nodes=1, cpus=1))
    other.start()
    try:
        assert box not in remains.clusters(PARENT)
        assert not [pid for pid in left if Path(f"/proc/{pid}/root").exists()]
        assert not remains.is_forsaken(other.box)
        assert set(other.states().values()) == {"idle"}
    finally:
        other.stop()


def test_nodes_are_machines_of_their_own(cluster: Cluster) -> None:
    assert set(cluster.states()) == {"n1", "n2", "n3"}
    look = "hostname; ls /sys/class/net /dev/shm; ls -d /tmp/pytest-of-root 2>/dev/null; touch /tmp/mine; ls /tmp/mine"
    said = cluster.run(["srun", "-N3", "-l", "bash", "-c", look]).stdout.splitlines()
    for task in range(3):
        mine = [line.split(maxsplit=1)[1] for line in said if line.startswith(f"{task}: ") and line.split()[1:]]
        assert mine == [mine[0], "/dev/shm:", "/sys/class/net:", "eth0", "lo", "/tmp/mine"]
    assert not Path("/tmp/mine").exists()


def test_cores_memory_and_gpus_are_constrained(cluster: Cluster) -> None:
    probe = (
        "import os, errno\n"
        "print(len(os.sched_getaffinity(0)))\n"
        "line = [l for l in open('/proc/self/cgroup') if ':memory:' in l][0].strip().split(':')[2]\n"
        "print(min(int(open(f'/sys/fs/cgroup/memory{up}/memory.limit_in_bytes').read()) for up in (line, os.path.dirname(line), os.path.dirname(os.path.dirname(line)))) >> 20)\n"
        f"paths = ['{cluster.box}/dev/nvidia%d' % n for n in range(4)]\n"
        "def probe(path):\n"
        "    try: os.open(path, os.O_RDWR)\n"
        "    except OSError as error: return errno.errorcode[error.errno]\n"
        "print([probe(path) for path in paths], os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    said = cluster.run(["srun", "-n1", "--mem=150", "--gres=gpu:1", sys.executable, "-c", probe]).stdout.splitlines()
    assert said == ["1", "150", "['ENXIO', 'EPERM', 'EPERM', 'EPERM'] 0"]


@pytest.mark.fault
def test_a_crash_takes_all_of_a_node_and_it_comes_back(cluster: Cluster, shared: Path) -> None:
    step = ["srun", "-w", "n3", "--mem=100", "bash", "-c", f"touch {shared}/runs; sleep 1000"]
    with subprocess.Popen(
        cluster.command(step), stderr=subprocess.DEVNULL
    ):  # its exit code may be 0: Slurm is like that
        try:
            wait_until((shared / "runs").exists)
            network = os.readlink(f"/proc/{cluster.pid('n3')}/ns/net")
            inside = [pid for pid in remains.processes_of(cluster.box) if _network_of(pid) == network]
            assert len(inside) >= 4
            cluster.crash("n3")
            wait_until(lambda: not any(_network_of(pid) == network for pid in inside))
        finally:
            # Slurm itself takes 30 s to notice
            cluster.run(["scontrol", "update", "nodename=n3", "state=down", "reason=crash"])
    cluster.start_node("n3")
    cluster.wait_until_idle()
    assert cluster.run(["srun", "-w", "n3", "--mem=100", "hostname"]).stdout == "n3\n"


def _network_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def test_by_hand(tmp_path: Path) -> None:
    """The command line refuses what it doesn't know, and says how it is used."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.slurm.cluster", "crash", "n9"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "python -m tests.slurm.cluster start" in done.stderr


@pytest.mark.fault
@pytest.mark.usefixtures("slurm_here")
def test_by_hand_from_start_to_stop() -> None:
    """Each command is a process of its own; nothing is left: processes, mounts, networks, cgroups, files."""
    box = PARENT / remains.BY_HAND
    if box in remains.clusters(PARENT):
        pytest.skip(f"somebody works with {box}")

    def by_hand(*words: str) -> str:
        command = [sys.executable, "-m", "tests.slurm.cluster", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    before = traces()
    seen: set[int] = set()
    try:
        assert "'n3': 'idle'" in by_hand("start")
        seen |= remains.processes_of(box)
        assert sorted(by_hand("run", "srun", "-N3", "--mem=100", "hostname").split()) == ["n1", "n2", "n3"]
        networks = {
            name: os.readlink(f"/proc/{(box / 'run' / f'{name}.pid').read_text()}/ns/net") for name in ("n2", "n3")
        }
        by_hand("crash", "n3")
        wait_until(lambda: networks["n3"] not in {_network_of(pid) for pid in remains.processes_of(box)})
        assert networks["n2"] in {_network_of(pid) for pid in remains.processes_of(box)}, "the others are well"
        assert by_hand("run", "srun", "-w", "n2", "--mem=100", "hostname") == "n2\n"
        seen |= remains.processes_of(box)
    finally:
        by_hand("stop")
    assert len(seen) > 8
    assert not [pid for pid in seen if Path(f"/proc/{pid}/root").exists()]
    assert box not in remains.clusters(PARENT), "neither files nor cgroups"
    assert traces() == before
    assert not set(networks.values()) & {_network_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}


def test_a_start_that_fails_leaves_nothing(slurm_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.slurm.cluster.cluster.START_SECS", 0.0)
    cluster = Cluster(plan=Shape(nodes=1, cpus=1))
    with pytest.raises(NoCluster, match="did not come up"):
        cluster.start()
    assert not cluster.box.exists()
    assert cluster.box not in remains.clusters(PARENT)


def test_where_there_can_be_none_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in why_not()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "missing: slurmctld, slurmd, munged" in why_not()
    assert "apt-get install slurm-wlm" in why_not()


def test_one_started_by_hand_is_nobodys() -> None:
    assert not remains.is_forsaken(PARENT / remains.BY_HAND)
    assert remains.is_forsaken(PARENT / f"{remains.PREFIX}{os.getpid()}.{int(time.time())}.0")
