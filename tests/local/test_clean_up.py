"""What only a running job needs goes when it has succeeded. A file system that holds some of it back makes no failure of that."""

from pathlib import Path

from tests.scripts import Place

HELD = """
    import errno
    import smallpond_mpi

    unlink = os.unlink

    def held(path, *, dir_fd=None):
        if os.path.basename(path).startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        unlink(path, dir_fd=dir_fd)

    session = smallpond_mpi.init(progress="none")
    rows = session.from_items(list(range(8))).repartition(2, by_rows=True).map("item + 1 as a")
    say(rows.count())
    ctx = session._runtime_ctx
    for name in ("1", "2", "3", "4"):
        os.makedirs(os.path.join(ctx.staging_root, "used", name))
        open(os.path.join(ctx.staging_root, "used", name, ".nfs0001"), "w").close()
    say(ctx.job_root)
    os.unlink = held
"""


def test_a_file_that_can_not_be_removed_is_named_once(tmp_path: Path) -> None:
    ran = Place(tmp_path).run(HELD)
    assert ran.code == 0, ran.stderr
    count, job = ran.told
    assert count == 8
    assert (Path(job) / "status").read_text() == "success\n"
    assert ran.stderr.count("can't be removed") == 1
    assert f"{job}/staging/used/" in ran.stderr
    assert ".nfs0001 (Device or resource busy)" in ran.stderr
    assert ran.stderr.rstrip().endswith("and 1 more")
    left = [path.name for place in ("staging", "temp") for path in (Path(job) / place).rglob("*") if path.is_file()]
    assert left == [".nfs0001"] * 4
