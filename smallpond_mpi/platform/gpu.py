"""The NVIDIA GPUs that this process may use, as NVML and sysfs tell; none where there is no driver."""

import os
from collections.abc import Mapping

from smallpond_mpi.execution.model import GpuSlot

DRIVER = "/proc/driver/nvidia/version"


def visible_gpus(env: Mapping[str, str], sys: str = "/sys") -> tuple[GpuSlot, ...]:
    """GPUs by UUID, less those that CUDA_VISIBLE_DEVICES hides, each with its NUMA node if the kernel knows it."""
    if not os.path.exists(DRIVER) and not os.path.exists("/dev/nvidiactl"):
        return ()
    import pynvml  # 20 ms, on machines that have a GPU only

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return _by_mask_alone(env)
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            bus = _text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
            found.append(GpuSlot(_text(pynvml.nvmlDeviceGetUUID(handle)), _numa_node(bus, sys)))
    finally:
        pynvml.nvmlShutdown()
    return select(found, env.get("CUDA_VISIBLE_DEVICES"))


def select(found: list[GpuSlot], mask: str | None) -> tuple[GpuSlot, ...]:
    """What a mask leaves. Its entries are indices or UUIDs (or their beginnings); others (MIG) are taken as they are, as CUDA does until the first that it can't resolve."""
    if mask is None:
        return tuple(found)
    chosen: list[GpuSlot] = []
    for entry in (part.strip() for part in mask.split(",")):
        if entry.isdigit():
            if int(entry) >= len(found):
                break
            chosen.append(found[int(entry)])
        elif entry.startswith("MIG"):
            chosen.append(GpuSlot(entry))
        else:
            match = [gpu for gpu in found if entry and gpu.token.startswith(entry)]
            if len(match) != 1:
                break
            chosen.append(match[0])
    return tuple(dict.fromkeys(chosen))


def _by_mask_alone(env: Mapping[str, str]) -> tuple[GpuSlot, ...]:
    mask = env.get("CUDA_VISIBLE_DEVICES", "")
    return tuple(GpuSlot(part.strip()) for part in mask.split(",") if part.strip() not in ("", "-1", "NoDevFiles"))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _numa_node(bus_id: str, sys: str) -> int | None:
    domain, _, rest = bus_id.lower().partition(":")
    try:
        with open(f"{sys}/bus/pci/devices/{domain[-4:]}:{rest}/numa_node") as file:
            node = int(file.read())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
