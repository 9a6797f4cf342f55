"""Which of AMD's GPUs a process may use, over a tree of the driver's as `machines` makes it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from smallpond_mpi.execution.model import GpuSlot, Rank
from smallpond_mpi.platform.binding import divide_gpus
from smallpond_mpi.platform.discover import local_rank
from smallpond_mpi.platform.gpu import environment, shown
from tests.unit.platform import machines
from tests.unit.platform.machines import AMD_UUIDS

ALL = [GpuSlot(uuid, node) for uuid, node in zip(AMD_UUIDS, machines.AMD_GPU_NODES, strict=True)]
JOB = {"SLURM_JOB_ID": "7"}


def seen(root: str, env: dict[str, str]) -> list[int | str]:
    """The GPUs of a rank, each by its place on the machine, or by its token if it has none."""
    slots = local_rank(Rank(0), env, root).gpus
    return [AMD_UUIDS.index(slot.token) if slot.token in AMD_UUIDS else slot.token for slot in slots]


@pytest.mark.parametrize(
    ("env", "gpus"),
    [
        ({}, [0, 1, 2, 3]),
        ({"ROCR_VISIBLE_DEVICES": "3,1"}, [3, 1]),
        ({"HIP_VISIBLE_DEVICES": "3,1"}, [3, 1]),
        ({"CUDA_VISIBLE_DEVICES": "2"}, [2]),
        # HIP counts what ROCr leaves, in its order
        ({"ROCR_VISIBLE_DEVICES": "3,1,2", "HIP_VISIBLE_DEVICES": "0,2"}, [3, 2]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "1"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "2"}, []),
        # UUIDs, in whatever case, or their beginnings
        ({"ROCR_VISIBLE_DEVICES": f"{AMD_UUIDS[2].upper()},0"}, [2, 0]),
        ({"ROCR_VISIBLE_DEVICES": AMD_UUIDS[1][:8], "HIP_VISIBLE_DEVICES": "0"}, [1]),
        # up to the first that names none, several, or one again
        ({"ROCR_VISIBLE_DEVICES": "0,4,1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "0,GPU-,1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "1,1,2"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"ROCR_VISIBLE_DEVICES": "-1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "GPU-XX"}, []),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        # Slurm sets all masks alike, and means the same GPUs by all
        ({**JOB, "SLURM_JOB_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "2,3", "ROCR_VISIBLE_DEVICES": "2,3"}, [2, 3]),
        ({**JOB, "SLURM_JOB_GPUS": "2,3"}, [2, 3]),
        ({**JOB, "SLURM_JOB_GPUS": "2,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
        (JOB, []),
        ({**JOB, "SLURM_GPUS_ON_NODE": "2"}, []),
    ],
)
def test_masks_are_composed(tmp_path: Path, env: dict[str, str], gpus: list[int]) -> None:
    assert seen(machines.four_mi250x().write(tmp_path), env) == gpus


def test_each_has_its_uuid_and_numa_node(tmp_path: Path) -> None:
    assert list(local_rank(Rank(0), {}, machines.four_mi250x().write(tmp_path)).gpus) == ALL


def ranks(tmp_path: Path, masks: Sequence[dict[str, str]], shown: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
    """What each of several ranks of a node is given, of which each has a mask, and a cgroup that shows it these GPUs."""
    local = [
        local_rank(Rank(place + 1), env, machines.four_mi250x(gpus).write(tmp_path / str(place)))
        for place, (env, gpus) in enumerate(zip(masks, shown, strict=True))
    ]
    given = divide_gpus(local, {one.rank: (int(one.rank),) for one in local})
    return [given[one.rank] for one in local]


def test_ranks_with_different_masks_have_each_its_own(tmp_path: Path) -> None:
    """Both say 0 by HIP's mask, of what ROCr leaves them."""
    masks = [{"ROCR_VISIBLE_DEVICES": mask, "HIP_VISIBLE_DEVICES": "0"} for mask in ("0,1", "2,3")]
    assert ranks(tmp_path, masks, [range(4)] * 2) == [(AMD_UUIDS[0],), (AMD_UUIDS[2],)]


def test_ranks_whose_cgroups_show_different_gpus_have_each_its_own(tmp_path: Path) -> None:
    """`--gpus-per-task=1` with ConstrainDevices: both are told 0, and it is not the same."""
    mask = {**JOB, "ROCR_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "0"}
    assert ranks(tmp_path, [mask, mask], [[1], [3]]) == [(AMD_UUIDS[1],), (AMD_UUIDS[3],)]


def test_what_a_child_sees(tmp_path: Path) -> None:
    root = machines.four_mi250x().write(tmp_path)
    env = environment((AMD_UUIDS[2], AMD_UUIDS[3]), root)
    assert env["ROCR_VISIBLE_DEVICES"] == f"{AMD_UUIDS[2]},{AMD_UUIDS[3]}"
    for counting in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"):
        assert env[counting] == "0,1", "it counts what ROCr leaves"
    assert seen(root, env) == [2, 3], "a rank that it starts sees the same"
    assert seen(root, environment((), root)) == []
    assert shown(env, root) == [AMD_UUIDS[2], AMD_UUIDS[3]], "by their tokens: doctor compares them with what was given"
    assert shown(environment((), root), root) == []


def test_gpus_without_a_uuid_go_by_their_index(tmp_path: Path) -> None:
    machine = machines.four_mi250x()
    for path in [path for path in machine.files if path.endswith("/properties")]:
        machine.files[path] = machine.files[path].replace("unique_id ", "was_id ")
    root = machine.write(tmp_path)
    assert seen(root, {}) == ["0", "1", "2", "3"]
    assert seen(root, {"ROCR_VISIBLE_DEVICES": "3,1", "HIP_VISIBLE_DEVICES": "1"}) == ["1"]
    assert environment(("1",), root)["ROCR_VISIBLE_DEVICES"] == "1"


def test_a_driver_that_lists_nothing(tmp_path: Path) -> None:
    """What masks name is all that is known."""
    machine = machines.laptop()
    machine.files["/dev/kfd"] = ""
    root = machine.write(tmp_path)
    assert seen(root, {}) == []
    assert seen(root, {"ROCR_VISIBLE_DEVICES": "3"}) == ["3"]
    assert seen(root, {"ROCR_VISIBLE_DEVICES": "3,2", "HIP_VISIBLE_DEVICES": "1"}) == ["2"]
    assert seen(root, {"HIP_VISIBLE_DEVICES": "1,0"}) == ["1", "0"]
