"""A procfs for what the init itself writes, which no mount of the container can change."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from . import kernel as k
from .model import NO_SLOT, Builder

if TYPE_CHECKING:
    from ..spec import Linux, Process


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
