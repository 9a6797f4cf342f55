"""From paths, patterns and directories to files."""

import pytest

from smallpond_mpi.common import InputNotFound
from smallpond_mpi.io.resolve import has_magic, resolve
from smallpond_mpi.logical.dataset import ParquetDataSet


@pytest.fixture
def tree(tmp_path):
    for name in ["b.x", "a.x", "10.x", "9.x", "c.y", ".hidden.x", ".MANIFEST.txt", "_SUCCESS", "s/d.x", "s/t/e.x"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return str(tmp_path)


def names(root, found):
    return [path.removeprefix(root + "/") for path in found]


def test_magic():
    assert all(map(has_magic, ["*", "a?", "x[0-9]", "**/a"]))
    assert not any(map(has_magic, ["a", "/b/c.d", "{x}", "a]"]))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.x", ["10.x", "9.x", "a.x", "b.x"]),
        ("[0-9]*.x", ["10.x", "9.x"]),
        ("[0-9].x", ["9.x"]),
        ("?.x", ["9.x", "a.x", "b.x"]),
        ("**/*.x", ["10.x", "9.x", "a.x", "b.x", "s/d.x", "s/t/e.x"]),
        ("*/*.x", ["s/d.x"]),
        ("s/**", ["s/d.x", "s/t/e.x"]),
        ("*", ["10.x", "9.x", "_SUCCESS", "a.x", "b.x", "c.y"]),
        (".*.x", [".hidden.x"]),
    ],
)
def test_patterns_match_files_in_sorted_order(tree, pattern, expected):
    assert names(tree, resolve([f"{tree}/{pattern}"])) == expected


def test_directories(tree):
    assert names(tree, resolve([tree + "/s"])) == ["s/d.x"]
    assert names(tree, resolve([tree + "/s"], recursive=True)) == ["s/d.x", "s/t/e.x"]
    assert names(tree, resolve([tree + "/s*"], recursive=True)) == ["s/d.x", "s/t/e.x"]
    top = f"{tree}/."
    assert len(resolve([top.removesuffix("/.")], recursive=True)) == 7


def test_listed_paths_keep_their_order_and_number(tree):
    listed = [f"{tree}/b.x", f"{tree}/a.x", f"{tree}/b.x", f"{tree}/missing.x"]
    assert resolve(listed) == listed
    assert names(tree, resolve([f"{tree}/c.y", f"{tree}/[ab].x"])) == ["c.y", "a.x", "b.x"]


@pytest.mark.parametrize("pattern", ["*.none", "none/*.x", "none/**/*.x"])
def test_a_pattern_that_matches_nothing(tree, pattern):
    with pytest.raises(InputNotFound, match="none"):
        resolve([f"{tree}/{pattern}"])


def test_a_real_name_that_looks_like_a_pattern_is_a_file(tmp_path):
    path = tmp_path / "a[1].x"
    path.write_text("")
    (tmp_path / "a1.x").write_text("")
    assert resolve([str(path)]) == [str(path)]
    path.unlink()
    assert resolve([str(path)]) == [str(tmp_path / "a1.x")]


def test_root_dir_and_working_directory(tree, monkeypatch):
    monkeypatch.chdir(tree)
    here = ParquetDataSet(["a.x", "s/*.x"])
    monkeypatch.chdir("/")
    assert names(tree, here.resolved_paths) == ["a.x", "s/d.x"]
    assert names(tree, here.absolute_paths) == ["a.x", "s/*.x"]
    below = ParquetDataSet("d.x", root_dir=f"{tree}/s")
    assert names(tree, below.resolved_paths) == ["s/d.x"]
    assert ParquetDataSet(["a.x"], root_dir=None).resolved_paths == ["a.x"]
    assert ParquetDataSet(["/abs/a.x", "s3://bucket/k"], root_dir=tree).resolved_paths == ["/abs/a.x", "s3://bucket/k"]
