"""Strategies of hypothesis for whole documents of the runtime spec, made up from its classes."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from ociruntime.spec.base import Member, Record, members_of

Strategy = st.SearchStrategy[Any]
KEYS = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def objects(draw: st.DrawFn, cls: type[Record]) -> dict[str, Any]:
    """JSON objects of a class: the required members, some of the others and now and then unknown ones, in any order."""
    by_key = {member.key: member for member in members_of(cls).values()}
    keys = draw(st.sets(st.sampled_from(sorted(by_key)), max_size=5)) | {key for key, member in by_key.items() if member.required}
    unknown = draw(st.dictionaries(KEYS, JSON, max_size=2)) if draw(st.integers(0, 2)) == 0 else {}
    unknown = {key: item for key, item in unknown.items() if key not in by_key}
    return {
        key: draw(members(by_key[key])) if key in by_key else unknown[key]
        for key in draw(st.permutations(sorted(keys | {*unknown})))
    }


@cache
def members(member: Member) -> Strategy:
    """Values of a member: empty ones, the ends of a range and, of an enumeration, values from the future among them."""
    kind = member.kind
    inner: Strategy
    if kind.item is object:
        inner = JSON
    elif kind.record is not None:
        inner = objects(kind.record)
    elif kind.item is bool:
        inner = st.booleans()
    elif kind.item is int:
        lowest, highest = kind.constraint.range or (None, None)
        inner = st.integers(lowest, highest)
        if lowest is not None:
            inner |= st.sampled_from([lowest, highest])
    elif kind.item is str:
        inner = st.text(max_size=9)
    else:
        inner = st.sampled_from([str(member) for member in kind.item]) | st.text(max_size=9)  # type: ignore[attr-defined]
    if kind.outer == "tuple":
        return st.lists(inner, max_size=3)
    if kind.outer == "Mapping":
        return st.dictionaries(KEYS, inner, max_size=3)
    return inner
