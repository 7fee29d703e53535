"""Filesystems in files without privileges: mounting them by FUSE, and extracting them, with the programs of the distribution.

A mounted filesystem is served by a process of its program. It is in a session of its own, so that an interrupt of the caller's
terminal does not reach it, and it ends when its filesystem is unmounted everywhere.

`mount` mounts one on the host, by fusermount3. `Served` needs only /dev/fuse: the filesystems are mounted in namespaces of their
programs, and have no place on the host (see `ociruntime.plan.rootfs.compile_fuse`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple
from weakref import finalize

from .._native import check, lib
from ..errors import HookError, ImageError, LaunchTimeout, SifError, UnsupportedError
from ..files import inheritable
from ..host import Host
from ..interrupts import check_deadline, current_deadline, waiting
from ..plan.rootfs import FuseProgram, compile_fuse
from .execution import Execution
from .hooks import HookRunner
from .launch import Init
from .processes import abandon, ended_within, kill_each

MTAB: Final = "/etc/mtab"
_DEVICE: Final = "/dev/fuse"
_NS_GET_USERNS: Final = 0xB701
_MOUNT_TIMEOUT: Final = 60.0
"""Seconds to mount or unmount; the image may be on a slow network filesystem."""
_CHECK_INTERVAL: Final = 0.02
"""Seconds between two checks of the time and the space that an extraction takes."""
_END_TIMEOUT: Final = 5.0
"""Seconds for processes that were killed to end."""
_WALL: Final = 0x40000000
"""__WALL of wait(2): also for children that end without a signal."""
_UNPRIVILEGED: Final = "because you're not superuser!"
"""End of unsquashfs's messages about devices, which a user cannot create."""
_DAMAGE: Final = (
    "This doesn't look like a squashfs image",
    "Something went wrong trying to read the squashfs image",
    "Can't find the root of this filesystem",
    "Please run e2fsck",
    "failed to read erofs super block",
)
"""What squashfuse, fuse2fs and erofsfuse say of a filesystem that they cannot read."""
_FEATURE: Final = "feature"
"""What fuse2fs and erofsfuse say too if it is not damaged, but newer than the program."""
_KEPT: Final = 1 << 16
"""Bytes of messages that are read."""
_SHOWN: Final = 400
"""Characters of a program's messages that an error shows."""


class Filesystem(NamedTuple):
    """A filesystem in a part of a file."""

    fd: int
    path: str
    """Path of the file, for messages."""
    offset: int
    size: int
    format: str = "squashfs"
    """``squashfs``, ``ext`` or ``erofs``."""


MOUNTERS: Final = {"squashfs": "squashfuse", "ext": "fuse2fs", "erofs": "erofsfuse"}
"""The program that mounts each format by FUSE. They are fields of `Programs`, and the names of Debian's packages."""


class Programs(NamedTuple):
    """Programs for filesystems in files, each the path or an empty string, and why FUSE cannot be used."""

    squashfuse: str
    fusermount: str
    unsquashfs: str
    fuse2fs: str = ""
    erofsfuse: str = ""
    library: bool = False
    """Whether the library that reads a squashfs, of the extra ``images``, is installed."""
    device: str = ""
    """Why /dev/fuse cannot be opened; empty if it can be."""
    mtab: bool = True
    """Whether there is a mount table as fusermount3 needs it to unmount."""
    overlayfs: str = ""
    """fuse-overlayfs, which shows several layers as one tree on the host."""
    nameless: bool = False
    """Whether this user has no name, by which fusermount3 decides what it unmounts."""

    @staticmethod
    def find() -> Programs:
        """Find the programs in the caller's PATH."""
        names = ("squashfuse", "fusermount3", "unsquashfs", "fuse2fs", "erofsfuse", "fuse-overlayfs")
        library = importlib.util.find_spec("PySquashfsImage") is not None
        squashfuse, fusermount, unsquashfs, fuse2fs, erofsfuse, overlayfs = (shutil.which(name) or "" for name in names)
        device = ""
        try:
            os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            device = f"{_DEVICE}: {os.strerror(error.errno or errno.EIO).lower()}"
        mtab = os.path.exists(MTAB)
        return Programs(squashfuse, fusermount, unsquashfs, fuse2fs, erofsfuse, library, device, mtab, overlayfs, _is_nameless())

    def no_fuse(self, formats: Collection[str]) -> str:
        """Return why filesystems cannot be served by FUSE; an empty string if they can be.

        Args:
            formats: as `MOUNTERS` has them.
        """
        names = [MOUNTERS[kind] for kind in sorted(formats)]
        missing = [f"no {name} in PATH (Debian: {name})" for name in names if not getattr(self, name)]
        if self.device:
            missing.append(self.device)
        return f"FUSE cannot be used: {', '.join(missing)}" if missing else ""

    @property
    def no_mount(self) -> str:
        """Why a filesystem cannot be mounted on the host by FUSE; empty if it can be."""
        if not self.fusermount:
            return "no fusermount3 in PATH (Debian: fuse3)"
        if self.nameless:
            return f"no name of uid {os.getuid()} in /etc/passwd, which fusermount3 needs"
        return "" if self.mtab else f"no {MTAB}, which fusermount3 needs to unmount"


def _is_nameless() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return True
    return False


def is_fuse(fstype: str) -> bool:
    """Return whether a filesystem type of a mount table is that of a mount that `mount` has made.

    libfuse names the program in it, but not if fusermount3 fails the first time, because it is killed for example.
    """
    return fstype.partition(".")[0] == "fuse"


def mount(image: Filesystem, target: str, programs: Programs) -> None:
    """Mount a filesystem read-only on the host by fusermount3, so that all its files belong to the caller.

    Raises:
        ImageError: the filesystem is damaged.
        UnsupportedError: the program cannot mount it; the message has what it says.
    """
    before, what = os.stat(target).st_dev, f"cannot mount {image.path}"
    with inheritable(image.fd) as fd:
        command = [*_command(image, programs, os.getuid(), os.getgid(), f"/proc/self/fd/{fd}"), target]
        output, device = _mount(command, (fd,), what, target)
    if device == before:  # fuse2fs succeeds in any case
        raise _kind(output)(f"{what}: {MOUNTERS[image.format]} failed: {_message(output)}")


def show_layers(places: Sequence[str], target: str, programs: Programs, name: str) -> None:
    """Mount the layers of an image as one tree on the host, read-only, by fuse-overlayfs.

    Args:
        places: where the layers are mounted, the uppermost first.
        name: the image, for messages.

    Raises:
        UnsupportedError: it cannot; the message has what it says.
    """
    above = os.path.dirname(target)
    lowers = ":".join(os.path.relpath(place, above) for place in places)  # names without the characters that options escape
    command = [programs.overlayfs, "-o", f"lowerdir={lowers},nosuid,nodev", os.path.basename(target)]
    _mount(command, (), f"cannot show the layers of {name}", target, directory=above)


def _mount(command: Sequence[str], fds: Sequence[int], what: str, target: str, *, directory: str | None = None) -> tuple[str, int]:
    """Run a program that mounts a filesystem, and wait until it answers. Return its messages, and the device of the mount point.

    Raises ImageError, UnsupportedError. Arguments are those of `_run`.
    """
    mark = {"OCIRUNTIME_MOUNT": os.urandom(8).hex()}
    output, name = _run(command, fds, what, _MOUNT_TIMEOUT, directory=directory, env=mark), os.path.basename(command[0])
    place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _answers(place, mark):
            raise UnsupportedError(f"{what}: {name} did not answer within {_MOUNT_TIMEOUT:.0f} s")
        try:
            return output, os.fstat(place).st_dev
        except PermissionError as error:
            raise UnsupportedError(f"{what}: {name} does not let this user see the files") from error
    finally:
        os.close(place)


def _answers(place: int, mark: Mapping[str, str]) -> bool:
    """Return whether the program that serves a directory answers. One that does not is found by its environment, and killed.

    Another process asks: no signal ends the wait for the answer to a request that the program has read.
    """
    asking, answered = check(lib.oci_ask(place)), False
    try:
        with waiting():
            answered = ended_within(asking, _MOUNT_TIMEOUT)
        return answered
    finally:
        if not answered:
            kill_each(lambda pid: _has(pid, mark))
            signal.pidfd_send_signal(asking, signal.SIGKILL)
        ended_within(asking, _END_TIMEOUT)
        os.waitid(os.P_PIDFD, asking, os.WEXITED | os.WNOHANG | _WALL)
        os.close(asking)


def _has(pid: int, variables: Mapping[str, str]) -> bool:
    """Return whether a process was started with variables in its environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return {f"{name}={value}".encode() for name, value in variables.items()} <= set(file.read().split(b"\0"))
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return False  # it belongs to another user, or has ended


def _command(image: Filesystem, programs: Programs, uid: int, gid: int, file: str) -> tuple[str, ...]:
    """Return the command that mounts a filesystem; the mount point is still to be appended.

    Args:
        uid, gid: the owner of all its files. erofsfuse has no option for it.
        file: the path by which the program opens the file.
    """
    options, owner = f"ro,nosuid,nodev,offset={image.offset}", f",uid={uid},gid={gid}"
    program = getattr(programs, MOUNTERS[image.format])
    match image.format:
        case "squashfs":
            return program, "-o", options + owner, file
        case "ext":  # its own checks of permissions know nothing of uid=, and a journal cannot be replayed read-only
            return program, "-o", f"{options}{owner},norecovery,fakeroot", file
        case _:
            return program, f"--offset={image.offset}", "-o", "ro,nosuid,nodev", file


class Served:
    """Filesystems that are mounted in namespaces of their programs. This process has the mounts by file descriptors.

    The programs end when nothing refers to the object and no container has a copy of the mounts. The object ends with this
    process, however that ends.

    Args:
        images: the filesystems. All their files belong to the caller, but erofsfuse shows the owners of the image: root is the
            caller, and others do not exist in the namespaces.

    Raises:
        ImageError: the filesystem is damaged.
        UnsupportedError: a program cannot mount its filesystem; the message has what it says.
        LaunchTimeout: the time of `time_limit` is over.
        StepError: the kernel refuses the namespaces.
    """

    def __init__(self, images: Sequence[Filesystem], programs: Programs) -> None:
        env = tuple(f"{name}={value}" for name, value in _environment().items())
        commands = [_command(image, programs, 0, 0, "/proc/self/fd/0") for image in images]
        servers = [
            FuseProgram(command[0], command, env, f"{image.format} at {image.offset} of {image.path}")
            for command, image in zip(commands, images, strict=True)
        ]
        handed: list[int] = []
        try:
            _serve(servers, images, handed)
            self._mounts, _, *self._places = handed
            handed.append(fcntl.ioctl(self._mounts, _NS_GET_USERNS))
            self._users = handed[-1]
        except BaseException:
            _close(handed)
            raise
        finalize(self, _close, handed).atexit = False

    def path(self, number: int) -> str:
        """Return a path to the root directory of a filesystem, for this process."""
        return f"/proc/self/fd/{self._places[number]}"

    def copy(self, number: int) -> int:
        """Return a detached mount of a filesystem, as a file descriptor. Raises OSError."""
        return check(lib.oci_copy_mount(self._mounts, self._users, self._places[number]), self.path(number))

    @property
    def alive(self) -> bool:
        """Whether the programs still run."""
        try:
            for place in self._places:
                os.fstatvfs(place)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise
            return False
        return True


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


class _Messages(HookRunner):
    """Keeps what the programs of one launch write."""

    def __init__(self) -> None:
        super().__init__(lambda pid: {})
        self.fd = -1

    def open(self, kind: str) -> int:
        opened = super().open(kind)
        self.fd = os.dup(opened)
        return opened


def _serve(servers: Sequence[FuseProgram], images: Sequence[Filesystem], handed: list[int]) -> None:
    """Start programs for filesystems. Raises as `Served`.

    Args:
        handed: gets the descriptors that the plan hands out.
    """
    messages, files = _Messages(), iter(images)

    def receive(init: Init, fd: int) -> None:
        handed.append(fd)
        number = len(handed) - 3
        if number < 0:
            return
        try:
            device = os.fstat(fd).st_dev
        except OSError as error:
            error.filename = images[number].path
            raise
        if device == os.fstat(handed[1]).st_dev:  # fuse2fs succeeds in any case
            output = os.pread(messages.fd, _KEPT, 0).decode("utf-8", "replace").replace("\0", "")
            program = MOUNTERS[images[number].format]
            raise _kind(output)(f"cannot mount {images[number].path}: {program} failed: {_message(output)}")

    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    execution = Execution(
        compile_fuse(servers, Host.probe(), int(_MOUNT_TIMEOUT)),
        stdio=(null, null, null),
        receivers={"handout": receive},
        hooks=messages,
        mount=lambda source: os.open(f"/proc/self/fd/{next(files).fd}", os.O_RDONLY | os.O_CLOEXEC),
        deadline=current_deadline(),
    )
    try:
        init = execution.begin()
        execution.finish()
        abandon(init.release())
    except HookError as error:
        problem = f"failed: {_message(error.output)}" if (error.returncode or 0) > 0 else error.problem
        raise _kind(error.output)(f"cannot mount {images[0].path}: {os.path.basename(error.path)} {problem}") from error
    except LaunchTimeout as error:
        error.command = (os.path.basename(servers[0].path), images[0].path)
        raise
    finally:
        os.close(null)
        if messages.fd >= 0:
            os.close(messages.fd)


def unmount(target: str, *, detach: bool = False) -> None:
    """Unmount what `mount` mounted, also if its process has been killed.

    Args:
        detach: unmount it even if it is in use.

    Raises:
        OSError: it is in use, or fusermount3 fails; with its message.
    """
    program = shutil.which("fusermount3")
    if program is None:
        raise OSError(errno.ENOENT, "fusermount3 is not in PATH (Debian: fuse3)", target)
    command = [program, "-u", *(["-z"] if detach else []), "--", target]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_MOUNT_TIMEOUT,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"fusermount3 did not end within {_MOUNT_TIMEOUT:.0f} s", target) from None
    if done.returncode:
        code = errno.EBUSY if os.strerror(errno.EBUSY) in done.stderr else errno.EIO
        raise OSError(code, os.strerror(code) if code == errno.EBUSY else _message(done.stderr), target)


def extract(image: Filesystem, target: str, programs: Programs, *, privileged: bool) -> None:
    """Extract a squashfs to a new directory.

    Args:
        privileged: whether to keep owners, devices and extended attributes, which only root can. Otherwise all files belong to the
            caller, and devices and attributes are left out.

    Raises:
        SifError: unsquashfs cannot extract all of it; the message has what it says. What was extracted stays.
        LaunchTimeout: the time of `time_limit` is over; unsquashfs was killed, and what was extracted stays.
    """
    command = [programs.unsquashfs, "-no-progress", "-quiet", "-offset", str(image.offset), "-dest", target]
    attributes = [] if privileged else ["-no-xattrs"]
    with inheritable(image.fd) as fd:
        _run([*command, *attributes, f"/proc/self/fd/{fd}"], (fd,), f"cannot extract {image.path}", None)


def _run(
    command: Sequence[str],
    fds: Sequence[int],
    what: str,
    timeout: float | None,
    *,
    directory: str | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end, and return its messages. Signals are handled meanwhile.

    Raises ImageError, UnsupportedError, LaunchTimeout.

    Args:
        fds: file descriptors that it inherits.
        timeout: seconds until it is killed; None for what `check_deadline` says.
        directory: its working directory; by default the caller's.
        env: variables of its environment besides the caller's.
    """
    name = os.path.basename(command[0])
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=fds,
            cwd=directory,
            start_new_session=True,
            umask=0,  # unsquashfs makes files with the modes of the image, less the umask
            text=True,
            errors="replace",
            env={**_environment(), **(env or {})},
        ) as process:
            output = _finish(process, timeout)
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"{what}: {name} did not end within {timeout:.0f} s") from None
    except LaunchTimeout:  # an OSError, but not one of the program
        raise
    except OSError as error:
        raise UnsupportedError(f"{what}: {command[0]}: {error.strerror}") from error
    status, lines = process.returncode, output.splitlines()
    if status == 0 or (status == 2 and lines and all(line.endswith(_UNPRIVILEGED) for line in lines)):
        return output
    ended = f"was killed by signal {-status}" if status < 0 else f"failed: {_message(output)}"
    raise (SifError if timeout is None else _kind(output))(f"{what}: {name} {ended}")


def _finish(process: subprocess.Popen[str], timeout: float | None) -> str:
    """Wait for the end of a program, and return its messages. If that fails, its session is killed, fusermount3 too."""
    try:
        with waiting():
            while timeout is None:
                check_deadline()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.communicate(timeout=_CHECK_INTERVAL)[1]
            return process.communicate(timeout=timeout)[1]
    except BaseException:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_END_TIMEOUT)  # until the last of them has closed the pipe
        raise


def _kind(output: str) -> type[ImageError | UnsupportedError]:
    """Return the class of the error for a program that could not mount a filesystem, given its messages."""
    damaged = any(text in output for text in _DAMAGE) and _FEATURE not in output
    return ImageError if damaged else UnsupportedError


def _message(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())[:_SHOWN] or "without a message"


def _environment() -> dict[str, str]:
    """Return the caller's environment with messages in English."""
    return {**os.environ, "LC_ALL": "C"}
