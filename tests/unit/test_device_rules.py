"""Device rules: their meaning, and that the BPF program and the v1 files follow it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ociruntime.errors import UnsupportedError
from ociruntime.plan.cgroups.limits import (
    DEFAULT_RULES,
    MKNOD,
    READ,
    WRITE,
    DeviceRule,
    compile_program,
    describe_rules,
    rules_of,
    v1_rules,
)
from ociruntime.spec import DeviceCgroup

ALL = READ | WRITE | MKNOD
DENY_ALL = DeviceRule(False, "a", None, None, ALL)


def allowed(rules: Sequence[DeviceRule], kind: str, major: int, minor: int, access: int) -> bool:
    """Return whether access is allowed: the last rule that matches decides for each kind of it; access without a rule is allowed."""
    for bit in (READ, WRITE, MKNOD):
        if access & bit:
            for rule in reversed(rules):
                if rule.type in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor) and rule.access & bit:
                    if not rule.allow:
                        return False
                    break
    return True


def run(code: bytes, kind: str, major: int, minor: int, access: int) -> int:
    """Interpret the instructions that the program uses; every jump must stay within it."""
    memory = struct.pack("=III", access << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers, at = [0] * 11, 0
    while True:
        op, pair, offset, value = struct.unpack_from("=BBhi", code, 8 * at)
        target, source, at = pair & 15, pair >> 4, at + 1
        mask = (1 << 64) - 1
        if op == 0x61:
            registers[target] = struct.unpack_from("=I", memory, offset)[0]
        elif op == 0xB7:
            registers[target] = value & mask
        elif op == 0xBF:
            registers[target] = registers[source]
        elif op == 0x57:
            registers[target] &= value & mask
        elif op == 0x77:
            registers[target] >>= value
        elif op == 0x05:
            at += offset
        elif op == 0x55:
            at += offset * (registers[target] != value & mask)
        elif op == 0x45:
            at += offset * bool(registers[target] & value & mask)
        elif op == 0x95:
            return registers[0]
        else:
            raise AssertionError(f"unknown operation {op:#x}")


numbers = st.none() | st.integers(0, 3)
rules_ = st.builds(DeviceRule, st.booleans(), st.sampled_from("abc"), numbers, numbers, st.integers(0, 7))


@given(st.lists(rules_, max_size=8), st.sampled_from("bc"), st.integers(0, 3), st.integers(0, 3), st.integers(1, 7))
def test_the_program_follows_the_rules(rules: list[DeviceRule], kind: str, major: int, minor: int, access: int) -> None:
    assert run(compile_program(rules), kind, major, minor, access) == allowed(rules, kind, major, minor, access)


def v1(rules: Sequence[DeviceRule], kind: str, major: int, minor: int, access: int) -> bool:
    """Return what a v1 kernel allows (security/device_cgroup.c): a default and its exceptions, by exact device."""
    default, exceptions = True, dict[tuple[str, int | None, int | None], int]()
    for rule in rules:
        if rule.type == "a":
            default, exceptions = rule.allow, {}
            continue
        before = exceptions.get(rule[1:4], 0)
        exceptions[rule[1:4]] = before | rule.access if rule.allow != default else before & ~rule.access
    hits = [bits for (k, a, i), bits in exceptions.items() if k == kind and a in (None, major) and i in (None, minor)]
    if default:
        return not any(bits & access for bits in hits)
    return any(bits & access == access for bits in hits)


@given(
    st.lists(rules_, max_size=6), st.sampled_from("bc"), st.integers(0, 3), st.integers(0, 3), st.sampled_from((READ, WRITE, MKNOD))
)
def test_the_v1_lines_follow_the_rules(rules: list[DeviceRule], kind: str, major: int, minor: int, access: int) -> None:
    try:
        lines = v1_rules(rules)
    except UnsupportedError:
        return
    assert v1(lines, kind, major, minor, access) == allowed(rules, kind, major, minor, access)


def test_v1_refuses_an_exception_in_an_exception() -> None:
    with pytest.raises(UnsupportedError, match=r"devices\[1\].*cannot exclude 'c 1:3 w' from 'c \*:\* rwm'"):
        v1_rules([DENY_ALL, DeviceRule(True, "c", None, None, ALL), DeviceRule(False, "c", 1, 3, WRITE)])
    assert v1_rules([DENY_ALL, DeviceRule(True, "c", 1, 3, ALL), DeviceRule(False, "c", 1, 3, WRITE)])
    assert [str(rule) for rule in v1_rules([DENY_ALL, DeviceRule(True, "a", 8, None, READ)])] == ["a *:* rwm", "b 8:* r", "c 8:* r"]


def test_default_rules_come_last() -> None:
    assert rules_of([]) == ()
    rules = rules_of([DeviceCgroup(allow=False), DeviceCgroup(allow=True, type="c", major=10, minor=-1, access="rw")])
    assert rules[:2] == (DENY_ALL, DeviceRule(True, "c", 10, None, READ | WRITE))
    assert rules[2:] == DEFAULT_RULES
    assert describe_rules(rules) == "deny a *:* rwm, allow c 10:* rw, allow the default devices"
    assert allowed(rules, "c", 1, 3, ALL)
    assert not allowed(rules, "b", 8, 0, READ)
    assert run(compile_program(rules), "c", 10, 229, READ | WRITE)


def test_numbers_above_31_bits() -> None:
    assert run(compile_program([DENY_ALL, DeviceRule(True, "c", 1 << 40, None, ALL)]), "c", 0, 0, READ) == 0
