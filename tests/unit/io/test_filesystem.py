"""Files that are whole or absent, and names that appear late."""

import errno
import os

import pytest

from smallpond_mpi.io import filesystem
from smallpond_mpi.io.filesystem import (
    copy_file,
    dump,
    find_mount_point,
    link_or_copy,
    load,
    remove_path,
    remove_tree,
    retry_missing,
    whole_file,
)


@pytest.mark.parametrize("atomic", [False, True])
def test_dump_and_load(tmp_path, atomic):
    path = str(tmp_path / "x.pickle")
    dump({"a": lambda: 7}, path, atomic_write=atomic)
    assert load(path)["a"]() == 7
    assert os.listdir(tmp_path) == ["x.pickle"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = str(tmp_path / "x")
    dump(1, path, atomic_write=True)

    def write_half():
        with whole_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert load(path) == 1
    assert os.listdir(tmp_path) == ["x"]


def test_remove_path(tmp_path):
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "d")
    remove_path(str(tmp_path / "link"))
    assert (tmp_path / "d/e/f").exists()
    remove_path(str(tmp_path / "d"))
    remove_path(str(tmp_path / "d"))
    assert os.listdir(tmp_path) == []


def make_tree(place):
    """Three directories with three files each."""
    for directory in ("a", "b/deep", "c"):
        (place / directory).mkdir(parents=True)
        for name in ("1", "2", "3"):
            (place / directory / name).write_text("x")


def unlink_with(monkeypatch, what):
    """`what(name)` says with which error a file's removal ends, or None, and whether it is gone then."""
    really = os.unlink

    def unlink(path, *, dir_fd=None):
        error, is_removed = what(os.path.basename(path))
        if is_removed:
            really(path, dir_fd=dir_fd)
        if error is not None:
            raise error

    monkeypatch.setattr(os, "unlink", unlink)


def test_remove_tree_leaves_what_is_held_and_names_it_once(tmp_path, monkeypatch):
    make_tree(tmp_path / "d")
    held = OSError(errno.EBUSY, "Device or resource busy")
    unlink_with(monkeypatch, lambda name: (held, False) if name == "2" else (None, True))
    left = remove_tree(str(tmp_path / "d"))
    files = [tmp_path / "d" / directory / "2" for directory in ("a", "b/deep", "c")]
    assert sorted(left) == [f"{path} (Device or resource busy)" for path in files]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files


def test_remove_tree_names_a_directory_that_does_not_get_empty(tmp_path, monkeypatch):
    """An NFS client renames a file that is open instead of removing it."""
    make_tree(tmp_path / "d")
    unlink_with(monkeypatch, lambda name: (None, name != "2"))
    left = remove_tree(str(tmp_path / "d"))
    assert sorted(left) == [f"{tmp_path}/d/{directory} (Directory not empty)" for directory in ("a", "b/deep", "c")]


def test_remove_tree_goes_on_where_others_have_removed_something(tmp_path, monkeypatch):
    make_tree(tmp_path / "d")
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory")
    unlink_with(monkeypatch, lambda name: (gone if name == "1" else None, True))
    assert remove_tree(str(tmp_path / "d")) == []
    assert os.listdir(tmp_path) == []
    assert remove_tree(str(tmp_path / "d")) == []


def test_find_mount_point(tmp_path):
    assert find_mount_point("/proc/self/status") == "/proc"
    assert os.path.ismount(find_mount_point(str(tmp_path / "not/there/yet")))


class Late:
    """A file that appears at the n-th look."""

    def __init__(self, path, looks, listed=False):
        self.path, self.looks, self.now = path, looks, 0.0
        if listed:
            path.write_text("")

    def read(self):
        self.looks -= 1
        if self.looks > 0:
            raise FileNotFoundError(self.path)
        return "content"

    def clock(self):
        return self.now

    def sleep(self, secs):
        self.now += secs


def test_a_name_that_the_directory_lists_is_waited_for(tmp_path):
    late = Late(tmp_path / "x", looks=9, listed=True)
    assert retry_missing(late.read, str(late.path), clock=late.clock, sleep=late.sleep) == "content"


def test_a_promised_name_is_waited_for_but_not_for_ever(tmp_path):
    late = Late(tmp_path / "x", looks=9)
    assert retry_missing(late.read, str(late.path), True, clock=late.clock, sleep=late.sleep) == "content"
    never = Late(tmp_path / "x", looks=10**9)
    with pytest.raises(FileNotFoundError):
        retry_missing(never.read, str(never.path), True, 10.0, never.clock, never.sleep)
    assert 10 <= never.now < 11


def test_a_name_that_is_not_there_is_not_waited_for(tmp_path):
    never = Late(tmp_path / "x", looks=10**9)
    with pytest.raises(FileNotFoundError):
        retry_missing(never.read, str(never.path), clock=never.clock, sleep=never.sleep)
    assert never.now < 0.1


def test_links_and_copies(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_text("x")
    assert link_or_copy(str(source), str(tmp_path / "linked"))
    assert os.stat(source).st_nlink == 2

    def other_mount(*_args):
        raise OSError(errno.EXDEV, "other mount")

    monkeypatch.setattr(filesystem.os, "link", other_mount)
    assert not link_or_copy(str(source), str(tmp_path / "copied"))
    assert (tmp_path / "copied").read_text() == "x"
    copy_file(str(source), str(tmp_path / "again"))
    assert (tmp_path / "again").read_text() == "x"
