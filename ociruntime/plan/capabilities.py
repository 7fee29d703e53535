"""Capability names, their bit masks, and which of those that a config asks for a process can have (config.md#linux-process).

Pure: what the running kernel knows and what the runtime holds come in as arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..spec import Capabilities

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
