"""The namespaces of a container: how the init enters them, their id mappings, and what is set in them.

See config-linux.md#namespaces and config-linux.md#user-namespace-mappings.

Without a user namespace the init is cloned into the new namespaces. With one it forks into them instead: an execve in the user
namespace would drop all capabilities unless the init is its root, and the steps before the fork still have the caller's privileges.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import SpecError, UnsupportedError
from ..spec import IDMapping
from ..spec.base import Problem, sysctl_namespace, sysctl_path
from . import ops
from .model import NO_SLOT, PlanBuilder

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Linux, Mount, ProcessSpec, RuntimeSpec
    from .mount_options import MountOptions


Mappings = Sequence[IDMapping]


def host_id(mappings: Mappings, container_id: int) -> int | None:
    """Return the host's id of an id in the user namespace, or None if it is not mapped."""
    for entry in mappings:
        if entry.container_id <= container_id < entry.container_id + entry.size:
            return entry.host_id + container_id - entry.container_id
    return None


def is_mapped(mappings: Mappings, host_id: int) -> bool:
    """Return whether the user namespace has an id of the host."""
    return any(entry.host_id <= host_id < entry.host_id + entry.size for entry in mappings)


def root_id(mappings: Mappings) -> int:
    """Return the id that owns what is created in the user namespace: 0, or the first mapped id if 0 is not mapped."""
    return 0 if host_id(mappings, 0) is not None else mappings[0].container_id


def mappings_of(linux: Linux | None, kind: str) -> tuple[IDMapping, ...]:
    """Return the mappings of ``uid`` or ``gid``."""
    return (getattr(linux, f"{kind}_mappings") if linux else None) or ()


def maps_own_id_alone(mappings: Mappings, own: int) -> bool:
    """Return whether this is the only mapping that an unprivileged user may write without a helper."""
    return len(mappings) == 1 and mappings[0].host_id == own and mappings[0].size == 1


def map_text(mappings: Mappings) -> str:
    """Return mappings in the kernel's format (user_namespaces(7))."""
    return "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in mappings)


# ---- user namespaces ----


def with_default_mappings(spec: RuntimeSpec, host: Host) -> RuntimeSpec:
    """Return the config with id mappings, as crun chooses them, if it has a new user namespace without any.

    The caller's own id becomes the user of the process, so that files it creates belong to the caller. The subordinate ids become
    all other ids, from 0 on.
    """
    linux = spec.linux
    if linux is None or all(mappings_of(linux, kind) for kind in ("uid", "gid")):
        return spec
    if not any(namespace.type == "user" and not namespace.path for namespace in linux.namespaces or ()):
        return spec
    user = spec.process.user if spec.process else None
    uid, gid = (user.uid or 0, user.gid or 0) if user else (0, 0)
    subuids, subgids = (host.subuids, host.subgids) if host.privileged or host.idmap_helpers else ((), ())
    uids = mappings_of(linux, "uid") or _default_mappings(uid, host.euid, subuids)
    gids = mappings_of(linux, "gid") or _default_mappings(gid, host.egid, subgids)
    return spec.evolve(linux=linux.evolve(uid_mappings=uids, gid_mappings=gids))


def _default_mappings(process_id: int, own: int, ranges: Sequence[tuple[int, int]]) -> tuple[IDMapping, ...]:
    """Map ``process_id`` to the caller's own id, and the ids around it to the subordinate ranges."""
    mappings: list[tuple[int, int, int]] = []
    next_id = 0
    for first, count in ranges:
        before = process_id - next_id
        if 0 <= before < count:
            mappings += [(next_id, first, before), (process_id, own, 1), (process_id + 1, first + before, count - before)]
            next_id += count + 1
        else:
            mappings.append((next_id, first, count))
            next_id += count
    if next_id <= process_id:
        mappings.append((process_id, own, 1))
    return tuple(IDMapping(container_id=inside, host_id=outside, size=size) for inside, outside, size in mappings if size)


def compile_id_mappings(builder: PlanBuilder, linux: Linux, host: Host, *, configured: Linux) -> None:
    """Let the caller write the mappings of the process that the init has just forked.

    Args:
        configured: ``linux`` of the config, which may leave the mappings to `with_default_mappings`.

    Raises:
        UnsupportedError: this user may not map an id.
    """
    for kind, own, ranges in (("uid", host.euid, host.subuids), ("gid", host.egid, host.subgids)):
        mappings = mappings_of(linux, kind)
        text = map_text(mappings)
        helper = ""
        if not host.privileged:
            if not maps_own_id_alone(mappings, own):
                helper = _helper(kind, mappings, host, ((own, 1), *ranges))
            elif kind == "gid":
                builder.add_host("proc_write", "setgroups", "deny", text="deny > /proc/PID/setgroups, for an unprivileged gid map")
        description = ", ".join(text.splitlines())
        description = f"{helper} PID {description}" if helper else f"{description} > /proc/PID/{kind}_map"
        if not mappings_of(configured, kind):
            subordinate = f" and the ids of /etc/sub{kind}" if len(mappings) > 1 else ""
            description += f" (default without {kind}Mappings: the caller's own id{subordinate})"
        builder.add_host("idmap", f"{kind}_map", text, helper, text=description)


def _helper(kind: str, mappings: Mappings, host: Host, ranges: Sequence[tuple[int, int]]) -> str:
    """Return the program that writes a mapping for an unprivileged user."""
    location = f"$.linux.{kind}Mappings"
    for index, entry in enumerate(mappings):
        last = entry.host_id + entry.size - 1
        if not any(first <= entry.host_id and last < first + count for first, count in ranges):
            raise UnsupportedError(
                f"{location}[{index}]: user {host.euid} may not map the host ids {entry.host_id}-{last}; "
                f"let root add them to /etc/sub{kind}, or map {kind} {host.euid if kind == 'uid' else host.egid} alone"
            )
    if not host.idmap_helpers:
        raise UnsupportedError(f"{location}: mapping more than the own id needs new{kind}map (Debian: uidmap) or root")
    return host.idmap_helpers[0 if kind == "uid" else 1]


def compile_stream_owner(builder: PlanBuilder, process: ProcessSpec, linux: Linux | None) -> None:
    """Give pipes among the standard streams to the process's user while the init is still outside of the user namespace."""
    uid = process.user.uid or 0 if process.user else 0
    owner = host_id(mappings_of(linux, "uid"), uid)
    if owner is not None and not process.terminal:
        builder.add("own_stdio", owner, text=f"standard streams that are pipes, for the host's user {owner}")


# ---- mounts ----


class MountMappings:
    """The user namespaces that hold the id mappings of a container's mounts: one for each pair of mappings."""

    def __init__(self, builder: PlanBuilder, spec: RuntimeSpec, host: Host) -> None:
        self._builder, self._spec, self._host = builder, spec, host
        self._slots: dict[object, int] = {}

    def refuse(self, mount: Mount, options: MountOptions, location: str) -> None:
        """Raise UnsupportedError if a mount that is not a bind mount has an id mapping."""
        if options.idmap or mount.uid_mappings or mount.gid_mappings:
            raise UnsupportedError(f"{location}: only bind mounts can be id-mapped")

    def slot_for(self, mount: Mount, options: MountOptions, location: str) -> int:
        """Return the slot of the user namespace with the id mapping of a bind mount, or NO_SLOT if it has none.

        Raises:
            UnsupportedError: the caller is not root.
        """
        uids, gids = mount.uid_mappings or (), mount.gid_mappings or ()
        if not options.idmap and not uids and not gids:
            return NO_SLOT
        if self._host.euid != 0:
            raise UnsupportedError(f"{location}: an id-mapped mount needs root; run as root, or remove the mapping")
        if uids:
            return self._namespace(location, (map_text(uids), map_text(gids)))
        linux = self._spec.linux
        assert linux is not None, "the rules require a user namespace"
        path = next((namespace.path for namespace in linux.namespaces or () if namespace.type == "user"), None)
        if not path:
            return self._namespace(location, (map_text(linux.uid_mappings or ()), map_text(linux.gid_mappings or ())))
        if path not in self._slots:
            self._slots[path] = self._builder.add_input("namespace", location, path, ops.CLONE_NEW["user"])
        return self._slots[path]

    def _namespace(self, location: str, maps: tuple[str, str]) -> int:
        if maps not in self._slots:
            self._slots[maps] = self._builder.add_input("userns", location, maps=maps)
        return self._slots[maps]


_UNSHARED_BY_INIT: Final = frozenset({"cgroup", "time"})
"""A new cgroup namespace has the cgroup of the process that unshares it as its root; a new time namespace is for children."""
DETACHED_TREES: Final = (6, 15)
"""The first kernel that can mount in a detached tree and copy from one."""


class JoinedNamespace(NamedTuple):
    """An existing namespace that the container joins."""

    kind: str
    path: str
    location: str
    """The JSON path of ``path``."""


class Namespaces(NamedTuple):
    """The namespaces of a container that are not the runtime's."""

    new: tuple[str, ...]
    joined: tuple[JoinedNamespace, ...]

    @property
    def own(self) -> tuple[str, ...]:
        """The types of the namespaces that the container does not share with the runtime."""
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
    return sum(ops.CLONE_NEW[kind] for kind in kinds)


def namespaces_of(linux: Linux | None) -> Namespaces:
    """Return the namespaces that a config asks for."""
    new: list[str] = []
    joined: list[JoinedNamespace] = []
    for index, namespace in enumerate((linux.namespaces if linux else None) or ()):
        kind = str(namespace.type)
        if namespace.path:
            joined.append(JoinedNamespace(kind, namespace.path, f"$.linux.namespaces[{index}].path"))
        else:
            new.append(kind)
    return Namespaces(tuple(new), tuple(joined))


def changed_namespaces(spec: RuntimeSpec) -> frozenset[str]:
    """Return the types of the namespaces that the config changes; one of the runtime's must not be joined for them."""
    sysctl = (spec.linux.sysctl if spec.linux else None) or {}
    names = ("uts",) if spec.hostname or spec.domainname else ()
    return frozenset((*names, *(kind for key in sysctl if (kind := sysctl_namespace(key)))))


def check_shared_tree(namespaces: Namespaces, host: Host) -> None:
    """Check a container without a new mount namespace, whose mounts must stay out of the one that it shares.

    Raises:
        UnsupportedError: the kernel is too old, or the user namespace would have no privileges over the mount namespace.
    """
    if namespaces.user and "mount" not in namespaces.own:
        raise UnsupportedError(
            "$.linux.namespaces: a user namespace needs a mount namespace, as mounts need its privileges; add one"
        )
    if host.kernel < DETACHED_TREES:
        version = ".".join(map(str, DETACHED_TREES))
        raise UnsupportedError(f"$.linux.namespaces: a container without a new mount namespace needs Linux {version}; add one")


# ---- entering ----


def compile_clone(builder: PlanBuilder, namespaces: Namespaces, cgroup: str) -> int:
    """Clone the init, into a v2 cgroup if one is given, and return the flags of the clone."""
    kinds = () if namespaces.user else tuple(kind for kind in namespaces.new if kind not in _UNSHARED_BY_INIT)
    text = "init process" if namespaces.user else f"init process in new namespaces: {', '.join(kinds) or 'none'}"
    builder.add_host("clone3", _bits(kinds), cgroup, text=text + (f"; cgroup {cgroup}" if cgroup else ""))
    return _bits(kinds)


def compile_enter(
    builder: PlanBuilder,
    namespaces: Namespaces,
    linux: Linux | None,
    host: Host,
    changed: Collection[str],
    *,
    configured: Linux | None,
) -> None:
    """Bring the init into the namespaces that it was not cloned into.

    Args:
        changed: the types of the namespaces that the config changes.
        configured: ``linux`` of the config, without default id mappings.

    Raises:
        UnsupportedError: this user may not map an id.
    """
    proc = open_procfs(builder) if "time" in namespaces.new else NO_SLOT
    if namespaces.joined:
        _join(builder, namespaces, host, changed)
    # A time namespace belongs to the user namespace of the init. Unshared before the fork into joined namespaces, it is not yet
    # visible to their processes.
    before_fork = "time" in namespaces.new and namespaces.user and "user" not in namespaces.new
    if before_fork:
        _unshare_time(builder, linux, host, proc)
    if namespaces.user:
        assert linux is not None
        assert configured is not None
        _fork(builder, namespaces, linux, host, configured)
    elif "pid" in namespaces.own and "pid" not in namespaces.new:
        builder.add("fork", 0, text="child process in the pid namespace that was joined")
    if "cgroup" in namespaces.new:
        builder.add("unshare", ops.CLONE_NEW["cgroup"], text="new cgroup namespace, with the current cgroup as its root")
    if "time" in namespaces.new and not before_fork:
        _unshare_time(builder, linux, host, proc)
        slot = builder.new_slot()
        builder.add("open", proc, "self/ns/time_for_children", 0, 0, 0, slot, text="/proc/self/ns/time_for_children")
        builder.add("setns", slot, ops.CLONE_NEW["time"], text="time namespace of the children")


def _join(builder: PlanBuilder, namespaces: Namespaces, host: Host, changed: Collection[str]) -> None:
    # A privileged init joins the user namespace last, because its privileges may be needed for the others and end there. An
    # unprivileged one joins it first, because it gives them. The mount namespace comes after the paths of the runtime's are used.
    order = {"mount": 1, "user": 2} if host.privileged else {"mount": 1, "user": -1}
    directory = builder.new_slot()
    builder.add("open", NO_SLOT, "/proc/self/ns", ops.O_PATH, 0, 0, directory, text="/proc/self/ns")
    for namespace in sorted(namespaces.joined, key=lambda joined: order.get(joined.kind, 0)):
        bit = ops.CLONE_NEW[namespace.kind]
        kind = "changed" if namespace.kind in changed else "namespace"
        slot = builder.add_input(kind, namespace.location, namespace.path, bit)
        if namespace.kind == "user":
            drop_groups(builder, host)
        # A process never changes its own pid namespace; joining one affects its children.
        name = "pid_for_children" if namespace.kind == "pid" else ops.NAMESPACE_FILES[namespace.kind]
        builder.add("join", slot, bit, directory, name, text=f"{namespace.kind} namespace {namespace.path}")


def drop_groups(builder: PlanBuilder, host: Host) -> None:
    """Drop the caller's groups before an existing user namespace is joined, which may deny setgroups(2)."""
    if host.privileged and host.may_setgroups:
        builder.add("setgroups", b"", 0, text="no supplementary groups of the caller")


def _fork(builder: PlanBuilder, namespaces: Namespaces, linux: Linux, host: Host, configured: Linux) -> None:
    kinds = tuple(kind for kind in namespaces.new if kind not in _UNSHARED_BY_INIT)
    text = f"child process in new namespaces: {', '.join(kinds) or 'none'}"
    if "user" not in namespaces.new:
        builder.add("fork", _bits(kinds), text=text)
        return
    with dumpable(builder, host, "for the id mappings that the caller writes"):
        builder.add("fork", _bits(kinds), text=text)
        compile_id_mappings(builder, linux, host, configured=configured)


def _unshare_time(builder: PlanBuilder, linux: Linux | None, host: Host, proc: int) -> None:
    offsets = (linux.time_offsets if linux else None) or {}
    lines = [f"{clock} {offset.secs or 0} {offset.nanosecs or 0}\n" for clock, offset in offsets.items()]
    builder.add("unshare", ops.CLONE_NEW["time"], text="new time namespace, for children")
    if not lines:
        return
    slot = builder.new_slot()
    with dumpable(builder, host, "for /proc/self/timens_offsets"):
        builder.add("open", proc, "self/timens_offsets", ops.O_WRONLY, 0, 0, slot, text="/proc/self/timens_offsets")
    description = ", ".join(line.rstrip("\n") for line in lines)
    with builder.at("$.linux.timeOffsets"):
        builder.add("write", slot, "", "".join(lines).encode(), text=f"{description} > /proc/self/timens_offsets")


@contextmanager
def dumpable(builder: PlanBuilder, host: Host, reason: str) -> Iterator[None]:
    """Make the init dumpable for the steps of a block: only then do its files in /proc belong to an unprivileged caller."""
    if not host.privileged:
        builder.add("prctl", ops.PR_SET_DUMPABLE, 1, 0, text=f"dumpable, {reason}")
    yield
    if not host.privileged:
        builder.add("prctl", ops.PR_SET_DUMPABLE, 0, 0, text="not dumpable again, so that no process of the caller can trace it")


# ---- the user namespace ----


class Setgroups(Enum):
    """What setgroups(2) may do in the container's user namespace."""

    ALLOWED = "allowed"
    """The supplementary groups are exactly those of the config."""
    DENIED = "denied"
    """An unprivileged user wrote the gid mapping, and must not drop a group by which access is denied."""
    UNKNOWN = "unknown"
    """The namespace exists already."""
    KEPT = "kept"
    """The annotation `KEEP_GROUPS` keeps the groups of the caller."""


KEEP_GROUPS: Final = "run.oci.keep_original_groups"
"""The annotation that keeps the supplementary groups of the caller, with the value 1, as crun has it."""


def setgroups_in(namespaces: Namespaces, spec: RuntimeSpec, host: Host) -> Setgroups:
    """Return what setgroups(2) may do in the user namespace of a container."""
    linux = spec.linux
    if (spec.annotations or {}).get(KEEP_GROUPS) == "1":
        return Setgroups.KEPT
    if "user" not in namespaces.new and namespaces.user:
        return Setgroups.UNKNOWN
    if not host.may_setgroups:
        return Setgroups.DENIED
    if namespaces.user and not host.privileged and maps_own_id_alone(mappings_of(linux, "gid"), host.egid):
        return Setgroups.DENIED
    return Setgroups.ALLOWED


def become_root(builder: PlanBuilder, namespaces: Namespaces, linux: Linux | None) -> None:
    """Become root of the user namespace, which owns what is created from here on.

    Until here the init has the caller's ids, and can open what only they may open.
    """
    if not namespaces.user:
        return
    for kind in ("gid", "uid"):
        root = root_id(mappings_of(linux, kind)) if "user" in namespaces.new else 0
        builder.add(f"setres{kind}", root, text=f"{kind} {root} in the user namespace")


# ---- the uts and network namespaces, and kernel parameters ----


def compile_names(builder: PlanBuilder, spec: RuntimeSpec) -> None:
    """Set the hostname and the domain name."""
    for name, op in (("hostname", "sethostname"), ("domainname", "setdomainname")):
        value = getattr(spec, name)
        if value:
            builder.add(op, value, text=f"{name} {value}")


def compile_loopback(builder: PlanBuilder, namespaces: Namespaces) -> None:
    """Bring up the loopback device of a new network namespace, as other runtimes do; without it 127.0.0.1 is not reachable."""
    if "network" in namespaces.new:
        builder.add("link_up", "lo", text="loopback device lo")


def compile_net_devices(builder: PlanBuilder, linux: Linux | None, own: Container[str]) -> None:
    """Move network devices of the host with their addresses into the container (config-linux.md#network-devices).

    The init opens a netlink socket in the container's network namespace and hands it out: through it the caller finds, renames and
    configures what it has moved, without entering the namespace.

    Args:
        own: the types of the namespaces that are not the runtime's.

    Raises:
        SpecError: the container shares the runtime's network namespace.
    """
    devices = (linux.net_devices if linux else None) or {}
    if not devices:
        return
    if "network" not in own:
        message = "network devices can only move into a network namespace that is not the host's"
        raise SpecError([Problem("$.linux.netDevices", message, "config-linux.md#network-devices")])
    values = ops.AF_NETLINK, ops.SOCK_RAW, ops.NETLINK_ROUTE
    builder.add("socket", *values, text="netlink socket in the container's network namespace, for the caller")
    for name, device in devices.items():
        new_name = device.name or name
        builder.add_host(
            "netdev_move", name, new_name, text=f"network device {name}" + (f" as {new_name}" if new_name != name else "")
        )


class Port(NamedTuple):
    """A port of the host that is forwarded to one of the container."""

    address: str
    """The IPv4 address of the host at which connections are accepted."""
    number: int
    container_port: int
    protocol: str = "tcp"
    """``tcp`` or ``udp``."""

    @property
    def at(self) -> str:
        """Where connections are accepted: ``127.0.0.1:8080/tcp``."""
        return f"{self.address}:{self.number}/{self.protocol}"


class PrivateNetwork(NamedTuple):
    """User-mode networking for the network namespace of one container (see `ociruntime.engine.networks`)."""

    program: str
    """The path of pasta or slirp4netns."""
    reason: str = ""
    """Why it is not the better one."""
    ports: tuple[Port, ...] = ()
    nameservers: tuple[str, ...] = ()
    """The addresses of resolvers, as the container reaches them."""
    resolver_options: tuple[str, ...] = ()
    """Further lines for resolv.conf."""
    forwards_dns: bool = False
    """Whether the program forwards queries to a resolver on the loopback address of the host."""
    warning: str = ""


def compile_private_network(builder: PlanBuilder, linux: Linux | None, namespaces: Namespaces, network: PrivateNetwork) -> None:
    """Let the caller connect the new network namespace of the container with its own.

    The caller finds the namespace by a netlink socket in it, as for `compile_net_devices`.
    """
    assert "network" in namespaces.new, "the configuration has a new network namespace"
    if network.warning:
        builder.warn(network.warning)
    if not (linux and linux.net_devices):
        values = ops.AF_NETLINK, ops.SOCK_RAW, ops.NETLINK_ROUTE
        builder.add("socket", *values, text="netlink socket in the container's network namespace, for the caller")
    text = f"user-mode networking by {network.program}" + (f", because {network.reason}" if network.reason else "")
    text += "".join(f"; {port.at} -> {port.container_port}" for port in network.ports)
    builder.add_host("network", network.program, tuple(map(tuple, network.ports)), network.forwards_dns, text=text)


def compile_sysctl(builder: PlanBuilder, linux: Linux | None, proc: int) -> None:
    """Write kernel parameters through the procfs in a slot (config-linux.md#sysctl)."""
    for key, value in ((linux.sysctl if linux else None) or {}).items():
        path = sysctl_path(key)
        with builder.at(f"$.linux.sysctl[{key!r}]"):
            builder.add("write", proc, "sys/" + path, value.encode(), text=f"sysctl {path.replace('/', '.')} = {value}")


# ---- a procfs for the init ----


def open_procfs(builder: PlanBuilder) -> int:
    """Open the procfs of the runtime's mount namespace."""
    slot = builder.new_slot()
    builder.add("open", NO_SLOT, "/proc", ops.O_PATH, 0, 0, slot, text="/proc")
    builder.add("prove_proc", slot, text="/proc is the root of a procfs")
    return slot


def compile_procfs(builder: PlanBuilder, linux: Linux | None, process: ProcessSpec, own: Collection[str]) -> int:
    """Mount a procfs for what the init itself writes, out of reach of the container's mounts; return its slot, or NO_SLOT.

    In a user namespace without a pid namespace of its own a procfs cannot be mounted, so the host's is used.
    """
    if not ((linux is not None and linux.sysctl) or process.apparmor_profile or process.selinux_label):
        return NO_SLOT
    slot = builder.new_slot()
    if "user" in own and "pid" not in own:
        builder.add("open", NO_SLOT, "/proc", ops.O_PATH, 0, ops.RESOLVE_NO_SYMLINKS, slot, text="/proc of the host")
        builder.add("prove_proc", slot, text="/proc of the host is the root of a procfs")
        return slot
    context = builder.new_slot()
    builder.add("fsopen", "proc", context, text="proc for the init process")
    builder.add("fsconfig", context, ops.FSCONFIG_CMD_CREATE, "", "", text="create the proc for the init process")
    attributes = ops.MOUNT_ATTR_NOSUID | ops.MOUNT_ATTR_NODEV | ops.MOUNT_ATTR_NOEXEC
    builder.add("fsmount", context, attributes, slot, text="proc for the init process, not attached")
    builder.add("prove_proc", slot, text="proc for the init process is the root of a procfs")
    return slot
