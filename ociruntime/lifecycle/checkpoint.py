"""Checkpoint and restore of containers by criu, a program of the host (criu(8)).

The image is a directory with criu's files and `DESCRIPTORS`, which has the same form as runc's. What belongs to the host is outside
of it, and the restored container gets the host's again: the root filesystem, the sources of bind mounts, and the standard streams.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..arguments import shown
from ..engine import cgroup
from ..engine.execution import Execution
from ..engine.launch import Preserved, own_child
from ..engine.processes import KILL_TIMEOUT, ended_within, exit_of, not_dead, wait_killed
from ..errors import BundleError, UnsupportedError
from ..files import read_mounts, replace_file
from ..host import Host
from ..interrupts import uninterruptible, waiting
from ..options import CheckpointOptions, CreateOptions, RestoreOptions
from ..plan.compile import EXTERNAL_NETWORK, compile_restore
from ..spec import RuntimeSpec
from ..spec.base import destination_in_root, is_below
from ..store import Entry, StateRecord, StateStore, Status, check_id
from .create import OWN_STREAMS, Created, Creation, Prepared
from .status import allowed, first_process

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..engine.launch import Init
    from ..files import MountInfo
    from ..spec import Mount

__all__ = ["DESCRIPTORS", "CheckpointOptions", "RestoreOptions", "checkpoint", "restore"]

DESCRIPTORS: Final = "descriptors.json"
"""The file in an image with what stdin, stdout and stderr were: a list of names, as criu takes them with ``--inherit-fd``."""
CRIU: Final = "criu"
"""The program, which is looked up in $PATH."""
_PID_FILE: Final = "criu.pid"
_NOISE: Final = re.compile(r"util\.c:\d+\): (exited, status|execvp|ip6?tables)|ip6?tables")
"""Errors in a log of criu that do not end it: criu goes on without a program that it looks for."""
_JOINED: Final = frozenset({"network", "ipc", "uts"})
"""The types of existing namespaces into which criu restores processes."""
_POLL: Final = 0.1


# ---- criu ----


def _find_criu(operation: str) -> str:
    """Return the path of criu. Raises UnsupportedError."""
    if os.geteuid() != 0:
        raise UnsupportedError(f"cannot {operation} a container as an unprivileged user: criu needs root; run this as root")
    program = shutil.which(CRIU)
    if program is None:
        raise UnsupportedError(f"cannot {operation} a container: criu is not installed; install the package criu")
    return program


def _directories(options: CheckpointOptions | RestoreOptions, log: str) -> list[str]:
    work = options.work_path or options.image_path
    return ["--images-dir", options.image_path, "--work-dir", work, "--log-file", log, "-v4"]


def _flags(options: CheckpointOptions | RestoreOptions) -> list[str]:
    """Return the options that criu takes by the same names."""
    names = ("tcp_established", "ext_unix_sk", "shell_job", "file_locks", "auto_dedup")
    words = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    return [*words, f"--manage-cgroups={options.manage_cgroups_mode}"]


def _failure(what: str, log: str) -> UnsupportedError:
    """Return the error of a criu that has failed, with the reason from its log."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            errors = [line.rstrip() for line in file if "Error (" in line]
    except OSError:
        return UnsupportedError(f"{what}: criu failed and wrote no log to {log}; run 'criu check'")
    reasons = [line for line in errors if not _NOISE.search(line)] or errors or ["it does not say why"]
    reason = re.sub(r"^.*?Error \([^)]*\): *", "", reasons[0])
    return UnsupportedError(f"{what}: criu: {reason}; see {log}")


# ---- what is outside of an image ----


def _is_bind(mount: Mount) -> bool:
    return mount.type == "bind" or not {"bind", "rbind"}.isdisjoint(mount.options or ())


def _owner(spec: RuntimeSpec, point: str) -> Mount | None:
    """Return the mount of a configuration that is mounted at a path in the container, or above it."""
    places = [(destination_in_root(mount.destination), mount) for mount in spec.mounts or ()]
    above = [(len(place), number) for number, (place, _) in enumerate(places) if is_below(point, place)]
    return places[max(above)[1]][1] if above else None


def _external_points(spec: RuntimeSpec, mounts: Sequence[MountInfo]) -> list[str]:
    """Return those mount points in a container whose mounts are bind mounts of its configuration, or mounts below one."""
    points = dict.fromkeys(mount.point for mount in mounts if mount.point != "/")
    return [point for point in points if (owner := _owner(spec, point)) is not None and _is_bind(owner)]


def _external_sources(spec: RuntimeSpec, bundle: str, mounts: Sequence[MountInfo]) -> Iterator[tuple[str, str]]:
    """Yield where each mount from the host is mounted in the container, and its path on the host.

    Args:
        mounts: those of the host, which a recursive bind mount takes along.
    """
    for mount in spec.mounts or ():
        if not _is_bind(mount) or mount.source is None:
            continue
        destination = destination_in_root(mount.destination)
        source = os.path.realpath(os.path.join(bundle, mount.source))
        yield destination, source
        if "rbind" in (mount.options or ()):
            for other in mounts:
                if other.point != source and is_below(other.point, source):
                    yield os.path.normpath(f"{destination}/{os.path.relpath(other.point, source)}"), other.point


def _external(point: str, name: str) -> str:
    """Return the argument of ``--external`` for a mount. Raises UnsupportedError: criu would misread the path."""
    if "]:" in point:
        raise UnsupportedError(
            f"mount point {shown(point)}: criu cannot tell it from what is mounted there; use a path without ']:'"
        )
    return f"mnt[{point}]:{name}"


def _descriptors(pid: int) -> list[str]:
    """Return the names by which criu knows the standard streams of a process.

    Those of pipes are needed, and those of files that are not in the container. Others are paths, for people.
    """
    with open(f"/proc/{pid}/mountinfo", "rb") as table:
        inside = {int(line.split(None, 1)[0]) for line in table}
    names = []
    for fd in range(3):
        try:
            target, info = os.readlink(f"/proc/{pid}/fd/{fd}"), os.stat(f"/proc/{pid}/fd/{fd}")
            with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
                number = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
        except FileNotFoundError:
            names.append("")  # it is closed
            continue
        is_file = target.startswith("/") and not target.startswith("/dev/pts/")
        names.append(f"file[{number:x}:{info.st_ino:x}]" if is_file and number not in inside else target)
    return names


def _external_network(spec: RuntimeSpec, pid: int) -> list[str]:
    """Return the network namespace as ``--external`` of criu takes it, if an image refers to it, because it was joined."""
    if not any(
        namespace.path and namespace.type == "network" for namespace in (spec.linux.namespaces if spec.linux else None) or ()
    ):
        return []
    return [f"net[{os.stat(f'/proc/{pid}/ns/net').st_ino}]:{EXTERNAL_NETWORK}"]


def _is_inherited(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"pipe:\[[0-9]+\]|file\[[0-9a-f]+:[0-9a-f]+\]", name) is not None


def _read_descriptors(image_path: str) -> list[str]:
    """Return what the standard streams were. Raises UnsupportedError: the directory has no image, or not a whole one."""
    path = f"{image_path}/{DESCRIPTORS}"
    try:
        with open(path, encoding="utf-8") as file:
            names = json.load(file)
    except FileNotFoundError:
        raise UnsupportedError(f"image_path {image_path}: it is not the image of a container: it has no {DESCRIPTORS}") from None
    except ValueError as error:
        raise UnsupportedError(f"{path} is damaged: {error}; make the checkpoint again") from error
    if not isinstance(names, list):
        raise UnsupportedError(f"{path} is damaged: a list is needed; make the checkpoint again")
    return [name if _is_inherited(name) else "" for name in names[:3]]


# ---- checkpoint ----


@uninterruptible()
def checkpoint(entry: Entry, own: int, options: CheckpointOptions) -> None:
    """Write a container to an image. Errors are those of `Container.checkpoint`.

    A signal is handled when criu has ended: the processes of the container are in its hands until then.

    Args:
        own: the pidfd of the init process in the process that created it; -1 in others.
    """
    with allowed(entry, "checkpoint", Status.RUNNING, Status.PAUSED) as document:
        program = _find_criu("checkpoint")
        spec = RuntimeSpec.load(f"{entry.directory}/config.json")
        mounts = list(read_mounts(document["pid"]))
        _check_restorable(entry, document, spec, mounts)
        for path in (options.image_path, options.work_path):
            if path is not None:
                os.makedirs(path, mode=0o700, exist_ok=True)
        command = dump_command(program, document, spec, mounts, options)
        names = _descriptors(document["pid"])
        outside = [*_external_network(spec, document["pid"]), *(name for name in names if name.startswith("file["))]
        command += [word for name in outside for word in ("--external", name)]
        pidfd = first_process(document, own)
        try:
            log = f"{options.work_path or options.image_path}/dump.log"
            _run_criu(command, f"cannot checkpoint container {entry.id!r}", log)
            if options.pre_dump:
                return
            if not options.leave_running and pidfd is not None and not ended_within(pidfd, KILL_TIMEOUT):
                raise TimeoutError(errno.ETIMEDOUT, not_dead(document["pid"], f"the init process of container {entry.id!r}"))
            replace_file(Path(options.image_path, DESCRIPTORS), json.dumps(names).encode(), mode=0o600)
        finally:
            if pidfd is not None:
                os.close(pidfd)


def dump_command(
    program: str, document: StateRecord, spec: RuntimeSpec, mounts: Sequence[MountInfo], options: CheckpointOptions
) -> list[str]:
    """Return the command line of criu for a checkpoint, without the standard streams.

    Args:
        mounts: those in the container.
    """
    operation = "pre-dump" if options.pre_dump else "dump"
    command = [program, operation, "--tree", str(document["pid"]), *_directories(options, "dump.log"), *_flags(options)]
    command += ["--root", document["rootfs"], "--evasive-devices", "--link-remap"]
    for point in _external_points(spec, mounts):
        command += ["--external", _external(point, point)]
    if options.parent_path is not None:
        command += ["--prev-images-dir", os.path.relpath(options.parent_path, options.image_path)]
    if options.parent_path is not None or options.pre_dump:
        command.append("--track-mem")
    if options.leave_running and not options.pre_dump:
        command.append("--leave-running")
    if (freezer := cgroup.freezer(document.get("cgroups", []))) is not None:
        command += ["--freeze-cgroup", freezer]  # it is paused, and ptrace(2) would wait for the end of the pause
    if shutil.which("iptables-restore") is None:
        command += ["--network-lock", "nftables"]  # in the container's network, while its connections are dumped
    return command


def _check_restorable(entry: Entry, document: StateRecord, spec: RuntimeSpec, mounts: Sequence[MountInfo]) -> None:
    """Raise UnsupportedError for a container that could not be restored."""
    what = f"cannot checkpoint container {entry.id!r}"
    if document.get("terminal") or (spec.process is not None and spec.process.terminal):
        raise UnsupportedError(f"{what}: it has a terminal, whose other end criu cannot restore; use a container without one")
    if "network" in document:
        raise UnsupportedError(f"{what}: its network is connected by another program; use another network than 'private'")
    _check_namespaces(what, spec)
    root = next((mount for mount in mounts if mount.point == "/"), None)
    device = os.stat(document["rootfs"]).st_dev
    if root is None or root.device != f"{os.major(device)}:{os.minor(device)}":
        raise UnsupportedError(
            f"{what}: its root filesystem is mounted in the container alone; run it from a bundle whose rootfs has the files, as "
            "'ociruntime mount' makes one for root"
        )


def _check_namespaces(what: str, spec: RuntimeSpec) -> None:
    for index, namespace in enumerate((spec.linux.namespaces if spec.linux else None) or ()):
        if namespace.path and namespace.type not in _JOINED:
            raise UnsupportedError(
                f"{what}: $.linux.namespaces[{index}].path: criu cannot restore a process into an existing {namespace.type} "
                "namespace; use a new one"
            )


def _run_criu(command: Sequence[str], what: str, log: str) -> None:
    """Run criu to its end, in a session of its own, which no terminal interrupts. Raises UnsupportedError."""
    streams = subprocess.DEVNULL
    result = subprocess.run(command, stdin=streams, stdout=streams, stderr=streams, start_new_session=True, check=False)
    if result.returncode != 0:
        raise _failure(what, log)


# ---- restore ----


class Restoration(Execution):
    """An execution whose init becomes criu, and which goes on with the init process that criu has restored.

    Args:
        what: what fails if criu fails, for the error.
        log: the log of criu.
        pid_file: where criu writes the pid of the init process.
    """

    def __init__(self, *args: object, what: str, log: str, pid_file: str, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._what, self._log, self._pid_file = what, log, pid_file

    def begin(self, meanwhile: Callable[[], object] | None = None) -> Init:
        """Restore the container, and return its init process. Raises StepError, UnsupportedError."""
        super().begin(meanwhile)
        try:
            super().finish()
            init = self.init
            with waiting():
                while not ended_within(init.pidfd, _POLL):
                    pass
            if exit_of(init.pid, init.pidfd).code != 0:
                raise _failure(self._what, self._log)
            with open(self._pid_file, encoding="ascii") as file:
                init.follow(own_child(int(file.read())))
            os.unlink(self._pid_file)
        except BaseException:
            self.abort()
            raise
        return init

    def finish(self) -> None:
        """Do nothing: the restored processes run already."""

    def abort(self) -> None:
        """Kill the init, or criu and the processes that it has restored, and undo the host steps. A second call has no effect."""
        restored = list(self._restored()) if self._init is not None else []
        try:
            super().abort()
        finally:
            for pid, pidfd in restored:
                wait_killed(pid, pidfd, "a restored process")
                exit_of(pid, pidfd)
                os.close(pidfd)

    def _restored(self) -> Iterator[tuple[int, int]]:
        """Yield the children of this process that criu has made, with their pidfds, and kill all processes in the cgroups."""
        for pid in cgroup.processes(self.plan.cgroups) - {self.init.pid}:
            try:
                yield pid, own_child(pid)
            except ProcessLookupError:
                continue  # it has another parent
        cgroup.kill(self.plan.cgroups)


@uninterruptible(undo=Created.discard)
def restore(container_id: str, bundle: Bundle, options: RestoreOptions, *, stdio: Sequence[int] = OWN_STREAMS) -> Created:
    """Restore a container from an image. Errors are those of `Container.restore`; after each, nothing of the container is left.

    Args:
        stdio: file descriptors for its stdin, stdout and stderr.
    """
    store, what = StateStore(options.state_root), f"cannot restore container {check_id(container_id)!r}"
    program = _find_criu("restore")
    names = _read_descriptors(options.image_path)
    _check_namespaces(what, bundle.spec)
    if options.work_path is not None:
        os.makedirs(options.work_path, mode=0o700, exist_ok=True)
    creating = CreateOptions(state_root=options.state_root, pid_file=options.pid_file, cgroup_manager=options.cgroup_manager)
    with Creation(store, container_id, bundle.path, creating, start=True) as creation:
        opened, own = creation.open(bundle)
        if own is not None:
            raise UnsupportedError(
                f"{what}: its root filesystem would be mounted in the container alone; give a bundle with its files"
            )
        pid_file = f"{creation.entry.directory}/{_PID_FILE}"
        sources = dict(_external_sources(opened.spec, str(opened.path), list(read_mounts())))
        plan = compile_restore(
            opened.spec,
            Host.probe(),
            restore_command(program, opened, names, pid_file, options, sources),
            bundle=str(opened.path),
            sources=sources,
            container_id=container_id,
            manager=options.cgroup_manager,
            places_cgroups=options.manage_cgroups_mode != "ignore",
        )
        if not opened.rootfs.is_dir():
            raise BundleError(f"{opened.rootfs}: it is not a directory")
        prepared = Prepared(bundle=opened, launched=opened, options=creating)
        creation.record(plan, prepared)
        log = f"{options.work_path or options.image_path}/restore.log"
        make = partial(Restoration, what=what, log=log, pid_file=pid_file)
        inherited = Preserved(sum(step.op == "inherit" for step in plan.steps), [])
        execution = creation.launch(plan, prepared, stdio, inherited, None, None, make)
        created = creation.commit(execution, prepared)
    return creation.follow_up(created)


def restore_command(
    program: str,
    bundle: Bundle,
    names: Sequence[str],
    pid_file: str,
    options: RestoreOptions,
    sources: Mapping[str, str],
) -> list[str]:
    """Return the command line of criu for a restore.

    Args:
        names: what the standard streams were. Each is replaced by the stream of criu.
        pid_file: gets the pid of the init process.
        sources: the mounts from the host, by their places in the container.
    """
    command = [program, "restore", *_directories(options, "restore.log"), *_flags(options)]
    command += ["--root", str(bundle.rootfs), "--evasive-devices", "--link-remap"]
    command += ["--restore-detached", "--restore-sibling", "--pidfile", pid_file]
    for point, source in sources.items():
        command += ["--external", _external(point, source)]
    for fd, name in enumerate(names):
        if name and name not in names[:fd]:
            command += ["--inherit-fd", f"fd[{fd}]:{name}"]
    return command
