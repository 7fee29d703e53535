"""A plan for people (`explain`) and for programs (`to_json`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .hooks import Program, describe

if TYPE_CHECKING:
    from .model import Plan


def explain(plan: Plan) -> str:
    lines = [f"{plan.title}: {len(plan.steps)} steps"]
    width = max((len(step.op) for step in plan.steps), default=0)
    phase = ""
    for number, step in enumerate(plan.steps, 1):
        if step.phase != phase:
            phase = step.phase
            lines += ["", phase]
        lines.append(f"  {number:>3}  {step.op:<{width}}  {step.text}")
    if plan.warnings:
        lines += ["", "Warnings", *(f"  {warning}" for warning in plan.warnings)]
    later = [(kind, program) for kind in ("poststart", "poststop") for program in plan.hooks.get(kind, ())]
    if later:
        lines += ["", "By start when the process runs, and by delete when everything is gone"]
        lines += [f"       {'hook':<{width}}  {describe(kind, Program(*program))}" for kind, program in later]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, tuple) and type(value) is not tuple:
        return repr(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def to_json(plan: Plan, indent: int | None = None) -> str:
    import json

    document = {
        "title": plan.title,
        "warnings": list(plan.warnings),
        "inputs": [entry._asdict() for entry in plan.inputs],
        "hooks": {kind: [Program(*program)._asdict() for program in programs] for kind, programs in plan.hooks.items()},
        "steps": [
            {
                "step": number,
                "where": str(step.where),
                "op": step.op,
                "text": step.text,
                "phase": step.phase,
                "arguments": {name: _plain(value) for name, value in step.arguments().items()},
            }
            for number, step in enumerate(plan.steps, 1)
        ],
    }
    return json.dumps(document, indent=indent)
