"""The process: from what the init is to what config.json asks for (config.md, Process)."""

from __future__ import annotations

import posixpath
import struct
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
from . import kernel as k
from .capabilities import to_mask
from .model import NO_SLOT, Builder, Filter

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Process, Seccomp

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(process: Process) -> tuple[str, ...]:
    """The environment as execve gets it: of a name that comes twice, the last one counts."""
    last: dict[str, str] = {}
    for entry in process.env or ():
        last[entry.partition("=")[0]] = entry
    return tuple(last.values())


def candidates(process: Process) -> tuple[str, ...]:
    """Where args[0] is looked for, as execvpe does: in PATH unless it has a slash."""
    args = process.args
    if not args or not args[0]:
        raise SpecError([Problem("$.process.args", "at least the program to run is needed", "config.md#process")])
    if "/" in args[0]:
        return (posixpath.join(process.cwd, args[0]),)
    path = next((e[5:] for e in reversed(process.env or ()) if e.startswith("PATH=")), DEFAULT_PATH)
    return tuple(posixpath.join(process.cwd, directory or ".", args[0]) for directory in path.split(":"))


def compile_limits(b: Builder, process: Process) -> None:
    """rlimits, as long as the init still has the capability to raise them."""
    for index, limit in enumerate(process.rlimits or ()):
        number = k.RLIMITS.get(str(limit.type))
        if number is None:
            message = f"{str(limit.type)!r} is not a resource limit of Linux"
            raise SpecError([Problem(f"$.process.rlimits[{index}].type", message, "config.md#posix-process")])
        b.init("rlimit", number, limit.soft, limit.hard, text=f"{limit.type} soft={limit.soft} hard={limit.hard}")


def refuse_unsupported(process: Process) -> None:
    """Refuse what is asked for and would silently not happen."""
    for name in ("scheduler", "io_priority", "exec_cpu_affinity"):
        if getattr(process, name, None) is not None:
            raise UnsupportedError(f"$.process.{name}: not supported yet")


def compile_lsm(process: Process, host: Host) -> None:
    for name, module in (("apparmor_profile", "apparmor"), ("selinux_label", "selinux")):
        if getattr(process, name):
            if module not in host.lsms:
                raise UnsupportedError(f"$.process.{name}: {module} is not active on this host")
            raise UnsupportedError(f"$.process.{name}: not supported yet")


def compile_identity(b: Builder, process: Process, host: Host, seccomp: Seccomp | None) -> None:
    """User, capabilities, no_new_privs and seccomp: in the order in which each still may."""
    user = process.user
    uid, gid = (user.uid or 0, user.gid or 0) if user else (0, 0)
    groups = tuple(user.additional_gids or ()) if user else ()
    caps = process.capabilities

    def mask(kind: str) -> int:
        names = (getattr(caps, kind) or ()) if caps else ()
        bits, unknown = to_mask(names, host.last_cap)
        if unknown:
            raise UnsupportedError(f"$.process.capabilities.{kind}: this kernel does not know {', '.join(unknown)}")
        return bits

    bounding, effective, permitted, inheritable, ambient = map(
        mask, ("bounding", "effective", "permitted", "inheritable", "ambient")
    )
    privileges = bool(process.no_new_privileges)

    if user and user.umask is not None:
        b.init("umask", user.umask, text=f"{user.umask:04o}")
    b.init("bounding", bounding, host.last_cap, text=f"keep {_count(bounding)} in the bounding set")
    b.init("prctl", k.PR_SET_KEEPCAPS, 1, 0, text="keep capabilities over the change of user")
    b.init("setgroups", struct.pack(f"={len(groups)}I", *groups), text=", ".join(map(str, groups)) or "no supplementary groups")
    b.init("setresgid", gid, text=f"group {gid}")
    b.init("setresuid", uid, text=f"user {uid}")
    if seccomp is not None and not privileges:
        # Without no_new_privs a filter needs CAP_SYS_ADMIN, which only now goes.
        b.init(
            "capset", permitted | 1 << 21, permitted | 1 << 21, inheritable, text="what is left, and CAP_SYS_ADMIN for the filter"
        )
        _seccomp(b, seccomp)
    kept = f"{_count(effective)} effective, {_count(permitted)} permitted, {_count(inheritable)} inheritable"
    b.init("capset", effective, permitted, inheritable, text=kept)
    b.init("ambient", ambient, text=f"{_count(ambient)} ambient")
    if privileges:
        b.init("prctl", k.PR_SET_NO_NEW_PRIVS, 1, 0, text="no new privileges, ever")
        if seccomp is not None:
            _seccomp(b, seccomp)


def _count(mask: int) -> str:
    count = mask.bit_count()
    return f"{count} capabilit{'y' if count == 1 else 'ies'}"


def _seccomp(b: Builder, profile: Seccomp) -> None:
    if profile.listener_path:
        raise UnsupportedError("$.linux.seccomp.listenerPath: notification listeners are not supported yet")
    names = sum(len(rule.names) for rule in profile.syscalls or ())
    b.init("seccomp", 0, Filter(profile), NO_SLOT, text=f"filter: {profile.default_action} but for {names} named system calls")


def compile_exec_step(b: Builder, process: Process) -> None:
    args = tuple(process.args or ())
    shown = " ".join(args)
    b.init("exec", candidates(process), args, environment(process), text=shown if len(shown) <= 80 else shown[:77] + "...")
