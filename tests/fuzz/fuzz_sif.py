"""SIF files for the fuzz target and for tests, made byte by byte from the tables of the format, without the package's own writer.

Whatever the bytes are, the reader either gives values or raises `SifError`.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable

from ociruntime.errors import SifError
from ociruntime.image.sif import SifImage

MEMORY_BOUND = 64 << 20

# name -> (offset, size in bytes), as the format lists them
HEADER_FIELDS = {
    "launch_script": (0, 32),
    "magic": (32, 10),
    "version": (42, 3),
    "architecture": (45, 3),
    "uuid": (48, 16),
    "created_at": (64, 8),
    "modified_at": (72, 8),
    "descriptors_free": (80, 8),
    "descriptors_total": (88, 8),
    "descriptors_offset": (96, 8),
    "descriptors_size": (104, 8),
    "data_offset": (112, 8),
    "data_size": (120, 8),
}
DESCRIPTOR_FIELDS = {
    "data_type": (0, 4),
    "used": (4, 1),
    "id": (5, 4),
    "group_id": (9, 4),
    "linked_id": (13, 4),
    "offset": (17, 8),
    "size": (25, 8),
    "size_with_padding": (33, 8),
    "created_at": (41, 8),
    "modified_at": (49, 8),
    "uid": (57, 8),
    "gid": (65, 8),
    "name": (73, 128),
    "extra": (201, 384),
}
DESCRIPTOR_SIZE = 585
TABLE_OFFSET = 160
CAPACITY = 14
NONE, GROUP_1 = 0xF0000000, 0xF0000001

Value = int | bytes


def put(buffer: bytearray, base: int, fields: dict[str, tuple[int, int]], name: str, value: Value) -> None:
    """Write one field; a negative number in two's complement, bytes padded with NUL."""
    offset, size = fields[name]
    raw = (value % (1 << 8 * size)).to_bytes(size, "little") if isinstance(value, int) else value.ljust(size, b"\0")
    assert len(raw) == size, name
    buffer[base + offset : base + offset + size] = raw


def i32(*values: int) -> bytes:
    return b"".join((value % (1 << 32)).to_bytes(4, "little") for value in values)


def image(
    objects: list[dict[str, Value]], datas: list[bytes], *, capacity: int = CAPACITY, table: int = TABLE_OFFSET, **header: Value
) -> bytearray:
    """A SIF file with these objects; partitions aligned to 4096; the given fields replace what would be right."""
    data_offset = table + capacity * DESCRIPTOR_SIZE
    out = bytearray(data_offset)
    for number, (fields, data) in enumerate(zip(objects, datas, strict=True)):
        end = len(out)
        if fields["data_type"] == 0x4004:
            out += bytes(-end % 4096)
        offset = len(out)
        right: dict[str, Value] = {
            "used": 1,
            "id": number + 1,
            "group_id": GROUP_1,
            "offset": offset,
            "size": len(data),
            "size_with_padding": offset + len(data) - end,
            "created_at": 1700000000,
            "modified_at": 1700000001,
        }
        out += data
        for name, value in (right | fields).items():
            put(out, table + number * DESCRIPTOR_SIZE, DESCRIPTOR_FIELDS, name, value)
    right_header: dict[str, Value] = {
        "launch_script": b"#!/usr/bin/env run-singularity\n",
        "magic": b"SIF_MAGIC",
        "version": b"01",
        "architecture": b"02",
        "uuid": bytes(range(16)),
        "created_at": 1700000000,
        "modified_at": 1700000001,
        "descriptors_free": capacity - len(objects),
        "descriptors_total": capacity,
        "descriptors_offset": table,
        "descriptors_size": capacity * DESCRIPTOR_SIZE,
        "data_offset": data_offset,
        "data_size": len(out) - data_offset,
    }
    for name, value in (right_header | header).items():
        put(out, 0, HEADER_FIELDS, name, value)
    return out


OBJECTS: list[tuple[dict[str, Value], bytes]] = [
    ({"data_type": 0x4001, "name": b"alpine.def"}, b"Bootstrap: docker\nFrom: alpine\n"),
    (
        {"data_type": 0x4006, "name": b"oci-config.json"},
        b'{"Entrypoint":["/bin/sh","-c"],"Cmd":["id"],"Env":["A=1"],"WorkingDir":"/w","User":"1:2","Volumes":{"/v":{}}}',
    ),
    ({"data_type": 0x4004, "name": b"root", "extra": i32(1, 2) + b"02"}, b"hsqs" + bytes(4092)),
    (
        {"data_type": 0x4005, "group_id": NONE, "linked_id": GROUP_1, "extra": i32(1) + bytes(range(1, 21))},
        b"-----BEGIN PGP SIGNED MESSAGE-----\n",
    ),
    ({"data_type": 0x4008, "linked_id": 3, "extra": i32(2, 0x200)}, b"-----BEGIN MESSAGE-----\n"),
    ({"data_type": 0x4009, "extra": i32(4)}, b"{}"),
    ({"data_type": 0x400A, "extra": b"sha256:" + b"0a" * 32}, b'{"schemaVersion":2}'),
    ({"data_type": 0x400B, "extra": b"sha256:" + b"1b" * 32}, b"blob"),
    ({"data_type": 0x4003}, b'{"maintainer":"nobody"}'),
    ({"data_type": 0x4002}, b"A=1\nB=two words\n"),
    ({"data_type": 0x4006, "name": b"inspect-metadata.json"}, b'{"type":"container"}'),
    ({"data_type": 0x4007, "name": b"raw"}, b""),
    ({"data_type": 0x4099, "name": b"of the future", "extra": b"\xff" * 384}, b"?"),
]


def full_image(**header: Value) -> bytearray:
    """One object of every type, one empty object and one of a type that does not exist yet."""
    out = image([fields for fields, _ in OBJECTS], [data for _, data in OBJECTS])
    for name, value in header.items():
        put(out, 0, HEADER_FIELDS, name, value)
    return out


def exercise(target: bytes | bytearray | int) -> bool:
    """Open an image and use everything of it; whether it was accepted. Any exception but `SifError` is a finding."""
    try:
        opened = SifImage.open(target if isinstance(target, int) else io.BytesIO(target))
    except SifError:
        return False
    with opened as sif:
        uses: list[Callable[[], object]] = [
            sif.to_dict,
            sif.table,
            sif._repr_html_,
            sif.oci_config,
            lambda: repr(sif),
            lambda: sif.primary_partition,
            lambda: sif.root_index,
            lambda: sif.labels,
            lambda: sif.env,
            lambda: sif.definition,
            lambda: sif.inspect_metadata,
            lambda: (sif.header.uuid, sif.header.created, sif.header.modified),
        ]
        for use in uses:
            try:
                use()
            except SifError:
                continue
        for item in sif:
            assert sif.by_id(item.id) is item
            read = sum(len(piece) for piece in sif.chunks(item))
            assert read == item.size, (read, item)
    return True


SMALL = (0, 1, 2, 3, 127, 128, 160, 255, 584, 585, 586, 4096)
INTERESTING = (*SMALL, NONE, GROUP_1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def mutate(data: bytearray, rng: random.Random) -> bytearray:
    """Some edits: fields set to edge values or near their own, bytes flipped, entries copied, the file cut or continued."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        kind = rng.random()
        if kind < 0.7:
            if rng.random() < 0.4:
                base, fields = 0, HEADER_FIELDS
            else:
                base, fields = TABLE_OFFSET + rng.randrange(CAPACITY) * DESCRIPTOR_SIZE, DESCRIPTOR_FIELDS
            name = rng.choice(list(fields))
            offset, size = fields[name]
            if rng.random() < 0.5 and size <= 8:
                value: Value = int.from_bytes(out[base + offset : base + offset + size], "little") + rng.randint(-3, 3)
            elif size <= 8:
                value = rng.choice(INTERESTING)
            else:
                value = bytes(rng.choice((0, 0x20, 0x41, 0xFF)) for _ in range(size))
            if base + offset + size <= len(out):
                put(out, base, fields, name, value)
        elif kind < 0.9 and out:
            for _ in range(rng.randint(1, 8)):
                out[rng.randrange(len(out))] = rng.randrange(256)
        elif kind < 0.95:
            a, b = (TABLE_OFFSET + rng.randrange(CAPACITY) * DESCRIPTOR_SIZE for _ in range(2))
            out[a : a + DESCRIPTOR_SIZE] = out[b : b + DESCRIPTOR_SIZE]
        elif rng.random() < 0.5:
            del out[rng.randrange(len(out) + 1) :]
        else:
            out += rng.randbytes(rng.randint(1, 64))
    return out
