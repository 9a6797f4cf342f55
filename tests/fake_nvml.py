"""Builds the library that answers as libnvidia-ml (fake_nvml.c), with a list of GPUs."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NO_COMPILER = shutil.which("cc") is None


@dataclass(frozen=True, slots=True)
class Gpu:
    """`uuid` may hold %h for the host's name. `mig`: the UUIDs of its instances, None if it can't have any; `cpus`: those near it, None if NVML can't tell."""

    uuid: str
    bus: str
    file: str = "-"
    cpus: Sequence[int] | None = None
    mig: Sequence[str] | None = ()

    def line(self) -> str:
        affinity = "-"
        if self.cpus is not None:
            mask = sum(1 << cpu for cpu in self.cpus)
            affinity = ",".join(f"{mask >> at & (1 << 64) - 1:x}" for at in range(0, max(1, mask.bit_length()), 64))
        mig = "none" if self.mig is None else ",".join(self.mig) or "-"
        return f"{self.uuid} {self.bus} {self.file} {affinity} {mig}\n"


def build(directory: Path, gpus: Sequence[Gpu]) -> dict[str, str]:
    """The variables with which a process finds it in place of the real one."""
    directory.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_suffix(".c")
    library = directory / "libnvidia-ml.so.1"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    (directory / "devices.txt").write_text("".join(gpu.line() for gpu in gpus))
    return {"LD_LIBRARY_PATH": str(directory)}
