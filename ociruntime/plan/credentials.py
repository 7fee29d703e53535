"""The credentials of the process: security labels, user and groups, capabilities, seccomp (config.md#linux-process, #user)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import UnsupportedError
from . import kernel as k
from .model import NO_SLOT, Builder, Filter
from .namespaces import Groups

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
"""Name -> bit, in the order of the kernel's ``linux/capability.h`` (Linux 6.18 has no newer one)."""
ALL: Final = (1 << 64) - 1
CAP_SYS_ADMIN: Final = 1 << CAPABILITIES["CAP_SYS_ADMIN"]
CAP_SYS_RESOURCE: Final = 1 << CAPABILITIES["CAP_SYS_RESOURCE"]


def to_mask(names: Iterable[str], last_cap: int) -> tuple[int, tuple[str, ...]]:
    """The mask of ``names`` (``CAP_*``, exactly as the spec writes them) for a kernel whose highest capability is ``last_cap``.

    ``last_cap`` is what ``/proc/sys/kernel/cap_last_cap`` says. The second value holds, in the order given and once each, the names
    that are no capability or one newer than this kernel: the spec wants a warning for them, not an error.
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
    """The names in ``mask``, lowest bit first; a bit without a name is ``CAP_<number>``; the kernel may know more than this table.

    :raises ValueError: ``mask`` is negative.
    """
    if mask < 0:
        raise ValueError(f"a capability mask is not negative: {mask}")
    names = tuple(CAPABILITIES)
    return tuple(names[bit] if bit < len(names) else f"CAP_{bit}" for bit in range(mask.bit_length()) if mask >> bit & 1)


class Granted(NamedTuple):
    """The five sets as masks, and what of them a process cannot have, in words."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int
    warnings: tuple[str, ...]


def grant(wanted: Capabilities | None, last_cap: int, held: int) -> Granted:
    """What of the sets can be granted: known to the kernel, held by the runtime, and allowed by the sets that stand above.

    The kernel takes a capability into a set only if another has it: effective and ambient ones must be permitted, ambient ones
    inheritable too, inheritable ones in the bounding set. The rest becomes warnings, as the spec wants it.

    Args:
        wanted: ``process.capabilities``.
        last_cap: the highest capability of the kernel.
        held: the mask of those that the runtime can give away; all of them in a new user namespace.
    """
    warnings: list[str] = []

    def mask(kind: str, *above: tuple[int, str]) -> int:
        names: tuple[str, ...] = (getattr(wanted, kind) or ()) if wanted else ()
        bits, unknown = to_mask(names, last_cap)
        place = f"$.process.capabilities.{kind}"
        if unknown:
            warnings.append(f"{place}: this kernel does not know {', '.join(unknown)}")
        for allowed, why in above:
            if lost := bits & ~allowed:
                warnings.append(f"{place}: {', '.join(from_mask(lost))} cannot be granted: {why}")
            bits &= allowed
        return bits

    ours = (held, "the runtime does not have it")
    bounding = mask("bounding", ours)
    permitted = mask("permitted", ours)
    effective = mask("effective", ours, (permitted, "it is not permitted"))
    inheritable = mask("inheritable", ours, (bounding, "it is not in the bounding set"))
    ambient = mask("ambient", ours, (permitted, "it is not permitted"), (inheritable, "it is not inheritable"))
    return Granted(bounding, effective, permitted, inheritable, ambient, tuple(warnings))


_SHOWN: Final = 10
"""Groups that a step names."""


def compile_identity(
    b: Builder,
    process: Process,
    host: Host,
    seccomp: Seccomp | None,
    *,
    held: int | None = None,
    allowed: Groups = Groups.EXACT,
    parent: int = NO_SLOT,
    strict: bool = False,
    seen: bool = False,
) -> None:
    """The steps, in the order in which each still may; the filter comes last, as nothing before it should be subject to it.

    Args:
        held: the capabilities that can be given away. Default: those of the host's runtime.
        allowed: what setgroups may do.
        parent: the slot of the caller's pidfd, when the process is to die with the caller.
        strict: whether to refuse a program that the kernel would not kill with the caller.
        seen: whether the container can look at the process before it becomes the program.

    Raises:
        UnsupportedError: groups are asked for that may not be set, or ``strict`` forbids it.
    """
    user = process.user
    uid, gid = (user.uid or 0, user.gid or 0) if user else (0, 0)
    groups = tuple(user.additional_gids or ()) if user else ()
    caps = grant(process.capabilities, host.last_cap, host.capabilities if held is None else held)
    for warning in caps.warnings:
        b.warn(warning)
    if user and user.umask is not None:
        b.init("umask", user.umask, text=f"{user.umask:04o}")
    if uid and not process.terminal:
        b.init("own_stdio", uid, text=f"pipes among the standard streams are user {uid}'s")
    b.init("bounding", caps.bounding, host.last_cap, text=f"keep {_count(caps.bounding)} in the bounding set")
    b.init("prctl", k.PR_SET_KEEPCAPS, 1, 0, text="keep capabilities over the change of user")
    _groups(b, groups, allowed)
    b.init("setresgid", gid, text=f"group {gid}")
    b.init("setresuid", uid, text=f"user {uid}")
    if parent != NO_SLOT:  # the change of user takes the wish away, and the filter may forbid it
        if strict and uid == 0 and not process.no_new_privileges and caps.bounding & ~caps.permitted:
            message = "a program that gains capabilities by execve does not die with its parent: permit all of the bounding set"
            raise UnsupportedError(f"$.process.capabilities.bounding: {message}, or set noNewPrivileges")
        compile_parent(b, parent)
    # Without no_new_privs loading a filter takes CAP_SYS_ADMIN. What execve gives does not depend on the sets before it, only on
    # the bounding, inheritable and ambient ones, so the process does not get it.
    extra = CAP_SYS_ADMIN if seccomp is not None and not process.no_new_privileges else 0
    kept = f"{_count(caps.effective)} effective, {_count(caps.permitted)} permitted, {_count(caps.inheritable)} inheritable"
    b.init(
        "capset", caps.effective | extra, caps.permitted | extra, caps.inheritable,
        text=kept + ("; until execve CAP_SYS_ADMIN, for the filter" if extra else ""),
    )  # fmt: skip
    b.init("ambient", caps.ambient, text=f"{_count(caps.ambient)} ambient")
    if process.no_new_privileges:
        b.init("prctl", k.PR_SET_NO_NEW_PRIVS, 1, 0, text="no new privileges, ever")
    if seccomp is not None:
        listener = _filter(b, seccomp)
        if seen and listener != NO_SLOT:
            b.init("close", listener, text="the agent alone has the listener")
        if seen and extra & ~caps.permitted:
            b.init("capset", caps.effective, caps.permitted, caps.inheritable, text=f"{kept}: CAP_SYS_ADMIN was for the filter")


def compile_parent(b: Builder, parent: int) -> None:
    """Kill the process with its parent."""
    b.init("die_with", parent, text="killed when the caller ends")


def _groups(b: Builder, groups: tuple[int, ...], allowed: Groups) -> None:
    if allowed is Groups.DENIED:
        if groups:
            message = "the user namespace of an unprivileged user denies setgroups: map the group with newgidmap, or ask for none"
            raise UnsupportedError(f"$.process.user.additionalGids: {message}")
        return
    optional = allowed is Groups.UNKNOWN and not groups
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    text = ", ".join(map(str, groups[:_SHOWN])) + more or "no supplementary groups"
    packed = struct.pack(f"={len(groups)}I", *groups)
    b.init("setgroups", packed, int(optional), text=text + (", unless the user namespace denies it" if optional else ""))


def _count(mask: int) -> str:
    count = mask.bit_count()
    return f"{count} capabilit{'y' if count == 1 else 'ies'}"


def compile_labels(b: Builder, process: Process, host: Host, proc: int, *, empty: bool = False) -> None:
    """What AppArmor and SELinux make of the process when it is executed; whether they know the name shows now.

    Args:
        proc: the slot of a procfs.
        empty: whether nothing will be executed.

    Raises:
        UnsupportedError: a security module that is asked for is not active, or nothing will be executed.
    """
    profile, label = process.apparmor_profile, process.selinux_label
    wanted = (
        ("apparmorProfile", "apparmor", profile, "apparmor/exec", f"exec {profile}"),
        ("selinuxLabel", "selinux", label, "exec", label),
    )
    for member, module, asked, file, text in wanted:
        if not asked:
            continue
        if module not in host.lsms:
            raise UnsupportedError(f"$.process.{member}: {module} is not active on this host")
        if empty:
            raise UnsupportedError(f"$.process.{member}: comes with a program, and an empty process executes none")
        b.init("label", proc, f"self/attr/{file}", str(text).encode(), text=f"{asked}: the {module} label of the process")


def _filter(b: Builder, profile: Seccomp) -> int:
    """Load the filter and return the slot of its listener, or NO_SLOT."""
    names = sum(len(rule.names) for rule in profile.syscalls or ())
    text = f"filter: {profile.default_action} but for {names} named system calls"
    if not any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls or ()):
        b.init("seccomp", 0, Filter(profile), NO_SLOT, text=text)
        return NO_SLOT
    listener = b.slot()
    b.init("seccomp", k.SECCOMP_FILTER_FLAG_NEW_LISTENER, Filter(profile), listener, text=text)
    b.init("handout", listener, text=f"the filter's listener, for {profile.listener_path}")
    return listener
