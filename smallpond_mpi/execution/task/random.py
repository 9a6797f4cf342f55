"""What a task draws: the same numbers for the same job seed and task, whatever worker, attempt or order. And the faults it is to suffer."""

import random
import sys
from typing import TYPE_CHECKING

from smallpond_mpi.common import InjectedFault
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.model import TaskId
from smallpond_mpi.execution.workqueue import WorkItem

if TYPE_CHECKING:
    import numpy as np


class Randomness(WorkItem):
    """The random part of a Task."""

    ctx: RuntimeContext
    id: TaskId

    _num_tasks_created: int | None = None  # by the job when this attempt was sent
    _numpy_random_gen: "np.random.Generator | None" = None
    _python_random_gen: random.Random | None = None

    @property
    def random_seed_bytes(self) -> bytes:
        """The task id in 4 bytes of the machine's order, then the job's seed in 128 bytes."""
        return int(self.id).to_bytes(4, sys.byteorder) + self.ctx.random_seed_bytes

    @property
    def numpy_random_gen(self) -> "np.random.Generator":
        if self._numpy_random_gen is None:
            import numpy as np

            self._numpy_random_gen = np.random.default_rng(np.frombuffer(self.random_seed_bytes, dtype=np.uint32))
        return self._numpy_random_gen

    @property
    def python_random_gen(self) -> random.Random:
        if self._python_random_gen is None:
            self._python_random_gen = random.Random(self.random_seed_bytes)
        return self._python_random_gen

    def random_uint32(self) -> int:
        """0 .. 2**31 - 1."""
        return self.python_random_gen.randint(0, 0x7FFFFFFF)

    def random_float(self) -> float:
        """At least 0 and less than 1."""
        return self.python_random_gen.random()

    @property
    def uniform_failure_prob(self) -> float:
        """1 / (tasks created after this one + 1): no faults more often than one in what is left of the job."""
        created = self.ctx.num_tasks_created if self._num_tasks_created is None else self._num_tasks_created
        return 1 / (max(0, created - self.id) + 1)

    def inject_fault(self) -> None:
        """Raise InjectedFault with the job's fault probability, at most in the first two attempts that failed."""
        prob = self.ctx.fault_inject_prob
        if prob > 0 and self.fail_count <= 1 and random.random() < min(prob, self.uniform_failure_prob):
            raise InjectedFault(f"injected into {self.key}, attempt {self.retry_count}, with probability {prob}")
