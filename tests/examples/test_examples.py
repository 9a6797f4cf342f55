"""The examples, run as scripts on small data; each result is computed once more here, by other means."""

import csv
import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.launch import clean_env, launcher, mpirun

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
HAS_GPU = Path("/dev/nvidia0").exists()

Start = Callable[..., subprocess.CompletedProcess[str]]


def by_python(name: str, *args: object, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=clean_env({"SP_DATA_ROOT": str(root)}),
        cwd=root,
    )


def by_mpirun(name: str, *args: object, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    return mpirun(3, command, env={"SP_DATA_ROOT": str(root)}, cwd=root)


needs_mpirun = [pytest.mark.mpi, pytest.mark.skipif(launcher() is None, reason="no mpirun beside this python")]
both = pytest.mark.parametrize(
    "start", [pytest.param(by_python, id="python"), pytest.param(by_mpirun, id="mpirun", marks=needs_mpirun)]
)


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_of(directory: Path) -> list[pa.Table]:
    """What the Parquet files of a result hold, in the order of their names."""
    return [pq.read_table(path) for path in sorted(directory.glob("*.parquet"))]


def rows_of_tsv(directory: Path) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for path in sorted(directory.glob("*.tsv")):
        with path.open(newline="") as file:
            found += [(url, int(hits)) for url, hits in csv.reader(file, delimiter="\t")]
    return found


def texts_of(directory: Path) -> dict[int, str]:
    lines = [line for path in sorted(directory.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return {row["id"]: row["text"] for row in map(json.loads, lines)}


@both
def test_sort_mock_urls(tmp_path: Path, start: Start) -> None:
    out = tmp_path / "out"
    assert "10,000 URLs in 8 files" in succeeded(start("sort_mock_urls.py", out, root=tmp_path))
    given = rows_of_tsv(out / "mock_urls")
    files = [table.to_pylist() for table in files_of(out / "sorted")]
    assert len(given) == 10_000
    assert Counter((row["url"], row["hits"]) for file in files for row in file) == Counter(given)
    assert all(row["host"] == row["url"].split("/")[2] for file in files for row in file)
    for file in files:
        keys = [(row["host"].encode(), row["url"].encode()) for row in file]
        assert keys == sorted(keys)
    hosts = [{row["host"] for row in file} for file in files]
    assert sum(map(len, hosts)) == len(set().union(*hosts)), "a host is in two files"


@both
def test_gray_sort(tmp_path: Path, start: Start) -> None:
    out = tmp_path / "out"
    assert "20,000 records in 5 files" in succeeded(start("gray_sort.py", out, "--npartitions", 5, root=tmp_path))
    given = [row for table in files_of(out / "mock_records") for row in table.to_pylist()]
    files = [table.to_pylist() for table in files_of(out / "sorted")]
    assert [row for file in files for row in file] == sorted(given, key=lambda row: row["key"])
    assert [row["key"] for row in given] != sorted(row["key"] for row in given)
    assert all(2_500 < len(file) < 6_000 for file in files)


@both
def test_shuffle_mock_urls(tmp_path: Path, start: Start) -> None:
    out = tmp_path / "out"
    succeeded(start("shuffle_mock_urls.py", out, "--seed", 7, root=tmp_path))
    given = rows_of_tsv(out / "mock_urls")
    shuffled = [(row["url"], row["hits"]) for table in files_of(out / "shuffled") for row in table.to_pylist()]
    assert Counter(shuffled) == Counter(given)
    place = {row: index for index, row in enumerate(given)}
    moved = np.array([place[row] for row in shuffled])
    # of two independent orders, ranks correlate by 0 ± 1/sqrt(n) = 0.01, and half of the neighbours are in order
    assert abs(np.corrcoef(moved, np.arange(len(moved)))[0, 1]) < 0.06
    assert abs(np.mean(np.diff(moved) > 0) - 0.5) < 0.04


def test_the_same_seed_shuffles_in_the_same_way(tmp_path: Path) -> None:
    succeeded(by_python("shuffle_mock_urls.py", tmp_path / "a", "--seed", 7, root=tmp_path))
    urls = str(tmp_path / "a" / "mock_urls" / "*.tsv")
    for name, seed in (("b", 7), ("c", 8)):
        succeeded(by_python("shuffle_mock_urls.py", tmp_path / name, "--seed", seed, "--paths", urls, root=tmp_path))
    a, b, c = (pa.concat_tables(files_of(tmp_path / name / "shuffled")) for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


@both
def test_count_words(tmp_path: Path, start: Start) -> None:
    out = tmp_path / "out"
    printed = succeeded(start("count_words.py", out, root=tmp_path))
    texts = texts_of(out / "mock_texts")
    counts = Counter(word for text in texts.values() for word in re.sub(r"[^a-z ]", "", text.lower()).split())
    rows = [row for table in files_of(out / "words") for row in table.to_pylist()]
    assert len(texts) == 2_000
    assert {row["word"]: row["count"] for row in rows} == counts
    assert len(rows) == len(counts)
    word, count = counts.most_common(1)[0]
    assert printed.split("\n")[0].split() == [f"{count:,}", word]


@both
def test_embeddings_without_a_gpu(tmp_path: Path, start: Start) -> None:
    out = tmp_path / "out"
    assert "2,000 texts embedded on cpu\n" in succeeded(start("embeddings.py", out, root=tmp_path))
    check_embeddings(out, "cpu")


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_a_share_of_a_gpu_that_nobody_has(tmp_path: Path) -> None:
    done = by_python("embeddings.py", tmp_path / "out", "--gpu-share", 0.25, root=tmp_path)
    assert done.returncode == 1
    assert "asks for 0.25 GPUs, and no rank has more than 0" in done.stderr
    assert "embeddings.py:" in done.stderr
    assert not (tmp_path / "out" / "embeddings").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
def test_embeddings_with_a_share_of_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "embedded on gpu " in succeeded(by_python("embeddings.py", out, "--gpu-share", 0.25, root=tmp_path))
    check_embeddings(out, "gpu")


def check_embeddings(out: Path, device: str) -> None:
    model = np.random.default_rng(0).standard_normal((4096, 16), dtype=np.float32)

    def expected(text: str) -> Any:
        words = text.lower().removesuffix(".").split()
        summed = sum(model[zlib.crc32(word.encode()) % 4096].astype(np.float64) for word in words)
        return summed / np.sqrt((summed**2).sum())

    texts = texts_of(out / "mock_texts")
    rows = [row for table in files_of(out / "embeddings") for row in table.to_pylist()]
    assert {row["id"]: row["text"] for row in rows} == texts
    assert len(rows) == len(texts)
    assert all(row["device"].startswith(device) for row in rows)
    for row in rows:
        np.testing.assert_allclose(row["embedding"], expected(row["text"]), atol=1e-5)


@pytest.fixture
def urls(tmp_path: Path) -> Path:
    done = by_python("mock_data.py", "urls", tmp_path / "urls", 5000, root=tmp_path)
    assert len(succeeded(done).splitlines()) == 8
    return tmp_path / "urls"


def check_hosts(urls: Path, out: Path) -> None:
    visits: Counter[str] = Counter()
    pages: Counter[str] = Counter()
    for url, hits in rows_of_tsv(urls):
        visits[url.split("/")[2]] += hits
        pages[url.split("/")[2]] += 1
    busiest = sorted(visits, key=lambda host: (-visits[host], host))[:7]
    (table,) = files_of(out)
    assert table.to_pylist() == [{"host": host, "urls": pages[host], "hits": visits[host]} for host in busiest]


@both
def test_a_plan_in_the_driver_style(tmp_path: Path, urls: Path, start: Start) -> None:
    out = tmp_path / "hosts"
    mode = ["mpi"] if start is by_mpirun else []
    options = ["-i", *sorted(urls.glob("*.tsv")), "--num_hosts", 7, "--output_path", out]
    succeeded(start("hosts_plan.py", *mode, *options, root=tmp_path))
    check_hosts(urls, out)


def test_a_plan_by_a_scheduler_and_executors_that_meet_in_the_file_system(tmp_path: Path, urls: Path) -> None:
    out = tmp_path / "hosts"
    options = ["--job_id", "visits", "-i", *sorted(urls.glob("*.tsv")), "--num_hosts", 7, "--output_path", out]
    with ThreadPoolExecutor() as pool:
        executors = [pool.submit(by_python, "hosts_plan.py", "executor", *options, root=tmp_path) for _ in range(2)]
        scheduler = by_python("hosts_plan.py", "scheduler", "--num_executors", 2, *options, root=tmp_path)
    succeeded(scheduler)
    for executor in executors:
        succeeded(executor.result())
    check_hosts(urls, out)
    assert "on 3 ranks" in scheduler.stderr


def test_every_example_is_run() -> None:
    """An example that no test starts is one that may not work."""
    started = "".join(path.read_text() for path in sorted(ROOT.glob("tests/**/test_*.py")))
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in started] == []
    readme = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f"({path.name})" not in readme] == []
