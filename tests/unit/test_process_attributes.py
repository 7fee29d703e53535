"""Capabilities that are granted, and lists of CPUs and nodes as masks."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from ociruntime.plan.process import CAPABILITIES, grant, list_mask
from ociruntime.spec import Capabilities

KILL, CHOWN, ADMIN = (1 << CAPABILITIES[f"CAP_{name}"] for name in ("KILL", "CHOWN", "SYS_ADMIN"))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", {0}), ("0-3,7", {0, 1, 2, 3, 7}), ("63,64", {63, 64}), ("2-2", {2}), ("1, 3", {1, 3}), ("200", {200})],
)
def test_a_list_is_a_mask(text: str, numbers: set[int]) -> None:
    raw = list_mask(text)
    assert len(raw) % 8 == 0
    words = struct.unpack(f"={len(raw) // 8}Q", raw)
    assert {64 * i + bit for i, word in enumerate(words) for bit in range(64) if word >> bit & 1} == numbers


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1,,2", "0-65536", "٣", "1-2-3", "+1"])
def test_invalid_lists(text: str) -> None:
    with pytest.raises(ValueError, match="is not a list such as"):
        list_mask(text)


def test_all_capabilities_are_granted() -> None:
    names = ("CAP_KILL", "CAP_CHOWN")
    caps = grant(Capabilities(bounding=names, effective=names, permitted=names, inheritable=names, ambient=names), 40, KILL | CHOWN)
    assert set(caps[:5]) == {KILL | CHOWN}
    assert caps.warnings == ()
    assert grant(None, 40, KILL) == (0, 0, 0, 0, 0, ())


def test_one_warning_for_the_same_capabilities_in_several_sets() -> None:
    names = ("CAP_KILL", "CAP_SYS_ADMIN")
    caps = grant(Capabilities(bounding=names, effective=names, permitted=("CAP_SYS_ADMIN",), inheritable=("CAP_NEW",)), 40, 0)
    assert caps.warnings == (
        "$.process.capabilities.bounding, effective: CAP_KILL, CAP_SYS_ADMIN: cannot be granted: the runtime does not have them",
        "$.process.capabilities.permitted: CAP_SYS_ADMIN: cannot be granted: the runtime does not have them",
        "$.process.capabilities.inheritable: CAP_NEW: unknown to this kernel",
    )


@pytest.mark.parametrize(
    ("sets", "held", "index", "left", "warning"),
    [
        ({"bounding": ("CAP_X", "CAP_KILL")}, KILL, 0, KILL, r"bounding: CAP_X: unknown to this kernel"),
        ({"bounding": ("CAP_KILL", "CAP_SYS_ADMIN")}, KILL, 0, KILL, r"bounding: CAP_SYS_ADMIN: .*the runtime does not have them"),
        ({"effective": ("CAP_KILL",)}, KILL, 1, 0, r"effective: CAP_KILL: .*not permitted"),
        ({"inheritable": ("CAP_KILL",)}, KILL, 3, 0, r"inheritable: CAP_KILL: .*not in the bounding set"),
        (
            {"bounding": ("CAP_KILL",), "permitted": ("CAP_KILL",), "ambient": ("CAP_KILL",)},
            KILL,
            4,
            0,
            r"ambient: .*not inheritable",
        ),
    ],
)
def test_a_warning_for_each_capability_that_is_not_granted(
    sets: dict[str, Any], held: int, index: int, left: int, warning: str
) -> None:
    import re

    caps = grant(Capabilities(**sets), 40, held)
    assert caps[index] == left
    assert len(caps.warnings) == 1
    assert re.search(warning, caps.warnings[0])
