"""Nothing waits for ever: filters that deny what the init process needs, launches that stall, processes that are stopped or traced."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.spec import Hooks, Seccomp

from ..conftest import SLOWER

pytestmark = pytest.mark.root
MakeBundle = Callable[..., oci.Bundle]
SOON = 20 * SLOWER
"""Seconds that no call here may take, on a busy machine either."""


def filtered(
    make_bundle: MakeBundle, profile: dict[str, Any], *, no_new_privileges: bool, args: tuple[str, ...] = ("true",)
) -> oci.Bundle:
    spec = oci.RuntimeSpec.default()
    assert spec.process is not None
    assert spec.linux is not None
    process = spec.process.evolve(args=args, no_new_privileges=no_new_privileges)
    return make_bundle(spec.evolve(process=process, linux=spec.linux.evolve(seccomp=Seccomp.load(profile))))


DENY_ALL = [
    {"defaultAction": "SCMP_ACT_ERRNO", **more}
    for more in ({}, {"defaultErrnoRet": 0}, {"defaultErrnoRet": 4}, {"defaultErrnoRet": 38})
]


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize(
    "profile", [*DENY_ALL, {"defaultAction": "SCMP_ACT_TRACE"}], ids=["EPERM", "0", "EINTR", "ENOSYS", "trace"]
)
def test_a_filter_that_denies_everything(
    make_bundle: MakeBundle, state_root: Path, prefix: str, profile: dict[str, Any], no_new_privileges: bool
) -> None:
    bundle, began = filtered(make_bundle, profile, no_new_privileges=no_new_privileges), time.monotonic()
    with pytest.raises(oci.StepError, match="the seccomp filter denies execve"):
        oci.run(bundle, root=state_root, container_id=prefix)
    with oci.Container.create(prefix, bundle, root=state_root) as container:
        with pytest.raises(oci.StepError, match="the seccomp filter denies execve"):
            container.start()
        assert container.status is oci.Status.STOPPED
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("action", ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"])
def test_a_filter_that_kills(make_bundle: MakeBundle, state_root: Path, prefix: str, action: str) -> None:
    bundle, began = filtered(make_bundle, {"defaultAction": action}, no_new_privileges=True), time.monotonic()
    assert oci.run(bundle, root=state_root, container_id=prefix).returncode == -31
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize(
    "denied", [["exit_group"], ["exit_group", "exit"], ["exit_group", "exit", "sendmsg", "write", "read", "kill"]]
)
def test_an_init_that_cannot_exit(make_bundle: MakeBundle, state_root: Path, prefix: str, denied: list[str]) -> None:
    """The exec fails, and the init process has to end by itself although the filter denies it."""
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [*denied, "execve"], "action": "SCMP_ACT_ERRNO"}]}
    bundle, began = filtered(make_bundle, profile, no_new_privileges=True), time.monotonic()
    with pytest.raises(oci.StepError, match="the seccomp filter denies execve") as caught:
        oci.run(bundle, root=state_root, container_id=prefix)
    assert caught.value.op == "exec"
    with oci.Container.create(prefix, bundle, root=state_root) as container:
        with pytest.raises(oci.StepError, match="the seccomp filter denies execve"):
            container.start()
    assert time.monotonic() - began < SOON


def test_an_init_that_is_killed(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """The error says by which signal, and in which step, although the init process reports nothing."""
    spec = oci.RuntimeSpec.default()
    text = "kill -9 $(sed 's/.*\"pid\": \\([0-9]*\\).*/\\1/')"
    hooks = Hooks.load({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", text]}]})
    with pytest.raises(oci.StepError, match="the init process was killed by SIGKILL") as caught:
        oci.run(make_bundle(spec.evolve(hooks=hooks)), root=state_root, container_id=prefix)
    assert caught.value.op == "sync"


@pytest.mark.parametrize("profile", DENY_ALL, ids=["EPERM", "0", "EINTR", "ENOSYS"])
def test_a_pod_whose_filter_denies_the_wait(
    make_bundle: MakeBundle, state_root: Path, prefix: str, profile: dict[str, Any]
) -> None:
    bundle = filtered(make_bundle, profile, no_new_privileges=True)
    with oci.Container.run(prefix, bundle, root=state_root, empty_process=True) as container:
        assert container.wait(SOON) is not None
