"""Functions of the user in SQL: native, Arrow, a DuckDB extension and a Python extension module, the last two built here from C."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import duckdb
import pytest

from tests.contract.started import HOWS, facts_of

EXTENSION = r"""
#include <stdbool.h>
#include <stddef.h>

/* DuckDB's C API for extensions, as far as it is used: functions by their place in the table of API version 1.2.0. */
enum { CONNECT = 3, DISCONNECT = 6, QUERY = 13 };
struct access {
    void (*set_error)(void *info, const char *error);
    void **(*get_database)(void *info);
    const void **(*get_api)(void *info, const char *version);
};

bool tripled_init_c_api(void *info, struct access *access) {
    const void **api = access->get_api(info, "v1.2.0");
    void *connection = NULL;
    if (api == NULL || ((int (*)(void *, void **))api[CONNECT])(*access->get_database(info), &connection)) return false;
    int failed = ((int (*)(void *, const char *, void *))api[QUERY])(
        connection, "CREATE OR REPLACE MACRO tripled(x) AS 3 * x", NULL);
    ((void (*)(void **))api[DISCONNECT])(&connection);
    if (failed) access->set_error(info, "can't create the macro");
    return !failed;
}
"""

MODULE = r"""
#include <Python.h>

static PyObject *plus_seven(PyObject *self, PyObject *x) { return PyLong_FromLongLong(PyLong_AsLongLong(x) + 7); }

static PyObject *create_duckdb_functions(PyObject *self, PyObject *conn) {
    PyObject *function = PyObject_GetAttrString(self, "plus_seven");
    return PyObject_CallMethod(conn, "create_function", "sN[s]s", "plus_seven", function, "BIGINT", "BIGINT");
}

static PyMethodDef methods[] = {
    {"plus_seven", plus_seven, METH_O, "plus_seven($module, x, /)\n--\n\n"}, /* DuckDB asks for the signature */
    {"create_duckdb_functions", create_duckdb_functions, METH_O, ""},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "sevens", "", -1, methods};
PyMODINIT_FUNC PyInit_sevens(void) { return PyModule_Create(&module); }
"""

has_compiler = shutil.which("cc") is not None and Path(sysconfig.get_paths()["include"], "Python.h").exists()
pytestmark = pytest.mark.skipif(not has_compiler, reason="no C compiler, or no Python.h, to build an extension with")


def compiled(source: str, target: Path) -> Path:
    code = target.with_suffix(".c")
    code.write_text(source)
    include = f"-I{sysconfig.get_paths()['include']}"
    subprocess.run(["cc", "-shared", "-fPIC", include, "-o", str(target), str(code)], check=True)
    return target


def extension(directory: Path) -> Path:
    """The library with the footer that DuckDB wants: eight fields of 32 bytes, last one first, and room for a signature, which is not there."""
    library = compiled(EXTENSION, directory / "tripled.so")
    (platform,) = duckdb.connect().execute("PRAGMA platform").fetchall()[0]
    fields = ["4", platform, "v1.2.0", "v0.0.1", "C_STRUCT", "", "", ""]
    footer = b"".join(field.encode().ljust(32, b"\0") for field in reversed(fields)) + bytes(256)
    path = directory / "tripled.duckdb_extension"
    path.write_bytes(library.read_bytes() + footer)
    return path


@pytest.mark.parametrize("how", [how if how == "python" else pytest.param(how, marks=pytest.mark.mpi) for how in HOWS])
def test_functions_in_all_four_forms(how: str, tmp_path: Path) -> None:
    module = compiled(MODULE, tmp_path / f"sevens{sysconfig.get_config_var('EXT_SUFFIX')}")
    told = facts_of(how, "functions", tmp_path, str(extension(tmp_path)), str(module)).told
    assert told["every"] == [[i, i + 1, i * 10, i / 2, i * 3, i + 7, [f"a{i}", "b"]] for i in range(20)]
    assert told["by name"] == [3 * (i + 7) for i in range(20)]
    assert told["fused"] == [10 * (i + 1) for i in range(20)]
    assert told["fused tasks"] == 2, "two nodes became one query in each of two partitions"
    assert told["behind"] == 20
