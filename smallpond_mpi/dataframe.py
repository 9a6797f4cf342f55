"""DataFrame: a lazy table, cut into partitions. Each operation makes a node of the logical plan; `compute` and what needs rows run it."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import duckdb

from smallpond_mpi import arguments
from smallpond_mpi.common import DEFAULT_BATCH_SIZE, InvalidArgument, WrongType
from smallpond_mpi.execution.task.sort_key import sort_keys
from smallpond_mpi.logical.dataset import (
    ArrowTableDataSet,
    CsvDataSet,
    DataSet,
    JsonDataSet,
    PandasDataSet,
    ParquetDataSet,
)
from smallpond_mpi.logical.dataset.hive import hive_select_list
from smallpond_mpi.logical.dataset.quoting import quote_name
from smallpond_mpi.logical.dataset.sniffing import csv_schema, json_schema
from smallpond_mpi.logical.expressions import says_rows_alone
from smallpond_mpi.logical.node import (
    ArrowBatchNode,
    ArrowComputeNode,
    DataSourceNode,
    EvenlyDistributedPartitionNode,
    HashPartitionNode,
    LimitNode,
    Node,
    SortNode,
    SqlEngineNode,
)
from smallpond_mpi.logical.node.sort import cut_for_sort
from smallpond_mpi.logical.query_columns import names_in
from smallpond_mpi.logical.relational import check_sort_keys, check_values, checked, there
from smallpond_mpi.logical.schema import forget, schema_of
from smallpond_mpi.results import Results, reading_rows_of
from smallpond_mpi.rows import ExplodeRows, FilterRows, MapBatches, MapRows, ShuffleRows
from smallpond_mpi.session import SessionBase
from smallpond_mpi.writing import Writing

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as arrow

Row = dict[str, Any]


class Session(SessionBase):
    """A job: makes DataFrames and runs them. `smallpond_mpi.init()` gives one."""

    def read_csv(
        self,
        paths: str | list[str],
        schema: dict[str, str] | None = None,
        delim: str = ",",
        header: bool | None = None,
    ) -> "DataFrame":
        """CSV files.

        Args:
            paths: files, directories or patterns.
            delim: what stands between two values.
            schema: the DuckDB type of each column, in order. None: DuckDB finds them in the first rows of the first files, and in
                the first file how values are quoted and escaped, what begins a comment, and how many lines come before the header.
            header: whether the first line of each file is not data. None: no, or, without a schema, as it looks.
        """
        files = arguments.absolute_paths(paths)
        if schema is None:
            found = csv_schema(files, arguments.text(delim, "delim", keep_space=True), header)
            return self._source(CsvDataSet(files, found.schema, delim, header=found.header, dialect=found.dialect))
        return self._source(CsvDataSet(files, arguments.column_types(schema), delim, header=bool(header)))

    def read_parquet(
        self,
        paths: str | list[str],
        recursive: bool = False,
        columns: list[str] | None = None,
        union_by_name: bool = False,
        hive_partitioning: bool = False,
    ) -> "DataFrame":
        """Parquet files, patterns or directories.

        Args:
            recursive: the files of directories within directories too.
            union_by_name: files may have different columns.
            hive_partitioning: what the names of directories say (`day=2024-01-01/`, as `write_parquet(partition_by=)` makes them) are columns too,
                after those of the files: whole numbers, dates, timestamps, or text. Directories are looked into, whatever `recursive` is.
        """
        dataset = ParquetDataSet(
            arguments.absolute_paths(paths), recursive=recursive or hive_partitioning, union_by_name=union_by_name
        )
        frame = self._source(dataset)
        if hive_partitioning:
            by_path = hive_select_list(dataset.resolved_paths)
            frame = self._source(dataset.project(generated_columns=["filename"])).map(by_path)
            return frame if columns is None else frame.select(*arguments.texts(columns, "columns"))
        if columns is not None:
            dataset.columns = there(arguments.texts(columns, "columns"), schema_of(frame.plan), "columns")
            forget(frame.plan)
        return frame

    def read_json(self, paths: str | list[str], schema: dict[str, str] | None = None) -> "DataFrame":
        """Files of JSON objects, one a line.

        Args:
            paths: files, directories or patterns.
            schema: the DuckDB type of each column. None: DuckDB finds them in the first rows, and whether the objects are one a line, in an array,
                or one after the other.
        """
        files = arguments.absolute_paths(paths)
        if schema is None:
            found = json_schema(files)
            return self._source(JsonDataSet(files, found.schema, format=found.format))
        return self._source(JsonDataSet(files, arguments.column_types(schema)))

    def from_items(self, items: list[Any]) -> "DataFrame":
        """Rows from a list: dicts are rows, anything else becomes the column `item`."""
        return self.from_arrow(arguments.table_of_items(items))

    def from_pandas(self, df: "pd.DataFrame") -> "DataFrame":
        """A frame in memory."""
        return self._source(PandasDataSet(arguments.frame_of_pandas(df)))

    def from_arrow(self, table: "arrow.Table") -> "DataFrame":
        """A table in memory."""
        return self._source(ArrowTableDataSet(arguments.table_of_arrow(table)))

    def shard(self, paths: str | list[str], recursive: bool = False) -> list[str]:
        """The files that this element of a Slurm job array is to read: contiguous, and about as many bytes for each element.

        What is written from now on waits beside the output path, in `{path}.elements`, until `smallpond-mpi collect` makes one dataset of it. How the
        files are cut is decided once an array: files that come later are nobody's. What is written before goes where it is told to, and no two elements may name one path. Outside an array these are all files. With more elements than files
        some get none: reading CSV and JSON then needs a schema.

        Raises:
            InputNotFound: a pattern matches nothing, or a file is not there.
        """
        return self._share(arguments.absolute_paths(paths), recursive)

    def partial_sql(self, query: str, *inputs: "DataFrame", **kwargs: Any) -> "DataFrame":
        """Run a query on each partition: `{0}`, `{1}`, … are the inputs, paired by partition. Settings as SqlEngineNode."""
        made = self._frame(
            SqlEngineNode, tuple(map(_plan_of, inputs)), sql_query=arguments.texts(query, "query"), **kwargs
        )
        assert isinstance(made.plan, SqlEngineNode)
        with suppress(duckdb.Error, OSError):  # about what only a task can know: files, extensions
            checked(made.plan)
        return made

    def wait(self, *dfs: "DataFrame") -> None:
        """Compute all of them, side by side."""
        self._run(list(map(_plan_of, dfs)))

    def _frame(self, kind: Callable[..., Node], inputs: tuple[Node, ...], **kwargs: Any) -> "DataFrame":
        """A DataFrame of a new node. `timeout_secs` and `isolated` are settings that every kind of node has."""
        settings = {name: kwargs.pop(name) for name in ("timeout_secs", "isolated") if name in kwargs}
        arguments.seconds(settings.get("timeout_secs"), "timeout_secs")
        arguments.check_settings(kind, kwargs, ("timeout_secs", "isolated"))
        node = kind(self._ctx, inputs, **kwargs)
        for name, value in settings.items():
            setattr(node, name, value)
        return DataFrame(self, node)

    def _source(self, dataset: DataSet) -> "DataFrame":
        return DataFrame(self, DataSourceNode(self._ctx, dataset))


class DataFrame(Results, Writing):
    """A table, lazily: partitions of it are computed when rows are asked for, once a session.

    All operations take the settings of the node they make as keyword arguments (`cpu_limit`, `memory_limit` in bytes, `gpu_limit` where
    the node has it), and `timeout_secs` (an attempt that runs longer is ended and tried again) and `isolated` (each attempt in a process
    of its own).
    """

    def __init__(self, session: Session, plan: Node, recompute: bool = False) -> None:
        self.session = session
        self.plan = plan
        if recompute:
            session._forget(plan)

    def is_computed(self) -> bool:
        """Whether the rows are there already."""
        return self.session._is_computed(self.plan)

    def compute(self) -> None:
        """Bring the rows into being; nothing happens if they are there."""
        self._datasets()

    def recompute(self) -> "DataFrame":
        """Forget the rows: what needs them computes them again."""
        self.session._forget(self.plan)
        return self

    # operations

    def repartition(
        self,
        npartitions: int,
        hash_by: str | list[str] | None = None,
        by: str | None = None,
        by_rows: bool = False,
        **kwargs: Any,
    ) -> "DataFrame":
        """Cut into `npartitions` partitions: by whole files (default), by rows, by hash of columns, or by an SQL expression.

        Args:
            hash_by: columns; rows with equal values end up in one partition.
            by: an SQL expression that gives each row's partition, 0 to npartitions - 1.
            by_rows: as many rows in each partition, give or take one.

        Raises:
            InvalidArgument: more than one way is given, or npartitions is out of range.
        """
        if not isinstance(by_rows, bool):
            raise WrongType(f"by_rows must be True or False, not {arguments.shown(by_rows)}")
        if sum((hash_by is not None, by is not None, by_rows)) > 1:
            raise InvalidArgument("repartition takes one of hash_by, by and by_rows")
        if hash_by is not None:
            columns = there(arguments.texts(hash_by, "hash_by"), schema_of(self.plan), "hash_by")
            kwargs = self._with_partition_column(kwargs)
            return self._then(HashPartitionNode, npartitions=npartitions, hash_columns=columns, **kwargs)
        if by is not None:
            number = arguments.text(by, "by")
            check_values(self.plan, [number])
            kwargs = self._with_partition_column(kwargs, is_added=True)
            column = quote_name(kwargs["data_partition_column"])
            return self._sql(f"select *, ({number}) as {column} from {{0}}")._then(
                HashPartitionNode, npartitions=npartitions, shuffle_only=True, **kwargs
            )
        frame = self.map("*") if by_rows and self._is_of_text else self
        return frame._then(EvenlyDistributedPartitionNode, npartitions=npartitions, partition_by_rows=by_rows, **kwargs)

    def random_shuffle(self, **kwargs: Any) -> "DataFrame":
        """Put the rows into random order, across all partitions. The job's random_seed decides which."""
        kwargs = self._with_partition_column(kwargs)
        scattered = self._then(
            HashPartitionNode, npartitions=max(1, self.plan.num_partitions), random_shuffle=True, **kwargs
        )
        return scattered._then(ArrowComputeNode, process_func=ShuffleRows())

    def partial_sort(self, by: str | list[str], **kwargs: Any) -> "DataFrame":
        """Sort each partition by SQL expressions, e.g. `["a", "b desc"]`."""
        keys = ", ".join(arguments.texts(by, "by"))
        made = self._sql(f"select * from {{0}} order by {keys}", **kwargs)
        assert isinstance(made.plan, SqlEngineNode)
        checked(made.plan)
        return made

    def sort(
        self,
        by: str | list[str],
        descending: bool | list[bool] = False,
        nulls_last: bool | list[bool] = True,
        npartitions: int | None = None,
        **kwargs: Any,
    ) -> "DataFrame":
        """Sort all rows: partition by partition they are in order, in `to_arrow` and in files by their names.

        Args:
            by: columns or SQL expressions; `"a desc nulls first"` is understood too.
            descending, nulls_last: for all of `by`, or a list of one for each. NULL comes last by default, in both directions, as in DuckDB.
            npartitions: how many partitions the rows are sorted in; None: what the job's CPUs need.

        Rows that compare equal are in one partition, in no particular order.
        """
        keys = sort_keys(arguments.texts(by, "by"), descending, nulls_last)
        check_sort_keys(self.plan, keys)
        count = None if npartitions is None else arguments.whole_number(npartitions, "npartitions", 1)
        ranges = cut_for_sort(self.plan, keys, count, self.session._runtime_ctx.num_slots or 1)
        return self.session._frame(SortNode, (ranges,), sort_keys=keys, **kwargs)

    def filter(self, sql_or_func: str | Callable[[Row], bool], **kwargs: Any) -> "DataFrame":
        """Keep the rows for which a condition is true.

        Args:
            sql_or_func: an SQL condition (a text or one of DuckDB's expressions), or a function of a row, which is a dict.
        """
        sql_or_func = arguments.sql(sql_or_func)
        if isinstance(sql_or_func, str):
            condition = arguments.text(sql_or_func, "a condition")
            return self._by_row(f"select * from {{0}} where (\n{condition}\n)", condition, is_filter=True, **kwargs)
        return self._then(ArrowComputeNode, process_func=FilterRows(arguments.function(sql_or_func)), **kwargs)

    def map(
        self, sql_or_func: str | Callable[[Row], Row], *, schema: "arrow.Schema | None" = None, **kwargs: Any
    ) -> "DataFrame":
        """Make a row of each.

        Args:
            sql_or_func: SQL expressions, as they stand after `select` (or one of DuckDB's expressions), or a function from dict to dict.
            schema: of what the function returns; without it the types follow from the values.
        """
        sql_or_func = arguments.sql(sql_or_func, with_name=True)
        if isinstance(sql_or_func, str):
            columns = arguments.text(sql_or_func, "an SQL expression")
            return self._by_row(f"select {columns}\nfrom {{0}}", columns, **kwargs)
        func = MapRows(arguments.function(sql_or_func), arguments.arrow_schema(schema))
        return self._then(ArrowComputeNode, process_func=func, **kwargs)

    def flat_map(
        self, sql_or_func: str | Callable[[Row], list[Row]], *, schema: "arrow.Schema | None" = None, **kwargs: Any
    ) -> "DataFrame":
        """Make any number of rows of each.

        Args:
            sql_or_func: SQL expressions such as `unnest(...)`, or a function from dict to a list of dicts.
            schema: of what the function returns; without it the types follow from the values.
        """
        sql_or_func = arguments.sql(sql_or_func, with_name=True)
        if isinstance(sql_or_func, str):
            columns = arguments.text(sql_or_func, "an SQL expression")
            return self._by_row(f"select {columns}\nfrom {{0}}", columns, **kwargs)
        func = ExplodeRows(arguments.function(sql_or_func), arguments.arrow_schema(schema))
        return self._then(ArrowComputeNode, process_func=func, **kwargs)

    def map_batches(
        self, func: "Callable[[arrow.Table], arrow.Table]", *, batch_size: int = DEFAULT_BATCH_SIZE, **kwargs: Any
    ) -> "DataFrame":
        """Make a table of each batch of exactly `batch_size` rows (the last of a partition may be shorter)."""
        rows = arguments.whole_number(batch_size, "batch_size", 1)
        return self._then(
            ArrowBatchNode, process_func=MapBatches(arguments.function(func)), streaming_batch_size=rows, **kwargs
        )

    def limit(self, limit: int) -> "DataFrame":
        """The first `limit` rows, in one partition."""
        return DataFrame(self.session, LimitNode(self._ctx, self.plan, limit))

    # results

    def count(self) -> int:
        """Number of rows."""
        datasets = self._datasets()
        with reading_rows_of(self.plan):
            return sum(dataset.num_rows for dataset in datasets)

    def take(self, limit: int) -> list[Row]:
        """The first `limit` rows."""
        arguments.whole_number(limit, "limit", 0)
        few = self if self._rows_in_memory() is not None else self.limit(limit)
        table = few.to_arrow()
        return list(table.slice(0, min(limit, table.num_rows)).to_pylist())  # Arrow slices rows out of no columns

    def take_all(self) -> list[Row]:
        """All rows."""
        return list(self.to_arrow().to_pylist())

    def to_pandas(self) -> "pd.DataFrame":
        """All rows as a pandas frame."""
        return self.to_arrow().to_pandas()

    def to_arrow(self) -> "arrow.Table":
        """All rows as an Arrow table, in partition order."""
        in_memory = self._rows_in_memory()
        if in_memory is not None:
            return in_memory
        datasets = self._datasets()
        with reading_rows_of(self.plan):
            return DataSet.merge(datasets).to_arrow_table()

    def _rows_in_memory(self) -> "arrow.Table | None":
        """The table this DataFrame was made from, if nothing was done to it."""
        dataset = self.plan.dataset if isinstance(self.plan, DataSourceNode) else None
        return dataset.to_arrow_table() if isinstance(dataset, (ArrowTableDataSet, PandasDataSet)) else None

    # inside

    def _with_partition_column(self, settings: dict[str, Any], is_added: bool = False) -> dict[str, Any]:
        """Settings of a hash partition with the column of partition numbers, which is left out of the rows unless they say otherwise.

        A column that an earlier job has left in its files is data: it must neither be lost nor be taken for the numbers.

        Args:
            is_added: the column is made before rows are cut, and can't replace one.

        Raises:
            InvalidArgument: the rows have a column of that name already.
        """
        default = HashPartitionNode.default_data_partition_column
        settings = {"drop_partition_column": True, "data_partition_column": default, **settings}
        column, is_dropped, schema = settings["data_partition_column"], settings["drop_partition_column"], self._columns
        taken = {name.lower() for name in schema or ()}
        if column == default and is_dropped and not settings.get("hive_partitioning"):
            while column.lower() in taken or (schema is None and column == default):
                column += "_"
        elif column.lower() in taken and (is_added or column != default):
            raise InvalidArgument(f"there is a column {column!r} already: give data_partition_column another name")
        return {**settings, "data_partition_column": column}

    @property
    def _is_of_text(self) -> bool:
        """Whether these are files of which nobody knows where a row begins without reading them."""
        return isinstance(self.plan, DataSourceNode) and isinstance(self.plan.dataset, (CsvDataSet, JsonDataSet))

    @property
    def _columns(self) -> list[str] | None:
        """The names of the columns, as far as they are known."""
        schema = schema_of(self.plan)
        return None if schema is None else names_in(schema)

    @property
    def _ctx(self) -> Any:
        return self.session._ctx

    def _sql(self, query: str, **kwargs: Any) -> "DataFrame":
        return self._then(SqlEngineNode, sql_query=query, **kwargs)

    def _by_row(self, query: str, expressions: str, is_filter: bool = False, **kwargs: Any) -> "DataFrame":
        """The rows of a query, each of which follows from one row, unless something in the expressions says otherwise."""
        made = self._sql(query, **kwargs)
        assert isinstance(made.plan, SqlEngineNode)
        made.plan.is_by_row = says_rows_alone(expressions)
        made.plan.is_filter = is_filter
        checked(made.plan)
        return made

    def _then(self, kind: Callable[..., Node], **kwargs: Any) -> "DataFrame":
        return self.session._frame(kind, (self.plan,), **kwargs)


def _plan_of(df: Any) -> Node:
    if not isinstance(df, DataFrame):
        raise WrongType(f"a DataFrame is needed, not {arguments.shown(df)}")
    return df.plan
