"""What the rules of the runtime spec refuse is not compiled: they stand in one place, `ociruntime.spec.rules` and `rules_host`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import SpecError, UnsupportedError
from ..spec.rules import Report, process_rules, rules
from ..spec.rules_host import host_rules

if TYPE_CHECKING:
    from ..errors import Problem
    from ..host import Host
    from ..spec import Process, RuntimeSpec

_BY_RULES_ALONE: Final = ("$.linux.memoryPolicy", "$.linux.personality", "$.linux.seccomp")
"""Members for which the compilers ask nothing of the host themselves."""


def check(spec: RuntimeSpec, host: Host) -> None:
    """Check a config. Raises SpecError with every error, and UnsupportedError: this host cannot do it."""
    _refuse(rules(spec))
    for problem in host_rules(spec, host):
        if problem.severity == "error" and problem.path.startswith(_BY_RULES_ALONE):
            raise UnsupportedError(f"{problem.path}: {problem.message}")


def check_process(spec: RuntimeSpec, process: Process) -> None:
    """Check a further process of a config's container. Raises SpecError with every error."""
    report = Report()
    process_rules(report, spec, process)
    _refuse(report.problems)


def _refuse(problems: list[Problem]) -> None:
    if errors := [problem for problem in problems if problem.severity == "error"]:
        raise SpecError(errors)
