"""What systemd is asked for: the scope's name, its place and its properties (the manager ``systemd``). Names and values only.

The properties follow from what is written into the cgroup's files, so that systemd, when it writes them again (at ``daemon-reload``
for example), writes the same. What it has no property for is in the files alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import Problem, SpecError
from . import gvariant
from .devices import MKNOD, READ, WRITE, rules_of, v1_rules
from .gvariant import Value
from .limits import asked
from .v1 import v1_writes
from .v2 import cpu_max, unified_writes, v2_writes
from .writes import Writes

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Resources
    from .devices import Rule
    from .writes import Write

SECTION: Final = "config-linux.md#cgroups-path"
ANNOTATION: Final = "org.systemd.property."
INFINITY: Final = (1 << 64) - 1
"""What stands for no limit in systemd's properties."""
_MAX_NAME: Final = 255
_UNIT_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:-_.\\")
_CONTROLLERS: Final = ("cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids")
CONTROLLERS: Final = frozenset({"name=systemd", "cpu", "cpuacct", "blkio", "memory", "devices", "pids"})
"""Of the hierarchies of v1, those with one of these have a scope's cgroup by systemd."""
_OURS: Final = frozenset({"PIDs", "PIDFDs", "Slice", "Delegate"})
"""Properties on which the placement rests."""


class Property(NamedTuple):
    """One property of a unit."""

    name: str
    signature: str
    """Its D-Bus type."""
    value: Value

    def __str__(self) -> str:
        shown = "infinity" if self.value == INFINITY else self.value
        if self.signature == "ay" and isinstance(self.value, tuple):
            shown = _ranges(self.value)
        elif isinstance(self.value, bool):
            shown = "yes" if self.value else "no"
        elif self.name == "DeviceAllow" and isinstance(self.value, tuple):
            shown = f"({len(self.value)} rules)"
        return f"{self.name}={shown}"


class Scope(NamedTuple):
    """A scope unit, and where its cgroup is."""

    unit: str
    slice: str
    path: str
    """Below a hierarchy's mount point."""


def scope(cgroups_path: str | None, container_id: str, *, user: bool, base: str = "/") -> Scope:
    """The scope of a container: from ``linux.cgroupsPath`` as ``slice:prefix:name``, or ``ociruntime-ID.scope`` when it is absent.

    An empty slice is ``system.slice``, or ``user.slice`` of the user's own systemd. With an empty prefix it is ``-NAME.scope``, as
    the peers have it.

    Args:
        user: whether it is for the user's own systemd.
        base: the cgroup of that systemd below the mount point.

    Raises:
        SpecError: the path has another form, or names no unit.
    """
    default = "user.slice" if user else "system.slice"
    if not cgroups_path:
        inside, unit = default, f"ociruntime-{_escape(container_id)}.scope"
    else:
        parts = cgroups_path.split(":")
        if len(parts) != 3:
            raise _bad(f"{cgroups_path!r}: for the systemd cgroup manager it is slice:prefix:name")
        inside, prefix, name = parts
        inside = inside or default
        if not name or name.endswith(".slice"):
            raise _bad(f"{cgroups_path!r}: the name is that of a scope, which has the container's processes")
        unit = f"{prefix}-{name}.scope"
    if not _UNIT_LETTERS.issuperset(unit):
        raise _bad(f"{unit!r} is not the name of a unit: letters, digits and :-_.\\ only")
    if len(unit) > _MAX_NAME:
        raise _bad(f"the unit's name has {len(unit)} letters, and {_MAX_NAME} is the most")
    return Scope(unit, inside, base.rstrip("/") + _slice_path(inside) + "/" + _directory(unit))


def _bad(message: str) -> SpecError:
    return SpecError([Problem("$.linux.cgroupsPath", message, SECTION)])


def _escape(name: str) -> str:
    return "".join(c if c in _UNIT_LETTERS and c != "\\" else f"\\x{ord(c):02x}" for c in name)


def _slice_path(name: str) -> str:
    """The cgroup of a slice: ``a-b.slice`` lies in ``a.slice``, and ``-.slice`` is the root."""
    stem = name.removesuffix(".slice")
    if stem == name or not stem or not _UNIT_LETTERS.issuperset(name) or len(name) > _MAX_NAME:
        raise _bad(f"{name!r} is not the name of a slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    if "" in parts:
        raise _bad(f"{name!r} is not the name of a slice: it has a dash too many")
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))


def _directory(unit: str) -> str:
    """A unit's cgroup, whose name must not look like one of the kernel's files."""
    files = unit.startswith((".", "_", "cgroup.", *(f"{name}." for name in _CONTROLLERS)))
    return f"_{unit}" if files else unit


def properties(
    scope: Scope, limits: Sequence[Property], annotations: Mapping[str, str], *, container_id: str
) -> tuple[Property, ...]:
    """What the scope is started with; the pid of its first process comes to it then.

    Raises:
        SpecError: an annotation is not one that systemd takes.
    """
    found = [
        Property("Description", "s", f"Container {container_id} (ociruntime)"),
        Property("Slice", "s", scope.slice),
        Property("Delegate", "b", True),
        Property("DefaultDependencies", "b", False),
        *(Property(f"{name}Accounting", "b", True) for name in ("CPU", "Memory", "IO", "Tasks")),
        *limits,
    ]
    given = annotated(annotations)
    replaced = {entry.name for entry in given}
    return (*(entry for entry in found if entry.name not in replaced), *given)


def words(scope: Scope, found: Sequence[Property]) -> str:
    """A scope for people: with what not every scope has."""
    usual = ("Description", "Slice", "Delegate", "DefaultDependencies")
    more = [str(entry) for entry in found if entry.name not in usual and not entry.name.endswith("Accounting")]
    return f"{scope.unit} in {scope.slice}" + (f", with {', '.join(more)}" if more else "")


# ---- limits ----


def limits_of(resources: Resources | None, host: Host, *, user: bool, only: Collection[str] | None = None) -> tuple[Property, ...]:
    """The properties that stand for linux.resources.

    Args:
        user: whether it is for the user's own systemd.
        only: the members that change, as ``memory.limit``.

    Raises:
        SpecError: a value of ``linux.resources.unified`` is none.
        UnsupportedError: v1 cannot express a device rule.
    """
    if resources is None:
        return ()
    version = 1 if any("name=systemd" in h.controllers for h in host.hierarchies) else 2
    if version == 1:
        cpu = resources.cpu
        quota = Writes()
        quota.put("cpu", "cpu.max", cpu_max(cpu.quota, cpu.period) if cpu else None, "cpu.quota", "cpu.period")
        writes = (*v1_writes(resources), *quota.all)
    else:
        writes = (*v2_writes(resources), *unified_writes(resources))
    found = limits([write for write in writes if only is None or asked(write, only)], version)
    if user or (only is not None and "devices" not in only):
        return found
    rules = rules_of(resources.devices or ())
    allowed = devices(v1_rules(rules) if version == 1 else rules)
    if only is None:
        return (*found, *allowed)
    # A list is added to, unless it is made empty first.
    return (*found, Property("DeviceAllow", "a(ss)", ()), *(allowed or (Property("DevicePolicy", "s", "auto"),)))


def limits(writes: Iterable[Write], version: int = 2) -> tuple[Property, ...]:
    """The properties that stand for values of a cgroup version's files. Raises SpecError for a value that is none."""
    found: dict[str, Property] = {}
    for write in writes:
        for file, value in ((write.file, write.value), *((write.other,) if write.other else ())):
            meaning = _FILES[version].get(file)
            if meaning is None:
                continue
            try:
                found |= {entry.name: entry for entry in meaning(value)}
            except ValueError:
                where = f"$.linux.resources.{write.members[0]}"
                raise SpecError([Problem(where, f"{value!r} is no value of {file}", "config-linux.md#unified")]) from None
    return tuple(found.values())


def _number(text: str) -> int:
    """A limit, as the kernel reads it."""
    match = re.fullmatch(r"([0-9]+)([KMGTPE]?)", text.strip().upper())
    if text.strip() == "max":
        return INFINITY
    if match is None:
        raise ValueError(text)
    return int(match[1]) << 10 * " KMGTPE".index(match[2] or " ")


def _limit(name: str) -> _Convert:
    return lambda text: [Property(name, "t", _number(text))]


def _cpu_max(text: str) -> list[Property]:
    quota, period = (*text.split(), "100000")[:2]
    if int(period) < 1:
        raise ValueError(text)
    per_second = INFINITY
    if quota != "max":
        per_second = -(-int(quota) * 1_000_000 // int(period))
        per_second += -per_second % 10_000  # systemd counts in percent, and below the wish is no choice
    return [Property("CPUQuotaPeriodUSec", "t", int(period)), Property("CPUQuotaPerSecUSec", "t", per_second)]


def _tasks(text: str) -> list[Property]:
    return [Property("TasksMax", "t", _number(text))] if text.strip() != "0" else []  # 0 is not for systemd to set


def _cpu_idle(text: str) -> list[Property]:
    return [Property("CPUWeight", "t", 0 if int(text) else INFINITY)]  # no weight of its own, unless one follows


def _io_weight(text: str) -> list[Property]:
    key, _, weight = text.strip().rpartition(" ")
    return [Property("IOWeight", "t", int(weight))] if key in ("", "default") else []


def _mask(name: str) -> _Convert:
    return lambda text: [Property(name, "ay", _bits(text))]


def _bits(text: str) -> tuple[int, ...]:
    """A list of CPUs or nodes, as ``0-3,7``, as a mask in bytes, the lowest first."""
    mask = 0
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high < 1 << 16:
            raise ValueError(text)
        mask |= (1 << high + 1) - (1 << low)
    return tuple(mask.to_bytes((mask.bit_length() + 7) // 8, "little"))


def _ranges(mask: tuple[Value, ...]) -> str:
    number = int.from_bytes(bytes(byte for byte in mask if isinstance(byte, int)), "little")
    return ",".join(str(bit) for bit in range(number.bit_length()) if number >> bit & 1)


if TYPE_CHECKING:
    from collections.abc import Callable

    _Convert = Callable[[str], list[Property]]

_FILES: Final[dict[int, dict[str, _Convert]]] = {
    1: {
        "blkio.weight": _limit("BlockIOWeight"),
        "cpu.max": _cpu_max,
        "cpu.shares": _limit("CPUShares"),
        "memory.limit_in_bytes": lambda text: [Property("MemoryLimit", "t", INFINITY if text == "-1" else _number(text))],
        "pids.max": _tasks,
    },
    2: {
        "cpu.weight": _limit("CPUWeight"),
        "cpu.idle": _cpu_idle,
        "cpu.max": _cpu_max,
        "cpuset.cpus": _mask("AllowedCPUs"),
        "cpuset.mems": _mask("AllowedMemoryNodes"),
        "io.weight": _io_weight,
        "memory.high": _limit("MemoryHigh"),
        "memory.low": _limit("MemoryLow"),
        "memory.max": _limit("MemoryMax"),
        "memory.min": _limit("MemoryMin"),
        "memory.swap.max": _limit("MemorySwapMax"),
        "pids.max": _tasks,
    },
}
"""By cgroup version. cpu.max stands for its two files of v1, too; of the rest of v1 systemd does not know."""


def devices(rules: Sequence[Rule]) -> tuple[Property, ...]:
    """DevicePolicy and DeviceAllow: exactly what v1 can express; on v2 rules may allow less, and hold beside them as a program."""
    start = next((n for n, rule in reversed(list(enumerate(rules))) if rule[1:] == ("a", None, None, READ | WRITE | MKNOD)), None)
    if start is None or rules[start].allow:
        return ()
    allowed: dict[tuple[str, int | None, int | None], int] = {}
    for rule in rules[start + 1 :]:
        for kind in ("c", "b") if rule.type == "a" else (rule.type,):
            key = (kind, rule.major, rule.minor)
            before = allowed.get(key, 0)
            allowed[key] = before | rule.access if rule.allow else before & ~rule.access
    found = {(_node(*key), _letters(access)): None for key, access in allowed.items() if access}
    return (Property("DevicePolicy", "s", "strict"), Property("DeviceAllow", "a(ss)", tuple(found)))


def _letters(access: int) -> str:
    return "".join(letter for letter, bit in (("r", READ), ("w", WRITE), ("m", MKNOD)) if access & bit)


def _node(kind: str, major: int | None, minor: int | None) -> str:
    name = {"c": "char", "b": "block"}[kind]
    if major is None:
        return f"{name}-*"
    return f"{name}-{major}" if minor is None else f"/dev/{name}/{major}:{minor}"


# ---- annotations ----


def annotated(annotations: Mapping[str, str]) -> tuple[Property, ...]:
    """The properties that ``org.systemd.property.NAME`` asks for, with values in GVariant's text format.

    A NAME that ends in ``Sec`` takes seconds. Raises SpecError.
    """
    found = []
    for key, text in annotations.items():
        if not key.startswith(ANNOTATION):
            continue
        name = key.removeprefix(ANNOTATION)
        where = f"$.annotations[{key!r}]"
        if not re.fullmatch(r"[A-Z][A-Za-z0-9]{2,}", name):
            raise SpecError([Problem(where, f"{name!r} is not the name of a property", "config.md#annotations")])
        if name in _OURS:
            raise SpecError([Problem(where, f"{name} is for the runtime to set", "config.md#annotations")])
        try:
            typed = gvariant.parse(text)
            if name.endswith("Sec") and not name.endswith("USec"):
                name, typed = f"{name.removesuffix('Sec')}USec", _microseconds(typed)
        except ValueError as error:
            raise SpecError([Problem(where, f"{error}; values are in GVariant's text format", "config.md#annotations")]) from None
        found.append(Property(name, *typed))
    return tuple(found)


def _microseconds(seconds: gvariant.Typed) -> gvariant.Typed:
    if seconds.signature not in tuple("ynqiuxtd") or isinstance(seconds.value, str | tuple) or seconds.value < 0:
        raise ValueError(f"{seconds.value!r} is no number of seconds")
    return gvariant.Typed("t", round(seconds.value * 1_000_000))
