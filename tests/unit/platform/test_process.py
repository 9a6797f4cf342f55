"""Processes as the kernel shows them."""

import os
import subprocess
import sys
from pathlib import Path

from smallpond_mpi.platform import process
from tests.executor_bench import wait_until


def test_descendants_are_found_however_deep() -> None:
    code = "import subprocess,sys; subprocess.run([sys.executable,'-c','import sys; sys.stdin.read()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        wait_until(lambda: len(process.descendants_of(child.pid)) == 1)
        (below,) = process.descendants_of(child.pid)
        assert {child.pid, below} <= set(process.descendants_of(os.getpid()))
        assert child.pid in process.children_of(os.getpid())
        assert below not in process.children_of(os.getpid())
        assert process.parents()[below] == child.pid


def test_memory_is_seen_and_nothing_of_the_dead() -> None:
    before = process.unreclaimable_bytes(os.getpid())
    held = b"x" * (64 << 20)
    assert process.unreclaimable_bytes(os.getpid()) - before > 60 << 20
    assert process.resident_bytes(os.getpid()) >= len(held)
    assert process.proportional_bytes(os.getpid()) >= len(held)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert process.resident_bytes(child.pid) == 0
    assert process.unreclaimable_bytes(child.pid) == 0
    assert process.proportional_bytes(child.pid) == 0
    assert process.children_of(child.pid) == []


def test_processes_are_known_by_their_environment() -> None:
    marker = f"MARKER={os.getpid()}-{Path(__file__).name}"
    env = {**os.environ, "MARKER": marker.partition("=")[2]}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=env, stdin=subprocess.PIPE) as child:
        wait_until(lambda: process.carrying(marker.encode()) == [child.pid])
        process.kill_quietly([child.pid, 1 << 30])
        assert child.wait() == -9
