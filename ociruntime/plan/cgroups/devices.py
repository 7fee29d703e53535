"""Device rules (config-linux.md#allowed-device-list): as lines for v1, and as a BPF program for v2.

For each kind of access (read, write, mknod) the last rule that matches the device decides.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import UnsupportedError
from .writes import ROOT

if TYPE_CHECKING:
    from ...spec import DeviceCgroup

MKNOD, READ, WRITE = 1, 2, 4
"""BPF_DEVCG_ACC_*."""
_BITS: Final = {"r": READ, "w": WRITE, "m": MKNOD}
_ALL: Final = READ | WRITE | MKNOD


class Rule(NamedTuple):
    """One rule for one type of device; None matches all numbers."""

    allow: bool
    type: str
    """``a``, ``b`` or ``c``."""
    major: int | None
    minor: int | None
    access: int

    def __str__(self) -> str:
        numbers = ":".join("*" if number is None else str(number) for number in (self.major, self.minor))
        return f"{self.type} {numbers} {''.join(letter for letter, bit in _BITS.items() if self.access & bit)}"

    def overlaps(self, other: Rule) -> bool:
        """Return whether some device matches both rules."""
        return all(
            first == second or wildcard in (first, second)
            for first, second, wildcard in zip(self[1:4], other[1:4], ("a", None, None), strict=True)
        )


def _default_rules() -> tuple[Rule, ...]:
    numbers = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None)]
    return (
        Rule(True, "c", None, None, MKNOD),
        Rule(True, "b", None, None, MKNOD),
        *(Rule(True, "c", major, minor, _ALL) for major, minor in numbers),
    )


DEFAULT_RULES: Final = _default_rules()
"""Rules after those of the config: any node may be created, and the default devices and terminals may be used."""


def rules_of(devices: Sequence[DeviceCgroup]) -> tuple[Rule, ...]:
    """Return the config's rules and those for the default devices; without any in the config everything stays allowed."""
    rules = []
    for device in devices:
        major, minor = (None if number is None or number < 0 else number for number in (device.major, device.minor))
        access = sum(bit for letter, bit in _BITS.items() if letter in (device.access or "rwm"))
        rules.append(Rule(device.allow, device.type or "a", major, minor, access))
    denied = max((index for index, rule in enumerate(rules) if not rule.allow), default=-1)
    return (*rules, *(rule for rule in DEFAULT_RULES if rule not in rules[denied + 1 :])) if rules else ()


def v1_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return the rules as they are written to devices.allow and devices.deny, one after the other.

    The kernel keeps a default and a list of exceptions, from which only an exception for the same devices can be removed.

    Raises:
        UnsupportedError: v1 cannot express a rule.
    """
    allows_all, exceptions = True, list[tuple[int, Rule]]()
    lines = []
    for number, rule in enumerate(rules):
        if rule.type == "a" and rule.major is None and rule.minor is None and rule.access == _ALL:
            allows_all, exceptions = rule.allow, []
            lines.append(rule)
            continue
        # The kernel reads "a" as all devices and ignores the rest of the line.
        for kind in ("b", "c") if rule.type == "a" else (rule.type,):
            single = rule._replace(type=kind)
            lines.append(single)
            if rule.allow != allows_all:
                exceptions.append((number, single))
            else:
                exceptions = _without(exceptions, single)
    return tuple(lines)


def _without(exceptions: list[tuple[int, Rule]], rule: Rule) -> list[tuple[int, Rule]]:
    """Return the exceptions after a rule that restores the default for some devices."""
    remaining = []
    for number, exception in exceptions:
        if rule.access & exception.access and rule.overlaps(exception) and rule[1:4] != exception[1:4]:
            raise UnsupportedError(
                f"{ROOT}.devices[{number}]: cgroup v1 cannot exclude '{rule}' from '{exception}'; "
                "deny all devices first and allow the others, or use cgroup v2"
            )
        kept = exception.access & ~rule.access if rule[1:4] == exception[1:4] else exception.access
        remaining.append((number, exception._replace(access=kept)))
    return [(number, exception) for number, exception in remaining if exception.access]


# ---- the BPF program ----

_R0, _R1, _R2, _R3, _R4, _R5 = range(6)
_LDX_W, _EXIT, _JA = 0x61, 0x95, 0x05
_MOV64_K, _MOV64_X, _AND64_K, _RSH64_K = 0xB7, 0xBF, 0x57, 0x77
_JNE_K, _JEQ_K, _JSET_K = 0x55, 0x15, 0x45
_TYPES: Final = {"b": 1, "c": 2}


def _op(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, target | source << 4, offset, value)


def compile_program(rules: Sequence[Rule]) -> bytes:
    """Return a BPF_PROG_TYPE_CGROUP_DEVICE program.

    It checks the rules from the last to the first, and keeps in r3 the kinds of access that no rule has allowed yet. A rule that
    denies one of them returns 0; if none is left, the program returns 1. Access that no rule matches is allowed.
    """
    code = [
        _op(_LDX_W, _R2, _R1, 0),  # r2 = type, r3 = access: halves of one word
        _op(_MOV64_X, _R3, _R2),
        _op(_AND64_K, _R2, value=0xFFFF),
        _op(_RSH64_K, _R3, value=16),
        _op(_LDX_W, _R4, _R1, 4),  # r4 = major
        _op(_LDX_W, _R5, _R1, 8),  # r5 = minor
    ]
    for rule in reversed(rules):
        if rule.type == "a" and rule.major is None and rule.minor is None and rule.access == _ALL:
            # This rule decides the rest; the verifier refuses unreachable instructions.
            code += [_op(_MOV64_K, _R0, value=int(rule.allow)), _op(_EXIT)]
            break
        if rule.allow:
            then = [_op(_AND64_K, _R3, value=~rule.access), _op(_JNE_K, _R3, offset=2), _op(_MOV64_K, _R0, value=1), _op(_EXIT)]
        else:
            # Skip the jump if the rule denies an access that is still undecided.
            then = [_op(_JSET_K, _R3, offset=1, value=rule.access), _op(_JA, offset=2), _op(_MOV64_K, _R0), _op(_EXIT)]
        tests = []
        if rule.type != "a":
            tests.append((_R2, _TYPES[rule.type]))
        tests += [(register, number) for register, number in ((_R4, rule.major), (_R5, rule.minor)) if number is not None]
        for index, (register, number) in enumerate(tests):
            code.append(_op(_JNE_K, register, offset=len(tests) - index - 1 + len(then), value=_number(number)))
        code += then
    else:
        code += [_op(_MOV64_K, _R0, value=1), _op(_EXIT)]
    return b"".join(code)


def _number(number: int) -> int:
    # The comparison sign-extends to 64 bits. Numbers above 31 bits match no device, and neither does -1.
    return number if number < 1 << 31 else -1


def describe_rules(rules: Sequence[Rule]) -> str:
    """Return the rules as text, those for the default devices as one."""
    parts = [f"{'allow' if rule.allow else 'deny'} {rule}" for rule in rules if rule not in DEFAULT_RULES]
    return ", ".join([*parts, "allow the default devices"] if set(DEFAULT_RULES) <= set(rules) else parts)
