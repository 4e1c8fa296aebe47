"""Files are whole or not there: whatever fails, the old ones stay and nothing is left over."""

import errno
import os
import sys

import numpy as np
import pytest

from gradlogp.core import files
from gradlogp.core.files import check_writable, replacing, write_atomically, write_files


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def test_bytes_text_and_a_function(tmp_path):
    path = tmp_path / "new" / "a.npy"
    write_files({
        tmp_path / "b": b"\x00b", tmp_path / "t": "π", path: lambda f: np.save(f, np.ones(3)),
    })  # fmt: skip
    assert (tmp_path / "b").read_bytes() == b"\x00b"
    assert (tmp_path / "t").read_bytes() == "π".encode()
    assert np.load(path).tolist() == [1, 1, 1]
    write_atomically(tmp_path / "b", "other")
    assert (tmp_path / "b").read_text() == "other"
    assert names(tmp_path) == ["b", "new", "t"]


def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_fails_leaves_all_as_it_was(tmp_path, monkeypatch):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("old")
    with pytest.raises(OSError, match=f"cannot write {a}, {b}: No space left on device"):
        write_files({a: b"new", b: fail})
    with pytest.raises(ZeroDivisionError):
        write_files({a: b"new", b: lambda _: 1 // 0})
    for name in ("sync", "os"):
        with monkeypatch.context() as patch:
            patch.setattr(
                *((files, "sync", fail) if name == "sync" else (files.os, "replace", fail))
            )
            with pytest.raises(OSError, match="No space left"):
                write_files({a: b"new", b: b"new"})
    assert a.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_all_is_on_disk_before_any_has_its_name(tmp_path, monkeypatch):
    done = []
    real_sync, real_replace = files.sync, os.replace
    monkeypatch.setattr(files, "sync", lambda p: (done.append(f"sync {p.suffix}"), real_sync(p)))
    monkeypatch.setattr(
        files.os, "replace", lambda a, b: (done.append(f"name {b.suffix}"), real_replace(a, b))
    )
    write_files({tmp_path / "x.a": b"1", tmp_path / "x.b": b"2"})
    assert done == ["sync .a", "sync .b", "name .a", "name .b", "sync "]


def test_sync_waits_for_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.fstat(number).st_ino))
    path = tmp_path / "x"
    write_atomically(path, "1")
    folders = [] if sys.platform == "win32" else [tmp_path.stat().st_ino]
    assert flushed == [path.stat().st_ino, *folders]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions and links of POSIX")
def test_permissions_and_links(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "1")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    (tmp_path / "a").chmod(0o600)
    write_atomically(tmp_path / "a", "2")  # what was private stays so
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "a")
    write_atomically(tmp_path / "link", "3")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_text() == "3"
    write_atomically(tmp_path / "null", "x")
    write_atomically(files.Path("/dev/null"), "x")  # no file: it is written to as it is
    assert files.Path("/dev/null").is_char_device()


def test_paths_are_those_of_a_writer_that_wants_a_name(tmp_path):
    with replacing(tmp_path / "x.npy", tmp_path / "y.png") as (array, picture):
        assert (array.suffix, picture.suffix) == (".npy", ".png")
        np.save(array, np.zeros(2))
        picture.write_bytes(b"p")
        assert not (tmp_path / "x.npy").exists()
    assert names(tmp_path) == ["x.npy", "y.png"]


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("kept")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "deep" / "x")
    check_writable(tmp_path / "new", folder=True)
    check_writable(files.Path("/dev/null"))
    for path, folder in (
        (tmp_path, False),
        (tmp_path / "file" / "x", False),
        (tmp_path / "file", True),
    ):
        with pytest.raises(OSError, match="cannot write") as caught:
            check_writable(path, folder=folder)
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "kept"
