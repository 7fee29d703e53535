"""Rules across members that types alone do not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Problem

if TYPE_CHECKING:
    from .config import RuntimeSpec


def problems(spec: RuntimeSpec) -> list[Problem]:
    """Everything that is wrong with a config beyond its shape."""
    found: list[Problem] = []
    process, linux = spec.process, spec.linux
    parts = spec.oci_version.split("-")[0].split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        found.append(
            Problem("$.ociVersion", f"{spec.oci_version!r} is not a version such as 1.3.0", "config.md#specification-version")
        )
    elif parts[0] != "1":
        found.append(Problem("$.ociVersion", f"version {spec.oci_version} is not one of 1.x", "config.md#specification-version"))
    if process is not None:
        if not process.cwd.startswith("/"):
            found.append(Problem("$.process.cwd", f"{process.cwd!r} is not an absolute path", "config.md#process"))
        if process.args is not None and not process.args:
            found.append(Problem("$.process.args", "at least the program to run is needed", "config.md#process"))
        seen: set[str] = set()
        for index, limit in enumerate(process.rlimits or ()):
            where = f"$.process.rlimits[{index}]"
            if limit.type in seen:
                found.append(Problem(where, f"{limit.type} comes twice", "config.md#posix-process"))
            seen.add(limit.type)
            if limit.soft > limit.hard:
                found.append(Problem(where, "the soft limit is above the hard limit", "config.md#posix-process"))
    kinds = [namespace.type for namespace in (linux.namespaces if linux else None) or ()]
    for index, kind in enumerate(kinds):
        if not kind.known:
            found.append(Problem(f"$.linux.namespaces[{index}].type", f"{kind!r} is not a namespace", "config-linux.md#namespaces"))
        if kind in kinds[:index]:
            found.append(Problem(f"$.linux.namespaces[{index}]", f"{kind} comes twice", "config-linux.md#namespaces"))
    for index, rule in enumerate((linux.seccomp.syscalls if linux and linux.seccomp else None) or ()):
        for position, arg in enumerate(rule.args or ()):
            if not 0 <= arg.index <= 5:
                where = f"$.linux.seccomp.syscalls[{index}].args[{position}].index"
                found.append(Problem(where, f"{arg.index} is not 0 to 5", "config-linux.md#seccomp"))
    return found
