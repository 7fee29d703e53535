"""`compile_create` and `compile_exec`: a spec and a host in, a `Plan` out. Pure: no system call, no file, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
from ..spec import Process
from ..spec.rules.config import config_problems, process_problems
from ..spec.rules.host import host_problems
from . import kernel as k
from .cgroups import (
    Manager,
    attached,
    compile_attach,
    compile_cgroups,
    compile_join,
    compile_late,
    compile_owner,
    compile_scope,
    placed,
)
from .credentials import ALL, compile_identity, compile_labels, compile_parent
from .devices import Devices
from .hooks import compile_create_hooks, compile_hooks, compile_start_hooks, compile_state
from .id_mappings import compile_streams, with_idmaps
from .joining import allow_fork, close_all, compile_fork, forks_last, hide_page
from .model import NO_SLOT, Builder, Plan
from .mounts import Mounts
from .namespaces import (
    Groups,
    changed_namespaces,
    check_foreign_tree,
    compile_clone,
    compile_enter,
    compile_loopback,
    compile_names,
    compile_net_devices,
    compile_procfs,
    compile_root,
    compile_sysctl,
    groups_in,
    leave_groups,
    namespaces_of,
)
from .ops import Sync
from .process import (
    candidates,
    compile_affinity,
    compile_exec_step,
    compile_keyring,
    compile_limits,
    compile_memory_policy,
    compile_oom_score,
    compile_personality,
    compile_scheduling,
    compile_terminal,
    make_cwd,
    take_terminal,
)
from .rdt import compile_rdt, compile_rdt_join
from .rootfs import (
    change_root,
    compile_hidden,
    copy_root,
    enter_root,
    finish_root,
    hang_root,
    open_place,
    pivot_root,
    rootfs_path,
    settle_tree,
)

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import RuntimeSpec


def compile_create(
    spec: RuntimeSpec,
    host: Host,
    *,
    bundle: str,
    container_id: str = "ID",
    gate: bool = True,
    manager: Manager = "cgroupfs",
    die_with_parent: bool | None = False,
    empty: bool = False,
) -> Plan:
    """Compile what creates and starts a container.

    Args:
        spec: the container's config.json.
        host: what the kernel offers.
        bundle: absolute path of the bundle directory.
        container_id: names the cgroup when the spec does not.
        gate: whether the init waits for ``start`` before the process; without it the container runs at once.
        manager: who makes the cgroups.
        empty: whether no program runs: the init stays as the first process and reaps, for a pod.
        die_with_parent: whether the container is killed when the process that launches it ends. None: as far as the kernel does it,
            which is the first process alone where there is no new pid namespace, and until that gains capabilities by execve.

    Raises:
        SpecError: the config contradicts itself or asks for what no host can do.
        UnsupportedError: this host or this version cannot do it.
    """
    check(spec, host)
    asked = spec.linux
    spec = with_idmaps(spec, host)
    linux = spec.linux
    # A container without a process waits at the gate, which will not open.
    process = spec.process or Process(cwd="/")
    if spec.process is None and not gate and not empty:
        raise SpecError([Problem("$.process", "is needed to start a container", "config.md#process")])
    if spec.root is None:
        raise SpecError([Problem("$.root", "is needed on Linux", "config.md#root")])

    spaces = namespaces_of(linux)
    own = spaces.own
    if die_with_parent and "pid" not in spaces.new:
        raise UnsupportedError("$.linux.namespaces: to die with its parent a container needs a pid namespace of its own")
    b = Builder()
    hooks = compile_hooks(b, spec)

    b.phase = "On the host, before the clone"
    setup = compile_cgroups(b, linux, container_id, host, manager)
    placement = setup.placement
    if not placement.scope:
        compile_owner(b, placement, spec, spaces, host)
    groups = compile_rdt(b, linux, host, container_id)
    flags = compile_clone(b, spaces, placement.into)
    rootfs = rootfs_path(spec, bundle)
    mounts = Mounts(b, spec, host, bundle=bundle, rootfs=rootfs, own=own, placement=placement)
    devices = Devices(b, linux, mounts, host, spaces)

    # Who enters a user namespace leaves his rights over the host's files and mounts behind.
    own_tree = "mount" in spaces.new
    if not own_tree:
        check_foreign_tree(spaces, host)
    # In a mount namespace that is joined only what was copied there can be mounted on.
    early = host.privileged and (spaces.user if own_tree else "mount" not in own)
    root = NO_SLOT
    in_sight = "In the new namespaces, with the host's tree in sight"
    b.phase = "Still in the caller's namespaces" if early else in_sight
    if placement.scope:
        compile_scope(b, setup, spec, container_id, host)
        compile_owner(b, placement, spec, spaces, host)
    if early:
        root = copy_root(b, spec, rootfs, early=True)
        mounts.sources(early=True)
        if spaces.user:
            compile_streams(b, process, linux)
            devices.outside()

    b.phase = in_sight
    compile_oom_score(b, process, host, early=True)
    compile_join(b, placement)
    compile_enter(b, spaces, linux, host, changed_namespaces(spec), asked=asked)
    compile_loopback(b, spaces.new)
    compile_net_devices(b, linux, own)
    if own_tree:
        settle_tree(b, spec)
    if not early:
        root = copy_root(b, spec, rootfs, early=not own_tree)
        if spaces.user or not own_tree:
            mounts.sources(early=not own_tree)
    devices.sources()
    place = open_place(b, rootfs) if hooks.at_create and own_tree else NO_SLOT
    compile_root(b, spaces, linux)
    mounts.prepare()
    proc = compile_procfs(b, linux, process, own)
    if hooks.at_create or not own_tree:
        if own_tree:
            # Hooks find everything mounted below the path of the rootfs, in this copy of the host's tree.
            hang_root(b, root, place)
        root, attached = mounts.attach(root, pivot=False)
        devices.compile(root, attached)
        if hooks.at_create:
            b.phase = "Hooks"
            compile_create_hooks(b, hooks, root)
        b.phase = "In the container's root"
        (pivot_root if own_tree else change_root)(b, root)
    else:
        enter_root(b, spec, root)
        b.phase = "In the container's root"
        root, attached = mounts.attach(root)
        devices.compile(root, attached)
    compile_names(b, spec)
    compile_sysctl(b, linux, proc)
    compile_hidden(b, linux, root)
    b.init("setsid", text="a session of its own")
    if process.terminal:
        compile_terminal(b, process, attached, root)
        take_terminal(b, process)
    # The terminal's file and the working directory may be missing in the image.
    if spec.root.readonly:
        make_cwd(b, process, root)
    finish_root(b, spec, root)

    b.phase = "The process"
    compile_limits(b, process)
    compile_scheduling(b, process)
    compile_memory_policy(b, linux)
    compile_personality(b, linux)
    compile_keyring(b, host)
    b.init("chdir", process.cwd, 1, text=f"{process.cwd}, made where missing")
    if spec.process is not None and not empty:
        b.init("lookup", root, candidates(process), text=f"{(process.args or ('',))[0]} is there and executable")
    compile_labels(b, process, host, proc, empty=empty)
    b.init("sync", Sync.CREATED, text="the caller writes the state: the container is created")
    compile_state(b, hooks)
    compile_oom_score(b, process, host)
    compile_rdt_join(b, groups)
    compile_late(b, setup)
    parent = b.input("parent", "the caller") if die_with_parent is not False else NO_SLOT
    if gate:
        if parent != NO_SLOT:
            compile_parent(b, parent)
        slot = b.input("gate", "the start gate")
        b.phase = "After start"
        b.init("gate", slot, text="wait for start")
    if spec.process is not None or empty:
        compile_identity(
            b,
            process,
            host,
            linux.seccomp if linux else None,
            held=ALL if spaces.user else None,
            allowed=groups_in(spaces, linux, host),
            parent=parent,
            strict=bool(die_with_parent),
        )
        compile_start_hooks(b, hooks, root)
        if empty:
            b.init("reap", text="no program: reap what ends, until HUP, INT or TERM")
        else:
            compile_exec_step(b, process)
    return b.plan(
        f"create {container_id} from {bundle}",
        clone_flags=flags,
        cgroups=placement.directories,
        namespaces=spaces.bits,
        terminal=bool(process.terminal),
        hooks=hooks.stored(),
    )


def compile_exec(
    process: Process,
    spec: RuntimeSpec,
    host: Host,
    *,
    namespaces: int,
    cgroups: tuple[str, ...],
    unit: tuple[str, bool, str] | None = None,
    container_id: str = "ID",
    pid: int = 0,
) -> Plan:
    """Compile what runs a further process in a container (runtime.md has no exec; the peers' behaviour).

    Args:
        process: what to run.
        spec: the container's config, for its seccomp profile.
        namespaces: the CLONE_NEW* bits of the namespaces to join.
        cgroups: the container's cgroup directories.
        unit: the systemd unit of the cgroup, whether the user's own systemd has it, and its directory.
        pid: the container's process, whose root is taken when it is not that of its mount namespace.

    Raises:
        SpecError, UnsupportedError: as for `compile_create`.
    """
    check_process(spec, process)
    b = Builder()
    b.phase = "On the host, before the clone"
    placement = placed(cgroups, host)
    attach = attached(unit, placement, host)
    # A process that starts in the cgroup has no CPUs before it.
    later = bool(process.exec_cpu_affinity and process.exec_cpu_affinity.initial)
    into = "" if later or attach else placement.into
    b.host("clone3", 0, into, text="the init" + (f", in {into}" if into else ""))
    b.phase = "Into the container"
    compile_oom_score(b, process, host, early=True)
    compile_affinity(b, process, "initial")
    compile_join(b, placement, unified=later and not attach)
    compile_attach(b, attach)
    compile_affinity(b, process, "final")
    pidfd = b.input("pidfd", "the container's process")
    names = ", ".join(name for name, bit in k.CLONE_NEW.items() if namespaces & bit)
    linux = spec.linux
    spaces = namespaces_of(linux)
    seccomp = linux.seccomp if linux else None
    user = bool(namespaces & k.CLONE_NEW["user"])
    foreign = b.input("path", "the container's root", f"/proc/{pid}/root") if "mount" not in spaces.new else NO_SLOT
    if process.apparmor_profile or process.selinux_label:
        proc = b.slot()
        b.init("open", NO_SLOT, "/proc", k.O_PATH, 0, 0, proc, text="/proc")
        b.init("prove_proc", proc, text="it is the root of a procfs")
        compile_labels(b, process, host, proc)
    if user:
        leave_groups(b, host)
    if namespaces:
        b.init("setns", pidfd, namespaces, text=f"the container's namespaces: {names}")
    if foreign != NO_SLOT:
        change_root(b, foreign)
    # Behind the fork the container sees the process.
    forks = bool(namespaces & k.CLONE_NEW["pid"])
    last = forks and forks_last(process, seccomp, host, user=user)
    if not last:
        close_all(b)
    if forks and not last:
        b.init("fork", 0, text="a pid namespace holds for children only")
    b.phase = "The process"
    if not last:
        b.init("setsid", text="a session of its own")
    if process.terminal:
        if user:  # or the terminal would be somebody's whom this user namespace does not know
            b.init("setresgid", 0, text="root's group in the container")
            b.init("setresuid", 0, text="root in the container")
        root = b.slot()
        b.init("open", NO_SLOT, "/", k.O_PATH, 0, 0, root, text="the container's root")
        compile_terminal(b, process, {}, root)
        if not last:
            take_terminal(b, process)
    if last:
        allow_fork(b, process)
    compile_limits(b, process, without="RLIMIT_NPROC" if last else "")
    compile_scheduling(b, process)
    compile_memory_policy(b, linux)
    compile_personality(b, linux)
    compile_keyring(b, host)
    b.init("chdir", process.cwd, 0, text=process.cwd)
    if last:
        close_all(b)
        hide_page(b)
    else:
        b.init("sync", Sync.CREATED, text="the caller knows the process")
        compile_oom_score(b, process, host)
    # Who made the user namespace may have been somebody else.
    allowed = Groups.UNKNOWN if user else groups_in(spaces, linux, host)
    held = ALL if user else None
    compile_identity(b, process, host, seccomp, held=held, allowed=allowed, seen=last)
    if last:
        b.phase = "In the pid namespace"
        compile_fork(b, process, host)
        b.init("setsid", text="a session of its own")
        take_terminal(b, process)
    compile_exec_step(b, process)
    return b.plan(f"exec in {container_id}", clone_flags=0, namespaces=namespaces, terminal=bool(process.terminal))


_BY_RULES_ALONE: Final = ("$.linux.memoryPolicy", "$.linux.personality", "$.linux.seccomp")
"""Members for which the compilers ask nothing of the host themselves."""


def check(spec: RuntimeSpec, host: Host) -> None:
    """Check a config. Raises SpecError with every error, and UnsupportedError: this host cannot do it."""
    _refuse(config_problems(spec))
    for problem in host_problems(spec, host):
        if problem.severity == "error" and problem.path.startswith(_BY_RULES_ALONE):
            raise UnsupportedError(f"{problem.path}: {problem.message}")


def check_process(spec: RuntimeSpec, process: Process) -> None:
    """Check a further process of a config's container. Raises SpecError with every error."""
    _refuse(process_problems(spec, process))


def _refuse(problems: list[Problem]) -> None:
    if errors := [problem for problem in problems if problem.severity == "error"]:
        raise SpecError(errors)
