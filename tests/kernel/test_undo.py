"""Undo records: what is not part of a container is not removed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.engine import undo

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
