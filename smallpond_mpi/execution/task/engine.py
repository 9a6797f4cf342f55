"""DuckDB for tasks: connections that are held to the grant, views over the inputs, and errors in the user's terms.

A connect costs 14 ms, a cursor of an instance that is kept 0.1 ms, so one instance a process is kept for the tasks that leave it as they
found it. Temporary views and tables belong to the cursor and go with it; settings belong to the instance and are set again for each task.
"""

import errno
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import duckdb

from smallpond_mpi.common import INPUT_VIEW_PREFIX, DataRootUnusable, OutOfMemory, SmallpondError, TaskFailed
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.logical.dataset import ParquetDataSet
from smallpond_mpi.logical.dataset.errors import translate
from smallpond_mpi.logical.dataset.quoting import quote_text

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from smallpond_mpi.logical.dataset import DataSet
    from smallpond_mpi.logical.udf import UDFContext

log = logging.getLogger(__name__)

HARMLESS = frozenset({duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN})
"""Statements that leave an instance as it was."""


GUESSING_OPTIMIZERS = frozenset({"partial_aggregate_pushdown"})
"""Sums up rows before a join that drops most of them, unless it knows how many that are. Over a table that tasks before made, which says nothing
of where it comes from, it does not: TPC-H's Q3 took 1.4 times the processor time. Sums before a shuffle are planned by us anyway."""


def connect(unsigned_extensions: bool = False) -> duckdb.DuckDBPyConnection:
    """An instance of its own: in memory, without a place to spill to, one thread until it is told otherwise."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1,
        "temp_directory": "",
        "enable_external_file_cache": False,
        "allow_unsigned_extensions": unsigned_extensions,
    }
    conn = duckdb.connect(":memory:", config=config)
    leave_out_guesses(conn)
    return conn


def leave_out_guesses(conn: duckdb.DuckDBPyConnection) -> None:
    """Turn off the optimizers whose guesses go wrong over intermediate files, as far as this DuckDB has them."""
    known = {name for (name,) in conn.execute("SELECT name FROM duckdb_optimizers()").fetchall()}
    left_out = ",".join(sorted(GUESSING_OPTIMIZERS & known))
    if left_out:
        conn.execute(f"SET disabled_optimizers={quote_text(left_out)}")


class _Kept:
    """The instance that this process keeps, and the settings it has now."""

    def __init__(self) -> None:
        self.conn = connect()
        self.process = os.getpid()
        self.settings = ""


_kept: _Kept | None = None
_inherited: list[_Kept] = []
"""Instances of a process that forked: their threads are not here, so that closing them would wait for ever."""


MAX_CACHED_FOOTER_BYTES = 4_000_000
"""What an instance that is kept may hold of Parquet footers, as DuckDB counts them: a ninth of what they take."""


def holds_many_footers(conn: duckdb.DuckDBPyConnection) -> bool:
    """Whether the footers that DuckDB has cached are more than an idle process should hold."""
    query = "SELECT memory_usage_bytes FROM duckdb_memory() WHERE tag = 'OBJECT_CACHE'"
    held: int = sum(size for (size,) in conn.execute(query).fetchall())
    return held > MAX_CACHED_FOOTER_BYTES


def kept_cursor() -> duckdb.DuckDBPyConnection:
    """A cursor of the instance that this process keeps."""
    global _kept
    if _kept is not None and _kept.process != os.getpid():
        _inherited.append(_kept)
        _kept = None
    if _kept is None:
        _kept = _Kept()
    return _kept.conn.cursor()


def forget_kept() -> None:
    """Drop the instance that this process keeps: something may be wrong with it."""
    global _kept
    _kept = None


def struct_literal(entries: Mapping[str, str]) -> str:
    """`{'key': 'value', ...}`"""
    return "{" + ", ".join(f"{quote_text(key)}: {quote_text(value)}" for key, value in entries.items()) + "}"


class ExecSqlQueryMixin(Task):
    """For tasks that run SQL: a connection held to the task's limits, with a view for each input."""

    enable_temp_directory = False
    cpu_overcommit_ratio = 1.0
    memory_overcommit_ratio = 1.0
    input_view_index = 0
    parquet_compression: str | None = None
    parquet_compression_level: int | None = None

    # randomness: the same for all attempts of the task, and for each use within one

    @property
    def rand_seed_float(self) -> float:
        """At least -1 and less than 1, for setseed()."""
        return random.Random(self.random_seed_bytes + b"float").random() * 2 - 1

    @property
    def rand_seed_uint32(self) -> int:
        """0 .. 2**31 - 1, for hash and sample seeds."""
        return random.Random(self.random_seed_bytes + b"uint32").randint(0, 0x7FFFFFFF)

    # functions

    @property
    def udfs(self) -> "Sequence[UDFContext]":
        """The user's functions that the queries of this task call."""
        return ()

    @property
    def input_udfs(self) -> "list[UDFContext]":
        """The user's functions that reading the inputs calls."""
        return [udf for dataset in self.input_datasets for udf in dataset.udfs]

    # how Parquet is written

    @property
    def compression_type_str(self) -> str:
        """The option of a COPY statement that names the codec; empty for DuckDB's own choice."""
        return f"COMPRESSION {quote_text(self.parquet_compression)}" if self.parquet_compression else ""

    @property
    def compression_level_str(self) -> str:
        """The option of a COPY statement that gives ZSTD's level; empty for other codecs."""
        if self.parquet_compression_level is None or str(self.parquet_compression).upper() != "ZSTD":
            return ""
        return f"COMPRESSION_LEVEL {int(self.parquet_compression_level)}"

    @property
    def compression_options(self) -> str:
        """Options of a COPY statement, joined by commas."""
        return ", ".join(filter(None, (self.compression_type_str, self.compression_level_str)))

    # connections

    @property
    def engine_threads(self) -> int:
        """Threads that DuckDB may use, at least 1."""
        return max(1, int(self.cpu_limit * self.cpu_overcommit_ratio))

    @property
    def engine_memory(self) -> int:
        """Bytes that DuckDB may take; the rest of the grant is for the process around it."""
        assert self.memory_limit is not None, "a running task has a memory limit"
        return max(1, int(self.memory_limit * self.memory_overcommit_ratio))

    @contextmanager
    def connection(self, queries: Sequence[str] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
        """A prepared connection for these statements: a cursor of the kept instance where they can't leave a trace in it."""
        udfs = [*self.input_udfs, *self.udfs]
        alone = bool(udfs) or self.may_spill or self.ctx.enable_profiling or not all(map(is_harmless, queries))
        conn = connect(any(udf.needs_unsigned_extensions for udf in udfs)) if alone else kept_cursor()
        try:
            try:
                self._prepare_connection(conn, alone)
            except duckdb.OutOfMemoryException as error:
                # The kept instance holds more than this task may take: what is left is an empty one.
                if alone:
                    raise OutOfMemory(str(error)) from error
                conn.close()
                forget_kept()
                conn = kept_cursor()
                self._prepare_connection(conn, alone)
            yield conn
            if not alone and self._shares_files and holds_many_footers(conn):
                forget_kept()
        except (duckdb.FatalException, duckdb.InternalException):
            forget_kept()
            raise
        finally:
            conn.close()

    def prepare_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Hold a connection to the task's limits, seed it, and bind the functions that queries may call."""
        self._prepare_connection(conn, True)

    def _prepare_connection(self, conn: duckdb.DuckDBPyConnection, alone: bool) -> None:
        settings = self._settings()
        if alone or _kept is None or _kept.settings != settings:
            conn.execute(settings)
            if not alone and _kept is not None:
                _kept.settings = settings
        conn.execute("SELECT setseed(?)", [self.rand_seed_float]).fetchall()
        for udf in (*self.input_udfs, *self.udfs):
            udf.bind(conn)

    @property
    def may_spill(self) -> bool:
        """Whether DuckDB may write to `temp_abspath` what does not fit: if that was asked for, and in every attempt after the first, which
        most often ran out of memory: what would be tried with ever more of it, and fail where there is no more, takes longer instead."""
        return self.enable_temp_directory or self.retry_count > 0

    @property
    def _shares_files(self) -> bool:
        """Whether its inputs are parts of files, whose footers the next task in this process is likely to read too."""
        return any(
            isinstance(dataset, ParquetDataSet) and not dataset.is_of_whole_files for dataset in self.input_datasets
        )

    def _settings(self) -> str:
        """What an instance is told of the task's limits."""
        settings = [
            f"SET threads={self.engine_threads}",
            f"SET memory_limit='{self.engine_memory} B'",
            "SET preserve_insertion_order=true",
            "SET enable_progress_bar=false",
            "SET arrow_large_buffer_size=true",
            f"SET GLOBAL parquet_metadata_cache={str(self._shares_files).lower()}",
        ]
        if self.may_spill:
            settings.append(f"SET temp_directory={quote_text(self.temp_abspath)}")
        return "; ".join(settings)

    def create_input_views(
        self,
        conn: duckdb.DuckDBPyConnection,
        input_datasets: "Sequence[DataSet]",
        filesystem: "AbstractFileSystem | None" = None,
        queries: Sequence[str] = (),
    ) -> list[str]:
        """A temporary view for each dataset, which `queries` are to read; returns their names, which need no quotes."""
        names = []
        for dataset in input_datasets:
            name = f"{INPUT_VIEW_PREFIX}_{self.id}_{self.input_view_index:06d}"
            self.input_view_index += 1
            fragment = dataset.sql_query_fragment(filesystem, conn)
            rows = rows_for(queries, fragment)
            self.exec_query(conn, f"CREATE OR REPLACE TEMP VIEW {name} AS {rows}", log_query=False)
            names.append(name)
        return names

    def exec_query(
        self,
        conn: duckdb.DuckDBPyConnection,
        query_statement: str,
        enable_profiling: bool = False,
        log_query: bool = True,
        log_output: bool = False,
    ) -> duckdb.DuckDBPyConnection:
        """Run one statement; what it gives is fetched from the connection that is returned.

        Raises:
            InvalidQuery: DuckDB refuses the statement, or a value in the data can't be what it asks for.
            OutOfMemory: DuckDB needs more than its share of the memory limit.
            BadInput: an input file is missing, damaged or not of the schema that was expected.
            DataRootUnusable: the disk is full.
        """
        if log_query:
            log.debug("%s runs %s", self.key, query_statement)
        if enable_profiling:
            conn.execute("SET enable_profiling='no_output'")
        try:
            conn.execute(query_statement)
        except duckdb.Error as error:
            raise translate_duckdb(error, query_statement, self.input_datasets) from error
        if enable_profiling:
            log.info("%s: profile of %s\n%s", self.key, query_statement, conn.get_profiling_information())
        if log_output:
            log.info("%s: %s gives\n%s", self.key, query_statement, conn.fetchall())
        return conn


HOLDS_GROUPS = re.compile(r"\b(over|asof)\b", re.IGNORECASE)


def rows_for(queries: Sequence[str], fragment: str) -> str:
    """The rows of a dataset's query as these queries are to read them.

    To DuckDB 2.0 each branch of a UNION ALL is a pipeline of its own, whose partitions a window (or ASOF join) holds apart until the end: over
    82 parts of a partition of 330 MB it took 12 GB. Put together first, which takes what it holds anyway, it took 0.5, in the same time.
    """
    if " UNION ALL " in fragment and any(map(HOLDS_GROUPS.search, queries)):
        return f"WITH __rows AS MATERIALIZED {fragment} SELECT * FROM __rows"
    return f"SELECT * FROM {fragment}"


def is_harmless(query: str) -> bool:
    """Whether a text consists of statements that leave the instance as it was. (What can't be parsed does nothing at all.)"""
    with suppress(duckdb.Error):
        return all(statement.type in HARMLESS for statement in duckdb.extract_statements(query))
    return True


def split_statements(query: str) -> list[tuple[str, duckdb.StatementType]]:
    """The statements of a text, each without the semicolon that ends it, with their types.

    Raises:
        InvalidQuery: it can't be parsed.
    """
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise translate_duckdb(error, query) from error
    return [(_without_semicolon(statement.query), statement.type) for statement in statements]


def _without_semicolon(statement: str) -> str:
    """A statement up to its semicolon: what comes after it can only be a comment."""
    if ";" not in statement:
        return statement.strip()
    text = statement.encode()
    tokens = [position for position, kind in duckdb.tokenize(statement) if kind != duckdb.token_type.comment]
    end = tokens[-1] if tokens and text[tokens[-1] : tokens[-1] + 1] == b";" else len(text)
    return text[:end].decode().strip()


NO_SPACE = re.compile(r"no space left|disk quota exceeded", re.IGNORECASE)
COPIED_QUERY = re.compile(r"COPY \(\n(.*)\n\) TO .*", re.DOTALL)
WRITTEN_FILE = re.compile(r'file \\?"([^"\\]+)')


def translate_duckdb(error: Exception, query: str, inputs: "Sequence[DataSet]" = ()) -> SmallpondError:
    """What a DuckDB error means to the user of a task: the disk is full, a function of theirs raised, or what `translate` says."""
    if isinstance(error, SmallpondError):
        return error
    text = str(error)
    if NO_SPACE.search(text):
        found = WRITTEN_FILE.search(text)
        return DataRootUnusable(errno.ENOSPC, f"no space is left to write {found[1] if found else text}")
    copied = COPIED_QUERY.fullmatch(query)
    query = copied[1] if copied else query
    if "Python exception occurred" in text:
        return TaskFailed(f"{text}\nin the query: {query}")
    return translate(error, query, inputs)
