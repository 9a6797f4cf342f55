"""How rows of Parquet files become a SQL query.

Whole files are one `read_parquet` of a list. A part of a file is found by its row numbers, which DuckDB uses to skip row groups, but each costs
a scan of its own: 0.7 ms and more in a UNION ALL, where Arrow reads a small row group of a packed file in 0.26 (40 files, 64 partitions, one
core). So many small parts are read by Arrow and given to the connection as a view, unless a column's type would come out another way. Parts
of more than that are faster by a scan each (1.1 ms against 2.6 for 0.8 MB): DuckDB works on dictionaries as they are.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

import duckdb
import pyarrow as pa

from smallpond_mpi.common import MB
from smallpond_mpi.io.arrow import load_ranges
from smallpond_mpi.io.parquet import RowRange, check_columns, open_parquet
from smallpond_mpi.logical.dataset.memory import register
from smallpond_mpi.logical.dataset.quoting import quote_name, quote_names, quote_paths

MAX_VIEW_BYTES = 64 * MB
SCANNED_BYTES = MB // 4
"""Uncompressed bytes of a part that are worth a scan of its own."""
ROW_NUMBER = "file_row_number"
NO_ROWS = "(SELECT NULL WHERE false)"


def parquet_query(
    ranges: Sequence[RowRange],
    columns: Sequence[str] | None,
    generated: Sequence[str],
    by_name: bool,
    column_files: Sequence[str] = (),
) -> str:
    """A parenthesised query of the rows of all ranges. `by_name`: columns may be missing in some, or have a narrower type.

    `column_files` have all columns together, where the files of the ranges may not.
    """
    if not ranges:
        return NO_ROWS
    if column_files:
        every = [f"{_scan(column_files, None, generated, True)} WHERE false", *_scans(ranges, None, generated, True)]
        selected = quote_names(columns if columns is None else [*columns, *generated])
        return f"(SELECT {selected} FROM ({' UNION ALL BY NAME '.join(every)}))"
    # Files without rows matter for their columns only: to a union by name, or if there are no others.
    ranges = ranges if by_name else [item for item in ranges if item.num_rows] or ranges[:1]
    if columns is not None and not by_name:
        check_columns(columns, schema_of(ranges[0]), ranges[0].path)
    union = " UNION ALL BY NAME " if by_name else " UNION ALL "
    return "(" + union.join(_scans(ranges, columns, generated, by_name)) + ")"


def fits_a_view(ranges: Sequence[RowRange], generated: Sequence[str]) -> bool:
    """Whether there are parts of files in it, few enough bytes to hold in memory, that Arrow and DuckDB read as the same types."""
    if generated or all(item.is_whole_file for item in ranges):
        return False
    num_bytes = sum(item.estimated_data_size if item.row_groups else item.data_size for item in ranges)
    small = num_bytes <= min(MAX_VIEW_BYTES, SCANNED_BYTES * len(ranges))
    return small and all(reads_alike(field.type) for field in schema_of(ranges[0]))


def view_of_rows(ranges: Sequence[RowRange], columns: Sequence[str] | None, conn: duckdb.DuckDBPyConnection) -> str:
    """The rows of all ranges, read now, as a parenthesised query of a view of `conn`."""
    table = load_ranges(ranges, columns, max_workers=max(1, pa.cpu_count()))
    return f"(SELECT * FROM {quote_name(register(conn, table, 'rows'))})"


def schema_of(item: RowRange) -> pa.Schema:
    """The schema of a range's file, as Arrow reads it."""
    with open_parquet(item.path, promised=item.is_promised) as file:
        return file.schema_arrow


def reads_alike(type_: pa.DataType) -> bool:
    """Whether a column comes to DuckDB as the same type through Arrow as by its own reader."""
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return reads_alike(type_.value_type)
    if pa.types.is_struct(type_):
        return all(reads_alike(type_.field(i).type) for i in range(type_.num_fields))
    if pa.types.is_timestamp(type_):
        return type_.unit in ("us", "ns") and type_.tz in (None, "UTC")
    return any(
        is_type(type_)
        for is_type in (
            pa.types.is_integer,
            pa.types.is_float32,
            pa.types.is_float64,
            pa.types.is_boolean,
            pa.types.is_decimal128,
            pa.types.is_date32,
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    )


def _scans(
    ranges: Sequence[RowRange], columns: Sequence[str] | None, generated: Sequence[str], by_name: bool
) -> Iterable[str]:
    """One SELECT for each run of whole files, and one for each part of a file."""
    parts = [item for item in ranges if not item.is_whole_file]
    # A column of the data hides DuckDB's own of that name. Files that need not be alike are asked one by one.
    asked = {item.path: item for item in (parts if by_name else parts[:1])}.values()
    hidden = any(name.lower() == ROW_NUMBER for item in asked for name in schema_of(item).names)
    for whole, run in groupby(ranges, key=lambda item: item.is_whole_file):
        if whole:
            yield _scan([item.path for item in run], columns, generated, by_name)
            continue
        for item in run:
            scan = _scan([item.path], columns, generated, by_name)
            if hidden:
                yield f"(FROM ({scan}) LIMIT {item.num_rows} OFFSET {item.begin})"
            else:
                yield f"{scan} WHERE {ROW_NUMBER} >= {item.begin} AND {ROW_NUMBER} < {item.end}"


def _scan(paths: Sequence[str], columns: Sequence[str] | None, generated: Sequence[str], by_name: bool) -> str:
    options = ["hive_partitioning = false", f"union_by_name = {str(by_name).lower()}"]
    options += [f"{name} = true" for name in generated]
    selected = quote_names(columns)
    if generated:
        # by name and last: in which order and place `*` has them is DuckDB's affair
        data = selected if columns is not None else f"* EXCLUDE ({quote_names(generated)})"
        selected = f"{data}, {quote_names(generated)}"
    return f"SELECT {selected} FROM read_parquet({quote_paths(paths)}, {', '.join(options)})"
