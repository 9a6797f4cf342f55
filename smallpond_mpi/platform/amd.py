"""The GPUs that this process may use on a machine with AMD's driver only: as its kernel driver (KFD) lists them, and as AMD's runtimes read their masks.

    all that the cgroup lets through ── ROCR_VISIBLE_DEVICES ─▶ what ROCr shows ── HIP_VISIBLE_DEVICES ─▶ what a program sees
                                        (indices, or UUIDs)                         (counts what ROCr shows)

Rules: https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html, and the comment on RvdFilter in ROCR-Runtime's core/inc/amd_filter_device.h.
A GPU's token is its UUID as ROCr makes it of the driver's unique_id: indices mean different GPUs in ranks whose cgroups or masks differ.
GPUs without one (before gfx9) have their index among those that the cgroup lets through.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from smallpond_mpi.execution.model import GpuSlot
from smallpond_mpi.platform import slurm
from smallpond_mpi.platform.topology import Topology

DRIVER = "/dev/kfd"
NODES = "/sys/class/kfd/kfd/topology/nodes"
ROCR = "ROCR_VISIBLE_DEVICES"
COUNTING = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
"""Masks of HIP and OpenCL, which count what ROCr shows; HIP reads the second where the first is not set."""


def visible_gpus(env: Mapping[str, str], topology: Topology, root: str = "") -> tuple[GpuSlot, ...]:
    """The GPUs of this process; none in a Slurm job that was given none."""
    rocr, hip = env.get(ROCR), _mask_of_hip(env)
    found: Sequence[GpuSlot] = devices(topology, root)
    if not found:  # the driver doesn't list them: what a mask names is all that is known
        named = rocr if rocr is not None else ",".join(slurm.gpu_indices(env) or ())
        if not named:
            named, hip = hip or "", None
        found = [GpuSlot(token) for each in named.split(",") if re.fullmatch(r"\d+|GPU-\w+", token := each.strip())]
    elif rocr is not None:
        found = select(found, rocr)
    elif slurm.is_job(env):
        found = _granted(found, env)
    return tuple(found if hip is None else select(found, hip))


def _mask_of_hip(env: Mapping[str, str]) -> str | None:
    """HIP's mask, or CUDA's, which HIP reads in its place; but Slurm gives one text to CUDA's and ROCr's, and means the same GPUs by both."""
    hip, cuda = (env.get(name) for name in COUNTING[:2])
    return hip if hip is not None or cuda == env.get(ROCR) else cuda


def _granted(found: Sequence[GpuSlot], env: Mapping[str, str]) -> Sequence[GpuSlot]:
    """What Slurm gave where it set no mask: all, if the job's cgroup shows the job's only, else by its indices."""
    granted = slurm.gpu_indices(env)
    count = env.get("SLURM_GPUS_ON_NODE", "") if granted is None else len(granted)
    if len(found) <= int(count or 0):
        return found
    return select(found, ",".join(granted)) if granted else ()


def select(found: Sequence[GpuSlot], mask: str) -> list[GpuSlot]:
    """What a mask leaves, in its order: indices and UUIDs (or their beginnings) up to the first that names none, several, or one that was named before."""
    chosen: list[GpuSlot] = []
    for entry in (part.strip() for part in mask.split(",")):
        if entry.isdigit():
            named = found[int(entry) : int(entry) + 1]
        else:
            uuid = re.fullmatch(r"GPU-\w+", entry, re.IGNORECASE)
            named = [slot for slot in found if uuid and slot.token.upper().startswith(entry.upper())]
        if len(named) != 1 or named[0] in chosen:
            break
        chosen += named
    return chosen


def devices(topology: Topology, root: str = "") -> list[GpuSlot]:
    """All that the cgroup lets through, in ROCr's order, each with the NUMA node that its bus says."""
    try:
        nodes = sorted(int(name) for name in os.listdir(root + NODES))
    except OSError:
        return []
    listed = [one for node in nodes if (one := _properties(f"{root}{NODES}/{node}/properties")).get("simd_count")]
    uuids = [f"GPU-{one['unique_id']:016x}" if one.get("unique_id") else "" for one in listed]
    times = Counter(uuids)
    return [
        GpuSlot(uuid if uuid and times[uuid] == 1 else str(index), _numa_node(one, topology, root))
        for index, (uuid, one) in enumerate(zip(uuids, listed, strict=True))
    ]


def _properties(path: str) -> dict[str, int]:
    """A node's properties; none of one that the cgroup hides."""
    try:
        with open(path) as file:
            pairs = [line.split() for line in file]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _numa_node(device: Mapping[str, int], topology: Topology, root: str) -> int | None:
    place = device.get("location_id", 0)
    bus = f"{device.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"
    try:
        with open(f"{root}/sys/bus/pci/devices/{bus}/numa_node") as file:
            node = int(file.read())
    except (OSError, ValueError):
        return None
    return node if node in set(topology.numa.values()) else None


def environment(tokens: Sequence[str]) -> dict[str, str]:
    """The variables that show exactly these GPUs to a process: ROCr is told which, the others count what it leaves."""
    return {ROCR: ",".join(tokens), **dict.fromkeys(COUNTING, ",".join(map(str, range(len(tokens)))))}
