"""The operations that are tried with faults, each as root and as a user, in a directory of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import ociruntime as oci
from ociruntime.files import read_mounts

NAME: Final = f"faults{os.getpid()}"
"""The container, and a part of the names of its cgroups."""
CALLERS: Final = ("root", "user")


class Place(NamedTuple):
    """Where the operations of a caller work. ``base`` belongs to it."""

    base: Path
    rootfs: Path
    sif: Path

    @property
    def state(self) -> Path:
        """State directory."""
        return self.base / "state"

    @property
    def scratch(self) -> Path:
        """TMPDIR, where upper layers are made."""
        return self.base / "tmp"

    @property
    def out(self) -> Path:
        """Where images are built, bundles are mounted and logs are written."""
        return self.base / "out"

    @property
    def bundle(self) -> Path:
        """A bundle of the caller."""
        return self.base / "bundle"

    def make(self, uid: int) -> None:
        """Make the directories, for a user."""
        own = (self.base, self.state, self.scratch, self.out, self.base / "run", self.base / "cache")
        for path in own:
            path.mkdir(mode=0o700, exist_ok=True)
            os.chown(path, uid, uid)
        shutil.copytree(self.rootfs, self.bundle / "rootfs", symlinks=True)
        spec = oci.RuntimeSpec.default(rootless=True, uid=uid, gid=uid) if uid else oci.RuntimeSpec.default()
        oci.Bundle.from_dir(self.bundle, spec.with_args(["sleep", "1000"]))
        for directory, _, files in os.walk(self.bundle):
            for entry in (directory, *(f"{directory}/{name}" for name in files)):
                os.chown(entry, uid, uid, follow_symlinks=False)

    def use(self) -> None:
        """Make this process use the directories."""
        os.environ.update(TMPDIR=str(self.scratch), XDG_CACHE_HOME=f"{self.base}/cache", XDG_RUNTIME_DIR=f"{self.base}/run")
        os.environ["HOME"] = str(self.base)
        tempfile.tempdir = str(self.scratch)  # Python does not make a file there to see whether it can

    def container(self) -> oci.Container:
        """Return the container that was prepared."""
        return oci.Container.load(NAME, state_root=self.state)


def _nothing(place: Place) -> None:
    """Prepare nothing."""


def _created(place: Place) -> None:
    oci.Container.create(NAME, place.bundle, state_root=place.state)


def _running(place: Place) -> None:
    oci.Container.run(NAME, place.bundle, state_root=place.state)


def _mounted(place: Place) -> None:
    oci.Bundle.from_sif(place.sif, place.out / "mounted")


def _uses(place: Place) -> None:
    """The container that was prepared still works."""
    assert place.container().exec(["true"]).returncode == 0, "the container does not work any more"


def _create(place: Place) -> object:
    oci.Container.create(NAME, place.bundle, state_root=place.state)
    return "created"


def _run(place: Place) -> object:
    bundle = oci.Bundle.load(place.bundle)
    return oci.run(
        bundle, ["echo", "it runs"], capture_output=True, text=True, state_root=place.state, container_id=NAME
    ).returncode


def _run_sif(place: Place) -> object:
    program = ["sh", "-c", "echo it runs >/written && cat /written"]
    return oci.run(place.sif, program, capture_output=True, text=True, state_root=place.state, container_id=NAME).returncode


def _network(place: Place) -> object:
    bundle = oci.Bundle.load(place.bundle)
    result = oci.run(bundle, ["true"], network="private", capture_output=True, state_root=place.state, container_id=NAME)
    return result.returncode


def _supervise(place: Place) -> object:
    bundle = oci.Bundle.load(place.bundle).with_args(["echo", "it runs"])
    with oci.Container.run(NAME, bundle, supervise=True, log_path=place.out / "log", state_root=place.state) as container:
        return container.wait(60)


def _exec(place: Place) -> object:
    return place.container().exec(["echo", "it runs"], capture_output=True).returncode


def _start(place: Place) -> object:
    place.container().start()
    return "started"


def _update(place: Place) -> object:
    place.container().update(pids=50)
    return "updated"


def _delete(place: Place) -> object:
    place.container().delete(force=True)
    return "deleted"


def _mount(place: Place) -> object:
    oci.Bundle.from_sif(place.sif, place.out / "mounted")
    return "mounted"


def _umount(place: Place) -> object:
    oci.Bundle.load(place.out / "mounted").umount(state_root=place.state)
    return "unmounted"


def _build(place: Place) -> object:
    oci.build_sif(place.out / "built.sif", place.rootfs)
    return "built"


class Operation(NamedTuple):
    """An operation of the library."""

    act: Callable[[Place], object]
    prepare: Callable[[Place], None] = _nothing
    holds: Callable[[Place], None] = _nothing
    """What must be true afterwards, with or without a failure."""
    callers: tuple[str, ...] = CALLERS


OPERATIONS: Final = {
    "create": Operation(_create),
    "start": Operation(_start, _created),
    "run": Operation(_run),
    "run a SIF": Operation(_run_sif),
    "run with a network": Operation(_network, callers=("user",)),
    "supervise": Operation(_supervise),
    "exec": Operation(_exec, _running, _uses),
    "update": Operation(_update, _running, _uses, callers=("root",)),
    "delete": Operation(_delete, _running),
    "mount": Operation(_mount),
    "umount": Operation(_umount, _mounted),
    "build": Operation(_build),
}


def clean(place: Place) -> None:
    """Do what a caller does after a failure: `delete --force`, `prune`, and `umount` of a bundle that is mounted."""
    for container in oci.Container.list(state_root=place.state):
        container.delete(force=True)
    mounted = place.out / "mounted"
    if (mounted / "config.json").exists():
        oci.Bundle.load(mounted).umount(state_root=place.state)
    oci.prune(state_root=place.state)
    for name in ("built.sif", "log"):
        (place.out / name).unlink(missing_ok=True)


def files_of(place: Place) -> list[str]:
    """Return the files that are left, but the locks and caches that belong to a state directory."""
    found = []
    for top in (place.state, place.scratch, place.out, place.base / "run"):
        for directory, names, files in os.walk(top):
            names[:] = [name for name in names if name not in (".seccomp", ".filler")]
            found += [f"{directory}/{name}" for name in files]
            if (
                not names
                and not files
                and directory != str(top)
                and Path(directory).name not in (".runs", ".bundles", "ociruntime")
            ):
                found.append(directory)
    return [path.removeprefix(f"{place.base}/") for path in sorted(found)]


def mounts_of(place: Place) -> list[str]:
    """Return the mount points that are left."""
    own = {str(path) for path in (place.state, place.scratch, place.out)}
    return sorted({mount.point for mount in read_mounts() if mount.point.startswith(f"{place.base}/")} - own)
