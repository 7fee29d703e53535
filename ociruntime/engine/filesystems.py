"""Filesystems in files without privileges: mounting them by FUSE, and extracting them, with the programs of the distribution.

A mounted filesystem is served by a process of its program. It is in a session of its own, so that an interrupt of the caller's
terminal does not reach it, and it ends when its filesystem is unmounted everywhere.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..errors import SifError, UnsupportedError

FSTYPE: Final = "fuse."
"""Begin of the types of the mounts that `mount` makes, as in mount tables."""
MTAB: Final = "/etc/mtab"
_DEVICE: Final = "/dev/fuse"
_MOUNT_TIMEOUT: Final = 60.0
"""Seconds to mount or unmount; the image may be on a slow network filesystem."""
_UNPRIVILEGED: Final = "because you're not superuser!"
"""End of unsquashfs's messages about devices, which a user cannot create."""
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
"""The program that mounts each format by FUSE. They are fields of `Programs`."""


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
    """Why /dev/fuse cannot be opened, or what fusermount3 needs beside it; empty if FUSE can be used."""

    @staticmethod
    def find() -> Programs:
        """Find the programs in the caller's PATH."""
        names = ("squashfuse", "fusermount3", "unsquashfs", "fuse2fs", "erofsfuse")
        library = importlib.util.find_spec("PySquashfsImage") is not None
        squashfuse, fusermount, unsquashfs, fuse2fs, erofsfuse = (shutil.which(name) or "" for name in names)
        found = Programs(squashfuse, fusermount, unsquashfs, fuse2fs, erofsfuse, library)
        try:
            os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return found._replace(device=f"{_DEVICE}: {os.strerror(error.errno or errno.EIO).lower()}")
        # Some minimal systems lack it. fusermount3 mounts without it, and cannot unmount.
        return found if os.path.exists(MTAB) else found._replace(device=f"no {MTAB}, which fusermount3 needs to unmount")


def mount(image: Filesystem, target: str, programs: Programs) -> None:
    """Mount a filesystem read-only, so that all its files belong to the caller.

    Raises:
        UnsupportedError: the program cannot mount it; the message has what it says.
    """
    options = f"ro,nosuid,nodev,uid={os.getuid()},gid={os.getgid()}"
    offset: list[str] = []
    match image.format:
        case "squashfs":
            options += f",offset={image.offset}"
        case "ext":  # its own checks of permissions know nothing of uid=, and a journal cannot be replayed read-only
            options += f",offset={image.offset},norecovery,fakeroot"
        case _:
            offset = [f"--offset={image.offset}"]
    program, before = getattr(programs, MOUNTERS[image.format]), os.stat(target).st_dev
    what = f"cannot mount {image.path}"
    said = _run([program, *offset, "-o", options, f"/proc/self/fd/{image.fd}", target], image, what, _MOUNT_TIMEOUT)
    if os.stat(target).st_dev == before:  # fuse2fs succeeds in any case
        raise UnsupportedError(f"{what}: {MOUNTERS[image.format]} failed: {_message(said)}")


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
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_MOUNT_TIMEOUT,
        env=_environment(),
    )
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
    """
    command = [programs.unsquashfs, "-no-progress", "-quiet", "-offset", str(image.offset), "-dest", target]
    attributes = [] if privileged else ["-no-xattrs"]
    _run([*command, *attributes, f"/proc/self/fd/{image.fd}"], image, f"cannot extract {image.path}", None)


def _run(command: Sequence[str], image: Filesystem, what: str, timeout: float | None) -> str:
    """Run a program to its end, and return its messages. Raises SifError, UnsupportedError."""
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(image.fd,),
            start_new_session=True,
            umask=0,  # unsquashfs makes files with the modes of the image, less the umask
            timeout=timeout,
            text=True,
            errors="replace",
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"{what}: {name} did not end within {timeout:.0f} s") from None
    except OSError as error:
        raise UnsupportedError(f"{what}: {command[0]}: {error.strerror}") from error
    lines = done.stderr.splitlines()
    if done.returncode == 0 or (done.returncode == 2 and lines and all(line.endswith(_UNPRIVILEGED) for line in lines)):
        return done.stderr
    ended = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"failed: {_message(done.stderr)}"
    raise (SifError if timeout is None else UnsupportedError)(f"{what}: {name} {ended}")


def _message(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())[:_SHOWN] or "without a message"


def _environment() -> dict[str, str]:
    """Return the caller's environment with messages in English."""
    return {**os.environ, "LC_ALL": "C"}
