"""A DataFrame in a Jupyter kernel: functions defined in cells, several sessions one after the other, errors that leave the kernel usable."""

import ast
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.launch import clean_env

CELL_SECS = 90.0
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Notebook:
    """Runs cells in a kernel of its own."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client
        self._pid = int(self.run("import os; os.getpid()"))

    def run(self, cell: str) -> str:
        """What a cell printed to standard output, then its value as text.

        Raises:
            AssertionError: the cell raised; with its traceback.
        """
        texts, error = self._run(cell)
        assert error is None, error
        return texts

    def error(self, cell: str) -> str:
        """The traceback of a cell that has to raise."""
        texts, error = self._run(cell)
        assert error is not None, f"no error, but {texts}"
        return error

    def interrupted(self, cell: str, when: Path) -> str:
        """The traceback of a cell that is interrupted (the kernel's stop button) once a file is there."""
        watcher = threading.Thread(target=self._interrupt_when, args=(when,))
        watcher.start()
        try:
            return self.error(cell)
        finally:
            watcher.join()

    def _interrupt_when(self, path: Path) -> None:
        deadline = time.monotonic() + CELL_SECS / 2
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(self._pid, signal.SIGINT)

    def _run(self, cell: str) -> tuple[str, str | None]:
        texts: list[str] = []
        errors: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                texts.append(content["text"])
            elif message["msg_type"] == "execute_result":
                texts.append(content["data"]["text/plain"])
            elif message["msg_type"] == "error":
                errors.append(COLOURS.sub("", "\n".join(content["traceback"])))

        self._client.execute_interactive(cell, timeout=CELL_SECS, output_hook=hear, allow_stdin=False)
        return "".join(texts), errors[0] if errors else None


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    directory = tmp_path_factory.mktemp("notebook")
    env = clean_env(
        {
            "SP_DATA_ROOT": str(directory / "root"),
            "IPYTHONDIR": str(directory / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(directory / "runtime"),
        }
    )
    manager = KernelManager()
    manager.start_kernel(env=env, cwd=str(directory))
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        yield Notebook(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def test_a_dataframe_in_cells(notebook: Notebook) -> None:
    notebook.run("import pyarrow as pa\nimport smallpond_mpi as sp\nsession = sp.init()")
    notebook.run("factor = 3\ndf = session.from_arrow(pa.table({'a': range(1000)})).repartition(4, by_rows=True)")
    notebook.run("tripled = df.map(lambda row: {'b': row['a'] * factor})")
    assert notebook.run("int(tripled.to_pandas()['b'].sum())") == str(3 * sum(range(1000)))
    notebook.run("factor = 5")  # what is computed stays; what is made after it sees the new value
    assert notebook.run("int(tripled.to_pandas()['b'].sum())") == str(3 * sum(range(1000)))
    assert notebook.run("df.map(lambda row: {'b': row['a'] * factor}).take(3)") == "[{'b': 0}, {'b': 5}, {'b': 10}]"


def test_a_dataframe_as_the_last_line_is_shown_and_not_computed(notebook: Notebook) -> None:
    shown = notebook.run("lazy = df.filter('a > 5')\nlazy")
    assert shown.startswith("DataFrame")
    assert notebook.run("lazy.is_computed()") == "False"


def test_neither_text_nor_html_of_a_frame_computes_it(notebook: Notebook, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    notebook.run(
        "import pathlib\n"
        "def leave(row):\n"
        f"    pathlib.Path({str(ran)!r}).touch()\n"
        "    return row\n"
        "seen = df.map(leave)\n"
        "shown = (repr(seen), seen._repr_html_())"
    )
    assert notebook.run("'DataFrame' in shown[0], '<' in shown[1]") == "(True, True)"
    assert not ran.exists()
    assert notebook.run("seen.count()") == "1000"
    assert ran.exists()


def test_relations_in_cells(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run(
        "names = session.from_items([{'k': 0, 'name': 'even'}, {'k': 1, 'name': 'odd'}])\n"
        "joined = df.with_columns(k='a % 2').join(names, on='k')\n"
        "groups = joined.group_by('name').agg(n='count(*)', s='sum(a)').sort('name')"
    )
    expected = [{"name": "even", "n": 500, "s": 249500}, {"name": "odd", "n": 500, "s": 250000}]
    assert ast.literal_eval(notebook.run("groups.take_all()")) == expected
    window = "row_number() over (partition by k order by a desc)"
    assert notebook.run(f"joined.with_columns(r={window!r}).filter('r = 1').sort('a').to_pandas()['a'].tolist()") == (
        "[998, 999]"
    )
    shown = notebook.run("groups.show()")
    assert "even" in shown
    assert "249500" in shown
    assert notebook.run("groups.describe().columns[0]")
    assert notebook.run("sum(batch.num_rows for batch in df.iter_batches(300))") == "1000"
    notebook.run(f"groups.write_csv({str(tmp_path / 'csv')!r}); groups.write_parquet({str(tmp_path / 'parquet')!r})")
    assert notebook.run(f"session.read_csv({str(tmp_path / 'csv/*.csv')!r}).count()") == "2"
    assert notebook.run(f"session.read_parquet({str(tmp_path / 'parquet')!r}).count()") == "2"


def test_classes_of_cells_travel(notebook: Notebook) -> None:
    notebook.run(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Scale:\n"
        "    by: int\n"
        "    def __call__(self, table):\n"
        "        return pa.table({'c': [self.by * a for a in table['a'].to_pylist()]})\n"
    )
    assert notebook.run("df.map_batches(Scale(7), batch_size=100).to_arrow()['c'].to_pylist()[-1]") == "6993"


def test_an_error_names_the_line_and_leaves_the_session_usable(notebook: Notebook) -> None:
    error = notebook.error(
        "def broken(row):\n    return {'b': row['a'] / (row['a'] - 500)}\n\ndf.map(broken).to_arrow()"
    )
    assert "ZeroDivisionError" in error
    assert "return {'b': row['a'] / (row['a'] - 500)}" in error
    assert notebook.run("df.count()") == "1000"


def test_a_cell_that_is_interrupted_leaves_the_session_usable(notebook: Notebook, tmp_path: Path) -> None:
    started = tmp_path / "started"
    cell = (
        "import pathlib, time\n"
        "def wait(row):\n"
        f"    pathlib.Path({str(started)!r}).touch()\n"
        "    time.sleep(300)\n"
        "df.filter(wait).count()"
    )
    assert "KeyboardInterrupt" in notebook.interrupted(cell, started)
    assert notebook.run("df.filter('a >= 990').count()") == "10"


def test_shutdown_and_a_second_session(notebook: Notebook) -> None:
    notebook.run("session.shutdown()")
    assert "shut down" in notebook.error("df.filter('a > 7').count()")
    notebook.run("session = sp.init(job_id='second')")
    assert notebook.run("session.from_items([1, 2, 3]).count()") == "3"
    notebook.run("session.shutdown()")
    assert notebook.run("print(open(session._runtime_ctx.job_status_path).read())") == "success\n\n"
