"""State directories that another user can change are refused by every operation."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.store import StateRecord, StateStore

pytestmark = pytest.mark.root
STRANGER = 4_000_001


def _foreign(path: Path) -> None:
    os.chown(path, STRANGER, STRANGER)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "owner": (_foreign, f"it belongs to uid {STRANGER}, not to the caller"),
    "others": (lambda path: path.chmod(0o1777), "its mode 1777 lets other users write"),
    "group": (lambda path: path.chmod(0o770), "its mode 0770 lets other users write"),
}


def _calls(root: Path, bundle: oci.Bundle, name: str) -> dict[str, Callable[[], object]]:
    return {
        "create": lambda: oci.Container.create(f"{name}-new", bundle, state_root=root),
        "load": lambda: oci.Container.load(name, state_root=root),
        "list": lambda: oci.Container.list(state_root=root),
        "prune": lambda: oci.prune(state_root=root),
        "run": lambda: oci.run(bundle, ["true"], state_root=root),
    }


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_state_root_that_another_user_can_change(bundle: oci.Bundle, state_root: Path, prefix: str, damage: str) -> None:
    change, why = DAMAGE[damage]
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        before = state_root.stat()
        change(state_root)
        try:
            calls = _calls(state_root, bundle, prefix)
            handle = {
                "start": container.start,
                "state": lambda: container.state,
                "delete": lambda: container.delete(force=True),
            }
            for call in {**calls, **handle}.values():
                with pytest.raises(oci.StateError, match=rf"cannot keep state in {state_root}: {why}.*; give a directory"):
                    call()
        finally:
            os.chown(state_root, before.st_uid, before.st_gid)
            state_root.chmod(0o700)
        container.start()
    assert os.listdir(state_root) in ([], [".seccomp"])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_directory_of_a_container_that_another_user_can_change(
    bundle: oci.Bundle, state_root: Path, prefix: str, damage: str
) -> None:
    change, why = DAMAGE[damage]
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        change(state_root / prefix)
        try:
            for call in (container.start, lambda: container.state, lambda: container.delete(force=True)):
                with pytest.raises(oci.StateError, match=rf"cannot keep state in {state_root / prefix}: {why}"):
                    call()
        finally:
            os.chown(state_root / prefix, 0, 0)
            (state_root / prefix).chmod(0o700)


def test_symbolic_links(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    """One of root's own is followed to a directory that is checked; one of another user, or in a container's place, is not."""
    state_root.mkdir(mode=0o700, exist_ok=True)
    link = tmp_path / "link"
    link.symlink_to(state_root)
    with oci.Container.create(prefix, bundle, state_root=link) as container:
        assert oci.Container.load(prefix, state_root=state_root).pid == container.pid
        os.lchown(link, STRANGER, STRANGER)
        with pytest.raises(oci.StateError, match=f"symbolic link of uid {STRANGER}"):
            oci.Container.load(prefix, state_root=link)
        os.lchown(link, 0, 0)
        state_root.chmod(0o777)
        with pytest.raises(oci.StateError, match="its mode 0777"):
            oci.Container.load(prefix, state_root=link)
        state_root.chmod(0o700)
        (state_root / "other").symlink_to(prefix)
        with pytest.raises(oci.StateError, match=f"cannot keep state in {state_root / 'other'}: it is not a directory"):
            oci.Container.load("other", state_root=state_root)
        (state_root / "other").unlink()
    (tmp_path / "file").touch()
    with pytest.raises(oci.StateError, match="it is not a directory"):
        oci.Container.create(prefix, bundle, state_root=tmp_path / "file")


def test_locks_of_callers(bundle: oci.Bundle, state_root: Path, tmp_path: Path) -> None:
    """Nothing is removed through a directory of locks that is not the caller's own."""
    (tmp_path / "precious").mkdir(mode=0o700)
    (tmp_path / "precious/file").touch()
    state_root.mkdir(mode=0o700)
    (state_root / ".runs").symlink_to(tmp_path / "precious")
    for call in (lambda: oci.run(bundle, ["true"], state_root=state_root), lambda: oci.prune(state_root=state_root)):
        with pytest.raises(oci.StateError, match=f"cannot keep state in {state_root}/.runs: it is not a directory"):
            call()
    assert os.listdir(tmp_path / "precious") == ["file"]


def test_a_record_of_another_user_is_not_followed(tmp_path: Path, prefix: str) -> None:
    """The state root was made by another user, with a container whose deletion removes root's files."""
    root, precious = tmp_path / "state", tmp_path / "ociruntime-precious"
    precious.mkdir()
    entry = StateStore(root).create(prefix)
    entry.write(StateRecord(id=prefix, bundle="", status="stopped", undo=[["bundle", str(precious)]]))
    for path in (root, root / prefix, root / prefix / "state.json"):
        _foreign(path)
    with pytest.raises(oci.StateError, match=f"it belongs to uid {STRANGER}"):
        oci.Container.load(prefix, state_root=root).delete(force=True)
    with pytest.raises(oci.StateError, match=f"it belongs to uid {STRANGER}"):
        oci.prune(state_root=root)
    assert precious.is_dir()
