"""Reading SIF files: what good ones give, what bad ones raise, what either costs."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ociruntime.errors import SifError
from ociruntime.image.sif import (
    NO_TIME,
    Architecture,
    CryptoMessage,
    DataType,
    Filesystem,
    HashKind,
    MessageFormat,
    MessageKind,
    OciObject,
    Partition,
    PartitionKind,
    Sbom,
    SbomFormat,
    SifImage,
    Signature,
)
from ociruntime.image.sif.format import MAX_DESCRIPTORS

from ..fuzz import fuzz_sif as vectors

GOOD = vectors.full_image()


@pytest.fixture
def sif(tmp_path: Path) -> Iterator[SifImage]:
    path = tmp_path / "good.sif"
    path.write_bytes(GOOD)
    with SifImage.open(path) as image:
        yield image


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused(data: bytes | bytearray, path: Path) -> SifError:
    """The error for a file with these bytes; also holds memory and descriptors to their bounds."""
    path.write_bytes(data)
    before = fds()
    tracemalloc.start()
    try:
        with pytest.raises(SifError) as caught:
            SifImage.open(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < vectors.MEMORY_BOUND
    assert fds() == before
    assert caught.value.path == str(path)
    assert caught.value.field in str(caught.value)
    return caught.value


# --- what a good image gives


def test_header(sif: SifImage) -> None:
    header = sif.header
    assert header.launch_script == "#!/usr/bin/env run-singularity\n"
    assert header.version == "01"
    assert header.architecture is Architecture.AMD64
    assert str(header.uuid) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (header.created_at, header.modified_at) == (1700000000, 1700000001)
    assert header.created is not None
    assert header.created.isoformat() == "2023-11-14T22:13:20+00:00"
    assert (header.descriptors_total, header.descriptors_free) == (vectors.CAPACITY, vectors.CAPACITY - len(vectors.OBJECTS))
    assert header.raw == GOOD[:128]


def test_metadata_of_every_type(sif: SifImage) -> None:
    assert len(sif) == len(vectors.OBJECTS)
    assert [item.metadata for item in sif] == [
        None,
        None,
        Partition(Filesystem.SQUASHFS, PartitionKind.PRIMARY_SYSTEM, Architecture.AMD64),
        Signature(HashKind.SHA256, bytes(range(1, 21)) + bytes(236)),
        CryptoMessage(MessageFormat.PEM, MessageKind.RSA_OAEP),
        Sbom(SbomFormat.SPDX_JSON),
        OciObject("sha256:" + "0a" * 32),
        OciObject("sha256:" + "1b" * 32),
        None,
        None,
        None,
        None,
        None,
    ]
    signature = sif.by_id(4).metadata
    assert isinstance(signature, Signature)
    assert signature.fingerprint == bytes(range(1, 21))
    assert Signature(HashKind.SHA256, bytes(256)).fingerprint is None


def test_unknown_values_are_kept_as_they_are(tmp_path: Path) -> None:
    data = vectors.image(
        [
            {"data_type": 0x4004, "extra": vectors.i32(77, 78) + b"99"},
            {"data_type": 0x4005, "extra": vectors.i32(79)},
            {"data_type": 0x7FFFFFFF, "extra": b"\x01\x02"},
        ],
        [b"a", b"b", b"c"],
        architecture=b"98",
    )
    with SifImage.open(io.BytesIO(data)) as image:
        partition, signature = image.by_id(1).metadata, image.by_id(2).metadata
        assert partition == Partition(77, 78, "99")
        assert isinstance(signature, Signature)
        assert signature.hash == 79
        assert not isinstance(signature.hash, HashKind)
        assert image.by_id(3).data_type == 0x7FFFFFFF
        assert image.by_id(3).raw[201:203] == b"\x01\x02"
        assert image.header.architecture == "98"
        assert "0x7fffffff" in image.table()


def test_finding_objects(sif: SifImage) -> None:
    assert [item.id for item in sif.find(DataType.GENERIC_JSON)] == [2, 11]
    assert [item.id for item in sif.find(name="root")] == [3]
    assert [item.id for item in sif.find(linked_group=1)] == [4]
    assert [item.id for item in sif.find(linked_object=3)] == [5]
    assert [item.id for item in sif.find(digest="sha256:" + "1b" * 32)] == [8]
    assert [item.id for item in sif.find(0x4099)] == [13]
    assert len(sif.find(group=1)) == len(sif) - 1
    assert sif.find(DataType.GENERIC_JSON, name="no such") == ()
    assert sif.groups == (1,)
    assert sif.by_id(4).group is None
    primary, index = sif.primary_partition, sif.root_index
    assert primary is not None
    assert primary.id == 3
    assert primary.offset % 4096 == 0
    assert index is not None
    assert index.id == 7
    with pytest.raises(KeyError):
        sif.by_id(99)


def test_documents(sif: SifImage) -> None:
    config = sif.oci_config()
    assert config is not None
    assert config.entrypoint == ("/bin/sh", "-c")
    assert config.cmd == ("id",)
    assert config.env == ("A=1",)
    assert (config.working_dir, config.user, config.volumes) == ("/w", "1:2", ("/v",))
    assert sif.oci_config_json is not None
    assert sif.oci_config_json["Cmd"] == ["id"]
    assert sif.labels == {"maintainer": "nobody"}
    assert sif.definition == "Bootstrap: docker\nFrom: alpine\n"
    assert sif.env == {"A": "1", "B": "two words"}
    assert sif.inspect_metadata == {"type": "container"}


def test_documents_that_are_not_there() -> None:
    with SifImage.open(io.BytesIO(vectors.image([], []))) as image:
        found = [image.oci_config_json, image.labels, image.definition, image.env, image.inspect_metadata]
        assert [*found, image.oci_config(), image.primary_partition, image.root_index] == [None] * 8


def document(data_type: int, content: bytes, name: bytes = b"") -> SifImage:
    return SifImage.open(io.BytesIO(vectors.image([{"data_type": data_type, "name": name}], [content])))


def test_a_whole_image_configuration() -> None:
    with document(0x4006, b'{"architecture":"amd64","config":{"Cmd":["id"],"Entrypoint":[""]}}', b"oci-config.json") as image:
        config = image.oci_config()
        assert config is not None
        assert (config.entrypoint, config.cmd) == ((), ("id",))
    with (
        document(0x4006, b'{"config":[]}', b"oci-config.json") as image,
        pytest.raises(SifError, match=r"config: .* not an object"),
    ):
        image.oci_config()


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "not JSON"),
        (b"[]", "list, not an object"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"Cmd":' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"Cmd":NaN}', "NaN"),
        (b'{"Cmd":"id"}', "oci-config.json: Cmd: 'id' is not a list"),
        (b'{"Env":["A=1",2]}', "oci-config.json: Env[1]: 2 is not a string"),
        (b'{"User":0}', "oci-config.json: User: 0 is not a string"),
        (b'{"Volumes":["/v"]}', "oci-config.json: Volumes: ['/v'] is not an object"),
        (b'{"Labels":{"a":1}}', "oci-config.json: Labels.a: 1 is not a string"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_bad_oci_config(content: bytes, place: str) -> None:
    with document(0x4006, content, b"oci-config.json") as image, pytest.raises(SifError) as caught:
        image.oci_config()
    assert place in str(caught.value)
    assert caught.value.descriptor == 0


@pytest.mark.parametrize(
    ("data_type", "content", "attribute"),
    [
        (0x4003, b'{"a":1}', "labels"),
        (0x4003, b'"a"', "labels"),
        (0x4002, b"A=1\nnonsense\n", "env"),
        (0x4002, b"=x\n", "env"),
        (0x4001, b"\xff\xfe", "definition"),
    ],
)
def test_bad_documents(data_type: int, content: bytes, attribute: str) -> None:
    with document(data_type, content) as image, pytest.raises(SifError):
        getattr(image, attribute)


def test_ambiguous_documents() -> None:
    two = vectors.image([{"data_type": 0x4001}, {"data_type": 0x4001}], [b"a", b"b"])
    with SifImage.open(io.BytesIO(two)) as image, pytest.raises(SifError, match="more than one definition file: objects 1, 2"):
        image.definition  # noqa: B018


# --- showing


def test_views(sif: SifImage, tmp_path: Path) -> None:
    assert repr(sif) == f"<SifImage {tmp_path}/good.sif: amd64, 13 objects, squashfs root of 4.0 KiB>"
    lines = sif.table().splitlines()
    assert len(lines) == 1 + len(sif)
    assert "squashfs, primary-system, amd64" in lines[3]
    listing = json.loads(json.dumps(sif.to_dict()))
    assert listing["header"]["created"] == "2023-11-14T22:13:20Z"
    assert listing["objects"][2]["metadata"] == {"filesystem": "squashfs", "kind": "primary-system", "architecture": "amd64"}
    assert listing["objects"][3]["metadata"]["fingerprint"] == bytes(range(1, 21)).hex()
    assert listing["objects"][12]["type"] == "0x4099"
    assert sif._repr_html_().count("<tr>") == 1 + len(sif)
    sif.close()
    assert "closed" in repr(sif)


def test_hostile_names_are_shown_escaped() -> None:
    name = "\x1b[31m<script>\u202e\nx".encode() + b"\xff"
    with document(0x4007, b"", name) as image:
        assert os.fsencode(image.by_id(1).name) == name
        for shown in (image.table(), image._repr_html_()):
            assert not set(shown) & set("\x1b\u202e\udcff")
        assert "&lt;script&gt;" in image._repr_html_()
        assert len(image.table().splitlines()) == 2
        json.dumps(image.to_dict()).encode()


# --- data


def test_reader_is_a_file_of_the_object_alone(sif: SifImage) -> None:
    item = sif.by_id(1)
    content = b"Bootstrap: docker\nFrom: alpine\n"
    with sif.reader(item) as reader:
        assert reader.readable()
        assert reader.seekable()
        assert not reader.writable()
        assert reader.read(9) == b"Bootstrap"
        assert reader.tell() == 9
        assert reader.read(1 << 60) == content[9:]
        assert reader.read() == b""
        assert reader.seek(-7, io.SEEK_END) == len(content) - 7
        assert reader.read() == b"alpine\n"
        assert reader.seek(1000) == 1000
        assert reader.read(1) == b""
        with pytest.raises(ValueError, match="negative"):
            reader.seek(-1)
        reader.seek(0)
        assert io.TextIOWrapper(io.BufferedReader(reader)).readlines() == ["Bootstrap: docker\n", "From: alpine\n"]
    assert sif.read(item) == content
    assert b"".join(sif.chunks(item, 7)) == content
    assert sif.read(sif.by_id(12)) == b""


def test_reading_does_not_move_the_offset_of_a_shared_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "good.sif"
    path.write_bytes(GOOD)
    with path.open("rb") as file:
        file.seek(5)
        with SifImage.open(file) as by_object, SifImage.open(file.fileno()) as by_fd:
            assert by_fd.read(by_fd.by_id(8)) == by_object.read(by_object.by_id(8)) == b"blob"
            assert os.path.sameopenfile(by_fd.fileno(), file.fileno())
            assert len({by_fd.fileno(), by_object.fileno(), file.fileno()}) == 3
        assert file.tell() == 5
        assert not file.closed


def test_readers_in_threads(sif: SifImage) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        item = sif.by_id(1 + number % 3)
        expected = vectors.OBJECTS[number % 3][1]
        for _ in range(200):
            with sif.reader(item) as reader:
                if reader.read(5) + reader.read() != expected:
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_streams(tmp_path: Path) -> None:
    packed = tmp_path / "good.sif.gz"
    packed.write_bytes(gzip.compress(GOOD))
    with gzip.open(packed) as file, SifImage.open(file) as image:
        assert image.read(image.by_id(8)) == b"blob"
        with pytest.raises(io.UnsupportedOperation):
            image.fileno()
    with tempfile.NamedTemporaryFile(dir=tmp_path) as temporary:
        temporary.write(GOOD)  # not flushed
        with SifImage.open(temporary) as image:
            assert os.path.sameopenfile(image.fileno(), temporary.fileno())
    with pytest.raises(TypeError):
        SifImage.open(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        SifImage.open(True)
    with pytest.raises(TypeError):
        SifImage.open(None)  # type: ignore[arg-type]


def test_closed_images(sif: SifImage) -> None:
    reader, item = sif.reader(sif.by_id(1)), sif.by_id(1)
    sif.close()
    sif.close()
    assert sif.closed
    for use in (reader.read, sif.fileno, lambda: sif.read(item), lambda: sif.definition):
        with pytest.raises(ValueError, match="closed"):
            use()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.tell()


def test_a_forgotten_image_is_closed_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "good.sif"
    path.write_bytes(GOOD)
    before = fds()
    image = SifImage.open(path)
    with pytest.warns(ResourceWarning, match=r"good\.sif"):
        del image
    assert fds() == before


def test_descriptors_of_another_image_are_refused(sif: SifImage) -> None:
    with document(0x4001, b"a") as other, pytest.raises(ValueError, match="not from this image"):
        sif.read(other.by_id(1))


# --- what is no SIF file


def test_not_a_regular_file(tmp_path: Path) -> None:
    fifo, sock = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    before = fds()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock))
        for path, what in [(fifo, "FIFO"), (sock, "not a regular file"), (tmp_path, "directory"), (Path("/dev/zero"), "character")]:
            with pytest.raises(SifError, match=what) as caught:
                SifImage.open(path)
            assert caught.value.field == "file"
    reading, writing = os.pipe()
    with pytest.raises(SifError, match="FIFO"):
        SifImage.open(reading)
    os.close(reading)
    os.close(writing)
    with pytest.raises(FileNotFoundError):
        SifImage.open(tmp_path / "absent")
    assert fds() == before


def test_flags_of_the_descriptor(sif: SifImage) -> None:
    assert os.get_blocking(sif.fileno())
    assert not os.get_inheritable(sif.fileno())


# --- every field: negative, huge, overlapping, truncated, inconsistent

HUGE, LOW = 2**63 - 1, -(2**63)
FILE = len(GOOD)
DATA = vectors.TABLE_OFFSET + vectors.CAPACITY * vectors.DESCRIPTOR_SIZE

BAD_HEADERS = [
    ("launch_script", b"x" * 32, "launch_script"),
    ("launch_script", b"a\0b", "launch_script"),
    ("magic", b"SIF_MAGIX", "magic"),
    ("magic", b"SIF_MAGIC!", "magic"),
    ("magic", b"", "magic"),
    ("version", b"02", "version"),
    ("version", b"012", "version"),
    ("version", b"", "version"),
    ("architecture", b"", "architecture"),
    ("architecture", b"2", "architecture"),
    ("architecture", b"amd", "architecture"),
    ("architecture", b"022", "architecture"),
    ("architecture", b"\xb2\xb2", "architecture"),
    ("architecture", b"04", "architecture"),  # not that of the primary partition
    *((name, value, name) for name in ("created_at", "modified_at") for value in (LOW, NO_TIME - 1, 253402300800, HUGE)),
    *(("descriptors_free", value, "descriptors_free") for value in (LOW, -1, vectors.CAPACITY + 1, HUGE, 0, 2)),
    *(("descriptors_total", value, "descriptors_total") for value in (LOW, -1, MAX_DESCRIPTORS + 1, HUGE)),
    ("descriptors_total", 0, "descriptors_free"),
    ("descriptors_total", vectors.CAPACITY + 1, "descriptors_size"),
    ("descriptors_total", vectors.CAPACITY - 1, "descriptors_size"),
    *(("descriptors_offset", value, "descriptors_offset") for value in (LOW, -1, 0, 127, DATA, FILE - 1, FILE, FILE + 1, HUGE)),
    *(("descriptors_size", value, "descriptors_size") for value in (LOW, -1, 0, 584, vectors.CAPACITY * 585 + 1, HUGE)),
    *(("data_offset", value, "data_offset") for value in (LOW, -1, 0, 127, FILE + 1, HUGE, 2**62)),
    ("data_offset", DATA - 1, "data_offset"),  # inside the table
    ("data_offset", DATA + 1, "data_size"),  # now ends beyond the file
    *(("data_size", value, "data_size") for value in (LOW, -1, FILE - DATA + 1, HUGE)),
]


@pytest.mark.parametrize(("field", "value", "named"), BAD_HEADERS, ids=lambda value: str(value)[:24])
def test_bad_header_field(field: str, value: vectors.Value, named: str, tmp_path: Path) -> None:
    data = bytearray(GOOD)
    vectors.put(data, 0, vectors.HEADER_FIELDS, field, value)
    error = refused(data, tmp_path / "bad.sif")
    assert error.field == named
    assert error.descriptor is None


@pytest.mark.parametrize("left", [200, 5000, -100])
def test_a_file_that_was_not_copied_whole(tmp_path: Path, left: int) -> None:
    error = refused(vectors.full_image()[:left], tmp_path / "cut.sif")
    assert str(error).endswith("it was not copied whole: fetch it again")


def test_a_smaller_data_size_leaves_objects_outside(tmp_path: Path) -> None:
    error = refused(vectors.full_image(data_size=10), tmp_path / "bad.sif")
    assert (error.field, error.descriptor) == ("size", 0)


BAD_FIELDS = [
    *(("data_type", value, "data_type") for value in (-(2**31), -1, 0)),
    *(("used", value, "used") for value in (2, 0x80, 0xFF)),
    *(("id", value, "id") for value in (0, -1, 2**32 - 1, vectors.NONE)),
    *(("group_id", value, "group_id") for value in (1, 2**31, 0xE0000001, 0x70000001)),
    *(("linked_id", value, "linked_id") for value in (-1, 2**31 - 1, vectors.NONE, 0xF0000099, 99)),
    *(("offset", value, "offset") for value in (LOW, -1, 0, 127, vectors.TABLE_OFFSET, DATA - 1, FILE + 1, 2**62, HUGE)),
    *(("size", value, "size") for value in (LOW, -1, FILE, 2**62, HUGE)),
    *(("size_with_padding", value, "size_with_padding") for value in (LOW, -1, FILE, HUGE)),
    *((name, value, name) for name in ("created_at", "modified_at") for value in (LOW, NO_TIME - 1, 253402300800, HUGE)),
    *((name, value, name) for name in ("uid", "gid") for value in (LOW, -1, 2**32, HUGE)),
    *(("name", value, "name") for value in (b"n" * 128, b"a\0b", b"\0b")),
]


@pytest.mark.parametrize(("field", "value", "named"), BAD_FIELDS, ids=lambda value: str(value)[:24])
def test_bad_descriptor_field(field: str, value: vectors.Value, named: str, tmp_path: Path) -> None:
    for index in range(len(vectors.OBJECTS)):
        data = bytearray(GOOD)
        vectors.put(data, vectors.TABLE_OFFSET + index * vectors.DESCRIPTOR_SIZE, vectors.DESCRIPTOR_FIELDS, field, value)
        error = refused(data, tmp_path / "bad.sif")
        assert (error.field, error.descriptor) == (named, index)


BAD_EXTRAS = [
    *((2, vectors.i32(value, 2) + b"02", "partition.filesystem") for value in (-1, 0, -(2**31))),
    *((2, vectors.i32(1, value) + b"02", "partition.kind") for value in (-1, 0, -(2**31))),
    *((2, vectors.i32(1, 2) + value, "partition.architecture") for value in (b"", b"2", b"022", b"xx", b"\xff\xff\xff")),
    *((3, vectors.i32(value), "signature.hash") for value in (-1, 0)),
    *((4, vectors.i32(value, 0x200), "crypto_message.format") for value in (-1, 0)),
    *((4, vectors.i32(1, value), "crypto_message.kind") for value in (-1, 0)),
    *((5, vectors.i32(value), "sbom.format") for value in (-1, 0)),
    *(
        (index, value, "oci.digest")
        for index in (6, 7)
        for value in (
            b"",
            b"sha256",
            b"sha256:",
            b"sha256:" + b"0a" * 31,
            b"sha256:" + b"0A" * 32,
            b"sha256:" + b"0a" * 32 + b"\0x",
            b"md5:" + b"0a" * 16,
            b"../../../etc/passwd",
            b"s" * 384,
        )
    ),
]


@pytest.mark.parametrize(("index", "extra", "named"), BAD_EXTRAS, ids=lambda value: str(value)[:24])
def test_bad_metadata(index: int, extra: bytes, named: str, tmp_path: Path) -> None:
    data = bytearray(GOOD)
    vectors.put(data, vectors.TABLE_OFFSET + index * vectors.DESCRIPTOR_SIZE, vectors.DESCRIPTOR_FIELDS, "extra", extra)
    error = refused(data, tmp_path / "bad.sif")
    assert (error.field, error.descriptor) == (named, index)


def with_field(index: int, **fields: vectors.Value) -> bytearray:
    data = bytearray(GOOD)
    for name, value in fields.items():
        vectors.put(data, vectors.TABLE_OFFSET + index * vectors.DESCRIPTOR_SIZE, vectors.DESCRIPTOR_FIELDS, name, value)
    return data


def test_what_does_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "bad.sif"
    with SifImage.open(io.BytesIO(GOOD)) as good:
        first, second = good.by_id(1), good.by_id(2)
    cases = [
        (with_field(5, id=2), "id", 5),
        (with_field(4, linked_id=5), "linked_id", 4),
        (with_field(0, data_type=0x4004, extra=vectors.i32(1, 2) + b"02"), "partition.kind", 2),
        (with_field(1, offset=first.offset), "offset", 1),
        (with_field(0, size=first.size + 1, size_with_padding=first.size + 1), "offset", 1),
        (with_field(0, offset=second.offset + 3), "offset", 0),
        (with_field(1, size_with_padding=second.size - 1), "size_with_padding", 1),
        (with_field(0, used=0), "descriptors_free", None),
    ]
    for data, field, descriptor in cases:
        error = refused(data, path)
        assert (error.field, error.descriptor) == (field, descriptor)


def test_unused_entries_are_not_looked_at() -> None:
    data = bytearray(GOOD)
    last = vectors.TABLE_OFFSET + (vectors.CAPACITY - 1) * vectors.DESCRIPTOR_SIZE
    data[last : last + vectors.DESCRIPTOR_SIZE] = b"\xff" * 4 + b"\0" + b"\xff" * 580
    with SifImage.open(io.BytesIO(data)) as image:
        assert len(image) == len(vectors.OBJECTS)


def test_fields_that_may_have_other_values() -> None:
    """The control of the tables above: odd, but right."""
    for changes in (
        {"id": 4000},
        {"group_id": 0},
        {"group_id": 0xFFFFFFFF},
        {"uid": 1000, "gid": 2**32 - 1},
        {"created_at": NO_TIME, "modified_at": -1},
        {"name": b"n" * 127},
        {"linked_id": vectors.GROUP_1},
        {"linked_id": 1},
    ):
        data = with_field(12, **changes)
        with SifImage.open(io.BytesIO(data)) as image:
            assert len(image) == len(vectors.OBJECTS)
    for header in ({"uuid": b""}, {"launch_script": b""}, {"architecture": b"00"}, {"created_at": NO_TIME}):
        with SifImage.open(io.BytesIO(vectors.full_image(**header))) as image:
            json.dumps(image.to_dict())
    with SifImage.open(io.BytesIO(GOOD + b"trailing bytes")) as image:
        assert len(image) == len(vectors.OBJECTS)


def test_every_truncation(tmp_path: Path) -> None:
    path = tmp_path / "cut.sif"
    for length in [*range(0, 129, 4), *range(129, DATA, 501), *range(DATA, FILE, 997), FILE - 1]:
        error = refused(GOOD[:length], path)
        assert error.field in ("header", "descriptors_offset", "data_offset", "data_size")


def test_a_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "shrinking.sif"
    path.write_bytes(GOOD)
    with SifImage.open(path) as image:
        primary = image.primary_partition
        assert primary is not None
        os.truncate(path, primary.offset + 100)
        with image.reader(primary) as reader:
            assert reader.read(100) == bytes(GOOD[primary.offset : primary.offset + 100])
            with pytest.raises(SifError, match="shorter while it was open") as caught:
                reader.read(1)
        assert (caught.value.field, caught.value.descriptor) == ("size", primary.index)
        with pytest.raises(SifError, match="shorter"):
            image.read(primary)
        with pytest.raises(SifError, match="shorter"):
            list(image.chunks(primary))
        with image.reader(primary) as reader, pytest.raises(SifError, match="shorter"):
            io.BufferedReader(reader).read()


# --- bounds


def test_claimed_sizes_are_not_believed(tmp_path: Path) -> None:
    """A sparse terabyte that is really there: opened, listed and streamed, but not read at once."""
    path = tmp_path / "sparse.sif"
    tera = 1 << 40
    data = vectors.image([{"data_type": 0x4003, "size": tera, "size_with_padding": tera}], [b""], data_size=tera)
    path.write_bytes(data)
    os.truncate(path, len(data) + tera)
    tracemalloc.start()
    try:
        with SifImage.open(path) as image:
            with pytest.raises(SifError, match="larger than"):
                image.labels  # noqa: B018
            with image.reader(image.by_id(1)) as reader:
                reader.seek(-1, io.SEEK_END)
                assert reader.read(100) == b"\0"
        assert tracemalloc.get_traced_memory()[1] < vectors.MEMORY_BOUND
    finally:
        tracemalloc.stop()


def test_the_largest_table_fits_into_the_bound(tmp_path: Path) -> None:
    count = MAX_DESCRIPTORS
    one = vectors.image([{"data_type": 0x400B, "name": b"\xff" * 127, "extra": b"sha512:" + b"0a" * 64}], [b""], capacity=1)
    entry = one[vectors.TABLE_OFFSET : vectors.TABLE_OFFSET + vectors.DESCRIPTOR_SIZE]
    table = bytearray(entry * count)
    end = vectors.TABLE_OFFSET + len(table)
    for number in range(count):
        base = number * vectors.DESCRIPTOR_SIZE
        vectors.put(table, base, vectors.DESCRIPTOR_FIELDS, "id", number + 1)
        vectors.put(table, base, vectors.DESCRIPTOR_FIELDS, "offset", end)
    head = vectors.image([], [], capacity=0)
    for name, value in {"descriptors_total": count, "descriptors_size": len(table), "data_offset": end}.items():
        vectors.put(head, 0, vectors.HEADER_FIELDS, name, value)
    path = tmp_path / "many.sif"
    path.write_bytes(head + table)
    del table
    tracemalloc.start()
    try:
        with SifImage.open(path) as image:
            assert len(image) == count
            for show in (image.table, image._repr_html_, image.to_dict):
                assert show()
        assert tracemalloc.get_traced_memory()[1] < vectors.MEMORY_BOUND
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'{"":0},', b'"\xf0\x9f\x90\xb3",', b"1.5,", b"[[[[[[]]]]]],"])
def test_the_largest_document_fits_into_the_bound(piece: bytes) -> None:
    inside = (1 << 20) - 16
    content = b'{"x":[' + piece * (inside // len(piece)) + b"0]}"
    with document(0x4003, content) as image:
        tracemalloc.start()
        try:
            with pytest.raises(SifError, match=r"labels: x: .* is not a string"):
                image.labels  # noqa: B018
            assert tracemalloc.get_traced_memory()[1] < vectors.MEMORY_BOUND
        finally:
            tracemalloc.stop()


# --- random damage


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    edits=st.lists(st.tuples(st.integers(0, FILE - 9), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
    keep=st.one_of(st.just(FILE), st.integers(0, FILE)),
)
def test_damaged_bytes(edits: list[tuple[int, bytes]], keep: int) -> None:
    data = bytearray(GOOD)
    for offset, piece in edits:
        data[offset : offset + len(piece)] = piece
    vectors.exercise(data[:keep])


VALUES = st.one_of(st.sampled_from(vectors.INTERESTING), st.integers(0, 2**64 - 1))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    entry=st.integers(-1, vectors.CAPACITY - 1),
    fields=st.lists(st.tuples(st.integers(0, 13), VALUES), min_size=1),
)
def test_damaged_fields(entry: int, fields: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    table = vectors.HEADER_FIELDS if entry < 0 else vectors.DESCRIPTOR_FIELDS
    base = 0 if entry < 0 else vectors.TABLE_OFFSET + entry * vectors.DESCRIPTOR_SIZE
    names = list(table)
    for number, value in fields:
        vectors.put(data, base, table, names[number % len(names)], value)
    vectors.exercise(data)


# --- the package


def test_importing_is_cheap_and_needs_only_the_errors() -> None:
    # attrs brings some modules along on its own
    code = "import sys, attrs; before = set(sys.modules); from ociruntime import SifImage; print(sorted(set(sys.modules) - before))"
    report = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(ast.literal_eval(report))
    assert "ociruntime.image.sif.reader" in loaded
    assert not loaded & {"json", "uuid", "datetime", "tempfile", "html", "cattrs", "jsonschema"}
    assert not loaded & {
        "ociruntime.image.build",
        "ociruntime.image.sif.writer",
    }
    ours = {name for name in loaded if name.split(".")[0] == "ociruntime" and not name.startswith("ociruntime.image")}
    assert ours == {
        "ociruntime",
        "ociruntime._lazy",
        "ociruntime.arguments",
        "ociruntime.errors",
        "ociruntime.files",
        "ociruntime.interrupts",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("amd64", Architecture.AMD64),
        ("x86_64", Architecture.AMD64),
        ("386", Architecture.I386),
        ("i686", Architecture.I386),
        ("aarch64", Architecture.ARM64),
        ("armv7l", Architecture.ARM),
        ("ppc64le", Architecture.PPC64LE),
        ("s390x", Architecture.S390X),
        ("riscv64", Architecture.RISCV64),
        ("loongarch64", Architecture.LOONG64),
        ("12", Architecture.RISCV64),
    ],
)
def test_architecture_names(name: str, expected: Architecture) -> None:
    assert Architecture.from_name(name) is expected
    assert Architecture.from_name(expected.oci_name) is expected


def test_architecture_names_that_are_none() -> None:
    for name in ("", "vax", "armada"):
        with pytest.raises(ValueError, match="no SIF architecture code"):
            Architecture.from_name(name)
