"""Columns that nobody reads are left out where they are made, or where files are read: they are neither computed, nor written, nor moved.

    roots keep all columns -> what each query reads of its inputs, from the roots down -> versions of the nodes that give just that, from the sources up

Which columns a query reads is asked of DuckDB's planner. A text may name columns whose values end up nowhere; where it does, its input gets NULLs of
these names in front of it, which cost nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from smallpond_mpi.common import BadInput
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.expressions import columns_in, counts_columns, expressions, template
from smallpond_mpi.logical.node.base import Node, topological
from smallpond_mpi.logical.node.keyed import KeyedSqlNode
from smallpond_mpi.logical.node.reshape import ConsolidateNode
from smallpond_mpi.logical.node.sort import SortNode
from smallpond_mpi.logical.node.source_sink import DataSourceNode
from smallpond_mpi.logical.node.sql import LimitNode, SqlEngineNode
from smallpond_mpi.logical.query_columns import Schema, bound_query, columns_read, on_tables
from smallpond_mpi.logical.query_text import nested_query, parsed, times_read
from smallpond_mpi.logical.schema import remember, schema_of

Names = frozenset[str]


def pruned(roots: Sequence[Node], is_kept: Callable[[Node], bool]) -> list[Node]:
    """Versions of several plans, which are to run together, that compute only what they read. What `is_kept` stays as it is."""
    pruning = _Pruning(roots, is_kept)
    return [pruning.made[root] for root in roots]


class _Pruning:
    def __init__(self, roots: Sequence[Node], is_kept: Callable[[Node], bool]) -> None:
        self._needed: dict[Node, Names] = {}
        """Of nodes that need not give all their columns, those that they must."""
        self.made: dict[Node, Node] = {}
        self._selected: dict[DataSourceNode, SqlEngineNode] = {}
        order = topological(roots, known=is_kept)
        self._find_needed(order, set(roots))
        for node in order:
            self.made[node] = self._version(node)
        self.made.update((root, root) for root in roots if is_kept(root))

    # what is needed, from the roots down

    def _find_needed(self, order: Sequence[Node], wanted: set[Node]) -> None:
        all_needed = set(wanted)
        for reader in reversed(order):
            schema = schema_of(reader)
            if reader not in all_needed and (schema is None or len(self._needed[reader]) >= len(schema)):
                all_needed.add(reader)
            own = None if reader in all_needed else self._needed[reader]
            for dep, names in zip(reader.input_deps, self._read_by(reader, own), strict=True):
                if names is None or not may_be_pruned(dep):
                    all_needed.add(dep)
                else:
                    self._needed[dep] = self._needed.get(dep, Names()) | names
        for node in all_needed:
            self._needed.pop(node, None)

    def _read_by(self, reader: Node, own: Names | None) -> "Sequence[Names | None]":
        """The columns that a node reads of each input, to give `own` of its columns (None: all); None where it needs all."""
        schemas = [schema_of(dep) for dep in reader.input_deps]
        known = [schema for schema in schemas if schema is not None]
        everything = [None] * len(schemas)
        if len(known) < len(schemas):
            return everything
        if moves_rows(reader):
            keys = None if own is None else _keys_of(reader, known[0])
            return everything if own is None or keys is None else [_present(own | keys, known[0])]
        if not isinstance(reader, SqlEngineNode) or not is_prunable_sql(reader):
            return everything
        read = [set[str]() for _ in known]
        for query, inputs in texts_of(reader):
            is_last = own is not None and query not in _before(reader)
            text = narrowed(query, _ordered(own or Names(), reader), reader, len(inputs)) if is_last else query
            found = None if text is None else columns_read(text, [known[index] for index in inputs])
            if found is None:
                return everything
            for index, columns in zip(inputs, found, strict=True):
                read[index].update(columns)
        if isinstance(reader, KeyedSqlNode):
            for side, columns_of_side in zip(reader.sides, read, strict=True):
                columns_of_side.update(side.keys if side.before is None else ())
        return [_present(names, schema) for names, schema in zip(read, known, strict=True)]

    # versions, from the sources up

    def _version(self, node: Node) -> Node:
        inputs = tuple(self._input_of(dep, node) for dep in node.input_deps)
        if all(new is old for new, old in zip(inputs, node.input_deps, strict=True)) and node not in self._needed:
            return node
        if isinstance(node, DataSourceNode):
            return node
        made = node.with_inputs(inputs)
        if node in self._needed:
            # Another node than the one with all columns, which somebody may ask for.
            made.id = node.ctx.new_node_id()
        if isinstance(made, SqlEngineNode) and isinstance(node, SqlEngineNode) and not moves_rows(node):
            names = _ordered(self._needed[node], node) if node in self._needed else None
            if names is not None:
                _narrow(made, names)
                remember(made, {name: _schema(node)[name] for name in names})
            _bind_to(made, node)
        return made

    def _input_of(self, dep: Node, reader: Node) -> Node:
        if dep not in self._needed or not isinstance(dep, DataSourceNode):
            return self.made.get(dep, dep)
        if moves_rows(reader):
            return dep  # it reads no more rows than it passes on: a query in between would read them all
        if dep not in self._selected:
            self._selected[dep] = _selected(dep, _ordered(self._needed[dep], dep))
        return self._selected[dep]


def may_be_pruned(node: Node) -> bool:
    """Whether there can be a version of a node with fewer columns. Not of partitions that the user made: they are computed once, for all readers to come."""
    if isinstance(node, DataSourceNode):
        return isinstance(node.dataset, ParquetDataSet) and not node.dataset.generated_columns
    return moves_rows(node) or is_prunable_sql(node)


def is_prunable_sql(node: Node) -> bool:
    """Whether a node is one query whose result may be selected from."""
    return (
        type(node) in (SqlEngineNode, KeyedSqlNode)
        and isinstance(node, SqlEngineNode)
        and "spawn" not in node.__dict__
        and len(node.sql_queries) == 1
        and not node.udfs
        and not node.batched_processing
        and node.output_name is None
        and node.output_path is None
        and all(
            parsed(query) is not None and all(times_read(query, index) == 1 for index in range(len(inputs)))
            for query, inputs in texts_of(node)
        )
    )


def moves_rows(node: Node) -> bool:
    """Whether a node passes the rows of its only input on as they are, all or some of them."""
    return isinstance(node, (LimitNode, ConsolidateNode, SortNode))


def _keys_of(node: Node, schema: Schema) -> Names | None:
    """The columns that a node looks at to move rows; None if that can't be said."""
    if not isinstance(node, SortNode):
        return Names()
    try:
        keys = expressions([key.by for key in node.sort_keys], columns=list(schema))
        return Names(name for item in keys for name in columns_in(item.tree))
    except BadInput:
        return None


def texts_of(node: SqlEngineNode) -> list[tuple[str, list[int]]]:
    """The queries of a node over its inputs as they are, with the numbers of the inputs that each reads as {0}, {1}, ..."""
    inputs = list(range(len(node.input_deps)))
    if not isinstance(node, KeyedSqlNode):
        return [(node.sql_queries[0], inputs)]
    found = [(node.whole_query, inputs)]
    if all(side.before is None for side in node.sides) and node.sql_queries[0] != node.whole_query:
        found.append((node.sql_queries[0], inputs))
    return found + [(side.before, [index]) for index, side in enumerate(node.sides) if side.before is not None]


def _before(node: Node) -> set[str]:
    return {side.before for side in node.sides if side.before is not None} if isinstance(node, KeyedSqlNode) else set()


def _present(names: Iterable[str], schema: Schema) -> Names:
    """The columns of a schema that have these names (in whatever case), at least one: rows must be counted."""
    lowered = {name.lower() for name in names}
    found = Names(name for name in schema if name.lower() in lowered)
    return found or Names(list(schema)[:1])


def _schema(node: Node) -> Schema:
    schema = schema_of(node)
    assert schema is not None, "only of nodes whose columns are known something is left out"
    return schema


def _ordered(names: Names, node: Node) -> list[str]:
    return [name for name in _schema(node) if name in names]


def _selected(node: DataSourceNode, names: Sequence[str]) -> SqlEngineNode:
    """Some columns of a source."""
    made = SqlEngineNode(node.ctx, (node,), f"SELECT {template(', '.join(map(quote_name, names)))} FROM {{0}}")
    made.location = node.location
    made.is_by_row = True
    remember(made, {name: kind for name, kind in _schema(node).items() if name in names})
    return made


# queries


def narrowed(query: str, names: Sequence[str], node: SqlEngineNode, num_inputs: int) -> str | None:
    """A node's query with only these columns of its result; None if that can't be said."""
    columns = node.select_list
    whole = f"SELECT {', '.join(columns.values())} "
    if columns and columns.keys() >= set(names) and query.startswith(whole):
        return f"SELECT {', '.join(columns[name] for name in names)} {query.removeprefix(whole)}"
    selected = f"SELECT {template(', '.join(map(quote_name, names)))} FROM {{0}}"
    return nested_query(selected, query, f"__all_{node.id}", 0, num_inputs, max_chars=None)


def _narrow(node: SqlEngineNode, names: Sequence[str]) -> None:
    def narrow(query: str) -> str:
        text = narrowed(query, names, node, len(node.input_deps))
        assert text is not None, f"a query was to be narrowed that can't be: {query}"
        return text

    if isinstance(node, KeyedSqlNode):
        node.whole_query = narrow(node.whole_query)
    node.sql_queries = [narrow(node.sql_queries[0])]


def _bind_to(made: SqlEngineNode, node: SqlEngineNode) -> None:
    """Let the queries of a version find all columns that they name."""
    before = [schema_of(dep) for dep in node.input_deps]
    after = [schema_of(dep) for dep in made.input_deps]
    if before == after:
        return

    def bind(query: str, inputs: Sequence[int]) -> str:
        schemas = [after[index] for index in inputs]
        if not counts_columns(on_tables(query, [f"input_{index}" for index in inputs], node)):
            with suppress(BadInput):
                bound_query(query, schemas)
                return query
        return with_missing(query, [before[index] for index in inputs], schemas, node)

    every = range(len(node.input_deps))
    if isinstance(made, KeyedSqlNode):
        made.whole_query = bind(made.whole_query, every)
        made.sides = tuple(
            side if side.before is None else replace(side, before=bind(side.before, [index]))
            for index, side in enumerate(made.sides)
        )
        if any(side.before is not None for side in made.sides):
            return
    made.sql_queries = [bind(made.sql_queries[0], every)]


def with_missing(query: str, before: "Sequence[Schema | None]", after: "Sequence[Schema | None]", node: Node) -> str:
    """A query over inputs that have lost columns, which it names but whose values it does not need."""
    for index, (whole, rest) in enumerate(zip(before, after, strict=True)):
        if whole is None or rest is None or len(whole) == len(rest):
            continue
        columns = [
            quote_name(name) if name in rest else f"CAST(NULL AS {kind}) AS {quote_name(name)}"
            for name, kind in whole.items()
        ]
        inner = f"SELECT {template(', '.join(columns))} FROM {{0}}"
        text = nested_query(query, inner, f"__some_{node.id}_{index}", index, 1, len(before), max_chars=None)
        assert text is not None, f"an input has lost columns of a query that can't be changed: {query}"
        query = text
    return query
