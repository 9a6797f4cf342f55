"""Synthetic machines, for shapes that nothing here has. Each names the page that its numbers come from, and says what is made up for the test."""

from collections.abc import Mapping, Sequence

from tests.unit.platform.trees import Machine

GB = 1 << 30


def numbers(cpus: Sequence[int]) -> str:
    return ",".join(map(str, cpus))


def machine(
    nodes: Mapping[int, Sequence[int]],
    siblings: Mapping[int, Sequence[int]],
    *,
    allowed: Sequence[int] | None = None,
    memory_gb: int,
    distance: Mapping[int, str] | None = None,
) -> Machine:
    """NUMA node → CPUs, CPU → threads of its core."""
    cpus = sorted(cpu for own in nodes.values() for cpu in own)
    files = {
        "/proc/self/status": f"Name:\tpython\nCpus_allowed_list:\t{numbers(allowed if allowed is not None else cpus)}\n",
        "/proc/meminfo": f"MemTotal: {memory_gb * GB // 1024} kB\nMemAvailable: {memory_gb * GB // 1024} kB\n",
    }
    for node, own in nodes.items():
        files[f"/sys/devices/system/node/node{node}/cpulist"] = numbers(own) + "\n"
        if distance:
            files[f"/sys/devices/system/node/node{node}/distance"] = distance[node] + "\n"
    for cpu in cpus:
        files[f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = numbers(siblings[cpu]) + "\n"
    return Machine(files)


def dgx_a100() -> Machine:
    """Two EPYC 7742 in four NUMA nodes each, two threads a core, eight GPUs at nodes 3, 1, 7 and 5: `nvidia-smi topo -m` in
    https://github.com/NVIDIA/nccl/issues/1505; memory is that of https://developer.nvidia.com/blog/defining-ai-innovation-with-dgx-a100; the distances (12 within a
    socket, 32 to the other) are made up for the test.
    """
    nodes = {node: [*range(node * 16, node * 16 + 16), *range(node * 16 + 128, node * 16 + 144)] for node in range(8)}
    distance = {
        node: " ".join("10" if other == node else "12" if other // 4 == node // 4 else "32" for other in range(8))
        for node in range(8)
    }
    made = machine(nodes, {cpu: (cpu % 128, cpu % 128 + 128) for cpu in range(256)}, memory_gb=1024, distance=distance)
    for gpu, bus in enumerate(DGX_BUSES):
        made.files[f"/sys/bus/pci/devices/0000:{bus}/numa_node"] = f"{DGX_GPU_NODES[gpu]}\n"
    return made


DGX_GPU_NODES = (3, 3, 1, 1, 7, 7, 5, 5)
DGX_BUSES = ("07:00.0", "0f:00.0", "47:00.0", "4e:00.0", "87:00.0", "90:00.0", "b7:00.0", "bd:00.0")


def grace_hopper() -> Machine:
    """Four GH200 in one node of Alps: NUMA nodes 0 to 3 have 72 cores each, the GPUs' own memory is at nodes 4, 12, 20 and 28, without CPUs, and PCI
    says -1 (or such a node; the bus addresses are made up): https://docs.cscs.ch/alps/hardware/ and https://github.com/eth-cscs/cscs-docs/pull/179.
    """
    nodes: dict[int, Sequence[int]] = {node: range(node * 72, node * 72 + 72) for node in range(4)}
    nodes |= {4: (), 12: (), 20: (), 28: ()}
    made = machine(nodes, {cpu: (cpu,) for cpu in range(288)}, memory_gb=854)
    for gpu, bus in enumerate(GRACE_BUSES):
        made.files[f"/sys/bus/pci/devices/{bus}/numa_node"] = "-1\n" if gpu else "4\n"
    return made


GRACE_BUSES = ("0009:01:00.0", "0019:01:00.0", "0029:01:00.0", "0039:01:00.0")


def four_mi250x(shown: Sequence[int] = range(4)) -> Machine:
    """An EPYC 7A53 in four NUMA nodes, 512 GB, as in https://docs.lumi-supercomputer.eu/hardware/lumig, with four of its eight GPUs (GCDs). What the driver tells of one:
    https://github.com/ROCm/rocm_smi_lib/issues/160 (104 compute units of 4 SIMDs, BDFID 12032, which is bus 2f). UUIDs, the other buses, and which NUMA node a
    GPU is at, are made up for the test.
    `shown`: what a cgroup lets through; of the others the kernel gives no properties (kfd_devcgroup_check_permission in kfd_topology.c).
    """
    nodes = {node: [*range(node * 16, node * 16 + 16), *range(node * 16 + 64, node * 16 + 80)] for node in range(4)}
    made = machine(nodes, {cpu: (cpu % 64, cpu % 64 + 64) for cpu in range(128)}, memory_gb=512)
    made.files["/dev/kfd"] = ""
    for node in nodes:
        made.files[f"/sys/class/kfd/kfd/topology/nodes/{node}/properties"] = "cpu_cores_count 32\nsimd_count 0\n"
    for gpu, uuid in enumerate(AMD_UUIDS):
        bus = 0x2F + gpu
        made.files[f"/sys/bus/pci/devices/0000:{bus:02x}:00.0/numa_node"] = f"{AMD_GPU_NODES[gpu]}\n"
        if gpu in shown:
            text = (
                f"cpu_cores_count 0\nsimd_count 416\nlocation_id {bus << 8}\ndomain 0\nunique_id {int(uuid[4:], 16)}\n"
            )
            made.files[f"/sys/class/kfd/kfd/topology/nodes/{4 + gpu}/properties"] = text
    return made


AMD_GPU_NODES = (3, 3, 1, 1)
AMD_UUIDS = ("GPU-0a01d3c1e2f4a5b6", "GPU-1b02d3c1e2f4a5b6", "GPU-2c03d3c1e2f4a5b6", "GPU-3d04d3c1e2f4a5b6")


def laptop() -> Machine:
    """A Core i7-1260P: four cores with two threads numbered side by side, eight of one thread; one NUMA node, no cgroup limit.
    https://www.intel.com/content/www/us/en/products/sku/226254.html; files as in https://docs.kernel.org/admin-guide/cputopology.html.
    """
    siblings: dict[int, Sequence[int]] = {cpu: (cpu - cpu % 2, cpu - cpu % 2 + 1) for cpu in range(8)}
    siblings |= {cpu: (cpu,) for cpu in range(8, 16)}
    return machine({0: range(16)}, siblings, memory_gb=16)


def container_v2() -> Machine:
    """A container with a cgroup namespace of its own and limits above it: `docker run --cpuset-cpus 2,3 --memory 2g`; files as
    https://docs.kernel.org/admin-guide/cgroup-v2.html names them.
    """
    made = machine({0: range(8)}, {cpu: (cpu,) for cpu in range(8)}, allowed=(2, 3), memory_gb=64)
    made.files |= {
        "/proc/self/cgroup": "0::/\n",
        "/proc/self/mountinfo": "2032 2031 0:29 / /sys/fs/cgroup ro,nosuid,nodev - cgroup2 cgroup rw,nsdelegate\n",
        "/sys/fs/cgroup/memory.max": f"{2 * GB}\n",
        "/sys/fs/cgroup/memory.high": "max\n",
        "/sys/fs/cgroup/cpuset.cpus.effective": "2-3\n",
        "/sys/fs/cgroup/memory.events": "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n",
    }
    return made


def slurm_v2() -> Machine:
    """A step of a job on a node with cgroup v2: limits at the job's level and none at the task's; the tree of https://slurm.schedmd.com/cgroup_v2.html."""
    made = machine(
        {0: range(8), 1: range(8, 16)}, {cpu: (cpu,) for cpu in range(16)}, allowed=(4, 5, 6, 7), memory_gb=256
    )
    job = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_71"
    made.files |= {
        "/proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_71/step_0/user/task_0\n",
        "/proc/self/mountinfo": "26 23 0:24 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
        f"{job}/memory.max": f"{12 * GB}\n",
        f"{job}/cpuset.cpus.effective": "4-7\n",
        f"{job}/step_0/memory.max": f"{12 * GB}\n",
        f"{job}/step_0/user/memory.max": f"{12 * GB}\n",
        f"{job}/step_0/user/task_0/memory.max": "max\n",
    }
    return made


def docker_v1() -> Machine:
    """A container without a cgroup namespace on a v1 host: /proc/self/cgroup has the host's path, the mount shows the container's part of it: the fields of
    https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html, files as in https://docs.kernel.org/admin-guide/cgroup-v1/memory.html; names and sizes are made up for
    the test.
    """
    made = machine({0: range(4)}, {cpu: (cpu,) for cpu in range(4)}, memory_gb=64)
    made.files |= {
        "/proc/self/cgroup": "8:memory:/docker/4fd1/inner\n3:cpuset:/docker/4fd1/inner\n",
        "/proc/self/mountinfo": "900 890 0:33 /docker/4fd1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GB}\n",
        "/sys/fs/cgroup/memory/inner/memory.limit_in_bytes": f"{3 * GB}\n",
        "/sys/fs/cgroup/memory/inner/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
    }
    return made


def three_odd_cores() -> Machine:
    """A job that Slurm gave cores 1, 3 and 5 of 8, of two threads each, of which the job uses the first. Made up for the test: no machine is meant; files as in
    https://docs.kernel.org/admin-guide/cputopology.html.
    """
    return machine(
        {0: range(8), 1: range(8, 16)},
        {cpu: (cpu - cpu % 2, cpu - cpu % 2 + 1) for cpu in range(16)},
        allowed=(2, 6, 10),
        memory_gb=32,
    )


def four_cores_of_two_threads(env: Mapping[str, str]) -> Machine:
    """A node of which a job has cores 1 to 3: its cpuset has both threads of each, whatever the job said of threads. Made up for the test, as `three_odd_cores`. What Slurm 22.05
    says and does was seen on the test cluster, with one core of two threads a node: one CPU granted, two in the cpuset, with `--hint=nomultithread`
    (SLURM_THREADS_PER_CORE=1) and, without any hint, where slurm.conf tells of `CPUs=1 CoresPerSocket=1 ThreadsPerCore=2`.
    """
    made = machine(
        {0: range(8)}, {cpu: (cpu % 4, cpu % 4 + 4) for cpu in range(8)}, allowed=(1, 2, 3, 5, 6, 7), memory_gb=32
    )
    made.files |= {
        "/proc/self/cgroup": "3:cpuset:/slurm/uid_0/job_7/step_batch\n",
        "/proc/self/mountinfo": "900 890 0:33 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n",
        "/sys/fs/cgroup/cpuset/slurm/uid_0/job_7/step_batch/cpuset.cpus": "1-3,5-7\n",
    }
    made.env = {"SLURM_JOB_ID": "7", "SLURM_JOB_CPUS_PER_NODE": "3", **env}
    return made
