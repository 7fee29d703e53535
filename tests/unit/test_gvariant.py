"""GVariant's text format: every supported form, and what is refused."""

from __future__ import annotations

import pytest

from ociruntime.plan.cgroups.systemd import parse

GOOD = {
    "true": ("b", True),
    "false": ("b", False),
    "5": ("i", 5),
    "-5": ("i", -5),
    "0x1F": ("i", 31),
    "uint64 18446744073709551615": ("t", 18446744073709551615),
    "int64 -9223372036854775808": ("x", -9223372036854775808),
    "byte 0xff": ("y", 255),
    "uint16 7": ("q", 7),
    "2.5": ("d", 2.5),
    "1e3": ("d", 1000.0),
    "double 3": ("d", 3.0),
    "'a b'": ("s", "a b"),
    '"it\'s"': ("s", "it's"),
    r"'it\'s\n'": ("s", "it's\n"),
    "objectpath '/a'": ("o", "/a"),
    "['a', 'b']": ("as", ("a", "b")),
    " [ 'a' ,'b' ] ": ("as", ("a", "b")),
    "@as []": ("as", ()),
    "[uint32 1, uint32 2]": ("au", (1, 2)),
    "('/dev/null', 'rw')": ("(ss)", ("/dev/null", "rw")),
    "[('/dev/null', 'rw')]": ("a(ss)", (("/dev/null", "rw"),)),
    "[[true]]": ("aab", ((True,),)),
}
BAD = [
    "", "foo", "yes", "1 2", "'open", "[1, 'a']", "[1 2]", "[1", "[]", "()", "1,", "uint64", "uint64 -1", "byte 256", "int32 2.5",
    "2147483648", "uint64 'a'", "string 5", "@as ['a']", "@s 'a'", "{'a': 1}", "nothing", "<1>", "1.2.3", "--5", "@as", "@as [",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_read(text: str) -> None:
    assert tuple(parse(text)) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)
