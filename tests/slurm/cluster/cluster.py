"""A Slurm of several nodes on this one machine: real slurmctld, slurmd and munge, each node in namespaces of its own.

    this machine ── unshare ─▶ ctl (login node, switch, slurmctld, munged) ── unshare ─▶ n1, n2, n3 (slurmd; own network, /tmp, /dev/shm, cgroups)

A node is a network, UTS, IPC, mount, process and cgroup namespace below those of the login node, so the whole cluster dies with one process; killing a
node's process 1 is a loss of power. Nothing is made in the machine's own namespaces but cgroups and one directory, the *box*:
etc, log, state, run, and `shared`, which every machine of the cluster sees (everything else below /tmp is a node's own).
"""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from smallpond_mpi.platform.process import children_of, descendants_of, kill_quietly
from tests.slurm.cluster import remains, shape

PARENT = Path("/tmp")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare", "nsenter")
PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib/libpmix.so")
"""Slurm's PMIx plugin opens exactly this path; Debian has it in libpmix-dev."""
START_SECS = 30.0
NEEDED_CONTROLLERS = {"cpuset", "memory", "devices", "freezer", "cpuacct"}
_numbers = itertools.count()


class NoCluster(Exception):
    """The cluster does not come up; the message has the ends of its logs."""


def why_not() -> str:
    """Why this machine can't have a cluster, in words; empty if it can."""
    if os.geteuid() != 0:
        return "a test cluster needs root: it makes namespaces, devices and cgroups"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or not PMIX.exists():
        return f"missing: {', '.join(missing) or PMIX}; apt-get install slurm-wlm munge libpmix2 libpmix-dev iproute2"
    absent = NEEDED_CONTROLLERS - set(remains.controllers())
    if absent:
        return f"no cgroup v1 hierarchies of {', '.join(sorted(absent))}"
    tried = subprocess.run(
        ["unshare", *shape.NAMESPACES.split(), "mount", "-t", "sysfs", "sysfs", "/sys"], capture_output=True, text=True
    )
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else ""


class Cluster:
    """One cluster. Started by `start`, or found running in its box by another process."""

    def __init__(self, box: Path | None = None, plan: shape.Shape | None = None) -> None:
        self.box = box or remains.box_of_this_process(PARENT, next(_numbers))
        self.shape = plan or shape.Shape(cpus=min(2, os.cpu_count() or 1))
        self.shared = self.box / "shared"
        self._spawned: list[subprocess.Popen[bytes]] = []

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.shape.names

    def start(self, share: Sequence[Path] = ()) -> None:
        """Bring it up until all nodes are idle: about two seconds. `share`: more directories that the nodes see as this machine does.

        What earlier clusters have left whose makers are gone is removed first, and one in the same box.

        Raises:
            NoCluster: it doesn't come up.
        """
        for other in remains.clusters(PARENT):
            if remains.is_forsaken(other) or other == self.box:
                remains.destroy(other)
        try:
            self._bring_up(share)
        except BaseException:
            self.stop()
            raise

    def _bring_up(self, share: Sequence[Path]) -> None:
        self._write_files([self.shared, self.box, *_installation(), *share])
        remains.make_cgroups(self.box)
        joins = [f"echo 0 > {path}/cgroup.procs" for path in remains.cgroups_of(self.box)]
        launch = "; ".join([*joins, f"exec unshare {shape.NAMESPACES} bash {self.box}/run/{shape.CONTROLLER}.sh"])
        outer = self._spawn(["bash", "-c", launch], shape.CONTROLLER)
        self._wait_for(lambda: (self.box / "run" / f"{shape.CONTROLLER}.ready").exists(), "the login node")
        self._remember(shape.CONTROLLER, children_of(outer)[0])
        self._spawn([*self._enter(), "bash", str(self.box / "run" / "daemons.sh")], "slurmctld")
        for name in self.nodes:
            self.start_node(name)
        self.wait_until_idle()

    def _write_files(self, shared: Sequence[Path]) -> None:
        for name in ("etc", "log", "run", "state", "spool", "munge", "dev", "shared", "nodetmp"):
            (self.box / name).mkdir(parents=True)
        self.box.chmod(0o755)
        key = self.box / "munge" / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        for gpu in range(shape.GPUS_PER_NODE):
            device = self.box / "dev" / f"nvidia{gpu}"
            os.mknod(device, 0o020666, os.makedev(shape.NVIDIA_MAJOR, gpu))
            device.chmod(0o666)
        controllers = remains.controllers()
        scripts = {
            shape.CONTROLLER: shape.controller_script(self.box, controllers),
            "daemons": shape.daemons_script(self.box),
        }
        for name in self.nodes:
            scripts[name] = shape.node_script(name, self.box, controllers, _outermost(shared))
            scripts[f"enter-{name}"] = shape.entry_script(name, self.box, controllers)
        files = {
            "etc/hosts": shape.hosts(self.shape),
            "etc/slurm.conf": shape.slurm_conf(self.box, self.shape),
            "etc/gres.conf": shape.gres_conf(self.box),
            "etc/cgroup.conf": shape.CGROUP_CONF,
            **{f"run/{name}.sh": text for name, text in scripts.items()},
        }
        for path, text in files.items():
            (self.box / path).write_text(text)

    def start_node(self, name: str) -> None:
        """Switch a node on: its first start, or after `crash`."""
        up = self.box / "run" / f"{name}.up"
        up.unlink(missing_ok=True)
        outer = self._spawn([*self._enter(), "bash", str(self.box / "run" / f"enter-{name}.sh")], name)
        self._wait_for(up.exists, f"node {name}")
        # nsenter → unshare → process 1 of the node
        node = children_of(children_of(outer)[0])[0]
        self._remember(name, node)
        network = ["nsenter", f"--net=/proc/{self.pid(shape.CONTROLLER)}/ns/net", "ip", "link"]
        subprocess.run(
            [*network, "del", f"to-{name}"], capture_output=True
        )  # the kernel takes a dead node's cable away, but not at once
        cable = ["add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(node)]
        subprocess.run([*network, *cable], check=True)
        subprocess.run([*network, "set", f"to-{name}", "master", "br0", "up"], check=True)

    def crash(self, name: str) -> None:
        """Loss of power: everything on the node is gone at once."""
        kill_quietly([self.pid(name)])

    def stop(self) -> None:
        """End everything and remove all files."""
        remains.destroy(self.box)
        for process in self._spawned:  # they were this process's children, and end with what they had started
            process.wait()

    def pid(self, name: str) -> int:
        """Process 1 of a machine, by this machine's ids."""
        return int((self.box / "run" / f"{name}.pid").read_text())

    def command(self, args: Sequence[str]) -> list[str]:
        """A command line that runs `args` on the login node, in this working directory."""
        return [*self._enter(), "env", f"SLURM_CONF={self.box}/etc/slurm.conf", *args]

    def _enter(self) -> list[str]:
        directory = os.getcwd()
        return ["nsenter", "--target", str(self.pid(shape.CONTROLLER)), "--all", f"--wd={directory}", "--"]

    def run(
        self, args: Sequence[str], *, timeout: float = 60.0, env: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node to its end; past `timeout` it is killed and TimeoutExpired raised.

        Raises:
            AssertionError: it failed, and `check` is true.
        """
        process = subprocess.Popen(
            self.command(args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_quietly(descendants_of(process.pid))
            process.communicate()
            raise
        assert not check or process.returncode == 0, f"{' '.join(args)}: {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(list(args), process.returncode, out, err)

    def states(self) -> dict[str, str]:
        """Node → its state in a word, as sinfo gives it; empty while the controller doesn't answer."""
        done = self.run(["sinfo", "-h", "-N", "-o", "%N %t"], check=False, timeout=30)
        return dict(line.split() for line in done.stdout.splitlines()) if done.returncode == 0 else {}

    def wait_until_idle(self) -> None:
        """Raises NoCluster after START_SECS."""
        self._wait_for(
            lambda: set(self.states().values()) == {"idle"} and len(self.states()) == len(self.nodes), "Slurm"
        )

    def clear(self) -> None:
        """End the jobs that are left, so that the next ones find all nodes idle. Raises NoCluster after START_SECS."""
        if left := self.run(["squeue", "-h", "-o", "%A"]).stdout.split():
            self.run(["scancel", "--signal=KILL", "--full", *left], check=False)  # at once; a job may be waiting still
            self.run(["scancel", *left], check=False)
            self.wait_until_idle()

    def _spawn(self, args: Sequence[str], name: str) -> int:
        """Start what outlives this process; its output goes to the log."""
        with open(self.box / "log" / f"{name}.start", "ab") as log:
            process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._spawned.append(process)
        return process.pid

    def _remember(self, name: str, pid: int) -> None:
        (self.box / "run" / f"{name}.pid").write_text(str(pid))

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECS
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"-- {path}\n{path.read_text(errors='replace')[-2000:]}"
                    for path in sorted((self.box / "log").iterdir())
                )
                raise NoCluster(f"{what} did not come up in {START_SECS:.0f} s\n{logs}")
            time.sleep(0.02)


def _installation() -> list[Path]:
    """What ranks need to see of this machine: this interpreter's environments and the working tree."""
    return [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[3]]


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Without those that lie in another of them."""
    unique = sorted({path.resolve() for path in paths})
    return [path for path in unique if not any(path != other and path.is_relative_to(other) for other in unique)]
