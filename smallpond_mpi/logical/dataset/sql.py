"""A dataset that is a query: given as text, or built when the connection it runs on is known."""

from collections.abc import Callable
from contextlib import closing

import duckdb
from fsspec import AbstractFileSystem

from smallpond_mpi.common import InvalidArgument, InvalidQuery
from smallpond_mpi.logical.dataset.base import DataSet, connect, merge_udfs, run_sql
from smallpond_mpi.logical.dataset.quoting import quote_names

QueryBuilder = Callable[[duckdb.DuckDBPyConnection, AbstractFileSystem | None], str]


class SqlQueryDataSet(DataSet):
    """The result of a query over whatever DuckDB can reach. `query_builder(conn, filesystem)`, if given, makes the query."""

    is_of_files = False

    def __init__(self, sql_query: str, query_builder: QueryBuilder | None = None) -> None:
        super().__init__([], None)
        self.sql_query = sql_query
        self.query_builder = query_builder

    def __repr__(self) -> str:
        return f"SqlQueryDataSet({self.sql_query[:200]!r})"

    def content_stamp(self) -> object:
        """What the query will read nobody knows: its text stands for it."""
        return None

    @property
    def num_rows(self) -> int:
        with closing(connect()) as conn:
            query = f"SELECT count(*) FROM {self.sql_query_fragment(conn=conn)}"
            (count,) = run_sql(conn, query, self).fetchall()[0]
        return int(count)

    @property
    def empty(self) -> bool:
        """Whether the query has no rows: asks for one."""
        with closing(connect()) as conn:
            query = f"SELECT 1 FROM {self.sql_query_fragment(conn=conn)} LIMIT 1"
            return not run_sql(conn, query, self).fetchall()

    def sql_query_fragment(
        self, filesystem: AbstractFileSystem | None = None, conn: duckdb.DuckDBPyConnection | None = None
    ) -> str:
        """The query in parentheses."""
        if self.query_builder is None:
            query = self.sql_query
        elif conn is None:
            raise InvalidArgument(
                f"{self!r} has a query builder, which needs the connection that the query is to run on"
            )
        else:
            query = self.query_builder(conn, filesystem)
        query = query.strip().rstrip(";").strip()
        if not query:
            raise InvalidQuery("an empty query")
        # A comment on the last line would take the closing parenthesis with it.
        fragment = f"({query}\n)" if "--" in query else f"({query})"
        return fragment if self.columns is None else f"(SELECT {quote_names(self.columns)} FROM {fragment})"

    def _merge_with(self, others: "list[SqlQueryDataSet]") -> "SqlQueryDataSet":
        every = [self, *others]
        merged = SqlQueryDataSet("merged queries", _Union(every))
        merged._udfs = merge_udfs(every)
        return merged

    @staticmethod
    def merge(datasets: "list[SqlQueryDataSet]") -> "SqlQueryDataSet":  # type: ignore[override]
        """The rows of all queries, in order."""
        if len(datasets) == 1:
            return datasets[0]
        if not datasets:
            raise InvalidArgument("there is no dataset to merge")
        return datasets[0]._merge_with(datasets[1:])


class _Union:
    """Builds the union of queries; a class because a lambda would not pickle by reference."""

    def __init__(self, datasets: list[SqlQueryDataSet]) -> None:
        self._datasets = datasets

    def __call__(self, conn: duckdb.DuckDBPyConnection, filesystem: AbstractFileSystem | None) -> str:
        return " UNION ALL ".join(f"FROM {item.sql_query_fragment(filesystem, conn)}" for item in self._datasets)
