"""Rules about the documents that are no config: features (features.md) and state (runtime.md)."""

from __future__ import annotations

from ..errors import Problem
from .base import Model
from .features import Features
from .rules import Report, version_numbers
from .state import ContainerProcessState, StateDocument


def document_rules(value: Model) -> list[Problem]:
    """Everything that is wrong with a document beyond its shape."""
    report = Report()
    if isinstance(value, Features):
        _features(report, value)
    elif isinstance(value, StateDocument):
        _state(report, value, "$")
    elif isinstance(value, ContainerProcessState):
        _state(report, value.state, "$.state")
    return report.problems


def _features(report: Report, features: Features) -> None:
    section = "features.md#specification-version"
    versions = []
    for name, text in (("ociVersionMin", features.oci_version_min), ("ociVersionMax", features.oci_version_max)):
        numbers = version_numbers(text)
        if numbers is None:
            report.error(f"$.{name}", f"{text!r} is not a version such as 1.3.0", section)
        else:
            versions.append(numbers)
    if len(versions) == 2 and versions[1] < versions[0]:
        report.error("$.ociVersionMax", f"{features.oci_version_max} is less than {features.oci_version_min}", section)
    seccomp = features.linux.seccomp if features.linux else None
    if seccomp is not None and seccomp.known_flags is not None:
        unknown = [flag for flag in seccomp.supported_flags or () if flag not in seccomp.known_flags]
        if unknown:
            text = f"{', '.join(unknown)} is not in knownFlags"
            report.error("$.linux.seccomp.supportedFlags", text, "features-linux.md#seccomp")


def _state(report: Report, state: StateDocument, path: str) -> None:
    section = "runtime.md#state"
    if not state.id:
        report.error(f"{path}.id", "is empty", section)
    report.absolute(f"{path}.bundle", state.bundle, section)
    if state.status in ("created", "running") and not state.pid:
        report.error(f"{path}.pid", f"is needed on Linux when the container is {state.status}", section)
