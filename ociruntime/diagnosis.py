"""`doctor`: what this host offers this user, what the runtime chooses, and what helps where something is missing; and `features`.

What a host offers is read from the probes by which the runtime itself decides. Nothing is created, mounted or changed. What the
runtime supports is found by compiling configurations that use it (features.md).
"""

from __future__ import annotations

import errno
import os
import platform
import pwd
import shutil
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

import ociruntime

from . import seccomp
from ._lazy import HtmlRepr
from .arguments import parse_path
from .engine.causes import OLDEST_KERNEL, user_namespace_setting
from .engine.filesystems import MOUNTERS, MTAB, Programs
from .engine.networks import NetworkPrograms
from .errors import SpecError, StateError, UnsupportedError
from .host import Hierarchy, Host, Systemd
from .overrides import find_enforcement, may_use_systemd
from .plan.cgroups.placement import no_cgroups, privileged_remedy
from .plan.compile import compile_create
from .plan.mount_options import LINKS
from .plan.process import CAPABILITIES
from .rootfs.layers import Strategy, choose, mounts_by_kernel
from .seccomp import load_library
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
    RlimitType,
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
from .store import check_directory, default_root

if TYPE_CHECKING:
    from .plan import Plan
    from .plan.cgroups import Manager

__all__ = [
    "Availability",
    "Diagnosis",
    "Finding",
    "doctor",
]


class Availability(StrEnum):
    """How much of what the runtime can use a host offers."""

    OK = "ok"
    LIMITED = "limited"
    """It works in part, or in a worse way than is possible."""
    MISSING = "missing"


@attrs.frozen
class Finding:
    """What a host offers in one respect."""

    subject: str
    status: Availability
    detail: str
    """What was found, and what the runtime chooses."""
    remedy: str = ""
    """What helps this user on this host; empty if nothing is known."""


_REQUIRED: Final = ("kernel", "user namespaces", "seccomp", "state directory")
"""The subjects without which no container with the default configuration can run."""
_TITLES: Final = ("SUBJECT", "STATUS", "DETAIL")


@attrs.frozen
class Diagnosis(HtmlRepr):
    """The findings about a host. ``str()`` gives a table."""

    findings: tuple[Finding, ...]

    @property
    def obstacles(self) -> tuple[Finding, ...]:
        """The findings because of which no container with the default configuration can run."""
        return tuple(one for one in self.findings if one.subject in _REQUIRED and one.status is Availability.MISSING)

    @property
    def usable(self) -> bool:
        """Whether containers with the default configuration can run."""
        return not self.obstacles

    def __getitem__(self, subject: str) -> Finding:
        """Return the finding about a subject. Raises KeyError."""
        for finding in self.findings:
            if finding.subject == subject:
                return finding
        raise KeyError(subject)

    def __str__(self) -> str:
        rows: list[tuple[str, str, str]] = [_TITLES]
        for finding in self.findings:
            rows.append((finding.subject, finding.status, finding.detail))
            if finding.remedy:
                rows.append(("", "", f"-> {finding.remedy}"))
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{subject:{widths[0]}}  {status:{widths[1]}}  {detail}" for subject, status, detail in rows]
        return "\n".join([*lines, "", self._verdict()])

    def _verdict(self) -> str:
        if self.usable:
            return "Containers can run here."
        return f"Containers cannot run here: {', '.join(one.subject for one in self.obstacles)}."

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values, as ``ociruntime doctor --format json`` prints it."""
        findings = [{**attrs.asdict(finding), "status": finding.status.value} for finding in self.findings]
        return {"usable": self.usable, "findings": findings}


def doctor(*, state_root: str | os.PathLike[str] | None = None) -> Diagnosis:
    """Return what this host offers this user, what the runtime chooses, and what to install for better.

    Args:
        state_root: the state directory to examine; by default the one of this user.

    Raises:
        OSError: /proc is not a whole procfs.
    """
    return diagnose(_probe(None if state_root is None else parse_path("state_root", state_root)))


# ---- probes ----


@attrs.frozen
class Probes:
    """What `diagnose` looks at."""

    host: Host
    programs: Programs
    """The programs for users, and whether FUSE can be used."""
    networks: NetworkPrograms
    """The programs for private networks."""
    mksquashfs: str
    """Its path, or an empty string."""
    release: str
    """The release of the kernel, as uname(2) tells it."""
    filesystems: frozenset[str]
    """Those that the kernel has or can load, among the filesystems that images need."""
    loop: bool
    """Whether there are loop devices."""
    setting: tuple[str, str] | None
    """The sysctl that keeps users from making user namespaces, and its value."""
    filtered: bool
    """Whether a seccomp filter applies to this process."""
    user: str
    """The name of the user, or an empty string."""
    free_id: int
    """The first id after all ranges in /etc/subuid and /etc/subgid."""
    state_root: str
    """The state directory; empty if there is none."""
    state_problem: str
    """Why it cannot be used, and what to do; empty if it can."""
    seccomp_problem: str
    """Why filters cannot be compiled, and what to do; empty if they can."""
    distribution: str
    """The name of the distribution's family in `_PACKAGES`, or an empty string."""
    systemd: bool = False
    """Whether the systemd of this user can be asked for cgroups."""


_FILESYSTEMS: Final = ("overlay", "squashfs", "ext4", "erofs")
_LOWEST_ID: Final = 100000
_COUNT: Final = 65536
"""The usual first id and size of ranges of subordinate ids."""


def _probe(state_root: str | None) -> Probes:
    release = os.uname().release
    root, problem = _probe_state(state_root)
    try:
        load_library()
        seccomp_problem = ""
    except UnsupportedError as error:
        seccomp_problem = str(error)
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = ""
    return Probes(
        host=Host.probe(),
        programs=Programs.find(),
        networks=NetworkPrograms.find(),
        mksquashfs=shutil.which("mksquashfs") or "",
        release=release,
        filesystems=_find_filesystems(release),
        loop=os.path.exists("/dev/loop-control"),
        setting=user_namespace_setting(),
        filtered="Seccomp:\t2" in Path("/proc/thread-self/status").read_text(errors="replace").splitlines(),
        user=user,
        free_id=max(_LOWEST_ID, *(_end_of_ids(path) for path in ("/etc/subuid", "/etc/subgid"))),
        state_root=root,
        state_problem=problem,
        seccomp_problem=seccomp_problem,
        distribution=_find_distribution(),
        systemd=may_use_systemd(Host.probe()),
    )


def _find_filesystems(release: str) -> frozenset[str]:
    """Return which of `_FILESYSTEMS` the kernel has, or has as a module that it loads when one is mounted."""
    present = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    modules = ""
    for name in ("modules.dep", "modules.builtin"):
        try:
            modules += Path("/lib/modules", release, name).read_text()
        except OSError:
            continue  # a kernel without modules, or a container without those of the host
    return frozenset(name for name in _FILESYSTEMS if name in present or f"/{name}.ko" in modules)


def _end_of_ids(path: str) -> int:
    """Return the first id after all ranges of a file of subordinate ids (subuid(5))."""
    try:
        rows = [line.strip().split(":") for line in Path(path).read_text().splitlines()]
    except OSError:
        return 0
    return max((int(row[1]) + int(row[2]) for row in rows if len(row) == 3 and (row[1] + row[2]).isdigit()), default=0)


def _probe_state(state_root: str | None) -> tuple[str, str]:
    """Return the state directory and why it cannot be used, without creating it."""
    root = state_root or ""
    try:
        root = root or default_root()
        check_directory(root)
    except StateError as error:
        return root, str(error)
    except FileNotFoundError:
        pass  # it is created when it is needed
    except OSError as error:
        return root, f"{root}: {(error.strerror or '').lower()}; give another one with --root (state_root=)"
    place = os.path.abspath(root)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        return root, ""
    return root, f"{place} is not a directory that this user can write to; give another one with --root (state_root=)"


def _find_distribution() -> str:
    try:
        fields = platform.freedesktop_os_release()
    except OSError:
        return ""
    names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    # Packages of the clones of RHEL come from other repositories than those of Fedora, which they say to be like.
    return "" if "rhel" in names else next((name for name in names if name in _INSTALL), "")


# ---- findings ----

_INSTALL: Final = {
    "debian": "apt install",
    "fedora": "dnf install",
    "alpine": "apk add",
    "arch": "pacman -S",
    "opensuse": "zypper install",
    "suse": "zypper install",
}
_PACKAGES: Final[dict[str, dict[str, str]]] = {
    "squashfuse": {},
    "slirp4netns": {},
    "fuse2fs": {},
    "fuse-overlayfs": {},
    "pasta": dict.fromkeys(("debian", "fedora", "alpine", "arch", "opensuse", "suse"), "passt"),
    "erofsfuse": dict.fromkeys(("fedora", "alpine", "arch", "opensuse", "suse"), "erofs-utils"),
    "fusermount3": dict.fromkeys(("debian", "fedora", "alpine", "arch", "opensuse", "suse"), "fuse3"),
    "unsquashfs": dict.fromkeys(("debian", "fedora", "alpine", "arch"), "squashfs-tools")
    | {"opensuse": "squashfs", "suse": "squashfs"},
    "newuidmap": {
        "debian": "uidmap",
        "fedora": "shadow-utils",
        "alpine": "shadow-uidmap",
        "arch": "shadow",
        "opensuse": "shadow",
        "suse": "shadow",
    },
}
"""The packages of programs by distribution, where they have other names than the program."""
_PACKAGES["mksquashfs"] = _PACKAGES["unsquashfs"]


def diagnose(probes: Probes) -> Diagnosis:
    """Return the findings from the results of probes."""
    return Diagnosis(
        (
            _kernel(probes),
            _privileges(probes),
            _user_namespaces(probes),
            _subordinate_ids(probes),
            _overlay(probes),
            _sif_images(probes),
            _oci_images(probes),
            _mounted_images(probes, "ext", "ext4"),
            _mounted_images(probes, "erofs", "erofs"),
            _fuse(probes),
            _squashfs_tools(probes),
            _cgroups(probes),
            _systemd(probes),
            _sandbox_limits(probes),
            _private_networks(probes),
            _seccomp(probes),
            _state_directory(probes),
        )
    )


def _by_root(host: Host, command: str) -> str:
    return f"run '{command}'" if host.euid == 0 and host.initial else f"let root run '{command}'"


def _install(probes: Probes, programs: list[str]) -> str:
    """Return how programs are installed here; an empty string if there are none."""
    if not programs:
        return ""
    packages = [_PACKAGES[program].get(probes.distribution, program) for program in programs]
    if not probes.distribution:
        return f"install {' and '.join(packages)}"
    return _by_root(probes.host, f"{_INSTALL[probes.distribution]} {' '.join(dict.fromkeys(packages))}")


_NEWER_KERNEL: Final = (6, 15)
"""The oldest kernel that has everything that the runtime can use."""


def _kernel(probes: Probes) -> Finding:
    oldest, found = ".".join(map(str, OLDEST_KERNEL)), f"Linux {probes.release}"
    if probes.host.kernel < OLDEST_KERNEL:
        return Finding("kernel", Availability.MISSING, f"{found}; {oldest} or later is needed", f"use Linux {oldest} or later")
    if probes.host.kernel < _NEWER_KERNEL:
        detail = f"{found}: exit codes are known to parent processes only, and every container needs a mount namespace of its own"
        return Finding("kernel", Availability.LIMITED, detail, "use Linux 6.15 or later")
    return Finding("kernel", Availability.OK, found)


def _privileges(probes: Probes) -> Finding:
    host = probes.host
    where = "" if host.initial else " in a user namespace"
    who = f"uid {host.euid} ({probes.user})" if probes.user else f"uid {host.euid}"
    if host.privileged:
        return Finding("privileges", Availability.OK, f"{who}{where} has those of root")
    if host.euid == 0:
        detail = f"{who}{where} lacks CAP_SETUID, CAP_SETGID or CAP_SYS_ADMIN, so it counts as an unprivileged user"
        return Finding("privileges", Availability.LIMITED, detail)
    return Finding("privileges", Availability.OK, f"{who}{where} has none: each container gets a user namespace")


def _user_namespaces(probes: Probes) -> Finding:
    subject = "user namespaces"
    if probes.setting is not None:
        name, value = probes.setting
        # The other settings apply to unprivileged processes only.
        if not probes.host.privileged or name == "user.max_user_namespaces":
            status = Availability.LIMITED if probes.host.privileged else Availability.MISSING
            sufficient = {"user.max_user_namespaces": "15000", "kernel.unprivileged_userns_clone": "1"}.get(name, "0")
            return Finding(
                subject, status, f"not allowed: {name} is {value}", _by_root(probes.host, f"sysctl -w {name}={sufficient}")
            )
    if probes.filtered and not probes.host.privileged:
        detail = "allowed by the kernel's settings, but a seccomp filter that applies to this process may deny them"
        return Finding(
            subject, Availability.LIMITED, detail, "start the runtime outside of the container or service with the filter"
        )
    return Finding(subject, Availability.OK, "allowed")


def _subordinate_ids(probes: Probes) -> Finding:
    subject, host = "subordinate ids", probes.host
    if host.privileged:
        which = "every id" if host.initial else "every id of its user namespace"
        return Finding(subject, Availability.OK, f"not needed: this user can map {which}")
    lacking = [path for path, ranges in (("/etc/subuid", host.subuids), ("/etc/subgid", host.subgids)) if not ranges]
    reasons = [f"no range of this user in {' and '.join(lacking)}"] if lacking else []
    remedies = []
    if host.idmap_helpers is None:
        reasons.append("no newuidmap and newgidmap in /usr/bin")
        remedies.append(_install(probes, ["newuidmap"]))
    if not reasons:
        return Finding(subject, Availability.OK, f"{sum(count for _, count in host.subuids)} user ids, mapped by newuidmap")
    if lacking and probes.user:
        row = f"{probes.user}:{probes.free_id}:{_COUNT}"
        remedies.append(_by_root(host, f"echo {row} | tee -a {' '.join(lacking)}"))
    elif lacking:
        remedies.append(f"let root give uid {host.euid} a name in /etc/passwd, and ranges in {' and '.join(lacking)}")
    detail = f"{'; '.join(reasons)}: a container has one user and one group only"
    return Finding(subject, Availability.MISSING, detail, "; ".join(remedies))


def _overlay(probes: Probes) -> Finding:
    host = probes.host
    if "overlay" not in probes.filesystems:
        return Finding("overlay", Availability.MISSING, "the kernel has no overlay filesystem", _by_root(host, "modprobe overlay"))
    if mounts_by_kernel(host):
        return Finding("overlay", Availability.OK, "mounted on the host, and shared by the containers of a bundle")
    if host.kernel < (5, 11):
        return Finding("overlay", Availability.MISSING, "users may mount it since Linux 5.11", "use a newer kernel, or run as root")
    return Finding("overlay", Availability.OK, "mounted by each container in its user namespace, with userxattr")


def _fuse_obstacles(probes: Probes, program: str = "squashfuse") -> tuple[list[str], list[str]]:
    """Return why FUSE cannot be used, and what helps.

    Args:
        program: what serves the filesystem, by its name in `Programs`.
    """
    found, device = getattr(probes.programs, program), probes.programs.device
    reasons = [*([] if found else [f"no {program} in PATH"]), *([device] if device else [])]
    remedies = [*([] if found else [_install(probes, [program])]), *([_device_remedy(probes.host, device)] if device else [])]
    return reasons, remedies


def _device_remedy(host: Host, problem: str) -> str:
    """Return what makes /dev/fuse usable, by why it cannot be used."""
    if problem.endswith(os.strerror(errno.EACCES).lower()):
        return _by_root(host, "chmod 666 /dev/fuse")
    if problem.endswith(os.strerror(errno.EPERM).lower()):  # by the device rules of a cgroup
        return "allow the device /dev/fuse to the container in which the runtime runs"
    return _by_root(host, "modprobe fuse")


def _sif_images(probes: Probes) -> Finding:
    subject = "SIF images"
    _, remedies = _fuse_obstacles(probes)
    try:
        strategy, reason = choose({"squashfs"}, probes.host, probes.programs)
    except UnsupportedError as error:
        choices = [*remedies, "or, for extraction: " + _install(probes, ["unsquashfs"])]
        return Finding(subject, Availability.MISSING, str(error).rpartition("; ")[0], "; ".join(choices))
    if strategy is Strategy.FUSE:
        return Finding(subject, Availability.OK, f"{strategy}: mounted by squashfuse, because {reason}")
    if strategy is Strategy.EXTRACTION:
        return Finding(subject, Availability.LIMITED, f"{strategy}: extracted to a cache, because {reason}", "; ".join(remedies))
    return _kernel_images(probes, subject, "squashfs")


def _kernel_images(probes: Probes, subject: str, filesystem: str) -> Finding:
    """Return the finding about images that the kernel mounts for this user."""
    modules = ([] if filesystem in probes.filesystems else [filesystem]) + ([] if probes.loop else ["loop"])
    if modules:
        detail = f"{Strategy.KERNEL}: the kernel mounts them, but it has no {' and no '.join(modules)}"
        return Finding(subject, Availability.MISSING, detail, _by_root(probes.host, f"modprobe -a {' '.join(modules)}"))
    return Finding(subject, Availability.OK, f"{Strategy.KERNEL}: mounted by the kernel through loop devices")


def _oci_images(probes: Probes) -> Finding:
    """Return the finding about images with several layers."""
    subject, archives = "OCI images", "layers that are tar archives are extracted to a cache"
    try:
        strategy, _ = choose({"squashfs"}, probes.host, probes.programs, layers=2)
    except UnsupportedError as error:
        _, remedies = _fuse_obstacles(probes)
        choices = [*remedies, "or, for extraction: pip install 'ociruntime[images]'"]
        detail = f"{archives}; several squashfs layers cannot be used: {str(error).rpartition('; ')[0]}"
        return Finding(subject, Availability.LIMITED, detail, "; ".join(choices))
    return Finding(subject, Availability.OK, f"{archives}; several squashfs layers: {strategy}")


def _mounted_images(probes: Probes, kind: str, filesystem: str) -> Finding:
    """Return the finding about images with a filesystem other than squashfs."""
    subject, program = f"{kind} images", MOUNTERS[kind]
    strategy, reason = choose({kind}, probes.host, probes.programs)  # they can always be extracted
    if strategy is Strategy.KERNEL:
        return _kernel_images(probes, subject, filesystem)
    if strategy is Strategy.EXTRACTION:
        remedies = _fuse_obstacles(probes, program)[1]
        return Finding(subject, Availability.LIMITED, f"{strategy}: extracted to a cache, because {reason}", "; ".join(remedies))
    return Finding(subject, Availability.OK, f"{strategy}: mounted by {program}, because {reason}")


def _fuse(probes: Probes) -> Finding:
    if mounts_by_kernel(probes.host):
        return Finding("FUSE", Availability.OK, "not needed: the kernel mounts images for this user")
    reasons, remedies = _fuse_obstacles(probes)
    if reasons:
        return Finding("FUSE", Availability.MISSING, "; ".join(reasons), "; ".join(remedies))
    return _mounts_on_host(probes)


def _mounts_on_host(probes: Probes) -> Finding:
    """Return the finding about FUSE that can be used: whether a mounted bundle shows the files of an image."""
    programs, detail = probes.programs, f"/dev/fuse, {probes.programs.squashfuse}"
    lacking = [name for name, path in (("fusermount3", programs.fusermount), ("fuse-overlayfs", programs.overlayfs)) if not path]
    remedies = [_install(probes, lacking)] if lacking else []
    if programs.no_mount:
        if programs.nameless:
            remedies.append(f"let root give uid {probes.host.euid} a name in /etc/passwd")
        if not programs.mtab:
            remedies.append(_by_root(probes.host, f"ln -s ../proc/self/mounts {MTAB}"))
        detail += f"; {programs.no_mount}: the rootfs of a mounted bundle stays empty, and its containers mount the image"
        return Finding("FUSE", Availability.LIMITED, detail, "; ".join(remedies))
    if lacking:
        detail += "; no fuse-overlayfs in PATH: the rootfs of a mounted bundle with several layers stays empty"
        return Finding("FUSE", Availability.LIMITED, detail, "; ".join(remedies))
    return Finding("FUSE", Availability.OK, f"{detail}, {programs.fusermount}, {programs.overlayfs}")


def _squashfs_tools(probes: Probes) -> Finding:
    subject = "squashfs-tools"
    found = {"mksquashfs, which builds images": probes.mksquashfs}
    if not mounts_by_kernel(probes.host):
        found["unsquashfs, which extracts images where FUSE cannot be used"] = probes.programs.unsquashfs
    lacking = [what for what, path in found.items() if not path]
    if not lacking:
        return Finding(subject, Availability.OK, ", ".join(found.values()))
    status = Availability.MISSING if len(lacking) == len(found) else Availability.LIMITED
    return Finding(subject, status, f"not in PATH: {'; '.join(lacking)}", _install(probes, [lacking[0].partition(",")[0]]))


_CONTROLLERS: Final = ("cpu", "memory", "pids")
"""The controllers of the limits of `run`."""


def _cgroups(probes: Probes) -> Finding:
    host = probes.host
    usable = [hierarchy for hierarchy in host.hierarchies if hierarchy.base is not None]
    if not usable:
        reason, _, remedy = no_cgroups(host).partition("; ")
        detail = f"{host.cgroup_mode}: {reason}, so containers have no limits and no statistics"
        return Finding("cgroups", Availability.MISSING, detail, remedy)
    controllers = frozenset[str]().union(*(hierarchy.controllers for hierarchy in usable))
    where = (
        f"below {usable[-1].mountpoint}{(usable[-1].base or '').rstrip('/')}"
        if len(usable) == 1
        else f"in {len(usable)} hierarchies"
    )
    detail = f"{host.cgroup_mode}: this user may create them {where}"
    if lacking := [name for name in _CONTROLLERS if name not in controllers]:
        if host.euid == 0:
            remedy = "boot a kernel that has them or, in a container, let its host delegate them"
        else:
            remedy = privileged_remedy(host, may_use_systemd=True)
        return Finding("cgroups", Availability.LIMITED, f"{detail}, without the controllers {', '.join(lacking)}", remedy)
    return Finding("cgroups", Availability.OK, f"{detail}, with the controllers {', '.join(_CONTROLLERS)}")


def _systemd(probes: Probes) -> Finding:
    host = probes.host
    if host.systemd is not None:
        kind = "that of this user" if host.systemd.user else "that of the system"
        return Finding("systemd", Availability.OK, f"{kind} creates the cgroups with --cgroup-manager systemd")
    if not host.booted:
        return Finding(
            "systemd", Availability.MISSING, "the host was not booted with systemd: cgroups are created as directories only"
        )
    remedy = _by_root(host, f"loginctl enable-linger {host.euid}") if host.euid else ""
    return Finding("systemd", Availability.LIMITED, "it is running, but not for this user", remedy)


_WEAKER: Final = {
    RlimitType.NPROC: "{} for each of its users (RLIMIT_NPROC)",
    RlimitType.DATA: "{} for each process (RLIMIT_DATA)",
    None: "{} not at all",
}
"""How a limit holds without a cgroup, by the type of the resource limit."""


def _sandbox_limits(probes: Probes) -> Finding:
    """Return the finding about the limits of a `Sandbox`."""
    subject, always = "sandbox limits", "disk and /dev/shm by the size of a tmpfs, output by the caller"
    names = ("pids", "memory", "cpus")
    found = {name: find_enforcement(name, 1, probes.host) for name in names}
    by_systemd = any(one.reason for one in found.values()) and probes.systemd
    if by_systemd:
        found = {name: find_enforcement(name, 1, probes.host, "systemd") for name in names}
    cgroups = [name for name, one in found.items() if not one.reason]
    together = f"{', '.join(cgroups)} of all processes together by cgroups" if cgroups else ""
    if by_systemd and cgroups:
        together += " of systemd, where they are given or limits='required'"
    if len(cgroups) == len(found):
        return Finding(subject, Availability.OK, f"{together}; {always}")
    weak = ", ".join(_WEAKER[one.rlimit.type if one.rlimit else None].format(name) for name, one in found.items() if one.reason)
    detail = "; ".join(part for part in (together, f"without a cgroup: {weak}", always) if part)
    return Finding(subject, Availability.LIMITED, detail, _cgroups(probes).remedy)


def _private_networks(probes: Probes) -> Finding:
    subject, networks = "private network", probes.networks
    problem, _ = networks.obstacle
    if problem:
        if networks.device:
            remedy = _by_root(probes.host, "modprobe tun; chmod 666 /dev/net/tun")
        else:
            remedy = _install(probes, ["slirp4netns" if networks.pasta else "pasta"])
        return Finding(subject, Availability.MISSING, problem, remedy)
    program, reason = networks.choose()
    found = [path for path in (networks.pasta, networks.slirp4netns) if path]
    because = f", because {reason}" if reason else ""
    return Finding(subject, Availability.OK, f"found {' and '.join(found)}: {program} is used{because}")


def _seccomp(probes: Probes) -> Finding:
    if not probes.host.seccomp:
        return Finding(
            "seccomp", Availability.MISSING, "the kernel has no seccomp filters", "use a kernel with CONFIG_SECCOMP_FILTER"
        )
    if probes.seccomp_problem:
        detail, _, remedy = probes.seccomp_problem.rpartition("; ")
        return Finding("seccomp", Availability.MISSING, detail, remedy)
    return Finding("seccomp", Availability.OK, "filters are compiled by libseccomp")


def _state_directory(probes: Probes) -> Finding:
    if not probes.state_problem:
        return Finding("state directory", Availability.OK, probes.state_root)
    detail, _, remedy = probes.state_problem.rpartition("; ")
    return Finding("state directory", Availability.MISSING, detail, remedy)


OLDEST, NEWEST = "1.0.0", "1.3.0"
"""The oldest and the newest supported version of the runtime spec."""
_ALL_CONTROLLERS: Final = (
    "cpu cpuacct cpuset memory devices freezer blkio pids hugetlb rdma net_cls net_prio perf_event misc".split()
)
_V1: Final = (
    *(Hierarchy(f"/sys/fs/cgroup/{name}", 1, frozenset({name})) for name in _ALL_CONTROLLERS),
    Hierarchy("/sys/fs/cgroup/systemd", 1, frozenset({"name=systemd"})),
)
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
        annotations={"ociruntime.version": ociruntime.__version__},
        potentially_unsafe_config_annotations=tuple(prefix for prefix in _ANNOTATIONS if _supports_annotation(prefix)),
    )


def _linux() -> LinuxFeatures:
    return LinuxFeatures(
        namespaces=tuple(kind for kind in NamespaceType if _supports(_with_namespace(kind))),
        capabilities=tuple(CAPABILITIES),
        cgroup=_cgroup(),
        seccomp=_seccomp_of_features(),
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


def _seccomp_of_features() -> SeccompFeatures:
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
