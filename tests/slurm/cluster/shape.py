"""What the test cluster looks like: the files that Slurm reads, and the shell scripts that a namespace begins with. Pure: values in, text out."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONTROLLER = "ctl"
NETWORK = "10.77.0"
GPUS_PER_NODE = 4
NVIDIA_MAJOR = 195


@dataclass(frozen=True, slots=True)
class Shape:
    """Nodes n1, n2, … of equal shape. Every node claims the same real CPUs: cpusets and affinity are real, speed is not."""

    nodes: int = 3
    cpus: int = 2
    memory_mb: int = 4000

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes' host names."""
        return tuple(f"n{number}" for number in range(1, self.nodes + 1))


def address(name: str) -> str:
    """IPv4 address of a machine of the cluster."""
    return f"{NETWORK}.1" if name == CONTROLLER else f"{NETWORK}.{10 + int(name[1:])}"


def hosts(shape: Shape) -> str:
    """/etc/hosts of every machine: the launchers of both MPIs resolve host names."""
    return "127.0.0.1 localhost\n" + "".join(f"{address(name)} {name}\n" for name in (CONTROLLER, *shape.names))


def slurm_conf(box: Path, shape: Shape) -> str:
    """Cores bound, memory constrained, consumable GPUs; times as short as Slurm allows. Job ends are told in log/jobcomp.txt."""
    last = shape.nodes
    return f"""\
ClusterName=box
SlurmctldHost={CONTROLLER}({address(CONTROLLER)})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={box}/munge/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={box}/state
SlurmdSpoolDir={box}/spool/%n
SlurmctldLogFile={box}/log/slurmctld.log
SlurmdLogFile={box}/log/slurmd.%n.log
SlurmctldPidFile={box}/run/slurmctld.pid
SlurmdPidFile={box}/run/slurmd.%n.pid
SlurmctldDebug=info
SlurmdDebug=verbose
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup,task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=200
MpiDefault=none
SwitchType=switch/none
GresTypes=gpu
JobAcctGatherType=jobacct_gather/cgroup
JobAcctGatherFrequency=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={box}/log/jobcomp.txt
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2,sched_min_interval=0
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
KillWait=10
MinJobAge=600
MessageTimeout=10
OverTimeLimit=0
UnkillableStepTimeout=20
RebootProgram=/bin/true
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=n[1-{last}] NodeAddr={NETWORK}.[11-{10 + last}] CPUs={shape.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={shape.cpus} ThreadsPerCore=1 RealMemory={shape.memory_mb} Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def gres_conf(box: Path) -> str:
    """Character devices that nobody drives: opening one fails with ENXIO where Slurm allows it, with EPERM where it doesn't."""
    return f"AutoDetect=off\nName=gpu File={box}/dev/nvidia[0-{GPUS_PER_NODE - 1}]\n"


CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=yes
ConstrainCores=yes
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
AllowedSwapSpace=0
ConstrainDevices=yes
"""

NAMESPACES = "--net --uts --ipc --mount --pid --cgroup --fork --kill-child --mount-proc"


def _machine(name: str, box: Path, controllers: Sequence[str]) -> list[str]:
    """What every machine does first, in its own namespaces: name, hosts, and a /sys that shows its own network and cgroups only."""
    return [
        "set -e",
        f"hostname {name}",
        f"mount --bind {box}/etc/hosts /etc/hosts",
        "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",  # equal process ids in two machines would meet in the names of segments
        "mount -t sysfs sysfs /sys",
        "mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup",
        *(
            f"mkdir /sys/fs/cgroup/{each}; mount -t cgroup -o {each} cgroup /sys/fs/cgroup/{each}"
            for each in controllers
        ),
        "ip link set lo up",
    ]


def _reap() -> str:
    """Process 1 of a machine takes in orphans until it is killed."""
    return "while :; do sleep 1000000 & wait $!; done"


def controller_script(box: Path, controllers: Sequence[str]) -> str:
    """The login node: it holds the switch, and the controller and munge are started in it."""
    return "\n".join(
        [
            *_machine(CONTROLLER, box, controllers),
            f"ip link add br0 type bridge; ip addr add {address(CONTROLLER)}/24 dev br0; ip link set br0 up",
            f"touch {box}/run/{CONTROLLER}.ready",
            _reap(),
        ]
    )


def daemons_script(box: Path) -> str:
    """munged and slurmctld. One munged serves all nodes: its socket is a path."""
    munge = f"{box}/munge"
    return (
        f"munged --force --key-file={munge}/munge.key --socket={munge}/munge.sock --pid-file={munge}/munged.pid "
        f"--log-file={box}/log/munged.log --seed-file={munge}/seed --num-threads=4\n"
        f"exec slurmctld -D -i -f {box}/etc/slurm.conf\n"
    )


def entry_script(name: str, box: Path, controllers: Sequence[str]) -> str:
    """Run in the login node's namespaces: a cgroup for the node, then the node's own namespaces."""
    joins = [
        f"mkdir -p /sys/fs/cgroup/{each}/{name}; echo 0 > /sys/fs/cgroup/{each}/{name}/cgroup.procs"
        for each in controllers
    ]
    return "\n".join(["set -e", *joins, f"exec unshare {NAMESPACES} bash {box}/run/{name}.sh"])


def node_script(name: str, box: Path, controllers: Sequence[str], shared: Sequence[Path]) -> str:
    """A node: /tmp is its own (Slurm's PMIx plugin needs that, and a user's data root in /tmp must not look shared), less what is `shared`."""
    private = f"{box}/nodetmp/{name}"
    below = [path.relative_to("/tmp") for path in shared if path.is_relative_to("/tmp")]
    binds = [
        f"mkdir -p {private}/{at}; mount --rbind {shlex.quote(f'/tmp/{at}')} {private}/{shlex.quote(str(at))}"
        for at in below
    ]
    return "\n".join(
        [
            *_machine(name, box, controllers),
            f"mkdir -p {private}; chmod 1777 {private}; mount --bind {private} {private}",
            *binds,
            f"mount --rbind {private} /tmp; cd /",
            f"touch {box}/run/{name}.up",
            "until [ -e /sys/class/net/eth0 ]; do sleep 0.02; done",
            f"ip addr add {address(name)}/24 dev eth0; ip link set eth0 up",
            f"export SLURM_CONF={box}/etc/slurm.conf",
            f"slurmd -D -N {name} > {box}/log/slurmd.{name}.out 2>&1 &",
            _reap(),
        ]
    )
