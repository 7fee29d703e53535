"""Capability names and the bit masks that capset(2) and the init take (config.md#linux-process, ``capabilities``).

Pure: the number of capabilities that the running kernel knows comes in as an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_ORDER: Final = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST
    NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
    SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
    BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""

CAPABILITIES: Final[dict[str, int]] = {f"CAP_{name}": bit for bit, name in enumerate(_ORDER.split())}
"""Name -> bit, in the order of the kernel's ``linux/capability.h`` (Linux 6.18 has no newer one)."""


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
