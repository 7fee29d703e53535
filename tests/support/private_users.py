"""An unprivileged user for tests that run as root: with or without subordinate ids, and with or without FUSE.

The user is one of the machine in a mount namespace of its own, where /etc/passwd, /etc/subuid and /dev/fuse are what the test needs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .processes import is_running
from .waiting import TIME_LIMIT, wait_until

UID: Final = 30_000_000 + os.getpid()
FIRST: Final = 40_000_000
COUNT: Final = 65536
"""The subordinate ids of the user."""
STATE: Final = f"/tmp/ociruntime-{UID}"
"""Its default state directory."""


def private_files(directory: Path, *, subordinate: bool, fuse: bool) -> list[str]:
    """Make the files of a machine with the user. Return the shell commands that mount them, for a mount namespace of its own."""
    files = directory / "etc"
    files.mkdir()
    commands = []
    texts = {"passwd": Path("/etc/passwd").read_text() + f"u{UID}:x:{UID}:{UID}::/nonexistent:/bin/sh\n"}
    if not os.path.lexists("/etc/mtab"):  # a minimal system; others have it as this link
        layers = [directory / name for name in ("etc-upper", "etc-work")]
        for layer in layers:
            layer.mkdir()
        (layers[0] / "mtab").symlink_to("../proc/self/mounts")
        commands.append(f"mount -t overlay overlay -o lowerdir=/etc,upperdir={layers[0]},workdir={layers[1]} /etc")
    if subordinate:
        commands.append("touch /etc/subuid /etc/subgid")  # mount points, which a minimal system may lack
        texts |= dict.fromkeys(("subuid", "subgid"), f"u{UID}:{FIRST}:{COUNT}\n")
    for name, text in texts.items():
        (files / name).write_text(text)
        commands.append(f"mount --bind {files}/{name} /etc/{name}")
    os.mknod(files / "fuse", 0o20666, os.makedev(10, 229))
    os.chmod(files / "fuse", 0o666 if fuse else 0o600)
    if os.path.exists("/dev/fuse"):
        commands.append(f"mount --bind {files}/fuse /dev/fuse")
    return commands


class User:
    """A user with a directory ``home``. No variable of its environment names a directory."""

    def __init__(self, home: Path, python: str, *, subordinate: bool, fuse: bool) -> None:
        self.home = home
        self.python = python
        self.subordinate = subordinate
        self.fuse = fuse
        self.groups: tuple[int, ...] = ()
        """Supplementary groups of what is started."""
        self.cgroups: tuple[Path, ...] = ()
        """Where it is started, a cgroup in each of some hierarchies."""
        commands = private_files(home.parent, subordinate=subordinate, fuse=fuse)
        script = "\n".join(["set -e", *commands, "echo ready", "exec cat"])
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    def start(self, *args: object, stdout: int, stderr: int, stdin: int = subprocess.DEVNULL, **env: str) -> subprocess.Popen[str]:
        """Start the interpreter as the user."""
        join = "".join(f"echo 0 >{cgroup}/cgroup.procs && " for cgroup in self.cgroups)
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "sh", "-c", f'{join}cd "$1" && shift && exec "$@"', "sh"]
        groups = f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups"
        become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", groups]
        environment = ["env", "-i", *(f"{name}={value}" for name, value in {"PATH": os.environ["PATH"], **env}.items())]
        command = [*map(str, (*enter, self.home, *become, *environment, self.python, "-P", *args))]
        return subprocess.Popen(command, cwd="/", stdin=stdin, stdout=stdout, stderr=stderr, text=True)

    def run(self, *args: object, check: bool = True, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter as the user."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # a container would hold a pipe open
            process = self.start(*args, stdin=subprocess.PIPE, stdout=out.fileno(), stderr=err.fileno(), **env)
            try:
                process.communicate(stdin, timeout=2 * TIME_LIMIT)
            finally:
                process.kill()
                process.wait()
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess([*map(str, args)], process.returncode, out.read(), err.read())
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def command(self, *args: object, check: bool = True, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``ociruntime`` as the user."""
        return self.run("-m", "ociruntime", *args, check=check, stdin=stdin, **env)

    def mounts(self) -> list[str]:
        """Return the mount points below the home directory."""
        lines = Path(f"/proc/{self._holder.pid}/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if f"{self.home}/" in line]

    def processes(self) -> list[int]:
        """Return the running processes of the user."""
        found = []
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended
            ids = {int(uid) for uid in lines["Uid"].split()}
            if any(uid == UID or FIRST <= uid < FIRST + COUNT for uid in ids) and is_running(int(status.parent.name)):
                found.append(int(status.parent.name))
        return found

    def leftovers(self) -> list[object]:
        """Return what is left of containers and mounted bundles, when processes have had time to end."""
        try:
            wait_until(lambda: not self.processes(), "the end of the user's processes", timeout=5)
        except AssertionError:
            pass  # they are reported
        ephemeral = [path for path in _temporary() if str(path) != STATE]
        states = [path for path in Path(STATE).glob("*") if path.name[0] != "."] if os.path.isdir(STATE) else []
        records = list(Path(STATE, ".bundles").glob("*"))
        return [*self.mounts(), *self.processes(), *ephemeral, *states, *records]

    def close(self) -> None:
        """Remove every container of the user, and what a failed test left."""
        if os.path.isdir(STATE) and os.lstat(STATE).st_uid == UID:
            for container in json.loads(self.command("list", "--format", "json").stdout) or []:
                self.command("delete", "--force", container["id"])
            shutil.rmtree(STATE)
        for pid in self.processes():
            os.kill(pid, 9)
        self._holder.communicate()
        for path in _temporary():
            shutil.rmtree(path)


def _temporary() -> list[Path]:
    """Return the directories of the user in /tmp. Those of other users may be removed meanwhile."""
    found = []
    for path in Path("/tmp").glob("ociruntime-*"):
        try:
            found += [path] if path.lstat().st_uid == UID else []
        except FileNotFoundError:
            continue
    return found


def give(path: Path) -> None:
    """Give a directory tree to the user."""
    for directory, _, files in os.walk(path):
        os.chown(directory, UID, UID)
        for file in files:
            os.chown(f"{directory}/{file}", UID, UID, follow_symlinks=False)


@contextmanager
def new_user(python: str, *, subordinate: bool, fuse: bool = False) -> Iterator[User]:
    """Make a user with an empty home, for the block."""
    with tempfile.TemporaryDirectory(prefix="ociruntime-user-", dir="/var/tmp") as name:
        os.chmod(name, 0o755)
        home = Path(name, "home")
        home.mkdir()
        give(home)
        user = User(home, python, subordinate=subordinate, fuse=fuse)
        try:
            yield user
        finally:
            user.close()
