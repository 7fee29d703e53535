"""How the files of an image are reached: the table of strategies."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from ociruntime.engine import filesystems
from ociruntime.engine.filesystems import Programs
from ociruntime.errors import UnsupportedError
from ociruntime.host import Host
from ociruntime.rootfs import layers
from ociruntime.rootfs.layers import Strategy, choose, digest_of, layers_of
from ociruntime.rootfs.mount import ImagePart, ServedMount

ROOT = Host((6, 18), "x86_64", 0, 40, ())
USER = attrs.evolve(ROOT, euid=1000, capabilities=0)
ALL = Programs("/bin/squashfuse", "/bin/fusermount3", "/bin/unsquashfs", "/bin/fuse2fs", "/bin/erofsfuse")
NONE = Programs("", "", "")
SQUASHFS, EXT, EROFS, TAR = ({name} for name in ("squashfs", "ext", "erofs", "tar+gzip"))


def test_the_kernel_is_for_root_of_the_host() -> None:
    for programs in ALL, NONE:
        for formats in SQUASHFS, EXT, EROFS, SQUASHFS | EXT:
            assert choose(formats, ROOT, programs).strategy is Strategy.KERNEL
    assert choose(SQUASHFS, attrs.evolve(ROOT, initial=False), ALL).strategy is Strategy.FUSE


@pytest.mark.parametrize(
    ("lacking", "formats", "why"),
    [
        (ALL._replace(squashfuse=""), SQUASHFS, "no squashfuse in PATH (Debian: squashfuse)"),
        (ALL._replace(device="/dev/fuse: permission denied"), SQUASHFS, "/dev/fuse: permission denied"),
        (ALL._replace(squashfuse="", device="/dev/fuse: permission denied"), SQUASHFS,
         "no squashfuse in PATH (Debian: squashfuse), /dev/fuse: permission denied"),
    ],
)  # fmt: skip
def test_fuse_needs_all_of_its_parts(lacking: Programs, formats: set[str], why: str) -> None:
    assert choose(formats, USER, ALL) == (Strategy.FUSE, "only root mounts an image by the kernel")
    assert choose(formats, USER, lacking) == (Strategy.EXTRACTION, f"FUSE cannot be used: {why}")
    assert choose(formats, USER, ALL._replace(fusermount="", mtab=False)).strategy is Strategy.FUSE


@pytest.mark.parametrize(("formats", "program"), [(EXT, "fuse2fs"), (EROFS, "erofsfuse"), (EXT | EROFS, "erofsfuse")])
def test_other_filesystems_are_extracted_without_a_program(formats: set[str], program: str) -> None:
    assert choose(formats, USER, ALL, layers=len(formats)).strategy is Strategy.FUSE
    without = ALL._replace(**{program: "", "unsquashfs": ""})  # type: ignore[arg-type]
    reason = f"FUSE cannot be used: no {program} in PATH (Debian: {program})"
    assert choose(formats, USER, without, layers=len(formats)) == (Strategy.EXTRACTION, reason)


def test_archives_are_extracted() -> None:
    for host in ROOT, USER:
        for formats in TAR, TAR | {"tar"}, TAR | SQUASHFS:
            reason = f"layers of the format {' and '.join(sorted(formats - SQUASHFS))} cannot be mounted"
            assert choose(formats, host, ALL._replace(library=True), layers=2) == (Strategy.EXTRACTION, reason)


def test_the_strategy_that_is_asked_for() -> None:
    for strategy in Strategy.FUSE, Strategy.EXTRACTION:
        assert choose(SQUASHFS, USER, ALL, only=strategy) == (strategy, "")
    assert choose(SQUASHFS, ROOT, ALL, only=Strategy.EXTRACTION) == (Strategy.EXTRACTION, "")
    for formats, host, strategy, why in (
        (SQUASHFS, USER, Strategy.KERNEL, "only root mounts"),
        (SQUASHFS, ROOT, Strategy.FUSE, "root mounts images by the kernel"),
        (TAR, USER, Strategy.FUSE, "cannot be mounted"),
    ):
        with pytest.raises(UnsupportedError, match=f"^the strategy {strategy} cannot be used: .*{why}"):
            choose(formats, host, ALL, only=strategy)


def test_a_host_that_offers_nothing() -> None:
    with pytest.raises(UnsupportedError, match=r"no squashfuse .* no unsquashfs in PATH; install squashfuse where"):
        choose(SQUASHFS, USER, NONE)
    with pytest.raises(UnsupportedError, match="merged by the extra 'images', which is not installed"):
        choose(SQUASHFS, USER, ALL._replace(squashfuse=""), layers=2)
    for programs in NONE, ALL._replace(squashfuse=""):
        assert choose(SQUASHFS, USER, programs._replace(library=True), layers=2).strategy is Strategy.EXTRACTION


def test_what_a_record_holds_of_layers() -> None:
    assert layers_of("/b", "fuse=1").lowers == ("/b/rootfs",)
    assert layers_of("/b", "directory=%2Fa%20b").lowers == ("/a b",)
    assert layers_of("/b", "shared+kernel=2")[:4] == (("/b/layers/1", "/b/layers/0"), "/b/overlay", "shared+kernel=2", True)
    assert layers_of("/b", "fuse=3").lowers == ("/b/layers/2", "/b/layers/1", "/b/layers/0")
    extracted = layers_of("/b", "cache=/a%20b/" + "a" * 64)
    assert extracted.lowers == (f"/a b/{'a' * 64}/rootfs",)
    assert digest_of(extracted.origin) == "a" * 64
    assert digest_of("fuse=1") == ""
    assert extracted.overlay("x") == (extracted.lowers, "/b/overlay/x", False, "")
    noted = layers_of("/b", f"{extracted.origin}?extraction%2C%20because%20%3B%3F;none")
    assert (noted.lowers, noted.note, noted.upper.choice) == (extracted.lowers, "extraction, because ;?", "none")
    assert noted.overlay("x").note == noted.note
    assert digest_of(noted.origin) == "a" * 64


def test_a_record_of_what_containers_mount() -> None:
    parts = (
        ImagePart("/a,b:c d!", (1, 22, 333, 4444), 4096, 100, "squashfs"),
        ImagePart("/other", (1, 23, 333, 4444), 0, 333, "ext"),
        ImagePart("/a,b:c d!", (1, 22, 333, 4444), 8192, 200, "squashfs"),
    )
    found = layers_of("/b", f"image={layers._encode(parts)}?fuse;tmpfs")
    assert [lower.layer.source for lower in found.lowers if isinstance(lower, ServedMount)] == [
        "squashfs at 4096 of /a,b:c d!", "ext at 0 of /other", "squashfs at 8192 of /a,b:c d!",
    ]  # fmt: skip
    assert layers._decode(layers._encode(parts)) == parts
    assert (found.note, found.upper.choice) == ("fuse", "tmpfs")


def test_a_host_without_a_table_of_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """fusermount3 mounts without /etc/mtab, and cannot unmount."""
    monkeypatch.setattr(filesystems, "_DEVICE", "/dev/null")
    monkeypatch.setattr(filesystems, "MTAB", str(tmp_path / "mtab"))
    found = Programs.find()._replace(fusermount="/bin/fusermount3")
    assert found.no_mount == f"no {tmp_path}/mtab, which fusermount3 needs to unmount"
    (tmp_path / "mtab").symlink_to("/proc/self/mounts")
    found = Programs.find()._replace(fusermount="/bin/fusermount3")
    assert found.no_mount == found.device == ""
    assert found._replace(nameless=True).no_mount == f"no name of uid {os.getuid()} in /etc/passwd, which fusermount3 needs"
    assert found._replace(fusermount="").no_mount == "no fusermount3 in PATH (Debian: fuse3)"
