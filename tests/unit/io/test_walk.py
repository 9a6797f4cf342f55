"""Listing: what can't be read is not empty."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smallpond_mpi.io.walk import files_below, is_directory, walk

CODES = (errno.EIO, errno.ESTALE, errno.ESHUTDOWN, errno.EACCES)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("top", "a/one", "a/deep/two", "b/three", "empty/"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    (tmp_path / "tree" / "link").symlink_to("a")
    return tmp_path / "tree"


def failing(call: Callable[..., Any], path: Path, code: int) -> Callable[..., Any]:
    def fails(given: Any, *args: Any, **options: Any) -> Any:
        if given == str(path):
            raise OSError(code, os.strerror(code), given)
        return call(given, *args, **options)

    return fails


def test_all_files_by_their_paths_within_it(tree: Path) -> None:
    assert files_below(str(tree)) == ["a/deep/two", "a/one", "b/three", "top"]
    assert sorted(walk(str(tree), skipped=["a", "two"])) == ["b/three", "top"]
    assert sorted(walk(str(tree), skipped=["deep"])) == files_below(str(tree)), "by names in the directory itself"
    assert files_below(str(tree / "gone")) == []


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("place", [".", "a/deep"])
def test_a_directory_that_can_not_be_read(tree: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int) -> None:
    monkeypatch.setattr(os, "scandir", failing(os.scandir, tree / place, code))
    with pytest.raises(OSError, match=re.escape(os.strerror(code))):
        files_below(str(tree))


def test_a_directory_that_goes_meanwhile(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", failing(os.scandir, tree / "a", errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        files_below(str(tree))
    assert sorted(walk(str(tree), ignored=(FileNotFoundError,))) == ["b/three", "top"]


@pytest.mark.parametrize("code", CODES)
def test_whether_a_directory_is_there(tree: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    names = ("a", "link", "top", "gone", "top/below")
    assert [name for name in names if is_directory(str(tree / name))] == ["a", "link"]
    monkeypatch.setattr(os, "stat", failing(os.stat, tree / "a", code))
    with pytest.raises(OSError, match=re.escape(os.strerror(code))):
        is_directory(str(tree / "a"))
