"""The default config, for an image that has no config of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

from ..arguments import check_bool, check_host, check_int, optional
from .linux import IDMapping, Linux, Mount, Namespace, NamespaceType, Root
from .process import Capabilities, ProcessSpec, Rlimit, RlimitType, User
from .resources import DeviceCgroup, Resources

if TYPE_CHECKING:
    from .config import RuntimeSpec
    from .rules.host import HostLike

S = TypeVar("S", bound="RuntimeSpec")

DEFAULT_CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
DEFAULT_NAMESPACES: Final = (
    NamespaceType.PID,
    NamespaceType.NETWORK,
    NamespaceType.IPC,
    NamespaceType.UTS,
    NamespaceType.MOUNT,
)
DEFAULT_ENV: Final = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm")
MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def _mount(destination: str, kind: str, *options: str, source: str | None = None) -> Mount:
    return Mount(destination=destination, type=kind, source=source or kind, options=options or None)


def default_mounts() -> tuple[Mount, ...]:
    """Return the default filesystems (config-linux.md#default-filesystems), and mqueue."""
    return (
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k", source="shm"),
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    )


def default_devices() -> tuple[DeviceCgroup, ...]:
    """Return device rules that deny everything except mknod, the standard devices and pseudo-terminals."""
    allowed = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))
    return (
        DeviceCgroup(allow=False, access="rwm"),
        DeviceCgroup(allow=True, type="c", access="m"),
        DeviceCgroup(allow=True, type="b", access="m"),
        *(DeviceCgroup(allow=True, type="c", major=major, minor=minor, access="rwm") for major, minor in allowed),
    )


_MAX_ID: Final = (1 << 32) - 2


def default_spec(
    cls: type[S],
    *,
    rootless: bool = False,
    seccomp: bool = True,
    uid: int | None = None,
    gid: int | None = None,
    host: HostLike | None = None,
) -> S:
    """See `RuntimeSpec.default`."""
    check_bool("rootless", rootless)
    check_bool("seccomp", seccomp)
    if host is not None:
        check_host(host)
    optional(check_int, "uid", uid, 0, _MAX_ID)
    optional(check_int, "gid", gid, 0, _MAX_ID)
    if not rootless and (uid is not None or gid is not None):
        raise TypeError("uid and gid require rootless=True")
    if rootless and host is not None:
        raise TypeError("rootless=True contradicts host, which decides that")
    profile = None
    if seccomp:
        from .default_seccomp import default_profile

        profile = default_profile()
    caps = DEFAULT_CAPABILITIES
    spec = cls(
        oci_version="1.3.0",
        process=ProcessSpec(
            cwd="/",
            user=User(uid=0, gid=0),
            args=("/.singularity.d/actions/run",),
            env=DEFAULT_ENV,
            capabilities=Capabilities(bounding=caps, effective=caps, permitted=caps),
            rlimits=(Rlimit(type=RlimitType.NOFILE, hard=1024, soft=1024),),
            no_new_privileges=True,
        ),
        root=Root(path="rootfs"),
        hostname="ociruntime",
        mounts=default_mounts(),
        linux=Linux(
            namespaces=tuple(Namespace(type=kind) for kind in DEFAULT_NAMESPACES),
            resources=Resources(devices=default_devices()),
            seccomp=profile,
            masked_paths=MASKED_PATHS,
            readonly_paths=READONLY_PATHS,
        ),
    )
    if host is not None and not host.privileged:
        return _in_user_namespace(spec)
    if host is not None and not host.initial:
        return _for_user_namespace(spec)
    if not rootless:
        return spec
    uids = (IDMapping(container_id=0, host_id=os.geteuid() if uid is None else uid, size=1),)
    gids = (IDMapping(container_id=0, host_id=os.getegid() if gid is None else gid, size=1),)
    spec = _in_user_namespace(spec)
    assert spec.linux is not None
    return spec.at.evolve(linux=spec.linux.evolve(uid_mappings=uids, gid_mappings=gids))


def _in_user_namespace(spec: S) -> S:
    return _for_user_namespace(spec.with_namespace(NamespaceType.USER))


def _for_user_namespace(spec: S) -> S:
    # A user can map only the own user and group id without helpers, so the mapping may lack gid=5 of pseudo-terminals. The devices
    # controller is not delegated to users.
    assert spec.linux is not None
    mounts = tuple(
        mount.evolve(options=tuple(o for o in mount.options or () if not o.startswith("gid="))) for mount in spec.mounts or ()
    )
    return spec.at.evolve(mounts=mounts, linux=spec.linux.evolve(resources=None))
