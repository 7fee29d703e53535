"""The features document, which tells what a runtime supports whatever the host does (features.md, features-linux.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .base import Model
from .bases import (
    CgroupFeaturesBase,
    EnabledFeatureBase,
    FeaturesBase,
    IntelRdtFeaturesBase,
    LinuxFeaturesBase,
    MemoryPolicyFeaturesBase,
    MountExtensionsBase,
    SeccompFeaturesBase,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .linux import MemoryPolicyFlag, MemoryPolicyMode, NamespaceType
    from .scalars import CapabilityName
    from .seccomp import SeccompAction, SeccompArch, SeccompFlag, SeccompOperator


class _Nullable(Model):
    """The text of the spec lets every optional member be null, which means that it is absent; it is kept in ``extensions``."""

    NULLABLE: ClassVar[bool] = True


class CgroupFeatures(_Nullable, CgroupFeaturesBase):
    """Kinds of cgroups that are supported (features-linux.md#cgroup)."""

    SECTION: ClassVar[str] = "features-linux.md#cgroup"

    v1: bool | None = None
    """cgroup v1."""
    v2: bool | None = None
    """cgroup v2."""
    systemd: bool | None = None
    """Through the system's systemd."""
    systemd_user: bool | None = None
    """Through the user's systemd."""
    rdma: bool | None = None
    """The rdma controller."""


class SeccompFeatures(_Nullable, SeccompFeaturesBase):
    """What of seccomp is supported (features-linux.md#seccomp)."""

    SECTION: ClassVar[str] = "features-linux.md#seccomp"

    enabled: bool | None = None
    """Whether there is seccomp at all."""
    actions: tuple[SeccompAction, ...] | None = None
    """Actions that are known."""
    operators: tuple[SeccompOperator, ...] | None = None
    """Operators that are known."""
    archs: tuple[SeccompArch, ...] | None = None
    """Machines that are known."""
    known_flags: tuple[SeccompFlag, ...] | None = None
    """Flags that are known."""
    supported_flags: tuple[SeccompFlag, ...] | None = None
    """Flags that this kernel and libseccomp take too."""


class EnabledFeature(_Nullable, EnabledFeatureBase):
    """Whether something is supported: AppArmor, SELinux, id-mapped mounts, network devices (features-linux.md#apparmor)."""

    SECTION: ClassVar[str] = "features-linux.md#apparmor"

    enabled: bool | None = None
    """Whether it is."""


class MemoryPolicyFeatures(_Nullable, MemoryPolicyFeaturesBase):
    """What of NUMA policies is supported (features-linux.md#memorypolicy)."""

    SECTION: ClassVar[str] = "features-linux.md#memorypolicy"

    modes: tuple[MemoryPolicyMode, ...] | None = None
    """Modes that are known."""
    flags: tuple[MemoryPolicyFlag, ...] | None = None
    """Flags that are known."""


class IntelRdtFeatures(_Nullable, IntelRdtFeaturesBase):
    """What of resctrl is supported (features-linux.md#intel-rdt)."""

    SECTION: ClassVar[str] = "features-linux.md#intel-rdt"

    enabled: bool | None = None
    """Whether there is ``linux.intelRdt`` at all."""
    schemata: bool | None = None
    """Whether there is its member ``schemata``."""
    monitoring: bool | None = None
    """Whether there is its member ``enableMonitoring``."""


class MountExtensions(_Nullable, MountExtensionsBase):
    """Mount features that are supported (features-linux.md#mountextensions)."""

    SECTION: ClassVar[str] = "features-linux.md#mountextensions"

    idmap: EnabledFeature | None = None
    """Id-mapped mounts."""


class LinuxFeatures(_Nullable, LinuxFeaturesBase):
    """The Linux part of the features (features-linux.md#linux-features-structure)."""

    SECTION: ClassVar[str] = "features-linux.md#linux-features-structure"

    namespaces: tuple[NamespaceType, ...] | None = None
    """Namespaces that are known (features-linux.md#namespaces)."""
    capabilities: tuple[CapabilityName, ...] | None = None
    """Capabilities that are known (features-linux.md#capabilities)."""
    cgroup: CgroupFeatures | None = None
    """Kinds of cgroups (features-linux.md#cgroup)."""
    seccomp: SeccompFeatures | None = None
    """Filters of system calls (features-linux.md#seccomp)."""
    apparmor: EnabledFeature | None = None
    """AppArmor (features-linux.md#apparmor)."""
    selinux: EnabledFeature | None = None
    """SELinux (features-linux.md#selinux)."""
    memory_policy: MemoryPolicyFeatures | None = None
    """NUMA policies (features-linux.md#memorypolicy)."""
    intel_rdt: IntelRdtFeatures | None = None
    """Cache and memory bandwidth (features-linux.md#intel-rdt)."""
    mount_extensions: MountExtensions | None = None
    """Mounts (features-linux.md#mountextensions)."""
    net_devices: EnabledFeature | None = None
    """Network devices that move into the container (features-linux.md#netdevices)."""


class Features(_Nullable, FeaturesBase):
    """What a runtime supports; an absent member says nothing, an empty one says none (features.md#features-structure).

    A null means absence, as the text of the spec has it, and is kept in ``extensions``.
    """

    SECTION: ClassVar[str] = "features.md#features-structure"

    oci_version_min: str
    """The lowest version of the runtime spec (features.md#specification-version)."""
    oci_version_max: str
    """The highest version of the runtime spec, pre-releases included (features.md#specification-version)."""
    hooks: tuple[str, ...] | None = None
    """Kinds of hooks (features.md#hooks)."""
    mount_options: tuple[str, ...] | None = None
    """Mount options that are not left to the filesystem (features.md#mount-options)."""
    linux: LinuxFeatures | None = None
    """The Linux part (features.md#platform-specific-features)."""
    annotations: Mapping[str, str] | None = None
    """Facts about the runtime, such as versions of libraries (features.md#annotations)."""
    potentially_unsafe_config_annotations: tuple[str, ...] | None = None
    """Annotations, or prefixes that end with a dot, that change what it does (features.md#unsafe-annotations-in-configjson)."""
