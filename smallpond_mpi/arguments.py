"""What users pass to sessions and DataFrames, checked before anything is made of it: errors name the argument and what it should be."""

import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from smallpond_mpi.common import InvalidArgument, WrongType
from smallpond_mpi.io.resolve import without_scheme

if TYPE_CHECKING:
    import pyarrow as arrow


def absolute_paths(paths: Any) -> list[str]:
    """Paths of the script's working directory made absolute; ranks may have another. `protocol://` paths stay."""
    if isinstance(paths, (str, os.PathLike)):
        given = [paths]
    elif isinstance(paths, Iterable) and not isinstance(paths, (bytes, Mapping)):
        given = list(paths)
    else:
        raise WrongType(f"paths must be a path or a list of paths, not {shown(paths)}")
    return [absolute_path(path, "each of paths") for path in given]


def absolute_path(path: Any, name: str = "path") -> str:
    """One path, as above."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise WrongType(f"{name} must be a path, not {shown(path)}")
    text = without_scheme(os.fspath(path))
    if not text:
        raise InvalidArgument(f"{name} is empty")
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def column_types(schema: Any) -> dict[str, str]:
    """The schema of text files."""
    if not isinstance(schema, Mapping):
        raise WrongType(
            f"schema must be a dict that gives the DuckDB type of each column, such as {{'a': 'bigint'}}, not {shown(schema)}"
        )
    for name, kind in schema.items():
        if not isinstance(name, str) or not isinstance(kind, str):
            raise WrongType(f"schema must give the DuckDB type of each column as text, not {name!r}: {shown(kind)}")
    return dict(schema)


def sql(given: Any, with_name: bool = False) -> Any:
    """The text of one of DuckDB's expression objects, `with_name` also what it is called; anything else as it is. (Their texts do not tell desc() from asc(): not for keys of a sort.)"""
    duckdb = sys.modules.get("duckdb")  # who has such an object has loaded it
    if duckdb is None or not isinstance(given, duckdb.Expression):
        return given
    from smallpond_mpi.logical.dataset.quoting import quote_name

    text, name = str(given), given.get_name()
    is_named = with_name and not text.startswith("*") and name not in (text, text.strip('"'))
    return f"{text} AS {quote_name(name)}" if is_named else text


def texts(given: Any, name: str) -> list[str]:
    """One text or a list of them, of which there must be at least one: columns, SQL expressions."""
    found = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else None
    if found is None or not all(isinstance(one, str) for one in found):
        raise WrongType(f"{name} must be a text or a list of texts, not {shown(given)}")
    if not all(map(str.strip, found)) or not found:
        raise InvalidArgument(f"{name} is empty: {shown(given)}")
    return found


def text(given: Any, name: str, keep_space: bool = False) -> str:
    """An SQL query or expression; with `keep_space` white space alone is something too."""
    if not isinstance(given, str):
        raise WrongType(f"{name} must be a text, not {shown(given)}")
    if not (given if keep_space else given.strip()):
        raise InvalidArgument(f"{name} is empty")
    return given


def whole_number(given: Any, name: str, minimum: int) -> int:
    """An int, or NumPy's."""
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise WrongType(f"{name} must be an int, not {shown(given)}")
    number = int(given.__index__())
    if number < minimum:
        raise InvalidArgument(f"{name} must be at least {minimum}, not {number}")
    return number


def seconds(given: Any, name: str) -> float | None:
    """A time more than 0, or None."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise WrongType(f"{name} must be a number of seconds, not {shown(given)}")
    if not given > 0:
        raise InvalidArgument(f"{name} must be more than 0, not {given}")
    return float(given)


def arrow_schema(schema: Any) -> "arrow.Schema | None":
    """The schema of what a function returns, or None."""
    import pyarrow as arrow

    if schema is not None and not isinstance(schema, arrow.Schema):
        raise WrongType(
            f"schema must be a pyarrow.Schema, such as pyarrow.schema({{'a': pyarrow.int64()}}), not {shown(schema)}"
        )
    return schema


def function(func: Any) -> Any:
    """Something that can be called."""
    if not callable(func):
        raise WrongType(f"a function or an SQL expression is needed, not {shown(func)}")
    return func


def table_of_items(items: Any) -> "arrow.Table":
    """Rows from a list: dicts are rows, anything else becomes the column `item`."""
    import pyarrow as arrow

    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise WrongType(f"from_items needs a list of rows, not {shown(items)}")
    rows = [item if isinstance(item, dict) else {"item": item} for item in items]
    if not rows:
        return arrow.table({"item": arrow.nulls(0)})
    # of all rows: what the first lacks must not be lost
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise InvalidArgument(f"from_items: the rows have no columns: {shown(rows[0])}")
    if not all(isinstance(name, str) for name in names):
        raise InvalidArgument(
            f"from_items: the keys of dicts are names of columns, and must be texts: {shown(rows[0])}"
        )
    columns = {}
    for name in names:
        try:
            columns[name] = arrow.array([row.get(name) for row in rows])
        except (arrow.ArrowInvalid, arrow.ArrowTypeError, arrow.ArrowNotImplementedError, OverflowError) as error:
            raise InvalidArgument(f"from_items: the values of column {name!r} must have one type: {error}") from error
    return arrow.table(columns)


def table_of_arrow(table: Any) -> "arrow.Table":
    """An Arrow table or record batch, as a table."""
    import pyarrow as arrow

    if isinstance(table, arrow.RecordBatch):
        return arrow.Table.from_batches([table])
    if not isinstance(table, arrow.Table):
        raise WrongType(f"from_arrow needs a pyarrow.Table, not {shown(table)}")
    return table


def frame_of_pandas(df: Any) -> Any:
    """A pandas frame that a table can be made of."""
    import pandas as pd
    import pyarrow as arrow

    if not isinstance(df, pd.DataFrame):
        raise WrongType(f"from_pandas needs a pandas.DataFrame, not {shown(df)}")
    if not len(df.columns):
        raise InvalidArgument("from_pandas: the frame has no columns")
    if not df.columns.is_unique:
        twice = ", ".join(map(repr, df.columns[df.columns.duplicated()].unique()))
        raise InvalidArgument(f"from_pandas: there are several columns {twice}: rename them")
    for name, kind in zip(df.columns, df.dtypes, strict=True):
        if pd.api.types.is_object_dtype(kind):  # the values of any other kind have one type
            try:
                arrow.array(df[name], from_pandas=True)
            except (arrow.ArrowInvalid, arrow.ArrowTypeError, arrow.ArrowNotImplementedError, OverflowError) as error:
                raise InvalidArgument(
                    f"from_pandas: the values of column {name!r} must have one type: {error}"
                ) from error
    return df


def check_settings(kind: Callable[..., Any], given: Collection[str], besides: Collection[str] = ()) -> None:
    """Raise WrongType for settings that nodes of a kind don't have."""
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = sorted(set(given) - parameters.keys())
    if unknown and not takes_any:
        known = sorted({*parameters, *besides} - {"ctx", "input_deps", "input_dep"})
        raise WrongType(f"there is no setting {', '.join(unknown)}: {kind.__name__} has {', '.join(known)}")


def shown(value: object) -> str:
    """A value, in short, with its type."""
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"
