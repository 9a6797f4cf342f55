"""CSV and JSON files with a declared schema. DuckDB reads them; what doesn't fit the schema is an error that names file and line."""

import os
from typing import NamedTuple, TypeVar

import duckdb
from fsspec import AbstractFileSystem

from smallpond_mpi.common import GB, ColumnNotFound, InvalidArgument
from smallpond_mpi.io.memory import LEAST_JSON_BYTES, json_object_bytes
from smallpond_mpi.io.resolve import is_url
from smallpond_mpi.logical.dataset.base import DataSet, merge_datasets, use_filesystem
from smallpond_mpi.logical.dataset.parquet_sql import NO_ROWS
from smallpond_mpi.logical.dataset.quoting import quote_name, quote_names, quote_paths, quote_text

T = TypeVar("T", bound="TextDataSet")

PACKED = (".gz", ".zst")
"""Files that are longer when they are read."""
JSON_FORMATS = ("auto", "unstructured", "newline_delimited", "array")


class TextDataSet(DataSet):
    """Files of text with an ordered map of column names to DuckDB types."""

    def __init__(
        self,
        paths: str | list[str],
        schema: dict[str, str],
        root_dir: str | None,
        recursive: bool,
        columns: list[str] | None,
        union_by_name: bool,
    ) -> None:
        super().__init__(paths, root_dir, recursive, columns, union_by_name)
        if not schema:
            raise InvalidArgument(f"{type(self).__name__} needs a schema: a map of column names to DuckDB types")
        self.schema = schema

    def _select(self, reader: str) -> str:
        for name in self.columns or ():
            if name not in self.schema:
                raise ColumnNotFound(f"no column {name!r} in the schema; its columns: {', '.join(self.schema)}")
        return f"(SELECT {quote_names(self.columns)} FROM {reader})"

    def _no_rows(self) -> str:
        """No files: no rows, with the columns of the schema."""
        nulls = ", ".join(f"CAST(NULL AS {type_}) AS {quote_name(name)}" for name, type_ in self.schema.items())
        return self._select(f"(SELECT {nulls} WHERE false)") if self.schema else NO_ROWS

    def _columns_struct(self) -> str:
        return "{" + ", ".join(f"{quote_text(name)}: {quote_text(type_)}" for name, type_ in self.schema.items()) + "}"

    def _merge_with(self: T, others: list[T]) -> T:
        for other in others:
            if other._format() != self._format():
                raise InvalidArgument(f"can't merge files of different format: {self._format()} and {other._format()}")
        return super()._merge_with(others)

    def _format(self) -> tuple[object, ...]:
        """All that says how a file is read."""
        raise NotImplementedError


class Dialect(NamedTuple):
    """How delimited text is written, besides the delimiter. An empty text: there is no such character."""

    quote: str = '"'
    escape: str = '"'
    comment: str = ""
    skip_rows: int = 0
    """Lines before the header, or the first row, of each file."""

    def options(self) -> list[str]:
        """What it is to read_csv."""
        texts = {"quote": self.quote, "escape": self.escape, "comment": self.comment}
        return [*(f"{name} = {quote_text(text)}" for name, text in texts.items()), f"skip = {int(self.skip_rows)}"]


USUAL = Dialect()
"""What DuckDB takes files for where nothing is said."""


class CsvDataSet(TextDataSet):
    """Delimited text."""

    def __init__(
        self,
        paths: str | list[str],
        schema: dict[str, str],
        delim: str = ",",
        max_line_size: int | None = None,
        parallel: bool = True,
        header: bool = False,
        root_dir: str | None = "",
        recursive: bool = False,
        columns: list[str] | None = None,
        union_by_name: bool = False,
        dialect: Dialect = USUAL,
    ) -> None:
        super().__init__(paths, schema, root_dir, recursive, columns, union_by_name)
        self.delim = delim
        self.max_line_size = max_line_size
        self.parallel = parallel
        self.header = header
        self.dialect = dialect

    @staticmethod
    def merge(datasets: "list[CsvDataSet]") -> "CsvDataSet":  # type: ignore[override]
        """All files, in order."""
        return merge_datasets(datasets, CsvDataSet)

    def sql_query_fragment(
        self, filesystem: AbstractFileSystem | None = None, conn: duckdb.DuckDBPyConnection | None = None
    ) -> str:
        """A parenthesised query of the rows of all files."""
        use_filesystem(conn, filesystem)
        if not self.num_files:
            return self._no_rows()
        options = [
            f"delim = {quote_text(self.delim)}",
            f"columns = {self._columns_struct()}",
            f"header = {str(self.header).lower()}",
            f"parallel = {str(self.parallel).lower()}",
            "auto_detect = false",
            "hive_partitioning = false",
            f"union_by_name = {str(self.union_by_name).lower()}",
            *self.dialect.options(),
        ]
        if self.max_line_size is not None:
            options.append(f"max_line_size = {int(self.max_line_size)}")
        return self._select(f"read_csv({quote_paths(self.resolved_paths)}, {', '.join(options)})")

    def _format(self) -> tuple[object, ...]:
        return (tuple(self.schema.items()), self.delim, self.max_line_size, self.parallel, self.header, self.dialect)


class JsonDataSet(TextDataSet):
    """JSON objects, by default one a line."""

    def __init__(
        self,
        paths: str | list[str],
        schema: dict[str, str],
        format: str = "newline_delimited",
        max_object_size: int = 1 * GB,
        root_dir: str | None = "",
        recursive: bool = False,
        columns: list[str] | None = None,
        union_by_name: bool = False,
    ) -> None:
        super().__init__(paths, schema, root_dir, recursive, columns, union_by_name)
        if format not in JSON_FORMATS:
            raise InvalidArgument(f"{format!r} is no format of JSON files; there are: {', '.join(JSON_FORMATS)}")
        self.format = format
        self.max_object_size = max_object_size

    @staticmethod
    def merge(datasets: "list[JsonDataSet]") -> "JsonDataSet":  # type: ignore[override]
        """All files, in order."""
        return merge_datasets(datasets, JsonDataSet)

    def sql_query_fragment(
        self, filesystem: AbstractFileSystem | None = None, conn: duckdb.DuckDBPyConnection | None = None
    ) -> str:
        """A parenthesised query of the rows of all files."""
        use_filesystem(conn, filesystem)
        if not self.num_files:
            return self._no_rows()
        options = [
            f"format = {quote_text(self.format)}",
            f"columns = {self._columns_struct()}",
            f"maximum_object_size = {self._object_bytes()}",
            "hive_partitioning = false",
            f"union_by_name = {str(self.union_by_name).lower()}",
        ]
        return self._select(f"read_json({quote_paths(self.resolved_paths)}, {', '.join(options)})")

    def _object_bytes(self) -> int:
        """What DuckDB takes memory for, twice a thread: no more than the longest file, nor than there is memory for (a longer one is out of memory)."""
        most = int(self.max_object_size)
        in_memory = json_object_bytes()
        if in_memory is not None and in_memory < most:
            most = in_memory
        if most <= LEAST_JSON_BYTES or any(is_url(path) or path.endswith(PACKED) for path in self.resolved_paths):
            return most
        longest = max((os.path.getsize(path) for path in self.resolved_paths if os.path.exists(path)), default=most)
        return min(most, max(LEAST_JSON_BYTES, longest + 1))

    def _format(self) -> tuple[object, ...]:
        return (tuple(self.schema.items()), self.format, self.max_object_size)
