"""``solaris`` of config.json (config-solaris.md)."""

from __future__ import annotations

from typing import ClassVar

from .base import FrozenMap
from .bases import SolarisAnetBase, SolarisBase, SolarisCappedCPUBase, SolarisCappedMemoryBase


class SolarisCappedCPU(SolarisCappedCPUBase):
    """Limit of CPU time (config-solaris.md#cappedcpu)."""

    SECTION: ClassVar[str] = "config-solaris.md#cappedcpu"

    ncpus: str | None = None
    """A decimal number. Unit: CPUs. Default: no limit."""


class SolarisCappedMemory(SolarisCappedMemoryBase):
    """Limits of memory, with a scale such as ``512m`` (config-solaris.md#cappedmemory)."""

    SECTION: ClassVar[str] = "config-solaris.md#cappedmemory"

    physical: str | None = None
    """Physical memory. Default: no limit."""
    swap: str | None = None
    """Swap. Default: no limit."""


class SolarisAnet(SolarisAnetBase):
    """A network interface that is made for the container (config-solaris.md#automatic-network-anet)."""

    SECTION: ClassVar[str] = "config-solaris.md#automatic-network-anet"

    linkname: str | None = None
    """Name of the VNIC. Default: the platform's."""
    lower_link: str | None = None
    """Link over which it is made. Default: the platform's."""
    allowed_address: str | None = None
    """Addresses that the container may use. Default: any."""
    configure_allowed_address: str | None = None
    """``true`` to configure the allowed addresses at each start. Default: the platform's."""
    defrouter: str | None = None
    """Default router. Default: none."""
    mac_address: str | None = None
    """MAC address, or a keyword of zonecfg(1M). Default: the platform's."""
    link_protection: str | None = None
    """Kinds of link protection, with commas. Default: none."""


class Solaris(SolarisBase):
    """The Solaris part of a config (config-solaris.md#solaris-application-container-configuration)."""

    SECTION: ClassVar[str] = "config-solaris.md#solaris-application-container-configuration"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap({"capped_cpu": "cappedCPU"})

    milestone: str | None = None
    """Service that must be online before the process starts. Default: none (config-solaris.md#milestone)."""
    limitpriv: str | None = None
    """Privileges that a process can obtain at most, with commas. Default: the platform's (config-solaris.md#limitpriv)."""
    max_shm_memory: str | None = None
    """Shared memory at most, with a scale such as ``512m``. Default: no limit (config-solaris.md#maxshmmemory)."""
    capped_cpu: SolarisCappedCPU | None = None
    """Limit of CPU time. Default: no limit (config-solaris.md#cappedcpu)."""
    capped_memory: SolarisCappedMemory | None = None
    """Limits of memory. Default: no limits (config-solaris.md#cappedmemory)."""
    anet: tuple[SolarisAnet, ...] | None = None
    """Network interfaces. Default: none (config-solaris.md#automatic-network-anet)."""
