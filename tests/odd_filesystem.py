"""A real file system that lacks something, mounted for a test: in memory, over FUSE, by the kernel's own protocol (linux/fuse.h), without a library.

What it can lack (`TRAITS`) is what file systems are known to: vfat and many FUSE ones have no hard links, directories of overlayfs can't be renamed, object stores
rename by copying, and old NFS forgets that a file is there when another client creates it again.

`python tests/odd_filesystem.py DIRECTORY TRAIT…` serves until it is unmounted.
"""

import contextlib
import ctypes
import enum
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TRAITS = ("no-links", "no-directory-renames", "renames-copy", "not-exclusive")
HEADER, REPLY = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
BUFFER_BYTES = (1 << 20) + 4096
SIZE_IS_SET = 1 << 3
DETACH = 2
LIBC = ctypes.CDLL(None, use_errno=True)


class Op(enum.IntEnum):
    """Requests that are known here."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    BATCH_FORGET = 42
    RENAME2 = 45


def why_not() -> str:
    """Why nothing can be mounted here; empty if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    return "" if os.path.exists("/dev/fuse") else "there is no /dev/fuse"


@contextlib.contextmanager
def mounted(directory: Path, *traits: str) -> Iterator[Path]:
    """The file system, empty, at `directory`."""
    directory.mkdir()
    server = subprocess.Popen([sys.executable, __file__, str(directory), *traits], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        assert server.stdout.readline() == "ready\n"
    try:
        yield directory
    finally:
        LIBC.umount2(str(directory).encode(), DETACH)
        server.wait(30)


@dataclass
class File:
    """A file or a directory."""

    mode: int
    content: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Filesystem:
    """What each request of the kernel is answered with. Node 1 is the root."""

    def __init__(self, traits: tuple[str, ...]) -> None:
        self.traits = traits
        self.files = {1: File(0o040777)}

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        """Raises OSError."""
        match opcode:
            case Op.INIT:
                return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 8, 8, 1 << 20, 1, 0, 0, 0)
            case Op.LOOKUP:
                return self._entry(self._find(node, _names(body)[0], is_lookup=True))
            case Op.GETATTR:
                return self._attributes(node)
            case Op.SETATTR:
                return self._change(node, body)
            case Op.MKNOD:
                return self._make(node, _names(body[16:])[0], struct.unpack_from("<I", body)[0])
            case Op.MKDIR:
                return self._make(node, _names(body[8:])[0], struct.unpack_from("<I", body)[0] | stat.S_IFDIR)
            case Op.UNLINK | Op.RMDIR:
                self._find(node, _names(body)[0])
                del self.files[node].names[_names(body)[0]]
                return b""
            case Op.RENAME | Op.RENAME2:
                return self._rename(
                    node, struct.unpack_from("<Q", body)[0], *_names(body[8 if opcode == Op.RENAME else 16 :])
                )
            case Op.LINK:
                return self._link(node, struct.unpack_from("<Q", body)[0], _names(body[8:])[0])
            case Op.OPEN | Op.OPENDIR:
                return struct.pack("<QII", 0, 0, 0)
            case Op.READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                return bytes(self.files[node].content[offset : offset + size])
            case Op.WRITE:
                _, offset, size = struct.unpack_from("<QQI", body)
                content = self.files[node].content
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + size] = body[40 : 40 + size]
                return struct.pack("<II", size, 0)
            case Op.STATFS:
                return struct.pack("<QQQQQIIII24x", 1 << 24, 1 << 23, 1 << 23, 1 << 20, 1 << 19, 4096, 255, 4096, 0)
            case Op.READDIR:
                return self._listing(node, *struct.unpack_from("<QI", body, 8))
            case Op.RELEASE | Op.FSYNC | Op.RELEASEDIR:
                return b""
        raise OSError(errno.ENOSYS, "not served: the kernel does without")

    def _find(self, parent: int, name: bytes, is_lookup: bool = False) -> int:
        node = self.files[parent].names.get(name)
        if node is None:
            raise OSError(errno.ENOENT, "")
        is_empty = not self.files[node].is_directory and not self.files[node].content
        if is_lookup and is_empty and "not-exclusive" in self.traits:
            raise OSError(errno.ENOENT, "")
        return node

    def _make(self, parent: int, name: bytes, mode: int) -> bytes:
        names = self.files[parent].names
        if name not in names:
            names[name] = max(self.files) + 1
            self.files[names[name]] = File(mode)
        elif "not-exclusive" not in self.traits:
            raise OSError(errno.EEXIST, "")
        return self._entry(names[name])

    def _change(self, node: int, body: bytes) -> bytes:
        valid, size = struct.unpack_from("<I12xQ", body)
        if valid & SIZE_IS_SET:
            content = self.files[node].content
            content[size:] = bytes(max(0, size - len(content)))
        return self._attributes(node)

    def _rename(self, parent: int, new_parent: int, name: bytes, new_name: bytes) -> bytes:
        node = self._find(parent, name)
        if "no-directory-renames" in self.traits and self.files[node].is_directory:
            raise OSError(errno.EXDEV, "")
        self.files[new_parent].names[new_name] = node
        if "renames-copy" not in self.traits:
            del self.files[parent].names[name]
        return b""

    def _link(self, parent: int, node: int, name: bytes) -> bytes:
        if "no-links" in self.traits:
            raise OSError(errno.EPERM, "")  # as vfat says
        if name in self.files[parent].names:
            raise OSError(errno.EEXIST, "")
        self.files[parent].names[name] = node
        return self._entry(node)

    def _listing(self, node: int, offset: int, size: int) -> bytes:
        listed = b""
        for place, (name, inner) in enumerate(list(self.files[node].names.items())[offset:], offset + 1):
            entry = struct.pack("<QQII", inner, place, len(name), self.files[inner].mode >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(listed) + len(entry) > size:
                break
            listed += entry
        return listed

    def _stat(self, node: int) -> bytes:
        file = self.files[node]
        return struct.pack(
            "<QQQ24x12xIIIIIII", node, len(file.content), 0, file.mode, 1, os.geteuid(), os.getegid(), 0, 4096, 0
        )

    def _attributes(self, node: int) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._stat(node)

    def _entry(self, node: int) -> bytes:
        """Nothing of it may be remembered by the kernel."""
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._stat(node)


def _names(text: bytes) -> list[bytes]:
    return text.rstrip(b"\0").split(b"\0")


def serve(directory: str, traits: tuple[str, ...]) -> None:
    """Mount it, say so, and answer until it is unmounted."""
    assert set(traits) <= set(TRAITS), traits
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if LIBC.mount(b"odd", directory.encode(), b"fuse", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"{directory} can't be mounted")
    print("ready", flush=True)
    filesystem = Filesystem(traits)
    while True:
        try:
            request = os.read(device, BUFFER_BYTES)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            raise
        _, opcode, unique, node, *_ = HEADER.unpack_from(request)
        if opcode in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
            continue
        code, answer = 0, b""
        try:
            answer = filesystem.answer(opcode, node, request[HEADER.size :])
        except OSError as error:
            code = -(error.errno or errno.EIO)
        os.write(device, REPLY.pack(REPLY.size + len(answer), code, unique) + answer)


if __name__ == "__main__":
    serve(sys.argv[1], tuple(sys.argv[2:]))
