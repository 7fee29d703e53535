"""What goes to other processes by pickle, and what refuses to: every public class of the package and of its asyncio twin."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
import ociruntime.aio as aio
import ociruntime.image.sif as sif
from ociruntime.files import Unpicklable
from ociruntime.store import Entry

COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda made, number=number: pickle.loads(pickle.dumps(made, number)) for number in range(pickle.HIGHEST_PROTOCOL + 1)),
]
copies = pytest.mark.parametrize("copied", COPIES)
BOUND = {
    oci.Attachment, oci.ContainerFiles, oci.Process, oci.Sandbox, oci.SandboxPool, oci.Snapshot, oci.Terminal,
    aio.Attachment, aio.ContainerFiles, aio.Process, aio.Reader, aio.Sandbox, aio.SandboxPool, aio.Writer, sif.ObjectReader,
}  # fmt: skip
"""The public classes that hold descriptors and neither find the same thing again nor are plain values."""


@pytest.fixture
def image_path(tmp_path: Path) -> Path:
    path = tmp_path / "image.sif"
    builder = sif.SifBuilder()
    builder.add(sif.DataType.GENERIC, b"content", name="object")
    builder.write(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> oci.Bundle:
    (tmp_path / "bundle/rootfs").mkdir(parents=True)
    return oci.Bundle.from_dir(tmp_path / "bundle")


# ---- images ----


@copies
def test_an_image_is_opened_again(image_path: Path, copied: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image_path.parent)
    with oci.SifImage.open(image_path.name) as image:
        monkeypatch.chdir("/")
        with copied(image) as other:
            assert other.fileno() != image.fileno()
            assert not os.get_inheritable(other.fileno())
            assert (other.header, other.descriptors) == (image.header, image.descriptors)
            image.close()
            assert other.read(other.descriptors[0]) == b"content"


def test_an_image_and_its_descriptor_together(image_path: Path) -> None:
    with oci.SifImage.open(image_path) as image:
        other, item = pickle.loads(pickle.dumps((image, image.descriptors[0])))
        with other:
            assert other.read(item) == b"content"


def test_an_unpickled_image_never_touches_a_descriptor_of_the_same_number(image_path: Path) -> None:
    with oci.SifImage.open(image_path) as image:
        number, pickled = image.fileno(), pickle.dumps(image)
    stranger = os.memfd_create("stranger")
    if stranger != number:
        os.dup2(stranger, number)
        os.close(stranger)
    try:
        os.write(number, b"stranger")
        with pickle.loads(pickled) as other:
            assert other.fileno() != number
            assert other.read(other.descriptors[0]) == b"content"
        assert os.pread(number, 8, 0) == b"stranger"  # and it is still open
    finally:
        os.close(number)


@pytest.mark.parametrize("how", ["other file", "other size", "other time"])
def test_a_changed_file_is_refused(image_path: Path, how: str) -> None:
    with oci.SifImage.open(image_path) as image:
        pickled = pickle.dumps(image)
    before = image_path.stat()
    if how == "other file":
        content = image_path.read_bytes()
        image_path.rename(image_path.with_suffix(".old"))  # which keeps the inode from being used again
        image_path.write_bytes(content)
        os.utime(image_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif how == "other size":
        with image_path.open("ab") as file:
            file.write(b"more")
        os.utime(image_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(image_path, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(oci.SifError, match=r"image\.sif: file: .*replaced or changed"):
        pickle.loads(pickled)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_file_that_is_gone(image_path: Path) -> None:
    with oci.SifImage.open(image_path) as image:
        pickled = pickle.dumps(image)
    image_path.unlink()
    with pytest.raises(FileNotFoundError, match=str(image_path)):
        pickle.loads(pickled)


@copies
def test_images_without_a_path_are_refused(image_path: Path, copied: Callable[[Any], Any]) -> None:
    with image_path.open("rb") as file:
        for target in (file, file.fileno()):
            with oci.SifImage.open(target) as image, pytest.raises(TypeError, match=r"not opened by a path.*SifImage\.open"):
                copied(image)
    with oci.SifImage.open(image_path) as image:
        pass
    with pytest.raises(TypeError, match=r"image\.sif.*closed"):
        copied(image)


# ---- bundles ----


@copies
def test_a_bundle_is_its_path(bundle: oci.Bundle, copied: Callable[[Any], Any]) -> None:
    other = copied(bundle)
    assert (type(other), other.path, other.spec) == (oci.Bundle, bundle.path, bundle.spec)
    (bundle.path / "config.json").rename(bundle.path / "other.json")
    with pytest.raises(oci.BundleError, match="not a bundle"):
        copied(bundle)


@copies
def test_what_is_changed_in_memory_is_kept(bundle: oci.Bundle, copied: Callable[[Any], Any]) -> None:
    file = bundle.path.parent / "other.json"
    file.write_bytes(bundle.config_bytes.replace(b'"ociruntime"', b'"elsewhere"'))
    loaded = oci.Bundle.load(bundle.path, config=file)
    assert loaded.spec.hostname == "elsewhere"
    for changed in (bundle.with_args(["true"]), bundle.with_process(cwd="/tmp").with_args(["id"]), loaded):
        assert changed.spec != bundle.spec
        once = copied(changed)
        for other in (once, copied(once)):
            assert (other.path, other.spec) == (changed.path, changed.spec)
    assert copied(bundle).spec == bundle.spec
    changed = bundle.with_args(["true"])
    changed.spec = changed.spec.evolve(hostname="saved")  # now it is the one in config.json
    assert copied(changed).spec == oci.Bundle.load(bundle.path).spec


# ---- containers ----


@copies
@pytest.mark.parametrize("cls", [oci.Container, aio.Container])
def test_a_container_is_its_id_and_state_directory(
    tmp_path: Path, cls: Any, copied: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state/some").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    container = cls.load("some", state_root="state")
    monkeypatch.chdir("/")
    other = copied(container)
    assert type(other) is cls
    assert (other.id, other.status) == ("some", oci.Status.CREATING)
    with pytest.raises(oci.StateError, match="not started by this object"):
        other.fileno()
    (tmp_path / "state/some").rmdir()
    with pytest.raises(oci.ContainerNotFound):
        _ = copied(container).state  # a handle, as the one that it was made of


# ---- what is bound to its process ----


def test_every_public_class_has_decided() -> None:
    """A class with descriptors refuses; a new public class has to be put where it belongs."""
    handles = {oci.Bundle, oci.Container, oci.Image, oci.SifImage, aio.Container, sif.SifBuilder}
    for module in (oci, aio, sif):
        for name in module.__all__:
            cls = getattr(module, name)
            if not isinstance(cls, type) or issubclass(cls, BaseException) or cls in handles:
                continue
            if cls in BOUND:
                assert issubclass(cls, Unpicklable), name
                assert cls._instead, name
            else:  # a plain value: a tuple, an enumeration, or a class whose fields are all that it has
                assert issubclass(cls, tuple | int | str) or hasattr(cls, "__attrs_attrs__") or cls is oci.RuntimeSpec, name
            assert cls.__reduce_ex__ is not object.__reduce_ex__ or not hasattr(cls, "fileno"), name


@pytest.fixture
def bound() -> Iterator[list[object]]:
    """An object of every class that refuses, as far as one can be made without a container."""
    pair, master = socket.socketpair(), os.openpty()
    with tempfile.TemporaryFile() as file:
        terminal = oci.Terminal(master[0])
        entry, pidfd = Entry("/nowhere", "some"), os.pidfd_open(os.getpid())
        attachment = oci.Attachment(entry, pair[0], record=os.dup(file.fileno()), pidfd=pidfd, terminal=False)
        container = oci.Container(entry)
        yield [terminal, attachment, container.files, aio.Container(container).files]
        attachment.close()
        terminal.close()
        pair[1].close()
        os.close(master[1])


@copies
def test_what_is_bound_to_its_process_says_so(bound: list[object], copied: Callable[[Any], Any], image_path: Path) -> None:
    with oci.SifImage.open(image_path) as image, image.reader(image.descriptors[0]) as reader:
        for entry in (*bound, reader):
            with pytest.raises(TypeError, match=f"cannot pickle or copy '{type(entry).__name__}' object: it holds .*; send "):
                copied(entry)


@copies
def test_streams_of_the_event_loop_say_so(copied: Callable[[Any], Any]) -> None:
    async def main() -> None:
        from ociruntime.aio.processes import over

        pair = socket.socketpair()
        reader, writer = await over(pair[0])
        for entry in (reader, writer, aio.Container.create("some", "/nowhere")):
            with pytest.raises(TypeError, match=f"cannot pickle or copy '{type(entry).__name__}' object"):
                copied(entry)
        writer.close()
        pair[1].close()

    asyncio.run(main())


def test_our_ends_of_pipes_say_so() -> None:
    from ociruntime.streams import PIPE, Streams

    for bufsize in (0, -1):
        streams = Streams(PIPE, PIPE, bufsize=bufsize)
        try:
            ends = [streams.file(0), streams.file(1)]
            for end in ends:
                for copied in COPIES:
                    with pytest.raises(TypeError, match="cannot pickle"):
                        copied(end)
        finally:
            streams.close()
