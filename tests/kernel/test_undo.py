"""Undo records: what is not part of a container is not removed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.engine import cgroup, undo
from ociruntime.engine.cgroup import tree

pytestmark = pytest.mark.root
STRANGER = 4_000_001


def test_records_of_what_is_not_part_of_a_container(tmp_path: Path) -> None:
    """Nothing of it is removed, the error names it, and the rest of the record is undone."""
    cgroup = Path(oci.Host.probe().hierarchies[0].mountpoint)
    plain = tmp_path / "plain"
    plain.mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    temporary = tmp_path / "ociruntime-foreign"
    temporary.mkdir()
    os.chown(temporary, STRANGER, STRANGER)
    linked = tmp_path / "ociruntime-link"
    linked.symlink_to(plain)
    sleeper = subprocess.Popen(["sleep", "100"])
    try:
        (plain / "cgroup.procs").write_text(f"{sleeper.pid}\n")
        (plain / "tasks").write_text(f"{sleeper.pid}\n")
        refused = [
            (["cgroup", str(plain)], "it is not on a filesystem of type cgroup"),
            (["cgroup", str(empty)], "it is not on a filesystem of type cgroup"),
            (["cgroup_parent", str(plain)], "it is not on a filesystem of type cgroup"),
            (["cgroup", str(cgroup)], "it is a mount point"),
            (["cgroup", f"{cgroup}/../{tmp_path}"], "it is not an absolute path"),
            (["cgroup", "relative"], "it is not an absolute path"),
            (["cgroup", f"{cgroup}/a\0b"], "it is not an absolute path"),
            (["rdt", str(plain)], "it is not on a filesystem of type resctrl"),
            (["systemd_scope", "ssh.service", "system", str(cgroup / "x")], "it is not a scope of systemd"),
            (["systemd_scope", "x.scope", "system", str(plain)], "it is not on a filesystem of type cgroup"),
            (["bundle", str(plain)], "the name of an ephemeral bundle begins with"),
            (["bundle", str(temporary)], f"it belongs to uid {STRANGER}"),
            (["bundle", str(linked)], "it is not a directory"),
            (["format", "/dev/sda"], "'format' is not an action of this version"),
        ]
        for record, why in refused:
            own = tmp_path / "ociruntime-own"
            own.mkdir()
            with pytest.raises(oci.StateError, match=f"cannot remove .*{why}.*; correct 'undo'"):
                undo.undo_all([["bundle", str(own)], record])
            assert not own.exists()
        assert sleeper.poll() is None
        assert plain.is_dir()
        assert empty.is_dir()
        assert temporary.is_dir()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_container_with_such_a_record_can_be_deleted_when_it_is_corrected(
    bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path
) -> None:
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        right = container._entry.read()["undo"]  # the record is the subject of this test
        container._entry.update(undo=[*right, ["bundle", str(tmp_path)]])
        with pytest.raises(oci.StateError, match=f"cannot remove {tmp_path}"):
            container.delete(force=True)
        container._entry.update(undo=right)
    assert oci.Container.list(state_root=state_root) == []


@pytest.fixture
def parent(prefix: str) -> Iterator[Path]:
    """A new cgroup that takes processes."""
    hierarchies = oci.Host.probe().hierarchies
    hierarchy = next(h for h in hierarchies if h.version == 2 or "cpuset" not in h.controllers)  # an empty one takes no process
    path = Path(hierarchy.mountpoint) / prefix
    cgroup.make(str(path), cpuset=False)
    yield path
    for directory in reversed(list(tree.walk(str(path)))):
        os.rmdir(directory)


def test_cgroups_of_a_record_that_are_not_empty(parent: Path, tmp_path: Path) -> None:
    """All of them are removed: one with a process, one with a child, one that is gone; and what is no cgroup is refused."""
    paths = [parent / name for name in ("first", "busy", "nested", "gone", "last")]
    for path in [*paths, paths[2] / "child"]:
        cgroup.make(str(path), cpuset=False)
    paths[3].rmdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    sleeper = subprocess.Popen(["sleep", "100"])
    try:
        (paths[1] / "cgroup.procs").write_text(str(sleeper.pid))
        record = [["cgroup", str(path)] for path in paths]
        with pytest.raises(oci.StateError, match=f"cannot remove {foreign}"):
            undo.undo_all([*record[:2], ["cgroup", str(foreign)], *record[2:]])
        assert sleeper.wait(10) < 0
        assert [path for path in paths if path.exists()] == []
        assert foreign.is_dir()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_cgroup_that_systemd_removes_meanwhile(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, lstat = parent / "slice/scope", os.lstat
    group.mkdir(parents=True)

    def look(path: str) -> os.stat_result:
        info = lstat(path)
        if path == str(group):
            group.rmdir()
            group.parent.rmdir()
        return info

    monkeypatch.setattr(os, "lstat", look)
    undo.undo_all([["cgroup_parent", str(group)]])
    assert not group.parent.exists()


def test_operations_on_cgroups_end_with_the_first_that_fails(parent: Path, tmp_path: Path) -> None:
    first, second, third = (f"{parent}/{name}" for name in ("first", "second", "third"))
    taken = tmp_path / "file"
    taken.write_text("")
    operations = [
        *(f"{tree.NEW}{first}", f"{tree.MAKE}{first}", f"{tree.OPEN}{taken}", f"{tree.WRITE}1", f"{tree.WRITE}22"),
        *(f"{tree.REMOVE}{second}", f"{tree.MAKE}{first}", f"{tree.MAKE}{third}"),
    ]
    assert cgroup.batch(operations) == 6  # the cgroup exists already
    assert taken.read_text() == "122"
    assert os.path.isdir(first)
    assert not os.path.exists(third)
    failing = [
        *(f"{tree.NEW}{first}", f"{tree.NEW}{second}/child", f"{tree.MAKE}{second}/child", f"{tree.OPEN}{parent}/none"),
        *(f"{tree.WRITE}1", f"{tree.REMOVE}{tmp_path}", f"{tree.REMOVE}relative", f"{tree.REMOVE}/", "?", ""),
    ]
    assert [cgroup.batch([operation]) for operation in failing] == [0] * len(failing)
    assert cgroup.batch([f"{tree.MAKE}{second}", f"{tree.MAKE}{third}\0"]) == 0  # a NUL would end the operand
    assert not os.path.exists(second)
    assert cgroup.batch([]) == 0


@pytest.mark.parametrize("native", [True, False])
def test_a_cgroup_without_a_cpuset_to_inherit_is_not_left(tmp_path: Path, native: bool) -> None:
    path = tmp_path / "new"
    if native:
        assert cgroup.batch([f"{tree.MAKE_CPUSET}{path}"]) == 0
    else:
        with pytest.raises(FileNotFoundError):
            cgroup.make(str(path), cpuset=True)
    assert not path.exists()
