"""A container that looks at the process that joins it: what it finds there is what the program will have, and nothing more."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.engine.execution import Execution
from ociruntime.engine.launch import own_child
from ociruntime.lifecycle.status import first_process
from ociruntime.plan import compile_exec
from ociruntime.plan.ops import Report
from ociruntime.spec import Rlimit, Syscall

from ..support.fixture_types import MakeBundle, Script
from ..support.users import User, with_user_namespace

pytestmark = pytest.mark.root

SCANNER = """
import ctypes, json, os, select, sys
libc = ctypes.CDLL(None, use_errno=True)
def enter(name):
    fd = os.open(f"/proc/{sys.argv[1]}/ns/{name}", os.O_RDONLY)
    assert libc.setns(fd, 0) == 0, name
    os.close(fd)
spaces = [os.open(f"/proc/{sys.argv[1]}/ns/{name}", os.O_RDONLY) for name in ("pid", "mnt")]
for fd in spaces:
    assert libc.setns(fd, 0) == 0
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
def read(path):
    with open(path) as file:
        return file.read()
own, seen = str(os.getpid()), []
print("ready", flush=True)
while not select.select([0], [], [], 0)[0]:
    for name in os.listdir("/proc"):
        if not name.isdigit() or name in ("1", own):
            continue
        found = {"name": "", "memory": False, "links": []}
        try:
            with open(f"/proc/{name}/mem", "rb"):
                found["memory"] = True
            found["links"] = [os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")]
            found["links"] += [os.readlink(f"/proc/{name}/map_files/{part}") for part in os.listdir(f"/proc/{name}/map_files")]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass
        try:
            status = dict(line.split(":\\t", 1) for line in read(f"/proc/{name}/status").splitlines() if ":\\t" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if status["Name"] == "oci-init":  # and so it was when it was looked at
            keys = ("CapPrm", "CapEff", "CapBnd", "Seccomp", "NoNewPrivs", "Uid")
            seen.append(found | {"name": "oci-init"} | {key: status[key].split()[0] for key in keys})
print(json.dumps(seen))
"""


@contextmanager
def scanned(container: oci.Container) -> Iterator[list[dict[str, Any]]]:
    """Look at the joining processes from inside the container, with all capabilities; the list is full at the end of the block."""
    command = [sys.executable, "-c", SCANNER, str(container.pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as scanner:
        assert scanner.stdin is not None
        assert scanner.stdout is not None
        found: list[dict[str, Any]] = []
        try:
            assert scanner.stdout.readline() == "ready\n"
            yield found
        finally:
            scanner.stdin.close()
            found += json.loads(scanner.stdout.read())


def joinable(make_bundle: MakeBundle, **process: object) -> oci.Bundle:
    spec = oci.RuntimeSpec.default().with_args(["sleep", "1000"]).with_caps("CAP_SYS_PTRACE")
    assert spec.process is not None
    return make_bundle(spec.evolve(process=spec.process.evolve(**process)))


@pytest.mark.parametrize(
    ("process", "options"),
    [
        ({}, {}),
        ({"no_new_privileges": False}, {}),
        ({}, {"user": (1000, 1000)}),
        ({"rlimits": (Rlimit(type="RLIMIT_NPROC", soft=500, hard=600),)}, {"user": (1000, 1000)}),
        ({}, {"terminal": True}),
    ],
    ids=["default", "new-privileges", "user", "limited", "terminal"],
)
def test_nothing_is_to_be_taken_from_a_joining_process(
    make_bundle: MakeBundle, state_root: Path, prefix: str, process: dict[str, object], options: dict[str, Any]
) -> None:
    with oci.Container.run(prefix, joinable(make_bundle, **process), state_root=state_root) as container:
        # What the program has.
        status = container.exec(["cat", "/proc/self/status"], capture_output=True, text=True, check=True, **options).stdout
        program = dict(line.split(":\t", 1) for line in status.replace("\r", "").splitlines() if ":\t" in line)
        seen: list[dict[str, Any]] = []
        for _ in range(20):  # until the scanner has been fast enough
            with scanned(container) as more:
                for _ in range(50):
                    container.exec(["true"], capture_output=True, check=True, **options)
            seen += more
            if sum(found["memory"] for found in seen) >= 20:
                break
        assert any(found["memory"] for found in seen)  # it is a container that may look
        assert any(found["CapPrm"] == program["CapBnd"] for found in seen)  # and it has looked before execve
        for found in seen:
            for name in ("CapBnd", "Seccomp", "NoNewPrivs", "Uid"):
                assert found[name] == program[name].split()[0], (name, found)
            # The config grants these. execve takes them from a user other than root: a sample shows the state before it or after it.
            granted, left = (program["CapBnd"], program["CapBnd"]), (program["CapPrm"], program["CapEff"])
            assert (found["CapPrm"], found["CapEff"]) in (granted, left), found
            strange = [
                link
                for link in found["links"]
                if not link.startswith(("socket:", "pipe:", "/dev/pts/", "/dev/null", "/memfd:oci-init", "/memfd:oci-plan"))
            ]
            assert strange == [], found


def descriptor_of(pidfd: int, number: int) -> int:
    """Take a descriptor from a process, as a tracer in the container can."""
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0)  # pidfd_getfd
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


@pytest.mark.parametrize("kind", [*Report, 0, 77])
@pytest.mark.parametrize("step", [0, 1, 2, 1000], ids=["no-step", "clone", "setns", "no-such-step"])
def test_a_report_of_another_process_is_not_believed(
    bundle: oci.Bundle, state_root: Path, prefix: str, kind: int, step: int
) -> None:
    """What came over the socket behind the fork would otherwise be a pidfd to follow, an exit code, or a step that is none."""
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        document = container._entry.read()  # the launch below stops where the public API does not
        spec = bundle.spec
        assert spec.process is not None
        plan = compile_exec(
            spec.process, spec, oci.Host.probe(), namespaces=document["namespaces"], cgroups=tuple(document["cgroups"])
        )
        pidfd = first_process(document)
        assert pidfd is not None
        joining = Execution(plan, stdio=[0, 1, 2], pidfd=pidfd)
        init = joining.begin()
        try:
            with socket.socket(fileno=descriptor_of(init.pidfd, 3)) as stolen:
                assert stolen.type == socket.SOCK_SEQPACKET
                socket.send_fds(stolen, [struct.pack("=IIiI", kind, step, os.getpid(), 0)], [pidfd])
            with pytest.raises(oci.StepError):
                joining.finish()
            with pytest.raises(ProcessLookupError):
                os.kill(init.pid, 0)
        finally:
            joining.abort()
            os.close(pidfd)
        assert container.state.status == "running"


def test_only_a_child_is_killed_for_an_init() -> None:
    """The page that says what an init has forked is written by processes that a container may look at."""
    middle = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"], stdout=subprocess.PIPE, text=True)
    assert middle.stdout is not None
    grandchild = int(middle.stdout.readline())
    try:
        with pytest.raises(ProcessLookupError):
            own_child(grandchild)
        os.close(own_child(middle.pid))
    finally:
        os.kill(grandchild, signal.SIGKILL)
        middle.kill()
        middle.stdout.close()
        middle.wait()


@pytest.mark.parametrize("hard", [1, 3])
def test_the_limit_of_processes_does_not_count_the_init(make_bundle: MakeBundle, state_root: Path, prefix: str, hard: int) -> None:
    limits = (Rlimit(type="RLIMIT_NPROC", soft=1, hard=hard),)
    user = 3_000_000_000 + os.getpid()  # with no other process
    with oci.Container.run(prefix, joinable(make_bundle, rlimits=limits), state_root=state_root) as container:
        result = container.exec(["grep", "processes", "/proc/self/limits"], user=(user, 1), capture_output=True, text=True)
        assert result.stdout.split()[2:4] == ["1", str(hard)]
        held = [container.popen(["sleep", "1000"], user=(user, 1)) for _ in range(2)]  # the kernel looks before it counts
        try:
            with pytest.raises(oci.StepError, match="EAGAIN"):
                container.exec(["true"], user=(user, 1))
        finally:
            for process in held:
                process.kill()
                process.wait()
        container.exec(["true"], user=(user, 1), check=True)


@pytest.mark.parametrize("name", ["setsid", "clone"])
def test_a_filter_that_denies_what_comes_behind_it(make_bundle: MakeBundle, state_root: Path, prefix: str, name: str) -> None:
    spec = joinable(make_bundle).spec
    assert spec.linux is not None
    assert spec.linux.seccomp is not None
    denied = Syscall(names=(name,), action="SCMP_ACT_ERRNO")
    others = tuple(rule for rule in spec.linux.seccomp.syscalls or () if name not in rule.names)
    without = tuple(
        rule.evolve(names=tuple(one for one in rule.names if one != name))
        for rule in spec.linux.seccomp.syscalls or ()
        if rule not in others and len(rule.names) > 1
    )
    seccomp = spec.linux.seccomp.evolve(syscalls=(*others, *without, denied))
    bundle = make_bundle(spec.evolve(linux=spec.linux.evolve(seccomp=seccomp)))
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        assert container.exec(["cat", "/proc/self/comm"], capture_output=True, text=True, check=True).stdout == "cat\n"


OPENED = """
import sys, ociruntime as oci
with oci.Sandbox(sys.argv[1], name=sys.argv[2], state_root=sys.argv[3]) as sandbox:
    print(*(sandbox.shell(f"exec 3<>/proc/{name}/mem").returncode != 0 for name in ("self", "1")))
    sandbox.read_bytes("/bin/busybox")
"""


def test_no_program_keeps_its_sandbox_alive(
    make_bundle: MakeBundle, state_root: Path, prefix: str, script: Script, user: User
) -> None:
    """One that can write to the memory of the first process can let it take back that it is killed with the caller."""
    for bundle in (
        make_bundle(name="plain"),
        make_bundle(with_user_namespace(oci.RuntimeSpec.default(), 0), name="in-a-user-namespace"),
    ):
        assert script(OPENED, bundle.path, prefix, state_root).stdout == "False True\n"
    assert user.script(OPENED, user.bundle, prefix, user.state) == "False True\n"
    with oci.Container.run(prefix, bundle, state_root=state_root, empty_process=True) as container:
        assert container.exec(["sh", "-c", "exec 3<>/proc/1/mem"]).returncode == 0, "the first process of a pod"
