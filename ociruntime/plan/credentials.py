"""The credentials of the process: security labels, user and groups, capabilities, seccomp (config.md#linux-process, #user)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import UnsupportedError
from . import kernel
from .model import NO_SLOT, PlanBuilder, UncompiledFilter
from .namespaces import Setgroups

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..host import Host
    from ..spec import Capabilities, Process, Seccomp


_ORDER: Final = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST
    NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
    SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
    BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""

CAPABILITIES: Final[dict[str, int]] = {f"CAP_{name}": bit for bit, name in enumerate(_ORDER.split())}
"""Name -> bit, in the order of the kernel's ``linux/capability.h``, up to Linux 6.18."""
ALL_CAPABILITIES: Final = (1 << 64) - 1
CAP_SYS_ADMIN: Final = 1 << CAPABILITIES["CAP_SYS_ADMIN"]
CAP_SYS_RESOURCE: Final = 1 << CAPABILITIES["CAP_SYS_RESOURCE"]


def to_mask(names: Iterable[str], last_cap: int) -> tuple[int, tuple[str, ...]]:
    """Return the mask of capabilities, and the names that this kernel does not know.

    The spec requires a warning for unknown names instead of an error. They are returned in their order, each one once.

    Args:
        names: ``CAP_*``, exactly as the spec writes them.
        last_cap: the kernel's highest capability (``/proc/sys/kernel/cap_last_cap``).
    """
    mask = 0
    unknown: dict[str, None] = {}
    for name in names:
        bit = CAPABILITIES.get(name)
        if bit is None or bit > last_cap:
            unknown[name] = None
        else:
            mask |= 1 << bit
    return mask, tuple(unknown)


def from_mask(mask: int) -> tuple[str, ...]:
    """Return the names of the capabilities in a mask, lowest bit first; ``CAP_<number>`` for one that is not in `CAPABILITIES`.

    Raises:
        ValueError: the mask is negative.
    """
    if mask < 0:
        raise ValueError(f"capability mask {mask}: is negative")
    names = tuple(CAPABILITIES)
    return tuple(names[bit] if bit < len(names) else f"CAP_{bit}" for bit in range(mask.bit_length()) if mask >> bit & 1)


class Granted(NamedTuple):
    """The five capability sets as masks, with a warning for each capability that cannot be granted."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int
    warnings: tuple[str, ...]


def grant(requested: Capabilities | None, last_cap: int, held: int) -> Granted:
    """Return the capabilities that can be granted: known to the kernel, held by the runtime, and allowed by the other sets.

    The kernel allows an effective or ambient capability only if it is permitted, an ambient one only if it is inheritable too, and
    an inheritable one only if it is in the bounding set. The others become warnings, as the spec requires.

    Args:
        requested: ``process.capabilities``.
        last_cap: the kernel's highest capability.
        held: the mask of the capabilities that the runtime can grant; all of them in a new user namespace.
    """
    warnings: list[str] = []

    def mask(kind: str, *above: tuple[int, str]) -> int:
        names: tuple[str, ...] = (getattr(requested, kind) or ()) if requested else ()
        bits, unknown = to_mask(names, last_cap)
        location = f"$.process.capabilities.{kind}"
        if unknown:
            warnings.append(f"{location}: {', '.join(unknown)}: unknown to this kernel")
        for allowed, reason in above:
            if lost := bits & ~allowed:
                warnings.append(f"{location}: {', '.join(from_mask(lost))}: cannot be granted: {reason}")
            bits &= allowed
        return bits

    runtime = (held, "the runtime does not have it")
    bounding = mask("bounding", runtime)
    permitted = mask("permitted", runtime)
    effective = mask("effective", runtime, (permitted, "it is not permitted"))
    inheritable = mask("inheritable", runtime, (bounding, "it is not in the bounding set"))
    ambient = mask("ambient", runtime, (permitted, "it is not permitted"), (inheritable, "it is not inheritable"))
    return Granted(bounding, effective, permitted, inheritable, ambient, tuple(warnings))


_MAX_SHOWN: Final = 10
"""Groups that the text of a step names."""


def compile_credentials(
    builder: PlanBuilder,
    process: Process,
    host: Host,
    seccomp: Seccomp | None,
    *,
    held: int | None = None,
    setgroups: Setgroups = Setgroups.ALLOWED,
    parent: int = NO_SLOT,
    strict: bool = False,
    visible: bool = False,
) -> None:
    """Set user, groups, capabilities and seccomp filter, each while the init still may; the filter applies to no other step.

    Args:
        held: the capabilities that can be granted. Default: those of the runtime.
        setgroups: what setgroups(2) may do.
        parent: the slot of the caller's pidfd, if the process is killed when the caller ends.
        strict: whether to refuse a program that the kernel would not kill with the caller.
        visible: whether the container sees the process before it executes the program.

    Raises:
        UnsupportedError: the supplementary groups cannot be set, or ``strict`` refuses the program.
    """
    user = process.user
    uid, gid = (user.uid or 0, user.gid or 0) if user else (0, 0)
    groups = tuple(user.additional_gids or ()) if user else ()
    caps = grant(process.capabilities, host.last_cap, host.capabilities if held is None else held)
    for warning in caps.warnings:
        builder.warn(warning)
    if user and user.umask is not None:
        builder.add("umask", user.umask, text=f"umask {user.umask:04o}")
    if uid and not process.terminal:
        builder.add("own_stdio", uid, text=f"standard streams that are pipes, for user {uid}")
    builder.add("bounding", caps.bounding, host.last_cap, text=f"{caps.bounding.bit_count()} capabilities in the bounding set")
    builder.add("prctl", kernel.PR_SET_KEEPCAPS, 1, 0, text="keep capabilities when the user changes")
    _set_groups(builder, groups, setgroups)
    builder.add("setresgid", gid, text=f"group {gid}")
    builder.add("setresuid", uid, text=f"user {uid}")
    if parent != NO_SLOT:  # after the change of user, which resets it, and before the filter, which may forbid it
        if strict and uid == 0 and not process.no_new_privileges and caps.bounding & ~caps.permitted:
            message = "a program that gains capabilities by execve is not killed with its parent; permit all of the bounding set"
            raise UnsupportedError(f"$.process.capabilities.bounding: {message}, or set noNewPrivileges")
        compile_parent_death(builder, parent)
    # Without no_new_privs loading a filter needs CAP_SYS_ADMIN. execve computes the new sets from the bounding, inheritable and
    # ambient ones alone, so the program does not get it.
    extra = CAP_SYS_ADMIN if seccomp is not None and not process.no_new_privileges else 0
    counts = (caps.effective.bit_count(), caps.permitted.bit_count(), caps.inheritable.bit_count())
    description = "{} effective, {} permitted and {} inheritable capabilities".format(*counts)
    builder.add(
        "capset", caps.effective | extra, caps.permitted | extra, caps.inheritable,
        text=description + ("; CAP_SYS_ADMIN until execve, for the filter" if extra else ""),
    )  # fmt: skip
    builder.add("ambient", caps.ambient, text=f"{caps.ambient.bit_count()} ambient capabilities")
    if process.no_new_privileges:
        builder.add("prctl", kernel.PR_SET_NO_NEW_PRIVS, 1, 0, text="no new privileges")
    if seccomp is not None:
        listener = _load_filter(builder, seccomp)
        if visible and listener != NO_SLOT:
            builder.add("close", listener, text="listener of the seccomp filter, which is for the agent alone")
        if visible and extra & ~caps.permitted:
            builder.add("capset", caps.effective, caps.permitted, caps.inheritable, text=f"{description}; without CAP_SYS_ADMIN")


def compile_parent_death(builder: PlanBuilder, parent: int) -> None:
    """Let the kernel kill the process when the caller ends."""
    builder.add("die_with", parent, text="killed when the caller ends")


def _set_groups(builder: PlanBuilder, groups: tuple[int, ...], setgroups: Setgroups) -> None:
    if setgroups is Setgroups.DENIED:
        if groups:
            message = "the user namespace of an unprivileged user denies setgroups; map the groups with newgidmap, or remove them"
            raise UnsupportedError(f"$.process.user.additionalGids: {message}")
        return
    optional = setgroups is Setgroups.UNKNOWN and not groups
    more = f" and {len(groups) - _MAX_SHOWN} more" if len(groups) > _MAX_SHOWN else ""
    description = f"supplementary groups {', '.join(map(str, groups[:_MAX_SHOWN]))}{more}" if groups else "no supplementary groups"
    packed = struct.pack(f"={len(groups)}I", *groups)
    builder.add(
        "setgroups", packed, int(optional), text=description + (", unless the user namespace denies setgroups" if optional else "")
    )


def compile_labels(builder: PlanBuilder, process: Process, host: Host, proc: int, *, empty: bool = False) -> None:
    """Set the AppArmor profile and the SELinux label that execve applies; an unknown name fails here.

    Args:
        proc: the slot of a procfs.
        empty: whether nothing is executed.

    Raises:
        UnsupportedError: the security module is not active, or nothing is executed.
    """
    profile, label = process.apparmor_profile, process.selinux_label
    labels = (
        ("apparmorProfile", "apparmor", profile, "apparmor/exec", f"exec {profile}"),
        ("selinuxLabel", "selinux", label, "exec", label),
    )
    for member, module, name, file, text in labels:
        if not name:
            continue
        if module not in host.lsms:
            raise UnsupportedError(f"$.process.{member}: {module} is not active on this host")
        if empty:
            raise UnsupportedError(f"$.process.{member}: needs a program, and an empty process executes none")
        builder.add("label", proc, f"self/attr/{file}", str(text).encode(), text=f"{module} label {name}")


def _load_filter(builder: PlanBuilder, profile: Seccomp) -> int:
    """Load the filter and return the slot of its listener, or NO_SLOT."""
    names = sum(len(rule.names) for rule in profile.syscalls or ())
    text = f"seccomp filter: {profile.default_action} except for {names} named system calls"
    if not any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls or ()):
        builder.add("seccomp", 0, UncompiledFilter(profile), NO_SLOT, text=text)
        return NO_SLOT
    listener = builder.new_slot()
    builder.add("seccomp", kernel.SECCOMP_FILTER_FLAG_NEW_LISTENER, UncompiledFilter(profile), listener, text=text)
    builder.add("handout", listener, text=f"listener of the seccomp filter, for {profile.listener_path}")
    return listener
