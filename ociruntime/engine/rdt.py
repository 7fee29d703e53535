"""Groups of the resctrl filesystem (config-linux.md#intelrdt)."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .launch import Init


def make(init: Init | None, group: str) -> None:
    """Create a group for the container. Raises FileExistsError; OSError: ENOSPC when the hardware has no more groups."""
    os.mkdir(group, 0o755)


def remove(group: str) -> None:
    """Remove a group that `make` created, if it exists. Its processes move to the parent group. Raises OSError."""
    try:
        os.rmdir(group)
    except FileNotFoundError:
        return


def write(init: Init | None, group: str, lines: Sequence[str]) -> None:
    """Write lines to the schemata of a group. Raises OSError."""
    for line in lines:
        fd = os.open(f"{group}/schemata", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)


def ensure_class(init: Init | None, group: str, lines: Sequence[str]) -> None:
    """Create a class of service, which outlives the container, or check the existing one.

    Args:
        lines: the schemata of a new class; an existing one must have them.

    Raises:
        FileNotFoundError: it does not exist, and lines to create it with are missing.
        FileExistsError: it has other schemata.
        OSError: the kernel refuses it.
    """
    if lines:
        try:
            os.mkdir(group, 0o755)
        except FileExistsError:
            _compare(group, lines)
        else:
            try:
                write(init, group, lines)
            except BaseException:
                os.rmdir(group)
                raise
    elif not os.path.isdir(group):
        raise FileNotFoundError(errno.ENOENT, "the class of service does not exist; give schemata to create it with", group)


def join(init: Init | None, group: str) -> None:
    """Move the init process into a group. Raises OSError."""
    assert init is not None, "the init process runs"
    fd = os.open(f"{group}/tasks", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, f"{init.pid}\n".encode())
    finally:
        os.close(fd)


def parse(line: str) -> tuple[str, dict[str, str]]:
    """Parse a line such as ``L3:0=f;1=0ff``: the resource, and values by domain without the leading zeros that the kernel adds."""
    resource, _, domains = line.strip().partition(":")
    pairs = (domain.partition("=") for domain in domains.split(";") if domain.strip())
    return resource.strip(), {key.strip(): value.strip().lower().lstrip("0") or "0" for key, _, value in pairs}


def _compare(group: str, lines: Sequence[str]) -> None:
    with open(f"{group}/schemata", encoding="ascii") as file:
        existing = dict(parse(line) for line in file if line.strip())
    for line in lines:
        resource, values = parse(line)
        if {domain: existing.get(resource, {}).get(domain) for domain in values} != values:
            raise FileExistsError(errno.EEXIST, f"the class of service exists and differs from {line!r}", group)
