"""How the files of an image are reached: the table of strategies."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from ociruntime.engine import squashfs
from ociruntime.engine.squashfs import Programs
from ociruntime.errors import UnsupportedError
from ociruntime.host import Host
from ociruntime.rootfs.layers import Strategy, choose, layers_of

ROOT = Host((6, 18), "x86_64", 0, 40, ())
USER = attrs.evolve(ROOT, euid=1000, capabilities=0)
ALL = Programs("/bin/squashfuse", "/bin/fusermount3", "/bin/unsquashfs")


def test_the_kernel_is_for_root_of_the_host() -> None:
    for programs in ALL, Programs("", "", ""):
        assert choose(ROOT, programs).strategy is Strategy.KERNEL
    assert choose(attrs.evolve(ROOT, initial=False), ALL).strategy is Strategy.FUSE


def test_fuse_needs_all_of_its_parts() -> None:
    assert choose(USER, ALL).strategy is Strategy.FUSE
    for lacking, word in (
        (ALL._replace(squashfuse=""), "no squashfuse in PATH"),
        (ALL._replace(fusermount=""), "no fusermount3 in PATH"),
        (ALL._replace(device="/dev/fuse: permission denied"), "/dev/fuse: permission denied"),
    ):
        choice = choose(USER, lacking)
        assert choice.strategy is Strategy.EXTRACTION
        assert choice.reason == f"FUSE cannot be used: {word}" + (" (Debian: squashfuse)" if "squash" in word else "") + (
            " (Debian: fuse3)" if "fusermount3" in word else ""
        )


def test_a_host_that_offers_nothing() -> None:
    with pytest.raises(UnsupportedError, match=r"no squashfuse .* no fusermount3 .* no unsquashfs in PATH; install squashfuse"):
        choose(USER, Programs("", "", ""))


def test_what_a_record_holds_of_layers() -> None:
    assert layers_of("/b", "fuse").lowers == ("/b/rootfs",)
    assert layers_of("/b", "fuse=3").lowers == ("/b/layers/2", "/b/layers/1", "/b/layers/0")
    extracted = layers_of("/b", "cache=" + "a" * 64)
    assert extracted.lowers[0].endswith(f"/{'a' * 64}/rootfs")
    assert extracted.overlay("x") == (extracted.lowers, "/b/overlay/x")


def test_a_host_without_a_table_of_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """fusermount3 mounts without /etc/mtab, and cannot unmount."""
    monkeypatch.setattr(squashfs, "_DEVICE", "/dev/null")
    monkeypatch.setattr(squashfs, "MTAB", str(tmp_path / "mtab"))
    assert Programs.find().device == f"no {tmp_path}/mtab, which fusermount3 needs to unmount"
    (tmp_path / "mtab").symlink_to("/proc/self/mounts")
    assert Programs.find().device == ""
