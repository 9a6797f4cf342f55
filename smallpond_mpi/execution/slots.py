"""Which CPUs, which shares of which GPUs and how much memory of one rank an attempt gets: decided here, once, for everybody.

The scheduler asks (`fits`, `take`, `give`); the executor obeys the grant and asks nothing. Ranks of equal capacity share a `Layout`, so
that a fleet of 100,000 ranks keeps a few integers a rank, and equal grants are one object: a warm child belongs to one CPU mask, and
taking the lowest free CPUs first makes the same masks come back.
"""

from smallpond_mpi.execution.model import Capacity, Grant

GPU_UNITS = 1_000_000
"""Quotas are counted in millionths: whole numbers never add up to more than one GPU by rounding."""

RESERVE = 0.1
"""Share of a rank's memory that is never granted: watching a child's memory by polling races its allocations."""


def gpu_units(quota: float) -> int:
    """A quota in millionths of a GPU, rounded down so that n shares of 1/n always fit."""
    return int(quota * GPU_UNITS + 1e-6)


def usable_memory(capacity: Capacity) -> int:
    """What of a rank's memory may be granted, in bytes."""
    return capacity.memory_bytes - int(capacity.memory_bytes * RESERVE)


def lowest_bits(mask: int, count: int) -> int:
    """The `count` lowest bits that are set in `mask`."""
    if count == 1:
        return mask & -mask
    chosen = 0
    for _ in range(count):
        bit = mask & -mask
        chosen |= bit
        mask ^= bit
    return chosen


class Layout:
    """What all ranks of one capacity have in common. CPU masks are over positions in `capacity.cpus`, not over CPU numbers."""

    __slots__ = ("_grants", "_masks", "all_cpus", "capacity", "n_cpus", "node_masks", "usable_bytes")

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.n_cpus = len(capacity.cpus)
        self.all_cpus = (1 << self.n_cpus) - 1
        self.usable_bytes = usable_memory(capacity)
        nodes: dict[int | None, int] = {}
        for position in range(self.n_cpus):
            node = capacity.numa_nodes[position] if capacity.numa_nodes else None
            nodes[node] = nodes.get(node, 0) | 1 << position
        self.node_masks = nodes
        self._grants: dict[tuple[int, int, tuple[tuple[int, float], ...]], Grant] = {}
        self._masks: dict[tuple[int, ...], int] = {(): 0}

    def share_bytes(self, cpus: int) -> int:
        """The memory that goes with `cpus` CPUs for a task that names none."""
        return self.usable_bytes * min(cpus, self.n_cpus) // self.n_cpus if self.n_cpus else self.usable_bytes

    def mask_of(self, cpus: tuple[int, ...]) -> int:
        """The mask of CPU numbers that an earlier grant of this layout named."""
        return self._masks[cpus]

    def grant(self, mask: int, memory_bytes: int, gpus: tuple[tuple[int, float], ...]) -> Grant:
        """The one Grant object of these values."""
        key = (mask, memory_bytes, gpus)
        found = self._grants.get(key)
        if found is None:
            cpus = tuple(cpu for position, cpu in enumerate(self.capacity.cpus) if mask >> position & 1)
            nodes = [node for node, node_mask in self.node_masks.items() if node_mask & mask]
            found = Grant(cpus, memory_bytes, gpus, nodes[0] if len(nodes) == 1 else None)
            self._masks[cpus] = mask
            self._grants[key] = found
        return found


class Slots:
    """What is free on one rank."""

    __slots__ = ("free_bytes", "free_cpus", "free_gpus", "free_mask", "layout")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.free_mask = layout.all_cpus
        self.free_cpus = layout.n_cpus
        self.free_bytes = layout.usable_bytes
        self.free_gpus: list[int] | None = [GPU_UNITS] * len(layout.capacity.gpus) if layout.capacity.gpus else None

    def fits(self, cpus: int, memory_bytes: int, gpus: float) -> bool:
        """Whether `take` of the same would succeed now."""
        return (
            self.free_cpus >= cpus
            and self.free_bytes >= memory_bytes
            and (gpus == 0 or self._choose_gpus(gpus) is not None)
        )

    def take(self, cpus: int, memory_bytes: int, gpus: float) -> Grant:
        """Take what `fits` said is there."""
        quotas: tuple[tuple[int, float], ...] = ()
        near: int | None = None
        if gpus:
            chosen = self._choose_gpus(gpus)
            assert chosen is not None
            assert self.free_gpus is not None
            quotas = chosen
            for index, quota in quotas:
                self.free_gpus[index] -= gpu_units(quota)
            near = self._node_of(quotas)
        mask = self._choose_cpus(cpus, near)
        self.free_mask ^= mask
        self.free_cpus -= cpus
        self.free_bytes -= memory_bytes
        return self.layout.grant(mask, memory_bytes, quotas)

    def give(self, grant: Grant) -> None:
        """Put a grant back."""
        self.free_mask |= self.layout.mask_of(grant.cpus)
        self.free_cpus += len(grant.cpus)
        self.free_bytes += grant.memory_bytes
        for index, quota in grant.gpus:
            assert self.free_gpus is not None
            self.free_gpus[index] += gpu_units(quota)

    def is_idle(self) -> bool:
        """Whether nothing of this rank is granted."""
        return (
            self.free_mask == self.layout.all_cpus
            and self.free_bytes == self.layout.usable_bytes
            and (self.free_gpus is None or all(free == GPU_UNITS for free in self.free_gpus))
        )

    def _choose_cpus(self, count: int, near: int | None) -> int:
        """`count` free CPUs: beside the GPU if there are enough, else of the first NUMA node that has enough, else the lowest."""
        if near is not None:
            mask = self.free_mask & self.layout.node_masks.get(near, 0)
            if mask.bit_count() >= count:
                return lowest_bits(mask, count)
        if count > 1 and len(self.layout.node_masks) > 1:
            for node_mask in self.layout.node_masks.values():
                mask = self.free_mask & node_mask
                if mask.bit_count() >= count:
                    return lowest_bits(mask, count)
        return lowest_bits(self.free_mask, count)

    def _choose_gpus(self, gpus: float) -> tuple[tuple[int, float], ...] | None:
        """Whole GPUs (of one NUMA node if possible) and, for a fraction, the fullest other GPU that still has it. None: not there."""
        if self.free_gpus is None:
            return None
        n_whole, fraction = divmod(gpu_units(gpus), GPU_UNITS)
        untouched = [index for index, free in enumerate(self.free_gpus) if free == GPU_UNITS]
        if len(untouched) < n_whole:
            return None
        whole = self._of_one_node(untouched, n_whole)
        chosen = tuple((index, 1.0) for index in whole)
        if not fraction:
            return chosen
        room = [(free, index) for index, free in enumerate(self.free_gpus) if free >= fraction and index not in whole]
        if not room:
            return None
        return (*chosen, (min(room)[1], gpus - n_whole))

    def _of_one_node(self, untouched: list[int], count: int) -> list[int]:
        by_node: dict[int | None, list[int]] = {}
        for index in untouched:
            by_node.setdefault(self.layout.capacity.gpus[index].numa_node, []).append(index)
        enough = [(len(indices), indices) for indices in by_node.values() if len(indices) >= count]
        return (min(enough)[1] if enough else untouched)[:count]

    def _node_of(self, quotas: tuple[tuple[int, float], ...]) -> int | None:
        nodes = {self.layout.capacity.gpus[index].numa_node for index, _ in quotas}
        return nodes.pop() if len(nodes) == 1 else None
