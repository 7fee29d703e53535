"""The namespaces of a container: how the init enters them, and what is set in them (config-linux.md#namespaces).

Without a user namespace the init is cloned into the new ones. A user namespace comes by a fork of the init instead: an exec
inside it would cost everybody but its root the capabilities, and only what happens before may still use the caller's rights.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import Problem, SpecError, UnsupportedError
from ..spec.syntax import sysctl_namespace, sysctl_path
from . import kernel as k
from .id_mappings import compile_idmaps, is_own_id, mappings_of, root_id
from .model import NO_SLOT, Builder

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Linux, Process, RuntimeSpec


_AFTERWARDS: Final = frozenset({"cgroup", "time"})
"""What the init unshares itself: a new cgroup namespace takes the cgroup of its maker, a new time namespace is for children."""
DETACHED_TREES: Final = (6, 15)
"""Since when something can be mounted in a tree that hangs nowhere, and copied from one."""


class Joined(NamedTuple):
    """A namespace that exists already."""

    kind: str
    path: str
    where: str
    """The JSON path of its path."""


class Namespaces(NamedTuple):
    """The namespaces of a container, as far as they are not the caller's."""

    new: tuple[str, ...]
    joined: tuple[Joined, ...]

    @property
    def own(self) -> tuple[str, ...]:
        """The types of all that the container does not share with the caller."""
        return (*self.new, *(namespace.kind for namespace in self.joined))

    @property
    def user(self) -> bool:
        """Whether the container has a user namespace."""
        return "user" in self.own

    @property
    def bits(self) -> int:
        """The CLONE_NEW* bits of `own`."""
        return _bits(self.own)


def _bits(kinds: Collection[str]) -> int:
    return sum(k.CLONE_NEW[kind] for kind in kinds)


def namespaces_of(linux: Linux | None) -> Namespaces:
    """The namespaces that a config asks for."""
    new: list[str] = []
    joined: list[Joined] = []
    for index, namespace in enumerate((linux.namespaces if linux else None) or ()):
        kind, where = str(namespace.type), f"$.linux.namespaces[{index}]"
        if namespace.path:
            joined.append(Joined(kind, namespace.path, f"{where}.path"))
        else:
            new.append(kind)
    return Namespaces(tuple(new), tuple(joined))


def check_foreign_tree(spaces: Namespaces, host: Host) -> None:
    """What a container needs that has no new mount namespace, and whose mounts must not show in the one that it shares.

    Raises:
        UnsupportedError: the kernel is too old, or nobody could mount in its user namespace.
    """
    if spaces.user and "mount" not in spaces.own:
        raise UnsupportedError("$.linux.namespaces: a user namespace needs a mount namespace too, or nobody in it may mount")
    if host.kernel < DETACHED_TREES:
        version = ".".join(map(str, DETACHED_TREES))
        raise UnsupportedError(f"$.linux.namespaces: a container without a new mount namespace needs Linux {version}")


def compile_clone(b: Builder, spaces: Namespaces, into: str) -> int:
    """The clone of the init, into a v2 cgroup when one is given; gives its flags."""
    kinds = () if spaces.user else tuple(kind for kind in spaces.new if kind not in _AFTERWARDS)
    what = "the init" if spaces.user else f"the init, with namespaces of its own: {', '.join(kinds) or 'none'}"
    b.host("clone3", _bits(kinds), into, text=what + (f"; in {into}" if into else ""))
    return _bits(kinds)


def compile_enter(
    b: Builder, spaces: Namespaces, linux: Linux | None, host: Host, changed: Collection[str], *, asked: Linux | None
) -> None:
    """What brings the init into the namespaces that it was not cloned into. Raises UnsupportedError.

    Args:
        changed: the types of those that the config changes.
        asked: ``linux`` without the maps of ids that are our choice.
    """
    proc = _procfs(b) if "time" in spaces.new else NO_SLOT
    if spaces.joined:
        _join(b, spaces, host, changed)
    # It belongs to the user namespace that the init is in. Before a fork nobody sees it who is in the namespaces that it joined.
    early = "time" in spaces.new and spaces.user and "user" not in spaces.new
    if early:
        _time(b, linux, host, proc)
    if spaces.user:
        assert linux is not None
        assert asked is not None
        _fork(b, spaces, linux, host, asked)
    elif "pid" in spaces.own and "pid" not in spaces.new:
        b.init("fork", 0, text="a pid namespace holds for children only")
    if "cgroup" in spaces.new:
        b.init("unshare", k.CLONE_NEW["cgroup"], text="a cgroup namespace, whose root is the cgroup that the init is in")
    if "time" in spaces.new and not early:
        _time(b, linux, host, proc)
        slot = b.slot()
        b.init("open", proc, "self/ns/time_for_children", 0, 0, 0, slot, text="/proc/self/ns/time_for_children")
        b.init("setns", slot, k.CLONE_NEW["time"], text="the time namespace, for the init itself")


def _join(b: Builder, spaces: Namespaces, host: Host, changed: Collection[str]) -> None:
    # With privileges the user namespace comes last: they may be needed for the others, and they end there. Without any, it comes
    # first: it is what gives them. The mount namespace comes after what is looked up in the caller's.
    late = {"mount": 1, "user": 2} if host.privileged else {"mount": 1, "user": -1}
    own = b.slot()
    b.init("open", NO_SLOT, "/proc/self/ns", k.O_PATH, 0, 0, own, text="/proc/self/ns, to prove what was joined")
    for namespace in sorted(spaces.joined, key=lambda joined: late.get(joined.kind, 0)):
        bit = k.CLONE_NEW[namespace.kind]
        slot = b.input("changed" if namespace.kind in changed else "namespace", namespace.where, namespace.path, bit)
        if namespace.kind == "user":
            leave_groups(b, host)
        # The own pid namespace never changes; what was joined is that of the children.
        name = "pid_for_children" if namespace.kind == "pid" else k.NAMESPACE_FILES[namespace.kind]
        b.init("join", slot, bit, own, name, text=f"the {namespace.kind} namespace {namespace.path}")


def leave_groups(b: Builder, host: Host) -> None:
    """Before a user namespace that exists already: it may deny setgroups, and then the caller's groups would stay."""
    if host.privileged and host.may_setgroups:
        b.init("setgroups", b"", 0, text="none of the caller's supplementary groups")


def _fork(b: Builder, spaces: Namespaces, linux: Linux, host: Host, asked: Linux) -> None:
    kinds = tuple(kind for kind in spaces.new if kind not in _AFTERWARDS)
    text = f"go on in a child, with namespaces of its own: {', '.join(kinds) or 'none'}"
    if "user" not in spaces.new:
        b.init("fork", _bits(kinds), text=text)
        return
    with own_files(b, host, "let the caller write the maps of ids"):
        b.init("fork", _bits(kinds), text=text)
        compile_idmaps(b, linux, host, asked=asked)


def _procfs(b: Builder) -> int:
    slot = b.slot()
    b.init("open", NO_SLOT, "/proc", k.O_PATH, 0, 0, slot, text="/proc")
    b.init("prove_proc", slot, text="it is the root of a procfs")
    return slot


def _time(b: Builder, linux: Linux | None, host: Host, proc: int) -> None:
    offsets = (linux.time_offsets if linux else None) or {}
    lines = [f"{clock} {offset.secs or 0} {offset.nanosecs or 0}\n" for clock, offset in offsets.items()]
    b.init("unshare", k.CLONE_NEW["time"], text="a time namespace, for children so far")
    if not lines:
        return
    slot = b.slot()
    with own_files(b, host, "this file is the init's own"):
        b.init("open", proc, "self/timens_offsets", k.O_WRONLY, 0, 0, slot, text="/proc/self/timens_offsets")
    b.init("write", slot, "", "".join(lines).encode(), text=f"{', '.join(lines).replace(chr(10), '')} > timens_offsets")


@contextmanager
def own_files(b: Builder, host: Host, why: str) -> Iterator[None]:
    """The files in /proc of who is not dumpable belong to root; without privileges they must be the caller's for a moment."""
    if not host.privileged:
        b.init("prctl", k.PR_SET_DUMPABLE, 1, 0, text=why)
    yield
    if not host.privileged:
        b.init("prctl", k.PR_SET_DUMPABLE, 0, 0, text="closed to the caller's other processes again")


class Groups(Enum):
    """What setgroups(2) may do in the container's user namespace."""

    EXACT = "exact"
    """The supplementary groups are exactly those of the config."""
    DENIED = "denied"
    """The map of groups was written by an unprivileged user, who could otherwise drop a group that forbids something."""
    UNKNOWN = "unknown"
    """The namespace exists already, and only it knows."""


def groups_in(spaces: Namespaces, linux: Linux | None, host: Host) -> Groups:
    """What setgroups may do. Pure."""
    if "user" not in spaces.new and spaces.user:
        return Groups.UNKNOWN
    if not host.may_setgroups:
        return Groups.DENIED
    if not spaces.user:
        return Groups.EXACT
    return Groups.DENIED if not host.privileged and is_own_id(mappings_of(linux, "gid"), host.egid) else Groups.EXACT


def compile_root(b: Builder, spaces: Namespaces, linux: Linux | None) -> None:
    """Become the root of the user namespace, who owns what is made from here on.

    Until here the init has the caller's ids, and so can open what only they may.
    """
    if not spaces.user:
        return
    for kind in ("gid", "uid"):
        root = root_id(mappings_of(linux, kind)) if "user" in spaces.new else 0
        b.init(f"setres{kind}", root, text=f"{kind} {root} of the user namespace")


def compile_names(b: Builder, spec: RuntimeSpec) -> None:
    """The hostname and the domain name."""
    for name, op in (("hostname", "sethostname"), ("domainname", "setdomainname")):
        value = getattr(spec, name)
        if value:
            b.init(op, value, text=value)


def compile_loopback(b: Builder, new: Container[str]) -> None:
    """Bring the loopback device of a new network namespace up, as the peers do: without it not even 127.0.0.1 is reached."""
    if "network" in new:
        b.init("link_up", "lo", text="lo: the loopback of the new network namespace")


def compile_net_devices(b: Builder, linux: Linux | None, own: Container[str]) -> None:
    """Move the devices, with their addresses; ``own`` are the namespaces that are not the host's.

    The init opens a netlink socket in the container's network namespace and hands it out: through it the caller finds, renames and
    configures what it moved, without entering the namespace.

    Raises:
        SpecError: there is no network namespace to move to.
    """
    devices = (linux.net_devices if linux else None) or {}
    if not devices:
        return
    if "network" not in own:
        message = "needs a network namespace that is not the host's"
        raise SpecError([Problem("$.linux.netDevices", message, "config-linux.md#network-devices")])
    b.init("netlink", text="a socket in the container's network namespace, for the caller")
    for name, device in devices.items():
        new = device.name or name
        b.host("netdev_move", name, new, text=f"{name} -> the container" + (f", as {new}" if new != name else ""))


def changed_namespaces(spec: RuntimeSpec) -> frozenset[str]:
    """The types of the namespaces that the config changes: one of the caller's must not be joined for them."""
    sysctl = (spec.linux.sysctl if spec.linux else None) or {}
    names = ("uts",) if spec.hostname or spec.domainname else ()
    return frozenset((*names, *(kind for key in sysctl if (kind := sysctl_namespace(key)))))


def compile_sysctl(b: Builder, linux: Linux | None, proc: int) -> None:
    """Write each parameter through the procfs in a slot."""
    for key, value in ((linux.sysctl if linux else None) or {}).items():
        path = sysctl_path(key)
        b.init("write", proc, "sys/" + path, value.encode(), text=f"{value} > {path.replace('/', '.')}")


def compile_procfs(b: Builder, linux: Linux | None, process: Process, own: Collection[str]) -> int:
    """The steps that make it, attached nowhere, when something will be written; gives its slot, or NO_SLOT.

    Who has a user namespace, but not a pid namespace in it, may make none, and uses the host's.
    """
    if not ((linux is not None and linux.sysctl) or process.apparmor_profile or process.selinux_label):
        return NO_SLOT
    slot = b.slot()
    if "user" in own and "pid" not in own:
        b.init("open", NO_SLOT, "/proc", k.O_PATH, 0, k.RESOLVE_NO_SYMLINKS, slot, text="/proc of the host")
    else:
        fs = b.slot()
        b.init("fsopen", "proc", fs, text="proc, for the init itself")
        b.init("fsconfig", fs, k.FSCONFIG_CMD_CREATE, "", "", text="create the proc")
        bits = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
        b.init("fsmount", fs, bits, slot, text="proc, attached nowhere")
    b.init("prove_proc", slot, text="it is the root of a procfs")
    return slot
