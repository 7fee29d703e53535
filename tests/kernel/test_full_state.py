"""A state directory without space: what is recorded stays whole, and the error says what to do."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.store import Recovery, StateRecord, StateStore, read_recovery

from ..support.fixture_types import MakeBundle
from ..support.leftovers import cgroups_of

pytestmark = pytest.mark.root
NO_SPACE = r"cannot write .*: no space left on device; free space on its filesystem, or give another state directory with --root"


@contextmanager
def filesystem(where: Path, size: str) -> Iterator[Path]:
    """A small filesystem, with a state directory in it."""
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], check=True)
    try:
        yield where / "state"
    finally:
        subprocess.run(["umount", "-l", where], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A state directory in 16 KiB, which is too little for a container."""
    with filesystem(tmp_path / "small", "16k") as root:
        yield root


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A state directory in 128 KiB, which is enough for one."""
    with filesystem(tmp_path / "large", "128k") as root:
        yield root


def fill(root: Path) -> Path:
    """Take all the space of a filesystem."""
    path = root.parent / "filler"
    found = os.statvfs(root.parent)
    path.write_bytes(bytes(found.f_bavail * found.f_bsize))
    return path


def test_the_old_document_holds(small: Path) -> None:
    entry = StateStore(small).create("c")
    old = StateRecord(id="c", bundle="/b", status="stopped")
    entry.write(old)
    with pytest.raises(oci.StateError, match=NO_SPACE):
        entry.write(StateRecord(id="c", bundle="/b" * 10000, status="stopped"))
    assert entry.read() == old
    assert os.listdir(entry.path) == ["state.json"]


def test_nothing_is_created(small: Path, make_bundle: MakeBundle, prefix: str) -> None:
    annotated = make_bundle(oci.RuntimeSpec.default().with_args(["sleep", "100"]).with_annotations({"com.example": "x" * 12000}))
    with pytest.raises(oci.StateError, match=NO_SPACE):
        oci.Container.create(prefix, annotated, state_root=small)
    assert oci.Container.list(state_root=small) == []
    assert [name for name in os.listdir(small) if not name.startswith(".")] == []
    assert cgroups_of(prefix) == []


def test_no_lock_can_be_made(tmp_path: Path, bundle: oci.Bundle, prefix: str) -> None:
    (tmp_path / "state").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs", tmp_path / "state"], check=True)
    try:
        with pytest.raises(oci.StateError, match=NO_SPACE):
            oci.run(bundle, ["true"], state_root=tmp_path / "state/root", container_id=prefix)
        assert os.listdir(tmp_path / "state") == ["root"]
        assert os.listdir(tmp_path / "state/root") == []
    finally:
        subprocess.run(["umount", "-l", tmp_path / "state"], check=True)
    assert cgroups_of(prefix) == []


def test_each_file_in_turn(large: Path, bundle: oci.Bundle, prefix: str) -> None:
    """Whatever is the first that has no space, nothing is left, and with space it works."""
    large.mkdir(mode=0o700)
    filler = fill(large)
    outcomes = []
    for size in range(filler.stat().st_size, -1, -4096):
        os.truncate(filler, size)
        try:
            with oci.Container.create(prefix, bundle, state_root=large) as container:
                container.start()
            outcomes.append("done")
        except oci.StateError as error:
            outcomes.append(str(error).partition("no space left on device")[1])
        assert [name for name in os.listdir(large) if not name.startswith(".")] == []
    refused = outcomes.index("done")
    assert refused >= 3
    assert outcomes == ["no space left on device"] * refused + ["done"] * (len(outcomes) - refused)
    assert cgroups_of(prefix) == []


def test_a_start_needs_its_space_before_the_process_runs(large: Path, make_bundle: MakeBundle, prefix: str) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["sleep", "100"]))
    with oci.Container.create(prefix, bundle, state_root=large) as container:
        filler = fill(large)
        with pytest.raises(oci.StateError, match=NO_SPACE):
            container.start()
        assert container.status is oci.Status.CREATED
        assert Path(f"/proc/{container.pid}/comm").read_text() == "oci-init\n"
        filler.unlink()
        container.start()
        assert container.status is oci.Status.RUNNING
    assert oci.Container.list(state_root=large) == []
    assert cgroups_of(prefix) == []


def test_an_update_keeps_what_holds(large: Path, bundle: oci.Bundle, prefix: str) -> None:
    with oci.Container.create(prefix, bundle, state_root=large) as container:
        before = (large / prefix / "config.json").read_bytes()
        fill(large)
        with pytest.raises(oci.StateError, match=NO_SPACE):
            container.update(pids=50)
        assert (large / prefix / "config.json").read_bytes() == before
        assert container.status is oci.Status.CREATED


def test_the_pid_has_space_in_the_recovery_record(small: Path) -> None:
    """The first line ends where a page does, so the line with the pid needs another one."""
    small.mkdir(mode=0o700)
    bundle = "x" * (4096 - len(json.dumps({"bundle": ""})) - len("\n"))
    record = Recovery(str(small))
    record.add({"bundle": bundle})
    fill(small)
    record.add({"bundle": bundle, "pid": 7, "pid_start": 8})
    assert read_recovery(str(small)) == {"bundle": bundle, "pid": 7, "pid_start": 8}
