"""Replacing a file: all of the new content, or the old file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ociruntime.files import ProcfsError, StagedFile, open_regular, replace_file, sealed_memfd
from ociruntime.image.sif import DataType, SifBuilder
from ociruntime.lifecycle.create import write_pid_file
from ociruntime.spec import RuntimeSpec
from ociruntime.store import StateRecord, StateStore

CONTENT = bytes(range(256)) * 20
Replace = Callable[[Path], object]


def replace_state(path: Path) -> None:
    entry = StateStore(path.parent.parent).create("c")
    entry.write(StateRecord(id="c", bundle="/b" * 5000, status="stopped"))
    os.rename(entry.path / "state.json", path)


def replace_sif(path: Path) -> None:
    builder = SifBuilder(timestamp=0)
    builder.add(DataType.GENERIC, CONTENT)
    builder.write(path, overwrite=True)


WRITERS: dict[str, Replace] = {
    "file": lambda path: replace_file(path, CONTENT),
    "pid file": lambda path: write_pid_file(path, 123456),
    "spec": lambda path: RuntimeSpec.default().save(path),
    "state": replace_state,
}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "directory"
    directory.mkdir(mode=0o700)
    (directory / "target").write_bytes(b"old")
    return directory / "target"


@pytest.mark.parametrize("writer", WRITERS)
def test_short_writes(target: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    """A write may take a part only: at the end of a filesystem's space, or when a signal comes."""
    WRITERS[writer](target)
    expected = target.read_bytes()
    target.unlink()
    for old in target.parent.parent.glob("c"):
        old.rmdir()
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:3]))
    WRITERS[writer](target)
    assert target.read_bytes() == expected
    assert len(expected) > 3


def test_no_space(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = os.write, 5000

    def full(fd: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(fd, bytes(data)[:room])
        room -= count
        return count

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        replace_file(target, CONTENT)
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["target"]


def test_an_interrupt_leaves_the_old_file(target: Path) -> None:
    def interrupted() -> None:
        with StagedFile(target) as staged:
            staged.write(CONTENT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["target"]


def test_a_link_is_replaced_and_not_followed(target: Path) -> None:
    link = target.with_name("link")
    link.symlink_to(target)
    replace_file(link, CONTENT, mode=0o640)
    assert not link.is_symlink()
    assert stat.S_IMODE(link.stat().st_mode) == 0o640
    assert target.read_bytes() == b"old"


def test_a_durable_file_is_synced_with_its_directory(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
    replace_sif(target)
    assert synced[0].endswith(" (deleted)")  # the file has no name yet
    assert synced[1:] == ["directory"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_new_file_has_its_name_at_once(target: Path, monkeypatch: pytest.MonkeyPatch, replace: bool) -> None:
    """No moment at which it has another, which SIGKILL would leave."""
    link, seen = os.link, list[list[str]]()

    def linked(source: str, path: str, **options: Any) -> None:
        link(source, path, **options)
        seen.append(sorted(os.listdir(target.parent)))

    monkeypatch.setattr(os, "link", linked)
    with StagedFile(target.with_name("new"), anonymous=True) as staged:
        if staged._named:
            pytest.skip("a filesystem without files that have no name")
        staged.write(CONTENT)
        staged.commit(replace=replace)
    assert seen == [["new", "target"]]
    assert target.with_name("new").read_bytes() == CONTENT


def test_a_file_that_exists_is_kept_or_replaced(target: Path) -> None:
    with StagedFile(target, anonymous=True) as staged:
        staged.write(CONTENT)
        with pytest.raises(FileExistsError) as caught:
            staged.commit(replace=False)
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"old"
    with StagedFile(target, anonymous=True) as staged:
        staged.write(CONTENT)
        staged.commit()
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == ["target"]


def test_a_file_whose_end_cannot_be_written_gets_no_name(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(staged: StagedFile) -> None:
        os.close(staged.fd)
        staged.fd = -1
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with StagedFile(target.with_name("new"), anonymous=True) as staged:
        staged.write(CONTENT)
        with monkeypatch.context() as patch:
            patch.setattr(StagedFile, "_close", full)
            with pytest.raises(OSError, match="quota"):
                staged.commit()
    assert os.listdir(target.parent) == ["target"]


def test_names_as_long_as_they_may_be(target: Path) -> None:
    path = target.with_name("ü" * 127)
    replace_file(path, CONTENT)
    assert path.read_bytes() == CONTENT


def test_a_directory_that_is_open(target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    directory = os.open(target.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        replace_file("target", CONTENT, directory=directory)
        with pytest.raises(FileNotFoundError):
            replace_file("missing/target", CONTENT, directory=directory)
    finally:
        os.close(directory)
    assert target.read_bytes() == CONTENT


def test_a_sealed_file_cannot_change() -> None:
    """Not even by root, and not through another descriptor."""
    fd = sealed_memfd("program", b"content")
    try:
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            for change in (lambda: os.pwrite(again, b"x", 0), lambda: os.truncate(again, 0), lambda: os.truncate(again, 100)):
                with pytest.raises(PermissionError):
                    change()
        finally:
            os.close(again)
        assert os.pread(fd, 100, 0) == b"content"
    finally:
        os.close(fd)


def test_a_file_that_is_removed_before_it_is_reopened(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some filesystems refuse to reopen it. That says nothing of /proc."""

    def opening(path: str, *arguments: int, **options: int) -> int:
        if str(path).startswith("/proc/self/fd/"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return open_it(path, *arguments, **options)

    target.write_bytes(b"")
    open_it = os.open
    monkeypatch.setattr(os, "open", opening)
    with pytest.raises(FileNotFoundError) as caught:
        open_regular(target)
    assert not isinstance(caught.value, ProcfsError)
    assert caught.value.filename == str(target)
