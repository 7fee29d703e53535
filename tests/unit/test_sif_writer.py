"""Writing SIF files: byte by byte against the format, read back, and compared with those of other software."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ociruntime.cli import main
from ociruntime.errors import ProcessError, SifError, UnsupportedError
from ociruntime.image import build_sif
from ociruntime.image.convert import layout_entries
from ociruntime.image.packing import LayoutEntry
from ociruntime.image.sif import (
    NO_TIME,
    Architecture,
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
    SifBuilder,
    SifImage,
    Signature,
    add_objects,
    remove_objects,
)
from ociruntime.image.sif.model import JsonValue

from ..fuzz import fuzz_sif as vectors

needs_mksquashfs = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="mksquashfs is not installed")
needs_unsquashfs = pytest.mark.skipif(shutil.which("unsquashfs") is None, reason="unsquashfs is not installed")
TABLE, ENTRY = 4096, 585


def number(data: bytes, offset: int, size: int, *, signed: bool = False) -> int:
    return int.from_bytes(data[offset : offset + size], "little", signed=signed)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


# --- SifBuilder


def test_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    builder = SifBuilder(timestamp=1700000000)
    assert builder.add_definition("Bootstrap: x\n", name="x.def") == 1
    assert builder.add_partition(b"hsqs" + bytes(96), arch="arm64", name="root") == 2
    assert builder.add_signature(b"signed", hash_kind=HashKind.SHA512, fingerprint=b"F" * 20, linked_group=1) == 3
    builder.write(tmp_path / "a.sif")
    data = (tmp_path / "a.sif").read_bytes()

    assert data[0:32] == b"#!/usr/bin/env run-singularity\n\0"
    assert data[32:48] == b"SIF_MAGIC\x0001\x0004\0"
    uuid = data[48:64]
    assert uuid[6] >> 4 == 4
    assert [number(data, offset, 8, signed=True) for offset in range(64, 128, 8)] == [
        1700000000,  # created
        1700000000,  # modified
        45,  # free
        48,  # total
        4096,  # table
        48 * 585,
        32176,  # data
        len(data) - 32176,
    ]
    assert not any(data[128:4096])

    first, second, third = (data[TABLE + n * ENTRY : TABLE + (n + 1) * ENTRY] for n in range(3))
    assert not any(data[TABLE + 3 * ENTRY : 32176])
    assert (number(first, 0, 4), first[4], number(first, 5, 4)) == (0x4001, 1, 1)
    assert (number(first, 9, 4), number(first, 13, 4)) == (0xF0000001, 0)
    assert [number(first, offset, 8) for offset in (17, 25, 33)] == [32176, 13, 13]
    assert [number(first, offset, 8) for offset in (41, 49, 57, 65)] == [1700000000, 1700000000, 0, 0]
    assert first[73:201] == b"x.def".ljust(128, b"\0")
    assert not any(first[201:])

    assert (number(second, 0, 4), number(second, 5, 4)) == (0x4004, 2)
    assert [number(second, offset, 8) for offset in (17, 25, 33)] == [32768, 100, 32768 + 100 - 32176 - 13]
    assert second[201:212] == b"\1\0\0\0\2\0\0\x0004\0"
    assert not any(second[212:])
    assert not any(data[32176 + 13 : 32768])
    assert data[32768:32868] == b"hsqs" + bytes(96)

    assert (number(third, 0, 4), number(third, 5, 4)) == (0x4005, 3)
    assert (number(third, 9, 4), number(third, 13, 4)) == (0xF0000000, 0xF0000001)
    assert [number(third, offset, 8) for offset in (17, 25, 33)] == [32868, 6, 6]
    assert third[201:225] == b"\3\0\0\0" + b"F" * 20
    assert not any(third[225:])
    assert data[32868:] == b"signed"


@pytest.mark.parametrize("dated", [True, False])
def test_images_of_another_writer_are_rebuilt_byte_for_byte(tmp_path: Path, dated: bool) -> None:
    """The fuzzer makes the image from the tables of the format, without the package. The last object has an unknown type."""
    known = vectors.OBJECTS[:-1]
    created = 1700000000 if dated else NO_TIME
    objects: list[dict[str, vectors.Value]] = [{**fields, "created_at": created, "modified_at": created} for fields, _ in known]
    layout: dict[str, Any] = {
        "capacity": 48,
        "table": TABLE,
        "architecture": b"02",
        "created_at": created,
        "modified_at": created,
        "uuid": bytes(16),
    }
    original = vectors.image(objects, [data for _, data in known], **layout)
    with SifImage.open(io.BytesIO(original)) as image:
        header = image.header
        assert (header.created is None, header.uuid) == (not dated, None)
        builder = SifBuilder(
            launch_script=header.launch_script,
            deterministic=True,
            timestamp=created if dated else None,
            capacity=header.descriptors_total,
        )
        for item in image:
            builder.add(
                item.data_type,
                image.reader(item),
                name=item.name,
                group=item.group,
                linked_object=item.linked_object,
                linked_group=item.linked_group,
                metadata=item.metadata,
                alignment=4096 if item.data_type == DataType.PARTITION else 1,
            )
        builder.write(tmp_path / "rebuilt.sif")
    assert (tmp_path / "rebuilt.sif").read_bytes() == original


def test_every_object_reads_back(tmp_path: Path) -> None:
    path, source = tmp_path / "a.sif", tmp_path / "source"
    source.write_bytes(b"from a path")
    file = io.BytesIO(b"skipped, from a file")
    file.seek(9)
    builder = SifBuilder()
    builder.add_definition("Bootstrap: é\n")
    builder.add_oci_config({"Entrypoint": ["/bin/é"], "Cmd": None, "Volumes": {"/data": {}}})
    builder.add_json({"type": "container"}, name="inspect-metadata.json")
    builder.add_labels({"a": "b"})
    builder.add_env({"A": "1", "B": "two = words "})
    builder.add_generic(source, name="path")
    builder.add_generic(str(source), name="str")
    builder.add_generic(file, name="file", group=None)
    builder.add_partition(b"ext", kind=PartitionKind.OVERLAY, filesystem=Filesystem.EXT3, arch=Architecture.S390X, group=7)
    builder.add_partition(b"root")
    builder.add_crypto_message(b"k", message_format=MessageFormat.PEM, message_kind=MessageKind.RSA_OAEP, linked_object=10)
    builder.add_sbom(b"{}", sbom_format=SbomFormat.SYFT_JSON)
    builder.add_oci_root_index(b"{}", digest="sha256:" + "0" * 64)
    builder.add_oci_blob(b"", digest="sha512:" + "1" * 128)
    assert len(builder) == 14
    before = int(time.time())
    builder.write(path)
    with SifImage.open(path) as image:
        assert image.definition == "Bootstrap: é\n"
        config = image.oci_config()
        assert config is not None
        assert (config.entrypoint, config.cmd, config.volumes) == (("/bin/é",), (), ("/data",))
        assert image.inspect_metadata == {"type": "container"}
        assert image.labels == {"a": "b"}
        assert image.env == {"A": "1", "B": "two = words "}
        assert [image.read(image.by_id(n)) for n in (6, 7, 8)] == [b"from a path", b"from a path", b"from a file"]
        assert image.by_id(8).group is None
        assert image.by_id(9).metadata == Partition(Filesystem.EXT3, PartitionKind.OVERLAY, Architecture.S390X)
        assert image.by_id(9).group == 7
        primary = image.primary_partition
        assert primary is not None
        assert primary is image.by_id(10)
        assert primary.metadata == Partition(Filesystem.SQUASHFS, PartitionKind.PRIMARY_SYSTEM, Architecture.host())
        assert image.header.architecture is Architecture.host()
        assert image.by_id(11).linked_object == 10
        assert image.by_id(12).metadata == Sbom(SbomFormat.SYFT_JSON)
        assert image.root_index is image.by_id(13)
        assert image.by_id(14).metadata == OciObject("sha512:" + "1" * 128)
        assert before <= image.header.created_at == image.by_id(1).created_at <= int(time.time())
        assert image.header.uuid is not None
        assert image.header.uuid.version == 4


def test_deterministic_images_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        builder = SifBuilder(deterministic=True)
        builder.add_partition(b"x", arch="amd64")
        builder.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with SifImage.open(tmp_path / "a") as image:
        assert image.header.uuid is None
        assert image.header.created_at == image.by_id(1).modified_at == NO_TIME


def test_the_table_grows(tmp_path: Path) -> None:
    builder = SifBuilder(capacity=2)
    for index in range(60):
        builder.add_generic(b"%d" % index, name=str(index))
    builder.write(tmp_path / "a.sif")
    with SifImage.open(tmp_path / "a.sif") as image:
        assert image.header.descriptors_total == 60
        assert image.header.data_offset == TABLE + 60 * ENTRY
        assert image.read(image.find(name="59")[0]) == b"59"


def test_empty_objects_keep_their_place(tmp_path: Path) -> None:
    builder = SifBuilder()
    builder.add_generic(b"x", name="x")
    builder.add_partition(b"", kind=PartitionKind.DATA)
    builder.write(tmp_path / "a.sif")
    with SifImage.open(tmp_path / "a.sif") as image:
        assert (image.by_id(2).offset, image.by_id(2).size) == (32768, 0)
        assert os.path.getsize(tmp_path / "a.sif") == 32768


def test_wrong_values_are_refused_when_they_are_given(tmp_path: Path) -> None:
    builder = SifBuilder()
    builder.add_partition(b"")
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: SifBuilder(launch_script="x" * 32), "launch_script"),
        (lambda: SifBuilder(launch_script="a\0"), "launch_script"),
        (lambda: SifBuilder(timestamp=2**62), "created_at"),
        (lambda: SifBuilder(capacity=-1), "descriptors_total"),
        (lambda: builder.add_partition(b""), "partition.kind"),
        (lambda: builder.add(0, b""), "data_type"),
        (lambda: builder.add(2**31, b""), "data_type"),
        (lambda: builder.add_generic(b"", name="é" * 64), "name"),
        (lambda: builder.add_generic(b"", name="x", group=0), "group_id"),
        (lambda: builder.add_generic(b"", name="x", group=0xF0000001), "group_id"),
        (lambda: builder.add_signature(b"", linked_group=0), "linked_id"),
        (lambda: builder.add_signature(b"", linked_object=0xF0000001), "linked_id"),
        (lambda: builder.add_signature(b"", linked_object=1, linked_group=1), "linked_id"),
        (lambda: builder.add_signature(b"", fingerprint=bytes(257)), "signature.entity"),
        (lambda: builder.add_partition(b"", kind=PartitionKind.DATA, alignment=0), "offset"),
        (lambda: builder.add_oci_blob(b"", digest="sha256:00"), "oci.digest"),
        (lambda: builder.add_env({"A": "1\n2"}), "env"),
        (lambda: builder.add_env({"A=B": "1"}), "env"),
    ]
    for use, field in cases:
        with pytest.raises(SifError) as caught:
            use()
        assert caught.value.field == field
    with pytest.raises(ValueError, match="vax"):
        builder.add_partition(b"", kind=PartitionKind.DATA, arch="vax")
    assert len(builder) == 1


class Breaking(io.RawIOBase):
    """Gives some data, then an error."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.calls += 1
        if self.calls > 1:
            raise KeyboardInterrupt
        return b"some"


def test_a_failure_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.sif"
    path.write_bytes(b"what was there before")
    fds = len(os.listdir("/proc/self/fd"))

    missing = SifBuilder()
    missing.add_generic(tmp_path / "absent", name="x")
    with pytest.raises(FileNotFoundError):
        missing.write(path, overwrite=True)

    interrupted = SifBuilder()
    interrupted.add_generic(Breaking(), name="x")
    with pytest.raises(KeyboardInterrupt):
        interrupted.write(path, overwrite=True)

    dangling = SifBuilder()
    dangling.add_signature(b"", linked_object=9)
    with pytest.raises(SifError, match=r"a\.sif.*linked_id: there is no object 9"):
        dangling.write(path, overwrite=True)

    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        SifBuilder().write(folder)

    assert path.read_bytes() == b"what was there before"
    assert leftovers(tmp_path) == ["a.sif", "folder"]
    assert len(os.listdir("/proc/self/fd")) == fds


def test_the_file_is_replaced_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "a.sif"
    SifBuilder(deterministic=True).write(path)
    with SifImage.open(path) as before:
        changed = SifBuilder()
        changed.add_generic(b"x", name="x")
        with pytest.raises(FileExistsError, match=r"overwrite=True.*a\.sif"):
            changed.write(path)
        changed.write(path, overwrite=True)
        assert len(before) == 0
        assert os.fstat(before.fileno()).st_ino != path.stat().st_ino
    assert leftovers(tmp_path) == ["a.sif"]


def test_nothing_is_replaced_by_default(tmp_path: Path) -> None:
    """Neither what is there at the beginning, nor what another process makes meanwhile."""
    path, link, fifo = tmp_path / "a.sif", tmp_path / "link.sif", tmp_path / "fifo"
    link.symlink_to("nowhere")
    os.mkfifo(fifo)
    for taken in (link, fifo):
        with pytest.raises(FileExistsError, match=taken.name):
            SifBuilder().write(taken)
    with pytest.raises(FileExistsError, match="special file"):
        SifBuilder().write(fifo, overwrite=True)

    class Racing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            path.write_bytes(b"of another process")
            return super().read(size)

    builder = SifBuilder()
    builder.add_generic(Racing(b"x"), name="x")
    with pytest.raises(FileExistsError, match=r"a\.sif"):
        builder.write(path)
    assert path.read_bytes() == b"of another process"
    assert leftovers(tmp_path) == ["a.sif", "fifo", "link.sif"]
    SifBuilder().write(link, overwrite=True)
    assert not link.is_symlink()


def test_permissions(tmp_path: Path) -> None:
    umask = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask")).split()[1], 8)
    SifBuilder().write(tmp_path / "default.sif")
    SifBuilder().write(tmp_path / "private.sif", mode=0o600)
    SifBuilder().write(tmp_path / "shared.sif", mode=0o664)
    modes = [stat.S_IMODE((tmp_path / f"{name}.sif").stat().st_mode) for name in ("default", "private", "shared")]
    assert modes == [0o777 & ~umask, 0o600, 0o664]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SifBuilder().write("a.sif")
    assert leftovers(tmp_path) == ["a.sif"]


# --- changing a file


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A file with objects of all alignments, in two groups, and a signature of one of them."""
    builder = SifBuilder()
    builder.add_generic(b"one", name="1")
    builder.add_partition(b"two" * 3000, arch="arm64")
    builder.add_generic(b"three", name="3", group=2)
    builder.add(DataType.PARTITION, b"four", metadata=Partition(1, PartitionKind.DATA, Architecture.ARM64), alignment=4096)
    builder.add_signature(b"five", linked_group=2)
    builder.add_generic(b"", name="6", group=None)
    builder.add(DataType.GENERIC, b"seven", linked_object=1)
    path = tmp_path / "several.sif"
    builder.write(path, mode=0o640)
    return path


def contents(path: Path) -> dict[int, tuple[Any, ...]]:
    with SifImage.open(path) as image:
        return {
            item.id: (item.data_type, item.name, item.group, item.linked_object, item.linked_group, item.metadata, image.read(item))
            for item in image
        }


@pytest.mark.parametrize("removed", [(2,), (3, 5), (4,), (6,), (7, 1), (2, 3, 4, 5, 6), (7, 6, 5, 4, 3, 2, 1), ()], ids=str)
def test_removing_objects(several: Path, removed: tuple[int, ...]) -> None:
    before, size = contents(several), several.stat().st_size
    with SifImage.open(several) as image:
        offsets = {item.id: item.offset for item in image}
    remove_objects(several, *removed)
    assert contents(several) == {key: value for key, value in before.items() if key not in removed}
    with SifImage.open(several) as image:
        assert image.header.architecture == (Architecture.UNKNOWN if 2 in removed else Architecture.ARM64)
        assert all((item.offset - offsets[item.id]) % 4096 == 0 for item in image)
    assert stat.S_IMODE(several.stat().st_mode) == 0o640
    assert several.stat().st_size <= size - (8000 if 2 in removed else 0)
    assert leftovers(several.parent) == ["several.sif"]
    assert add_objects(several, builder_of(b"again")) == (max((key for key in before if key not in removed), default=0) + 1,)
    assert contents(several)[max(contents(several))][-1] == b"again"


def builder_of(content: bytes) -> SifBuilder:
    builder = SifBuilder()
    builder.add_generic(content, name="new")
    return builder


def test_objects_that_cannot_be_removed(several: Path, tmp_path: Path) -> None:
    before = several.read_bytes()
    with pytest.raises(SifError, match="object 5 is linked to object 3; remove both"):
        remove_objects(several, 3)
    with pytest.raises(SifError, match="object 7 is linked to object 1; remove both"):
        remove_objects(several, 6, 1)
    with pytest.raises(KeyError):
        remove_objects(several, 2, 9)
    builder = SifBuilder()
    builder.add_partition(b"another root")
    with pytest.raises(SifError, match="a second primary system partition"):
        add_objects(several, builder)
    builder = SifBuilder()
    builder.add_signature(b"x", linked_object=77)
    with pytest.raises(SifError, match="there is no object 77"):
        add_objects(several, builder)
    assert several.read_bytes() == before
    builder = SifBuilder()
    builder.add_oci_blob(b"x", digest="sha256:" + "0" * 64)
    builder.write(tmp_path / "oci.sif")
    with pytest.raises(SifError, match="object 1 is a part of an OCI image"):
        remove_objects(tmp_path / "oci.sif", 1)
    assert leftovers(tmp_path) == ["oci.sif", "several.sif"]


def test_a_primary_partition_that_is_added(tmp_path: Path) -> None:
    builder_of(b"x").write(tmp_path / "a.sif")
    builder = SifBuilder()
    builder.add_partition(b"root", arch="riscv64")
    assert add_objects(tmp_path / "a.sif", builder) == (2,)
    with SifImage.open(tmp_path / "a.sif") as image:
        assert image.header.architecture is Architecture.RISCV64
        assert image.primary_partition is not None
        assert image.primary_partition.offset % 4096 == 0


def test_the_commands_that_change_a_file(several: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bom.json").write_text('{"spdxVersion": "SPDX-2.3"}')
    assert main(["sif", "add", "--type", "sbom", str(several), str(tmp_path / "bom.json")]) == 0
    assert main(["sif", "add", "--group", "0", "--link", "1", "--name", "n", str(several), str(tmp_path / "bom.json")]) == 0
    assert main(["sif", "add", "--type", "partition", str(several), str(tmp_path / "bom.json")]) == 0
    assert capfd.readouterr().out == "added object 8\nadded object 9\nadded object 10\n"
    found = contents(several)
    assert found[8][:3] == (DataType.SBOM, "bom.json", 1)
    assert found[8][5] == Sbom(SbomFormat.SPDX_JSON)
    assert found[9][:4] == (DataType.GENERIC, "n", None, 1)
    assert found[10][5].kind is PartitionKind.DATA
    assert main(["sif", "dump", "9", str(several)]) == 0
    assert capfd.readouterr().out == '{"spdxVersion": "SPDX-2.3"}'
    assert main(["sif", "del", "8", str(several)]) == 0
    assert main(["sif", "header", str(several)]) == 0
    assert '"architecture": "arm64"' in capfd.readouterr().out
    assert main(["sif", "list", str(several)]) == 0
    table = capfd.readouterr().out
    assert "sbom" not in table
    for words in (["sif", str(several)], ["sif", "list", "--json", str(several)], ["sif", "--json", str(several)]):
        assert main(words) == 0
        assert ("several" in capfd.readouterr().out) == ("--json" in words)
    for line, message in {
        ("del", "8", str(several)): "has no object 8",
        ("del", "3", str(several)): "object 5 is linked to object 3",
        ("dump", "8", str(several)): "has no object 8",
        ("add", "--type", "sbom", str(several), str(several)): "not a software bill of materials",
    }.items():
        assert main(["sif", *line]) == 1
        assert message in capfd.readouterr().err
    assert contents(several).keys() == {1, 2, 3, 4, 5, 6, 7, 9, 10}


# --- build_sif


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "root fs 'quoted'"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "tool").write_text("#!/bin/sh\n")
    (root / "bin" / "sh").symlink_to("tool")
    (root / "var" / "cache").mkdir(parents=True)
    (root / "var" / "cache" / "big").write_bytes(bytes(1000))
    (root / ".singularity.d").mkdir()
    (root / ".singularity.d" / "runscript").write_text("#!/bin/sh\necho the image's own\n")
    return root


def listing(path: Path) -> dict[str, tuple[str, str]]:
    """name -> (mode, size or target) of the files in the primary partition, as unsquashfs reads them at its offset."""
    with SifImage.open(path) as image:
        primary = image.primary_partition
        assert primary is not None
    report = subprocess.run(
        ["unsquashfs", "-lln", "-o", str(primary.offset), "-d", "R", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for line in report.splitlines():
        if " R" in line:
            head, _, name = line.partition(" R")
            mode, owner, *_ = head.split()
            found[name] = (mode, owner)
    return found


def content(path: Path, name: str) -> str:
    with SifImage.open(path) as image:
        primary = image.primary_partition
        assert primary is not None
    command = ["unsquashfs", "-o", str(primary.offset), "-cat", str(path), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def tree(root: Path) -> list[tuple[str, int, int]]:
    return [(str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in sorted([root, *root.rglob("*")])]


@needs_mksquashfs
@needs_unsquashfs
def test_build(tmp_path: Path, rootfs: Path) -> None:
    before, path = tree(rootfs), tmp_path / "a.sif"
    build_sif(
        path,
        rootfs,
        oci_config={"Cmd": ["/bin/sh"]},
        labels={"a": "b"},
        definition="Bootstrap: scratch\n",
        env={"A": "1"},
        exclude=["/var/cache/*"],
        processors=1,
        mode=0o640,
    )
    assert tree(rootfs) == before
    assert leftovers(tmp_path) == ["a.sif", rootfs.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with SifImage.open(path) as image:
        primary = image.primary_partition
        assert primary is not None
        assert primary.metadata == Partition(Filesystem.SQUASHFS, PartitionKind.PRIMARY_SYSTEM, Architecture.host())
        assert (primary.group, primary.offset % 4096, primary.size % 4096) == (1, 0, 0)
        assert image.read(primary, limit=1 << 30)[:4] == b"hsqs"
        assert image.header.launch_script == "#!/usr/bin/env run-singularity\n"
        assert (image.oci_config_json, image.labels, image.definition, image.env) == (
            {"Cmd": ["/bin/sh"]},
            {"a": "b"},
            "Bootstrap: scratch\n",
            {"A": "1"},
        )
    files = listing(path)
    assert "/bin/tool" in files
    assert "/var/cache" in files
    assert "/var/cache/big" not in files
    assert "/.singularity.d/actions" not in files


@needs_mksquashfs
@needs_unsquashfs
def test_build_with_the_layout(tmp_path: Path, rootfs: Path) -> None:
    before, path = tree(rootfs), tmp_path / "dir with spaces" / "a.sif"
    path.parent.mkdir()
    build_sif(path, rootfs, singularity_layout=True, labels={"x": "y"}, definition="From: x\n", processors=1)
    assert tree(rootfs) == before
    files = listing(path)
    for name in ("actions/run", "actions/exec", "actions/shell", "env/10-docker2singularity.sh"):
        assert files[f"/.singularity.d/{name}"] == ("-rwxr-xr-x", "0/0")
    assert files["/proc"][0] == "drwxr-xr-x"
    assert files["/tmp"][0] == "drwxrwxrwt"
    assert content(path, ".singularity.d/runscript") == "#!/bin/sh\necho the image's own\n"
    assert content(path, ".singularity.d/labels.json") == '{\n  "x": "y"\n}\n'
    assert content(path, ".singularity.d/Singularity") == "From: x\n"
    run = next(entry for entry in layout_entries() if entry.path.endswith("/run"))
    assert content(path, run.path).encode() == run.content


@needs_mksquashfs
@pytest.mark.parametrize("epoch", [None, "1000000000"])
def test_reproducible_builds(epoch: str | None, tmp_path: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if epoch is not None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    copies: list[bytes] = []
    for name in ("first", "second"):
        copy = tmp_path / name
        shutil.copytree(rootfs, copy, symlinks=True)
        os.utime(copy / "bin" / "tool", (1500000000 + len(copies), 1500000000 + len(copies)))
        path = tmp_path / f"{name}.sif"
        build_sif(path, copy, deterministic=epoch is None, singularity_layout=True, compression="xz", processors=1 + len(copies))
        copies.append(path.read_bytes())
    assert copies[0] == copies[1]
    with SifImage.open(io.BytesIO(copies[0])) as image:
        assert image.header.uuid is None
        assert image.header.created_at == image.descriptors[-1].created_at == (NO_TIME if epoch is None else int(epoch))


@needs_mksquashfs
def test_builds_differ_otherwise(tmp_path: Path, rootfs: Path) -> None:
    uuids = set()
    for name in ("a.sif", "b.sif"):
        build_sif(tmp_path / name, rootfs, arch="riscv64", all_root=True, processors=1)
        with SifImage.open(tmp_path / name) as image:
            assert image.header.architecture is Architecture.RISCV64
            uuids.add(image.header.uuid_bytes)
    assert len(uuids) == 2


def test_a_failing_mksquashfs(tmp_path: Path, rootfs: Path) -> None:
    tool = tmp_path / "broken-mksquashfs"
    tool.write_text('#!/bin/sh\necho "args: $*"\necho "no space left" >&2\nexit 3\n')
    tool.chmod(0o755)
    path = tmp_path / "a.sif"
    path.write_bytes(b"before")
    with pytest.raises(ProcessError, match="status 3") as caught:
        build_sif(path, rootfs, mksquashfs=tool, exclude=["-odd"], overwrite=True)
    assert "no space left" in str(caught.value)
    assert "-root-mode 755" in str(caught.value)
    with pytest.raises(UnsupportedError, match="squashfs-tools"):
        build_sif(path, rootfs, mksquashfs=tmp_path / "absent-mksquashfs", overwrite=True)
    assert path.read_bytes() == b"before"
    assert leftovers(tmp_path) == ["a.sif", "broken-mksquashfs", rootfs.name]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"Cmd": "id"}, "Cmd: 'id' is not a list"),
        ({"cmd": ["id"]}, "cmd: unknown key; the key of image configurations is 'Cmd'"),
        ({"ENV": []}, "ENV: unknown key; the key of image configurations is 'Env'"),
        ({"Env": ["A=b", "=c"]}, "Env[1]: '=c' is not NAME=value"),
        ({"Env": ["A"]}, "Env[0]: 'A' is not NAME=value"),
        ({"Cmd": ["a\0"]}, "Cmd[0]: 'a\\x00' has a NUL character"),
        ({"User": 0}, "User: 0 is not a string"),
        ({"Volumes": ["/a"]}, "Volumes: ['/a'] is not an object"),
        ({"Labels": {"a": 1}}, "Labels.a: 1 is not a string"),
        ({"architecture": "amd64", "config": {"Cmd": ["id"]}}, "pass the object under its key 'config'"),
    ],
    ids=str,
)
def test_a_wrong_oci_config_is_not_stored(config: dict[str, JsonValue], message: str) -> None:
    with pytest.raises(SifError) as caught:
        SifBuilder().add_oci_config(config)
    assert message in str(caught.value)


def test_labels_that_cannot_be_read_are_not_stored() -> None:
    labels: Any = {"a": 1}
    with pytest.raises(SifError, match="labels: a: 1 is not a string"):
        SifBuilder().add_labels(labels)


def test_a_key_that_is_not_known_is_stored() -> None:
    SifBuilder().add_oci_config({"Cmd": ["id"], "org.example": 1})


def test_an_existing_image_is_refused_before_the_work(tmp_path: Path, rootfs: Path) -> None:
    path = tmp_path / "a.sif"
    path.write_bytes(b"before")
    with pytest.raises(FileExistsError, match=r"pass overwrite=True to replace it.*a\.sif"):
        build_sif(path, rootfs, mksquashfs=tmp_path / "absent-mksquashfs")
    assert path.read_bytes() == b"before"


@needs_mksquashfs
def test_overwriting(tmp_path: Path, rootfs: Path) -> None:
    path = tmp_path / "a.sif"
    path.write_bytes(b"before")
    build_sif(path, rootfs, processors=1, overwrite=True)
    with SifImage.open(path) as image:
        assert image.primary_partition is not None
    assert leftovers(tmp_path) == ["a.sif", rootfs.name]


def test_bad_build_arguments(tmp_path: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.sif"
    with pytest.raises(FileNotFoundError):
        build_sif(path, tmp_path / "absent")
    with pytest.raises(NotADirectoryError):
        build_sif(path, rootfs / "bin" / "tool")
    with pytest.raises(SifError, match=r"cannot be written into .* the directory that it contains"):
        build_sif(rootfs / "bin" / "a.sif", rootfs)
    with pytest.raises(ValueError, match=r"exclude\[0\] is '/'"):
        build_sif(path, rootfs, exclude=["/"])
    with pytest.raises(ValueError, match="vax"):
        build_sif(path, rootfs, arch="vax")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(SifError, match="SOURCE_DATE_EPOCH"):
        build_sif(path, rootfs)
    assert leftovers(tmp_path) == [rootfs.name]


@needs_mksquashfs
def test_a_neighbour_with_the_same_prefix_is_not_inside(tmp_path: Path, rootfs: Path) -> None:
    neighbour = Path(f"{rootfs}-images")
    neighbour.mkdir()
    build_sif(neighbour / "a.sif", rootfs, processors=1)
    assert leftovers(neighbour) == ["a.sif"]


# --- the /.singularity.d convention


def install(entries: tuple[LayoutEntry, ...], root: Path) -> None:
    """Put the layout below ``root``, with its own absolute paths made to point there."""
    for entry in entries:
        path = root / entry.path
        if entry.target:
            path.symlink_to(entry.target)
            continue
        if entry.content is None:
            path.mkdir(parents=True)
        else:
            path.write_bytes(entry.content.replace(b"/.singularity.d", os.fsencode(root / ".singularity.d")))
        path.chmod(entry.mode)


SHELLS = [["/bin/sh"], *(words for words in (["dash"], ["busybox", "sh"], ["bash", "--posix"]) if shutil.which(words[0]))]
ODD = ["a  b", "*", "?", "", "$HOME", "`id`", "it's", '"', "two\nlines\n", "\\", "-n", "--", "[a-z]*", "~", "#", "\t", "\udcff"]
"""Arguments that a shell would change if they were not quoted."""


def act(shell: list[str], root: Path, action: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*shell, str(root / ".singularity.d" / "actions" / action), *args]
    return subprocess.run(
        command, env={"PATH": os.environ["PATH"]} | env, capture_output=True, text=True, errors="surrogateescape",
        input="echo from a shell\n", check=False,
    )  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_actions(shell: list[str], tmp_path: Path) -> None:
    install(layout_entries(), tmp_path)
    assert act(shell, tmp_path, "run", "echo", "a b", "*").stdout == "a b *\n"
    assert act(shell, tmp_path, "run").stdout == "from a shell\n"
    assert act(shell, tmp_path, "exec", "echo", "a  b").stdout == "a  b\n"
    assert act(shell, tmp_path, "exec").returncode == 2
    assert act(shell, tmp_path, "shell", "-c", "echo $0 $1", "x", "y").stdout == "x y\n"
    for action in (["exec"], ["run"], ["start"], ["shell", "-c", 'exec "$@"', "sh"]):
        if action != ["start"]:  # without Entrypoint and Cmd there is nothing to start
            assert act(shell, tmp_path, *action, "printf", "<%s>", *ODD).stdout == "".join(f"<{word}>" for word in ODD), action
    assert act(shell, tmp_path, "run", "sh", "-c", "exit 7").returncode == 7
    (tmp_path / "own").symlink_to(shutil.which("echo") or "")
    assert act(shell, tmp_path, "shell", "a", SINGULARITY_SHELL=str(tmp_path / "own")).stdout == "a\n"
    assert act(shell, tmp_path, "shell", SINGULARITY_SHELL="/none").stdout == "from a shell\n"
    (tmp_path / ".singularity.d" / "runscript").unlink()
    assert act(shell, tmp_path, "run").returncode == 127
    assert act(shell, tmp_path, "start").returncode == 127


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_the_environment_of_a_runtime(shell: list[str], tmp_path: Path) -> None:
    """The variables with which Apptainer passes its options, and the directory where it binds libraries."""
    install(layout_entries(), tmp_path)
    libs, path = f"{tmp_path}/.singularity.d/libs", os.environ["PATH"]

    def shown(**env: str) -> str:
        return act(shell, tmp_path, "exec", "sh", "-c", 'echo "$PATH $LD_LIBRARY_PATH"', **env).stdout

    assert shown() == f"{path} {libs}\n"
    assert shown(LD_LIBRARY_PATH="/lib") == f"{path} /lib:{libs}\n"
    options = {"SING_USER_DEFINED_PREPEND_PATH": "/before", "SING_USER_DEFINED_APPEND_PATH": "/after"}
    assert shown(**options) == f"/before:{path}:/after {libs}\n"
    assert shown(SING_USER_DEFINED_PATH=f"/only:{path}", **options) == f"/only:{path} {libs}\n"


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_the_oci_config_in_the_layout(shell: list[str], tmp_path: Path) -> None:
    hostile = 'it\'s $(touch /tmp/never) `id`\n"quoted"'
    config = {
        "Entrypoint": ["printf", "<%s>"],
        "Cmd": ["default", hostile],
        "Env": [f"TOLD={hostile}", "KEPT=image", "EMPTY=", f"PATH=/image/bin:{os.environ['PATH']}", "not a name=x", "a;b=x"],
    }
    install(layout_entries(config), tmp_path)  # type: ignore[arg-type]
    assert act(shell, tmp_path, "run").stdout == f"<default><{hostile}>"
    assert act(shell, tmp_path, "run", "other").stdout == "<other>"
    shown = act(shell, tmp_path, "exec", "sh", "-c", 'printf "%s|%s|%s|%s" "$TOLD" "$KEPT" "${EMPTY-unset}" "$PATH"', KEPT="caller")
    assert shown.stdout == f"{hostile}|caller||/image/bin:{os.environ['PATH']}"
    assert shown.stderr == ""


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize("action", ["run", "start"])
def test_odd_words_in_the_oci_config(shell: list[str], action: str, tmp_path: Path) -> None:
    shown = "".join(f"<{word}>" for word in ODD)
    show: list[JsonValue] = ["printf", "<%s>"]
    words: list[JsonValue] = [*ODD]
    configs: list[dict[str, JsonValue]] = [
        {"Entrypoint": [*show, *words]},
        {"Entrypoint": show, "Cmd": words},
        {"Cmd": [*show, *words]},
    ]
    for number, config in enumerate(configs):
        root = tmp_path / f"root{number}"
        root.mkdir()
        install(layout_entries(config), root)
        assert act(shell, root, action).stdout == shown
        if number < 2:  # the words replace Cmd
            assert act(shell, root, action, *ODD).stdout == (shown if number else shown + shown)
        variables: list[JsonValue] = [f"V{place}={word}" for place, word in enumerate(ODD)]
        install(layout_entries({**config, "Env": variables}), root := tmp_path / f"env{number}")
        names = " ".join(f'"$V{place}"' for place in range(len(ODD)))
        assert act(shell, root, "exec", "sh", "-c", f"printf '<%s>' {names}").stdout == shown


def test_only_an_entrypoint(tmp_path: Path) -> None:
    install(layout_entries({"Entrypoint": ["printf", "%s.", "-"]}), tmp_path)
    assert act(["/bin/sh"], tmp_path, "run", "a").stdout == "-.a."
    assert act(["/bin/sh"], tmp_path, "run").stdout == "-."
    with pytest.raises(SifError, match="Entrypoint"):
        layout_entries({"Entrypoint": "sh"})


@needs_mksquashfs
@needs_unsquashfs
def test_what_the_root_has_is_kept(tmp_path: Path, rootfs: Path) -> None:
    (rootfs / "tmp").symlink_to("/nowhere")
    (rootfs / ".singularity.d" / "env").mkdir(mode=0o700)
    build_sif(tmp_path / "a.sif", rootfs, singularity_layout=True)
    files = listing(tmp_path / "a.sif")
    assert files["/tmp -> /nowhere"][0] == "lrwxrwxrwx"
    assert files["/.singularity.d/env"][0] == "drwx------"
    assert files["/singularity -> .singularity.d/runscript"][0] == "lrwxrwxrwx"
    assert "/.singularity.d/actions/run" in files


def test_a_root_where_the_layout_cannot_go(tmp_path: Path, rootfs: Path) -> None:
    shutil.rmtree(rootfs / ".singularity.d")
    (rootfs / ".singularity.d").symlink_to("/etc")
    with pytest.raises(SifError, match=r"/\.singularity\.d in the image is not a directory"):
        build_sif(tmp_path / "a.sif", rootfs, singularity_layout=True)
    assert leftovers(tmp_path) == [rootfs.name]


def test_signature_metadata_is_padded_on_reading(tmp_path: Path) -> None:
    builder = SifBuilder()
    builder.add_generic(b"x", name="x")
    builder.add_signature(b"s", linked_object=1)
    builder.write(tmp_path / "a.sif")
    with SifImage.open(tmp_path / "a.sif") as image:
        assert image.by_id(2).metadata == Signature(HashKind.SHA256, bytes(256))
