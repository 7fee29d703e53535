"""What the rules of the runtime spec refuse is not compiled: they are written down once, in `ociruntime.spec.rules`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SpecError
from ..spec.rules import Report, process_rules, rules

if TYPE_CHECKING:
    from ..spec import Process, RuntimeSpec


def check(spec: RuntimeSpec, process: Process | None = None) -> None:
    """Check a config, or only a further process of its container. Raises SpecError with every error."""
    if process is None:
        problems = rules(spec)
    else:
        report = Report()
        process_rules(report, spec, process)
        problems = report.problems
    if errors := [problem for problem in problems if problem.severity == "error"]:
        raise SpecError(errors)
