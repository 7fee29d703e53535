"""Changing the limits of a container, and pausing it (``update`` and ``pause`` of runc; runtime.md has no such operations)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict, cast

import attrs

from ..arguments import check_type, optional, parse_count, parse_cpus, parse_limit, parse_size, wrong_type
from ..engine import cgroup, undo
from ..engine.cgroup.devices import Rollback
from ..engine.execution import step_error
from ..engine.host_steps import execute_step
from ..errors import SpecError, StepError, UnsupportedError
from ..host import Host
from ..plan.cgroups import changed_members, compile_update, existing_placement, member_names
from ..spec import CPU, IntelRdt, Linux, Resources, RuntimeSpec
from ..spec.rules import Findings
from ..spec.rules.linux import check_intel_rdt, check_resources
from ..store import Entry, Status
from .status import allowed

if TYPE_CHECKING:
    from ..plan import Plan
    from ..spec.base import Json, Problem


_PERIOD: Final = 100_000
"""Default period of a CPU quota in microseconds, as in the kernel."""


class Limits(TypedDict, total=False):
    """The keywords of `Container.update`: memory in bytes or as ``"512M"``, times in microseconds, -1 for no limit."""

    memory: int | str | None
    memory_swap: int | str | None
    """Memory and swap together."""
    memory_reservation: int | str | None
    cpus: float | None
    """Number of CPUs, such as 1.5. It sets the quota and the period."""
    cpu_shares: int | None
    cpu_quota: int | None
    cpu_period: int | None
    cpu_burst: int | None
    cpu_idle: int | None
    """1 to run only when other cgroups leave CPU time (SCHED_IDLE)."""
    cpu_realtime_runtime: int | None
    cpu_realtime_period: int | None
    cpuset_cpus: str | None
    """A list such as ``0-3,7``."""
    cpuset_mems: str | None
    pids: int | None
    """Number of tasks."""
    blkio_weight: int | None
    """10 to 1000."""
    l3_cache_schema: str | None
    """A line such as ``L3:0=f`` for the container's resctrl group (config-linux.md#intelrdt)."""
    mem_bw_schema: str | None
    """A line such as ``MB:0=20`` for the same group."""


_PARSERS: Final[dict[str, Callable[[Any], int | float]]] = {
    "memory": parse_size,
    "memory_swap": parse_size,
    "memory_reservation": parse_size,
    "pids": parse_count,
}
"""Limits that are written as in `ociruntime.run`. The classes of the spec check the others."""
_SCHEMAS: Final = ("l3_cache_schema", "mem_bw_schema")
_MEMBERS: Final = {
    "memory": "memory.limit",
    "memory_swap": "memory.swap",
    "memory_reservation": "memory.reservation",
    "cpu_shares": "cpu.shares",
    "cpu_quota": "cpu.quota",
    "cpu_period": "cpu.period",
    "cpu_burst": "cpu.burst",
    "cpu_idle": "cpu.idle",
    "cpu_realtime_runtime": "cpu.realtimeRuntime",
    "cpu_realtime_period": "cpu.realtimePeriod",
    "cpuset_cpus": "cpu.cpus",
    "cpuset_mems": "cpu.mems",
    "pids": "pids.limit",
    "blkio_weight": "blockIO.weight",
}


def update(entry: Entry, resources: Resources | Mapping[str, Json] | None, limits: Limits) -> None:
    """Change limits. Arguments and errors are those of `Container.update`."""
    given, schemas = changed_members(_with_arguments(resources, limits)), _schemas(limits)
    with allowed(entry, "update", Status.CREATED, Status.RUNNING, Status.PAUSED) as document:
        with entry.reading_config() as path:
            spec = RuntimeSpec.load(path)
        linux = spec.linux or Linux()
        merged = (linux.resources or Resources()).merge(given)
        linux = linux.evolve(resources=merged, intel_rdt=_with_schemas(linux.intel_rdt, schemas))
        findings = Findings()
        check_resources(findings, merged)
        if linux.intel_rdt is not None:
            check_intel_rdt(findings, linux.intel_rdt)
        if errors := [problem for problem in findings.problems if problem.severity == "error"]:
            raise SpecError(_named(errors, limits))
        host = Host.probe()
        placement = existing_placement(document.get("cgroups", []), host)
        unit = undo.unit(document.get("undo", []))
        try:
            plan = compile_update(linux, member_names(given), placement, host, entry.id, unit=unit, schemas=tuple(schemas))
            # The new config.json is written before the change, so that a full disk cannot prevent it afterwards.
            with entry.staged("config.json", spec.evolve(linux=linux).to_json().encode()) as config:
                _perform(plan)
                config.commit()
        except UnsupportedError as error:
            path, _, reason = str(error).partition(": ")
            error.args = (f"{_name_of(path, limits)}: {reason}",)
            raise
        except StepError as error:
            error.location = _name_of(error.location, limits)
            raise


def pause(entry: Entry) -> None:
    """Freeze every process of a container. Raises WrongStatus, or UnsupportedError without a freezer."""
    with allowed(entry, "pause", Status.RUNNING) as document:
        paths = document.get("cgroups", [])
        if not paths:
            raise UnsupportedError(
                f"cannot pause container {entry.id!r}: it needs a cgroup: {existing_placement(paths, Host.probe()).lack}"
            )
        cgroup.freeze(paths, True)


def _with_arguments(resources: Resources | Mapping[str, Json] | None, limits: Limits) -> Resources:
    """Return ``resources`` with the limits that are members of linux.resources. Raises ValueError, TypeError, SpecError."""
    if unknown := sorted(set(limits) - set(Limits.__annotations__)):
        raise TypeError(
            f"update() got an unexpected keyword argument {unknown[0]!r}: use one of {', '.join(Limits.__annotations__)}"
        )
    parts: dict[str, dict[str, Json]] = {}
    for name, member in _MEMBERS.items():
        if (value := limits.get(name)) is not None:
            part, _, key = member.partition(".")
            parts.setdefault(part, {})[key] = parse_limit(name, _PARSERS[name], value) if name in _PARSERS else value  # type: ignore[assignment]
    try:
        single = Resources.load(parts)
    except SpecError as error:
        raise SpecError(_named(error.problems, limits)) from None
    if (cpus := limits.get("cpus")) is not None:
        if limits.get("cpu_quota") is not None:
            raise ValueError("cpus conflicts with cpu_quota: it sets the quota")
        cpu = single.cpu or CPU()
        period = cpu.period or _PERIOD
        quota = round(parse_limit("cpus", parse_cpus, cpus) * period)
        single = single.evolve(cpu=cpu.evolve(period=period, quota=quota))
    optional(check_type, "resources", resources, (Resources, Mapping), "a Resources or a mapping")
    base = resources if isinstance(resources, Resources) else Resources.load(resources or {})
    return base.merge(single)


def _named(problems: Iterable[Problem], limits: Limits) -> list[Problem]:
    """Return problems of linux.resources with the names of the arguments that they come from."""
    return [attrs.evolve(problem, path=_name_of(problem.path, limits)) for problem in problems]


def _name_of(path: str, limits: Limits) -> str:
    """Return the argument that a member of linux.resources comes from; the path itself if there is none."""
    arguments = {member: name for name, member in _MEMBERS.items() if limits.get(name) is not None}
    if limits.get("cpus") is not None:
        arguments |= {"cpu.quota": "cpus", "cpu.period": "cpus"}
    return arguments.get(path.removeprefix("$.").removeprefix("linux.resources."), path)


def _schemas(limits: Limits) -> dict[str, str]:
    given = {name: line for name in _SCHEMAS if (line := limits.get(name)) is not None}
    for name, line in given.items():
        if not isinstance(line, str):
            raise wrong_type(name, line, f"a line such as {'L3:0=f' if name == 'l3_cache_schema' else 'MB:0=20'}")
    return cast("dict[str, str]", given)


def _with_schemas(rdt: IntelRdt | None, schemas: Mapping[str, str]) -> IntelRdt | None:
    if schemas and rdt is None:
        remedy = "; create it with linux.intelRdt" if Host.probe().resctrl and not os.geteuid() else ""
        raise UnsupportedError(f"$.linux.intelRdt: the container has no resctrl group{remedy}")
    if rdt is None or not schemas:
        return rdt
    l3, bandwidth = (schemas.get(name, old) for name, old in zip(_SCHEMAS, (rdt.l3_cache_schema, rdt.mem_bw_schema), strict=True))
    return rdt.evolve(l3_cache_schema=l3, mem_bw_schema=bandwidth)


def _perform(plan: Plan) -> None:
    rollback = Rollback()
    try:
        for number, step in enumerate(plan.steps, 1):
            try:
                rollback.record(step)
                execute_step(step, None)
            except OSError as error:
                raise step_error(plan, number, error.errno or 0, str(error.strerror or "")) from error
    except BaseException as error:
        for failure in rollback.restore():
            error.add_note(f"and it could not be undone: {failure}")
        raise
    finally:
        rollback.close()
