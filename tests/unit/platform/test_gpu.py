"""Which GPUs a process may use, asked of a library that answers as NVML, and once of the real one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallpond_mpi.execution.model import GpuSlot, Rank
from smallpond_mpi.platform.discover import local_rank, read_topology
from smallpond_mpi.platform.gpu import Device, environment, select, shown, visible_gpus
from tests.fake_nvml import NO_COMPILER, Gpu, build
from tests.unit.platform import machines

# Of a GPU cut into MIG instances, names as in https://docs.nvidia.com/datacenter/tesla/mig-user-guide/mig-device-names.html (MIG-UUID, before R470 MIG-GPU-UUID/GI/CI);
# the ids themselves are made up for the test.
FOUND = [
    Device(GpuSlot("GPU-aaaa")),
    Device(GpuSlot("GPU-bbbb")),
    Device(GpuSlot("GPU-abcd", 1), (GpuSlot("MIG-1", 1), GpuSlot("MIG-2", 1))),
]


@pytest.mark.parametrize(
    ("mask", "tokens"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["GPU-bbbb"]),
        ("1,0", ["GPU-bbbb", "GPU-aaaa"]),
        ("0,7,1", ["GPU-aaaa"]),
        ("GPU-b", ["GPU-bbbb"]),
        ("GPU-a", []),
        ("0, 0", ["GPU-aaaa"]),
        ("2,0", ["MIG-1", "MIG-2", "GPU-aaaa"]),
        ("MIG-2", ["MIG-2"]),
        ("MIG-unknown", ["MIG-unknown"]),
        ("MIG-GPU-abcd/1/0", ["MIG-GPU-abcd/1/0"]),
    ],
)
def test_the_mask(mask: str, tokens: list[str]) -> None:
    assert [gpu.token for gpu in select(FOUND, mask)] == tokens


def test_instances_are_where_their_gpu_is() -> None:
    assert select(FOUND, "MIG-2") == (GpuSlot("MIG-2", 1),)
    assert select(FOUND, "MIG-GPU-abcd/1/0") == (GpuSlot("MIG-GPU-abcd/1/0", 1),)
    assert select(FOUND, "MIG-unknown") == (GpuSlot("MIG-unknown", None),)


def test_what_a_child_sees(tmp_path: Path) -> None:
    nothing = environment((), str(tmp_path))
    assert nothing["CUDA_VISIBLE_DEVICES"] == nothing["ROCR_VISIBLE_DEVICES"] == nothing["HIP_VISIBLE_DEVICES"] == "-1"
    two = environment(("GPU-a", "MIG-b"), str(tmp_path))
    assert two["CUDA_VISIBLE_DEVICES"] == "GPU-a,MIG-b"
    assert (shown(two, str(tmp_path)), shown(nothing, str(tmp_path))) == (["GPU-a", "MIG-b"], [])


LOOK = (
    "import os, sys, json; from smallpond_mpi.platform.discover import local_rank; "
    "print(json.dumps([[gpu.token, gpu.numa_node] for gpu in local_rank(0, os.environ, sys.argv[1]).gpus]))"
)
DGX = [
    Gpu(
        f"GPU-{index}", f"00000000:{bus.upper()}", mig=["MIG-3a", "MIG-3b"] if index == 3 else () if index < 6 else None
    )
    for index, bus in enumerate(machines.DGX_BUSES)
]


def look(env: dict[str, str], root: str) -> list[tuple[str, int | None]]:
    """What a fresh process sees with these variables and no others of a launcher."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CUDA", "ROCR", "HIP"))}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, root], env={**clean, **env}, capture_output=True, text=True, check=True
    )
    return [(token, node) for token, node in json.loads(done.stdout)]


@pytest.mark.skipif(NO_COMPILER, reason="no C compiler for the library that answers as NVML")
@pytest.mark.parametrize(
    ("env", "seen"),
    [
        (
            {},
            [
                *[("GPU-0", 3), ("GPU-1", 3), ("GPU-2", 1), ("MIG-3a", 1), ("MIG-3b", 1)],
                *[("GPU-4", 7), ("GPU-5", 7), ("GPU-6", 5), ("GPU-7", 5)],
            ],
        ),
        ({"CUDA_VISIBLE_DEVICES": "6,4"}, [("GPU-6", 5), ("GPU-4", 7)]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "MIG-3b"}, [("MIG-3b", 1)]),
        ({"SLURM_JOB_ID": "7"}, []),  # a job without GPUs on a node where nothing hides them
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "4,5", "SLURM_STEP_GPUS": "5"}, [("GPU-5", 7)]),
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2"}, []),  # which two of eight, nobody says
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "1"}, [("GPU-1", 3)]),
    ],
)
def test_eight_gpus_of_a_dgx(env: dict[str, str], seen: list[tuple[str, int]], tmp_path: Path) -> None:
    root = machines.dgx_a100()
    root.files["/dev/nvidiactl"] = ""
    assert look({**build(tmp_path / "lib", DGX), **env}, root.write(tmp_path / "root")) == seen


@pytest.mark.skipif(NO_COMPILER, reason="no C compiler for the library that answers as NVML")
def test_a_gpu_whose_bus_does_not_say_its_node(tmp_path: Path) -> None:
    """Grace Hopper: PCI says -1, or the node of the GPU's own memory; NVML knows the CPUs."""
    machine = machines.grace_hopper()
    machine.files["/dev/nvidiactl"] = ""
    gpus = [
        Gpu(f"GPU-{index}", f"0000{bus.upper()}", cpus=range(index * 72, index * 72 + 72), mig=None)
        for index, bus in enumerate(machines.GRACE_BUSES)
    ]
    blind = [Gpu("GPU-blind", "00000000:01:00.0", mig=None)]
    seen = look(build(tmp_path / "lib", gpus + blind), machine.write(tmp_path / "root"))
    assert seen == [("GPU-0", 0), ("GPU-1", 1), ("GPU-2", 2), ("GPU-3", 3), ("GPU-blind", None)]


@pytest.mark.skipif(NO_COMPILER, reason="no C compiler for the library that answers as NVML")
def test_what_a_jobs_cgroup_hides_is_not_there(tmp_path: Path) -> None:
    """Two of eight device files are there: NVML shows these, and indices count from 0 among them, as Slurm's mask does."""
    files = [tmp_path / f"nvidia{index}" for index in range(8)]
    for index in (2, 3):
        files[index].touch()
    gpus = [Gpu(f"GPU-{index}", "00000000:01:00.0", str(file)) for index, file in enumerate(files)]
    machine = machines.laptop()
    lib, root = build(tmp_path / "lib", gpus), machine.write(tmp_path / "root")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "2,3"}
    assert look({**lib, **job, "CUDA_VISIBLE_DEVICES": "0,1"}, root) == [("GPU-2", None), ("GPU-3", None)]
    assert look({**lib, **job}, root) == [("GPU-2", None), ("GPU-3", None)]


@pytest.mark.skipif(NO_COMPILER, reason="no C compiler for the library that answers as NVML")
def test_a_gpu_that_is_lost_costs_no_job(tmp_path: Path) -> None:
    machine = machines.laptop()
    machine.files["/dev/nvidiactl"] = ""
    gpus = [Gpu("GPU-0", "lost"), Gpu("GPU-1", "00000000:02:00.0")]
    assert look(build(tmp_path / "lib", gpus), machine.write(tmp_path / "root")) == [("GPU-1", None)]


@pytest.mark.skipif(NO_COMPILER, reason="no C compiler for the library that answers as NVML")
def test_an_instance_that_is_another_jobs_costs_no_job(tmp_path: Path) -> None:
    machine = machines.laptop()
    machine.files["/dev/nvidiactl"] = ""
    gpus = [Gpu("GPU-0", "00000000:01:00.0", mig=["hidden", "MIG-b"]), Gpu("GPU-1", "00000000:02:00.0")]
    assert look(build(tmp_path / "lib", gpus), machine.write(tmp_path / "root")) == [("MIG-b", None), ("GPU-1", None)]


def test_masks_where_there_is_no_nvml(tmp_path: Path) -> None:
    machine = machines.laptop()
    root = machine.write(tmp_path)
    assert look({"CUDA_VISIBLE_DEVICES": "0,1"}, root) == [], "a mask alone makes no GPU"
    assert look({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"}, root) == [("0", None), ("1", None)]


@pytest.mark.gpu
@pytest.mark.skipif(not os.path.exists("/dev/nvidiactl"), reason="no NVIDIA GPU here")
def test_the_real_nvml() -> None:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    found = visible_gpus({}, read_topology(()))
    assert found
    assert all(gpu.token in listed for gpu in found)
    assert local_rank(Rank(0), {"CUDA_VISIBLE_DEVICES": "0"}).gpus == found[:1]
