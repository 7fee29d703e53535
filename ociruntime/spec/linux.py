"""``linux`` of config.json (config-linux.md)."""

from __future__ import annotations

import attrs

from .base import FrozenMap, Model, OpenEnum
from .resources import Resources
from .seccomp import Seccomp


class NamespaceType(OpenEnum):
    """config-linux.md#namespaces."""

    PID = "pid"
    NETWORK = "network"
    MOUNT = "mount"
    IPC = "ipc"
    UTS = "uts"
    USER = "user"
    CGROUP = "cgroup"
    TIME = "time"


@attrs.frozen(kw_only=True, repr=False)
class Namespace(Model):
    """A new namespace, or the one at ``path``."""

    type: NamespaceType
    path: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class IDMapping(Model):
    container_id: int = attrs.field(metadata={"key": "containerID"})
    host_id: int = attrs.field(metadata={"key": "hostID"})
    size: int


@attrs.frozen(kw_only=True, repr=False)
class TimeOffset(Model):
    secs: int | None = None
    nanosecs: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class Device(Model):
    """A device to make (config-linux.md#devices)."""

    type: str
    path: str
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class NetDevice(Model):
    name: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class IntelRdt(Model):
    clos_id: str | None = attrs.field(default=None, metadata={"key": "closID"})
    schemata: tuple[str, ...] | None = None
    l3_cache_schema: str | None = None
    mem_bw_schema: str | None = None
    enable_monitoring: bool | None = None


@attrs.frozen(kw_only=True, repr=False)
class Personality(Model):
    domain: str
    flags: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True, repr=False)
class MemoryPolicy(Model):
    mode: str
    nodes: str | None = None
    flags: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True, repr=False)
class Linux(Model):
    """The Linux part of a config."""

    devices: tuple[Device, ...] | None = None
    net_devices: FrozenMap[NetDevice] | None = None
    uid_mappings: tuple[IDMapping, ...] | None = None
    gid_mappings: tuple[IDMapping, ...] | None = None
    time_offsets: FrozenMap[TimeOffset] | None = None
    namespaces: tuple[Namespace, ...] | None = None
    resources: Resources | None = None
    cgroups_path: str | None = None
    rootfs_propagation: str | None = None
    seccomp: Seccomp | None = None
    sysctl: FrozenMap[str] | None = None
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    mount_label: str | None = None
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None
    personality: Personality | None = None
