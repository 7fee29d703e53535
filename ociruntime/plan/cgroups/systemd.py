"""The scope of a container for the systemd cgroup manager: its name, its place and its properties.

The properties follow from the values for the cgroup's files, so that systemd writes the same values when it writes them again, at
``daemon-reload`` for example. Values without a property are in the files alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ...arguments import shown
from ...errors import SpecError
from ...spec.base import Problem
from .limits import MKNOD, READ, WRITE, is_selected, rules_of, v1_rules
from .writes import Writes, cpu_max, unified_writes, v1_writes, v2_writes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...host import Host
    from ...spec import Resources
    from .limits import DeviceRule
    from .writes import Write

    _Convert = Callable[[str], list["Property"]]


Scalar = bool | int | float | str
Value = Scalar | tuple["Value", ...]


class Typed(NamedTuple):
    """A value with its D-Bus type."""

    signature: str
    value: Value


_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?))
      | (?P<type>@a*[a-z])
      | (?P<word>[a-z][a-z0-9]*)
      | (?P<mark>[][(),])
    )""",
    re.VERBOSE,
)
_INTEGERS: Final = {
    "byte": ("y", 0, 8),
    "int16": ("n", 1, 16),
    "uint16": ("q", 0, 16),
    "int32": ("i", 1, 32),
    "uint32": ("u", 0, 32),
    "int64": ("x", 1, 64),
    "uint64": ("t", 0, 64),
}
_STRINGS: Final = {"string": "s", "objectpath": "o", "signature": "g"}
_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_SIMPLE: Final = frozenset("bynqiuxtdsog")


def parse(text: str) -> Typed:
    """Read one value. Raises ValueError with the reason."""
    reader = _ValueReader(text)
    value = reader.value()
    if reader.peek() is not None:
        raise ValueError(f"{shown(text)}: text after the value")
    return value


class _ValueReader:
    """Reads one value from its tokens."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None or match.lastgroup is None:
                raise ValueError(f"{shown(self.text[at:])} is not a value")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()

    def peek(self) -> str | None:
        return self.tokens[0][1] if self.tokens else None

    def take(self) -> tuple[str, str]:
        if not self.tokens:
            raise ValueError(f"{shown(self.text)} is incomplete")
        return self.tokens.pop(0)

    def value(self) -> Typed:
        kind, token = self.take()
        if kind == "string":
            return Typed("s", _unquote(token))
        if kind == "number":
            return Typed("d", float(token)) if _is_float(token) else _integer(token, "int32")
        if token in ("true", "false"):
            return Typed("b", token == "true")
        if token in _INTEGERS or token in _STRINGS or token == "double":
            return self.prefixed(token)
        if kind == "type":
            signature = token[1:]
            if signature[0] != "a" or signature[-1] not in _SIMPLE or (self.take(), self.take()) != (("mark", "["), ("mark", "]")):
                raise ValueError(f"{token}: only an empty array, as in '@as []', may have its type before it")
            return Typed(signature, ())
        if token in "[(" and kind == "mark":
            return self.sequence("]" if token == "[" else ")")
        raise ValueError(f"{shown(token)} is not a value")

    def prefixed(self, name: str) -> Typed:
        kind, token = self.take()
        if name in _STRINGS and kind == "string":
            return Typed(_STRINGS[name], _unquote(token))
        if name == "double" and kind == "number":
            return Typed("d", float(token))
        if name in _INTEGERS and kind == "number" and not _is_float(token):
            return _integer(token, name)
        raise ValueError(f"{token} is not a valid {name}")

    def sequence(self, end: str) -> Typed:
        items: list[Typed] = []
        while self.peek() != end:
            items.append(self.value())
            if self.peek() != end and self.take() != ("mark", ","):
                raise ValueError(f"{shown(self.text)}: a comma or {end} is missing")
        self.take()
        values = tuple(item.value for item in items)
        if end == ")":
            if not items:
                raise ValueError("() is empty")
            return Typed(f"({''.join(item.signature for item in items)})", values)
        kinds = {item.signature for item in items}
        if not items:
            raise ValueError("[] has no type; write one before it, as in '@as []'")
        if len(kinds) != 1:
            raise ValueError(f"{shown(self.text)} mixes types")
        return Typed("a" + kinds.pop(), values)


def _is_float(token: str) -> bool:
    return not token.lower().lstrip("+-").startswith("0x") and any(letter in token for letter in ".eE")


def _integer(token: str, name: str) -> Typed:
    signature, signed, bits = _INTEGERS[name]
    hexadecimal = token.lower().lstrip("+-").startswith("0x")
    value = int(token, 16 if hexadecimal else 10)
    if not -signed << bits - 1 <= value < 1 << bits - signed:
        raise ValueError(f"{token} is not a valid {name}")
    return Typed(signature, value)


def _unquote(token: str) -> str:
    def character(match: re.Match[str]) -> str:
        letter = match[1]
        return _ESCAPES.get(letter, letter)

    return re.sub(r"\\(.)", character, token[1:-1], flags=re.DOTALL)


SECTION: Final = "config-linux.md#cgroups-path"
ANNOTATION: Final = "org.systemd.property."
INFINITY: Final = (1 << 64) - 1
"""The value for no limit in systemd's properties."""
_MAX_NAME: Final = 255
_UNIT_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:-_.\\")
_CONTROLLERS: Final = ("cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids")
CONTROLLERS: Final = frozenset({"name=systemd", "cpu", "cpuacct", "blkio", "memory", "devices", "pids"})
"""The v1 controllers in whose hierarchies systemd creates the scope's cgroup."""
_RESERVED: Final = frozenset({"PIDs", "PIDFDs", "Slice", "Delegate"})
"""Properties that only the runtime may set."""


class Property(NamedTuple):
    """One property of a unit."""

    name: str
    signature: str
    """Its D-Bus type."""
    value: Value

    def __str__(self) -> str:
        description = "infinity" if self.value == INFINITY else self.value
        if self.signature == "ay" and isinstance(self.value, tuple):
            description = _ranges(self.value)
        elif isinstance(self.value, bool):
            description = "yes" if self.value else "no"
        elif self.name == "DeviceAllow" and isinstance(self.value, tuple):
            description = f"({len(self.value)} rules)"
        return f"{self.name}={description}"


class Scope(NamedTuple):
    """A scope unit and its cgroup."""

    unit: str
    slice: str
    path: str
    """The path of the cgroup below a hierarchy's mount point."""


def scope_of(cgroups_path: str | None, container_id: str, *, user: bool, base: str = "/") -> Scope:
    """Return the scope of a container: ``linux.cgroupsPath`` as ``slice:prefix:name``, by default ``ociruntime-ID.scope``.

    An empty slice is ``system.slice``, or ``user.slice`` for the user's own systemd. An empty prefix gives ``-NAME.scope``, as with
    other runtimes.

    Args:
        user: whether it belongs to the user's own systemd.
        base: the cgroup of that systemd below the mount point.

    Raises:
        SpecError: the path has another form, or is not the name of a unit.
    """
    default = "user.slice" if user else "system.slice"
    if not cgroups_path:
        inside, unit = default, f"ociruntime-{_escape(container_id)}.scope"
    else:
        parts = cgroups_path.split(":")
        if len(parts) != 3:
            raise _bad(f"{shown(cgroups_path)} is not slice:prefix:name, which the systemd cgroup manager needs")
        inside, prefix, name = parts
        inside = inside or default
        if not name or name.endswith(".slice"):
            raise _bad(f"{shown(cgroups_path)}: the name must be that of a scope, not empty and not a slice")
        unit = f"{prefix}-{name}.scope"
    if not _UNIT_LETTERS.issuperset(unit):
        raise _bad(f"{shown(unit)} is not the name of a unit; use letters, digits and :-_.\\ only")
    if len(unit) > _MAX_NAME:
        raise _bad(f"the unit name of {len(unit)} characters is longer than {_MAX_NAME}")
    return Scope(unit, inside, base.rstrip("/") + _slice_path(inside) + "/" + _directory(unit))


def _bad(message: str) -> SpecError:
    return SpecError([Problem("$.linux.cgroupsPath", message, SECTION)])


def _escape(name: str) -> str:
    return "".join(c if c in _UNIT_LETTERS and c != "\\" else f"\\x{ord(c):02x}" for c in name)


def _slice_path(name: str) -> str:
    """Return the cgroup of a slice: ``a-b.slice`` is in ``a.slice``, and ``-.slice`` is the root."""
    stem = name.removesuffix(".slice")
    if stem == name or not stem or not _UNIT_LETTERS.issuperset(name) or len(name) > _MAX_NAME:
        raise _bad(f"{shown(name)} is not the name of a slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    if "" in parts:
        raise _bad(f"{shown(name)} is not the name of a slice: it has an empty component between dashes")
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))


def _directory(unit: str) -> str:
    """Return the name of a unit's cgroup, which must not look like one of the kernel's files."""
    files = unit.startswith((".", "_", "cgroup.", *(f"{name}." for name in _CONTROLLERS)))
    return f"_{unit}" if files else unit


def scope_properties(
    scope: Scope, limits: Sequence[Property], annotations: Mapping[str, str], *, container_id: str
) -> tuple[Property, ...]:
    """Return the properties with which the scope is started, without the pid of its first process.

    Raises:
        SpecError: an annotation is not a valid property.
    """
    properties = [
        Property("Description", "s", f"Container {container_id} (ociruntime)"),
        Property("Slice", "s", scope.slice),
        Property("Delegate", "b", True),
        Property("DefaultDependencies", "b", False),
        *(Property(f"{name}Accounting", "b", True) for name in ("CPU", "Memory", "IO", "Tasks")),
        *limits,
    ]
    requested = annotation_properties(annotations)
    replaced = {entry.name for entry in requested}
    return (*(entry for entry in properties if entry.name not in replaced), *requested)


def describe_scope(scope: Scope, properties: Sequence[Property]) -> str:
    """Return a scope as text, with the properties that not every scope has."""
    usual = ("Description", "Slice", "Delegate", "DefaultDependencies")
    more = [str(entry) for entry in properties if entry.name not in usual and not entry.name.endswith("Accounting")]
    return f"{scope.unit} in {scope.slice}" + (f", with {', '.join(more)}" if more else "")


def resource_properties(
    resources: Resources | None, host: Host, *, user: bool, only: Collection[str] | None = None
) -> tuple[Property, ...]:
    """Return the properties for linux.resources.

    Args:
        user: whether they are for the user's own systemd.
        only: the members that change, such as ``memory.limit``. Default: all.

    Raises:
        SpecError: a value in ``linux.resources.unified`` is not valid.
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
    properties = limit_properties([write for write in writes if is_selected(write, only)], version)
    if user or (only is not None and "devices" not in only):
        return properties
    rules = rules_of(resources.devices or ())
    allowed = device_properties(v1_rules(rules) if version == 1 else rules)
    if only is None:
        return (*properties, *allowed)
    # systemd adds to a list unless it is cleared first.
    return (*properties, Property("DeviceAllow", "a(ss)", ()), *(allowed or (Property("DevicePolicy", "s", "auto"),)))


def limit_properties(writes: Iterable[Write], version: int = 2) -> tuple[Property, ...]:
    """Return the properties for the values of a cgroup version's files. Raises SpecError: a value is not valid."""
    properties: dict[str, Property] = {}
    for write in writes:
        for file, value in ((write.file, write.value), *((write.other,) if write.other else ())):
            convert = _FILES[version].get(file)
            if convert is None:
                continue
            try:
                properties |= {entry.name: entry for entry in convert(value)}
            except ValueError:
                location = f"$.linux.resources.{write.members[0]}"
                raise SpecError(
                    [Problem(location, f"{shown(value)} is not a value for {file}", "config-linux.md#unified")]
                ) from None
    return tuple(properties.values())


def _number(text: str) -> int:
    """Return a limit as the kernel reads it."""
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
        per_second += -per_second % 10_000  # systemd counts in percent; round up
    return [Property("CPUQuotaPeriodUSec", "t", int(period)), Property("CPUQuotaPerSecUSec", "t", per_second)]


def _tasks(text: str) -> list[Property]:
    return [Property("TasksMax", "t", _number(text))] if text.strip() != "0" else []  # systemd cannot set 0


def _cpu_idle(text: str) -> list[Property]:
    return [Property("CPUWeight", "t", 0 if int(text) else INFINITY)]  # the default weight, unless another property sets one


def _io_weight(text: str) -> list[Property]:
    key, _, weight = text.strip().rpartition(" ")
    return [Property("IOWeight", "t", int(weight))] if key in ("", "default") else []


def _mask(name: str) -> _Convert:
    return lambda text: [Property(name, "ay", _bits(text))]


def _bits(text: str) -> tuple[int, ...]:
    """Return a list of CPUs or nodes such as ``0-3,7`` as the bytes of a mask, lowest first."""
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
"""The conversions by cgroup version; cpu.max stands for the two files of v1. systemd has no property for other files."""


def device_properties(rules: Sequence[DeviceRule]) -> tuple[Property, ...]:
    """Return DevicePolicy and DeviceAllow. On v2 the rules may allow less than these; they apply as a program too."""
    start = next((n for n, rule in reversed(list(enumerate(rules))) if rule[1:] == ("a", None, None, READ | WRITE | MKNOD)), None)
    if start is None or rules[start].allow:
        return ()
    allowed: dict[tuple[str, int | None, int | None], int] = {}
    for rule in rules[start + 1 :]:
        for kind in ("c", "b") if rule.type == "a" else (rule.type,):
            key = (kind, rule.major, rule.minor)
            before = allowed.get(key, 0)
            allowed[key] = before | rule.access if rule.allow else before & ~rule.access
    entries = {(_node(*key), _letters(access)): None for key, access in allowed.items() if access}
    return (Property("DevicePolicy", "s", "strict"), Property("DeviceAllow", "a(ss)", tuple(entries)))


def _letters(access: int) -> str:
    return "".join(letter for letter, bit in (("r", READ), ("w", WRITE), ("m", MKNOD)) if access & bit)


def _node(kind: str, major: int | None, minor: int | None) -> str:
    name = {"c": "char", "b": "block"}[kind]
    if major is None:
        return f"{name}-*"
    return f"{name}-{major}" if minor is None else f"/dev/{name}/{major}:{minor}"


# ---- annotations ----


def annotation_properties(annotations: Mapping[str, str]) -> tuple[Property, ...]:
    """Return the properties of annotations ``org.systemd.property.NAME``, whose values are in GVariant's text format.

    A NAME that ends in ``Sec`` takes seconds.

    Raises:
        SpecError: a name or a value is not valid.
    """
    properties = []
    for key, text in annotations.items():
        if not key.startswith(ANNOTATION):
            continue
        name = key.removeprefix(ANNOTATION)
        location = f"$.annotations[{key!r}]"
        if not re.fullmatch(r"[A-Z][A-Za-z0-9]{2,}", name):
            raise SpecError([Problem(location, f"{shown(name)} is not the name of a property", "config.md#annotations")])
        if name in _RESERVED:
            raise SpecError([Problem(location, f"{name} is set by the runtime", "config.md#annotations")])
        try:
            typed = parse(text)
            if name.endswith("Sec") and not name.endswith("USec"):
                name, typed = f"{name.removesuffix('Sec')}USec", _microseconds(typed)
        except ValueError as error:
            raise SpecError([Problem(location, f"{error}; use GVariant's text format", "config.md#annotations")]) from None
        properties.append(Property(name, *typed))
    return tuple(properties)


def _microseconds(seconds: Typed) -> Typed:
    if seconds.signature not in tuple("ynqiuxtd") or isinstance(seconds.value, str | tuple) or seconds.value < 0:
        raise ValueError(f"{shown(seconds.value)} is not a number of seconds")
    return Typed("t", round(seconds.value * 1_000_000))
