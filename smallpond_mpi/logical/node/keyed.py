"""SQL over rows that belong together: joins, groups, distinct rows, windows. How they are brought together is decided when a plan is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smallpond_mpi.common import DATA_PARTITION_COLUMN_NAME
from smallpond_mpi.logical.node.base import Context, Node, Shape
from smallpond_mpi.logical.node.sql import SqlEngineNode


@dataclass(frozen=True, slots=True)
class Side:
    """One input of a KeyedSqlNode.

    Args:
        keys: columns; rows of all inputs with equal values must meet. None at all: all rows must meet.
        before: a query over any part of the rows that makes them fewer before they are moved; the keys are columns of its result.
        may_be_broadcast: whether the result is right if each partition of the other input meets all rows of this one.
    """

    keys: tuple[str, ...]
    before: str | None = None
    may_be_broadcast: bool = False


class KeyedSqlNode(SqlEngineNode):
    """A query whose result is right if it sees, of each input, all rows with equal keys together.

    The optimizer replaces it, once it knows what its inputs are, by nodes that shuffle, broadcast, or put all into one partition.

    Args:
        sql_query: over `{0}`, `{1}`, after `before` of each side.
        whole_query: the same over the inputs as they are, where nothing need be moved. None: `sql_query`.
    """

    visit_method = "visit_keyed_sql_node"

    def __init__(
        self,
        ctx: Context,
        input_deps: Sequence[Node],
        sql_query: str,
        *,
        sides: Sequence[Side],
        whole_query: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(ctx, input_deps, sql_query, **settings)
        self.sides = tuple(sides)
        self.whole_query = sql_query if whole_query is None else whole_query

    def shape(self, inputs: list[Shape]) -> Shape:
        """As many as there are places to work, before it is known."""
        return Shape({DATA_PARTITION_COLUMN_NAME: self.ctx.num_slots})

    def version(self, query: str, inputs: tuple[Node, ...]) -> SqlEngineNode:
        """A plain SQL node that stands for this one."""
        made = object.__new__(SqlEngineNode)
        made.__dict__.update(self.__dict__)
        made.sql_queries = [query]
        made.input_deps = inputs
        return made
