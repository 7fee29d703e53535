"""Squashfs images without privileges: mounting them by FUSE, and extracting them, with the programs of the distribution.

A mounted image is served by a process of squashfuse. It is in a session of its own, so that an interrupt of the caller's terminal
does not reach it, and it ends when its filesystem is unmounted everywhere.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..errors import SifError, UnsupportedError

FSTYPE: Final = "fuse.squashfuse"
"""Type of the mounts that `mount` makes, as in mount tables."""
MTAB: Final = "/etc/mtab"
_DEVICE: Final = "/dev/fuse"
_MOUNT_TIMEOUT: Final = 60.0
"""Seconds to mount or unmount; the image may be on a slow network filesystem."""
_UNPRIVILEGED: Final = "because you're not superuser!"
"""End of unsquashfs's messages about devices, which a user cannot create."""
_SHOWN: Final = 400
"""Characters of a program's messages that an error shows."""


class Image(NamedTuple):
    """A squashfs filesystem in a part of a file."""

    fd: int
    path: str
    """Path of the file, for messages."""
    offset: int
    size: int


class Programs(NamedTuple):
    """Programs for squashfs images, each the path or an empty string, and why FUSE cannot be used."""

    squashfuse: str
    fusermount: str
    unsquashfs: str
    device: str = ""
    """Why /dev/fuse cannot be opened, or what fusermount3 needs beside it; empty if FUSE can be used."""

    @staticmethod
    def find() -> Programs:
        """Find the programs in the caller's PATH."""
        found = Programs(*(shutil.which(name) or "" for name in ("squashfuse", "fusermount3", "unsquashfs")))
        try:
            os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return found._replace(device=f"{_DEVICE}: {os.strerror(error.errno or errno.EIO).lower()}")
        # Some minimal systems lack it. fusermount3 mounts without it, and cannot unmount.
        return found if os.path.exists(MTAB) else found._replace(device=f"no {MTAB}, which fusermount3 needs to unmount")


def mount(image: Image, target: str, programs: Programs) -> None:
    """Mount an image read-only, so that all its files belong to the caller.

    Raises:
        UnsupportedError: squashfuse cannot mount it; the message has what it says.
    """
    options = f"ro,nosuid,nodev,offset={image.offset},uid={os.getuid()},gid={os.getgid()}"
    command = [programs.squashfuse, "-o", options, f"/proc/self/fd/{image.fd}", target]
    _run(command, image, f"cannot mount {image.path}", _MOUNT_TIMEOUT)


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


def extract(image: Image, target: str, programs: Programs) -> None:
    """Extract an image to a new directory, in which all files belong to the caller. Devices and capabilities are left out.

    Raises:
        SifError: unsquashfs cannot extract all of it; the message has what it says. What was extracted stays.
    """
    command = [programs.unsquashfs, "-no-progress", "-quiet", "-no-xattrs", "-offset", str(image.offset), "-dest", target]
    _run([*command, f"/proc/self/fd/{image.fd}"], image, f"cannot extract {image.path}", None)


def _run(command: Sequence[str], image: Image, what: str, timeout: float | None) -> None:
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
        return
    ended = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"failed: {_message(done.stderr)}"
    raise (SifError if timeout is None else UnsupportedError)(f"{what}: {name} {ended}")


def _message(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())[:_SHOWN] or "without a message"


def _environment() -> dict[str, str]:
    """Return the caller's environment with messages in English."""
    return {**os.environ, "LC_ALL": "C"}
