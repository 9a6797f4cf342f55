"""A session: a job that lives in a script. Under a launcher every rank gets here; rank 0 goes on with the script, the others serve it.

    init() -> take_place()  rank 0:     Job: lease, journal, context, the scheduler's loop -> Session
                            rank > 0:   serve until rank 0 says it is over, then leave the process

What runs before MPI starts is the fork server alone: children must not descend from a process that has MPI in it.
"""

import os
from collections.abc import Sequence
from threading import RLock
from typing import Any, Never

from smallpond_mpi.common import InvalidArgument
from smallpond_mpi.config import Config
from smallpond_mpi.entry import leave
from smallpond_mpi.execution.arrays import ThisElement, claim_output
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.job import Job
from smallpond_mpi.execution.paths import ArrayPaths
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.publish import SinkMode
from smallpond_mpi.execution.worker import Place
from smallpond_mpi.io.resolve import resolve
from smallpond_mpi.logical.dataset import DataSet
from smallpond_mpi.logical.node import Context, LogicalPlan, Node, NodeId, RootNode
from smallpond_mpi.logical.node.base import topological
from smallpond_mpi.logical.optimizer import Optimizer
from smallpond_mpi.logical.planner import cannot_be_wrong
from smallpond_mpi.logical.schema import check_storable, holds_intervals
from smallpond_mpi.logical.top_rows import to_be_known_first
from smallpond_mpi.platform.arrays import element_of


class SessionBase:
    """The engine below the DataFrames of a session: plans nodes, runs tasks, keeps what is done."""

    def __init__(self, *, config: Config, place: Place) -> None:
        self._ctx = Context()
        self._asked_for: dict[Node, None] = {}
        self._job = Job(config, place)
        self._planner = self._job.planner
        self._ctx.num_slots = self._runtime_ctx.num_slots
        self._element: ThisElement | None = None
        self._one_at_a_time = RLock()

    def __reduce__(self) -> Never:
        raise TypeError(
            "a session stays where it was made, and so do its DataFrames: take their rows (to_arrow, take_all) before, or join them"
        )

    @property
    def _runtime_ctx(self) -> RuntimeContext:
        return self._job.ctx

    # what DataFrames ask for

    def _run(self, plans: Sequence[Node]) -> list[list[DataSet]]:
        """The output datasets of each plan's partitions, computed if they are not there."""
        if self._job.is_closed:
            raise InvalidArgument("the session was shut down: call init() again")
        if self._job.is_copy:
            raise InvalidArgument(
                "this process is a forked copy: only the one that called init() computes with its session"
            )
        with self._one_at_a_time:  # the threads of a script take turns
            self._asked_for.update(dict.fromkeys(plans))
            is_checked = False
            while first := to_be_known_first(plans, self._planner.is_planned):
                if not is_checked:
                    self._check(plans, first)
                    is_checked = True
                self._run_now(first)
            return self._run_now(plans)

    def _check(self, plans: Sequence[Node], first: Sequence[Node]) -> None:
        """What can be known to be wrong with plans of which only `first` is run now, and so checked by itself."""
        nodes = {node.id: node for node in topological(plans)}
        later = set(nodes.values()) - set(topological(first))
        if all(self._planner.is_planned(node) or cannot_be_wrong(node) for node in later):
            return
        try:
            groups = [self._planner.plan_node(plan) for plan in self._optimized(plans)]
            self._job.check([task for group in groups for task in group], nodes)
        finally:
            self._forget_failed(nodes.values())

    def _run_now(self, plans: Sequence[Node]) -> list[list[DataSet]]:
        optimized = self._optimized(plans)
        if holds_intervals(topological(plans, known=self._planner.is_planned)):
            check_storable(topological(optimized, known=self._planner.is_planned))
        groups = [self._planner.plan_node(plan) for plan in optimized]
        nodes = {node.id: node for node in topological(plans)}
        try:
            ran = self._job.run([task for group in groups for task in group], nodes)
        except BaseException:
            self._forget_failed(nodes.values())
            raise
        self._measure(nodes, ran)
        return [[task.output for task in group] for group in groups]

    def _optimized(self, plans: Sequence[Node]) -> list[Node]:
        """The plans as they run: what is computed already stays as it is, SQL on SQL of what isn't becomes one query."""
        planned = {node for node in topological(plans) if self._planner.is_planned(node)}
        return Optimizer(planned, self._computed).plans(plans)

    def _measure(self, nodes: dict[NodeId, Node], tasks: Sequence[Task]) -> None:
        """Give each node what its tasks measured."""
        for task in tasks:
            node = nodes.get(NodeId(task.node_id))
            if node is not None:
                for name, value in task.perf_metrics.items():
                    node.add_perf_metrics(name, value)

    def _forget_failed(self, nodes: Any) -> None:
        """Plan anew what did not succeed, when it is asked for again."""
        for node in nodes:
            if self._planner.is_planned(node) and not all(task.is_done for task in self._planner.plan_node(node)):
                self._planner.forget(node)

    def _computed(self, plan: Node) -> list[DataSet] | None:
        """The output datasets of a node that was computed."""
        return [task.output for task in self._planner.plan_node(plan)] if self._is_computed(plan) else None

    def _is_computed(self, plan: Node) -> bool:
        with self._one_at_a_time:
            return self._planner.is_planned(plan) and all(task.is_done for task in self._planner.plan_node(plan))

    def _forget(self, plan: Node) -> None:
        """Compute a node anew. A job that is started again does so at the same place of its script: how often is part of the fingerprint."""
        with self._one_at_a_time:
            plan.times_forgotten += 1
            self._planner.forget(plan)

    # job arrays

    def _share(self, paths: Sequence[str], recursive: bool) -> list[str]:
        """This array element's files; all of them outside an array."""
        element = element_of(os.environ)
        if element is None:
            return resolve(paths, recursive)
        if self._element is None:
            ctx = self._runtime_ctx
            array = ArrayPaths(ctx.data_root, element.array)
            self._element = ThisElement(element, array, os.environ, ctx.job_root)
            self._job.at_end.append(self._element.ended)
        return self._element.share(paths, recursive)

    def _place_of_output(self, path: str, mode: SinkMode | None) -> str:
        """Where rows for `path` are written: an element of an array that shares its input puts them beside it, to be collected; what another writes there
        is its own.
        """
        if self._element is not None:
            return self._element.place_of(path, mode)
        element = element_of(os.environ)
        if element is not None:
            claim_output(ArrayPaths(self._runtime_ctx.data_root, element.array), element, path)
        return path

    # the end

    def graph(self) -> Any:
        """The plan of everything this session was asked to compute, as a graph with `.source` in DOT."""
        return LogicalPlan(self._ctx, RootNode(self._ctx, tuple(self._asked_for))).graph()

    def shutdown(self) -> None:
        """End the job: ranks leave, and after success what only the running job needed is removed. Called at exit if not before."""
        if self._job.is_closed:
            return
        try:
            self._job.close()
        finally:
            leave()
