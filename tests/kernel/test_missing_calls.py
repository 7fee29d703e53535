"""A kernel, or a seccomp filter around us, that lacks a system call: one clear error, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Script

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
