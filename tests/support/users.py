"""Users without privileges, and user namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ociruntime as oci
from ociruntime.spec import IDMapping, NamespaceType

from .fixture_types import MakeBundle
from .places import REPO
from .waiting import TIME_LIMIT, wait_until

FIRST_ID = 100000
"""The host's id of root in most user namespaces of the tests."""
UID = 40000 + os.getpid() % 20000
"""A user that does not exist on the host; another one in each process of the tests."""
BECOME = '''
def become(uid, groups=()):
    """Give up all privileges, as a process that this user has started. Users must be able to import what is not imported yet."""
    import ctypes, os
    import ociruntime.host
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE: otherwise /proc/self belongs to root
    ociruntime.host._probe.cache_clear()

'''
"""Text that the fixture `user_script` puts before each script."""


def give(bundle: oci.Bundle, owner: int) -> oci.Bundle:
    """Change the owner of a bundle, its config and the directories of its root filesystem. Files are links to those of all tests."""
    paths = [str(bundle.path), f"{bundle.path}/config.json", *(directory for directory, _, _ in os.walk(bundle.rootfs))]
    for path in paths:
        os.chown(path, owner, owner)
    return bundle


def with_user_namespace(spec: oci.RuntimeSpec, first: int = FIRST_ID, size: int = 65536) -> oci.RuntimeSpec:
    """Return the config with a new user namespace, whose ids 0 and up are those of the host from ``first`` on."""
    ids = (IDMapping(container_id=0, host_id=first, size=size),)
    return spec.with_namespace(NamespaceType.USER).at.linux.uid_mappings.set(ids).at.linux.gid_mappings.set(ids)


VARIANTS: dict[str, Callable[[oci.RuntimeSpec], oci.RuntimeSpec]] = {
    "plain": lambda spec: spec,
    "no new privileges": lambda spec: spec.at.process.no_new_privileges.set(True),
    "new privileges": lambda spec: spec.at.process.no_new_privileges.set(False),
    "user namespace": lambda spec: with_user_namespace(spec, 0, 70000),
    "another user": lambda spec: spec.at.process.user.set(oci.spec.User(uid=7, gid=7)),
}
"""Configurations under which the credentials of a process change in different ways."""


class User:
    """A user of one test, without a name, subordinate ids and delegated cgroups.

    Attributes:
        bundle: a bundle of busybox with a user namespace, whose process sleeps.
        state: the state directory.
    """

    def __init__(self, python: str, work: Path, bundle: Path) -> None:
        self.uid = UID
        self.python, self.work, self.bundle, self.state = python, work, bundle, work / "state"
        self.state.mkdir()
        os.chown(self.state, UID, UID)
        give(oci.Bundle.load(bundle), UID)

    def run(self, *words: object, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a program as the user."""
        # Files and no pipes: a container that outlives the program would hold a pipe open.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                list(map(str, words)), user=self.uid, group=self.uid, extra_groups=[], cwd="/", stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "HOME": str(self.work)}, stdout=out, stderr=err, timeout=TIME_LIMIT, check=False,
            )  # fmt: skip
            out.seek(0)
            err.seek(0)
            result = subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())
        assert result.returncode == 0 or not check, result.stdout + result.stderr
        return result

    def script(self, text: str, *args: object) -> str:
        """Run Python code, whose ``sys.argv[1:]`` are ``args``, and return its output."""
        return self.run(self.python, "-P", "-c", text, *args, check=True).stdout

    def command(self, *words: object, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run an ``ociruntime`` command on the user's state directory."""
        return self.run(self.python, "-P", "-m", "ociruntime", "--root", self.state, *words, check=check)

    def configure(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the document of the bundle's config.json."""
        path = self.bundle / "config.json"
        document: dict[str, Any] = oci.RuntimeSpec.load(path).to_dict()
        change(document)
        path.write_text(oci.RuntimeSpec.load(document).to_json())


def _serves_users(python: str) -> bool:
    """Whether a user without privileges can run an interpreter and import the package with all that it needs."""
    imports = "import ociruntime.container, attrs, cattrs, cffi, jsonschema, pyseccomp, typing_extensions"
    command = [python, "-P", "-c", imports]
    try:
        return not subprocess.run(command, cwd="/", user=65534, group=65534, extra_groups=[], stderr=subprocess.DEVNULL).returncode
    except PermissionError:
        return False


@contextmanager
def interpreter_for_users() -> Iterator[str]:
    """An interpreter that users can run: this one, or one made where users may read it, with copies of the packages."""
    if os.geteuid() != 0 or _serves_users(sys.executable):
        yield sys.executable
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    base = next(
        (path for name in (f"python{version}", "python3") if (path := shutil.which(name, path="/usr/bin:/usr/local/bin"))), ""
    )
    with tempfile.TemporaryDirectory(prefix="ociruntime-python-", dir="/var/tmp") as environment:
        subprocess.run([base or sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        packages = Path(sysconfig.get_path("purelib", "venv", {"base": environment, "platbase": environment}))
        for directory in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            shutil.copytree(directory, packages, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pth"))
        shutil.copytree(Path(oci.__file__).parent, packages / "ociruntime", dirs_exist_ok=True)
        for entry in (Path(environment), *Path(environment).rglob("*")):
            if not entry.is_symlink():
                entry.chmod(entry.stat().st_mode | (0o555 if entry.is_dir() or entry.stat().st_mode & 0o100 else 0o444))
        python = f"{environment}/bin/python"
        assert _serves_users(python), f"no Python {version} that users can run: {sys.executable} is for root alone, as is {base}"
        yield python


def run_tests_as_user(
    python: str, prefix: str, *arguments: str, timeout: float = 10 * TIME_LIMIT, env: Mapping[str, str] | None = None
) -> None:
    """Run tests as a user without privileges, in a copy of their files that the user may read. They pass, and no process is left."""
    uid = UID + 40000  # of these tests alone, so that every process of this user is one that they have left
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as work:
        os.chmod(work, 0o755)
        shutil.copy(REPO / "pyproject.toml", work)
        copied = f"{work}/tests"
        shutil.copytree(REPO / "tests", copied, ignore=shutil.ignore_patterns("unit", "plan", "vm", "typing", "__pycache__"))
        home = f"{work}/home"
        os.mkdir(home, 0o700)
        os.chown(home, uid, uid)
        command = [python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={home}/pytest"]
        done = subprocess.run(
            [*command, *arguments], user=uid, group=uid, extra_groups=[], cwd=copied, stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, "XDG_RUNTIME_DIR": home, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
        print(done.stdout)
        assert done.returncode == 0, done.stdout[-20000:]
        wait_until(lambda: not processes_of(uid), "the end of the user's processes")


def processes_of(uid: int) -> list[str]:
    """Return the command lines of a user's processes."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid == uid:
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
    return found


@contextmanager
def temporary_user(make_bundle: MakeBundle, prefix: str, python: str) -> Iterator[User]:
    """Make the user's bundle and state directory, and delete the containers that are left in it at the end."""
    # Not in tmp_path: each session of pytest bars other users from the directories above that.
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as work:
        os.chmod(work, 0o755)
        spec = oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID).with_args(["sleep", "1000"])
        bundle = make_bundle(spec, name="of-a-user")
        user = User(python, Path(work), Path(shutil.move(bundle.path, work)))
        try:
            yield user
        finally:
            for directory in [entry for entry in user.state.iterdir() if (entry / "state.json").exists()]:
                user.command("delete", "--force", directory.name)
