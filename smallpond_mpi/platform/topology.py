"""Parsers of what the kernel tells about CPUs: their lists, cores and NUMA nodes. Pure: text in, values out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FAR = 255
"""Above every distance between NUMA nodes; firmware says it for nodes that can't reach each other."""


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Numbers of a list as in /sys (`0-3,8,10-11`), ascending."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))


def allowed_cpus(proc_status: str) -> tuple[int, ...]:
    """The affinity in a /proc/PID/status, which the kernel keeps within the cpuset."""
    for line in proc_status.splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            return parse_cpu_list(value)
    return ()


@dataclass(frozen=True, slots=True)
class Ticks:
    """Time of a CPU since the boot, in clock ticks: not idle, and all."""

    busy: int
    total: int


def cpu_ticks(proc_stat: str) -> dict[int, Ticks]:
    """CPU → its time, from /proc/stat. Waiting for a disk is idle; what a hypervisor gave to others is busy."""
    found = {}
    for line in proc_stat.splitlines():
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit():
            # user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user already
            times = [int(field) for field in fields[:8]]
            total = sum(times)
            found[int(name[3:])] = Ticks(total - sum(times[3:5]), total)
    return found


@dataclass(frozen=True, slots=True)
class Topology:
    """Where CPUs are. `numa`: CPU → NUMA node, for those of which the kernel says it; `siblings`: CPU → the hardware threads of its core;
    `distances`: (NUMA node, NUMA node) → what the firmware says of the way, 10 for none.
    """

    numa: Mapping[int, int] = field(default_factory=dict)
    siblings: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    distances: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def core(self, cpu: int) -> int:
        """A core is named by its first hardware thread."""
        return min(self.siblings.get(cpu, ()), default=cpu)

    def cores(self, cpus: Iterable[int]) -> list[tuple[int, ...]]:
        """These CPUs by core, neighbours beside each other: all of a NUMA node, then the next."""
        found: dict[tuple[int, int], list[int]] = {}
        for cpu in sorted(set(cpus)):
            core = self.core(cpu)
            found.setdefault((self.numa.get(core, -1), core), []).append(cpu)
        return [tuple(found[key]) for key in sorted(found)]

    def distance(self, node: int | None, cpus: Iterable[int]) -> int:
        """The shortest way from a NUMA node to one of these CPUs; FAR if nothing is known of it."""
        ends = {self.numa[cpu] for cpu in cpus if cpu in self.numa}
        if node is None or not ends:
            return FAR
        return 0 if node in ends else min(self.distances.get((node, end), FAR) for end in ends)

    def node_of_all(self, cpus: Iterable[int]) -> int | None:
        """The one NUMA node that all of these are of; None if they are of several, or of none that is known."""
        nodes = {self.numa.get(cpu) for cpu in cpus}
        return nodes.pop() if len(nodes) == 1 else None


def numa_of_cpus(cpu_lists: Mapping[int, str]) -> dict[int, int]:
    """CPU → NUMA node, from each node's cpulist. Nodes of memory alone (of a GPU, of CXL) have an empty one."""
    return {cpu: node for node, text in cpu_lists.items() for cpu in parse_cpu_list(text)}


def distances(texts: Mapping[int, str]) -> dict[tuple[int, int], int]:
    """From each node's distance file, which lists all nodes in ascending order."""
    nodes = sorted(texts)
    return {
        (node, other): int(way)
        for node in nodes
        for other, way in zip(nodes, texts[node].split(), strict=False)
        if way.isdigit()
    }
