"""``freebsd`` of config.json (config-freebsd.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .base import OpenEnum
from .bases import FreeBSDBase, FreeBSDDeviceBase, FreeBSDJailAllowBase, FreeBSDJailBase

if TYPE_CHECKING:
    from .scalars import FileMode, Uint8


class FreeBSDSharing(OpenEnum):
    """How a jail shares something with its parent (config-freebsd.md#jail)."""

    DISABLE = "disable"
    NEW = "new"
    INHERIT = "inherit"


class FreeBSDSharingNoDisable(OpenEnum):
    """How a jail shares something that cannot be disabled with its parent (config-freebsd.md#jail)."""

    NEW = "new"
    INHERIT = "inherit"


class FreeBSDDevice(FreeBSDDeviceBase):
    """A device of devfs that the container can use (config-freebsd.md#devices)."""

    SECTION: ClassVar[str] = "config-freebsd.md#devices"

    path: str
    """Relative to /dev."""
    mode: FileMode | None = None
    """Permission bits, decimal in JSON. Default: unchanged."""


class FreeBSDJailAllow(FreeBSDJailAllowBase):
    """What the jail may do (config-freebsd.md#jail)."""

    SECTION: ClassVar[str] = "config-freebsd.md#jail"

    set_hostname: bool | None = None
    """Whether the hostname may be changed. Default: false."""
    raw_sockets: bool | None = None
    """Whether raw sockets may be used, as ping does. Default: false."""
    chflags: bool | None = None
    """Whether system file flags may be changed. Default: false."""
    mount: tuple[str, ...] | None = None
    """Filesystems that may be mounted. Default: none."""
    quotas: bool | None = None
    """Whether quotas may be changed. Default: false."""
    socket_af: bool | None = None
    """Whether sockets beyond IPv4, IPv6 and Unix may be used. Default: false."""
    mlock: bool | None = None
    """Whether mlock(2) may be used. Default: false."""
    reserved_ports: bool | None = None
    """Whether ports below 1024 may be bound. Default: false."""
    suser: bool | None = None
    """Whether there is a super-user. Default: true."""


class FreeBSDJail(FreeBSDJailBase):
    """The jail(2) of the container (config-freebsd.md#jail)."""

    SECTION: ClassVar[str] = "config-freebsd.md#jail"

    parent: str | None = None
    """Jail that this one is made in. Default: the host."""
    host: FreeBSDSharingNoDisable | None = None
    """Hostname, domainname, hostuuid and hostid. Default: the platform's."""
    ip4: FreeBSDSharing | None = None
    """IPv4; unset when the jail has a vnet of its own. Default: the platform's."""
    ip4_addr: tuple[str, ...] | None = None
    """IPv4 addresses that may be used. Default: any."""
    ip6: FreeBSDSharing | None = None
    """IPv6; unset when the jail has a vnet of its own. Default: the platform's."""
    ip6_addr: tuple[str, ...] | None = None
    """IPv6 addresses that may be used. Default: any."""
    vnet: FreeBSDSharingNoDisable | None = None
    """Network stack. Default: the platform's."""
    interface: str | None = None
    """Interface that gets the addresses as aliases. Default: none."""
    vnet_interfaces: tuple[str, ...] | None = None
    """Interfaces that move into the jail's vnet. Default: none."""
    sysvmsg: FreeBSDSharing | None = None
    """SysV message queues. Default: new."""
    sysvsem: FreeBSDSharing | None = None
    """SysV semaphores. Default: new."""
    sysvshm: FreeBSDSharing | None = None
    """SysV shared memory. Default: new."""
    enforce_statfs: Uint8 | None = None
    """Mounts to be seen: 0 all, 1 those below the root, 2 the root alone. Default: 2."""
    allow: FreeBSDJailAllow | None = None
    """What it may do. Default: the platform's."""


class FreeBSD(FreeBSDBase):
    """The FreeBSD part of a config (config-freebsd.md#freebsd-container-configuration)."""

    SECTION: ClassVar[str] = "config-freebsd.md#freebsd-container-configuration"

    devices: tuple[FreeBSDDevice, ...] | None = None
    """Devices beyond those of the devfs ruleset. Default: none (config-freebsd.md#devices)."""
    jail: FreeBSDJail | None = None
    """Parameters of the jail. Default: the platform's (config-freebsd.md#jail)."""
