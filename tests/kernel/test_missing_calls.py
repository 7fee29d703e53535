"""A kernel, or a seccomp filter around us, that lacks a system call: one clear error, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Script, UserBundle
from ..support.leftovers import assert_nothing_left
from ..support.users import UID, User, processes_of
from ..support.waiting import within

pytestmark = pytest.mark.root

SCRIPT = """
import errno, sys
import pyseccomp
import ociruntime as oci
name, root, path, container_id = sys.argv[1:]
bundle = oci.Bundle.load(path)
assert oci.run(bundle, ["echo", "it works"], capture_output=True, text=True, state_root=root, container_id=container_id).stdout == "it works\\n"
blocked = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
blocked.add_rule(pyseccomp.ERRNO(errno.ENOSYS), name)
blocked.load()
try:
    oci.run(bundle, ["true"], state_root=root, container_id=container_id)
except oci.UnsupportedError as error:
    print(error)
"""
CALLS = [
    "clone3",
    "close_range",
    "openat2",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "move_mount",
    "mount_setattr",
    "pivot_root",
]


FROM_THE_START = """
import errno, os, sys
import pyseccomp
import ociruntime as oci
name, root, path, container_id = sys.argv[1:]
bundle = oci.Bundle.load(path)
blocked = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
blocked.add_rule(pyseccomp.ERRNO(getattr(errno, os.environ["CODE"])), name)
blocked.load()
for supervise in (False, True):
    try:
        oci.Container.run(container_id, bundle, supervise=supervise, state_root=root)
    except oci.UnsupportedError as error:
        print(error)
"""


@pytest.mark.parametrize("code", ["ENOSYS", "EPERM"])
@pytest.mark.parametrize("name", ["statx", "pidfd_open", "pidfd_send_signal", "waitid", "epoll_create1"])
def test_a_call_whose_absence_would_show_late(
    bundle: oci.Bundle, state_root: Path, prefix: str, script: Script, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    monkeypatch.setenv("CODE", code)
    printed = script(FROM_THE_START, name, state_root, bundle.path, prefix).stdout.splitlines()
    why = (
        "this kernel does not have the system call, or a seccomp filter around the runtime hides it; Linux 5.14 or later is needed"
    )
    assert printed == [f"{name}: {why}"] * 2
    assert oci.Container.list(state_root=state_root) == []


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_missing(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script, name: str) -> None:
    printed = script(SCRIPT, name, state_root, bundle.path, prefix).stdout.splitlines()
    assert len(printed) == 1
    assert "Linux 5.14 or later is needed" in printed[0]
    assert "(step " in printed[0]
    if name not in ("close_range", "openat2"):
        assert f" {name}, ENOSYS)" in printed[0]
    assert oci.Container.list(state_root=state_root) == []


AFTER_THE_FORK = """
import ctypes, errno, os, sys
import pyseccomp
import ociruntime as oci
from ociruntime.engine import launch
fault, root, path, container_id = sys.argv[1:]
if fault == "unlink":
    blocked = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    blocked.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "unlink")
    blocked.load()
else:
    def fail(pidfd):
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
    launch.pid_of = fail
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
try:
    oci.Container.create(container_id, path, state_root=root)
except oci.HostError as error:
    print(error)
with open(f"/proc/self/task/{os.getpid()}/children") as children:
    assert children.read() == ""
"""


@pytest.mark.parametrize("fault", ["unlink", "pid"])
def test_a_fault_after_the_fork(user_bundle: UserBundle, user_script: Script, prefix: str, fault: str) -> None:
    """When the process is known by its pidfd alone, and after all. It is killed."""
    path, state = user_bundle(oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID).with_args(["sleep", "1000"]))
    assert f"cannot create container '{prefix}': " in user_script(AFTER_THE_FORK, fault, state, path, prefix).stdout
    user_script("import sys\nfrom ociruntime.cli import main\nmain(sys.argv[1:])", "--root", state, "delete", "--force", prefix)
    assert_nothing_left(state, prefix)
    assert not (state / prefix).exists()


WITHOUT_READLINK_AND_LSEEK = """
import errno, os, sys
import pyseccomp
import ociruntime as oci
path, image = sys.argv[1:]
bundle = oci.Bundle.load(path)
for name in "readlink", "lseek":
    blocked = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    blocked.add_rule(pyseccomp.ERRNO(getattr(errno, os.environ["CODE"])), name)
    blocked.load()
try:
    bundle.with_args(["true"])
except oci.HostError as error:
    print(error)
oci.build_sif(image, path + "/rootfs")
"""


@pytest.mark.parametrize("code", ["ENOSYS", "EPERM"])
def test_a_change_and_a_build(
    bundle: oci.Bundle, script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str
) -> None:
    """A change names the bundle; an image is built without lseek."""
    monkeypatch.setenv("CODE", code)
    said = script(WITHOUT_READLINK_AND_LSEEK, bundle.path, tmp_path / "x.sif").stdout
    assert said.startswith(f"cannot change the configuration of bundle {bundle.path}: {os.strerror(getattr(errno, code)).lower()}")
    assert oci.run(tmp_path / "x.sif", ["echo", "it works"], capture_output=True, text=True).stdout == "it works\n"


IN_A_CONTAINER = """
import errno, sys
import pyseccomp
import ociruntime as oci
root, path, container_id = sys.argv[1:]
with oci.Container.run(container_id, oci.Bundle.load(path), state_root=root) as container:
    blocked = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    blocked.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "sendmsg")
    blocked.load()
    try:
        container.exec(["true"])
    except oci.UnsupportedError as error:
        print(error)
"""


@pytest.mark.parametrize("text", [SCRIPT, IN_A_CONTAINER], ids=["run", "exec"])
def test_a_child_that_cannot_be_reported(user_bundle: UserBundle, user_script: Script, prefix: str, text: str) -> None:
    """It ends at once, with the process that has forked it, instead of waiting for its caller."""
    spec = oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID)
    path, state = user_bundle(spec.at.process.args.set(("sleep", "1000")))
    with within(20):
        printed = user_script(text, *(["sendmsg"] if text is SCRIPT else []), state, path, prefix).stdout
    assert "Linux 5.14 or later is needed" in printed
    assert re.search(r" fork(_last)?, ENOSYS\)", printed)
    assert oci.Container.list(state_root=state) == []
    assert processes_of(UID) == []


@pytest.mark.parametrize("text", [SCRIPT, IN_A_CONTAINER], ids=["run", "exec"])
def test_an_init_that_is_killed_before_it_reports_its_child(
    user_bundle: UserBundle, user_script: Script, prefix: str, text: str
) -> None:
    spec = oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID)
    path, state = user_bundle(spec.at.process.args.set(("sleep", "1000")))
    killing = text.replace("pyseccomp.ERRNO(errno.ENOSYS)", "pyseccomp.KILL_PROCESS").replace("UnsupportedError", "StepError")
    with within(20):
        printed = user_script(killing, *(["sendmsg"] if text is SCRIPT else []), state, path, prefix).stdout
    assert "the init process was killed by SIGSYS" in printed
    assert oci.Container.list(state_root=state) == []
    assert processes_of(UID) == []


LATE = """
import errno, json, os, sys
import pyseccomp
import ociruntime as oci
name, code, act, root, path, image, container_id = sys.argv[1:]
bundle = oci.Bundle.load(path)
with oci.Container.run(container_id, bundle, state_root=root) as running:  # what is found out once is known by now
    running.exec(["true"])
ACTS = {
    "run": lambda: oci.run(bundle, ["true"], state_root=root, container_id=container_id),
    "create": lambda: oci.Container.create(container_id, bundle, state_root=root),
    "mount": lambda: oci.Bundle.from_sif(image, f"{root}-mounted"),
}
blocked = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
blocked.add_rule(pyseccomp.ERRNO(getattr(errno, code)), name)
blocked.load()
try:
    print(json.dumps(["works", ACTS[act]() and ""]), flush=True)
except oci.OCIRuntimeError as error:
    print(json.dumps([[kind.__name__ for kind in type(error).__mro__], str(error)]), flush=True)
os._exit(0)  # a filter may keep the interpreter from ending
"""


@pytest.mark.parametrize("code", ["ENOSYS", "EPERM"])
@pytest.mark.parametrize(
    ("name", "act"),
    [("waitid", "run"), ("poll", "run"), ("recvmsg", "run"), ("flock", "create"), ("getdents64", "run"), ("fcntl", "mount")],
)
def test_a_call_that_is_missing_late(
    bundle: oci.Bundle, busybox_sif: Path, state_root: Path, prefix: str, script: Script, name: str, act: str, code: str
) -> None:
    """Also a call that the first launch has found, and a later one misses, gives an error that names the object."""
    done = script(LATE, name, code, act, state_root, bundle.path, busybox_sif, prefix)
    kinds, text = json.loads(done.stdout)
    assert "OCIRuntimeError" in kinds
    assert str(bundle.path) in text or prefix in text or "mounted" in text
    if name == "getdents64":  # the container has run, and what is recorded of it cannot be read
        assert "StateError" in kinds
        assert os.strerror(getattr(errno, code)).lower() in text
    else:
        assert "OSError" in kinds
        missing = "has no locks" if name == "flock" else "hides it"  # flock(2) is missing on some filesystems
        assert (missing if code == "ENOSYS" else "does not allow it") in text
    assert not Path(f"{state_root}-mounted").exists()
    for container in oci.Container.list(state_root=state_root):
        container.delete(force=True)
    assert oci.prune(state_root=state_root) == ()
    assert_nothing_left(state_root, prefix)


@pytest.mark.parametrize("name", ["fsopen", "fsmount", "mount_setattr"])
def test_a_mount_that_root_may_not_make(
    bundle: oci.Bundle, busybox_sif: Path, state_root: Path, prefix: str, script: Script, name: str
) -> None:
    done = script(LATE, name, "EPERM", "run", state_root, bundle.path, busybox_sif, prefix)
    assert (
        "the runtime does not have CAP_SYS_ADMIN, or a seccomp filter or security module around it denies the call" in done.stdout
    )
    assert "user namespace" not in done.stdout
    assert_nothing_left(state_root, prefix)


PROCFS = """
for use in (lambda: oci.run(bundle, ["true"]), oci.Host.probe, oci.doctor):
    try:
        use()
    except OSError as error:
        assert "no whole procfs is mounted on /proc; mount one, without" in str(error), error
    else:
        raise AssertionError("no error")
"""


@pytest.mark.parametrize("mount", [("-t", "tmpfs"), ("-t", "proc", "-o", "subset=pid")], ids=["none", "processes-alone"])
def test_without_a_whole_procfs(bundle: oci.Bundle, mount: tuple[str, ...]) -> None:
    code = f"import sys, ociruntime as oci\nbundle = sys.argv[1]{PROCFS}"
    script = 'mount "$@" none /proc; exec "$program" -P -c "$code" "$path"'
    variables = {"program": sys.executable, "code": code, "path": str(bundle.path)}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", *mount],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


KILLED = """
import subprocess
from ociruntime.engine.processes import kill_each, read_stat

child = subprocess.Popen(["sleep", "100"])
try:
    kill_each(lambda pid: bool(read_stat(pid)) and pid == child.pid)
    print(child.wait(10))
finally:
    child.kill()
"""


def test_a_procfs_that_shows_only_names_of_others(user: User) -> None:
    """The search for processes to kill goes on behind those of others."""
    script = 'mount -t proc -o hidepid=noaccess none /proc; exec setpriv --reuid "$1" --regid "$1" --clear-groups "$2" -P -c "$3"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", str(UID), user.python, KILLED],
        env={"PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "-9\n"), done.stderr
