"""Node: one step of a logical plan, and Context: what the nodes of a plan share.

A node knows its inputs, its settings and the user's line that made it. How many tasks it becomes is the planner's business;
what a task of it is, `create_task` says.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.execution.task.metrics import PerfStats

if TYPE_CHECKING:
    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.partition_info import PartitionInfo
    from smallpond_mpi.logical.udf import UDFAnyParameters, UDFContext, UDFTypeLike

CPUS_PER_GPU = 8
OUTPUT_NAME = re.compile(r"[a-zA-Z0-9_]+")
PACKAGE_DIR = str(Path(__file__).parents[2]) + os.sep
DEMO_DIR = os.path.join(PACKAGE_DIR, "demo", "")
"""Where a script lies that happens to be shipped with this package."""

STAYS_HERE = frozenset({"ctx", "input_deps", "perf_metrics", "_process_func"})
CHANGES_NO_RESULT = frozenset(
    {
        *("id", "location", "timeout_secs", "isolated"),
        *("cpu_limit", "cpu_limit_asked", "gpu_limit", "memory_limit", "memory_limit_asked"),
    }
)


class NodeId(int):
    """Number of a node within its Context, from 1; prints as six digits."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{int(self):06d}"

    def __repr__(self) -> str:
        return f"NodeId({int(self)})"


class Context:
    """Numbers the nodes of a plan and holds the functions that their SQL may call."""

    def __init__(self) -> None:
        self.udfs: dict[str, UDFContext] = {}
        # How many tasks of one CPU run at the same time: what numbers of partitions are chosen for where the user gives none.
        self.num_slots = 1
        self._num_nodes = 0

    def __str__(self) -> str:
        return f"Context({self._num_nodes} nodes, functions: {', '.join(self.udfs) or 'none'})"

    def new_node_id(self) -> NodeId:
        """The next node id, from 1."""
        self._num_nodes += 1
        return NodeId(self._num_nodes)

    def create_function(
        self,
        name: str,
        func: Callable[..., Any],
        params: "Sequence[UDFTypeLike] | UDFAnyParameters | None",
        return_type: "UDFTypeLike | None",
        use_arrow_type: bool = False,
    ) -> str:
        """Let SQL nodes that list `name` among their udfs call `func`; with `use_arrow_type` it works on Arrow arrays."""
        from smallpond_mpi.logical.udf import PythonUDFContext

        self.udfs[name] = PythonUDFContext(name, func, params, return_type, use_arrow_type)
        return name

    def create_external_module(self, module_path: str, name: str | None = None) -> str:
        """Let SQL nodes that list the name (of None: the file's) use the functions of a `.so` module."""
        from smallpond_mpi.logical.udf import ExternalModuleContext

        name = name or Path(module_path).stem
        self.udfs[name] = ExternalModuleContext(name, module_path)
        return name

    def create_duckdb_extension(self, extension_path: str, name: str | None = None) -> str:
        """Let SQL nodes that list the name (of None: the file's) use a `.duckdb_extension`."""
        from smallpond_mpi.logical.udf import DuckDbExtensionContext

        name = name or Path(extension_path).stem
        self.udfs[name] = DuckDbExtensionContext(name, extension_path)
        return name


@dataclass(frozen=True, slots=True)
class Shape:
    """How a node's output is cut: partitions along each dimension (the top-level one aside), and how many of each index."""

    dims: Mapping[str, int]
    copies: int = 1

    @property
    def num_partitions(self) -> int:
        return math.prod(self.dims.values()) * self.copies


class Node:
    """Base of all nodes.

    Args:
        ctx: numbers the node.
        input_deps: the nodes whose outputs are this one's inputs, in order.
        output_name: letters, digits and underscores; makes the output a named result of the job.
        output_path: absolute; makes the output a result under this path.
        cpu_limit: CPUs a task, raised to 8 for each GPU asked for.
        gpu_limit: GPUs a task, 0.5 is half of one.
        memory_limit: bytes a task; None is its share by CPUs of the rank it runs on.

    Raises:
        InvalidArgument: an argument is out of range; the message names the user's line.
    """

    enable_resource_boost = False
    # Seconds that an attempt of one of its tasks may run; None: for ever.
    timeout_secs: float | None = None
    # Whether each attempt gets a process of its own instead of a warm one.
    isolated = False

    # How often its results were asked to be computed anew.
    times_forgotten = 0

    # The method of a LogicalPlanVisitor that is called with nodes of this kind.
    visit_method: ClassVar[str] = "visit_node"

    def __init__(
        self,
        ctx: Context,
        input_deps: "Sequence[Node]",
        output_name: str | None = None,
        output_path: str | None = None,
        cpu_limit: int = 1,
        gpu_limit: float = 0,
        memory_limit: int | None = None,
    ) -> None:
        self.location = user_location(self)
        self.ctx = ctx
        self.input_deps: tuple[Node, ...] = self._checked_inputs(input_deps)
        if output_name is not None and not (isinstance(output_name, str) and OUTPUT_NAME.fullmatch(output_name)):
            raise self.invalid(f"output_name {output_name!r} must consist of letters, digits and underscores")
        if output_path is not None and not os.path.isabs(output_path):
            raise self.invalid(f"output_path {output_path!r} must be an absolute path")
        self.output_name = output_name
        self.output_path = output_path
        self.gpu_limit = self._number("gpu_limit", gpu_limit, 0)
        # What the user asked for; `cpu_limit` may be more, which a rank with fewer CPUs need not meet.
        self.cpu_limit_asked = self._whole_number("cpu_limit", cpu_limit, 1)
        self.cpu_limit = max(self.cpu_limit_asked, math.ceil(CPUS_PER_GPU * self.gpu_limit))
        self.memory_limit = None if memory_limit is None else int(self._number("memory_limit", memory_limit, 1))
        self.memory_limit_asked = self.memory_limit
        self.perf_metrics: dict[str, list[float]] = {}
        self.id = ctx.new_node_id()

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.id}"

    def __repr__(self) -> str:
        return f"<{self} at {self.location}>"

    def __getstate__(self) -> dict[str, Any]:
        """A node whose bound `process` travels with a task carries its own attributes, never the plan."""
        return {name: value for name, value in self.__dict__.items() if name not in STAYS_HERE}

    def fingerprint_parts(self) -> list[tuple[str, Any]]:
        """What results of its bound `process` depend on: neither where in the script it stands nor what it is granted."""
        return sorted((name, value) for name, value in self.__getstate__().items() if name not in CHANGES_NO_RESULT)

    # arguments

    def invalid(self, message: str) -> InvalidArgument:
        """The error to raise about an argument of this node."""
        return InvalidArgument(f"{message} ({type(self).__name__} at {self.location})")

    def _checked_inputs(self, input_deps: "Sequence[Node]") -> "tuple[Node, ...]":
        if isinstance(input_deps, Node):
            raise self.invalid(f"input_deps must be a tuple of nodes, not a single {type(input_deps).__name__}")
        inputs = tuple(input_deps)
        for dep in inputs:
            if not isinstance(dep, Node):
                raise self.invalid(f"input_deps must be nodes, not {type(dep).__name__}")
            if dep.ctx is not self.ctx:
                raise self.invalid(
                    f"{dep} at {dep.location} belongs to another Context: make all nodes of a plan with one"
                )
        return inputs

    def _number(self, name: str, value: Any, minimum: float) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.invalid(f"{name} must be a number, not {value!r}")
        if not minimum <= value < math.inf:
            raise self.invalid(f"{name} must be at least {minimum}, not {value}")
        return value

    def _whole_number(self, name: str, value: Any, minimum: int) -> int:
        try:
            if isinstance(value, bool):
                raise TypeError
            number = value.__index__()  # NumPy's integers too
        except (AttributeError, TypeError):
            raise self.invalid(f"{name} must be an int, not {value!r}") from None
        return int(self._number(name, number, minimum))

    # what the planner asks

    @property
    def num_partitions(self) -> int:
        """How many partitions the output has."""
        return shapes([self])[self].num_partitions

    def shape(self, inputs: list[Shape]) -> Shape:
        """How the output is cut if the inputs are cut like this: pairs along dimensions shared, each with each elsewhere."""
        return joined_shape(inputs)

    def create_task(
        self, runtime_ctx: "RuntimeContext", input_deps: "list[Task]", partition_infos: "list[PartitionInfo]"
    ) -> "Task":
        """The task that computes one partition."""
        raise NotImplementedError(f"{type(self).__name__} does not define create_task()")

    def with_inputs(self, inputs: "tuple[Node, ...]") -> "Node":
        """This node on other inputs: the same id, location and metrics, so that it stands for this one."""
        version = object.__new__(type(self))
        version.__dict__.update(self.__dict__)
        version.__dict__.pop("_process_func", None)  # bound to this one
        version.input_deps = inputs
        return version

    # what its tasks measured

    def add_perf_metrics(self, name: str, value: list[float] | float) -> None:
        """Keep values that its tasks measured."""
        self.perf_metrics.setdefault(name, []).extend(value if isinstance(value, list) else [value])

    def get_perf_stats(self, name: str) -> PerfStats | None:
        """Statistics of a metric over its tasks; None if none of them measured it."""
        values = self.perf_metrics.get(name)
        return PerfStats.of(values) if values else None


def user_location(made: object) -> str:
    """`file:line` where `made` is made: of the innermost call from outside this package and outside its own constructors."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (_is_of_package(frame.f_code.co_filename) or _is_constructor_of(made, frame)):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_of_package(path: str) -> bool:
    return path.startswith(PACKAGE_DIR) and not path.startswith(DEMO_DIR)


def _is_constructor_of(made: object, frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_name == "__init__" and frame.f_locals.get(next(iter(code.co_varnames), "")) is made


def topological(roots: Iterable[Node], known: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """All nodes that the given ones need, themselves included, each once and after its inputs; not those known, nor what only they need.

    Plans may be deep: no recursion.
    """
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            order.append(node)
        elif node not in seen and not known(node):
            seen.add(node)
            stack.append((node, True))
            stack.extend((dep, False) for dep in reversed(node.input_deps) if dep not in seen)
    return order


def shapes(roots: Iterable[Node]) -> dict[Node, Shape]:
    """How the outputs of nodes, and of all that they need, are cut."""
    found: dict[Node, Shape] = {}
    for node in topological(roots):
        found[node] = node.shape([found[dep] for dep in node.input_deps])
    return found


def joined_shape(inputs: Iterable[Shape]) -> Shape:
    """Partitions that are paired along shared dimensions and broadcast along the others."""
    dims: dict[str, int] = {}
    copies = 1
    for shape in inputs:
        copies *= shape.copies
        for dimension, count in shape.dims.items():
            dims[dimension] = max(count, dims.get(dimension, 0))
    return Shape(dims, copies)
