"""Special files in the place of those that the runtime reads: none is opened (inotify sees every open that reaches a file)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime._native import check, lib
from ociruntime.files import open_regular
from ociruntime.supervisor.logs import read_log

pytestmark = pytest.mark.root
IN_OPEN = 0x20


@contextmanager
def opens(path: Path) -> Iterator[Callable[[], bool]]:
    """Whether a file has been opened since the last question; ``O_PATH`` does not count."""
    watch = check(lib.oci_inotify(os.fsencode(path), IN_OPEN))

    def seen() -> bool:
        try:
            return bool(os.read(watch, 4096))
        except BlockingIOError:
            return False

    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        assert seen(), "the watch works"
        yield seen
    finally:
        os.close(watch)


def replace(path: Path, kind: str) -> None:
    """Put a special file in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: can be opened, and never ends


@pytest.mark.parametrize("kind", ["FIFO", "character device"])
def test_users_of_a_container(bundle: oci.Bundle, state_root: Path, prefix: str, kind: str) -> None:
    passwd = bundle.path / "rootfs/etc/passwd"
    replace(bundle.path / "rootfs/etc/group", kind)
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        replace(passwd, kind)
        with opens(passwd) as passwd_seen, opens(bundle.path / "rootfs/etc/group") as group_seen:
            script = ["sh", "-c", "echo $HOME; grep -o ^Uid:.[0-9]* /proc/self/status"]
            result = container.exec(script, capture_output=True, text=True)
            assert result.stdout == "/\nUid:\t0\n"
            with pytest.raises(oci.BundleError, match=f"/etc/passwd: a {kind}, not a regular file"):
                container.exec(script, user="root")
            with pytest.raises(oci.BundleError, match=f"/etc/group: a {kind}, not a regular file"):
                container.exec(script, user="5:root")
            assert container.exec(script, user=7, capture_output=True, text=True).stdout == "/\nUid:\t7\n"
            ran = oci.run(
                bundle, script, user="7:7", capture_output=True, text=True, state_root=state_root, container_id=f"{prefix}-2"
            )
            assert ran.stdout == "/\nUid:\t7\n"
            assert not passwd_seen()
            assert not group_seen()


def test_a_directory_as_passwd(busybox_rootfs: Path, bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """No descriptor is left open, which would keep a mount busy; the `leaks` fixture looks for them."""
    passwd = bundle.path / "rootfs/etc/passwd"
    passwd.unlink()
    passwd.mkdir()
    for image in (bundle, bundle.path / "rootfs"):
        result = oci.run(image, ["sh", "-c", "echo $HOME"], capture_output=True, text=True, state_root=state_root)
        assert result.stdout == "/\n"
    with pytest.raises(oci.BundleError, match="/etc/passwd: a directory, not a regular file"):
        oci.run(bundle.path / "rootfs", ["true"], user="root", state_root=state_root)
    assert oci.Container.list(state_root=state_root) == []


@pytest.mark.parametrize("kind", ["FIFO", "character device"])
def test_images_and_logs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    replace(path, kind)
    with opens(path) as seen:
        with pytest.raises(oci.SifError, match=f"a {kind}, not a regular file"):
            oci.SifImage.open(path)
        with pytest.raises(oci.StateError, match=f"file: a {kind}, not a regular file"):
            next(read_log(str(path), "json", rotated=False, since=None, tail=None, stream=None))
        assert not seen()
    path.unlink()
    path.write_text("content")
    with opens(path) as seen:
        os.close(open_regular(path))
        assert seen()


@pytest.mark.parametrize("kind", ["FIFO", "character device"])
def test_a_log_is_replaced(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, kind: str) -> None:
    """A log in a directory that the container can write to: what the container puts there is not opened."""
    log = tmp_path / "log"
    with oci.Container.create(prefix, bundle, state_root=state_root, log_path=log) as container:
        replace(log, kind)
        with opens(log) as seen:
            with pytest.raises(oci.StateError, match=f"a {kind}, not a regular file"):
                container.reopen_log()
            with pytest.raises(oci.StateError, match="not a regular file"):
                container.logs()
            assert not seen()
        log.unlink()
        container.reopen_log()
        assert stat.S_ISREG(log.stat().st_mode)
