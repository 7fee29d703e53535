"""`features`: what this runtime supports, as the document that features.md describes.

No feature is listed by hand. For each one a config that uses it is compiled for a host that supports everything; the feature is
supported unless the compiler refuses it. Values that are looked up later, such as those of seccomp, come from the lookup tables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from . import __version__, seccomp
from .errors import SpecError, UnsupportedError
from .host import Hierarchy, Host, Systemd
from .plan.compile import compile_create
from .plan.mount_options import LINKS
from .plan.process import CAPABILITIES
from .spec import (
    CgroupFeatures,
    EnabledFeature,
    Features,
    Hook,
    Hooks,
    IDMapping,
    IntelRdtFeatures,
    Json,
    LinuxFeatures,
    MemoryPolicyFeatures,
    MemoryPolicyFlag,
    MemoryPolicyMode,
    Mount,
    MountExtensions,
    NamespaceType,
    ProcessSpec,
    Root,
    RuntimeSpec,
    Seccomp,
    SeccompAction,
    SeccompArch,
    SeccompFeatures,
    SeccompFlag,
    SeccompOperator,
)
from .spec.base import members_of
from .spec.linux import MOUNT_OPTIONS
from .spec.rules.host import host_problems

if TYPE_CHECKING:
    from .plan import Plan
    from .plan.cgroups import Manager

OLDEST, NEWEST = "1.0.0", "1.3.0"
"""The oldest and the newest supported version of the runtime spec."""
_CONTROLLERS: Final = "cpu cpuacct cpuset memory devices freezer blkio pids hugetlb rdma net_cls net_prio perf_event misc".split()
_V1: Final = (*(Hierarchy(f"/sys/fs/cgroup/{name}", 1, frozenset({name})) for name in _CONTROLLERS),
              Hierarchy("/sys/fs/cgroup/systemd", 1, frozenset({"name=systemd"})))  # fmt: skip
_V2: Final = (Hierarchy("/sys/fs/cgroup", 2, frozenset("cpu cpuset memory io pids hugetlb rdma misc".split())),)
_HOST: Final = Host(
    kernel=(99, 0),
    machine=os.uname().machine,
    euid=0,
    last_cap=len(CAPABILITIES) - 1,
    hierarchies=_V2,
    lsms=frozenset({"apparmor", "selinux"}),
    resctrl="/sys/fs/resctrl",
    systemd=Systemd(False, _V2[0]),
)
_IDS: Final = (IDMapping(container_id=0, host_id=100000, size=65536),)
_VFS: Final = frozenset("ro rw sync async dirsync lazytime nolazytime mand nomand".split())
# The kernel accepts these options for any filesystem, so they may be passed to it.
_ANNOTATIONS: Final = {"org.systemd.property.": ("CollectMode", "'inactive-or-failed'")}
# Annotations with an effect: a prefix, and an example of a name and a value.


def features() -> Features:
    """Return what this runtime supports on any host; only ``seccomp.supportedFlags`` depends on the running kernel."""
    return Features(
        oci_version_min=OLDEST,
        oci_version_max=NEWEST,
        hooks=tuple(member.key for member in members_of(Hooks).values() if _supports(_with_hook(member.name))),
        mount_options=tuple(option for option in sorted((*MOUNT_OPTIONS, *LINKS)) if _supports_option(option)),
        linux=_linux(),
        annotations={"ociruntime.version": __version__},
        potentially_unsafe_config_annotations=tuple(prefix for prefix in _ANNOTATIONS if _supports_annotation(prefix)),
    )


def _linux() -> LinuxFeatures:
    return LinuxFeatures(
        namespaces=tuple(kind for kind in NamespaceType if _supports(_with_namespace(kind))),
        capabilities=tuple(CAPABILITIES),
        cgroup=_cgroup(),
        seccomp=_seccomp(),
        apparmor=EnabledFeature(enabled=_supports_members(process={"apparmorProfile": "profile"})),
        selinux=EnabledFeature(enabled=_supports_members(process={"selinuxLabel": "label"}, linux={"mountLabel": "label"})),
        memory_policy=_memory_policy(),
        intel_rdt=IntelRdtFeatures(
            enabled=_supports_members(linux={"intelRdt": {"closID": "class"}}),
            schemata=_supports_members(linux={"intelRdt": {"closID": "class", "schemata": ["L3:0=f"]}}),
            monitoring=_supports_members(linux={"intelRdt": {"closID": "class", "enableMonitoring": True}}),
        ),
        mount_extensions=MountExtensions(idmap=EnabledFeature(enabled=_supports(_with_option("idmap")))),
        net_devices=EnabledFeature(enabled=_supports_members(linux={"netDevices": {"eth0": {}}})),
    )


def _cgroup() -> CgroupFeatures:
    limits = _base({"linux": {"resources": {"memory": {"limit": 1 << 30}, "pids": {"limit": 100}}}})
    user = _with_namespace(NamespaceType.USER)
    return CgroupFeatures(
        v1=_supports(limits, attrs.evolve(_HOST, hierarchies=_V1)),
        v2=_supports(limits),
        systemd=_supports(limits, manager="systemd"),
        systemd_user=_supports(user, attrs.evolve(_HOST, euid=1000, systemd=Systemd(True, _V2[0])), manager="systemd"),
        rdma=_supports_members(linux={"resources": {"rdma": {"mlx5_1": {"hcaHandles": 1}}}}),
    )


def _seccomp() -> SeccompFeatures:
    flags = tuple(map(SeccompFlag, seccomp.FLAGS))
    here = Host.probe()
    return SeccompFeatures(
        enabled=_supports_members(linux={"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}),
        actions=tuple(SeccompAction(name) for name in seccomp.ACTIONS if _supports(_with_action(name))),
        operators=tuple(map(SeccompOperator, sorted(seccomp.OPERATORS))),
        archs=tuple(map(SeccompArch, seccomp.ARCHITECTURES)),
        known_flags=flags,
        supported_flags=tuple(flag for flag in flags if not host_problems(_with_flag(flag), here)),
    )


def _memory_policy() -> MemoryPolicyFeatures:
    def policy(mode: MemoryPolicyMode, *flags: MemoryPolicyFlag) -> RuntimeSpec:
        nodes = None if mode in (MemoryPolicyMode.DEFAULT, MemoryPolicyMode.LOCAL) else "0"
        return _base().at.linux.memory_policy.evolve(mode=mode, nodes=nodes, flags=flags or None)

    return MemoryPolicyFeatures(
        modes=tuple(mode for mode in MemoryPolicyMode if _supports(policy(mode))),
        flags=tuple(flag for flag in MemoryPolicyFlag if _supports(policy(MemoryPolicyMode.BIND, flag))),
    )


# ---- compiling configs that use a feature ----


def _compile(spec: RuntimeSpec, host: Host, manager: Manager = "cgroupfs") -> Plan:
    return compile_create(spec, host, bundle="/bundle", manager=manager)


def _supports(spec: RuntimeSpec, host: Host = _HOST, manager: Manager = "cgroupfs") -> bool:
    try:
        _compile(spec, host, manager)
    except (SpecError, UnsupportedError):
        return False
    return True


def _supports_members(**members: Mapping[str, Json]) -> bool:
    return _supports(_base(members))


def _base(members: Mapping[str, Mapping[str, Json]] | None = None) -> RuntimeSpec:
    """Return a small config merged with parts of a JSON document."""
    spec = RuntimeSpec(
        oci_version=NEWEST,
        process=ProcessSpec(cwd="/", args=("sh",)),
        root=Root(path="rootfs"),
        mounts=(Mount(destination="/proc", type="proc", source="proc"),),
    )
    for kind in (NamespaceType.MOUNT, NamespaceType.PID, NamespaceType.NETWORK):
        spec = spec.with_namespace(kind)
    return spec.merge({name: dict(part) for name, part in (members or {}).items()})


def _with_namespace(kind: NamespaceType) -> RuntimeSpec:
    spec = _base().with_namespace(kind)
    return spec.at.linux.evolve(uid_mappings=_IDS, gid_mappings=_IDS) if kind is NamespaceType.USER else spec


def _with_hook(kind: str) -> RuntimeSpec:
    hooks: dict[str, Any] = {kind: (Hook(path="/bin/true"),)}
    return _base().evolve(hooks=Hooks(**hooks))


def _with_option(option: str) -> RuntimeSpec:
    mount = Mount(destination="/x", type="tmpfs", source="tmpfs")
    asking = mount.evolve(options=(option,))
    if option in ("bind", "rbind"):
        asking = asking.evolve(type="none", source="/source")
    elif option in LINKS:
        asking = asking.evolve(type="none", source="/source", options=("rbind", option))
    elif option in ("idmap", "ridmap"):
        asking = asking.evolve(type="none", source="/source", options=("rbind", option), uid_mappings=_IDS, gid_mappings=_IDS)
    return _base().at.mounts.append(mount, asking)  # the first is there for remount


def _supports_option(option: str) -> bool:
    """Return whether an option has an effect, instead of being passed to the filesystem."""
    try:
        plan = _compile(_with_option(option), _HOST)
    except (SpecError, UnsupportedError):
        return False
    return option in _VFS or not any(step.op == "fsconfig" and option in step.values for step in plan.steps)


def _with_action(name: str) -> RuntimeSpec:
    return _base({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent",
                                        "syscalls": [{"names": ["mount"], "action": name}]}}})  # fmt: skip


def _with_flag(flag: str) -> RuntimeSpec:
    profile = Seccomp(default_action=SeccompAction.ALLOW, flags=(SeccompFlag(flag),))
    return _with_namespace(NamespaceType.USER).at.linux.seccomp.set(profile)


def _supports_annotation(prefix: str) -> bool:
    name, value = _ANNOTATIONS[prefix]
    plans: list[Plan] = []
    for given in (None, {prefix + name: value}):
        try:
            plans.append(_compile(_base().evolve(annotations=given), _HOST, "systemd"))
        except UnsupportedError:
            return False
    return plans[0].steps != plans[1].steps
