"""The GPUs that this process may use: what Slurm or a mask grants, as NVML and sysfs know it. (Of AMD's: `amd`.)

A GPU is named by an opaque token for CUDA_VISIBLE_DEVICES: its UUID (or that of a MIG instance) wherever NVML answers. Inside a job's cgroup indices are
numbered anew, so that an index means different GPUs in two ranks of one node; UUIDs don't.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smallpond_mpi.execution.model import GpuSlot
from smallpond_mpi.platform import amd, slurm
from smallpond_mpi.platform.topology import Topology

MASKS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Variables by which GPUs are hidden; the first that is set counts. Slurm sets the first two alike, where it sets any."""
NO_GPUS = ("", "-1", "NoDevFiles")
NVIDIA_SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidiactl")
BITS_PER_WORD = 64


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as NVML lists it. Where it is cut into MIG instances only these can be used."""

    slot: GpuSlot
    instances: tuple[GpuSlot, ...] = ()

    @property
    def usable(self) -> tuple[GpuSlot, ...]:
        return self.instances or (self.slot,)


def mask_of(env: Mapping[str, str]) -> str | None:
    """What a mask leaves visible, None without one."""
    return next((env[name] for name in MASKS if name in env), None)


def visible_gpus(env: Mapping[str, str], topology: Topology, root: str = "") -> tuple[GpuSlot, ...]:
    """The GPUs of this process, each with its NUMA node where that is known; none in a Slurm job that was given none."""
    if _is_amd(root):
        return amd.visible_gpus(env, topology, root)
    mask, granted = mask_of(env), slurm.gpu_indices(env)
    if (mask is None and granted == ()) or (mask is not None and mask.strip() in NO_GPUS):
        return ()
    devices = _nvml_devices(topology, root) if mask or granted or _has_nvidia(root) else None
    if devices is None:
        # no driver: a mask of the user's alone is no proof that there is a GPU, Slurm's word is
        given = mask.split(",") if mask is not None else list(granted or ())
        known = granted or slurm.is_job(env)
        return tuple(GpuSlot(token) for each in given if (token := each.strip()) not in NO_GPUS) if known else ()
    return select(devices, mask) if mask is not None else select_granted(devices, granted, env)


def select(devices: Sequence[Device], mask: str) -> tuple[GpuSlot, ...]:
    """What a mask leaves, read as CUDA reads it: indices or UUIDs (or their beginnings) up to the first that can't be resolved. Tokens of MIG
    instances that NVML doesn't tell are taken as they are.
    """
    chosen: list[GpuSlot] = []
    for entry in (part.strip() for part in mask.split(",")):
        found = _resolve(devices, entry)
        if not found:
            break
        chosen += found
    return tuple(dict.fromkeys(chosen))


def _resolve(devices: Sequence[Device], entry: str) -> tuple[GpuSlot, ...]:
    if entry.isdigit():
        return devices[int(entry)].usable if int(entry) < len(devices) else ()
    if entry.startswith("MIG-"):
        known = [slot for device in devices for slot in device.instances if slot.token == entry]
        parent = [device.slot for device in devices if entry.startswith(f"MIG-{device.slot.token}/")]
        return (known[0] if known else GpuSlot(entry, parent[0].numa_node if parent else None),)
    matching = [device for device in devices if entry and device.slot.token.startswith(entry)]
    return matching[0].usable if len(matching) == 1 else ()


def select_granted(
    devices: Sequence[Device], granted: tuple[str, ...] | None, env: Mapping[str, str]
) -> tuple[GpuSlot, ...]:
    """Without a mask: what Slurm granted. Where the job's cgroup hides the others all that NVML shows is the job's, else the indices count."""
    count = len(granted) if granted is not None else env.get("SLURM_GPUS_ON_NODE", "")
    if not slurm.is_job(env) or len(devices) <= int(count or 0):
        return tuple(slot for device in devices for slot in device.usable)
    return select(devices, ",".join(granted)) if granted else ()


def environment(tokens: Sequence[str], root: str = "") -> dict[str, str]:
    """The variables that show exactly these GPUs to a process."""
    shown = ",".join(tokens) or "-1"
    masks = amd.environment(tokens) if tokens and _is_amd(root) else dict.fromkeys(MASKS, shown)
    return {**masks, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def shown(env: Mapping[str, str], root: str = "") -> list[str]:
    """The tokens of the GPUs that `environment` has shown to a process. Of AMD's only one of the masks has them, the others count."""
    mask = env.get(amd.ROCR if _is_amd(root) else MASKS[0], "")
    return [token for token in mask.split(",") if token not in NO_GPUS]


def _is_amd(root: str) -> bool:
    """Whether AMD's is the only driver here."""
    return os.path.exists(root + amd.DRIVER) and not _has_nvidia(root)


def _has_nvidia(root: str) -> bool:
    return any(os.path.exists(root + path) for path in NVIDIA_SIGNS)


def _nvml_devices(topology: Topology, root: str) -> list[Device] | None:
    """None where there is no NVML."""
    import pynvml  # 20 ms, on machines that have a GPU only

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return list(_devices(pynvml, topology, root))
    finally:
        pynvml.nvmlShutdown()


def _devices(nvml: Any, topology: Topology, root: str) -> Iterator[Device]:
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(nvml.nvmlDeviceGetUUID(handle))
            bus = _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
        except nvml.NVMLError_NoPermission:  # hidden by the job's cgroup
            continue
        except nvml.NVMLError as error:  # fell off the bus, say: a job that needs no GPU goes on without it
            sys.stderr.write(f"smallpond_mpi: GPU {index} of {os.uname().nodename} is left out: {error}\n")
            continue
        node = _numa_node(nvml, handle, bus, topology, root)
        yield Device(GpuSlot(uuid, node), tuple(GpuSlot(token, node) for token in _instances(nvml, handle)))


def _instances(nvml: Any, handle: Any) -> Iterator[str]:
    """UUIDs of MIG instances, in the order in which CUDA counts them."""
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:  # a GPU that has no MIG
        return
    for index in range(most):
        try:
            yield _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
        except nvml.NVMLError:  # there are fewer, or this one is another job's
            continue


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _numa_node(nvml: Any, handle: Any, bus: str, topology: Topology, root: str) -> int | None:
    """The NUMA node of CPUs near this GPU: sysfs's word, if that node has CPUs (a GPU's own memory may be a node), else by NVML's CPU affinity."""
    with_cpus = set(topology.numa.values())
    domain, _, rest = bus.lower().partition(":")
    try:
        with open(f"{root}/sys/bus/pci/devices/{domain[-4:]}:{rest}/numa_node") as file:
            node = int(file.read())
    except (OSError, ValueError):
        node = -1
    if node in with_cpus:
        return node
    try:
        words = nvml.nvmlDeviceGetCpuAffinity(handle, max(topology.numa, default=0) // BITS_PER_WORD + 1)
    except nvml.NVMLError:
        return None
    near = [cpu for cpu in topology.numa if words[cpu // BITS_PER_WORD] >> cpu % BITS_PER_WORD & 1]
    return topology.node_of_all(near) if near else None
