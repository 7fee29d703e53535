from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ociruntime.plan.process import CAPABILITIES, from_mask, to_mask

HEADER = Path("/usr/include/linux/capability.h")


def test_there_are_41_distinct_bits() -> None:
    assert sorted(CAPABILITIES.values()) == list(range(41))
    assert CAPABILITIES["CAP_CHOWN"] == 0
    assert CAPABILITIES["CAP_SYS_ADMIN"] == 21
    assert CAPABILITIES["CAP_SETFCAP"] == 31
    assert CAPABILITIES["CAP_CHECKPOINT_RESTORE"] == 40


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers")
def test_the_bits_are_the_kernels() -> None:
    kernel = {name: int(bit) for name, bit in re.findall(r"^#define\s+(CAP_[A-Z_]+)\s+(\d+)\s*$", HEADER.read_text(), re.M)}
    assert kernel
    assert kernel.items() <= CAPABILITIES.items()


def test_unknown_names_are_returned_once_in_order() -> None:
    mask, unknown = to_mask(["CAP_BPF", "CAP_KILL", "chown", "CAP_NOPE", "CAP_BPF"], last_cap=37)
    assert mask == 1 << 5
    assert unknown == ("CAP_BPF", "chown", "CAP_NOPE")


def test_the_last_capability_itself_is_known() -> None:
    assert to_mask(["CAP_CHECKPOINT_RESTORE"], last_cap=40) == (1 << 40, ())
    assert to_mask([], last_cap=40) == (0, ())


@given(st.sets(st.sampled_from(sorted(CAPABILITIES))))
def test_mask_and_names_round_trip(names: set[str]) -> None:
    mask, unknown = to_mask(names, last_cap=40)
    assert unknown == ()
    assert mask.bit_count() == len(names)
    assert set(from_mask(mask)) == names


def test_a_bit_without_a_name_and_a_negative_mask() -> None:
    assert from_mask(1 << 45 | 1) == ("CAP_CHOWN", "CAP_45")
    with pytest.raises(ValueError, match="negative"):
        from_mask(-1)
