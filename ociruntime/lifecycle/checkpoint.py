"""Checkpoint and restore of containers by criu, a program of the host (criu(8)).

The image is a directory with criu's files and `DESCRIPTORS`, which has the same form as runc's. What belongs to the host is outside
of it, and the restored container gets the host's again: the root filesystem, the sources of bind mounts, the standard streams, and
the receiver of its terminal.

criu serves one request, which it gets over a socket as a protocol buffer (``criu swrk``; images/rpc.proto of criu). Its command
line could not hand out the master of a terminal.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from ..arguments import shown
from ..engine import cgroup
from ..engine.execution import Execution
from ..engine.launch import Preserved, own_child
from ..engine.processes import KILL_TIMEOUT, ended_within, exit_of, not_dead, wait_killed
from ..errors import BundleError, UnsupportedError
from ..files import OwnDescriptor, forking, read_mounts, replace_file
from ..host import Host
from ..interrupts import uninterruptible, waiting
from ..options import CheckpointOptions, CreateOptions, RestoreOptions
from ..plan.compile import CRIU_NETWORK, compile_restore
from ..spec import RuntimeSpec
from ..spec.base import destination_in_root, is_below
from ..store import Entry, StateRecord, StateStore, Status, check_id
from .create import OWN_STREAMS, Created, Creation, Prepared, check_receiver
from .status import allowed, first_process

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..engine.launch import Init
    from ..files import MountInfo
    from ..plan import Plan
    from ..spec import Mount

__all__ = ["DESCRIPTORS", "CheckpointOptions", "RestoreOptions", "checkpoint", "restore"]

DESCRIPTORS: Final = "descriptors.json"
"""The file in an image with what stdin, stdout and stderr were: a list of names, as criu takes them with ``--inherit-fd``."""
CRIU: Final = "criu"
"""The program, which is looked up in $PATH."""
EXTERNAL_NETWORK: Final = "extRootNetNS"
"""The name by which an image of criu refers to a network namespace that it does not contain, as others call it too."""
_NOISE: Final = re.compile(r"util\.c:\d+\): (exited, status|execvp|ip6?tables)|ip6?tables")
"""Errors in a log of criu that do not end it: criu goes on without a program that it looks for."""
_JOINED: Final = frozenset({"network", "ipc", "uts"})
"""The types of existing namespaces into which criu restores processes."""
_POLL: Final = 0.1
_DUMP_LOG, _RESTORE_LOG = "dump.log", "restore.log"


# ---- messages of criu ----

Value: TypeAlias = "bool | int | str | bytes | tuple[Value | None, ...] | list[Value]"
"""The value of a field: a number, a string, an encoded message, a message whose fields have the numbers from 1 on, or the values
of a repeated field."""
Request: TypeAlias = dict[str, Value]
"""The options of a request, by the names of ``criu_opts``."""

_OPTIONS: Final = {
    "images_dir_fd": 1,
    "pid": 2,
    "leave_running": 3,
    "ext_unix_sk": 4,
    "tcp_established": 5,
    "evasive_devices": 6,
    "shell_job": 7,
    "file_locks": 8,
    "log_level": 9,
    "log_file": 10,
    "notify_scripts": 12,
    "root": 13,
    "parent_img": 14,
    "track_mem": 15,
    "auto_dedup": 16,
    "work_dir_fd": 17,
    "link_remap": 18,
    "cg_root": 25,
    "rst_sibling": 26,
    "inherit_fd": 27,
    "manage_cgroups_mode": 34,
    "external": 37,
    "join_ns": 39,
    "freeze_cgroup": 44,
    "orphan_pts_master": 50,
    "network_lock": 64,
}
"""The field numbers of options."""
_CGROUPS_MODES: Final = {"ignore": 0, "soft": 3, "full": 4, "strict": 5}
_NFTABLES: Final = 2
_TERMINAL: Final = "orphan-pts-master"
"""The notification that brings the master of a terminal."""
_REPLY_SIZE: Final = 1 << 16


class Kind(IntEnum):
    """What a request asks for and a reply answers (``criu_req_type``)."""

    DUMP = 1
    RESTORE = 2
    NOTIFY = 6
    PRE_DUMP = 13
    """A pre-dump after which criu ends."""


class Reply(NamedTuple):
    """A message of criu (``criu_resp``)."""

    kind: int
    success: bool
    pid: int = 0
    """The pid of the restored init process."""
    event: str = ""
    """What a notification is about. criu waits for the answer."""
    reason: str = ""
    """The first error, if criu tells it."""


def encode_request(kind: Kind, request: Request) -> bytes:
    """Return a request for criu."""
    return _encode([(1, kind), (2, _encode((_OPTIONS[name], value) for name, value in request.items()))])


def _encode(fields: Iterable[tuple[int, Value | None]]) -> bytes:
    """Return a message with these fields. One whose value is None is absent."""
    return b"".join(_encode_field(number, value) for number, value in fields if value is not None)


def _encode_field(number: int, value: Value) -> bytes:
    if isinstance(value, list):
        return b"".join(_encode_field(number, one) for one in value)
    if isinstance(value, int):
        return _encode_number(number << 3 | _NUMBER) + _encode_number(value)
    data = _encode(enumerate(value, 1)) if isinstance(value, tuple) else os.fsencode(value)
    return _encode_number(number << 3 | _BYTES) + _encode_number(len(data)) + data


def _encode_number(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


_NUMBER, _BYTES = 0, 2
_FIXED: Final = {1: 8, 5: 4}
"""The sizes of numbers that are not encoded by `_encode_number`, by the type of the field."""
_ACKNOWLEDGEMENT: Final = _encode([(1, Kind.NOTIFY), (3, True)])


def decode_reply(data: bytes) -> Reply:
    """Return a message of criu. Raises ValueError: it is not one."""
    fields = _decode(data)
    if not {1, 2} <= fields.keys():
        raise ValueError("it has no type or no result")
    restored, notified = _decode(_bytes(fields, 4)), _decode(_bytes(fields, 5))
    event, reason = (_bytes(message, number).decode("utf-8", "replace") for message, number in ((notified, 1), (fields, 9)))
    return Reply(_number(fields, 1), bool(_number(fields, 2)), _number(restored, 1), event, reason)


def _decode(data: bytes) -> dict[int, int | bytes]:
    """Return the fields of a message by their numbers. Raises ValueError."""
    fields: dict[int, int | bytes] = {}
    at = 0
    while at < len(data):
        tag, at = _decode_number(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _NUMBER:
            fields[number], at = _decode_number(data, at)
            continue
        if kind == _BYTES:
            size, at = _decode_number(data, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"field {number} has the unknown type {kind}")
        if size > len(data) - at:
            raise ValueError(f"field {number} is longer than the message")
        fields[number] = data[at : at + size]
        at += size
    return fields


def _decode_number(data: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where it ends. Raises ValueError."""
    value = 0
    for shift in range(0, 64, 7):
        if at == len(data):
            raise ValueError("it ends within a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] <= 0x7F:
            return value, at
    raise ValueError("it has a number of more than 64 bits")


def _number(fields: Mapping[int, int | bytes], number: int) -> int:
    if not isinstance(value := fields.get(number, 0), int):
        raise ValueError(f"field {number} is not a number")
    return value


def _bytes(fields: Mapping[int, int | bytes], number: int) -> bytes:
    if not isinstance(value := fields.get(number, b""), bytes):
        raise ValueError(f"field {number} is a number")
    return value


# ---- criu ----


def _find_criu(operation: str) -> str:
    """Return the path of criu. Raises UnsupportedError."""
    if os.geteuid() != 0:
        raise UnsupportedError(f"cannot {operation} a container as an unprivileged user: criu needs root; run this as root")
    program = shutil.which(CRIU)
    if program is None:
        raise UnsupportedError(f"cannot {operation} a container: criu is not installed; install the package criu")
    return program


@contextmanager
def _directories(options: CheckpointOptions | RestoreOptions, root: str = "") -> Iterator[Mapping[str, int]]:
    """Yield the options for the directories. criu opens them through the descriptors of this process. Raises OSError.

    Args:
        root: the root directory of criu.
    """
    opened: dict[str, int] = {}
    try:
        for name, path in (("images_dir_fd", options.image_path), ("work_dir_fd", options.work_path or options.image_path)):
            opened[name] = os.open(f"{root}{os.path.realpath(path)}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)


def _shared_options(options: CheckpointOptions | RestoreOptions, log: str, *, terminal: bool) -> Request:
    """Return the options that a checkpoint and a restore have in common.

    Args:
        terminal: whether the container has a terminal, whose master is outside of it.
    """
    names = ("tcp_established", "ext_unix_sk", "shell_job", "file_locks", "auto_dedup")
    return {
        **{name: True for name in names if getattr(options, name)},
        **({"orphan_pts_master": True} if terminal else {}),
        "manage_cgroups_mode": _CGROUPS_MODES[options.manage_cgroups_mode],
        "log_level": 4,
        "log_file": log,
        "evasive_devices": True,
        "link_remap": True,
    }


def _open_channel() -> tuple[socket.socket, OwnDescriptor]:
    """Return two connected sockets, for this process and for criu."""
    with forking:
        channel, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return channel, OwnDescriptor(end.detach())


def _send(channel: socket.socket, message: bytes, what: str) -> None:
    """Send a message to criu. Raises UnsupportedError: the message has too many mounts."""
    try:
        channel.send(message)
    except BrokenPipeError:
        pass  # it has ended, which `_receive` finds
    except OSError as error:
        raise UnsupportedError(
            f"{what}: the request to criu, of {len(message)} bytes, cannot be sent: {error.strerror}; use fewer bind mounts"
        ) from error


def _receive(channel: socket.socket, what: str) -> tuple[Reply | None, int]:
    """Return the next message of criu, if there is one before its end, and the file descriptor that came with it, or -1.

    Raises:
        UnsupportedError: criu does not follow the protocol.
    """
    try:
        data, fds, flags, _ = socket.recv_fds(channel, _REPLY_SIZE, 1, socket.MSG_CMSG_CLOEXEC)
    except (BlockingIOError, ConnectionResetError):
        return None, -1
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("it is too long")
        reply = decode_reply(data) if data else None
        if fds and (reply is None or reply.kind != Kind.NOTIFY):
            raise ValueError("it has a file descriptor")
    except ValueError as error:
        for fd in fds:
            os.close(fd)
        raise _not_valid(what, str(error)) from error
    return reply, fds[0] if fds else -1


def _not_valid(what: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"{what}: criu has sent a message that is not valid: {why}; use criu 3.17 or later")


def _log(options: CheckpointOptions | RestoreOptions, name: str) -> str:
    return f"{options.work_path or options.image_path}/{name}"


def _failure(what: str, log: str, reply: Reply | None) -> UnsupportedError:
    """Return the error of a criu that has failed, with the reason from its log or from its last message."""
    told = reply.reason if reply is not None else ""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            errors = [line.rstrip() for line in file if "Error (" in line]
    except OSError:
        return UnsupportedError(f"{what}: criu failed and wrote no log to {log}{told and f': {told}'}; run 'criu check'")
    reasons = [line for line in errors if not _NOISE.search(line)] or errors or [told or "it does not say why"]
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
    """Return the option ``external`` for a mount. Raises UnsupportedError: criu would misread the path."""
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


def _has_terminal(spec: RuntimeSpec) -> bool:
    return spec.process is not None and bool(spec.process.terminal)


def _joined(spec: RuntimeSpec) -> list[tuple[str, str]]:
    """Return the types and paths of the existing namespaces that a configuration joins."""
    return [(space.type, space.path) for space in (spec.linux.namespaces if spec.linux else None) or () if space.path]


def _external_network(spec: RuntimeSpec, pid: int) -> list[str]:
    """Return the option ``external`` for a network namespace, to which an image refers if it was joined."""
    if not any(kind == "network" for kind, _ in _joined(spec)):
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
        with entry.reading_config() as config:
            spec = RuntimeSpec.load(config)
        mounts = list(read_mounts(document["pid"]))
        _check_restorable(entry, document, spec, mounts)
        for path in (options.image_path, options.work_path):
            if path is not None:
                os.makedirs(path, mode=0o700, exist_ok=True)
        names = _descriptors(document["pid"])
        outside = [*_external_network(spec, document["pid"]), *(name for name in names if name.startswith("file["))]
        request = dump_request(document, spec, mounts, outside, options)
        pidfd = first_process(document, own)
        try:
            _dump(program, request, options, f"cannot checkpoint container {entry.id!r}")
            if options.pre_dump:
                return
            if not options.leave_running and pidfd is not None and not ended_within(pidfd, KILL_TIMEOUT):
                raise TimeoutError(errno.ETIMEDOUT, not_dead(document["pid"], f"the init process of container {entry.id!r}"))
            replace_file(Path(options.image_path, DESCRIPTORS), json.dumps(names).encode(), mode=0o600)
        finally:
            if pidfd is not None:
                os.close(pidfd)


def dump_request(
    document: StateRecord, spec: RuntimeSpec, mounts: Sequence[MountInfo], outside: Sequence[str], options: CheckpointOptions
) -> Request:
    """Return the options of a checkpoint, without the directories. Raises UnsupportedError: criu would misread a path.

    Args:
        mounts: those in the container.
        outside: the names of what else the image refers to.
    """
    points = _external_points(spec, mounts)
    request: Request = {
        "pid": document["pid"],
        **_shared_options(options, _DUMP_LOG, terminal=_has_terminal(spec)),
        "root": document["rootfs"],
        "external": [*(_external(point, point) for point in points), *outside],
    }
    if options.parent_path is not None:
        request["parent_img"] = os.path.relpath(options.parent_path, options.image_path)
    if options.parent_path is not None or options.pre_dump:
        request["track_mem"] = True
    if options.leave_running and not options.pre_dump:
        request["leave_running"] = True
    if (freezer := cgroup.freezer(document.get("cgroups", []))) is not None:
        request["freeze_cgroup"] = freezer  # it is paused, and ptrace(2) would wait for the end of the pause
    if shutil.which("iptables-restore") is None:
        request["network_lock"] = _NFTABLES  # in the container's network, while its connections are dumped
    return request


def _check_restorable(entry: Entry, document: StateRecord, spec: RuntimeSpec, mounts: Sequence[MountInfo]) -> None:
    """Raise UnsupportedError for a container that could not be restored."""
    what = f"cannot checkpoint container {entry.id!r}"
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


def _dump(program: str, request: Request, options: CheckpointOptions, what: str) -> None:
    """Run criu to its end, in a session of its own, which no terminal interrupts. Raises UnsupportedError."""
    with _directories(options) as directories:
        channel, end = _open_channel()
        with channel, end:
            process = subprocess.Popen(
                [program, "swrk", str(end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[end.fileno()],
                start_new_session=True,
            )
            end.close()
            with process, channel:  # criu ends when the channel is closed
                kind = Kind.PRE_DUMP if options.pre_dump else Kind.DUMP
                _send(channel, encode_request(kind, {**directories, **request}), what)
                reply, _ = _receive(channel, what)
    if reply is None or not reply.success:
        raise _failure(what, _log(options, _DUMP_LOG), reply)


# ---- restore ----


class Restoration(Execution):
    """An execution whose init becomes criu, and which goes on with the init process that criu has restored.

    Args:
        what: what fails if criu fails, for the error.
        options: those of the call.
        request: the options for criu, without the directories.
        channel: the socket to criu.
        end: the other end of it.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        what: str,
        options: RestoreOptions,
        request: Request,
        channel: socket.socket,
        end: OwnDescriptor,
        **more: Any,
    ) -> None:
        super().__init__(plan, peer=end.fileno(), **more)
        self._what, self._options, self._request, self._channel, self._end = what, options, request, channel, end
        self._lacks_terminal = "orphan_pts_master" in request

    def begin(self, meanwhile: Callable[[], object] | None = None) -> Init:
        """Restore the container, and return its init process. Raises StepError, UnsupportedError, OSError."""
        super().begin(meanwhile)
        try:
            # criu mounts filesystems in its working directory, which must be one of its own mount namespace.
            with _directories(self._options, f"/proc/{self.init.pid}/root") as directories:
                super().finish()
                self._end.close()
                pid = self._restore({**directories, **self._request})
            init = self.init
            with waiting():
                while not ended_within(init.pidfd, _POLL):
                    pass
            init.follow(own_child(pid))
        except BaseException:
            self.abort()
            raise
        return init

    def _restore(self, request: Request) -> int:
        """Let criu restore the container, hand its terminal on, and return the pid of the init process."""
        _send(self._channel, encode_request(Kind.RESTORE, request), self._what)
        while True:
            with waiting():
                _wait_for_message(self._channel, self.init.pidfd)
            reply, fd = _receive(self._channel, self._what)  # signals are deferred: a handler that raises would lose fd
            if reply is None or reply.kind != Kind.NOTIFY:
                break
            self._handle_event(reply.event, fd)
            _send(self._channel, _ACKNOWLEDGEMENT, self._what)
        if reply is None or not reply.success:
            raise _failure(self._what, _log(self._options, _RESTORE_LOG), reply)
        if self._lacks_terminal:
            raise UnsupportedError(f"{self._what}: the processes in the image have no terminal open; give terminal=False")
        if not 0 < reply.pid < 1 << 31:
            raise _not_valid(self._what, "it names no restored process")
        return reply.pid

    def _handle_event(self, event: str, fd: int) -> None:
        """Handle a notification, which has a file descriptor or -1."""
        if event == _TERMINAL and fd >= 0 and self._lacks_terminal:
            self._lacks_terminal = False
            self._receivers["console"](self.init, fd)
        elif event == _TERMINAL or fd >= 0:
            if fd >= 0:
                os.close(fd)
            raise _not_valid(self._what, f"the notification {event!r} does not fit")

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


def _wait_for_message(channel: socket.socket, criu: int) -> None:
    """Wait until there is a message, or until criu has ended, given its pidfd: other processes may keep its socket open."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(criu, select.POLLIN)
    poll.poll()


@uninterruptible(undo=Created.discard)
def restore(container_id: str, bundle: Bundle, options: RestoreOptions, *, stdio: Sequence[int] = OWN_STREAMS) -> Created:
    """Restore a container from an image. Errors are those of `Container.restore`; after each, nothing of the container is left.

    Args:
        stdio: file descriptors for its stdin, stdout and stderr.
    """
    store, what = StateStore(options.state_root), f"cannot restore container {check_id(container_id)!r}"
    creating = CreateOptions(
        state_root=options.state_root,
        pid_file=options.pid_file,
        cgroup_manager=options.cgroup_manager,
        terminal=options.terminal,
        console_socket=options.console_socket,
    )
    if options.terminal is not None:
        bundle = bundle.with_process(terminal=options.terminal)
    check_receiver(creating, terminal=_has_terminal(bundle.spec), receivers="console_socket or terminal=True")
    program = _find_criu("restore")
    names = _read_descriptors(options.image_path)
    _check_namespaces(what, bundle.spec)
    if options.work_path is not None:
        os.makedirs(options.work_path, mode=0o700, exist_ok=True)
    channel, end = _open_channel()
    channel.setblocking(False)
    with channel, end, Creation(store, container_id, bundle.path, creating, start=True) as creation:
        opened, own = creation.open(bundle)
        if own is not None:
            raise UnsupportedError(
                f"{what}: its root filesystem would be mounted in the container alone; give a bundle with its files"
            )
        sources = dict(_external_sources(opened.spec, str(opened.path), list(read_mounts())))
        host = Host.probe()
        plan = compile_restore(
            opened.spec,
            host,
            program,
            bundle=str(opened.path),
            sources=sources,
            container_id=container_id,
            manager=options.cgroup_manager,
        )
        if not opened.rootfs.is_dir():
            raise BundleError(f"{opened.rootfs}: it is not a directory")
        request = restore_request(opened, names, options, sources, cgroup_roots(plan.cgroups, host))
        prepared = Prepared(bundle=opened, launched=opened, options=creating)
        creation.record(plan, prepared)
        inherited = Preserved(sum(step.op == "inherit" for step in plan.steps), [])
        make = partial(Restoration, what=what, options=options, request=request, channel=channel, end=end)
        execution = creation.launch(plan, prepared, stdio, inherited, None, None, make)
        creation.commit(execution)
    return creation.follow_up(execution, prepared)


def restore_request(
    bundle: Bundle,
    names: Sequence[str],
    options: RestoreOptions,
    sources: Mapping[str, str],
    cgroups: list[Value],
) -> Request:
    """Return the options of a restore, without the directories. Raises UnsupportedError: criu would misread a path.

    Args:
        names: what the standard streams were. Each is replaced by the stream of criu.
        sources: the mounts from the host, by their places in the container.
        cgroups: the cgroups of the container.
    """
    spec, terminal = bundle.spec, _has_terminal(bundle.spec)
    inherited: list[Value] = [(name, fd) for fd, name in enumerate(names) if name and name not in names[:fd]]
    joined = _joined(spec)
    inherited += [(EXTERNAL_NETWORK, CRIU_NETWORK) for kind, _ in joined if kind == "network"]
    return {
        **_shared_options(options, _RESTORE_LOG, terminal=terminal),
        **({"notify_scripts": True} if terminal else {}),
        "root": str(bundle.rootfs),
        "rst_sibling": True,  # a child of this process
        "external": [_external(point, source) for point, source in sources.items()],
        "inherit_fd": inherited,
        "join_ns": [(kind, path) for kind, path in joined if kind != "network"],
        "cg_root": cgroups if options.manage_cgroups_mode != "ignore" else [],
    }


def cgroup_roots(directories: Iterable[str], host: Host) -> list[Value]:
    """Return the cgroups of a container as criu takes them: the controllers of each hierarchy but v2, and the path in it."""
    roots: list[Value] = []
    for directory in directories:
        hierarchy = max(
            (one for one in host.hierarchies if is_below(directory, one.mountpoint)), key=lambda one: len(one.mountpoint)
        )
        controllers = ",".join(sorted(hierarchy.controllers)) if hierarchy.version != 2 else None
        roots.append((controllers, directory.removeprefix(hierarchy.mountpoint)))
    return roots
