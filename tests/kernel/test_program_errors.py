"""Programs that cannot be executed: the errors from Python, and the exit statuses and messages of the command."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ociruntime as oci

from ..support.fixture_types import Command, MakeBundle, Script
from ..support.waiting import TIME_LIMIT

PODMAN_NOT_FOUND = re.compile("(?i)executable file not found in|no such file or directory")
PODMAN_NOT_PERMITTED = re.compile("(?i)permission denied|operation not permitted")
"""What podman looks for in a runtime's message: 127 and 126."""


class Case(NamedTuple):
    """A program, the error of executing it, and the step in which `create` and `start` fail. `exec` fails in its last step.

    `status` is the exit status of these commands; that of `exec` is 255.
    """

    args: tuple[str, ...]
    op: str
    errno: int
    message: str

    @property
    def status(self) -> int:
        return 127 if self.errno == errno.ENOENT else 126


CASES = {
    "missing": Case(("no-such-program",), "lookup", errno.ENOENT, "executable file not found in $path"),
    "missing path": Case(("/no/such-program",), "lookup", errno.ENOENT, "no such file or directory"),
    "missing path with a space": Case(("/a b/c",), "lookup", errno.ENOENT, "no such file or directory"),
    "below a file": Case(("/etc/passwd/x",), "lookup", errno.ENOENT, "no such file or directory"),
    "long name": Case(("/" + 300 * "n",), "lookup", errno.ENAMETOOLONG, "name too long"),
    "directory": Case(("/etc",), "lookup", errno.EACCES, "permission denied"),
    "not executable": Case(("/etc/passwd",), "lookup", errno.EACCES, "permission denied"),
    "loop of links": Case(("/loop",), "exec", errno.ELOOP, "too many symbolic links"),
    "noexec": Case(("/noexec/true",), "exec", errno.EACCES, "permission denied"),
    "garbage": Case(("/garbage",), "exec", errno.ENOEXEC, "exec format error"),
    "empty": Case(("/empty",), "exec", errno.ENOEXEC, "exec format error"),
    "foreign": Case(("/foreign",), "exec", errno.ENOEXEC, "exec format error"),
    "script without an interpreter": Case(("/script",), "exec", errno.ENOENT, "no such file or directory"),
    "no ELF loader": Case(("/dynamic",), "exec", errno.ENOENT, "no such file or directory"),
    "interpreter not executable": Case(("/denied",), "exec", errno.EACCES, "permission denied"),
    "too long": Case(("true", 200_000 * "x"), "exec", errno.E2BIG, "the arguments and the environment are too long"),
}  # fmt: skip


def elf(machine: int, loader: bytes = b"") -> bytes:
    """Return a 64-bit ELF program that has a header, and a loader if one is given."""
    count = 1 if loader else 0
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400000, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return header + (struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(loader), len(loader), 1) + loader if loader else b"")


@pytest.fixture
def programs(make_bundle: MakeBundle) -> oci.Bundle:
    """A bundle with the programs of the cases."""
    document: dict[str, Any] = oci.RuntimeSpec.default(rootless=os.geteuid() != 0).with_args(["sleep", "1000"]).to_dict()
    document["mounts"].append({"destination": "/noexec", "type": "tmpfs", "source": "tmpfs", "options": ["noexec", "size=4m"]})
    bundle = make_bundle(oci.RuntimeSpec.load(document))
    root = bundle.path / "rootfs"
    (root / "loop").symlink_to("loop")
    native = 62 if os.uname().machine == "x86_64" else 183
    for name, content in {
        "garbage": b"\1\2\3",
        "empty": b"",
        "foreign": elf(2),  # SPARC is 32-bit and big-endian, so no emulator claims this
        "script": b"#!/no/interpreter\n",
        "dynamic": elf(native, b"/lib/no-loader.so\0"),
        "denied": b"#!/etc/passwd\n",
    }.items():
        (root / name).write_bytes(content)
        (root / name).chmod(0o755)
    return bundle


def set_args(bundle: oci.Bundle, args: tuple[str, ...]) -> None:
    bundle.spec = bundle.spec.with_args(args)


def check(error: oci.StepError, case: Case, op: str) -> None:
    assert (error.op, error.errno, error.strerror) == (op, case.errno, os.strerror(case.errno))
    assert error.code == errno.errorcode[case.errno]
    assert case.message in str(error).lower()
    assert str(error).startswith(("cannot run ", f"cannot exec {case.args[0]}: no such file or directory; "))
    assert ("interpreter exists" in str(error)) == (error.errno == errno.ENOENT and op == "exec")


@pytest.fixture
def running(programs: oci.Bundle, state_root: Path, prefix: str) -> Iterator[oci.Container]:
    """A container with the programs; a program can be put on its noexec filesystem."""
    with oci.Container.run(prefix, programs, state_root=state_root) as container:
        container.exec(["cp", "/bin/busybox", "/noexec/true"], check=True)
        yield container


def test_exec(running: oci.Container) -> None:
    for case in CASES.values():
        for run in (running.exec, running.popen):
            with pytest.raises(oci.StepError) as caught:
                run(list(case.args))
            check(caught.value, case, "exec")
    assert running.exec(["true"]).returncode == 0


def test_the_command_exec(running: oci.Container, programs: oci.Bundle, command: Command, tmp_path: Path) -> None:
    process = tmp_path / "process.json"
    for case in CASES.values():
        document = running.spec.to_dict()["process"]
        process.write_text(json.dumps({**document, "args": case.args, "terminal": False}))
        done = subprocess.run(command("exec", "--process", process, running.id), capture_output=True, text=True, timeout=TIME_LIMIT)
        assert (done.returncode, case.message in done.stderr.lower()) == (255, True), (case.args[0], done)
        assert len(done.stderr.splitlines()) == 1
        assert bool(PODMAN_NOT_FOUND.search(done.stderr)) == (case.status == 127)
        assert bool(PODMAN_NOT_PERMITTED.search(done.stderr)) == (case.errno == errno.EACCES)


def status_of(words: list[str]) -> int:
    null = subprocess.DEVNULL  # a container of `create` would keep pipes open
    return subprocess.run(words, stdin=null, stdout=null, stderr=null, timeout=TIME_LIMIT, check=False).returncode


WITHOUT_FILES = [name for name in CASES if name != "noexec"]
"""The noexec filesystem of a new container is empty."""


def test_run_and_create(programs: oci.Bundle, state_root: Path, prefix: str) -> None:
    for case in map(CASES.__getitem__, WITHOUT_FILES):
        bundle = programs.with_args(list(case.args))
        with pytest.raises(oci.StepError) as caught:
            oci.run(bundle, state_root=state_root, container_id=prefix)
        check(caught.value, case, case.op)
        if case.op == "lookup":
            with pytest.raises(oci.StepError) as caught:
                oci.Container.create(prefix, bundle, state_root=state_root)
        else:
            with oci.Container.create(prefix, bundle, state_root=state_root) as container, pytest.raises(oci.StepError) as caught:
                container.start()
        check(caught.value, case, case.op)
        assert oci.Container.list(state_root=state_root) == []


@pytest.mark.parametrize("options", [[], ["--supervise"], ["--detach"]], ids=["run", "supervised", "detached"])
def test_the_command_run(programs: oci.Bundle, command: Command, prefix: str, options: list[str], state_root: Path) -> None:
    for case in map(CASES.__getitem__, WITHOUT_FILES):
        set_args(programs, case.args)
        words = command("run", *options, "-b", programs.path, prefix)
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIME_LIMIT)
        assert (done.returncode, case.message in done.stderr.lower()) == (case.status, True), (case.args[0], done)
        assert oci.Container.list(state_root=state_root) == []


def test_the_commands_create_and_start(programs: oci.Bundle, command: Command, prefix: str) -> None:
    for name in ("missing", "directory", "garbage", "script without an interpreter", "too long"):
        case = CASES[name]
        set_args(programs, case.args)
        created = status_of(command("create", "-b", programs.path, prefix))
        assert created == (case.status if case.op == "lookup" else 0)
        if created == 0:
            assert status_of(command("start", prefix)) == case.status
            assert status_of(command("delete", prefix)) == 0


def test_other_failures(bundle: oci.Bundle, command: Command, state_root: Path, prefix: str) -> None:
    """As in runc: 255 of exec is not the 1 of a program; all other commands fail with 1."""

    assert status_of(command("exec", prefix, "true")) == 255
    assert status_of(command("run", "-b", bundle.path / "nothing", prefix)) == 1
    assert status_of(command("start", prefix)) == 1
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        assert status_of(command("run", "-b", bundle.path, prefix)) == 1
        container.kill("KILL")
        container.wait()
        assert status_of(command("exec", prefix, "true")) == 255
        assert status_of(command("start", prefix)) == 1


def test_what_only_the_user_can_reach(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """The init without capabilities cannot enter the directory of another user, whose program runs all the same."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    private = bundle.path / "rootfs/private"
    private.mkdir(mode=0o700)
    (private / "true").symlink_to("/proc/self/root/bin/busybox")  # followed by execve alone
    os.chown(private, 1000, 1000)
    done = oci.run(bundle, ["/private/true"], user=(1000, 1000), state_root=state_root, container_id=prefix)
    assert done.returncode == 0
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        assert container.exec(["/private/true"], user=(1000, 1000)).returncode == 0


AS_A_USER = """
import ctypes, os, sys
from pathlib import Path
import ociruntime as oci
from ociruntime.cli import main
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
bundle, state, identity = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
spec = oci.RuntimeSpec.default(rootless=True)
process = spec.process
for args in (["no-such-program"], ["/etc/passwd"], ["/garbage"], ["/script"]):
    spec.evolve(process=process.evolve(args=args)).save(bundle / "config.json")
    print(args[0], main(["--root", state, "run", "-b", str(bundle), identity]))
spec.evolve(process=process.evolve(args=["sleep", "1000"])).save(bundle / "config.json")
with oci.Container.run(identity, bundle, state_root=state) as container:
    for args in (["no-such-program"], ["/etc/passwd"], ["/garbage"], ["/script"]):
        print(args[0], main(["--root", state, "exec", identity, *args]))
    print("nothing", main(["--root", state, "exec", "nothing", "true"]))
"""


def test_as_a_user(programs: oci.Bundle, user_script: Script, prefix: str) -> None:
    import tempfile

    if os.geteuid() != 0:
        pytest.skip("the other tests are a user's here")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        subprocess.run(["cp", "-a", programs.path, f"{place}/b"], check=True)
        subprocess.run(["chown", "-R", "65534:65534", place], check=True)
        done = user_script(AS_A_USER, f"{place}/b", f"{place}/state", prefix)
    codes = ["no-such-program 127", "/etc/passwd 126", "/garbage 126", "/script 127"]
    of_exec = [f"{code.split()[0]} 255" for code in [*codes, "nothing"]]
    assert done.stdout.splitlines() == [*codes, *of_exec], done.stderr
