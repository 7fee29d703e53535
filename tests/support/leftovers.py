"""What a test leaves behind, and its removal.

Mounts and loop devices belong to a test by its directory. Cgroups and processes belong to it by its prefix: the fixture `prefix`, with
which all its container ids begin.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import ociruntime as oci
from ociruntime.files import read_mounts

from .processes import child_processes, find_processes, is_running
from .waiting import wait_until


def mounts_below(path: Path) -> list[str]:
    return sorted(mount.point for mount in read_mounts() if mount.point.startswith(f"{path}/"))


def loops_below(path: Path) -> list[str]:
    """Return the loop devices whose file is below a directory."""
    found = []
    for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            name = attribute.read_text().strip()
        except OSError:
            continue  # detached meanwhile
        if name.startswith(f"{path}/"):
            found.append(f"/dev/{attribute.parts[3]}: {name}")
    return sorted(found)


def cgroups_of(prefix: str) -> list[str]:
    """Return the cgroups of a test's containers, in all hierarchies."""
    roots = [hierarchy.mountpoint for hierarchy in oci.Host.probe().hierarchies]
    return sorted(f"{root}/{name}" for root in roots for name in os.listdir(root) if prefix in name)


def assert_nothing_left(state_root: Path, prefix: str) -> None:
    """Assert that no container of the test exists, and no cgroup."""
    assert oci.Container.list(state_root=state_root) == []
    assert cgroups_of(prefix) == []


def remove_leftovers(directory: Path, prefix: str) -> None:
    """Remove what a failed test left behind. Every step is done, also if another one raises."""
    with ExitStack() as stack:
        stack.callback(_detach_loops, directory)
        stack.callback(_unmount, directory)
        stack.callback(_remove_cgroups, prefix)
        stack.callback(_kill_processes, prefix)
        for state_root in {path.parent.parent for path in directory.glob("*/*/state.json")}:
            stack.callback(oci.prune, state_root=state_root)
            for container in oci.Container.list(state_root=state_root):
                stack.callback(container.delete, force=True)


def _kill_processes(prefix: str) -> None:
    found = {pid for file in ("cmdline", "environ", "cgroup") for pid in find_processes(prefix, file)} - {os.getpid()}
    children = child_processes()
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if pid in children:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
    wait_until(lambda: not any(map(is_running, found)), f"the end of the processes {sorted(found)}")


def _remove_cgroups(prefix: str) -> None:
    for top in cgroups_of(prefix):
        for path, _, _ in os.walk(top, topdown=False):
            with suppress(FileNotFoundError):
                os.rmdir(path)


def _unmount(directory: Path) -> None:
    for point in reversed(mounts_below(directory)):
        subprocess.run(["umount", "-l", point], check=True)


def _detach_loops(directory: Path) -> None:
    for line in loops_below(directory):
        subprocess.run(["losetup", "-d", line.partition(":")[0]], check=False)  # it may be detached by now
