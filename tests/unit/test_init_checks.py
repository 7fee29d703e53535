"""What the init proves about files, when a seccomp filter answers for statx(2) and has filled nothing in."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from ociruntime.engine.launch import Init
from ociruntime.plan.model import encode
from ociruntime.plan.ops import NO_SLOT, Report
from ociruntime.seccomp import compile_profile
from ociruntime.spec.seccomp import Seccomp, SeccompAction, Syscall

pytest.importorskip("pyseccomp", reason="libseccomp is not installed")
DEVICE, PROC, ROOT, FULL, EMPTY, NAMESPACE, NAMESPACES, OUT = range(1000, 1008)
PR_SET_NO_NEW_PRIVS = 38
SILENT = Seccomp(default_action=SeccompAction.ALLOW, syscalls=(Syscall(names=("statx",), action=SeccompAction.ERRNO, errno_ret=0),))
"""Every statx(2) succeeds, and does nothing."""
NULL = os.major(os.stat("/dev/null").st_rdev) << 32 | os.minor(os.stat("/dev/null").st_rdev)
CLONE_NEWUTS = 0x04000000
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


def failure(steps: list[Call]) -> tuple[int, int] | None:
    """Execute a program. Return the number of the step that failed and its errno."""
    program = encode([(number, name, values) for number, (name, values) in enumerate(steps, 1)], 0)
    null = os.open(os.devnull, os.O_RDWR)
    try:
        init = Init.launch(program, flags=0, stdio=[null] * 3)
    finally:
        os.close(null)
    try:
        message = init.receive()
        return None if message is None else (message.step, message.value) if message.kind is Report.ERROR else (0, 0)
    finally:
        init.kill()


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
    steps: list[Call] = [("open", (NO_SLOT, path, flags.get(slot, os.O_PATH), 0, 0, slot)) for slot, path in places.items()]
    values, error = CHECKS[op]
    filtered: list[Call] = [("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0)), ("seccomp", (0, compile_profile(SILENT).program, NO_SLOT))]
    assert failure([*steps, *filtered, (op, values)]) == (len(steps) + len(filtered) + 1, error)
    assert failure([*steps, (op, values)]) is None
