"""`compile_create` and `compile_exec`: a spec and a host in, a `Plan` out. Pure: no system call, no file, no clock."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
from . import kernel as k
from .cgroups import cgroup_path, compile_cgroups, compile_join
from .devices import compile_devices
from .model import NO_SLOT, Builder, Plan
from .mounts import Prepared, attach, destination_in_root, prepare
from .process import candidates, compile_exec_step, compile_identity, compile_limits, compile_lsm, refuse_unsupported

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Linux, Process, RuntimeSpec

_SYSCTL_NAMESPACE: Final = (
    # prefix of the sysctl, the namespace that must be the container's own
    ("kernel.msgmax", "ipc"),
    ("kernel.msgmnb", "ipc"),
    ("kernel.msgmni", "ipc"),
    ("kernel.sem", "ipc"),
    ("kernel.shmall", "ipc"),
    ("kernel.shmmax", "ipc"),
    ("kernel.shmmni", "ipc"),
    ("kernel.shm_rmid_forced", "ipc"),
    ("fs.mqueue.", "ipc"),
    ("net.", "network"),
    ("kernel.domainname", "uts"),
)
_SWAP: Final = str.maketrans("./", "/.")
_PROPAGATION: Final = {
    "private": k.MS_PRIVATE,
    "slave": k.MS_SLAVE,
    "shared": k.MS_SHARED,
    "unbindable": k.MS_UNBINDABLE,
}


def compile_create(spec: RuntimeSpec, host: Host, *, bundle: str, container_id: str = "ID", gate: bool = True) -> Plan:
    """Compile what creates and starts a container.

    Args:
        spec: the container's config.json.
        host: what the kernel offers.
        bundle: absolute path of the bundle directory.
        container_id: names the cgroup when the spec does not.
        gate: whether the init waits for ``start`` before the process; without it the container runs at once.

    Raises:
        SpecError: the config contradicts itself or asks for what no host can do.
        UnsupportedError: this host or this version cannot do it.
    """
    linux, process = spec.linux, spec.process
    if process is None:
        raise SpecError([Problem("$.process", "is needed to start a container", "config.md#process")])
    if spec.root is None:
        raise SpecError([Problem("$.root", "is needed on Linux", "config.md#root")])
    if spec.hooks is not None and any(getattr(spec.hooks, name) for name in _HOOKS):
        raise UnsupportedError("$.hooks: hooks are not supported yet")
    _refuse(linux)
    refuse_unsupported(process)
    compile_lsm(process, host)

    own = _namespaces(linux)
    b = Builder()

    b.phase = "On the host, before the clone"
    directories = compile_cgroups(
        b, linux.resources if linux else None, cgroup_path(linux.cgroups_path if linux else None, container_id), host
    )
    flags = sum(k.CLONE_NEW[name] for name in own)
    into = next((d for h, d in zip(host.hierarchies, directories, strict=True) if h.version == 2), "")
    shown = ", ".join(own) or "none"
    b.host("clone3", flags, into, text=f"the init, with namespaces of its own: {shown}" + (f"; in {into}" if into else ""))

    b.phase = "In the new namespaces, with the host's tree in sight"
    compile_join(b, directories, host)
    root, prepared = _prepare_root(b, spec, linux, own, bundle)
    proc = next((m for m in prepared if m.fstype == "proc"), None)

    b.phase = "In the container's root"
    b.init("pivot_root", root, text="the rootfs is / from here on, and the host's tree is out of reach")
    attached = {mount.destination: attach(b, mount, root) for mount in prepared}
    _devices(b, linux, root, attached)
    _names(b, spec, own)
    _sysctl(b, linux, own, proc)
    _hide(b, linux, root, attached)
    if spec.root.readonly:
        b.init("mount_setattr", root, 0, k.MOUNT_ATTR_RDONLY, 0, 0, NO_SLOT, text="/ read-only")

    b.phase = "The process"
    b.init("setsid", text="a session of its own")
    if process.terminal:
        _console(b, process, attached, root)
    compile_limits(b, process)
    b.init("chdir", process.cwd, 1, text=f"{process.cwd}, made where missing")
    b.init("lookup", root, candidates(process), text=f"{(process.args or ('',))[0]} is there and executable")
    b.init("sync", 0, text="the caller writes the state: the container is created")
    if process.oom_score_adj is not None:
        b.host("proc_write", "oom_score_adj", str(process.oom_score_adj), text=f"{process.oom_score_adj} > /proc/PID/oom_score_adj")
    if gate:
        slot = b.input("gate", "the start gate")
        b.phase = "After start"
        b.init("gate", slot, text="wait for start")
    compile_identity(b, process, host, linux.seccomp if linux else None)
    compile_exec_step(b, process)
    return b.plan(
        f"create {container_id} from {bundle}",
        clone_flags=flags,
        cgroups=directories,
        namespaces=flags,
        terminal=bool(process.terminal),
    )


def compile_exec(
    process: Process, spec: RuntimeSpec, host: Host, *, namespaces: int, cgroups: tuple[str, ...], container_id: str = "ID"
) -> Plan:
    """Compile what runs a further process in a container (runtime.md has no exec; the peers' behaviour).

    Args:
        process: what to run.
        spec: the container's config, for its seccomp profile.
        namespaces: the CLONE_NEW* bits of the namespaces to join.
        cgroups: the container's cgroup directories, one for each of the host's hierarchies.

    Raises:
        SpecError, UnsupportedError: as for `compile_create`.
    """
    refuse_unsupported(process)
    compile_lsm(process, host)
    b = Builder()
    b.phase = "On the host, before the clone"
    into = next((d for h, d in zip(host.hierarchies, cgroups, strict=True) if h.version == 2), "") if cgroups else ""
    b.host("clone3", 0, into, text="the init" + (f", in {into}" if into else ""))
    b.phase = "Into the container"
    if cgroups:
        compile_join(b, cgroups, host)
    pidfd = b.input("pidfd", "the container's process")
    names = ", ".join(name for name, bit in k.CLONE_NEW.items() if namespaces & bit)
    b.init("setns", pidfd, namespaces, text=f"the container's namespaces: {names}")
    if namespaces & k.CLONE_NEW["pid"]:
        b.init("fork", 0, text="a pid namespace holds for children only")
    b.phase = "The process"
    b.init("setsid", text="a session of its own")
    if process.terminal:
        root = b.slot()
        b.init("open", NO_SLOT, "/", k.O_PATH, 0, 0, root, text="the container's root")
        _console(b, process, {}, root)
    compile_limits(b, process)
    b.init("chdir", process.cwd, 0, text=process.cwd)
    b.init("sync", 0, text="the caller knows the process")
    if process.oom_score_adj is not None:
        b.host("proc_write", "oom_score_adj", str(process.oom_score_adj), text=f"{process.oom_score_adj} > /proc/PID/oom_score_adj")
    compile_identity(b, process, host, spec.linux.seccomp if spec.linux else None)
    compile_exec_step(b, process)
    return b.plan(f"exec in {container_id}", clone_flags=0, namespaces=namespaces, terminal=bool(process.terminal))


_HOOKS: Final = ("prestart", "create_runtime", "create_container", "start_container", "poststart", "poststop")


def _refuse(linux: Linux | None) -> None:
    # Nothing that somebody asked for is left out silently.
    if linux is None:
        return
    for name in (
        "uid_mappings",
        "gid_mappings",
        "time_offsets",
        "net_devices",
        "intel_rdt",
        "memory_policy",
        "personality",
        "mount_label",
    ):
        if getattr(linux, name, None):
            raise UnsupportedError(f"$.linux.{name}: not supported yet")


def _namespaces(linux: Linux | None) -> tuple[str, ...]:
    own: list[str] = []
    for index, namespace in enumerate((linux.namespaces if linux else None) or ()):
        kind, where = str(namespace.type), f"$.linux.namespaces[{index}]"
        if kind not in k.CLONE_NEW:
            raise SpecError([Problem(f"{where}.type", f"{kind!r} is not a namespace of Linux", "config-linux.md#namespaces")])
        if kind in own:
            raise SpecError([Problem(where, f"{kind} comes twice", "config-linux.md#namespaces")])
        if namespace.path:
            raise UnsupportedError(f"{where}.path: joining a namespace is not supported yet")
        if kind in ("user", "time"):
            raise UnsupportedError(f"{where}: {kind} namespaces are not supported yet")
        own.append(kind)
    if "mount" not in own:
        raise UnsupportedError("$.linux.namespaces: a container without a mount namespace of its own is not supported")
    return tuple(own)


def _prepare_root(
    b: Builder, spec: RuntimeSpec, linux: Linux | None, own: tuple[str, ...], bundle: str
) -> tuple[int, list[Prepared]]:
    assert spec.root is not None
    name = (linux.rootfs_propagation if linux else None) or "rprivate"
    bits = _PROPAGATION.get(name.removeprefix("r") if name not in _PROPAGATION else name)
    if bits is None:
        message = f"{name!r} is none of [r]private, [r]slave, [r]shared, unbindable"
        raise SpecError([Problem("$.linux.rootfsPropagation", message, "config-linux.md#rootfs-mount-propagation")])
    if bits in (k.MS_SHARED, k.MS_UNBINDABLE):
        raise UnsupportedError(f"$.linux.rootfsPropagation: {name} is not supported yet")
    b.init(
        "mount_setattr", NO_SLOT, k.AT_RECURSIVE, 0, 0, bits, NO_SLOT, text=f"the whole tree {name}: nothing goes back to the host"
    )
    path = posixpath.normpath(posixpath.join(bundle, spec.root.path))
    root, target = b.slot(), b.slot()
    b.init("open_tree", NO_SLOT, path, k.OPEN_TREE_CLONE | k.AT_RECURSIVE, root, text=f"{path}: the container's root")
    b.init("open", NO_SLOT, path, k.O_PATH, 0, 0, target, text=f"{path}: where it will hang")
    b.init("move_mount", root, target, text=f"the root -> {path}")
    return root, [prepare(b, mount, index, bundle) for index, mount in enumerate(spec.mounts or ())]


def _devices(b: Builder, linux: Linux | None, root: int, attached: dict[str, int]) -> None:
    dev = b.slot()
    b.init("target", root, "/dev", 0, 0o755, NO_SLOT, dev, text="/dev")
    compile_devices(b, tuple((linux.devices if linux else None) or ()), root, dev)


def _names(b: Builder, spec: RuntimeSpec, own: tuple[str, ...]) -> None:
    for name, op in (("hostname", "sethostname"), ("domainname", "setdomainname")):
        value = getattr(spec, name)
        if not value:
            continue
        if "uts" not in own:
            raise SpecError([Problem(f"$.{name}", "needs a uts namespace of its own", f"config.md#{name}")])
        b.init(op, value, text=value)


def _sysctl(b: Builder, linux: Linux | None, own: tuple[str, ...], proc: Prepared | None) -> None:
    for key, value in ((linux.sysctl if linux else None) or {}).items():
        where = f"$.linux.sysctl[{key!r}]"
        # Dotted as in sysctl(8), where a slash stands for a dot in a name, or a path below /proc/sys.
        path = key if "/" in key.split(".", 1)[0] else key.translate(_SWAP)
        name = path.translate(_SWAP)
        if ".." in path.split("/") or path.startswith("/") or "\n" in key + value or "+" in key or not key:
            raise SpecError([Problem(where, "is not the name of a sysctl", "config-linux.md#sysctl")])
        namespace = next(
            (ns for prefix, ns in _SYSCTL_NAMESPACE if name == prefix or (prefix.endswith(".") and name.startswith(prefix))), None
        )
        if namespace is None:
            raise SpecError([Problem(where, "belongs to no namespace, so it would change the host", "config-linux.md#sysctl")])
        if namespace not in own:
            raise SpecError([Problem(where, f"needs a {namespace} namespace of its own", "config-linux.md#sysctl")])
        if proc is None:
            raise UnsupportedError(f"{where}: needs a proc mount in the container")
        b.init("write", proc.slot, "sys/" + path, value.encode(), text=f"{value} > {name}")


def _hide(b: Builder, linux: Linux | None, root: int, attached: dict[str, int]) -> None:
    if linux is None:
        return
    for path in linux.readonly_paths or ():
        b.init("readonly", root, destination_in_root(path), text=f"{path}, where it exists")
    if linux.masked_paths:
        null = b.slot()
        b.init("open", root, "dev/null", k.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, null, text="/dev/null")
        b.init("prove_null", null, text="/dev/null is the null device")
        for path in linux.masked_paths:
            b.init("mask", root, destination_in_root(path), null, text=f"{path}, where it exists")


def _console(b: Builder, process: Process, attached: dict[str, int], root: int) -> None:
    dev, devpts = b.slot(), attached.get("/dev/pts")
    b.init("open", root, "dev", k.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, dev, text="/dev")
    if devpts is None:
        devpts = b.slot()
        b.init("open", root, "dev/pts", k.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, devpts, text="/dev/pts")
    size = process.console_size
    rows, cols = (size.height, size.width) if size else (0, 0)
    b.init("console", devpts, dev, rows, cols, int(bool(attached)), text="a terminal from the container's own devpts")
