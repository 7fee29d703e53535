"""Rules about the platforms other than Linux (config-windows.md, config-zos.md, config-vm.md, config-freebsd.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rules import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import RuntimeSpec
    from .freebsd import FreeBSD
    from .mounts import Mount
    from .vm import VM
    from .windows import Windows
    from .zos import ZOS


def platform_rules(report: Report, spec: RuntimeSpec) -> None:
    """Everything about the parts of other platforms that a config has."""
    if spec.windows is not None:
        _windows(report, spec, spec.windows)
    if spec.zos is not None:
        _zos(report, spec.zos)
    if spec.vm is not None:
        _vm(report, spec.vm)
    if spec.freebsd is not None:
        _freebsd(report, spec.freebsd)


def _windows(report: Report, spec: RuntimeSpec, windows: Windows) -> None:
    if spec.root is not None:
        if windows.hyperv is not None:
            report.error("$.root", "must not be set with Hyper-V isolation", "config.md#root")
        if spec.root.readonly:
            report.error("$.root.readonly", "is not for Windows", "config.md#root")
    if spec.process is not None and not spec.process.args and not spec.process.command_line:
        report.error("$.process.commandLine", "is needed without args", "config.md#process")
    _windows_mounts(report, spec.mounts or ())
    cpu = windows.resources.cpu if windows.resources else None
    if cpu is not None and sum(value is not None for value in (cpu.count, cpu.shares, cpu.maximum)) > 1:
        report.error("$.windows.resources.cpu", "count, shares and maximum exclude each other", "config-windows.md#cpu")
    for name, value in (("shares", cpu.shares), ("maximum", cpu.maximum)) if cpu else ():
        if value is not None and value > 10000:
            report.error(f"$.windows.resources.cpu.{name}", f"{value} is not 0 to 10000", "config-windows.md#cpu")
    network = windows.network
    if network is not None and network.network_namespace:
        others = [network.endpoint_list, network.allow_unqualified_dns_query, network.dns_search_list]
        if any(value is not None for value in (*others, network.network_shared_container_name)):
            report.error("$.windows.network.networkNamespace", "excludes the other members", "config-windows.md#network")


def _windows_mounts(report: Report, mounts: Sequence[Mount]) -> None:
    from pathlib import PureWindowsPath

    section = "config.md#mounts"
    places = [PureWindowsPath(mount.destination) for mount in mounts]
    for index, place in enumerate(places):
        where = f"$.mounts[{index}].destination"
        if not place.is_absolute():
            report.error(where, f"{str(place)!r} is not an absolute path", section)
        outer = next((other for other in places if other in place.parents), None)
        if outer is not None:
            report.error(where, f"{str(place)!r} is nested within {str(outer)!r}", section)


def _zos(report: Report, zos: ZOS) -> None:
    section = "config-zos.md#namespaces"
    seen: set[str] = set()
    for index, namespace in enumerate(zos.namespaces or ()):
        where = f"$.zos.namespaces[{index}]"
        if namespace.type in seen:
            report.error(where, f"{namespace.type} comes twice", section)
        seen.add(namespace.type)
        report.absolute(f"{where}.path", namespace.path or None, section)


def _vm(report: Report, vm: VM) -> None:
    report.absolute("$.vm.kernel.path", vm.kernel.path, "config-vm.md#kernel-object")
    report.absolute("$.vm.kernel.initrd", vm.kernel.initrd, "config-vm.md#kernel-object")
    if vm.hypervisor is not None:
        report.absolute("$.vm.hypervisor.path", vm.hypervisor.path, "config-vm.md#hypervisor-object")
    if vm.image is not None:
        report.absolute("$.vm.image.path", vm.image.path, "config-vm.md#image-object")


def _freebsd(report: Report, freebsd: FreeBSD) -> None:
    section = "config-freebsd.md#devices"
    for index, device in enumerate(freebsd.devices or ()):
        if device.path.startswith("/"):
            report.error(f"$.freebsd.devices[{index}].path", f"{device.path!r} is not relative to /dev", section)
    level = freebsd.jail.enforce_statfs if freebsd.jail else None
    if level is not None and level > 2:
        report.error("$.freebsd.jail.enforceStatfs", f"{level} is not 0 to 2", "config-freebsd.md#jail")
