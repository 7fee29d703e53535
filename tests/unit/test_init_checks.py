"""What the init proves about files, namespaces and mounts before it goes on.

A container would have to win a race to mislead it. Here a seccomp filter answers system calls with 0 instead: they seem to succeed
and do nothing, or return descriptor 0, whatever that is. So each proof fails at a place that a test can name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ociruntime.engine.launch import Init
from ociruntime.plan.model import encode
from ociruntime.plan.ops import NO_SLOT, RESOLVE_IN_ROOT, Report, Target
from ociruntime.seccomp import compile_profile
from ociruntime.spec.seccomp import Seccomp, SeccompAction, SeccompOperator, Syscall, SyscallArg

from ..faults.injector import Call as SystemCall
from ..faults.injector import Traced
from ..support.fixture_types import Script
from ..support.waiting import SLOWER

pytest.importorskip("pyseccomp", reason="libseccomp is not installed")
DEVICE, PROC, ROOT, FULL, EMPTY, NAMESPACE, NAMESPACES, OUT = range(1000, 1008)
PR_SET_NO_NEW_PRIVS = 38
NULL = os.major(os.stat("/dev/null").st_rdev) << 32 | os.minor(os.stat("/dev/null").st_rdev)
CLONE_NEWUTS = 0x04000000
TIOCGPTPEER = 0x5441
CHECKS: dict[str, tuple[tuple[object, ...], int]] = {
    "prove_dev": ((DEVICE, stat.S_IFCHR, NULL), errno.EPROTO),
    "prove_proc": ((PROC,), errno.EPROTO),
    "mknod": ((ROOT, "pipe", stat.S_IFIFO | 0o644, 0, os.getuid(), os.getgid()), errno.EPROTO),
    "target": ((ROOT, "/full", 0, 0o755, NO_SLOT, OUT), errno.EPROTO),
    "copyup": ((FULL, EMPTY), errno.EPROTO),
    "mode_like": ((ROOT, "/full", EMPTY), errno.EPROTO),
    "join": ((NAMESPACE, CLONE_NEWUTS, NAMESPACES, "uts"), errno.EXDEV),
}
"""Operations, their values, and their error where the status of a file is not known."""


Call = tuple[str, tuple[object, ...]]


def opened(slot: int, path: Path | str, flags: int = os.O_PATH) -> Call:
    return "open", (NO_SLOT, str(path), flags, 0, 0, slot)


def silenced(name: str, *args: SyscallArg) -> list[Call]:
    """Operations after which every call of a name, with these arguments, returns 0 and does nothing."""
    rule = Syscall(names=(name,), action=SeccompAction.ERRNO, errno_ret=0, args=args or None)
    filter_ = compile_profile(Seccomp(default_action=SeccompAction.ALLOW, syscalls=(rule,))).program
    return [("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0)), ("seccomp", (0, filter_, NO_SLOT))]


def failure(steps: Sequence[Call], *, flags: int = 0, stdin: str = os.devnull) -> tuple[int, int] | None:
    """Execute a program. Return the number of the step that failed and its errno; (0, 0) for a report that is not an error."""
    program = encode([(number, name, values) for number, (name, values) in enumerate(steps, 1)], 0)
    null, first = os.open(os.devnull, os.O_RDWR), os.open(stdin, os.O_RDONLY)
    try:
        init = Init.launch(program, flags=flags, stdio=[first, null, null])
    finally:
        os.close(null)
        os.close(first)
    try:
        message = init.receive()
        if message is not None and message.fd >= 0:
            os.close(message.fd)
        return None if message is None else (message.step, message.value) if message.kind is Report.ERROR else (0, 0)
    finally:
        init.kill()


def fails(steps: Sequence[Call], error: int, *, flags: int = 0, stdin: str = os.devnull) -> None:
    """Check that the last step of a program fails, and no other."""
    assert failure(steps, flags=flags, stdin=stdin) == (len(steps), error)


@pytest.mark.parametrize("op", [*sorted(CHECKS.keys() - {"join"}), pytest.param("join", marks=pytest.mark.root)])
def test_a_status_that_was_not_filled_in(op: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full/file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe").chmod(0o644)
    places = {DEVICE: "/dev/null", PROC: "/proc", NAMESPACE: "/proc/self/ns/uts", NAMESPACES: "/proc/self/ns"}
    places |= {ROOT: str(tmp_path), FULL: f"{tmp_path}/full", EMPTY: f"{tmp_path}/empty"}
    # setns(2) takes no descriptor of O_PATH
    flags = {NAMESPACE: os.O_RDONLY, FULL: os.O_RDONLY, EMPTY: os.O_RDONLY}
    steps = [opened(slot, path, flags.get(slot, os.O_PATH)) for slot, path in places.items()]
    values, error = CHECKS[op]
    fails([*steps, *silenced("statx"), (op, values)], error)
    assert failure([*steps, (op, values)]) is None


@pytest.mark.root
def test_a_device_is_proven_again_before_it_gets_its_owner(tmp_path: Path) -> None:
    """Between making it and changing its owner another file can take its name: openat(2) returns that one, descriptor 0."""
    other = tmp_path / "other"
    other.touch()
    make = [opened(ROOT, tmp_path), ("mknod", (ROOT, "pipe", stat.S_IFIFO | 0o644, 0, 1000, 1000))]
    fails([make[0], *silenced("openat"), make[1]], errno.ENODEV, stdin=str(other))
    assert other.stat().st_uid == 0
    assert failure(make) is None
    assert (tmp_path / "pipe").stat().st_uid == 1000


def test_a_mount_point_is_never_made_through_a_link(tmp_path: Path) -> None:
    """The link leads out of the root, to a name that does not exist: opened as the host sees it, the file would be made there."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside / "file")
    assert failure([opened(ROOT, root), ("target", (ROOT, "/link", Target.FILE, 0o755, NO_SLOT, OUT))]) is None
    assert os.listdir(outside) == []
    assert Path(f"{root}{outside}/file").is_file()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("file", None),
        ("link", errno.ELOOP),
        ("below/file", errno.EXDEV),
        ("../outside/file", errno.EXDEV),
    ],
)
def test_writes_stay_in_their_directory(tmp_path: Path, path: str, error: int | None) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for directory in (root, outside):
        directory.mkdir()
        (directory / "file").write_text("before")
    (root / "link").symlink_to("file")
    (root / "below").symlink_to(outside)
    steps: list[Call] = [opened(ROOT, root), ("write", (ROOT, path, b"after!"))]
    assert failure(steps) == (None if error is None else (2, error))
    assert (root / "file").read_text() == ("before" if error else "after!")
    assert (outside / "file").read_text() == "before"


@pytest.mark.parametrize(
    ("root", "path", "error"),
    [
        ("/proc", "self/cwd/file", errno.ELOOP),
        ("/", "proc/self/comm", errno.EXDEV),
        pytest.param("/proc", "self/comm", None, marks=pytest.mark.root),  # the init is not dumpable: its files belong to root
    ],
)
def test_writes_to_procfs_reach_procfs(tmp_path: Path, root: str, path: str, error: int | None) -> None:
    """Neither through a link of the kernel, nor through a mount."""
    (tmp_path / "file").touch()
    steps: list[Call] = [opened(ROOT, root), ("write", (ROOT, path, b"name"))]
    assert failure(steps) == (None if error is None else (2, error))


def test_a_terminal_comes_from_a_devpts(tmp_path: Path) -> None:
    (tmp_path / "ptmx").touch()
    fails([opened(DEVICE, tmp_path), ("console", (DEVICE, NO_SLOT, 0, 0, os.getuid(), 0))], errno.EXDEV)


@pytest.mark.root  # its mode keeps users from the ptmx in the devpts of the host
def test_a_terminal_is_a_terminal() -> None:
    """TIOCGPTPEER returns descriptor 0, the null device."""
    steps: list[Call] = [opened(DEVICE, "/dev/pts"), ("console", (DEVICE, NO_SLOT, 0, 0, os.getuid(), 0))]
    filter_ = silenced("ioctl", SyscallArg(index=1, value=TIOCGPTPEER, op=SeccompOperator.EQ))
    fails([steps[0], *filter_, steps[1]], errno.ENODEV)
    assert failure(steps) == (0, 0)


def test_a_read_only_path_is_read_only_afterwards(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    fails([opened(ROOT, tmp_path), *silenced("mount_setattr"), ("readonly", (ROOT, "/path"))], errno.EXDEV)
    assert failure([opened(ROOT, tmp_path), ("readonly", (ROOT, "/missing"))]) is None


@pytest.mark.root
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_masked_path_is_masked_afterwards(tmp_path: Path, kind: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    steps = [opened(ROOT, tmp_path), opened(DEVICE, "/dev/null")]
    fails([*steps, *silenced("move_mount"), ("mask", (ROOT, f"/{kind}", DEVICE))], errno.EXDEV)
    assert failure([*steps, ("mask", (ROOT, "/missing", DEVICE))]) is None


@pytest.mark.root
def test_a_namespace_that_was_not_joined() -> None:
    steps = [opened(NAMESPACES, "/proc/self/ns"), opened(NAMESPACE, f"/proc/{os.getpid()}/ns/uts", os.O_RDONLY)]
    join: Call = ("join", (NAMESPACE, CLONE_NEWUTS, NAMESPACES, "uts"))
    fails([*steps, *silenced("setns"), join], errno.EXDEV, flags=CLONE_NEWUTS)
    assert failure([*steps, join], flags=CLONE_NEWUTS) is None


@pytest.mark.root
def test_a_working_directory_outside_the_root(tmp_path: Path) -> None:
    """A descriptor of a directory of the host is a way out of the root that chdir(2) takes."""
    steps: list[Call] = [opened(ROOT, "/proc"), ("chroot", (ROOT,)), ("chdir", ("/self/fd/0", 0))]
    fails(steps, errno.ENOENT, stdin=str(tmp_path))
    assert failure(steps, stdin="/proc/sys") is None


INSPECT = """
import os, subprocess, sys
from ociruntime.engine.launch import Init
from ociruntime.plan.model import encode
become(int(sys.argv[1]))
def opens(pid):
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
    except PermissionError:
        return False
    return True
null = os.open(os.devnull, os.O_RDWR)
init = Init.launch(encode([(1, "sync", (0,))], 0), flags=0, stdio=[null] * 3)
init.receive()
with subprocess.Popen(["sleep", "100"]) as other:
    print(opens(init.pid), opens(other.pid))
    other.kill()
init.kill()
"""


@pytest.mark.root
def test_a_process_of_the_same_user_cannot_look_into_the_init(user_script: Script) -> None:
    assert user_script(INSPECT, 1000).stdout == "False True\n"


@pytest.mark.root  # the filter that asks this process is for a process with privileges
@pytest.mark.parametrize(("refusals", "result"), [(3, None), (5000, [2, errno.EAGAIN])])
def test_paths_are_followed_again_while_files_are_renamed(tmp_path: Path, refusals: int, result: object) -> None:
    """The kernel answers EAGAIN for ".." below a root where anything on the host is renamed meanwhile. The tries end."""
    steps: list[Call] = [opened(ROOT, tmp_path), ("open", (ROOT, "..", os.O_PATH, 0, RESOLVE_IN_ROOT, OUT))]
    paths: list[SystemCall] = []

    def decide(call: SystemCall) -> int:
        if call.name != "openat2":
            return 0
        paths.append(call)
        return errno.EAGAIN if 1 < len(paths) <= 1 + refusals else 0  # the first is the directory

    def body(go: Callable[[], None]) -> object:
        go()
        return failure(steps)

    traced = Traced(body, decide)
    try:
        report = traced.finish(60 * SLOWER)
    finally:
        traced.close()
    assert report.document == {"done": result}
    assert len(paths) == (2 + refusals if result is None else 1001)
