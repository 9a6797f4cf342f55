"""Functions of the user in DuckDB: native and Arrow, modules, extensions, types."""

import duckdb
import pyarrow.compute as pc
import pytest

from smallpond_mpi.common import InputNotFound, InvalidArgument
from smallpond_mpi.logical.udf import (
    DuckDbExtensionContext,
    ExternalModuleContext,
    PythonUDFContext,
    UDFAnyParameters,
    UDFListType,
    UDFMapType,
    UDFStructType,
    UDFType,
    udf,
)


@pytest.fixture
def conn():
    with duckdb.connect() as connection:
        yield connection


@udf([UDFType.BIGINT, UDFType.BIGINT], UDFType.BIGINT)
def plus(a, b):
    """Adds."""
    return a + b


def test_types_are_duckdbs():
    for type_ in UDFType:
        assert str(type_.to_duckdb_type()).replace('"', "")
    assert str(UDFStructType({"a": UDFType.INTEGER, "b": "VARCHAR"}).to_duckdb_type()) == "STRUCT(a INTEGER, b VARCHAR)"
    assert str(UDFStructType(["DATE"]).to_duckdb_type()) == "STRUCT(v1 DATE)"
    assert str(UDFMapType(UDFType.VARCHAR, UDFListType(UDFType.DOUBLE)).to_duckdb_type()) == "MAP(VARCHAR, DOUBLE[])"
    assert [type_.value for type_ in UDFType] == list(range(1, 27))


def test_a_decorated_function_is_called_by_python_and_sql(conn):
    assert plus(1, 2) == 3
    assert (plus.name, plus.__doc__) == ("plus", "Adds.")
    context = PythonUDFContext(plus.name, plus.func, plus.params, plus.return_type, plus.use_arrow_type)
    context.bind(conn)
    assert conn.sql("SELECT plus(1, 2), plus(NULL, 1)").fetchall() == [(3, None)]
    PythonUDFContext("plus", lambda a, b: a * b, plus.params, plus.return_type).bind(conn)
    assert conn.sql("SELECT plus(3, 4)").fetchall() == [(12,)]


def test_arrow_any_parameters_and_annotations(conn):
    PythonUDFContext("vec", lambda a: pc.add(a, 1), [UDFType.BIGINT], UDFType.BIGINT, True).bind(conn)
    PythonUDFContext("count_args", lambda *args: len(args), UDFAnyParameters(), UDFType.INTEGER).bind(conn)

    def annotated(a: int, b: str) -> str:
        return a * b

    PythonUDFContext("annotated", annotated, None, None).bind(conn)
    assert conn.sql("SELECT sum(vec(i)) FROM range(5000) t(i)").fetchall() == [(12502500,)]
    assert conn.sql("SELECT count_args(1, 'x'), annotated(2, 'ab')").fetchall() == [(2, "abab")]


def test_a_name_of_duckdb_is_refused(conn):
    with pytest.raises(InvalidArgument, match="'add'"):
        PythonUDFContext("add", lambda a: a, [UDFType.BIGINT], UDFType.BIGINT).bind(conn)
    with pytest.raises(InvalidArgument, match="not callable"):
        PythonUDFContext("x", 7, None, None)


def test_an_external_module_creates_its_functions(conn, tmp_path):
    module = tmp_path / "mine.py"
    module.write_text("def create_duckdb_functions(conn):\n    conn.create_function('mine', lambda: 42, [], 'INT')\n")
    ExternalModuleContext("mine", str(module)).bind(conn)
    assert conn.sql("SELECT mine()").fetchall() == [(42,)]
    module.write_text("x = 1\n")
    with pytest.raises(InvalidArgument, match="create_duckdb_functions"):
        ExternalModuleContext("mine", str(module)).bind(conn)
    with pytest.raises(InputNotFound, match=r"none\.so"):
        ExternalModuleContext("none", str(tmp_path / "none.so")).bind(conn)


def test_an_extension_that_is_none(conn, tmp_path):
    with pytest.raises(InputNotFound, match=r"no\.duckdb_extension"):
        DuckDbExtensionContext("no", str(tmp_path / "no.duckdb_extension")).bind(conn)
    broken = tmp_path / "broken.duckdb_extension"
    broken.write_bytes(b"x" * 1000)
    with pytest.raises(InvalidArgument, match="broken"):
        DuckDbExtensionContext("broken", str(broken)).bind(conn)
