"""Rules about config.json: what the text of the runtime spec says beyond types and the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..base import json_path
from .findings import Findings, version_numbers
from .linux import check_linux
from .mounts import check_mount
from .process import check_process

if TYPE_CHECKING:
    from ...errors import Problem
    from ..config import Hook, RuntimeSpec
    from ..process import Process

_ANNOTATIONS: Final = frozenset(
    f"org.opencontainers.image.{name}"
    for name in "os os.version os.features architecture variant author created stopSignal exposedPorts".split()
)
_MAX_HOSTNAME: Final = 64
_MAX_TIMEOUT: Final = (1 << 31) // 1000
"""Maximum of poll(2): 24 days."""


def config_problems(spec: RuntimeSpec) -> list[Problem]:
    """Return every problem of a config that its schema does not find."""
    findings = Findings()
    _check_version(findings, spec.oci_version)
    _check_root_and_names(findings, spec)
    if spec.process is not None:
        check_process(findings, spec, spec.process)
    for index, mount in enumerate(spec.mounts or ()):
        check_mount(findings, spec, mount, f"$.mounts[{index}]")
    _check_hooks(findings, spec)
    for key in spec.annotations or ():
        _check_annotation(findings, key)
    if spec.linux is not None:
        check_linux(findings, spec, spec.linux)
    if any((spec.windows, spec.zos, spec.vm, spec.freebsd)):
        from .platforms import check_platforms

        check_platforms(findings, spec)
    return findings.problems


def process_problems(spec: RuntimeSpec, process: Process) -> list[Problem]:
    """Return every problem of an exec process of a config's container."""
    findings = Findings()
    check_process(findings, spec, process)
    return findings.problems


def _check_version(findings: Findings, version: str) -> None:
    section = "config.md#specification-version"
    numbers = version_numbers(version)
    if numbers is None:
        findings.error("$.ociVersion", f"{version!r} is not a version such as 1.3.0", section)
    elif numbers[0] != 1:
        findings.error("$.ociVersion", f"version {version} is not one of 1.x", section)
    elif numbers[1] > 3:
        findings.warn("$.ociVersion", f"version {version} is newer than 1.3.0: its additions are kept, and ignored", section)


def _check_root_and_names(findings: Findings, spec: RuntimeSpec) -> None:
    on_linux = spec.linux is not None
    hyperv = spec.windows is not None and spec.windows.hyperv is not None
    if spec.root is None and not hyperv and (on_linux or spec.windows is not None):
        findings.error("$.root", "is required on this platform", "config.md#root")
    if spec.root is not None and not spec.root.path:
        findings.error("$.root.path", "is empty", "config.md#root")
    findings.check_text("$.root.path", spec.root.path if spec.root else None, "config.md#root")
    namespaces = {namespace.type for namespace in (spec.linux.namespaces if spec.linux else None) or ()}
    for name, value in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if not value:
            continue
        if on_linux and "uts" not in namespaces:
            findings.error(f"$.{name}", "would change the host: add a uts namespace", f"config.md#{name}")
        if on_linux and len(value.encode("utf-8", "surrogatepass")) > _MAX_HOSTNAME:
            findings.error(f"$.{name}", f"has more than {_MAX_HOSTNAME} bytes", f"config.md#{name}")
        findings.check_text(f"$.{name}", value, f"config.md#{name}")


def _check_hooks(findings: Findings, spec: RuntimeSpec) -> None:
    if spec.hooks is None:
        return
    section = "config.md#posix-platform-hooks"
    if spec.hooks.prestart:
        findings.warn("$.hooks.prestart", "is deprecated: use createRuntime, createContainer or startContainer", section)
    kinds: dict[str, tuple[Hook, ...] | None] = {
        "prestart": spec.hooks.prestart,
        "createRuntime": spec.hooks.create_runtime,
        "createContainer": spec.hooks.create_container,
        "startContainer": spec.hooks.start_container,
        "poststart": spec.hooks.poststart,
        "poststop": spec.hooks.poststop,
    }
    for kind, hooks in kinds.items():
        for index, hook in enumerate(hooks or ()):
            where = f"$.hooks.{kind}[{index}]"
            findings.check_absolute(f"{where}.path", hook.path, section)
            findings.check_text(f"{where}.path", hook.path, section)
            findings.check_text(f"{where}.args", hook.args, section)
            findings.check_text(f"{where}.env", hook.env, section)
            if hook.timeout is not None and not 0 < hook.timeout <= _MAX_TIMEOUT:
                findings.error(f"{where}.timeout", f"{hook.timeout} is not a number of seconds from 1 to {_MAX_TIMEOUT}", section)
            findings.check_environment(f"{where}.env", hook.env or (), section)


def _check_annotation(findings: Findings, key: str) -> None:
    section = "config.md#annotations"
    if not key:
        findings.error("$.annotations['']", "the name of the annotation is empty", section)
    elif key.startswith("org.opencontainers.") and key not in _ANNOTATIONS:
        findings.warn(json_path("$.annotations", key), "is in the namespace that is reserved for the spec", section)
