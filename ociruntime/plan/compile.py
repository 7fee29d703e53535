"""`compile_create` and `compile_exec`: compile a spec for a host into a `Plan`. Pure: no system call, no file, no clock."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import attrs

from ..errors import SpecError, UnsupportedError
from ..spec import ProcessSpec
from ..spec.base import Problem, destination_in_root, is_below
from ..spec.rules.config import config_problems, process_problems
from ..spec.rules.host import host_problems
from . import ops
from .cgroups import (
    Manager,
    Placement,
    cgroup_to_attach,
    compile_attach,
    compile_cgroups,
    compile_join,
    compile_owner,
    compile_scope,
    existing_placement,
)
from .cgroups.limits import compile_rdt, compile_rdt_join
from .devices import Devices
from .model import NO_SLOT, Input, Pattern, Plan, PlanBuilder, Step, Variation
from .mounts import Mounts
from .namespaces import (
    Setgroups,
    become_root,
    changed_namespaces,
    check_shared_tree,
    compile_clone,
    compile_enter,
    compile_loopback,
    compile_names,
    compile_net_devices,
    compile_private_network,
    compile_procfs,
    compile_stream_owner,
    compile_sysctl,
    drop_groups,
    namespaces_of,
    open_procfs,
    setgroups_in,
    with_default_mappings,
)
from .ops import Sync, Target
from .process import (
    ALL_CAPABILITIES,
    DEFAULT_PATH,
    allow_fork,
    candidates,
    close_unneeded,
    compile_affinity,
    compile_create_hooks,
    compile_credentials,
    compile_execve,
    compile_file_rights,
    compile_hook_state,
    compile_hooks,
    compile_keyring,
    compile_labels,
    compile_last_fork,
    compile_limits,
    compile_memory_policy,
    compile_oom_score,
    compile_parent_death,
    compile_personality,
    compile_scheduling,
    compile_start_hooks,
    compile_terminal,
    create_cwd,
    forks_last,
    hide_progress,
    reset_affinity,
    take_terminal,
)
from .rootfs import (
    attach_root,
    change_root,
    clone_root,
    cover_root,
    cut_tree_propagation,
    enter_root,
    finish_root,
    hide_paths,
    open_rootfs_place,
    pivot_root,
    rootfs_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..host import Host
    from ..spec import RuntimeSpec
    from .namespaces import Namespaces, PrivateNetwork
    from .rootfs import Overlay


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
    overlay: Overlay | None = None,
    network: PrivateNetwork | None = None,
    uncovered: Sequence[str] | None = None,
) -> Plan:
    """Compile the plan that creates and starts a container.

    Args:
        spec: the container's config.json.
        host: what the kernel offers.
        bundle: absolute path of the bundle directory.
        container_id: names the cgroup if the spec does not.
        gate: whether the init waits for ``start`` before it executes the program. Otherwise the container runs at once.
        manager: the cgroup manager.
        die_with_parent: whether the container is killed when the process that launches it ends. None: as far as the kernel supports
            it. Without a new pid namespace that is the first process alone, until it gains capabilities by execve.
        empty: whether no program is executed: the init stays the first process and reaps its children, for a pod.
        overlay: becomes the root filesystem in the place of the directory that the config names.
        network: connects the new network namespace of the container with that of the caller.
        uncovered: to enter the root without pivot_root(2): where procfs and sysfs are mounted on the host. None: pivot.

    Raises:
        SpecError: the config contradicts itself, or no host can do what it asks for.
        UnsupportedError: this host or this version cannot do it.
    """
    check(spec, host)
    if spec.process is None and not gate and not empty:
        raise SpecError([Problem("$.process", "is needed to start a container", "config.md#process")])
    if spec.root is None:
        raise SpecError([Problem("$.root", "is needed on Linux", "config.md#root")])
    create = _Create(
        spec,
        host,
        bundle,
        container_id,
        manager,
        die_with_parent=die_with_parent,
        empty=empty,
        overlay=overlay,
        network=network,
        uncovered=uncovered,
    )
    create.before_clone()
    create.in_runtime_namespaces()
    create.in_new_namespaces()
    create.attach_mounts()
    create.in_container_root()
    create.as_process()
    if gate:
        create.wait_for_start()
    if spec.process is not None or empty:
        create.execute()
    return create.plan()


class _Create:
    """The state that the phases of `compile_create` share; each method adds the steps of one phase."""

    def __init__(
        self,
        spec: RuntimeSpec,
        host: Host,
        bundle: str,
        container_id: str,
        manager: Manager,
        *,
        die_with_parent: bool | None,
        empty: bool,
        overlay: Overlay | None,
        network: PrivateNetwork | None,
        uncovered: Sequence[str] | None,
    ) -> None:
        self.configured = spec.linux
        self.spec = spec = with_default_mappings(spec, host)
        self.linux = spec.linux
        self.host = host
        self.title = f"create {container_id} from {bundle}"
        self.container_id = container_id
        self.manager: Manager = manager
        self.die_with_parent = die_with_parent
        self.empty = empty
        self.overlay = overlay
        self.network = network
        # Without a process the container waits at the gate, which never opens.
        self.process = spec.process or ProcessSpec(cwd="/")
        self.rootfs = rootfs_path(spec, bundle)
        self.uncovered = None if uncovered is None else [path for path in uncovered if not is_below(path, self.rootfs)]
        self.namespaces = namespaces_of(spec.linux)
        if die_with_parent and "pid" not in self.namespaces.new:
            raise UnsupportedError("$.linux.namespaces: a container that is killed with its parent needs a new pid namespace")
        self.own_tree = "mount" in self.namespaces.new
        # Steps that need the caller's privileges over the host's files and mounts come before a user namespace is entered. In a
        # mount namespace that is joined only what was copied there can be mounted on.
        self.copies_early = host.privileged and (self.namespaces.user if self.own_tree else "mount" not in self.namespaces.own)
        self.builder = PlanBuilder()
        if overlay is not None and overlay.note:
            self.builder.note(f"{STRATEGY} {overlay.note}")
        self.hooks = compile_hooks(self.builder, spec)
        self.bundle = bundle
        self.root = NO_SLOT
        self.parent = NO_SLOT

    def before_clone(self) -> None:
        """Create cgroups and clone the init."""
        builder, host = self.builder, self.host
        builder.phase = "On the host, before the clone"
        self.placement = placement = compile_cgroups(
            builder, self.linux, self.container_id, host, self.manager, self.spec.annotations
        )
        if not placement.scope:
            compile_owner(builder, placement, self.spec, self.namespaces, host)
        self.resctrl_groups = compile_rdt(builder, self.linux, host, self.container_id)
        self.clone_flags = compile_clone(builder, self.namespaces, placement.into)
        own = self.namespaces.own
        self.mounts = Mounts(builder, self.spec, host, bundle=self.bundle, namespaces=own, placement=placement)
        self.devices = Devices(builder, self.linux, self.mounts, host, self.namespaces)
        if not self.own_tree:
            check_shared_tree(self.namespaces, host)

    def in_runtime_namespaces(self) -> None:
        """Copy what needs the caller's privileges, and let systemd make the scope."""
        builder = self.builder
        host = self.host
        builder.phase = "In the runtime namespaces" if self.copies_early else _IN_NEW_NAMESPACES
        if self.placement.scope:
            compile_scope(builder, self.placement, self.spec, self.container_id, host)
            compile_owner(builder, self.placement, self.spec, self.namespaces, host)
        if self.copies_early:
            if self.overlay is None:
                self.root = clone_root(builder, self.spec, self.rootfs, unsettled=True)
            self.mounts.clone_sources(unsettled=True)
            if self.overlay is not None and host.initial:
                self.root = self.mounts.detached.create_root(self.overlay, early=True)
            if self.namespaces.user:
                compile_stream_owner(builder, self.process, self.linux)
                self.devices.create_outside()

    def in_new_namespaces(self) -> None:
        """Enter cgroups and namespaces, and create every mount while the host's tree can be reached."""
        builder, linux, host = self.builder, self.linux, self.host
        builder.phase = _IN_NEW_NAMESPACES
        compile_oom_score(builder, self.process, host, early=True)
        compile_join(builder, self.placement)
        if self.manager != "disabled":  # then the container stays in the caller's cgroups, on the caller's CPUs
            reset_affinity(builder)
        compile_enter(builder, self.namespaces, linux, host, changed_namespaces(self.spec), configured=self.configured)
        compile_loopback(builder, self.namespaces)
        compile_net_devices(builder, linux, self.namespaces.own)
        if self.network is not None:
            compile_private_network(builder, linux, self.namespaces, self.network)
        if self.own_tree:
            cut_tree_propagation(builder, self.spec)
        if self.overlay is not None:
            # The init still has the caller's ids: a FUSE filesystem of the caller serves no other ids, and the overlay takes these.
            if self.root == NO_SLOT:
                self.root = self.mounts.detached.create_root(self.overlay, early=False)
        elif not self.copies_early:
            self.root = clone_root(builder, self.spec, self.rootfs, unsettled=not self.own_tree)
        if not self.copies_early and (self.namespaces.user or not self.own_tree):
            self.mounts.clone_sources(unsettled=not self.own_tree)
        self.devices.clone_sources()
        self.place = open_rootfs_place(builder, self.rootfs) if self.hooks.at_create and self.own_tree else NO_SLOT
        become_root(builder, self.namespaces, linux)
        self.mounts.create()
        self.proc = compile_procfs(builder, linux, self.process, self.namespaces.own)

    def attach_mounts(self) -> None:
        """Attach the mounts: before the root is entered if hooks or a shared tree require it, else after it."""
        builder = self.builder
        pivots_first = self.own_tree and not self.hooks.at_create
        if pivots_first:
            enter_root(builder, self.spec, self.root, self.uncovered)
            builder.phase = _IN_ROOT
        elif self.own_tree:
            # Hooks find everything mounted below the path of the rootfs, in this copy of the host's tree.
            attach_root(builder, self.root, self.place)
        change = ("pivot_root" if self.uncovered is None else "chroot") if pivots_first else None
        self.root, self.attached = self.mounts.attach(self.root, change)
        self.devices.create(self.root, self.attached)
        if self.hooks.at_create:
            builder.phase = "Hooks"
            compile_create_hooks(builder, self.hooks, self.root)
        builder.phase = _IN_ROOT
        if pivots_first:
            return
        if not self.own_tree:
            change_root(builder, self.root)
        elif self.uncovered is None:
            pivot_root(builder, self.root)
        else:
            cover_root(builder, self.root, self.uncovered)

    def in_container_root(self) -> None:
        """Set what belongs to the container's namespaces and root, and make the root read-only."""
        builder = self.builder
        compile_names(builder, self.spec)
        compile_sysctl(builder, self.linux, self.proc)
        builder.add("setsid", text="new session")
        if self.process.terminal:
            compile_terminal(builder, self.process, self.attached, self.root)
            take_terminal(builder, self.process)
        assert self.spec.root is not None
        # The file for the terminal and the working directory may be missing in the image.
        create_cwd(builder, self.process, self.root)
        self.mounts.finish(self.root)
        hide_paths(builder, self.linux, self.root)
        finish_root(builder, self.spec, self.root)

    def as_process(self) -> None:
        """Set the attributes of the process, up to the point at which the container is created."""
        builder, process, host = self.builder, self.process, self.host
        builder.phase = _PROCESS
        _compile_attributes(builder, process, self.spec, host)
        builder.add("chdir", process.cwd, 1, text=f"working directory {process.cwd}")
        if self.spec.process is not None and not self.empty:
            builder.add("lookup", self.root, candidates(process), text=repr((process.args or ("",))[0]))
        compile_labels(builder, process, host, self.proc, empty=self.empty)
        compile_limits(builder, process)  # the init itself may have more files open than the program is allowed
        builder.add("sync", Sync.CREATED, text="wait until the caller has recorded that the container is created")
        compile_hook_state(builder, self.hooks)
        compile_oom_score(builder, process, host)
        compile_rdt_join(builder, self.resctrl_groups)
        self.parent = builder.add_input("parent", "the caller") if self.die_with_parent is not False else NO_SLOT

    def wait_for_start(self) -> None:
        """Wait at the start socket."""
        builder = self.builder
        if self.parent != NO_SLOT:
            compile_parent_death(builder, self.parent)
        slot = builder.add_input("gate", "the start socket")
        builder.phase = "After start"
        builder.add("gate", slot, text="wait for start")

    def execute(self) -> None:
        """Set the credentials, run the hooks of start and execute the program."""
        builder, linux = self.builder, self.linux
        compile_credentials(
            builder,
            self.process,
            self.host,
            linux.seccomp if linux else None,
            held=ALL_CAPABILITIES if self.namespaces.user else None,
            setgroups=setgroups_in(self.namespaces, self.spec, self.host),
            parent=self.parent,
            strict=bool(self.die_with_parent),
            reaps=self.empty,
        )
        compile_start_hooks(builder, self.hooks, self.root)
        if self.empty:
            builder.add("reap", 0, text="reap children until HUP, INT or TERM, without a program")
        else:
            compile_execve(builder, self.process)

    def plan(self) -> Plan:
        """Return the plan of the steps so far."""
        return self.builder.build(
            self.title,
            clone_flags=self.clone_flags,
            cgroups=self.placement.directories,
            namespaces=self.namespaces.bits,
            terminal=bool(self.process.terminal),
            hooks=self.hooks.stored(),
        )


STRATEGY: Final = "root filesystem by the strategy"
"""How the note begins that says how the files of an image are mounted or extracted."""
_IN_NEW_NAMESPACES: Final = "In the new namespaces, before the root is entered"
_IN_ROOT: Final = "In the container's root"
_PROCESS: Final = "The process"


def _compile_attributes(builder: PlanBuilder, process: ProcessSpec, spec: RuntimeSpec, host: Host) -> None:
    """Set what any process of the container gets while the init still has the privileges for it, except for resource limits."""
    compile_scheduling(builder, process)
    compile_memory_policy(builder, spec.linux)
    compile_personality(builder, spec.linux)
    compile_keyring(builder, host)


CRIU_SOCKET, CRIU_NETWORK = 3, 4
"""The descriptors of criu for the socket to its caller, and for a network namespace that the container joins."""


def compile_restore(
    spec: RuntimeSpec,
    host: Host,
    program: str,
    *,
    bundle: str,
    sources: Mapping[str, str] | None = None,
    container_id: str = "ID",
    manager: Manager = "cgroupfs",
) -> Plan:
    """Compile the plan that runs criu to restore a container from an image.

    criu gets the cgroups of the container, in which its processes begin, and a mount namespace of its own, in which the rootfs is a
    mount of its own. It inherits a network namespace that is joined, and a socket, over which the caller sends the rest.

    Args:
        program: the absolute path of criu.
        bundle: absolute path of the bundle directory.
        sources: the absolute path of the source of each bind mount, by destination.
        manager: the cgroup manager.

    Raises:
        SpecError, UnsupportedError: as for `compile_create`.
    """
    check(spec, host)
    if spec.root is None:
        raise SpecError([Problem("$.root", "is needed on Linux", "config.md#root")])
    builder, linux, namespaces = PlanBuilder(), spec.linux, namespaces_of(spec.linux)
    hooks = compile_hooks(PlanBuilder(), spec)
    if hooks.at_create:
        raise UnsupportedError(
            "$.hooks: criu restores a container in one step, in which no hook of create can run; remove these hooks"
        )
    builder.phase = "On the host, before the clone"
    placement = compile_cgroups(builder, linux, container_id, host, manager, spec.annotations)
    if not placement.places:
        raise UnsupportedError(f"a container is restored into cgroups, by which its processes are known: {placement.lack}")
    if not placement.scope:
        compile_owner(builder, placement, spec, namespaces, host)
    flags, into = ops.CLONE_NEW["mount"], placement.into
    text = "init process in a new namespace: mount" + (f"; cgroup {into}" if into else "")
    builder.add_host("clone3", flags, into, text=text)
    builder.phase = "In the mount namespace of criu"
    if placement.scope:
        compile_scope(builder, placement, spec, container_id, host)
        compile_owner(builder, placement, spec, namespaces, host)
    compile_join(builder, placement)
    path = rootfs_path(spec, bundle)
    root = clone_root(builder, spec, path, unsettled=True)
    _create_mount_points(builder, spec, root, sources or {})
    attach_root(builder, root, open_rootfs_place(builder, path))
    peer = builder.add_input("peer", "the socket of the caller")
    builder.add("inherit", peer, CRIU_SOCKET, text=f"descriptor {CRIU_SOCKET} of criu: socket of the caller")
    for kind, path, location in namespaces.joined:
        slot = builder.add_input("namespace", location, path, ops.CLONE_NEW[kind])
        if kind == "network":
            text = f"descriptor {CRIU_NETWORK} of criu: network namespace {path}"
            builder.add("inherit", slot, CRIU_NETWORK, text=text)
    builder.add("setsid", text="new session, which no terminal interrupts")
    builder.add("prctl", ops.PR_SET_PDEATHSIG, signal.SIGKILL, 0, text="killed with the caller")
    builder.add("sync", Sync.CREATED, text="wait until the caller has recorded what is made")
    arguments = (program, "swrk", str(CRIU_SOCKET))
    builder.add("exec", (program,), arguments, (f"PATH={DEFAULT_PATH}",), text=f"{program}, which restores the container")
    return builder.build(
        f"restore {container_id} from {bundle}",
        clone_flags=flags,
        cgroups=placement.directories,
        namespaces=namespaces.bits,
        hooks=hooks.stored(),
    )


def _create_mount_points(builder: PlanBuilder, spec: RuntimeSpec, root: int, sources: Mapping[str, str]) -> None:
    """Create the mount points in the rootfs, as a create does: those in other mounts are in the image, or in their sources."""
    outer: list[str] = []
    for index, mount in enumerate(spec.mounts or ()):
        path = destination_in_root(mount.destination)
        if path == "/" or any(is_below(path, other) for other in outer):
            continue
        outer.append(path)
        with builder.at(f"$.mounts[{index}]"):
            like = NO_SLOT
            if (source := sources.get(path)) is not None:
                like = builder.new_slot()
                builder.add("open", NO_SLOT, source, ops.O_PATH, 0, 0, like, text=f"source {source}")
            builder.add("target", root, path, Target(0), 0o755, like, NO_SLOT, text=f"mount point {path}")
            if like != NO_SLOT:
                builder.add("close", like, text=f"source {source}")


def compile_exec(
    process: ProcessSpec,
    spec: RuntimeSpec,
    host: Host,
    *,
    namespaces: int,
    cgroups: tuple[str, ...],
    unit: tuple[str, bool, str] | None = None,
    container_id: str = "ID",
    pid: int = 0,
    tracked: bool = False,
) -> Plan:
    """Compile the plan that runs an exec process in a container (not in runtime.md; as other runtimes do it).

    Args:
        process: what to run.
        spec: the container's config, for its seccomp profile.
        namespaces: the CLONE_NEW* bits of the namespaces to join.
        cgroups: the container's cgroup directories.
        unit: the systemd unit of the cgroup, whether it belongs to the user's own systemd, and its directory.
        pid: the container's process, whose root is used if it is not that of its mount namespace.
        tracked: whether the process gets a cgroup namespace, by which the caller finds everything that it starts.

    Raises:
        SpecError, UnsupportedError: as for `compile_create`.
    """
    check_process(spec, process)
    execution = _Exec(process, spec, host, namespaces, existing_placement(cgroups, host), pid)
    execution.tracked = tracked and (execution.joins_user or host.privileged)
    execution.before_clone(unit)
    execution.into_container()
    execution.as_process()
    execution.execute()
    return execution.builder.build(f"exec in {container_id}", clone_flags=0, namespaces=namespaces, terminal=bool(process.terminal))


class _Exec:
    """The state that the phases of `compile_exec` share; each method adds the steps of one phase."""

    def __init__(
        self, process: ProcessSpec, spec: RuntimeSpec, host: Host, namespaces: int, placement: Placement, pid: int
    ) -> None:
        self.process, self.spec, self.host = process, spec, host
        self.joined, self.placement, self.pid = namespaces, placement, pid
        self.seccomp = spec.linux.seccomp if spec.linux else None
        self.own = namespaces_of(spec.linux)
        self.joins_user = bool(namespaces & ops.CLONE_NEW["user"])
        # After the fork into the pid namespace the container sees the process, so the fork comes last if possible.
        self.forks = bool(namespaces & ops.CLONE_NEW["pid"])
        self.forks_last = self.forks and forks_last(process, self.seccomp, host, user=self.joins_user)
        # The initial CPU affinity applies before the cgroup, so the init must not be cloned into it.
        affinity = process.exec_cpu_affinity
        self.initial_cpus, self.final_cpus = (
            (cpus or "").strip() for cpus in ((affinity.initial, affinity.final) if affinity else (None, None))
        )
        self.joins_later = bool(self.initial_cpus)
        self.tracked = False
        self.builder = PlanBuilder()

    def before_clone(self, unit: tuple[str, bool, str] | None) -> None:
        """Clone the init."""
        self.builder.phase = "On the host, before the clone"
        self.attach = cgroup_to_attach(unit, self.placement, self.host)
        cgroup = "" if self.joins_later or self.attach else self.placement.into
        self.builder.add_host("clone3", 0, cgroup, text="init process" + (f"; cgroup {cgroup}" if cgroup else ""))

    def into_container(self) -> None:
        """Join the container's cgroups, root and namespaces."""
        builder, process, host = self.builder, self.process, self.host
        builder.phase = "Into the container"
        compile_oom_score(builder, process, host, early=True)
        compile_affinity(builder, self.initial_cpus)
        compile_join(builder, self.placement, unified=self.joins_later and not self.attach)
        compile_attach(builder, self.attach)
        compile_affinity(builder, self.final_cpus)
        if not (self.initial_cpus or self.final_cpus):
            reset_affinity(builder)
        pidfd = builder.add_input("pidfd", "the container's process")
        foreign_root = NO_SLOT
        if "mount" not in self.own.new:
            foreign_root = builder.add_input("path", "the container's root", f"/proc/{self.pid}/root")
        if process.apparmor_profile or process.selinux_label:
            compile_labels(builder, process, host, open_procfs(builder))
        proc = open_procfs(builder) if self.tracked else NO_SLOT
        if self.joins_user:
            drop_groups(builder, host)
        if self.joined:
            names = ", ".join(name for name, bit in ops.CLONE_NEW.items() if self.joined & bit)
            builder.add("setns", pidfd, self.joined, text=f"namespaces of the container: {names}")
        if self.tracked:
            builder.add("unshare", ops.CLONE_NEW["cgroup"], text="new cgroup namespace, of this process and what it starts")
            own = builder.new_slot()
            builder.add("open", proc, "self/ns/cgroup", 0, 0, 0, own, text="cgroup namespace")
            builder.add("give", own, text="cgroup namespace, for the caller")
        if foreign_root != NO_SLOT:
            change_root(builder, foreign_root)
        if not self.forks_last:
            close_unneeded(builder)
            if self.forks:
                builder.add("fork", 0, text="child process in the pid namespace that was joined")

    def as_process(self) -> None:
        """Set the attributes of the process, up to the point at which the caller knows it."""
        builder, process = self.builder, self.process
        builder.phase = _PROCESS
        if not self.forks_last:
            builder.add("setsid", text="new session")
        if process.terminal:
            if self.joins_user:  # so that the owner of the terminal is mapped in the user namespace
                builder.add("setresgid", 0, text="gid 0 in the user namespace")
                builder.add("setresuid", 0, text="uid 0 in the user namespace")
            root = builder.new_slot()
            builder.add("open", NO_SLOT, "/", ops.O_PATH, 0, 0, root, text="root of the container")
            compile_terminal(builder, process, {}, root)
            if not self.forks_last:
                take_terminal(builder, process)
        if self.forks_last:
            allow_fork(builder, process)
        _compile_attributes(builder, process, self.spec, self.host)
        builder.add("chdir", process.cwd, 0, text=f"working directory {process.cwd}")
        compile_limits(builder, process, without="RLIMIT_NPROC" if self.forks_last else "")
        if self.forks_last:
            close_unneeded(builder)
            hide_progress(builder)
        else:
            builder.add("sync", Sync.CREATED, text="wait until the caller has recorded the process")
            compile_oom_score(builder, process, self.host)

    def execute(self) -> None:
        """Set the credentials, fork into the pid namespace unless that is done, and execute the program."""
        builder, process, host = self.builder, self.process, self.host
        compile_credentials(
            builder,
            process,
            host,
            self.seccomp,
            held=ALL_CAPABILITIES if self.joins_user else None,
            setgroups=exec_setgroups(process, self.own, self.spec, self.host, joins_user=self.joins_user),
            visible=self.forks_last,
        )
        if self.forks_last:
            builder.phase = "In the pid namespace"
            compile_last_fork(builder, process, host)
            builder.add("setsid", text="new session")
            take_terminal(builder, process)
        compile_execve(builder, process)


def exec_setgroups(process: ProcessSpec, own: Namespaces, spec: RuntimeSpec, host: Host, *, joins_user: bool) -> Setgroups:
    """Return what setgroups(2) may do in an exec process. Another user may have created a user namespace that is joined.

    Args:
        own: the namespaces of the container.
        joins_user: whether the process joins the user namespace of the container.
    """
    kept = setgroups_in(own, spec, host)
    user = process.user
    if kept is Setgroups.KEPT and user and any(group != user.gid for group in user.additional_gids or ()):
        return Setgroups.UNKNOWN  # the exec process asks for other groups
    return Setgroups.UNKNOWN if joins_user and kept is not Setgroups.KEPT else kept


SERVED_ROOT: Final = 64
"""The slot of the container's root directory in a plan of `compile_serve`. The caller uses those above it for files."""


def compile_serve(process: ProcessSpec, spec: RuntimeSpec, host: Host, *, namespaces: int, container_id: str, pid: int) -> Plan:
    """Compile the plan of an init that serves the files of a container to the caller, with the rights of a process of it.

    It joins the user and the mount namespace alone: it stays out of the container's pid namespace, where other processes could
    see it, and out of its cgroups, so that it runs while they are frozen.

    Args:
        process: the process whose user and capabilities it takes.
        spec: the container's config.
        namespaces: the CLONE_NEW* bits of the namespaces of the container that are not the caller's.
        pid: the container's process, whose root is used if it is not that of its mount namespace.

    Raises:
        UnsupportedError: the groups of the user cannot be set.
    """
    builder = PlanBuilder()
    own = namespaces_of(spec.linux)
    joined = namespaces & (ops.CLONE_NEW["user"] | ops.CLONE_NEW["mount"])
    joins_user = bool(joined & ops.CLONE_NEW["user"])
    builder.phase = "On the host, before the clone"
    builder.add_host("clone3", 0, "", text="init process")
    builder.phase = "Into the container"
    proc = open_procfs(builder)
    pidfd = builder.add_input("pidfd", "the container's process")
    peer = builder.add_input("peer", "the socket of the caller")
    parent = builder.add_input("parent", "the caller")
    foreign_root = NO_SLOT
    if "mount" not in own.new:
        foreign_root = builder.add_input("path", "the container's root", f"/proc/{pid}/root")
    if joins_user:
        drop_groups(builder, host)
    if joined:
        names = " and ".join(name for name, bit in ops.CLONE_NEW.items() if joined & bit)
        builder.add("setns", pidfd, joined, text=f"namespaces of the container: {names}")
    if foreign_root != NO_SLOT:
        change_root(builder, foreign_root)
    builder.add("open", NO_SLOT, "/", ops.O_PATH, 0, 0, SERVED_ROOT, text="root of the container")
    builder.phase = _PROCESS
    compile_file_rights(
        builder,
        process,
        host,
        held=ALL_CAPABILITIES if joins_user else None,
        setgroups=exec_setgroups(process, own, spec, host, joins_user=joins_user),
    )
    compile_parent_death(builder, parent)
    builder.add("sync", Sync.CREATED, text="wait until the caller is ready")
    builder.add("serve", peer, pidfd, proc, text="files of the container, until it or the caller ends")
    return builder.build(f"files of {container_id}", clone_flags=0, namespaces=namespaces)


SERVED_LAYERS: Final = 3
"""The slot of the first layer in a plan of `compile_serve_layers`."""


def compile_serve_layers(
    spec: RuntimeSpec, host: Host, *, namespaces: int, container_id: str, layers: Sequence[tuple[str, str]]
) -> Plan:
    """Compile the plan of an init that serves the layers of a container's root filesystem, with all rights over their files.

    For a user these are the rights of root in the container's user namespace, which has the subordinate ids; root keeps its own.
    Nothing of the container is executed, and no path of it is followed.

    Args:
        spec: the container's config.
        namespaces: the CLONE_NEW* bits of the namespaces of the container that are not the caller's.
        layers: what each layer is, for people, and a path by which the caller opens it.
    """
    builder = PlanBuilder()
    builder.phase = "On the host, before the clone"
    builder.add_host("clone3", 0, "", text="init process")
    builder.phase = _PROCESS
    proc = open_procfs(builder)
    pidfd = builder.add_input("pidfd", "the container's process")
    peer = builder.add_input("peer", "the socket of the caller")
    parent = builder.add_input("parent", "the caller")
    for name, path in layers:
        builder.add_input("path", name, path)
    joined = 0 if host.privileged else namespaces & ops.CLONE_NEW["user"]
    if joined:
        builder.add("setns", pidfd, joined, text="user namespace of the container")
        become_root(builder, namespaces_of(spec.linux), with_default_mappings(spec, host).linux)
    compile_parent_death(builder, parent)
    builder.add("sync", Sync.CREATED, text="wait until the caller is ready")
    builder.add("serve", peer, pidfd, proc, text="layers of the container, until it or the caller ends")
    return builder.build(f"layers of {container_id}", clone_flags=0, namespaces=namespaces)


def compile_socket(namespaces: int, family: int, *, container_id: str = "ID") -> Plan:
    """Compile the plan that makes a TCP socket in the network namespace of a container and hands it out.

    Nothing of the container runs there: a process that joins the namespaces makes the socket, and ends.

    Args:
        namespaces: the CLONE_NEW* bits of the namespaces to join.
        family: AF_INET or AF_INET6.
    """
    builder = PlanBuilder()
    builder.phase = "On the host, before the clone"
    builder.add_host("clone3", 0, "", text="init process")
    builder.phase = "Into the network namespace of the container"
    pidfd = builder.add_input("pidfd", "the container's process")
    names = ", ".join(name for name, bit in ops.CLONE_NEW.items() if namespaces & bit)
    builder.add("setns", pidfd, namespaces, text=f"namespaces of the container: {names}")
    builder.add("socket", family, ops.SOCK_STREAM, 0, text="TCP socket in the network namespace, for the caller")
    builder.add("sync", Sync.CREATED, text="wait until the caller has the socket, and ends this process")
    return builder.build(f"socket in {container_id}", clone_flags=0, namespaces=namespaces)


_CHECKED_BY_RULES: Final = ("$.linux.memoryPolicy", "$.linux.personality", "$.linux.seccomp")
"""Members whose support by the host is checked by the rules alone, not by the compilers."""


def check(spec: RuntimeSpec, host: Host) -> None:
    """Check a config by the rules of the runtime spec.

    Raises:
        SpecError: with every error of the config.
        UnsupportedError: this host cannot do what it asks for.
    """
    _raise_errors(config_problems(spec))
    for problem in host_problems(spec, host):
        if problem.severity == "error" and problem.path.startswith(_CHECKED_BY_RULES):
            raise UnsupportedError(f"{problem.path}: {problem.message}")


def check_process(spec: RuntimeSpec, process: ProcessSpec) -> None:
    """Check an exec process of a config's container. Raises SpecError with every error."""
    _raise_errors(process_problems(spec, process))


def _raise_errors(problems: list[Problem]) -> None:
    if errors := [problem for problem in problems if problem.severity == "error"]:
        raise SpecError(errors)


# ---- a template: a config is compiled once, and what differs in each container is inserted ----

_ID: Final = "idX6f1c8e4b9d27a35"
"""A placeholder for the container's id, which does not occur in a config."""
LAYER: Final = "layerX2b7d90e6c4f1a83"
"""A placeholder for the name of the directory of the container's upper layer."""
_CUT: Final = "cutX93d0c7a25be81f46"
"""What separates texts in which placeholders are replaced together. It does not occur in a config either."""


class Template:
    """A compiled config whose plans differ in the container's id and the name of its upper layer alone (see `is_usable`).

    Arguments and errors are those of `compile_create`.
    """

    def __init__(
        self,
        spec: RuntimeSpec,
        host: Host,
        *,
        bundle: str,
        gate: bool,
        manager: Manager,
        die_with_parent: bool | None,
        empty: bool = False,
        overlay: Overlay | None = None,
        network: PrivateNetwork | None = None,
    ) -> None:
        self._plan = plan = compile_create(
            spec,
            host,
            bundle=bundle,
            container_id=_ID,
            gate=gate,
            manager=manager,
            die_with_parent=die_with_parent,
            empty=empty,
            overlay=overlay,
            network=network,
        )
        self._steps = [
            (index, [place for place, value in enumerate(step.values) if _varies(value)])
            for index, step in enumerate(plan.steps)
            if _varies(step.text) or _varies(step.values)
        ]
        self._inputs = [index for index, entry in enumerate(plan.inputs) if _varies(entry)]
        texts = [plan.title, *plan.cgroups, *(text for index in self._inputs for text in plan.inputs[index][1:3])]
        for index, places in self._steps:
            step = plan.steps[index]
            texts += [step.text, *(text for place in places for text in _texts(step.values[place]))]
        self._texts = list(dict.fromkeys(texts))
        self._joined = _CUT.join(self._texts)
        self._pattern: tuple[tuple[int, int], Pattern] | None = None

    def plan(self, container_id: str, layer: str = "") -> Plan:
        """Return the plan of one container."""
        lengths = len(container_id), len(layer)
        placeholders = _ID.ljust(lengths[0], "0"), LAYER.ljust(lengths[1], "0") if layer else ""
        if (len(placeholders[0]), len(placeholders[1])) != lengths:
            return self._insert(container_id, layer)  # the id or the layer is shorter than its placeholder
        found = self._pattern  # other threads may replace it
        if found is None or found[0] != lengths:
            self._pattern = found = lengths, Pattern(self._insert(*placeholders))
        pairs = zip(placeholders, (container_id, layer), strict=True)
        texts = tuple([(placeholder.encode(), text.encode()) for placeholder, text in pairs if text])
        return self._insert(container_id, layer, found[1], texts)

    def _insert(
        self, container_id: str, layer: str, pattern: Pattern | None = None, replaced_bytes: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Plan:
        plan = self._plan
        replaced = self._joined.replace(_ID, container_id).replace(LAYER, layer).split(_CUT)
        texts = dict(zip(self._texts, replaced, strict=True))
        steps, inputs = list(plan.steps), list(plan.inputs)
        for index, places in self._steps:
            step = steps[index]
            values = step.values
            if places:
                changed = list(values)
                for place in places:
                    changed[place] = _value(changed[place], texts)
                values = tuple(changed)
            steps[index] = Step(step.side, step.op, values, texts[step.text], step.phase, step.location)
        for index in self._inputs:
            kind, name, path, bit, maps = inputs[index]
            inputs[index] = Input(kind, texts[name], texts[path], bit, maps)
        inserted = tuple(steps)
        return attrs.evolve(
            plan,
            title=texts[plan.title],
            steps=inserted,
            inputs=tuple(inputs),
            cgroups=tuple([texts[path] for path in plan.cgroups]),
            variation=None if pattern is None else Variation(inserted, pattern, replaced_bytes),
        )


def _varies(value: object) -> bool:
    text = value if isinstance(value, str) else repr(value)
    return _ID in text or LAYER in text


def is_usable(spec: RuntimeSpec, manager: Manager) -> bool:
    """Return whether the plans of a config differ in the id alone: systemd's names escape it, and resctrl checks it."""
    return manager != "systemd" and (spec.linux is None or spec.linux.intel_rdt is None)


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in a value of a step."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "surrogateescape")
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts(item)


def _value(value: object, texts: Mapping[str, str]) -> object:
    """Return a value of a step with other texts."""
    if isinstance(value, str):
        return texts[value]
    if isinstance(value, bytes):
        return texts[value.decode("utf-8", "surrogateescape")].encode("utf-8", "surrogateescape")
    if isinstance(value, tuple):
        return tuple([_value(item, texts) for item in value])
    return value
