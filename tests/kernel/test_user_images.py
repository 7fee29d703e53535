"""SIF images in the hands of an unprivileged user: mounted by FUSE, or extracted to a cache where FUSE cannot be used."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

import ociruntime as oci

from ..support.fixture_types import Script
from ..support.images import hostile_sif
from ..support.places import WALKTHROUGH, link_programs
from ..support.private_users import UID, User, give, new_user
from ..support.processes import is_running
from ..support.waiting import TIME_LIMIT, wait_until, within

pytestmark = pytest.mark.root
FUSE = all(shutil.which(name) for name in ("squashfuse", "fusermount3")) and os.path.exists("/dev/fuse")
NEEDED = [
    pytest.mark.skipif(not FUSE, reason="no squashfuse or fusermount3 (Debian: squashfuse, fuse3), or no /dev/fuse"),
    pytest.mark.skipif(shutil.which("newuidmap", path="/usr/bin") is None, reason="no newuidmap (Debian: uidmap)"),
]
KINDS = [
    pytest.param((True, True), id="FUSE and subordinate ids", marks=NEEDED),
    pytest.param((False, False), id="extraction and the own id"),
]
"""Whether the user has FUSE, and subordinate ids."""


@pytest.fixture(scope="session")
def image(busybox_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with a second user, whose home the user owns, a volume and an environment."""
    if shutil.which("mksquashfs") is None:
        pytest.skip("no mksquashfs (Debian: squashfs-tools)")
    tree = tmp_path_factory.mktemp("tree") / "rootfs"
    shutil.copytree(busybox_rootfs, tree, symlinks=True)
    (tree / "home/app").mkdir(parents=True)
    os.chown(tree / "home/app", 1000, 1000)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\napp:x:1000:\n")
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    path = tmp_path_factory.mktemp("image") / "image.sif"
    oci.build_sif(path, tree, oci_config={"Cmd": ["sleep", "1000"], "Env": ["GREETING=hello"], "Volumes": {"/data": {}}})
    return path


def _user(python: str, image: Path, *, fuse: bool, subordinate: bool) -> Iterator[User]:
    with new_user(python, subordinate=subordinate, fuse=fuse) as created:
        shutil.copy(image, created.home / "image.sif")
        give(created.home)
        yield created


@pytest.fixture(params=KINDS)
def user(request: pytest.FixtureRequest, user_python: str, image: Path) -> Iterator[User]:
    """A user whose home has ``image.sif``."""
    fuse, subordinate = request.param
    yield from _user(user_python, image, fuse=fuse, subordinate=subordinate)


@pytest.fixture
def user_with_fuse(user_python: str, image: Path) -> Iterator[User]:
    if not FUSE:
        pytest.skip("no squashfuse or fusermount3 (Debian: squashfuse, fuse3), or no /dev/fuse")
    yield from _user(user_python, image, fuse=True, subordinate=False)


@pytest.fixture
def user_without_fuse(user_python: str, image: Path) -> Iterator[User]:
    yield from _user(user_python, image, fuse=False, subordinate=False)


CACHE = "cache/ociruntime/images"


def run_script(user: User, text: str, *args: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run Python text as the user, with a cache directory in its home."""
    text = f"import json, os, sys, ociruntime as oci\n{text}"
    return user.run("-W", "ignore::ociruntime.OCIRuntimeWarning", "-c", text, *args, check=check, XDG_CACHE_HOME=cache(user))


def cache(user: User) -> str:
    return f"{user.home}/cache"


def command(user: User, *args: object, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return user.command(*args, check=check, stdin=stdin, XDG_CACHE_HOME=cache(user))


def clean_cache(user: User) -> None:
    """Assert that `prune` empties the cache."""
    command(user, "prune")
    place = user.home / CACHE
    assert [name for name in (os.listdir(place) if place.exists() else []) if name != "known"] == []


class Node(NamedTuple):
    """What a user has on a host."""

    subordinate: bool = False
    """Ids in /etc/subuid."""
    runtime: bool = False
    """XDG_RUNTIME_DIR."""
    device: bool = False
    """/dev/fuse can be opened."""
    cgroups: bool = False
    """Cgroups of its own."""
    without: tuple[str, ...] = ()
    """Programs that are not in PATH."""


NODES = {  # each pair of what is there and what is missing occurs
    "everything": Node(subordinate=True, runtime=True, device=True, cgroups=True),
    "nothing": Node(without=("newuidmap", "newgidmap", "squashfuse", "fusermount3", "unsquashfs")),
    "no fusermount3": Node(runtime=True, device=True, without=("fusermount3",)),
    "no fusermount3, subordinate ids": Node(subordinate=True, device=True, cgroups=True, without=("fusermount3",)),
    "no squashfuse": Node(subordinate=True, runtime=True, device=True, without=("squashfuse",)),
    "no device": Node(subordinate=True),
    "no device, cgroups": Node(runtime=True, cgroups=True),
    "no helper for subordinate ids": Node(subordinate=True, device=True, without=("newuidmap", "newgidmap")),
}
HELPERS = ("newuidmap", "newgidmap", "squashfuse", "fusermount3", "unsquashfs")


@pytest.fixture
def cgroups(prefix: str) -> Iterator[tuple[Path, ...]]:
    """Cgroups of the user in hierarchies of v1."""
    created = []
    try:
        for name in ("pids", "memory", "freezer"):
            hierarchy = oci.Host.probe().hierarchy(name)
            if hierarchy is None or oci.Host.probe().cgroup_mode not in ("v1", "hybrid"):
                pytest.skip("needs cgroup v1; on v2, test_the_walk_through of test_fuse.py")
            created.append(Path(hierarchy.mountpoint, f"{prefix}-given"))
            created[-1].mkdir()
            for path in (created[-1], created[-1] / "cgroup.procs", created[-1] / "tasks"):
                os.chown(path, UID, UID)
        yield tuple(created)
    finally:
        for path in created:
            path.rmdir()  # which fails if a cgroup of a container is left


@pytest.mark.parametrize("node", [pytest.param(node, id=name) for name, node in NODES.items()])
def test_the_walk_through(node: Node, request: pytest.FixtureRequest, user_python: str, image: Path) -> None:
    """README's demo without a home directory, and all that it could leave behind."""
    missing = [name for name in HELPERS if name not in node.without and shutil.which(name) is None]
    if missing or not os.path.exists("/dev/fuse"):
        pytest.skip(f"no {', '.join([*missing, '/dev/fuse'])}")
    with contextmanager(_user)(user_python, image, fuse=node.device, subordinate=node.subordinate) as user:
        if node.cgroups:
            user.cgroups = request.getfixturevalue("cgroups")
        path, runtime, script = (user.home / name for name in ("path", "run", "walkthrough.py"))
        path.mkdir()
        link_programs(path, node.without)
        runtime.mkdir(0o700)
        shutil.copy(WALKTHROUGH, script)
        give(user.home)
        environment = {"PATH": str(path), "XDG_CACHE_HOME": cache(user)} | (
            {"XDG_RUNTIME_DIR": str(runtime)} if node.runtime else {}
        )
        done = user.run("-W", "ignore::ociruntime.OCIRuntimeWarning", script, **environment)
        assert done.stdout.endswith("\nDone.\n"), done.stdout + done.stderr
        assert user.leftovers() == []
        left = [place for place in runtime.rglob("*") if place.name[0] != "." and not place.is_dir()]
        assert [place for place in left if place.name != "lock"] == []
        assert [name for group in user.cgroups for name in os.listdir(group) if (group / name).is_dir()] == []
        clean_cache(user)


PRIVATE = """
bundle = oci.Bundle.from_sif("image.sif", "bundle")
with bundle:
    print(json.dumps(sorted(os.listdir("bundle/rootfs"))))
    one, two = (oci.Container.run(name, bundle) for name in sys.argv[1:])
    sh = lambda c, text, **more: c.exec(["sh", "-c", text], capture_output=True, text=True, check=True, **more).stdout
    print(sh(one, "echo $GREETING; touch /new /data/shared; rm /etc/group; echo x >>/etc/passwd; rm -r /home; mkdir /home; ls /home; id -u"))
    print(sh(two, "ls -d /new 2>/dev/null; ls /etc/group /data; wc -l </etc/passwd; ls /home"))
    print(oci.run(bundle, ["ls", "/etc/group", "/data"], capture_output=True, text=True).stdout)
    for container in one, two:
        container.delete(force=True)
    print(os.listdir("bundle/overlay"))
print(os.path.exists("bundle"))
"""


def test_each_container_has_an_upper_layer_of_its_own(user: User, prefix: str) -> None:
    shown = run_script(user, PRIVATE, prefix, f"{prefix}-2").stdout.splitlines()
    files = ["bin", "etc", "home", "null", "root", "tmp"] if user.fuse else []
    assert json.loads(shown[0]) == files
    assert [line for line in shown[1:] if line] == [
        "hello", "0",
        "/etc/group", "/data:", "shared", "2", "app",
        "/etc/group", "/data:", "shared",
        "[]", "False",
    ]  # fmt: skip
    assert user.leftovers() == []
    clean_cache(user)


def test_long_paths_with_odd_characters(user: User, busybox_rootfs: Path) -> None:
    place = user.home / ("x" * 200) / ("y" * 200)
    place.mkdir(parents=True)
    shutil.copytree(busybox_rootfs, user.home / "a:b,c\\d", symlinks=True)
    give(user.home)
    text = """
script = ["sh", "-c", "rm -r /etc; mkdir /etc; touch /etc/new; ls /etc"]
run = lambda image: oci.run(image, script, capture_output=True, text=True, check=True).stdout
with oci.Bundle.from_sif("image.sif", sys.argv[1]) as bundle:
    print(run(bundle))
print(run(sys.argv[2]))
"""
    assert run_script(user, text, place / "b:c,d\\e", user.home / "a:b,c\\d").stdout.split() == ["new", "new"]
    assert user.leftovers() == []


HOOKED = """
hook = lambda path, *args: oci.spec.Hook(path=path, args=args)
hooks = oci.spec.Hooks(
    create_runtime=(hook("/bin/sh", "sh", "-c", "cat >runtime"),),
    create_container=(hook("/bin/sh", "sh", "-c", "cat >/dev/null; test -d /proc/self"),),
    start_container=(hook("/bin/busybox", "busybox", "touch", "/hooked"),),
)
with oci.Bundle.from_sif("image.sif", "bundle") as bundle:
    bundle.spec = bundle.spec.evolve(hooks=hooks).with_args(["sh", "-c", "ls -d /hooked; echo out"])
    for call in oci.Container.run, oci.Container.create:
        with call(sys.argv[1], bundle, supervise=True) as container:
            if call == oci.Container.create:
                container.start()
            print(container.wait(60), *(record.text for record in container.logs()))
    print(os.listdir("bundle/overlay"))
"""


def test_hooks_and_supervisors(user: User, prefix: str) -> None:
    assert run_script(user, HOOKED, prefix).stdout.splitlines() == ["0 /hooked out", "0 /hooked out", "[]"]
    assert user.leftovers() == []


def test_users_of_the_image(user: User) -> None:
    text = """
script = "id -u; id -g; echo $HOME; cd; touch file; stat -c %u file; stat -c %u /bin"
for who in (None, "app", "app:root", 1234, "root"):
    print(*oci.run("image.sif", ["sh", "-c", script], user=who, capture_output=True, text=True, check=True).stdout.split())
"""
    shown = run_script(user, text).stdout.splitlines()
    assert shown == [
        "0 0 /root 0 0",
        "1000 1000 /home/app 1000 1000",
        "1000 0 /home/app 1000 1000",
        "1234 0 / 1234 1234",
        "0 0 /root 0 0",
    ]
    assert user.leftovers() == []


def test_a_plain_directory(user: User, busybox_rootfs: Path) -> None:
    shutil.copytree(busybox_rootfs, user.home / "tree", symlinks=True)
    give(user.home / "tree")
    before = sorted(os.listdir(user.home / "tree"))
    text = 'print(oci.run("tree", ["sh", "-c", "touch /new; rm -r /etc; ls -d /new"], capture_output=True, text=True, check=True).stdout)'
    assert run_script(user, text).stdout.split() == ["/new"]
    assert sorted(os.listdir(user.home / "tree")) == before
    assert user.leftovers() == []


def test_a_read_only_image(user: User, prefix: str) -> None:
    command(user, "mount", "--read-only", "image.sif", "bundle")
    text = (
        'print(oci.run(oci.Bundle.load("bundle"), ["sh", "-c", "touch /new /data/new; ls /data"], capture_output=True, text=True))'
    )
    assert "touch: /new: Read-only file system" in (shown := run_script(user, text).stdout)
    assert "stdout='new\\n'" in shown
    command(user, "umount", "bundle")
    assert user.leftovers() == []


def test_files_of_subordinate_ids_are_removed(user: User, prefix: str) -> None:
    text = """
script = "mkdir -p /d/e /data/d; touch /d/e/f /data/d/f; chown -R 5:6 /d /data/d; chmod 0 /d/e /d; exec sleep 1000"
with oci.Bundle.from_sif("image.sif", "bundle") as bundle:
    container = oci.Container.run(sys.argv[1], bundle.with_args(["sh", "-c", script]))
    container.exec(["sh", "-c", "while [ $(cat /proc/1/comm) != sleep ]; do :; done"], check=True)
    container.delete(force=True)
    print(os.listdir("bundle/overlay"))
print(os.path.exists("bundle"))
"""
    assert run_script(user, text, prefix).stdout.split() == ["[]", "False"]
    assert user.leftovers() == []


def test_umount_of_a_bundle_in_use(user: User, prefix: str) -> None:
    command(user, "mount", "image.sif", "bundle")
    command(user, "create", "-b", "bundle", prefix)
    command(user, "--root", user.home / "state", "create", "-b", "bundle", f"{prefix}-elsewhere")
    done = command(user, "umount", "bundle", check=False)
    assert done.returncode == 1
    assert f"container '{prefix}', container '{prefix}-elsewhere' still uses it" in done.stderr
    command(user, "start", prefix)
    command(user, "delete", "--force", prefix)
    assert f"container '{prefix}-elsewhere' still uses it" in command(user, "umount", "bundle", check=False).stderr
    command(user, "--root", user.home / "state", "delete", "--force", f"{prefix}-elsewhere")
    if user.fuse:
        reader = user.start(
            "-c",
            "import time; f = open('bundle/rootfs/bin/busybox'); print('up', flush=True); time.sleep(1000)",
            stdout=-1,
            stderr=2,
        )
        assert reader.stdout is not None
        with reader:
            assert reader.stdout.readline() == "up\n"
            done = command(user, "umount", "bundle", check=False)
            reader.kill()
        assert "has open files or its working directory there" in done.stderr
        assert len(user.mounts()) == 1
    command(user, "umount", "bundle")
    assert not (user.home / "bundle").exists()
    assert user.leftovers() == []


def test_umount_by_force(user: User, prefix: str) -> None:
    command(user, "mount", "image.sif", "bundle")
    for name in prefix, f"{prefix}-2":
        command(user, "create", "-b", "bundle", name)
    command(user, "start", prefix)
    command(user, "umount", "--force", "bundle")
    assert not (user.home / "bundle").exists()
    assert user.mounts() == user.processes() == []
    assert command(user, "prune").stdout.split() == [prefix, f"{prefix}-2"]
    assert user.leftovers() == []


def test_a_bundle_that_was_renamed(user: User, prefix: str) -> None:
    if user.fuse:
        pytest.skip("a directory below which something is mounted has no other name in other mount namespaces")
    command(user, "mount", "image.sif", "bundle")
    (user.home / "bundle").rename(user.home / "other")
    text = """
bundle = oci.Bundle.load("other")
bundle.spec = bundle.spec.without_mount("/data")  # its source has the old path
print(oci.run(bundle, ["ls", "/bin/busybox"], capture_output=True, text=True).stdout)
"""
    assert run_script(user, text).stdout.split() == ["/bin/busybox"]
    command(user, "umount", "other")
    assert user.leftovers() == []


def test_a_helper_that_was_killed(user_with_fuse: User, prefix: str) -> None:
    user = user_with_fuse
    command(user, "mount", "image.sif", "bundle")
    command(user, "create", "-b", "bundle", prefix)
    (helper,) = [pid for pid in user.processes() if Path(f"/proc/{pid}/comm").read_text() == "squashfuse\n"]
    os.kill(helper, signal.SIGKILL)
    wait_until(lambda: not is_running(helper), "the end of squashfuse")
    done = command(user, "start", prefix, check=False)
    assert done.returncode != 0
    assert re.search("by FUSE has ended.*(ENOTCONN|ESTALE)", done.stderr)  # the latter a second later
    command(user, "delete", "--force", prefix)
    done = command(user, "create", "-b", "bundle", prefix, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    command(user, "umount", "bundle")
    assert not (user.home / "bundle").exists()
    assert user.leftovers() == []


KILLED_AT_A_RECORD = """
def die_at(number):
    def counted(function):
        def call(*arguments, **options):
            nonlocal number
            number -= 1
            if number == 0:
                os._exit(9)
            return function(*arguments, **options)
        return call
    for name in ("symlink", "unlink", "rename"):
        setattr(os, name, counted(getattr(os, name)))

number, code, target = 0, 9, os.path.abspath("bundle")
while code:
    number += 1
    pid = os.fork()
    if not pid:
        die_at(number)
        oci.Bundle.from_image("image.sif", target)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9), code
    if os.path.exists(f"{target}/config.json"):
        oci.Bundle.load(target).umount()
    oci.prune()
    with open("/proc/self/mountinfo") as mounts:
        assert target not in mounts.read(), number
    if os.path.exists(target):
        os.rmdir(target)  # an empty directory, which no record knows yet
print(number)
"""


def test_a_mount_that_was_killed_at_its_record(user_with_fuse: User) -> None:
    """The image is mounted already, or not yet: `umount`, or `prune`, removes what there is."""
    assert int(run_script(user_with_fuse, KILLED_AT_A_RECORD).stdout) >= 5
    assert user_with_fuse.leftovers() == []


def test_a_mount_of_root_that_was_killed_at_its_record(image: Path, tmp_path: Path, script: Script) -> None:
    text = f"import os, sys, ociruntime as oci\nos.chdir(sys.argv[1])\n{KILLED_AT_A_RECORD}"
    shutil.copy(image, tmp_path / "image.sif")
    assert int(script(text, tmp_path).stdout) >= 5


MOUNTED_LATE = """
import signal, time
from ociruntime.cli import main
from ociruntime.rootfs import bundles
def wait(condition):
    while not condition():
        time.sleep(0.005)
def is_mounted():
    with open("/proc/self/mountinfo") as mounts:
        return os.path.abspath("bundle") in mounts.read()
def looked_up(path):
    global looks
    found, looks = look(path), looks + 1
    if looks == number:
        open("go", "w").close()
        wait(is_mounted)
    return found
look, bundles.mounts_below, number, looks = bundles.mounts_below, looked_up, 0, 0
while number <= looks:
    number, looks = number + 1, 0
    pid = os.fork()
    if not pid:
        oci.Bundle.from_image("image.sif", "bundle")
    wait(lambda: os.path.exists("begun"))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not is_mounted()
    assert main(["umount", "bundle"]) == 0, number
    assert not is_mounted() and not os.path.exists("bundle"), number
    if number > looks:
        open("go", "w").close()
    wait(lambda: not os.path.exists("go"))
    os.remove("begun")
print(number)
"""


def test_a_helper_that_mounts_when_its_caller_was_killed(user_with_fuse: User) -> None:
    """While `umount` looks what is mounted, for the first time and each further one."""
    user = user_with_fuse
    directory = user.home / "path"
    directory.mkdir()
    helper = '#!/bin/sh\n: >{0}/begun\nwhile [ ! -e {0}/go ]; do sleep 0.01; done\n{1} "$@"\nrm {0}/go\n'
    (directory / "squashfuse").write_text(helper.format(user.home, shutil.which("squashfuse")))
    (directory / "squashfuse").chmod(0o755)
    give(user.home)
    text = f'os.environ["PATH"] = "{directory}:" + os.environ["PATH"]\n{MOUNTED_LATE}'
    assert int(run_script(user, text).stdout) >= 3
    assert user.leftovers() == []


NAMELESS = """
import os, socket, sys
near, far = socket.socketpair()
os.set_inheritable(far.fileno(), True)
*options, target = sys.argv[1:]
os.spawnvpe(os.P_WAIT, "fusermount3", ["fusermount3", "-o", "ro,nosuid,nodev", target], {{**os.environ, "_FUSE_COMMFD": str(far.fileno())}})
[device] = socket.recv_fds(near, 1, 1)[1]
os.set_inheritable(device, True)
os.execv({squashfuse!r}, ["squashfuse", *options, f"/dev/fd/{{device}}"])
"""


def test_a_mount_whose_type_names_no_program(user_with_fuse: User) -> None:
    """As libfuse makes it when fusermount3 was killed, and it has tried again."""
    user = user_with_fuse
    directory = user.home / "path"
    directory.mkdir()
    python = run_script(user, "print(sys.executable)").stdout.strip()
    (directory / "squashfuse").write_text(f"#!{python} -P\n{NAMELESS.format(squashfuse=shutil.which('squashfuse'))}")
    (directory / "squashfuse").chmod(0o755)
    give(user.home)
    user.command("mount", "image.sif", "bundle", PATH=f"{directory}:{os.environ['PATH']}")
    assert (
        f"{user.home}/bundle/rootfs ro,nosuid,nodev,relatime - fuse "
        in run_script(user, "print(open('/proc/self/mountinfo').read())").stdout
    )
    command(user, "umount", "bundle")
    assert user.leftovers() == []


HANGING = """
import signal, threading, time
def interrupt():
    while not os.path.exists("begun"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
begin = time.monotonic()
try:
    oci.Bundle.from_image("image.sif", "bundle")
except KeyboardInterrupt:
    print(os.path.exists("bundle"), time.monotonic() - begin < 30)
"""


def test_an_interrupt_while_a_helper_hangs(user_with_fuse: User) -> None:
    """The helper is killed with the programs that it has started."""
    user = user_with_fuse
    directory = user.home / "path"
    directory.mkdir()
    (directory / "squashfuse").write_text("#!/bin/sh\nsleep 1000 &\n: >begun\nwait\n")
    (directory / "squashfuse").chmod(0o755)
    give(user.home)
    assert run_script(user, f'os.environ["PATH"] = "{directory}:" + os.environ["PATH"]\n{HANGING}').stdout == "False True\n"
    assert user.leftovers() == []


SIGNALLED = """#!/bin/sh
for place; do :; done
exec 9<&0
setsid {squashfuse} -f "$@" <&9 >/dev/null 2>&1 &
until grep -q " $place " /proc/self/mountinfo; do sleep 0.01; done
kill -{signal} $!
"""
UNANSWERED = """
from ociruntime.engine import filesystems, launch
filesystems._MOUNT_TIMEOUT = launch.STALL = 3.0
for call in (lambda: oci.Bundle.from_image("image.sif", "bundle"), lambda: oci.run("image.sif", ["true"])):
    try:
        call()
    except oci.OCIRuntimeError as error:
        print(error)
print(os.path.exists("bundle"))
"""


def test_a_helper_that_does_not_answer(user_with_fuse: User) -> None:
    """Only SIGKILL ends the wait of a process for the answer."""
    user = user_with_fuse
    directory = user.home / "path"
    directory.mkdir()
    (directory / "squashfuse").write_text(SIGNALLED.format(squashfuse=shutil.which("squashfuse"), signal="STOP"))
    (directory / "squashfuse").chmod(0o755)
    give(user.home)
    with within(50):
        said = run_script(user, f'os.environ["PATH"] = "{directory}:" + os.environ["PATH"]\n{UNANSWERED}').stdout.splitlines()
    assert (said[0], *said[2:]) == ("cannot mount image.sif: squashfuse did not answer within 3 s", "False")
    assert said[1].startswith(
        f"files that {directory}/squashfuse shows of squashfs at 32768 of {user.home}/image.sif: the init process made no"
    )
    assert user.leftovers() == []


def test_a_helper_that_ends_at_once(user_with_fuse: User) -> None:
    user = user_with_fuse
    directory = user.home / "path"
    directory.mkdir()
    (directory / "squashfuse").write_text(SIGNALLED.format(squashfuse=shutil.which("squashfuse"), signal="KILL"))
    (directory / "squashfuse").chmod(0o755)
    give(user.home)
    said = run_script(user, f'os.environ["PATH"] = "{directory}:" + os.environ["PATH"]\n{UNANSWERED}').stdout.splitlines()
    assert said[0].startswith("cannot mount image.sif as bundle bundle: ")
    assert said[1].startswith(f"files that {directory}/squashfuse shows of squashfs at 32768 of {user.home}/image.sif: ")
    for text in said[:2]:
        assert re.search("the program that serves (its|this) filesystem by FUSE has ended; try again", text)
    assert said[2:] == ["False"]
    assert user.leftovers() == []


def test_a_helper_that_cannot_unmount(user_with_fuse: User) -> None:
    user = user_with_fuse
    command(user, "mount", "image.sif", "bundle")
    directory = user.home / "path"
    directory.mkdir()
    (directory / "fusermount3").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    (directory / "fusermount3").chmod(0o755)
    done = user.command("umount", "bundle", check=False, PATH=f"{directory}:{os.environ['PATH']}")
    assert (done.returncode, done.stderr) == (
        1, f"ociruntime: {user.home}/bundle cannot be unmounted: broken (nothing has been removed)\n",
    )  # fmt: skip
    assert len(user.mounts()) == 1
    command(user, "umount", "bundle")
    assert user.leftovers() == []


def name_of(pid: int) -> str | None:
    """Return the name of a process; None if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


KILLED = """
os.environ["DELAY"]
import signal, threading, time
threading.Timer(float(os.environ["DELAY"]), os.kill, (os.getpid(), signal.SIGKILL)).start()
with oci.Bundle.from_sif("image.sif", "bundle") as bundle:
    pass
oci.run("image.sif", ["sleep", "1000"])
"""


@pytest.mark.parametrize("delay", [0.005, 0.02, 0.05, 0.1, 0.2, 1.5])
def test_a_caller_that_was_killed(user: User, delay: float) -> None:
    text = f"import os, ociruntime as oci, ociruntime.image, ociruntime.container, ociruntime.ephemeral\n{KILLED}"
    process = user.start(
        "-W", "ignore::ociruntime.OCIRuntimeWarning", "-c", text, DELAY=str(delay), XDG_CACHE_HOME=cache(user), stdout=1, stderr=2
    )
    assert process.wait(TIME_LIMIT) == -signal.SIGKILL
    wait_until(lambda: {name_of(pid) for pid in user.processes()} <= {"squashfuse", None}, "the others' end")
    command(user, "prune")
    bundle = user.home / "bundle"
    if bundle.exists() and os.listdir(bundle):  # it was mounted when the caller was killed
        command(user, "umount", "bundle")
    elif bundle.exists():
        bundle.rmdir()  # the caller was killed before it could record the new directory
    assert user.leftovers() == []
    clean_cache(user)


def test_interrupts(user: User) -> None:
    text = """
import random, signal, time
def interrupt(number, frame): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
done = 0
for round in range(25):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.2))
        with oci.Bundle.from_sif("image.sif", "bundle") as bundle:
            oci.run("image.sif", ["true"], check=True)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        done += 1
    assert not os.path.exists("bundle"), round
print(done > 0)
"""
    assert run_script(user, text).stdout == "True\n"
    assert user.leftovers() == []


def test_many_at_once(user: User) -> None:
    text = """
from concurrent.futures import ThreadPoolExecutor
def one(number):
    return oci.run("image.sif", ["sh", "-c", f"test ! -e /new && echo {number} >/new && cat /new"], capture_output=True, text=True).stdout
with ThreadPoolExecutor(10) as pool:
    assert list(pool.map(one, range(50))) == [f"{number}\\n" for number in range(50)]
"""
    run_script(user, text)
    assert user.leftovers() == []
    clean_cache(user)


def test_an_image_that_is_damaged(user: User) -> None:
    path = user.home / "image.sif"
    with oci.SifImage.open(path) as sif:
        descriptor = sif.primary_partition
    assert descriptor is not None
    with open(path, "r+b") as file:
        file.seek(descriptor.offset + 96)  # what follows the superblock
        file.write(bytes(descriptor.size - 96))
    done = command(user, "mount", "image.sif", "bundle", check=False)
    assert done.returncode == 1
    assert ("squashfuse failed: " if user.fuse else "unsquashfs failed: ") in done.stderr
    assert f"{path.name}: " in done.stderr
    assert not (user.home / "bundle").exists()
    assert command(user, "list", "-q").stdout == ""
    for call in 'run("image.sif", ["true"])', 'Bundle.from_image("image.sif", "bundle")':
        done = run_script(user, f"try:\n    oci.{call}\nexcept oci.ImageError as error:\n    print(error)")
        assert re.match(r"cannot (mount|extract) (\S*/)?image.sif: (squashfuse|unsquashfs) failed: ", done.stdout)
    assert user.leftovers() == []
    clean_cache(user)


def test_without_a_way_to_mount(user_without_fuse: User) -> None:
    user = user_without_fuse
    command = "import sys; sys.modules['PySquashfsImage'] = None; from ociruntime.cli import main; sys.exit(main(['mount', *sys.argv[1:]]))"
    done = user.run("-c", command, "image.sif", "bundle", check=False, PATH="/nonexistent")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for word in "squashfuse", "/dev/fuse", "unsquashfs", "install":
        assert word in done.stderr
    assert not (user.home / "bundle").exists()


SNAPSHOTS = """
def look(image):
    script = "cat /new /etc/z; ls -d /etc/passwd /bin/busybox 2>/dev/null; :"
    return oci.run(image, ["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split()
os.mkdir("kept")
for overlay in None, "tmpfs", "kept":
    with oci.Bundle.from_image("image.sif", "bundle", overlay=overlay) as bundle:
        with oci.Container.run("c", bundle) as container:
            container.exec(["sh", "-c", "echo x >/new; rm -r /etc; mkdir /etc; echo y >/etc/z"], check=True)
            print(sorted(str(change) for change in container.changes() if "group" not in str(change)))
            with container.snapshot() as snapshot:
                print(look(snapshot.bundle))
            container.commit("committed.sif", image="image.sif", overwrite=True)
            print(look("committed.sif"))
            try:
                container.commit("committed.sif", overwrite=True)
                print(look("committed.sif") == ["x", "y", "/bin/busybox"])
            except oci.BundleError as error:
                print("give the image instead" in str(error))
            container.delete(force=True)
    with oci.Sandbox("image.sif") as sandbox:
        sandbox.run(["sh", "-c", "echo x >/new"])
        with sandbox.fork() as fork:
            print(fork.run(["cat", "/new"]).stdout)
print(sorted(os.listdir(".")))
"""


def test_copies_of_a_container(user: User) -> None:
    """Wherever the layers of the image are: mounted in the bundle directory, or extracted. Then `commit` is given the image."""
    *lines, left = run_script(user, SNAPSHOTS).stdout.splitlines()
    files = "['x', 'y', '/bin/busybox']"
    assert lines == ["['A /etc/z', 'A /new', 'R /etc/passwd']", files, files, "True", r"b'x\n'"] * 3
    assert left == str(sorted(["committed.sif", "image.sif", "kept", *([] if user.fuse else ["cache"])]))
    assert user.leftovers() == []
    clean_cache(user)


HOSTILE_IMAGES = """
for kind in sys.argv[1:]:
    program = ["sh", "-c", "find /one -maxdepth 4 | wc -l; cat /one/file | wc -c"]
    try:
        result = oci.run(f"{kind}.sif", program, capture_output=True, text=True, timeout=60, strategy="fuse")
        print(kind, result.stdout.split(), "Input/output error" in result.stderr, sep=": ")
    except oci.OCIRuntimeError as error:
        print(kind, type(error).__name__, sep=": ")
"""


HOSTILE_BY_FUSE = {
    "copies": "['19', '9000']: False",
    "inodes": "ImageError",
    "loops": "['25', '9000']: False",
    "overlong block": "['3', '0']: True",
    "overlong file": "['3', '8192']: True",
}


def test_hostile_images_by_fuse(user_with_fuse: User, busybox_rootfs: Path) -> None:
    """Programs see errors in the damaged files, and only those."""
    user = user_with_fuse
    for kind in HOSTILE_BY_FUSE:
        os.chown(hostile_sif(kind, busybox_rootfs, user.home / f"{kind}.sif"), UID, UID)
    lines = run_script(user, HOSTILE_IMAGES, *HOSTILE_BY_FUSE).stdout.splitlines()
    assert lines == [f"{kind}: {seen}" for kind, seen in HOSTILE_BY_FUSE.items()]
    assert user.processes() == []
    assert user.leftovers() == []


# ---- the cache ----


def extracted(user: User) -> list[Path]:
    return [path / "rootfs" for path in (user.home / CACHE).glob("*") if len(path.name) == 64]


def test_an_image_is_extracted_once(user_without_fuse: User, prefix: str) -> None:
    user = user_without_fuse
    done = command(user, "mount", "image.sif", "bundle")
    assert done.stderr.startswith("ociruntime: warning: ")
    assert "image.sif is extracted, because FUSE cannot be used: " in done.stderr
    (files,) = extracted(user)
    before = files.stat().st_ino
    shutil.copy(user.home / "image.sif", user.home / "copy.sif")
    os.chown(user.home / "copy.sif", UID, UID)
    run_script(user, 'oci.run("copy.sif", ["sh", "-c", "rm -r /bin"], check=True)')
    assert extracted(user) == [files]
    assert files.stat().st_ino == before
    assert command(user, "run", "copy.sif", "true").stderr == "", "the warning is about the extraction"
    assert (files / "bin/busybox").exists()
    command(user, "prune")  # the bundle uses it
    assert extracted(user) == [files]
    command(user, "umount", "bundle")
    clean_cache(user)


def test_directories_that_their_owner_may_not_read(user_without_fuse: User, busybox_rootfs: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(busybox_rootfs, tmp_path / "tree", symlinks=True)
    for name, mode in (("unread", 0o300), ("closed", 0)):
        (tree / name).mkdir()
        (tree / name).chmod(mode)
    image = user_without_fuse.home / "modes.sif"
    oci.build(tree, image)
    give(user_without_fuse.home)
    text = 'print(oci.run("modes.sif", ["ls", "-ld", "/unread", "/closed"], capture_output=True, text=True, check=True).stdout)'
    modes = [line.split()[0] for line in run_script(user_without_fuse, text).stdout.splitlines() if line]
    assert sorted(modes) == ["d---------", "d-wx------"]


def test_an_extraction_that_was_killed(user_without_fuse: User) -> None:
    user = user_without_fuse
    command(user, "mount", "image.sif", "bundle")
    (files,) = extracted(user)
    command(user, "umount", "bundle")
    (files / "bin/busybox").unlink()
    files.rename(files.with_name("partial"))
    assert run_script(user, 'print(oci.run("image.sif", ["true"]).returncode)').stdout == "0\n"
    assert sorted(os.listdir(files.parent)) == ["lock", "rootfs", "size", "users"]
    for directory in (files.parent, files.with_name("users")):
        (directory / "size.0123456789abcdef").symlink_to("1")  # a process was killed before it could rename it
    clean_cache(user)


WITHOUT_END = """#!/bin/sh
for word; do test "$before" = -dest && mkdir "$word" && echo partial >"$word/file"; before=$word; done
exec sleep 1000
"""
LATE = """
import time
for call in (oci.run, lambda *args, **options: asyncio.run(aio.run(*args, **options))):
    begun = time.monotonic()
    try:
        call(sys.argv[1], ["true"], strategy="extraction", timeout=0.5)
    except oci.ProcessTimeout as error:
        print(error)
    assert time.monotonic() - begun < 30
"""


@pytest.mark.parametrize("privileged", [True, False], ids=["root", "user"])
def test_a_time_limit_ends_an_extraction(user_without_fuse: User, privileged: bool, tmp_path: Path) -> None:
    """Also one by another process for which the call waits. Nothing of a partial one is left."""
    user = user_without_fuse
    programs = user.home / "programs"
    programs.mkdir()
    (programs / "unsquashfs").write_text(WITHOUT_END)
    (programs / "unsquashfs").chmod(0o755)
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path) if privileged else cache(user)}
    arguments = ("-c", f"import asyncio, os, sys, ociruntime as oci\nfrom ociruntime import aio\n{LATE}", user.home / "image.sif")
    images = Path(env["XDG_CACHE_HOME"], "ociruntime/images")

    def late() -> None:
        if privileged:
            command = [sys.executable, "-P", *map(str, arguments)]
            environ = {**os.environ, **env, "PYTHONPATH": ":".join(sys.path)}
            said = subprocess.run(command, env=environ, cwd="/", stdout=subprocess.PIPE, text=True, check=True).stdout
        else:
            said = user.run(*arguments, **env).stdout
        line = f"'extract {user.home}/image.sif' took longer than 0.5 s and was killed\n"
        assert said == line * 2

    late()
    (place,) = [path for path in images.glob("*") if len(path.name) == 64]
    assert os.listdir(place) == ["lock"]
    with open(place / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        late()
    assert os.listdir(place) == ["lock"]
    if not privileged:
        assert user.processes() == []
        assert user.leftovers() == []
        assert run_script(user, 'print(oci.run("image.sif", ["true"], timeout=60).returncode)').stdout == "0\n"
        clean_cache(user)


def test_the_cache_is_bounded(user_without_fuse: User, busybox_rootfs: Path, tmp_path: Path) -> None:
    user = user_without_fuse
    for number, exclude in enumerate(([], ["tmp"])):
        oci.build_sif(user.home / f"{number}.sif", busybox_rootfs, exclude=exclude)
        os.chown(user.home / f"{number}.sif", UID, UID)
    text = """
import ociruntime.rootfs.cache as cache
cache._BOUND = 1
for name in sys.argv[1:]:
    oci.run(name, ["true"], check=True)
"""
    run_script(user, text, "image.sif", "0.sif", "1.sif")
    assert len(extracted(user)) == 1
    clean_cache(user)


def test_a_cache_of_another_user(user_without_fuse: User) -> None:
    user = user_without_fuse
    place = user.home / "cache/ociruntime"
    place.mkdir(parents=True)
    os.chown(place.parent, UID, UID)
    os.chown(place, UID + 1, UID + 1)
    done = command(user, "mount", "image.sif", "bundle", check=False)
    assert f"cannot keep extracted images in {place}: it belongs to uid {UID + 1}" in done.stderr
    assert "set XDG_CACHE_HOME" in done.stderr
    assert not (user.home / "bundle").exists()


def test_a_user_without_a_home(user_without_fuse: User) -> None:
    """The cache is then in /var/tmp."""
    user = user_without_fuse
    place = Path(f"/var/tmp/ociruntime-{UID}")
    try:
        assert user.command("mount", "image.sif", "bundle").returncode == 0
        assert place.stat().st_mode & 0o7777 == 0o700
        assert place.stat().st_uid == UID
        user.command("umount", "bundle")
        user.command("prune")
    finally:
        shutil.rmtree(place, ignore_errors=True)


# ---- the root and the volumes ----

ROOT_AND_VOLUMES = """
os.umask(0o077)
image, bundle = sys.argv[1:]
script = "stat -c '%a %u %n' / /dev /data /data/sub /data/file /data/made /empty; cat /data/file; echo x > /data/new && cat /data/new; ls /data"
shown = [oci.run(image, ["sh", "-c", script], capture_output=True, text=True, check=True).stdout]
with oci.Bundle.from_sif(image, bundle) as mounted:
    shown.append(oci.run(mounted, ["sh", "-c", script], capture_output=True, text=True, check=True).stdout)
print(json.dumps(shown))
"""


@pytest.fixture
def image_with_volumes(busybox_rootfs: Path, tmp_path: Path) -> Path:
    """An image whose root has an odd mode, with a volume that has files of every kind."""
    rootfs = tmp_path / "rootfs"
    shutil.copytree(busybox_rootfs, rootfs, symlinks=True)
    rootfs.chmod(0o1751)
    (rootfs / "data/sub").mkdir(parents=True)
    (rootfs / "data").chmod(0o751)
    (rootfs / "data/sub").chmod(0o1733)
    (rootfs / "data/file").write_text("content\n")
    (rootfs / "data/file").chmod(0o640)
    (rootfs / "data/link").symlink_to("/etc/passwd")
    os.mkfifo(rootfs / "data/fifo")
    os.mknod(rootfs / "data/null", 0o20666, os.makedev(1, 3))
    oci.build_sif(tmp_path / "x.sif", rootfs, oci_config={"Volumes": {"/data": {}, "/data/made": {}, "/empty": {}}})
    return tmp_path / "x.sif"


def test_the_root_and_the_volumes_of_an_image(user: User, image_with_volumes: Path) -> None:
    """Modes are the image's, whatever the umask, and a volume has what the image has there. All of it belongs to the user."""
    shutil.copy(image_with_volumes, user.home / "volumes.sif")
    give(user.home)
    shown = json.loads(run_script(user, ROOT_AND_VOLUMES, "volumes.sif", "bundle").stdout)
    stats = ["1751 0 /", "755 0 /dev", "751 0 /data", "1733 0 /data/sub", "640 0 /data/file", "755 0 /data/made", "755 0 /empty"]
    assert shown[0].splitlines() == [*stats, "content", "x", "fifo", "file", "link", "made", "new", "sub"]
    assert shown[1] == shown[0]
    assert not (user.home / "bundle").exists()
    assert user.leftovers() == []


def test_long_paths(user: User) -> None:
    place = str(user.home)
    while len(place) < 900:
        place += "/" + "d" * 100
    os.makedirs(place)
    give(user.home)
    text = """
bundle, = sys.argv[1:]
with oci.Bundle.from_sif("image.sif", bundle) as mounted:
    print(oci.run(mounted, ["sh", "-c", "echo x > /new && cat /new"], capture_output=True, text=True, check=True).stdout, end="")
"""
    assert run_script(user, text, f"{place}/b").stdout == "x\n"
    assert user.leftovers() == []


UPPER = """
sh = lambda image, script, **more: oci.run(image, ["sh", "-c", script], capture_output=True, text=True, **more).stdout
count = "echo x >>/new; cat /new | wc -l"
print([sh("image.sif", count, overlay=where).strip() for where in ("tmpfs", "tmpfs:size=2M", None, "kept", "kept", "none")])
print(sh("image.sif", "dd if=/dev/zero of=/big bs=1M count=6 2>&1 | head -1", overlay="tmpfs:size=2M"), end="")
with oci.Bundle.from_sif("image.sif", "bundle") as bundle:
    print([sh(bundle.fresh(overlay=where), count).strip() for where in ("tmpfs", None, "kept")])
    used = bundle.with_args(["sleep", "1000"]).fresh(overlay="kept")
    with oci.Container.run("c", used):
        try:
            sh(bundle, count, overlay="kept")
        except oci.BundleError as error:
            print(str(error).replace(os.getcwd(), ""))
try:
    sh("image.sif", count, overlay="image.sif")
except oci.UnsupportedError as error:
    print(str(error).replace(os.getcwd(), ""))
with oci.Bundle.from_image("image.sif", "bundle", overlay="kept") as bundle:
    print([sh(image, count).strip() for image in (bundle, "bundle")])
print(sorted(os.listdir("kept")))
"""


def test_upper_layers(user: User) -> None:
    (user.home / "kept").mkdir()
    give(user.home)
    done = run_script(user, UPPER)
    assert done.stdout.splitlines() == [
        "['1', '1', '1', '1', '2', '0']",
        "dd: error writing '/big': No space left on device",
        "['1', '1', '3']",
        "overlay /kept: container 'c' uses it; end it, or give another directory",
        (
            "overlay /image.sif: only root can write to a filesystem in a file: the kernel takes no FUSE filesystem as an upper layer, "
            "and fuse-overlayfs would refuse all ids but the user's own; give a directory, 'tmpfs', or FILE:ro"
        ),
        "['4', '5']",
        "['upper', 'work']",
    ]
    assert user.leftovers() == []
    clean_cache(user)


LAYERS = """
import warnings
sh = lambda image, script, **more: oci.run(image, ["sh", "-c", script], capture_output=True, text=True, **more).stdout
names = "cat /name; for name in /plain /kept /squashfs /ext /etc/group; do test -e $name && echo $name; done; echo x >/name; cat /name"
sh("image.sif", "echo kept >/name; touch /kept; rm /etc/group", overlay="kept")
for layers in json.loads(sys.argv[1]):
    print(*sh("image.sif", names, overlay=layers).split())
    print(*sh("image.sif", names, overlay=[*layers, "tmpfs"]).split())
    with oci.Bundle.from_image("image.sif", "bundle", overlay=layers) as bundle:
        print(*sh(bundle, names).split(), *sh("bundle", names).split())
oci.close_images()
"""


def test_read_only_layers(user_with_fuse: User, tmp_path: Path) -> None:
    user, mkfs = user_with_fuse, shutil.which("mkfs.ext3", path="/usr/sbin:/sbin")
    for name in ("plain", "tree", "ext/upper"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "name").write_text(f"{name}\n")
    (tmp_path / "plain/plain").touch()
    (tmp_path / "tree/squashfs").touch()
    (tmp_path / "ext/upper/ext").touch()
    (tmp_path / "ext/upper/etc").mkdir()
    os.mknod(tmp_path / "ext/upper/etc/group", 0o20000, 0)  # a whiteout
    shutil.copytree(tmp_path / "plain", user.home / "plain")
    (user.home / "kept").mkdir()
    subprocess.run(
        ["mksquashfs", tmp_path / "tree", user.home / "x.sqfs", "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL
    )
    cases = [
        (["x.sqfs:ro"], "tree /squashfs /etc/group x"),
        (["plain:ro", "x.sqfs:ro", "kept:ro"], "kept /plain /kept /squashfs x"),
        (["kept:ro", "x.sqfs:ro", "plain:ro"], "plain /plain /kept /squashfs x"),
    ]
    if mkfs is not None and shutil.which("fuse2fs"):
        subprocess.run([mkfs, "-q", "-d", tmp_path / "ext", user.home / "x.img", "8M"], check=True)
        cases.append((["x.sqfs:ro", "x.img:ro"], "ext/upper /squashfs /ext x"))
    give(user.home)
    done = run_script(user, LAYERS, json.dumps([layers for layers, _ in cases]))
    assert done.stdout.splitlines() == [line for _, line in cases for line in (line, line, f"{line} {line}")]
    shown = command(user, "run", "--overlay", "x.sqfs:ro", "--overlay", "plain:ro", "image.sif", "cat", "/name")
    assert shown.stdout == "plain\n"
    assert user.leftovers() == []
    clean_cache(user)


def test_read_only_layers_without_fuse(user_without_fuse: User, tmp_path: Path) -> None:
    """Only a directory can be one."""
    user = user_without_fuse
    for name in ("plain", "tree"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{name}\n")
    shutil.copytree(tmp_path / "plain", user.home / "plain")
    subprocess.run(
        ["mksquashfs", tmp_path / "tree", user.home / "x.sqfs", "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL
    )
    give(user.home)
    assert command(user, "run", "--overlay", "plain:ro", "image.sif", "cat", "/name").stdout == "plain\n"
    failed = command(user, "run", "--overlay", "plain:ro", "--overlay", "x.sqfs:ro", "image.sif", "cat", "/name", check=False)
    assert failed.returncode == 1
    assert "x.sqfs:ro: FUSE cannot be used: " in failed.stderr
    assert "; a directory can be used instead" in failed.stderr
    assert user.leftovers() == []
    clean_cache(user)
