"""Users and groups of a root filesystem that its author made to mislead."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ociruntime as oci
from ociruntime.overrides import Overrides
from ociruntime.rootfs import users
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


def test_a_sparse_file(rootfs: Path) -> None:
    """As large as a filesystem allows, and without content: no more than the bound is read."""
    os.truncate(rootfs / "etc/passwd", 1 << 43)
    with pytest.raises(oci.BundleError, match=f"larger than {MAX_FILE} bytes"):
        resolve("app", ContainerRoot(rootfs))


def test_a_link_that_appears_meanwhile(rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the path and the opening the container puts a link in the place of the file."""
    outside = rootfs / "outside"
    outside.write_text("app:x:0:0::/:\n")
    real = users._resolve

    def swapped(table: Any, path: str) -> str:
        resolved = real(table, path)
        (rootfs / "etc/passwd").unlink(missing_ok=True)
        (rootfs / "etc/passwd").symlink_to(outside)
        return resolved

    monkeypatch.setattr(users, "_resolve", swapped)
    with pytest.raises(oci.BundleError, match="'app' is neither"):
        resolve("app", ContainerRoot(rootfs))


# ---- several layers ----


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three layers, the uppermost first."""
    created = [tmp_path / name for name in ("upper", "middle", "lower")]
    for layer in created:
        (layer / "etc").mkdir(parents=True)
    (created[2] / "etc/passwd").write_bytes(PASSWD)
    (created[1] / "etc/group").write_bytes(GROUP)
    return created


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


# ---- any files at all ----

EXHAUSTIVE = "OCIRUNTIME_EXHAUSTIVE" in os.environ
_NAMES = ("app", "root", "adm", "", "0", "1000", "a b", "a,b", "+", "-x", "\u00e9", "\udcff", "x" * 300)
_IDS = (
    "0",
    "1000",
    "01000",
    "10",
    "4294967294",
    "4294967295",
    "-1",
    "+1",
    " 1",
    "0x0",
    "\u0663",
    "\u00b2",
    "9" * 5000,
    "0" * 5000,
    "",
)
_ENDS = ("\n", "\n", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\0", "")
_MEMBERS = ("", "app", "app,root", ",app,", "adm,adm", "1000", " app", "root\u2028app", "a b")
_HOMES = ("", "/", "/home/app", "relative", "/a\0b", "/\udcff", "../..", "/" + "x" * 5000)


def _lines_of(*fields: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Lines with these fields, or fewer of them, or more."""
    whole = st.tuples(*fields, st.sampled_from(_ENDS)).map(lambda parts: ":".join(parts[:-1]) + parts[-1])
    cut = st.tuples(st.lists(st.one_of(*fields), max_size=8), st.sampled_from(_ENDS)).map(lambda made: ":".join(made[0]) + made[1])
    return st.lists(whole | whole | whole | cut, max_size=6).map("".join)


_NAME, _ID = st.sampled_from(_NAMES), st.sampled_from(_IDS)
PASSWD_FILES = _lines_of(_NAME, st.just("x"), _ID, _ID, _NAME, st.sampled_from(_HOMES), st.just("/bin/sh"))
GROUP_FILES = _lines_of(_NAME, st.just("x"), _ID, st.sampled_from(_MEMBERS))
PARTS = _NAME | _ID | st.sampled_from(["no such", "a:b", "a\nb", "a\0b", "\ud800"])


def _user(bundle: oci.Bundle, text: str) -> User:
    process = bundle.with_overrides(Overrides(user=text)).spec.process
    assert process is not None
    assert process.user is not None
    return process.user


def error_or(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the message of its BundleError."""
    try:
        return call()
    except oci.BundleError as error:
        return str(error)


def expected_id(text: str) -> int | None:
    return int(text[-20:]) if re.fullmatch(r"0*[0-9]{1,10}", text, re.ASCII) and int(text[-20:]) < 2**32 - 1 else None


def rows(content: str, *columns: int) -> Iterator[tuple[list[str], list[int]]]:
    """Yield the lines of a file that have ids in these columns, as a program in the container reads them."""
    for line in content.split("\n"):
        fields = line.split(":")
        ids = [expected_id(fields[column]) for column in columns if column < len(fields)]
        if len(ids) == len(columns) and None not in ids:
            yield fields, [number for number in ids if number is not None]


def expected(text: str, passwd: str, group: str) -> User | None:
    """Return the user that a text stands for; None for an error."""
    name, _, group_name = text.partition(":")

    def find(part: str, content: str, *columns: int) -> tuple[list[str], list[int]] | None:
        number = expected_id(part)
        return next(
            (row for row in rows(content, *columns) if (row[0][0] == part if number is None else row[1][0] == number)), None
        )

    row = find(name, passwd, 2, 3)
    uid = expected_id(name) if row is None else row[1][0]
    if uid is None:
        return None
    if group_name:
        found = find(group_name, group, 2)
        gid = expected_id(group_name) if expected_id(group_name) is not None else found[1][0] if found else None
        return None if gid is None else User(uid=uid, gid=gid, additional_gids=(gid,))
    gid = row[1][1] if row else 0
    member = row[0][0] if row else name
    others = {ids[0] for fields, ids in rows(group, 2) if len(fields) > 3 and member in fields[3].split(",")}
    return User(uid=uid, gid=gid, additional_gids=(gid, *sorted(others - {gid})))


@settings(
    max_examples=20000 if EXHAUSTIVE else 200, deadline=None, derandomize=not EXHAUSTIVE, suppress_health_check=list(HealthCheck)
)
@given(PASSWD_FILES, GROUP_FILES, PARTS, st.none() | PARTS)
def test_any_files(tmp_path_factory: pytest.TempPathFactory, passwd: str, group: str, user: str, of_group: str | None) -> None:
    """Whatever is in the files, a user is the one that they say, or an error names the text and the file."""
    rootfs = tmp_path_factory.getbasetemp() / "any-files"
    (rootfs / "etc").mkdir(parents=True, exist_ok=True)
    passwd, group = (text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") for text in (passwd, group))
    for file, content in (("passwd", passwd), ("group", group)):
        (rootfs / "etc" / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    root = ContainerRoot(rootfs)
    text = user if of_group is None else f"{user}:{of_group}"
    requested = expected(text, passwd, group)
    found = error_or(lambda: resolve(text, root))
    if isinstance(found, str):
        assert requested is None
        assert re.fullmatch(r"(user|group) ['\"].{0,79} is neither a number nor in the container's /etc/(passwd|group)", found)
        assert found.isprintable()
        assert len(found) < 200
    else:
        assert found == requested
    for uid in (0, 1000):
        path = next((fields[5] for fields, ids in rows(passwd, 2, 3) if ids[0] == uid and len(fields) > 5), "")
        first = next((fields for fields, ids in rows(passwd, 2, 3) if ids[0] == uid), [])
        assert home(uid, root) == (path if len(first) > 5 and path.startswith("/") and "\0" not in path else "/")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _outside(path: Path) -> None:
    path.symlink_to("../../../../../../../../etc/passwd")


def _loop_of_directories(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.symlink_to("etc")


KINDS: dict[str, Callable[[Path], object]] = {
    **{kind: make for kind, (make, _) in UNREADABLE.items() if kind != "ENOTDIR"},
    "dangling link": _dangling,
    "link to the host": _outside,
    "loop of directories": _loop_of_directories,
    "absent": lambda path: None,
    "empty": Path.touch,
    "zeros": lambda path: path.write_bytes(bytes(MAX_FILE)),
    "one long line": lambda path: path.write_bytes(b"app:" * (MAX_FILE // 4)),
}


@pytest.mark.parametrize("passwd", KINDS)
@pytest.mark.parametrize("group", KINDS)
def test_any_kinds_of_files(tmp_path: Path, passwd: str, group: str) -> None:
    """A user of a call is found, or the error names the text or the file. Nothing waits, and no descriptor is left."""
    bundle = tmp_path / "bundle"
    (bundle / "rootfs/etc").mkdir(parents=True)
    KINDS[passwd](bundle / "rootfs/etc/passwd")
    if (bundle / "rootfs/etc").is_dir():
        KINDS[group](bundle / "rootfs/etc/group")
    loaded = oci.Bundle.from_dir(bundle)
    before = len(os.listdir("/proc/self/fd"))
    for text in ("app", "app:app", "0:app", "app:0", "7", "7:8", "root"):
        found = error_or(partial(_user, loaded, text))
        if isinstance(found, str):
            assert re.search(r"'(app|root)' is neither|the container's /etc/(passwd|group): ", found)
            assert set(text.split(":")) & {"app", "root"}
        else:
            assert text in (f"{found.uid}", f"{found.uid}:{found.gid}")
    assert len(os.listdir("/proc/self/fd")) == before
