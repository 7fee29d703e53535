"""The features document (features.md, features-linux.md) and the state document (runtime.md, State)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Generic

import attrs
from typing_extensions import override

from .base import CapabilityName, NonNegativeInt, OpenEnum, Problem
from .linux import MemoryPolicyFlag, MemoryPolicyMode, NamespaceType
from .model import A_co, Model
from .rules.config import features_problems, state_problems
from .seccomp import SeccompAction, SeccompArch, SeccompFlag, SeccompOperator

if TYPE_CHECKING:
    from . import places as places
    from .rules.host import HostLike


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class _Nullable(Model[A_co], Generic[A_co]):
    """Base of the classes whose optional members may be null. Null means that a member is absent; it is kept in ``extensions``."""

    NULLABLE: ClassVar[bool] = True


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class CgroupFeatures(_Nullable["places.CgroupFeaturesAt"]):
    """Supported cgroup versions and managers (features-linux.md#cgroup)."""

    v1: bool | None = None
    """Whether cgroup v1 is supported."""
    v2: bool | None = None
    """Whether cgroup v2 is supported."""
    systemd: bool | None = None
    """Whether the system's systemd is supported as cgroup manager."""
    systemd_user: bool | None = None
    """Whether the user's systemd is supported as cgroup manager."""
    rdma: bool | None = None
    """Whether the rdma controller is supported."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class SeccompFeatures(_Nullable["places.SeccompFeaturesAt"]):
    """Supported features of seccomp (features-linux.md#seccomp)."""

    enabled: bool | None = None
    """Whether seccomp is supported."""
    actions: tuple[SeccompAction, ...] | None = None
    """Known actions."""
    operators: tuple[SeccompOperator, ...] | None = None
    """Known operators."""
    archs: tuple[SeccompArch, ...] | None = None
    """Known architectures."""
    known_flags: tuple[SeccompFlag, ...] | None = None
    """Known flags."""
    supported_flags: tuple[SeccompFlag, ...] | None = None
    """Known flags that this kernel and libseccomp support."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class EnabledFeature(_Nullable["places.EnabledFeatureAt"]):
    """Support of one feature: AppArmor, SELinux, id-mapped mounts or network devices (features-linux.md#apparmor)."""

    enabled: bool | None = None
    """Whether the feature is supported."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class MemoryPolicyFeatures(_Nullable["places.MemoryPolicyFeaturesAt"]):
    """Supported features of NUMA memory policies (features-linux.md#memorypolicy)."""

    modes: tuple[MemoryPolicyMode, ...] | None = None
    """Known modes."""
    flags: tuple[MemoryPolicyFlag, ...] | None = None
    """Known flags."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class IntelRdtFeatures(_Nullable["places.IntelRdtFeaturesAt"]):
    """Supported features of resctrl (features-linux.md#intel-rdt)."""

    enabled: bool | None = None
    """Whether ``linux.intelRdt`` is supported."""
    schemata: bool | None = None
    """Whether ``linux.intelRdt.schemata`` is supported."""
    monitoring: bool | None = None
    """Whether ``linux.intelRdt.enableMonitoring`` is supported."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class MountExtensions(_Nullable["places.MountExtensionsAt"]):
    """Supported extensions of mounts (features-linux.md#mountextensions)."""

    idmap: EnabledFeature | None = None
    """Id-mapped mounts."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class LinuxFeatures(_Nullable["places.LinuxFeaturesAt"]):
    """The Linux part of the features (features-linux.md#linux-features-structure)."""

    namespaces: tuple[NamespaceType, ...] | None = None
    """Known namespaces (features-linux.md#namespaces)."""
    capabilities: tuple[CapabilityName, ...] | None = None
    """Known capabilities (features-linux.md#capabilities)."""
    cgroup: CgroupFeatures | None = None
    """Cgroup versions and managers (features-linux.md#cgroup)."""
    seccomp: SeccompFeatures | None = None
    """System call filters (features-linux.md#seccomp)."""
    apparmor: EnabledFeature | None = None
    """AppArmor (features-linux.md#apparmor)."""
    selinux: EnabledFeature | None = None
    """SELinux (features-linux.md#selinux)."""
    memory_policy: MemoryPolicyFeatures | None = None
    """NUMA memory policies (features-linux.md#memorypolicy)."""
    intel_rdt: IntelRdtFeatures | None = None
    """Cache and memory bandwidth allocation (features-linux.md#intel-rdt)."""
    mount_extensions: MountExtensions | None = None
    """Mounts (features-linux.md#mountextensions)."""
    net_devices: EnabledFeature | None = None
    """Network devices that are moved to the container (features-linux.md#netdevices)."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Features(_Nullable["places.FeaturesAt"]):
    """Features that a runtime supports. An absent member means unknown, an empty one means none (features.md#features-structure).

    A null means that the member is absent, and is kept in ``extensions``.
    """

    oci_version_min: str
    """The lowest version of the runtime spec (features.md#specification-version)."""
    oci_version_max: str
    """The highest version of the runtime spec, pre-releases included (features.md#specification-version)."""
    hooks: tuple[str, ...] | None = None
    """Kinds of hooks (features.md#hooks)."""
    mount_options: tuple[str, ...] | None = None
    """Mount options that the runtime handles itself (features.md#mount-options)."""
    linux: LinuxFeatures | None = None
    """The Linux part (features.md#platform-specific-features)."""
    annotations: Mapping[str, str] | None = None
    """Properties of the runtime, such as versions of libraries (features.md#annotations)."""
    potentially_unsafe_config_annotations: tuple[str, ...] | None = None
    """Annotations, or prefixes ending in a dot, that change the runtime (features.md#unsafe-annotations-in-configjson)."""

    @override
    def _broken_rules(self, host: "HostLike | None") -> list[Problem]:
        return features_problems(self)


class ContainerStatus(OpenEnum):
    """Statuses of a container. A runtime may define more (runtime.md#state)."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class StateDocument(Model["places.StateDocumentAt"]):
    """The state of a container (runtime.md#state)."""

    oci_version: str
    """Version of the runtime spec."""
    id: str
    """Id of the container."""
    status: ContainerStatus
    """Status of the container."""
    pid: NonNegativeInt | None = None
    """Process id of the init process. Required on Linux if the status is created or running."""
    bundle: str
    """Absolute path of the bundle."""
    annotations: Mapping[str, str] | None = None
    """Annotations of the config. Default: none."""

    @override
    def _broken_rules(self, host: "HostLike | None") -> list[Problem]:
        return state_problems(self)


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ContainerProcessState(Model["places.ContainerProcessStateAt"]):
    """The message that a seccomp agent receives with its file descriptors (config-linux.md#the-container-process-state)."""

    oci_version: str
    """Version of the runtime spec."""
    fds: tuple[str, ...] | None = None
    """Names of the file descriptors in the message, in their order. Default: none."""
    pid: int
    """Process id of the container process, in the runtime namespace."""
    metadata: str | None = None
    """``linux.seccomp.listenerMetadata`` of the config. Default: none."""
    state: StateDocument
    """State of the container."""

    @override
    def _broken_rules(self, host: "HostLike | None") -> list[Problem]:
        return state_problems(self.state, "$.state")
