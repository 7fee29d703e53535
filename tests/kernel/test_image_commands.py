"""Programs in new containers of images, as Apptainer's users know them: the preset hpc, and run, exec and shell with an image."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Command
from ..support.private_users import UID, User, give, new_user
from ..support.terminals import Session, in_foreground
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = pytest.mark.root
FUSE = all(shutil.which(name) for name in ("squashfuse", "fusermount3")) and os.path.exists("/dev/fuse")
HELPERS = shutil.which("newuidmap", path="/usr/bin") is not None


@pytest.fixture(scope="module")
def image(busybox_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("mksquashfs") is None:
        pytest.skip("no mksquashfs (Debian: squashfs-tools)")
    path = tmp_path_factory.mktemp("image") / "image.sif"
    oci.build_sif(path, busybox_rootfs, oci_config={"Cmd": ["sh", "-c", "echo $SET; pwd"], "Env": ["SET=image"]})
    return path


@pytest.fixture(params=[False, True], ids=["own id", "subordinate ids"])
def user(request: pytest.FixtureRequest, user_python: str, busybox_rootfs: Path, image: Path) -> Iterator[User]:
    """A user whose home has ``image.sif``, the root filesystem ``tree`` and the bundle ``bundle``."""
    if request.param and not HELPERS:
        pytest.skip("no newuidmap (Debian: uidmap)")
    with new_user(user_python, subordinate=request.param, fuse=FUSE and request.param) as created:
        shutil.copy(image, created.home / "image.sif")
        shutil.copytree(busybox_rootfs, created.home / "tree", symlinks=True)
        (created.home / "bundle").mkdir()
        shutil.copytree(busybox_rootfs, created.home / "bundle/rootfs", symlinks=True)
        give(created.home)
        yield created


def run(user: User, *words: object, stdin: str = "", check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Execute a command as the user, whose home directory is its working directory."""
    return user.command(*words, stdin=stdin, check=check, HOME=str(user.home), XDG_CACHE_HOME=f"{user.home}/cache", **env)


SCRIPT = "id -u; pwd; echo $HOME $SET $GIVEN; uname -n; touch new; ls -d /tmp/ociruntime-* | wc -l; cat /etc/hosts | wc -c; ls /proc | grep -c ^[0-9]"


@pytest.mark.parametrize("place", ["image.sif", "./tree", "bundle/"])
def test_the_preset_hpc(user: User, place: str) -> None:
    """The program has the files, the variables and the network of its caller; what the image sets wins."""
    if place == "bundle/":
        run(user, "spec", "-b", "bundle")
    words = ("exec", "--hpc", place, "sh", "-c", SCRIPT)
    uid, cwd, variables, name, state, hosts, processes = run(user, *words, SET="host", GIVEN="given").stdout.splitlines()
    assert (uid, cwd) == (str(UID), str(user.home))
    assert variables == f"{user.home} {'image' if place == 'image.sif' else 'host'} given"
    assert name == os.uname().nodename
    assert int(state) > 0
    assert int(hosts) == Path("/etc/hosts").stat().st_size
    assert int(processes) < 5
    assert (user.home / "new").stat().st_uid == UID
    assert user.leftovers() == []


def test_options_beside_the_preset(user: User) -> None:
    """Options of the command win over the preset; --cleanenv and --no-home take a part of it away."""
    script = ["sh", "-c", "id -u; pwd; echo $HOME $GIVEN $MORE; ls -d /data; wc -l </proc/net/dev"]
    options = ["--hpc", "--cleanenv", "--no-home", "--bind", "image.sif:/data:ro", "--env", "MORE=1,2,LAST=3", "--network", "none"]
    found = run(user, "exec", *options, "--pwd", "/etc", "-u", "0", "image.sif", *script, GIVEN="given").stdout.splitlines()
    assert found == ["0", "/etc", "/root 1,2", "/data", "3"]
    found = run(
        user, "exec", "--hpc", "--no-home", "image.sif", *script, GIVEN="given", APPTAINERENV_MORE="set"
    ).stdout.splitlines()
    assert found[:3] == [str(UID), str(user.home), f"{user.home} given set"]  # the working directory is bound by itself


STATE = "id -u; pwd; echo $HOME $GIVEN; uname -n; ls /tmp | wc -l; touch $HOME/new; ls /scratch 2>/dev/null && echo scratch; wc -l </proc/net/dev"


def test_flags_of_apptainer(user: User) -> None:
    """--contain and its kin keep the caller, and show nothing of its directories; --fakeroot is root with the caller's home."""
    (user.home / "file.env").write_text("GIVEN='from file'\n")
    (user.home / "elsewhere").mkdir()
    os.chown(user.home / "elsewhere", UID, UID)
    home, lines = str(user.home), len(Path("/proc/net/dev").read_text().splitlines())

    def call(*words: str) -> list[str]:
        return run(user, "exec", *words, "image.sif", "sh", "-c", STATE, GIVEN="given").stdout.splitlines()

    node = os.uname().nodename
    assert call("--contain") == [str(UID), home, f"{home} given", node, "0", str(lines)]
    assert call("-C", "--scratch", "/scratch", "--net", "--network", "none") == [str(UID), home, home, node, "0", "scratch", "3"]
    assert call("--compat", "--hostname", "box", "--env-file", "file.env") == [
        str(UID), home, f"{home} from file", "box", "0", str(lines),
    ]  # fmt: skip
    assert not (user.home / "new").exists()
    assert call("--contain", "--workdir", "work")[0] == str(UID)
    assert (user.home / "work/home/new").exists()
    found = call("--hpc", "--fakeroot")
    assert (found[0], found[2]) == ("0", "/root given")
    assert (user.home / "new").stat().st_uid == UID
    assert call("-H", "elsewhere:/home/me", "--env-file", "file.env", "--env", "GIVEN=2")[:3] == ["0", "/home/me", "/home/me 2"]
    assert (user.home / "elsewhere/new").exists()
    assert run(user, "run", "--writable-tmpfs", "image.sif", "sh", "-c", "touch /new && ls /new").stdout == "/new\n"
    assert user.leftovers() == []


def test_an_upper_layer_that_is_kept_by_a_user(user: User) -> None:
    run(user, "spec", "-b", "bundle")
    (user.home / "kept").mkdir()
    os.chown(user.home / "kept", UID, UID)
    run(user, "run", "-o", "kept", "image.sif", "sh", "-c", "echo kept >/f; rm /etc/passwd")
    script = "cat /f; ls /etc/passwd || echo removed; echo x >/f; touch /g"
    for _ in range(2):
        done = run(user, "exec", "--overlay", "kept:ro", "image.sif", "sh", "-c", f"ls /g || {{ {script}; }}", check=False)
        assert done.stdout == "kept\nremoved\n"
    assert (user.home / "kept/upper/f").read_text() == "kept\n"
    assert user.leftovers() == []


def test_a_shell_in_a_bundle_with_an_overlay(user: User) -> None:
    """It sees what the containers of the bundle see, and what it writes is kept as theirs is."""
    (user.home / "kept").mkdir()
    os.chown(user.home / "kept", UID, UID)
    run(user, "mount", "--overlay", "kept", "image.sif", "mounted")
    run(user, "exec", "./mounted", "sh", "-c", "echo first >/f; rm /etc/passwd")
    assert (
        run(user, "shell", "mounted", stdin="cat /f; ls /etc/passwd || echo removed; echo second >>/f").stdout == "first\nremoved\n"
    )
    assert run(user, "shell", "mounted", stdin="cat /f").stdout == "first\nsecond\n"
    assert run(user, "shell", "--overlay", "none", "mounted", stdin="ls /f || ls /etc/passwd").stdout == "/etc/passwd\n"
    run(user, "umount", "mounted")
    assert (user.home / "kept/upper/f").read_text() == "first\nsecond\n"
    assert user.leftovers() == []


@pytest.fixture
def signed(image: Path, tmp_path: Path) -> Path:
    """A signed copy of the image; ``key`` beside it has its public key, and ``other`` another one."""
    pytest.importorskip("cryptography", reason="the extra 'verify' is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    path = tmp_path / "signed.sif"
    shutil.copy(image, path)
    for name in ("other", "key"):
        key = ed25519.Ed25519PrivateKey.generate()
        pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        (tmp_path / name).write_bytes(key.public_key().public_bytes(pem, public))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "secret").write_bytes(secret)
    oci.sign(path, key=secret)
    return path


def test_verified_images(user: User, signed: Path) -> None:
    """What is not signed by a key that is given is neither run nor mounted."""
    for name in ("signed.sif", "key", "other"):
        shutil.copy(signed.parent / name, user.home / name)
    shutil.copy(signed, user.home / "changed.sif")
    with (user.home / "changed.sif").open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1]))
    give(user.home)
    assert run(user, "run", "--verify", "--key", "key", "signed.sif").stdout.splitlines() == ["image", "/"]
    assert run(user, "exec", "-k", "other", "-k", "key", "signed.sif", "echo", "ran").stdout == "ran\n"
    assert run(user, "shell", "-k", "key", "signed.sif", stdin="echo ran\n").stdout == "ran\n"
    run(user, "mount", "-k", "key", "signed.sif", "mounted")
    assert run(user, "shell", "mounted", stdin="echo ran\n").stdout == "ran\n"
    run(user, "umount", "mounted")
    for words, message in (
        ("run --key other signed.sif", "not by a given key"),
        ("run --key key changed.sif", "changed since it was signed"),
        ("exec --key key image.sif true", "not signed"),
        ("shell --key key ./tree", "only SIF files hold theirs"),
        ("run --verify signed.sif", ": 'signed.sif' is a SIF file, which is verified by its signatures; add --key FILE"),
        ("verify signed.sif", ": 'signed.sif' is a SIF file, which is verified by its signatures; add --key FILE"),
        ("mount --key other signed.sif mounted", "not by a given key"),
        ("run --key missing signed.sif", "no such file"),
        ("run --verify ./bundle", "a directory has neither signatures nor digests"),
    ):
        done = run(user, *words.split(), stdin="echo ran\n", check=False)
        assert done.returncode != 0
        assert "ran" not in done.stdout
        assert message.lower() in done.stderr.lower(), words
    assert not (user.home / "mounted").exists()
    assert user.leftovers() == []


def tampered(signed: Path) -> dict[str, str]:
    """Write copies of a signed image beside it that were changed afterwards; return what the refusal of each says."""
    content = signed.read_bytes()
    with oci.SifImage.open(signed) as sif:
        root = sif.primary_partition
        assert root is not None
        table = sif.header.descriptors_offset
        (signature,) = (item for item in sif if item.data_type == oci.image.sif.DataType.SIGNATURE)
    described = content.index(b"rootfs.squashfs\0", table)
    other = (signed.parent / "again.sif").read_bytes()
    found: dict[str, str] = {}
    for name, offset, message in (
        ("data", root.offset + 100, "changed since it was signed"),
        ("descriptor", described, "changed since it was signed"),
        ("header", 3, "changed since it was signed"),
    ):
        changed = bytearray(content)
        changed[offset] ^= 1
        (signed.parent / f"{name}.sif").write_bytes(changed)
        found[f"{name}.sif"] = message
    changed = bytearray(content)
    end = signature.offset + signature.size
    changed[signature.offset : end] = other[signature.offset : end]
    (signed.parent / "swapped.sif").write_bytes(changed)
    (signed.parent / "added.sif").write_bytes(content)
    (signed.parent / "more").write_bytes(content[root.offset : root.offset + root.size])
    return {
        **found,
        "swapped.sif": "changed since it was signed",
        "added.sif": "object 4 is in no group, so no signature covers it",
    }


@pytest.fixture
def refused(signed: Path, busybox_rootfs: Path, command: Command) -> dict[str, str]:
    """Changed copies of a signed image beside it, and what the refusal of each says."""
    again = signed.parent / "again.sif"
    oci.build_sif(again, busybox_rootfs, oci_config={"Cmd": ["sh", "-c", "echo $SET; pwd"], "Env": ["SET=other"]})
    oci.sign(again, key=(signed.parent / "secret").read_bytes())
    found = tampered(signed)
    add = ["sif", "add", "--type", "partition", "--group", "0"]
    subprocess.run(command(*add, signed.parent / "added.sif", signed.parent / "more"), check=True, timeout=TIME_LIMIT)
    return found


def check_refused(call: Callable[..., subprocess.CompletedProcess[str]], refused: dict[str, str]) -> None:
    assert call("run", "--verify", "--key", "key", "signed.sif").stdout.splitlines() == ["image", "/"]
    verify = ["--verify", "--key", "key"]
    for name, message in refused.items():
        for words in (["verify", name, *verify[1:]], ["mount", *verify, name, "mounted"], ["run", *verify, name]):
            done = call(*words)
            assert (done.returncode, done.stdout) == (1, ""), words
            assert message in done.stderr, words
            assert done.stderr.count("\n") == 1


def test_a_user_runs_and_mounts_no_changed_image(user: User, signed: Path, refused: dict[str, str]) -> None:
    for name in ("signed.sif", "key", *refused):
        shutil.copy(signed.parent / name, user.home / name)
    give(user.home)
    check_refused(lambda *words: run(user, *words, check=False), refused)
    assert not (user.home / "mounted").exists()
    assert user.leftovers() == []


def test_root_runs_and_mounts_no_changed_image(
    signed: Path, refused: dict[str, str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(signed.parent)
    check_refused(
        lambda *words: subprocess.run(command(*words), capture_output=True, text=True, timeout=TIME_LIMIT, check=False), refused
    )
    assert not (signed.parent / "mounted").exists()


REPLACED = """
import os, sys, ociruntime as oci
for call in oci.run, lambda image: oci.run(oci.Bundle.from_image(image, "mounted")):
    os.link("signed.sif", "used.sif")
    with oci.Image.open("used.sif") as image:
        image.verify(["key"])
        os.symlink("image.sif", "next.sif")
        os.replace("next.sif", "used.sif")
        call(image)
    os.unlink("used.sif")
    if os.path.exists("mounted"):
        oci.Bundle.load("mounted").umount()
"""


def test_a_file_that_is_replaced_after_a_user_has_verified_it(user: User, signed: Path, busybox_rootfs: Path) -> None:
    """It is the file that was verified that runs."""
    oci.build_sif(user.home / "evil.sif", busybox_rootfs, oci_config={"Cmd": ["echo", "evil"]})
    os.replace(user.home / "evil.sif", user.home / "image.sif")
    for name in ("signed.sif", "key"):
        shutil.copy(signed.parent / name, user.home / name)
    give(user.home)
    env = {"HOME": str(user.home), "XDG_CACHE_HOME": f"{user.home}/cache"}
    shown = user.run("-W", "ignore", "-c", REPLACED, **env).stdout
    assert shown.splitlines() == ["image", "/"] * 2
    assert user.leftovers() == []


def test_the_file_that_was_verified_is_the_one_that_runs(
    signed: Path, tmp_path: Path, busybox_rootfs: Path, state_root: Path
) -> None:
    oci.build_sif(tmp_path / "evil.sif", busybox_rootfs, oci_config={"Cmd": ["echo", "evil"]})
    with oci.Image.open(signed) as image:
        image.verify([tmp_path / "key"])
        os.replace(tmp_path / "evil.sif", signed)
        assert oci.run(signed, capture_output=True, text=True, state_root=state_root).stdout == "evil\n"
        assert oci.run(image, capture_output=True, text=True, state_root=state_root).stdout.startswith("image\n")
        with oci.Bundle.from_image(image, tmp_path / "mounted") as bundle:
            assert oci.run(bundle, capture_output=True, text=True, state_root=state_root).stdout.startswith("image\n")
    with oci.Image.open(signed) as image, pytest.raises(oci.SignatureError):
        image.verify([tmp_path / "key"])
    oci.close_images()


def test_run_of_an_image(user: User) -> None:
    assert run(user, "run", "image.sif").stdout.splitlines() == ["image", "/"]
    assert run(user, "run", "--env", "SET=other", "image.sif").stdout.splitlines() == ["other", "/"]
    assert run(user, "run", "./image.sif", "echo", "-n", "--bundle", "--").stdout == "--bundle --"
    assert run(user, "run", "image.sif", "sh", "-c", "exit 7", check=False).returncode == 7
    assert run(user, "run", "image.sif", "missing", check=False).returncode == 127
    assert user.leftovers() == []


def test_a_shell(user: User) -> None:
    """Without a terminal it reads commands from stdin, as shells do. What it writes is gone afterwards."""
    assert (
        run(user, "run", "-e", "--no-home", "--no-mount", "tmp", "image.sif", "echo", "clean already").stdout == "clean already\n"
    )
    assert run(user, "shell", "image.sif", "-c", "echo $0 $1", "name", "first").stdout == "name first\n"
    assert run(user, "shell", "--shell", "/bin/ash", "image.sif", "-c", "echo $0").stdout == "/bin/ash\n"
    done = run(user, "shell", "image.sif", stdin="touch /new; ls -d /new; id -u; exit 4\n", check=False)
    assert (done.stdout.splitlines(), done.returncode) == (["/new", "0"], 4)
    assert run(user, "shell", "--hpc", "tree", stdin="ls /new; pwd\n").stdout.splitlines() == [str(user.home)]
    run(user, "mount", "image.sif", "mounted")
    assert run(user, "shell", "mounted", stdin="touch /new; ls -d /new\n").stdout.splitlines() == ["/new"]
    assert run(user, "shell", "--shell", "/bin/ash", "mounted", stdin="ls -d /new; echo $0\n").stdout.splitlines() == ["/bin/ash"]
    run(user, "umount", "mounted")
    assert user.leftovers() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run tree ls", "COMMAND 'ls': a container of a bundle runs the program in config.json, and tree is not an image"),
        ("run --detach image.sif", "--detach cannot be used with an image, only with the id of a container"),
        ("exec -p FILE image.sif true", "--process cannot be used with an image, only with the id of a container"),
        ("exec image.sif", "exec: no command is given; add one"),
        ("exec --hpc name true", "--hpc needs a new container, and name is not an image"),
        ("exec --bind /a name true", "--bind needs a new container, and name is not an image"),
        ("run --bind /a:b image.sif", "'/a:b' is not SOURCE[:DESTINATION[:ro]]; DESTINATION is an absolute path"),
        (
            "run --hpc --no-mount proc image.sif",
            "--no-mount 'proc': bind-paths, cwd, home, hostfs, tmp, or a path that --hpc binds",
        ),
        ("run --hpc --no-mount /srv image.sif", "--no-mount '/srv': this path is not one that --hpc binds"),
        ("run --hpc --workdir w image.sif", "--workdir needs --contain: without it, /tmp, /var/tmp and the home directory are not"),
        ("run --fakeroot -u 5 image.sif", "--fakeroot conflicts with --user: it makes the program root of the container"),
        (
            "run --overlay tree --writable-tmpfs image.sif",
            "/tree' and 'tmpfs': a container writes to one; add ':ro' to the path of a layer",
        ),
        ("run --overlay none:ro image.sif", "/none:ro: no such file or directory; give a directory, or a file with a filesystem"),
        ("run --overlay image.sif:ro image.sif", "/image.sif:ro: it has no filesystem for a layer; give a directory, or a file"),
        ("run --overlay a:ro:ro image.sif", "overlay[0] is 'a:ro:ro': a path that ends with ':ro' cannot be used; rename it"),
        ("run --home a:b image.sif", "'a:b' is not SOURCE[:DESTINATION]; DESTINATION is an absolute path"),
        ("run --scratch a image.sif", "'a' is not an absolute path in the container"),
        (
            "run --nv ./tree true",
            "devices: no device nvidia.com/gpu=all: no CDI spec of nvidia.com/gpu in /etc/cdi, /var/run/cdi, ",
        ),
        ("run --key k name", "--key needs an image, and name is the id of a container"),
        ("exec --reference r name true", "--reference needs a new container, and name is not an image"),
        ("create --bundle image.sif name", "is not a bundle: it is not a directory; an image becomes one by Bundle.from_image()"),
        ("run ./missing", "no such file or directory"),
        ("run missing.sif python3 -m http.server", "/missing.sif: no such file or directory"),
        ("exec missing.sif ls -l", "/missing.sif: no such file or directory"),
        ("shell missing", "no such file or directory"),
        ("shell --env X image.sif", "--env 'X' is not NAME=VALUE"),
    ],
)
def test_what_is_refused(words: str, message: str, user_python: str, image: Path, busybox_rootfs: Path) -> None:
    with new_user(user_python, subordinate=False) as user:
        shutil.copy(image, user.home / "image.sif")
        (user.home / "tree").mkdir()
        give(user.home)
        done = run(user, *words.split(), check=False)
        assert done.returncode in (1, 255)
        assert message in done.stderr.lower() if "no such" in message else message in done.stderr
        assert done.stderr.count("\n") == (2 if done.stderr.startswith("usage: ") else 1)
        assert user.leftovers() == []


def test_a_container_whose_id_is_the_name_of_a_file(command: Command, bundle: oci.Bundle, prefix: str, tmp_path: Path) -> None:
    """A container that exists comes before a file, and --bundle before an image."""
    (tmp_path / prefix).touch()

    def call(*words: object, output: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*words), cwd=tmp_path, stdout=output, stderr=output, text=True, timeout=TIME_LIMIT)

    assert "not an image" in call("exec", prefix, "true").stderr
    bundle.with_args(["sleep", "1000"]).spec.save(bundle.path / "config.json")
    assert call("create", "--bundle", bundle.path, prefix, output=subprocess.DEVNULL).returncode == 0
    assert call("start", prefix).returncode == 0
    assert call("exec", prefix, "echo", "inside").stdout == "inside\n"
    assert call("delete", "--force", prefix).returncode == 0
    assert call("run", "--bundle", bundle.path, "--env", "A=1", "-u", "5", prefix, "--pid-file", "x").returncode != 0
    bundle.with_args(["sh", "-c", "echo $A; id -u"]).spec.save(bundle.path / "config.json")
    done = call(
        "run", "--env", "A=1", "-u", "5", "-B", f"{tmp_path}:/mnt", "--bundle", bundle.path, f"{prefix}-2", "--pid-file", "x"
    )
    assert done.stdout == "1\n5\n", done.stderr


def test_signals_are_forwarded(command: Command, image: Path, state_root: Path) -> None:
    """A program may end in its own way; a second signal kills it. Nothing is left in either case."""
    script = "trap 'echo got; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    process = subprocess.Popen(command("run", image, "sh", "-c", script), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "got\n"
        assert process.wait(TIME_LIMIT) == 5
    script = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    process = subprocess.Popen(command("run", image, "sh", "-c", script), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIME_LIMIT) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert oci.Container.list(state_root=state_root) == []


def test_a_shell_on_a_terminal(session: Callable[..., Session], command: Command, image: Path, state_root: Path) -> None:
    """The shell has job control, and the terminal is as before at its end."""
    tty = session(*command("shell", "--env", "PS1=$ ", image))
    tty.expect("$ ")
    tty.type("tty; stty size\n")
    tty.expect("/dev/pts/0\r\n24 80\r\n$ ")
    (container,) = oci.Container.list(state_root=state_root)
    tty.type("sleep 1000\n")
    wait_until(lambda: in_foreground(container), "the foreground job")
    tty.type("\x03")
    tty.expect("$ ")
    tty.type("exit 3\n")
    assert tty.wait() == 3
    assert tty.restored
    assert oci.Container.list(state_root=state_root) == []


def test_run_with_a_terminal_in_python(image: Path, state_root: Path, session: Callable[..., Session]) -> None:
    result = oci.run(
        image, ["sh", "-c", "tty; read x; echo $x"], terminal=True, capture_output=True, input=b"in\n", state_root=state_root
    )
    assert result.stdout == b"in\r\n/dev/pts/0\r\nin\r\n" or result.stdout == b"/dev/pts/0\r\nin\r\nin\r\n"
    with pytest.raises(ValueError, match=r"^timeout cannot be used with an interactive terminal; pass capture_output=True$"):
        oci.run(image, ["sh"], terminal=True, timeout=5, state_root=state_root)
    text = "import sys, ociruntime as oci; sys.exit(oci.run(sys.argv[1], ['sh', '-c', 'tty; exit 3'], terminal=True, state_root=sys.argv[2]).returncode)"
    tty = session(sys.executable, "-P", "-c", text, image, state_root)
    tty.expect("/dev/pts/0\r\n")
    assert tty.wait() == 3
    assert tty.restored
