"""Users and groups of a root filesystem that its author made to mislead."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.rootfs.users import MAX_FILE, ContainerRoot, home, resolve
from ociruntime.spec import User

PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1000:\nwheel:x:10:root,app\nvideo:x:44:app\n"


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(PASSWD)
    (tmp_path / "etc/group").write_bytes(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("app", User(uid=1000, gid=1000, additional_gids=(1000, 10, 44))),
        ("1000", User(uid=1000, gid=1000, additional_gids=(1000, 10, 44))),
        ("01000", User(uid=1000, gid=1000, additional_gids=(1000, 10, 44))),
        ("app:video", User(uid=1000, gid=44, additional_gids=(44,))),
        ("app:7", User(uid=1000, gid=7, additional_gids=(7,))),
        ("0", User(uid=0, gid=0, additional_gids=(0, 10))),
        ("5:6", User(uid=5, gid=6, additional_gids=(6,))),
        ("5", User(uid=5, gid=0, additional_gids=(0,))),
        ("4294967294", User(uid=4294967294, gid=0, additional_gids=(0,))),
    ],
)
def test_users(rootfs: Path, text: str, user: User) -> None:
    assert resolve(text, ContainerRoot(rootfs)) == user


@pytest.mark.parametrize("text", ["4294967295", "-1", "+5", " 5", "٣", "9" * 5000, "nobody", "", ":"])
def test_users_that_do_not_exist(rootfs: Path, text: str) -> None:
    with pytest.raises(oci.BundleError, match="neither a number nor in the container's /etc/passwd") as caught:
        resolve(text, ContainerRoot(rootfs))
    assert len(str(caught.value)) < 200
    with pytest.raises(oci.BundleError, match="neither a number nor in the container's /etc/group"):
        resolve(f"app:{text or 'nobody'}", ContainerRoot(rootfs))


@pytest.mark.parametrize("separator", ["\f", "\v", "\r", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_line_ends_at_a_newline_only(rootfs: Path, separator: str) -> None:
    """Programs in the container read one line; no part of it is a user of its own."""
    line = f"app:x:1000:1000:x{separator}adm:x:0:0::/:/bin/sh\n"
    (rootfs / "etc/passwd").write_text(line, newline="")
    (rootfs / "etc/group").write_text(f"app:x:1000:x{separator}adm:x:0:\n", newline="")
    with pytest.raises(oci.BundleError, match="'adm' is neither"):
        resolve("adm", ContainerRoot(rootfs))
    with pytest.raises(oci.BundleError, match="'adm' is neither"):
        resolve("5:adm", ContainerRoot(rootfs))
    assert resolve("0", ContainerRoot(rootfs)) == User(uid=0, gid=0, additional_gids=(0,))
    assert resolve("app", ContainerRoot(rootfs)) == User(uid=1000, gid=1000, additional_gids=(1000,))


@pytest.mark.parametrize(
    "row", ["app", "app:x", "app:x:1000", "app:x:1000:", "app:x:-1:0", "app:x:0x0:0", "app:x:" + "9" * 5000 + ":0", ""]
)
def test_a_line_without_ids_is_skipped(rootfs: Path, row: str) -> None:
    (rootfs / "etc/passwd").write_text(row)
    assert resolve("1000:1000", ContainerRoot(rootfs)) == User(uid=1000, gid=1000, additional_gids=(1000,))
    assert resolve("1000", ContainerRoot(rootfs)) == User(uid=1000, gid=0, additional_gids=(0,))
    assert home(1000, ContainerRoot(rootfs)) == "/"
    with pytest.raises(oci.BundleError, match="'app' is neither"):
        resolve("app", ContainerRoot(rootfs))
    (rootfs / "etc/passwd").write_text(f"{row}\napp:x:7:8::/home/app:\n")
    assert resolve("app", ContainerRoot(rootfs)) == User(uid=7, gid=8, additional_gids=(8, 10, 44))


@pytest.mark.parametrize("row", ["wheel", "wheel:x", "wheel:x:", "wheel:x:4294967295:app", "wheel:x:" + "9" * 5000 + ":app"])
def test_a_group_without_an_id_is_skipped(rootfs: Path, row: str) -> None:
    (rootfs / "etc/group").write_text(row)
    assert resolve("app", ContainerRoot(rootfs)) == User(uid=1000, gid=1000, additional_gids=(1000,))
    with pytest.raises(oci.BundleError, match="'wheel' is neither"):
        resolve("app:wheel", ContainerRoot(rootfs))


def test_home(rootfs: Path) -> None:
    (rootfs / "etc/passwd").write_bytes(b"a:x:1:1::/h\xff:\nb:x:2:2::relative:\nc:x:3:3::/x\0y:\nd:x:4:4\n")
    assert os.fsencode(home(1, ContainerRoot(rootfs))) == b"/h\xff"
    assert [home(uid, ContainerRoot(rootfs)) for uid in (2, 3, 4, 5)] == ["/"] * 4


def _large(path: Path) -> None:
    path.write_bytes(PASSWD + b"#" * MAX_FILE)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _in_another_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "directory": (Path.mkdir, "a directory, not a regular file"),
    "FIFO": (os.mkfifo, "a FIFO, not a regular file"),
    "socket": (_socket, "a socket, not a regular file"),
    "large": (_large, f"larger than {MAX_FILE} bytes"),
    "loop": (_loop, "Too many levels of symbolic links"),
    "ENOTDIR": (_in_another_file, "Not a directory"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_cannot_be_read(rootfs: Path, kind: str) -> None:
    """Names cannot be looked up, which is an error that names the file. Numbers need no file."""
    make, why = UNREADABLE[kind]
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/group").unlink()
    make(rootfs / "etc/passwd")
    if (rootfs / "etc").is_dir():
        make(rootfs / "etc/group")
    before = os.listdir("/proc/self/fd")
    for text, file in (("app", "passwd"), ("app:7", "passwd"), ("5:app", "group")):
        with pytest.raises(oci.BundleError, match=f"/etc/{file}: {why}"):
            resolve(text, ContainerRoot(rootfs))
    assert resolve("1000:1000", ContainerRoot(rootfs)) == User(uid=1000, gid=1000, additional_gids=(1000,))
    assert resolve("1000", ContainerRoot(rootfs)) == User(uid=1000, gid=0, additional_gids=(0,))
    assert home(1000, ContainerRoot(rootfs)) == "/"
    assert os.listdir("/proc/self/fd") == before


def test_groups_that_cannot_be_read(rootfs: Path) -> None:
    """They may be what keeps a user from a file, so a user by name does not go without them."""
    (rootfs / "etc/group").unlink()
    (rootfs / "etc/group").mkdir()
    with pytest.raises(oci.BundleError, match="/etc/group: a directory"):
        resolve("app", ContainerRoot(rootfs))
    assert resolve("1000", ContainerRoot(rootfs)) == User(uid=1000, gid=1000, additional_gids=(1000,))
    assert resolve("app:5", ContainerRoot(rootfs)) == User(uid=1000, gid=5, additional_gids=(5,))


def test_links_stay_in_the_root(rootfs: Path) -> None:
    (rootfs / "etc/passwd").rename(rootfs / "users")
    (rootfs / "etc/passwd").symlink_to("../../../users")
    assert resolve("app:0", ContainerRoot(rootfs)) == User(uid=1000, gid=0, additional_gids=(0,))
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/etc/passwd")  # itself, in the root
    with pytest.raises(oci.BundleError, match="/etc/passwd: Too many levels"):
        resolve("root", ContainerRoot(rootfs))


# ---- several layers ----


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three layers, the uppermost first."""
    made = [tmp_path / name for name in ("upper", "middle", "lower")]
    for layer in made:
        (layer / "etc").mkdir(parents=True)
    (made[2] / "etc/passwd").write_bytes(PASSWD)
    (made[1] / "etc/group").write_bytes(GROUP)
    return made


def test_files_are_found_in_any_layer(layers: list[Path]) -> None:
    assert resolve("app", ContainerRoot(*layers)).additional_gids == (1000, 10, 44)
    (layers[1] / "etc/passwd").write_text("app:x:7:8::/a:/b\n")
    assert resolve("app", ContainerRoot(*layers)).uid == 7
    (layers[0] / "etc/passwd").symlink_to("/else/where")
    (layers[2] / "else").mkdir()
    (layers[2] / "else/where").write_text("app:x:9:9::/a:/b\n")
    assert resolve("app", ContainerRoot(*layers)).uid == 9


@pytest.mark.parametrize(
    ("hide", "count"),
    [("opaque", 2), ("whiteout of a file", 3), ("whiteout of a directory", 1), ("file", 1), ("link to the host", 1)],
)
def test_an_upper_layer_hides_files(layers: list[Path], hide: str, count: int) -> None:
    etc = layers[1] / "etc"
    (etc / "group").unlink()
    if hide == "opaque":
        os.setxattr(etc, "user.overlay.opaque", b"y")
    elif hide == "whiteout of a file":
        _whiteout(etc / "passwd")
    else:
        etc.rmdir()
        if hide == "file":
            etc.write_text("")
        elif hide == "link to the host":
            etc.symlink_to(layers[2] / "etc")
        else:
            _whiteout(etc)
    with pytest.raises(oci.BundleError, match="neither a number nor in the container's /etc/passwd"):
        resolve("app", ContainerRoot(*layers))
    with ContainerRoot(*layers).opened_directory("/etc") as found:
        assert len(found) == count


def _whiteout(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root makes devices, whiteouts too")
    os.mknod(path, 0o20000, 0)
