"""The wire format, decoded by an independent decoder."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest

from ociruntime.engine.execution import Execution
from ociruntime.plan.model import PlanBuilder, encode
from ociruntime.plan.ops import MAGIC, MAX_SLOTS, NO_SLOT, OPS

BY_CODE = {op.code: op for op in OPS.values()}
Step = tuple[int, str, tuple[object, ...]]


def decode(raw: bytes) -> tuple[list[Step], int]:
    magic, total, count, inputs = struct.unpack_from("=IIII", raw)
    assert magic == MAGIC
    assert total == len(raw)
    at, steps = 16, []
    for _ in range(count):
        size, code, number = struct.unpack_from("=HHI", raw, at)
        where, values = at + 8, []
        for _, kind in BY_CODE[code].fields:
            if kind in ("slot", "num"):
                values.append(struct.unpack_from("=Q", raw, where)[0])
                where += 8
                continue
            offset, length = struct.unpack_from("=II", raw, where)
            where += 8
            assert offset + length <= total
            data = raw[offset : offset + length]
            if kind == "str":
                assert data.count(b"\0") == 1
                assert data.endswith(b"\0")
                values.append(data[:-1].decode("utf-8", "surrogateescape"))
            elif kind == "data":
                values.append(data)
            else:
                (items,) = struct.unpack_from("=Q", raw, where)
                where += 8
                assert data.count(b"\0") == items
                values.append(tuple(part.decode("utf-8", "surrogateescape") for part in data.split(b"\0")[:-1]))
        assert where - at == size
        assert size % 8 == 0
        at = where
        steps.append((number, BY_CODE[code].name, tuple(values)))
    return steps, inputs


def example(rng: random.Random, kind: str) -> object:
    text = "".join(rng.choice("ab/ü\udcff =\n") for _ in range(rng.randrange(40)))
    return {
        "slot": rng.choice([0, MAX_SLOTS - 1, NO_SLOT]),
        "num": rng.choice([0, 1, 2**64 - 1, rng.getrandbits(64)]),
        "str": text,
        "data": rng.randbytes(rng.randrange(70)),
        "list": tuple(text[:n] for n in range(rng.randrange(5))),
    }[kind]


@pytest.mark.parametrize("seed", range(20))
def test_every_operation_round_trips(seed: int) -> None:
    rng = random.Random(seed)
    steps = [
        (number, op.name, tuple(example(rng, kind) for _, kind in op.fields))
        for number, op in enumerate(rng.sample(list(OPS.values()), len(OPS)), 1)
    ]
    assert decode(encode(steps, seed)) == (steps, seed)


def test_codes_and_names() -> None:
    assert sorted(BY_CODE) == list(range(1, len(OPS) + 1))


def test_a_negative_number_is_encoded_in_twos_complement() -> None:
    steps, _ = decode(encode([(1, "prctl", (1, -1, -(2**63)))], 0))
    assert steps[0][2] == (1, 2**64 - 1, 2**63)


def test_an_empty_program() -> None:
    assert decode(encode([], 0)) == ([], 0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sethostname", ("a\0b",)),
        ("sethostname", ("\0",)),
        ("lookup", (0, ("fine", "not\0fine"))),
        ("exec", (("a",), ("a", "\0"), ())),
        ("symlink", (0, "x", b"y\0z")),
    ],
)
def test_nul_in_text_is_refused(name: str, values: Sequence[object]) -> None:
    with pytest.raises(ValueError, match=r"step 7 .*NUL"):
        encode([(7, name, values)], 0)


def test_nul_in_data_is_data() -> None:
    steps, _ = decode(encode([(1, "setgroups", (b"\0\0\0\0", 0))], 0))
    assert steps == [(1, "setgroups", (b"\0\0\0\0", 0))]


@pytest.mark.parametrize("slot", [-1, MAX_SLOTS, 2**32, -(2**32)])
def test_a_slot_out_of_range_is_refused(slot: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        encode([(1, "pivot_root", (slot,))], 0)


@pytest.mark.parametrize("values", [(), (1, 2)])
def test_a_wrong_count_of_values_is_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match="pivot_root"):
        encode([(1, "pivot_root", values)], 0)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_a_number_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="umask"):
        encode([(1, "umask", (value,))], 0)


def test_more_steps_than_16_bits_count() -> None:
    """A configuration with 70,000 masked paths has them."""
    raw = encode([(70_000, "setsid", ())], 0)
    assert decode(raw) == ([(70_000, "setsid", ())], 0)


def test_programs_are_kept_for_the_same_steps_alone() -> None:
    """Steps are compared by number, operation and values: operations without values share the empty tuple."""

    def program(*ops: str, host: int = 0, inputs: int = 0) -> bytes:
        builder = PlanBuilder()
        for _ in range(host):
            builder.add_host("hook_state", text="")
        for op in ops:
            builder.add(op, text="")
        plan = builder.build("plan", clone_flags=0, namespaces=0)
        return Execution(plan, stdio=())._program(inputs)

    plain = [op.name for op in OPS.values() if not op.fields]
    programs = [program(op, host=host, inputs=inputs) for op in plain[:3] for host in (0, 1) for inputs in (0, 1)]
    assert len(set(programs)) == len(programs)
    assert program(plain[0], host=1) == programs[2]
    assert decode(programs[2])[0] == [(2, plain[0], ())]
