"""Rules about the platforms other than Linux (config-windows.md, config-zos.md, config-vm.md, config-freebsd.md)."""

from __future__ import annotations

from pathlib import PureWindowsPath
from typing import TYPE_CHECKING

from .findings import Findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import RuntimeSpec
    from ..mounts import Mount
    from ..platforms import VM, ZOS, FreeBSD, Windows


def check_platforms(findings: Findings, spec: RuntimeSpec) -> None:
    """Check the parts of a config for platforms other than Linux."""
    if spec.windows is not None:
        _check_windows(findings, spec, spec.windows)
    if spec.zos is not None:
        _check_zos(findings, spec.zos)
    if spec.vm is not None:
        _check_vm(findings, spec.vm)
    if spec.freebsd is not None:
        _check_freebsd(findings, spec.freebsd)


def _check_windows(findings: Findings, spec: RuntimeSpec, windows: Windows) -> None:
    if spec.root is not None:
        if windows.hyperv is not None:
            findings.error("$.root", "must not be set with Hyper-V isolation", "config.md#root")
        if spec.root.readonly:
            findings.error("$.root.readonly", "is not supported on Windows", "config.md#root")
    if spec.process is not None and not spec.process.args and not spec.process.command_line:
        findings.error("$.process.commandLine", "is required without args", "config.md#process")
    _check_windows_mounts(findings, spec.mounts or ())
    cpu = windows.resources.cpu if windows.resources else None
    if cpu is not None and sum(value is not None for value in (cpu.count, cpu.shares, cpu.maximum)) > 1:
        findings.error("$.windows.resources.cpu", "count, shares and maximum are mutually exclusive", "config-windows.md#cpu")
    for name, value in (("shares", cpu.shares), ("maximum", cpu.maximum)) if cpu else ():
        if value is not None and value > 10000:
            findings.error(f"$.windows.resources.cpu.{name}", f"{value} is not 0 to 10000", "config-windows.md#cpu")
    network = windows.network
    if network is not None and network.network_namespace:
        others = [network.endpoint_list, network.allow_unqualified_dns_query, network.dns_search_list]
        if any(value is not None for value in (*others, network.network_shared_container_name)):
            findings.error("$.windows.network.networkNamespace", "excludes the other members", "config-windows.md#network")


def _check_windows_mounts(findings: Findings, mounts: Sequence[Mount]) -> None:
    section = "config.md#mounts"
    places = [PureWindowsPath(mount.destination) for mount in mounts]
    for index, place in enumerate(places):
        where = f"$.mounts[{index}].destination"
        if not place.is_absolute():
            findings.error(where, f"{str(place)!r} is not an absolute path", section)
        outer = next((other for other in places if other in place.parents), None)
        if outer is not None:
            findings.error(where, f"{str(place)!r} is nested within {str(outer)!r}", section)


def _check_zos(findings: Findings, zos: ZOS) -> None:
    section = "config-zos.md#namespaces"
    seen: set[str] = set()
    for index, namespace in enumerate(zos.namespaces or ()):
        where = f"$.zos.namespaces[{index}]"
        if namespace.type in seen:
            findings.error(where, f"{namespace.type} appears twice", section)
        seen.add(namespace.type)
        findings.check_absolute(f"{where}.path", namespace.path or None, section)


def _check_vm(findings: Findings, vm: VM) -> None:
    findings.check_absolute("$.vm.kernel.path", vm.kernel.path, "config-vm.md#kernel-object")
    findings.check_absolute("$.vm.kernel.initrd", vm.kernel.initrd, "config-vm.md#kernel-object")
    if vm.hypervisor is not None:
        findings.check_absolute("$.vm.hypervisor.path", vm.hypervisor.path, "config-vm.md#hypervisor-object")
    if vm.image is not None:
        findings.check_absolute("$.vm.image.path", vm.image.path, "config-vm.md#image-object")


def _check_freebsd(findings: Findings, freebsd: FreeBSD) -> None:
    section = "config-freebsd.md#devices"
    for index, device in enumerate(freebsd.devices or ()):
        if device.path.startswith("/"):
            findings.error(f"$.freebsd.devices[{index}].path", f"{device.path!r} is not relative to /dev", section)
    level = freebsd.jail.enforce_statfs if freebsd.jail else None
    if level is not None and level > 2:
        findings.error("$.freebsd.jail.enforceStatfs", f"{level} is not 0 to 2", "config-freebsd.md#jail")
