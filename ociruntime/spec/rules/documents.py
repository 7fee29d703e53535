"""Rules about the features document (features.md) and the state (runtime.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import Problem
from .findings import Findings, version_numbers

if TYPE_CHECKING:
    from ..features import Features
    from ..state import StateDocument


def features_problems(features: Features) -> list[Problem]:
    """Return every problem of a features document that its schema does not find."""
    findings = Findings()
    section = "features.md#specification-version"
    versions = []
    for name, text in (("ociVersionMin", features.oci_version_min), ("ociVersionMax", features.oci_version_max)):
        numbers = version_numbers(text)
        if numbers is None:
            findings.error(f"$.{name}", f"{text!r} is not a version such as 1.3.0", section)
        else:
            versions.append(numbers)
    if len(versions) == 2 and versions[1] < versions[0]:
        findings.error("$.ociVersionMax", f"{features.oci_version_max} is less than {features.oci_version_min}", section)
    seccomp = features.linux.seccomp if features.linux else None
    if seccomp is not None and seccomp.known_flags is not None:
        unknown = [flag for flag in seccomp.supported_flags or () if flag not in seccomp.known_flags]
        if unknown:
            text = f"{', '.join(unknown)} is not in knownFlags"
            findings.error("$.linux.seccomp.supportedFlags", text, "features-linux.md#seccomp")
    return findings.problems


def state_problems(state: StateDocument, path: str = "$") -> list[Problem]:
    """Return every problem of a state at a JSON path that its schema does not find."""
    findings = Findings()
    section = "runtime.md#state"
    if not state.id:
        findings.error(f"{path}.id", "is empty", section)
    findings.check_absolute(f"{path}.bundle", state.bundle, section)
    if state.status in ("created", "running") and not state.pid:
        findings.error(f"{path}.pid", f"is required on Linux if the status is {state.status}", section)
    return findings.problems
