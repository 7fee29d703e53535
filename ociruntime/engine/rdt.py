"""Groups of the resctrl filesystem (config-linux.md#intelrdt)."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .launch import Init


def make(init: Init | None, group: str) -> None:
    """Make a group of the container's own. Raises FileExistsError, and OSError (ENOSPC) when the hardware has no more of them."""
    os.mkdir(group, 0o755)


def remove(group: str) -> None:
    """Remove a group that `make` made; what is in it goes to the group above."""
    try:
        os.rmdir(group)
    except FileNotFoundError:
        return


def write(init: Init | None, group: str, lines: Sequence[str]) -> None:
    """Write each line to the group's schemata. Raises OSError."""
    for line in lines:
        fd = os.open(f"{group}/schemata", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)


def settle(init: Init | None, group: str, lines: Sequence[str]) -> None:
    """A class of service that outlives the container: made with these lines where it is missing, else it must have them.

    Raises:
        FileNotFoundError: it is missing, and there are no lines to make it with.
        FileExistsError: it has others.
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
        raise FileNotFoundError(errno.ENOENT, "the class of service does not exist, and no schemata say how to make it", group)


def join(init: Init | None, group: str) -> None:
    """Put the init into a group. Raises OSError."""
    assert init is not None, "a step behind the clone"
    fd = os.open(f"{group}/tasks", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, f"{init.pid}\n".encode())
    finally:
        os.close(fd)


def parse(line: str) -> tuple[str, dict[str, str]]:
    """``L3:0=f;1=0ff`` as the resource and its values by domain, without leading zeros, as the kernel pads them."""
    resource, _, domains = line.strip().partition(":")
    pairs = (domain.partition("=") for domain in domains.split(";") if domain.strip())
    return resource.strip(), {key.strip(): value.strip().lower().lstrip("0") or "0" for key, _, value in pairs}


def _compare(group: str, lines: Sequence[str]) -> None:
    with open(f"{group}/schemata", encoding="ascii") as file:
        there = dict(parse(line) for line in file if line.strip())
    for line in lines:
        resource, wanted = parse(line)
        if {domain: there.get(resource, {}).get(domain) for domain in wanted} != wanted:
            raise FileExistsError(errno.EEXIST, f"the class of service exists and differs from {line!r}", group)
