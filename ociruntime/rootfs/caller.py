"""The caller as a user of a container: its ids, name, home and working directory, and its lines in passwd and group."""

from __future__ import annotations

import grp
import os
import posixpath
import pwd
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Self

import attrs

from ..spec.base import is_below
from .users import read_text

if TYPE_CHECKING:
    from ..spec import Mount
    from .users import ContainerRoot

CALLER: Final = "caller"
"""The value of ``user=`` that stands for the caller."""
_SHELL: Final = "/bin/sh"
"""The login shell in passwd: the caller's own may not exist in the image."""


@attrs.frozen(kw_only=True)
class Caller:
    """The user that calls, as this host knows it."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """The supplementary groups."""
    name: str
    group: str
    """The name of the primary group."""
    full_name: str
    home: str
    """``$HOME``, or the home directory in passwd(5)."""

    @classmethod
    def current(cls) -> Self:
        """Return the caller. A user or group that this host cannot name gets a name from its id."""
        uid, gid = os.geteuid(), os.getegid()
        try:
            entry = pwd.getpwuid(uid)
            name, full_name, home = entry.pw_name, entry.pw_gecos, entry.pw_dir
        except KeyError:
            name, full_name, home = f"user{uid}", "", "/"
        try:
            group = grp.getgrgid(gid).gr_name
        except KeyError:
            group = f"group{gid}"
        variable = os.environ.get("HOME", "")
        if variable.startswith("/") and variable.isprintable() and ":" not in variable:
            home = posixpath.normpath(variable)
        groups = tuple(sorted(os.getgroups()))
        return cls(uid=uid, gid=gid, groups=groups, name=name, group=group, full_name=full_name, home=home)

    def accounts(self, root: ContainerRoot) -> dict[str, bytes]:
        """Return passwd and group of a container, by their names, with the caller's lines before all others.

        Raises:
            BundleError: a file of the container is too large, of another type than a regular one, or cannot be read.
        """
        lines = {
            "passwd": (self.name, "x", str(self.uid), str(self.gid), self.full_name, self.home, _SHELL),
            "group": (self.group, "x", str(self.gid), ""),
        }
        return {name: os.fsencode(f"{':'.join(fields)}\n{read_text(root, f'etc/{name}')}") for name, fields in lines.items()}


def working_directory() -> str | None:
    """Return the caller's working directory, by ``$PWD`` if that names it; None if it was removed or cannot be reached."""
    try:
        path = os.environ.get("PWD", "")
        if path.startswith("/") and posixpath.normpath(path) == path and os.path.samefile(path, "."):
            return path
        return os.getcwd()
    except OSError:
        return None


def is_shown(path: str, mounts: Iterable[Mount]) -> bool:
    """Return whether the mounts of a configuration show a path of the host at the same path in the container."""
    shown = False
    for mount in mounts:
        if is_below(path, mount.destination):
            is_bind = mount.type == "bind" or not {"bind", "rbind"}.isdisjoint(mount.options or ())
            shown = is_bind and posixpath.normpath(mount.source or "") == posixpath.normpath(mount.destination)
    return shown
