"""`build` makes a SIF or OCI-SIF file of an image of any kind, and `build_sif` one of a root directory.

`layout_entries` returns what a root filesystem needs for ``/.singularity.d/actions/run``, the default command of a SIF without OCI
data. The scripts are POSIX shell and need only ``/bin/sh``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from itertools import zip_longest
from threading import Thread
from typing import TYPE_CHECKING, Final, Literal, get_args

import attrs

from ociruntime.arguments import check_bool, check_int, check_mapping, check_str, optional, parse_path, shown, wrong_type
from ociruntime.errors import BundleError, ImageError, ImagePathError, ProcessError, SifError, UnsupportedError, naming
from ociruntime.files import absolute_path, check_space, inheritable, read_file
from ociruntime.host import Host, start_with_subordinate_ids
from ociruntime.image import oci
from ociruntime.image.blobs import LayerFormat, check_digest
from ociruntime.image.config import OciImageConfig
from ociruntime.image.files import MAX_BYTES, MAX_FILES, FileType, ImageFile, LayerView
from ociruntime.image.layers import MAX_PATH, ArchivedUpper, Budget, UpperTree
from ociruntime.image.model import Image, ImageKind, Layer
from ociruntime.image.packing import (
    Compression,
    Files,
    LayoutEntry,
    Meter,
    Packing,
    ShownProgress,
    check_progress,
    pack,
    shown_progress,
)
from ociruntime.image.sif.format import PARTITION_ALIGNMENT, FdSource, Section
from ociruntime.image.sif.model import Architecture, DataType, OciObject, Partition, PartitionKind, Sbom, SbomFormat
from ociruntime.image.sif.reader import OCI_CONFIG_NAME, SifImage
from ociruntime.image.sif.writer import DEFAULT_LAUNCH_SCRIPT, SifBuilder, check_target
from ociruntime.interrupts import CHECK_INTERVAL, uninterruptible, waiting
from ociruntime.spec import RuntimeSpec
from ociruntime.spec.codec import MAX_DOCUMENT
from ociruntime.spec.defaults import is_whole

if TYPE_CHECKING:
    from ociruntime.image.layers import Node, Tree
    from ociruntime.image.sif.format import SeekableFile
    from ociruntime.image.sif.model import JsonObject, JsonValue

__all__ = ["build", "build_sif", "layout_entries", "sbom_format", "write_upper"]

StrPath = str | os.PathLike[str]

_MAX_PROCESSORS: Final = 1 << 16
_MAX_SBOM: Final = 256 << 20
_PIECE: Final = 1 << 20

# ---- the convention of /.singularity.d ----

_LOAD_ENVIRONMENT = """\
for ociruntime_env in /.singularity.d/env/*.sh; do
    if [ -f "$ociruntime_env" ]; then
        . "$ociruntime_env"
    fi
done
unset ociruntime_env
"""

_RUN = f"""\
#!/bin/sh
# Sets up the image's environment and runs its runscript.
{_LOAD_ENVIRONMENT}
if [ -x /.singularity.d/runscript ]; then
    exec /.singularity.d/runscript "$@"
fi
echo "this image has nothing to run: give a command, as in 'exec'" >&2
exit 127
"""

_START = f"""\
#!/bin/sh
# Sets up the image's environment and runs its startscript.
kill -CONT 1 2>/dev/null # the first process of an instance of Singularity waits for this
{_LOAD_ENVIRONMENT}
if [ -x /.singularity.d/startscript ]; then
    exec /.singularity.d/startscript "$@"
fi
echo "this image has nothing to start" >&2
exit 127
"""

_TEST = f"""\
#!/bin/sh
# Sets up the image's environment and runs its tests.
{_LOAD_ENVIRONMENT}
if [ -x /.singularity.d/test ]; then
    exec /.singularity.d/test "$@"
fi
echo "this image has no tests" >&2
"""

_EXEC = f"""\
#!/bin/sh
# Sets up the image's environment and runs the given command.
{_LOAD_ENVIRONMENT}
if [ $# -eq 0 ]; then
    echo "usage: /.singularity.d/actions/exec COMMAND [ARGUMENT...]" >&2
    exit 2
fi
exec "$@"
"""

_SHELL = f"""\
#!/bin/sh
# Sets up the image's environment and starts a shell: SINGULARITY_SHELL, bash or sh.
{_LOAD_ENVIRONMENT}
if [ -n "$SINGULARITY_SHELL" ] && [ -x "$SINGULARITY_SHELL" ]; then
    exec "$SINGULARITY_SHELL" "$@"
fi
if [ -x /bin/bash ]; then
    exec /bin/bash --norc "$@"
fi
exec /bin/sh "$@"
"""

_LIBRARIES = """\
# Adds the libraries that a runtime binds into the image, those of a GPU for example.
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
"""

_PATHS = """\
# Changes PATH as the options of a runtime say.
if [ -n "$SING_USER_DEFINED_PREPEND_PATH" ]; then
    export PATH="$SING_USER_DEFINED_PREPEND_PATH:$PATH"
fi
if [ -n "$SING_USER_DEFINED_APPEND_PATH" ]; then
    export PATH="$PATH:$SING_USER_DEFINED_APPEND_PATH"
fi
if [ -n "$SING_USER_DEFINED_PATH" ]; then
    export PATH="$SING_USER_DEFINED_PATH"
fi
unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH
"""


def layout_entries(
    oci_config: Mapping[str, JsonValue] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    definition: str | None = None,
) -> tuple[LayoutEntry, ...]:
    """Return the directories and files of the convention, and the directories that a runtime uses as mount points.

    ``actions/run`` runs ``runscript``. That runs its arguments, or ``/bin/sh`` without arguments. If ``oci_config`` has an
    Entrypoint or a Cmd, it runs Entrypoint with the arguments, or with Cmd without arguments, and ``startscript`` does the same.
    ``env/10-docker2singularity.sh`` sets PATH, and the other variables of Env unless they are set. Names that the shell cannot
    assign are left to runtimes that read ``oci-config.json``. Apptainer sets the variables of ``--env`` after
    ``env/99-base.sh``, and binds libraries into ``libs``.

    Raises:
        SifError: ``oci_config`` has a value of a wrong type.
    """
    config = OciImageConfig.from_json(dict(oci_config or {}))
    entries = [
        LayoutEntry("dev", 0o755),
        LayoutEntry("proc", 0o755),
        LayoutEntry("sys", 0o755),
        LayoutEntry("tmp", 0o1777),
        LayoutEntry(".singularity.d", 0o755),
        LayoutEntry(".singularity.d/actions", 0o755),
        LayoutEntry(".singularity.d/env", 0o755),
        LayoutEntry(".singularity.d/libs", 0o755),
        LayoutEntry(".singularity.d/actions/exec", 0o755, _EXEC.encode()),
        LayoutEntry(".singularity.d/actions/run", 0o755, _RUN.encode()),
        LayoutEntry(".singularity.d/actions/shell", 0o755, _SHELL.encode()),
        LayoutEntry(".singularity.d/actions/start", 0o755, _START.encode()),
        LayoutEntry(".singularity.d/actions/test", 0o755, _TEST.encode()),
        LayoutEntry(".singularity.d/env/10-docker2singularity.sh", 0o755, _env_script(config.env)),
        LayoutEntry(".singularity.d/env/90-environment.sh", 0o755, b"# Further settings of the environment.\n"),
        LayoutEntry(".singularity.d/env/99-base.sh", 0o755, _LIBRARIES.encode()),
        LayoutEntry(".singularity.d/env/99-runtimevars.sh", 0o755, _PATHS.encode()),
        LayoutEntry(".singularity.d/runscript", 0o755, _runscript(config)),
        LayoutEntry("environment", 0o777, target=".singularity.d/env/90-environment.sh"),
        LayoutEntry("singularity", 0o777, target=".singularity.d/runscript"),
    ]
    actions = ("exec", "run", "shell", "test")
    entries += [LayoutEntry(f".{action}", 0o777, target=f".singularity.d/actions/{action}") for action in actions]
    if config.entrypoint or config.cmd:
        entries.append(LayoutEntry(".singularity.d/startscript", 0o755, _runscript(config)))
    if labels is not None:
        entries.append(LayoutEntry(".singularity.d/labels.json", 0o644, json.dumps(dict(labels), indent=2).encode() + b"\n"))
    if definition is not None:
        entries.append(LayoutEntry(".singularity.d/Singularity", 0o644, definition.encode("utf-8", "surrogateescape")))
    return tuple(entries)


def _runscript(config: OciImageConfig) -> bytes:
    entrypoint, cmd = shlex.join(config.entrypoint), shlex.join(config.cmd or ("/bin/sh",))
    if entrypoint and not config.cmd:
        body = f'exec {entrypoint} "$@"\n'
    else:
        body = f'if [ $# -eq 0 ]; then\n    set -- {cmd}\nfi\nexec {entrypoint + " " if entrypoint else ""}"$@"\n'
    return ("#!/bin/sh\n" + body).encode("utf-8", "surrogateescape")


def _env_script(env: Iterable[str]) -> bytes:
    lines = ["# The environment of the OCI image that was converted.\n"]
    for entry in env:
        name, _, value = entry.partition("=")
        if not (name.isascii() and name.isidentifier()):
            continue
        assignment = f"export {name}={shlex.quote(value)}\n"
        lines.append(assignment if name == "PATH" else f'[ -n "${{{name}+set}}" ] || {assignment}')
    return "".join(lines).encode("utf-8", "surrogateescape")


# ---- building ----


@naming(lambda path, *_, **_options: f"cannot build {path}")
@uninterruptible()
def build_sif(
    path: str | os.PathLike[str],
    rootfs_dir: str | os.PathLike[str],
    *,
    oci_config: Mapping[str, JsonValue] | None = None,
    labels: Mapping[str, str] | None = None,
    definition: str | None = None,
    env: Mapping[str, str] | None = None,
    launch_script: str = DEFAULT_LAUNCH_SCRIPT,
    arch: Architecture | str | None = None,
    compression: Compression = "gzip",
    mksquashfs: StrPath | None = None,
    singularity_layout: bool = False,
    exclude: Iterable[str] = (),
    all_root: bool | None = None,
    processors: int | None = None,
    deterministic: bool = False,
    timestamp: int | None = None,
    mode: int | None = None,
    overwrite: bool = False,
) -> None:
    """Build a SIF file whose primary system partition is a squashfs filesystem with the content of ``rootfs_dir``.

    The directory is only read. After an error nothing is left behind.
    An interruption, KeyboardInterrupt for example, leaves nothing behind either, or arrives when the new file is in place. Sockets
    and access control lists are left out. `build` takes images of all kinds.

    Args:
        path: The file to write.
        rootfs_dir: The directory with the root filesystem.
        oci_config: The ``config`` object of an OCI image configuration.
        labels: Labels, stored as a labels object.
        definition: The text of a definition file.
        env: Environment variables, stored as an environment object.
        launch_script: First line of the file.
        arch: An `Architecture` or a name such as ``arm64``. Default: that of this machine.
        compression: Compression of the squashfs filesystem.
        mksquashfs: This program, by name or path, at least version 4.5. Default: ``tar2sqfs``, or ``mksquashfs`` if it is not
            installed.
        singularity_layout: Add the missing parts of ``/.singularity.d`` (see `layout_entries`), so that the image also
            runs without OCI data.
        exclude: Shell patterns of paths to leave out, relative to ``rootfs_dir``. Each of their components matches one of a path.
        all_root: Whether root owns every file in the image. Default: yes, unless the caller is root.
        processors: Number of processors for compression. Default: all.
        deterministic: Make the same bytes from the same input: the UUID is zero, and every time is ``timestamp`` or none. File
            times after ``timestamp`` (1970 by default) become ``timestamp``. The environment variable ``SOURCE_DATE_EPOCH``
            sets both arguments; an explicit ``timestamp`` takes precedence.
        timestamp: Unix seconds.
        mode: Permissions of the file. Default: executable, as far as the umask allows.
        overwrite: Replace an existing file when the new one is complete.

    Raises:
        FileExistsError: ``path`` exists, and ``overwrite`` is false.
        SifError: an argument cannot be stored.
        ValueError: the architecture is unknown.
        BundleError, UnsupportedError: ``rootfs_dir`` is a bundle or an image, not a root filesystem; or no program that makes a
            squashfs is installed.
        ProcessError: the program failed; the message has its output.
        OSError: a file cannot be read or written.
    """
    path, rootfs_dir = parse_path("path", path), parse_path("rootfs_dir", rootfs_dir)
    check_bool("singularity_layout", singularity_layout)
    optional(check_mapping, "oci_config", oci_config)
    optional(check_str, "definition", definition)
    packing = _parse_packing(compression, mksquashfs, exclude, processors)
    optional(check_bool, "all_root", all_root)
    with _open_root_filesystem(rootfs_dir) as image:
        target = _parse_target(path, image, overwrite=overwrite)
        builder, latest = _builder(deterministic, timestamp, launch_script)
        if definition is not None:
            builder.add_definition(definition)
        if oci_config is not None:
            builder.add_oci_config(oci_config)
        if labels is not None:
            builder.add_labels(labels)
        if env is not None:
            builder.add_env(env)
        packing = attrs.evolve(packing, latest=latest, all_root=_all_root(image) if all_root is None else all_root)
        entries = layout_entries(oci_config, labels=labels, definition=definition) if singularity_layout else ()
        work = _Conversion(image=image, target=target, builder=builder, packing=packing, mode=mode, overwrite=overwrite)
        work.write_root(entries, arch)


@naming(lambda source, target, **_: f"cannot build {target}")
@uninterruptible()
def build(
    source: StrPath | Image,
    target: StrPath,
    *,
    upper: StrPath | None = None,
    format: Literal["sif", "oci-sif"] = "sif",
    reference: str | None = None,
    platform: str | None = None,
    config: Mapping[str, JsonValue] | None = None,
    labels: Mapping[str, str] | None = None,
    definition: str | None = None,
    sboms: Iterable[StrPath] = (),
    arch: Architecture | str | None = None,
    compression: Compression = "gzip",
    mksquashfs: StrPath | None = None,
    exclude: Iterable[str] = (),
    all_root: bool | None = None,
    processors: int | None = None,
    deterministic: bool = False,
    timestamp: int | None = None,
    mode: int | None = None,
    overwrite: bool = False,
    progress: ShownProgress = None,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_BYTES,
) -> tuple[ImageFile, ...]:
    """Make a SIF file of an image of any kind: all layers become one squashfs, the primary system partition, or one squashfs each.

    Whiteouts are applied. Owners, modes, times, hard links, devices and extended attributes are those that the layers record,
    for a user without privileges too: nothing is unpacked. Of the extended attributes, those of SELinux and overlays and access
    control lists are left out. The files of ``/.singularity.d`` that the image lacks are added (see `layout_entries`), so that
    Apptainer runs it too. The configuration of the image becomes ``oci-config.json``. From a SIF file, definition file, labels,
    SBOMs, JSON objects and data partitions are taken over; signatures are not, as they would not be valid.

    The source is only read. The target appears when it is complete. After an error, an interruption or SIGKILL nothing is left
    behind, except that a filesystem without unnamed files (NFS, for example) may keep a hidden one after SIGKILL.

    Args:
        source: the image, an open one or any that `Image.open` takes, also a directory. Or a bundle: its root filesystem, with the
            command, environment, user and working directory of its config.json.
        target: the file to write.
        upper: the upper directory of an overlay over the image, or a directory with ``upper`` and ``work``; its changes become a
            part of the new image.
        format: ``sif``, or ``oci-sif`` for an OCI-SIF file, as SingularityCE 4 writes it: each layer is a squashfs of its own, with
            whiteouts in the form of overlays. Nothing is added to its root filesystem; labels are in the configuration only.
        reference: see `Image.open`; not for an open image.
        platform: see `Image.open`; not for an open image.
        config: the ``config`` object of an OCI image configuration. Default: that of the image.
        labels: labels beside those of the image, which they replace.
        definition: the text of a definition file. Default: that of the image.
        sboms: files with software bills of materials to store (CycloneDX, SPDX, Syft or GitHub). Their content says the format.
        arch: an `Architecture` or a name such as ``arm64``. Default: that of the image, or of this machine for an image that does
            not say it.
        compression: compression of the squashfs.
        mksquashfs: this program, by name or path, at least version 4.5. Default: ``tar2sqfs``, or ``mksquashfs`` if it is not
            installed.
        exclude: shell patterns of paths to leave out, relative to the root. Each of their components matches one of a path.
        all_root: whether root owns every file in the image. Default: only if the source is a directory and the caller is not root.
        processors: number of processors for compression. Default: all.
        deterministic: see `build_sif`.
        timestamp: see `build_sif`.
        mode: permissions of the file. Default: executable, as far as the umask allows.
        overwrite: replace an existing file when the new one is complete.
        progress: True for a progress bar, on stderr if that is a terminal, or in a notebook; or a function, which is called with
            the bytes of files that are done, and with their number in all. What it raises ends the call.
        max_files: see `Image.files`.
        max_bytes: see `Image.extract`.

    Returns:
        The sockets in a directory, which are left out.

    Raises:
        FileExistsError: ``target`` exists, and ``overwrite`` is false.
        ImageError: the image is damaged or exceeds a limit, or a file of ``sboms`` is not an SBOM.
        SifError: an argument, or the image's configuration, cannot be stored.
        BundleError: ``source`` is a bundle whose root filesystem is only mounted by its containers.
        UnsupportedError: the image has a part that cannot be read: an encrypted partition, a filesystem with an unusual feature; or
            a program or Python module is not installed. The message names it.
        ProcessError: the program that makes the squashfs failed; the message has its output.
        ValueError: an argument is not valid.
        OSError: a file cannot be read or written.
    """
    target = parse_path("target", target)
    optional(check_str, "arch", arch)
    optional(check_mapping, "config", config)
    optional(check_mapping, "labels", labels)
    optional(check_str, "definition", definition)
    optional(check_bool, "all_root", all_root)
    if format not in ("sif", "oci-sif"):
        raise ValueError(f"format is {shown(format)}: sif or oci-sif is needed")
    packing = _parse_packing(compression, mksquashfs, exclude, processors)
    check_progress(progress)
    bills = _parse_sboms(sboms)
    with ExitStack() as stack:
        image, own_config = _open_source(stack, source, reference, platform)
        target = _parse_target(target, image, overwrite=overwrite)
        _check_parts(image)
        changes: Tree | None = None
        left_out: tuple[ImageFile, ...] = ()
        if upper is not None:
            changes, left_out = _open_upper(stack, parse_path("upper", upper), target, (max_files, max_bytes))
        builder, latest = _builder(deterministic, timestamp, DEFAULT_LAUNCH_SCRIPT)
        all_labels = {**image.labels, **(labels or {})}
        definition = image.definition if definition is None else definition
        found = own_config if config is None else dict(config)
        architecture = _architecture(image) if arch is None else Architecture.from_name(arch)
        if definition is not None:
            builder.add_definition(definition)
        for content, kind in bills:
            builder.add_sbom(content, sbom_format=kind)
        if image.sif is not None and image.kind is ImageKind.SIF:
            _take_over(image.sif, builder)
        packing = attrs.evolve(
            packing,
            latest=latest,
            all_root=_all_root(image) if all_root is None else all_root,
            progress=stack.enter_context(shown_progress(progress, f"building {os.path.basename(target)}")),
        )
        work = _Conversion(
            image=image,
            upper=changes,
            target=target,
            builder=builder,
            packing=packing,
            mode=mode,
            overwrite=overwrite,
            max_files=max_files,
            max_bytes=max_bytes,
        )
        if format == "oci-sif":
            return left_out + work.write_layers(_document_of(image, found, all_labels, architecture))
        if found:
            builder.add_oci_config(found)
        if all_labels:
            builder.add_labels(all_labels)
        return left_out + work.write_root(layout_entries(found, labels=all_labels, definition=definition), architecture)


@attrs.frozen(kw_only=True)
class _Conversion:
    """An image that becomes a file."""

    image: Image
    upper: Tree | None = None
    """A layer above those of the image."""
    target: str
    builder: SifBuilder
    """Has the other objects of the file."""
    packing: Packing
    mode: int | None
    overwrite: bool
    max_files: int = MAX_FILES
    max_bytes: int = MAX_BYTES

    def write_root(self, entries: Iterable[LayoutEntry], arch: Architecture | str | None) -> tuple[ImageFile, ...]:
        """Write a SIF file with one partition for all layers and the entries that they lack; return the sockets."""
        with tempfile.TemporaryFile(dir=os.path.dirname(self.target), buffering=0) as squashfs:  # has no name
            self.builder.add_partition(squashfs, arch=arch, name="rootfs.squashfs")
            files = Files(self.image._view(self.max_files, self.max_bytes, self.upper), entries, self.packing)
            self._pack(files, squashfs.fileno(), Meter(self.packing.progress, files.total))
            self._write()
        return tuple(files.left_out)

    def write_layers(self, document: JsonObject) -> tuple[ImageFile, ...]:
        """Write an OCI-SIF file with each layer and a configuration; return the sockets."""
        packed = self._layers()
        meter = Meter(self.packing.progress, sum(files.total for files in packed if files is not None))
        blobs = _Blobs(self.builder)
        with ExitStack() as stack:
            for layer, files in zip_longest(self.image.layers, packed):
                if files is None:
                    if layer.digest and layer._section is not None:
                        check_digest(layer._section, layer.digest, f"{self.image.name}: layer {layer.digest}")
                    blobs.add_layer(stack.enter_context(self.image.reader(layer)))
                else:
                    file = stack.enter_context(tempfile.TemporaryFile(dir=os.path.dirname(self.target), buffering=0))
                    self._pack(files, file.fileno(), meter)
                    blobs.add_layer(file)
            blobs.add_documents(document)
            self._write()
        return tuple(file for files in packed if files is not None for file in files.left_out)

    def _layers(self) -> list[Files | None]:
        """Return the files of each layer, lowest first; None for one that is a squashfs already."""
        unchanged = not self.packing.exclude and not self.packing.all_root
        kept = [layer.format is LayerFormat.SQUASHFS and unchanged for layer in self.image.layers]
        kept += [False] if self.upper is not None else []
        views = [] if all(kept) else self.image._files.views(self.max_files, self.max_bytes, self.upper)
        return [None if is_kept else Files(views[number], (), self.packing) for number, is_kept in enumerate(kept)]

    def _pack(self, files: Files, output: int, meter: Meter) -> None:
        """Write a squashfs. Raises OSError, which names the target, if the disk is full."""
        try:
            pack(files, output, meter)
        except ProcessError as error:
            check_space(output, self.target, error)
            raise

    def _write(self) -> None:
        self.builder.write(self.target, mode=self.mode, overwrite=self.overwrite)


class _Blobs:
    """The blobs of an OCI-SIF image with one manifest.

    Args:
        builder: takes them.
    """

    def __init__(self, builder: SifBuilder) -> None:
        self._builder = builder
        self._layers: list[JsonObject] = []
        self._known: set[str] = set()

    def add_layer(self, file: SeekableFile) -> None:
        """Add a squashfs, above the layers that were added before."""
        digest, size = hashlib.sha256(), 0
        file.seek(0)
        with waiting():
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
        file.seek(0)
        self._layers.append(self._add(file, f"sha256:{digest.hexdigest()}", size, oci.SQUASHFS, PARTITION_ALIGNMENT))

    def add_documents(self, document: JsonObject) -> None:
        """Add the image configuration, with the digests of the layers, the manifest and the index."""
        document = {**document, "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in self._layers]}}
        history = document.get("history")
        if isinstance(history, list) and sum(isinstance(item, dict) and not item.get("empty_layer") for item in history) != len(
            self._layers
        ):
            del document["history"]
        config = self._add_document(document, oci.CONFIG)
        manifest: JsonObject = {"schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": [*self._layers]}
        entry = self._add_document(manifest, oci.MANIFEST)
        entry["platform"] = {key: document[key] for key in ("architecture", "os", "variant") if document.get(key)}
        index = _encode({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [entry]})
        self._builder.add_oci_root_index(index, digest=f"sha256:{hashlib.sha256(index).hexdigest()}")

    def _add_document(self, document: JsonObject, media_type: str) -> JsonObject:
        content = _encode(document)
        return self._add(content, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content), media_type, 1)

    def _add(self, content: bytes | SeekableFile, digest: str, size: int, media_type: str, alignment: int) -> JsonObject:
        """Add a blob, once, and return its descriptor."""
        if digest not in self._known:
            self._known.add(digest)
            self._builder.add(DataType.OCI_BLOB, content, metadata=OciObject(digest), alignment=alignment)
        return {"mediaType": media_type, "digest": digest, "size": size}


def _encode(document: JsonObject) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape")


# ---- arguments ----


def _parse_packing(
    compression: Compression,
    mksquashfs: StrPath | None,
    exclude: Iterable[str],
    processors: int | None,
) -> Packing:
    if compression not in get_args(Compression):
        raise ValueError(f"compression is {shown(compression)}: one of {', '.join(get_args(Compression))} is needed")
    optional(check_int, "processors", processors, 1, _MAX_PROCESSORS)
    program = "" if mksquashfs is None else parse_path("mksquashfs", mksquashfs)
    return Packing(
        compression=compression,
        mksquashfs=program,
        processors=processors,
        exclude=_parse_exclude(exclude),
    )


def _parse_exclude(exclude: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns without slashes at their ends. Raises TypeError, ValueError."""
    if isinstance(exclude, str | bytes) or not isinstance(exclude, Iterable):
        raise wrong_type("exclude", exclude, "a sequence of patterns")
    patterns: list[str] = []
    for number, pattern in enumerate(exclude):
        check_str(f"exclude[{number}]", pattern)
        patterns.append(pattern.strip("/"))
        if not patterns[-1]:
            raise ValueError(f"exclude[{number}] is {shown(pattern)}: a pattern with a name is needed")
    return tuple(patterns)


def _parse_target(path: str, image: Image, *, overwrite: bool) -> str:
    """Return the absolute path of the file to write. Raises FileExistsError, SifError."""
    target = absolute_path(path)
    if image.kind is ImageKind.DIRECTORY:
        root = os.path.realpath(image.path)
        if os.path.commonpath([os.path.realpath(os.path.dirname(target)), root]) == root:
            raise SifError(f"the image cannot be written into {root}, the directory that it contains", field="path", path=target)
    check_target(target, overwrite=overwrite)
    return target


def _parse_sboms(paths: Iterable[StrPath]) -> list[tuple[bytes, SbomFormat]]:
    if isinstance(paths, str | bytes | os.PathLike | Mapping) or not isinstance(paths, Iterable):
        raise wrong_type("sboms", paths, "a sequence of paths")
    found: list[tuple[bytes, SbomFormat]] = []
    for number, path in enumerate(paths):
        path = parse_path(f"sboms[{number}]", path)
        content = read_file(path, _MAX_SBOM)
        found.append((content, sbom_format(content, path)))
    return found


def sbom_format(content: bytes, name: str) -> SbomFormat:
    """Return the format of a software bill of materials. Raises ImageError: it is not one; the message begins with the name."""
    found = _recognise_sbom(content)
    if found is None:
        raise ImageError(f"{name}: not a software bill of materials: neither CycloneDX nor SPDX, Syft or GitHub")
    return found


def _recognise_sbom(content: bytes) -> SbomFormat | None:
    text = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        head = text[:4096].lower()
        return SbomFormat.CYCLONEDX_XML if b"cyclonedx" in head else SbomFormat.SPDX_RDF if b"spdx.org/rdf" in head else None
    if not text.startswith(b"{"):
        names = {line.partition(b":")[0].strip() for line in text[:65536].splitlines()}
        return SbomFormat.SPDX_TAG_VALUE if b"SPDXVersion" in names else SbomFormat.SPDX_YAML if b"spdxVersion" in names else None
    try:
        keys = set(json.loads(text))
    except (ValueError, RecursionError):
        return None
    kinds = (
        ({"bomFormat"}, SbomFormat.CYCLONEDX_JSON),
        ({"spdxVersion"}, SbomFormat.SPDX_JSON),
        ({"artifacts", "descriptor", "schema"}, SbomFormat.SYFT_JSON),
        ({"manifests", "detector", "job"}, SbomFormat.GITHUB_JSON),
    )
    return next((kind for needed, kind in kinds if needed <= keys), None)


def _builder(deterministic: bool, timestamp: int | None, launch_script: str) -> tuple[SifBuilder, int | None]:
    """Return a builder, and the time to which later ones of files are set."""
    epoch = _source_date_epoch()
    if epoch is not None:
        deterministic, timestamp = True, epoch if timestamp is None else timestamp
    builder = SifBuilder(launch_script=launch_script, deterministic=deterministic, timestamp=timestamp)
    return builder, timestamp if timestamp is not None or not deterministic else 0


def _source_date_epoch() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise SifError(f"{text!r} is not a number of seconds", field="SOURCE_DATE_EPOCH")
    return int(text)


# ---- the source ----


def _open_source(
    stack: ExitStack, source: StrPath | Image, reference: str | None, platform: str | None
) -> tuple[Image, JsonObject]:
    """Return an open image, which the stack closes, and its ``config`` object."""
    if isinstance(source, Image):
        if reference is not None or platform is not None:
            raise ValueError("reference= and platform= choose an image when it is opened, and source is an open image")
        return source, _config_of(source)
    path = parse_path("source", source)
    if not (os.path.isfile(f"{path}/config.json") and os.path.isdir(f"{path}/rootfs")):
        image = stack.enter_context(Image.open(path, reference=reference, platform=platform))
        return image, _config_of(image)
    spec = RuntimeSpec.load(read_file(f"{path}/config.json", MAX_DOCUMENT, regular=True))
    root = os.path.join(path, spec.root.path if spec.root is not None else "rootfs")
    if not os.listdir(root):
        raise BundleError(
            f"{path}: {root} is empty, because its containers mount the image; give the image instead (upper=, or image= of commit)"
        )
    image = stack.enter_context(Image.open(root, reference=reference, platform=platform))
    process = spec.process
    if process is None:
        return image, {}
    user = process.user
    own = {"User": f"{user.uid}:{user.gid}"} if user is not None and (user.uid or user.gid) else {}
    return image, {"Cmd": [*(process.args or ())], "Env": [*(process.env or ())], "WorkingDir": process.cwd, **own}


def _open_upper(stack: ExitStack, path: str, target: str, limits: tuple[int, int]) -> tuple[Tree, tuple[ImageFile, ...]]:
    """Return the files of the upper directory of an overlay, and the sockets that are left out.

    Raises:
        UnsupportedError: it has files of another user, whose ids in containers are not known.
        ImageError: it exceeds a limit.
        OSError: it cannot be read, or the disk is full.
    """
    if os.path.isdir(f"{path}/upper") and os.path.isdir(f"{path}/work"):
        path = f"{path}/upper"
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    tree, host = UpperTree(fd, path), Host.probe()
    if not (os.geteuid() and _has_subordinate_ids(tree, path, limits, host)):
        return tree, ()
    if not (host.idmap_helpers and sys.executable):
        raise UnsupportedError(f"{path}: reading its files of subordinate ids needs newuidmap and newgidmap (Debian: uidmap)")
    with tempfile.TemporaryFile(dir=os.path.dirname(target), buffering=0) as archive:
        left_out = _archive_upper(path, target, archive.fileno(), host, limits)
        source = FdSource(os.dup(archive.fileno()), path)
    stack.callback(source.close)
    layer = Layer(format=LayerFormat.TAR, path="", size=source.size, section=Section(source, 0, source.size))

    def refuse(link: str) -> Node:
        raise ImagePathError(errno.ENOENT, f"{path}: no hard link leads to a lower layer", link)

    return ArchivedUpper(layer, path, refuse, Budget(path, *limits)), left_out


def _has_subordinate_ids(tree: UpperTree, path: str, limits: tuple[int, int], host: Host) -> bool:
    """Return whether files in an upper directory belong to subordinate ids of the caller. Raises UnsupportedError, OSError."""
    budget, found, pending = Budget(path, *limits), False, [tree.root]
    groups = {0, *os.getgroups()}  # the caller's own ids are those of root here
    while pending:
        node = pending.pop()
        if node.uid or node.gid not in groups:
            found = True
            users, members = (*host.subuids, (0, 1)), (*host.subgids, *((group, 1) for group in groups))
            if not (_is_in(node.uid, users) and _is_in(node.gid, members)):
                name = os.path.normpath(f"{path}/{node.location}")
                ranges = "which are neither the caller's nor in its ranges in /etc/subuid and /etc/subgid"
                raise UnsupportedError(f"{name}: belongs to uid {node.uid} and gid {node.gid}, {ranges}")
        if node.is_directory and len(node.location) <= MAX_PATH:
            try:
                children = tree.children(node, budget)
            except PermissionError:
                if not host.subuids:
                    raise
                found = True
                continue
            budget.take_files(len(children))
            pending += children.values()
    return found


def _is_in(number: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= number < first + count for first, count in ranges)


def _archive_upper(path: str, target: str, output: int, host: Host, limits: tuple[int, int]) -> tuple[ImageFile, ...]:
    """Write an archive of an upper directory, with the ids that its files have in containers; return the sockets.

    A container's files of subordinate ids can be read only in a user namespace that has these ids.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    places = [package, *(os.path.abspath(place) for place in sys.path)]
    start = f"import sys; sys.path[:] = {places!r}; from {__name__} import write_upper"
    with tempfile.TemporaryFile(buffering=0) as messages, inheritable(output) as fd:
        command = [sys.executable, "-I", "-S", "-c", f"{start}; write_upper({path!r}, {fd}, {limits!r})"]
        with start_with_subordinate_ids(host, command, stderr=messages.fileno(), pass_fds=[fd]) as process:
            answer = None
            try:
                with waiting():
                    while answer is None:
                        with suppress(subprocess.TimeoutExpired):
                            answer, _ = process.communicate(timeout=CHECK_INTERVAL)
            except BaseException:
                process.kill()
                raise
        messages.seek(0)
        text = messages.read(1 << 16).decode(errors="backslashreplace").strip()
    try:
        document = json.loads(answer)
    except ValueError as error:
        done = subprocess.CompletedProcess(process.args, process.returncode, "", text)
        last = text.splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise ProcessError(f"{path}: cannot be read with the subordinate ids of this user: {last[0]}", done) from error
    match document:
        case {"errno": int(number), "path": path_of}:
            raise OSError(number, os.strerror(number), path_of or target)
        case {"error": str(kind), "message": str(message)}:
            raise (UnsupportedError if kind == "UnsupportedError" else ImageError)(message)
    return tuple(ImageFile(**{**item, "type": FileType.SOCKET}) for item in document)


def write_upper(path: str, output: int, limits: tuple[int, int]) -> None:
    """Write an archive of an upper directory to a descriptor, and the sockets that it has, or an error, as JSON to stdout.

    It is the main function of a process of its own, which ends with its caller.
    """
    Thread(target=_end_with_caller, daemon=True).start()
    answer: object
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        files = Files(LayerView(path, [UpperTree(fd, path)], Budget(path, *limits)), (), Packing())
        files.write_archive(output)
        answer = [attrs.asdict(file) for file in files.left_out]
    except (ImageError, UnsupportedError) as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        answer = {"errno": error.errno, "path": error.filename}
    print(json.dumps(answer))


def _end_with_caller() -> None:
    """End this process when the other end of its stdout is closed, as a caller that is killed leaves it."""
    poller = select.poll()
    poller.register(1, 0)  # errors are reported in any case
    poller.poll()
    os._exit(1)


def _open_root_filesystem(path: str) -> Image:
    """Open a directory that is not an image or a bundle. Raises NotADirectoryError, BundleError, UnsupportedError, ImageError."""
    try:
        image = Image.open(path)
    except ImageError as error:
        if os.path.isdir(path):
            raise
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error
    if image.kind is not ImageKind.DIRECTORY:
        image.close()
        raise UnsupportedError(f"{path} is an image of the kind {image.kind}, not a root filesystem: convert it with build()")
    return image


def _all_root(image: Image) -> bool:
    """Return whether root owns every file by default: the files of a directory belong to the user that made them."""
    return image.kind is ImageKind.DIRECTORY and os.geteuid() != 0


def _check_parts(image: Image) -> None:
    """Refuse an image with a part that the new one would lack. Raises UnsupportedError."""
    for layer in (*image.layers, *image.overlays, *image.data):
        where = f"{image.name}: " + (f"object {layer.object_id}" if layer.object_id is not None else f"layer {layer.digest}")
        if layer.format is LayerFormat.ENCRYPTED:
            raise UnsupportedError(f"{where} is an encrypted partition, which cannot be read")
        if layer in image.overlays:
            remedy = "remove it from a copy" + (
                f" with 'ociruntime sif del {layer.object_id}'" if layer.object_id is not None else ""
            )
            raise UnsupportedError(f"{where} is a writable overlay, which can be read only when it is mounted; {remedy}")


def _config_of(image: Image) -> JsonObject:
    """Return the ``config`` object of an image; an empty one without one."""
    document = image.config_json or {}
    if document and is_whole(document):
        inner = document.get("config")
        return inner if isinstance(inner, dict) else {}
    return document


def _document_of(image: Image, config: JsonObject, labels: Mapping[str, str], architecture: Architecture) -> JsonObject:
    """Return the whole configuration of an OCI image."""
    found = dict(image.config_json) if image.config_json is not None and is_whole(image.config_json) else {}
    if labels:
        config = {**config, "Labels": {**labels}}
    return {"os": "linux", **found, "architecture": architecture.oci_name, "config": config}


def _architecture(image: Image) -> Architecture:
    """Return the architecture of an image. Raises UnsupportedError."""
    try:
        return Architecture.from_name(image.architecture) if image.architecture else Architecture.host()
    except ValueError as error:
        raise UnsupportedError(f"{image.name}: {error}; pass the nearest one with arch=") from error


def _take_over(sif: SifImage, builder: SifBuilder) -> None:
    """Add what a SIF file holds beside its root filesystem and the documents that `build` writes itself."""
    for item in sif:
        is_data = isinstance(item.metadata, Partition) and item.metadata.kind is PartitionKind.DATA
        is_json = item.data_type == DataType.GENERIC_JSON and item.name != OCI_CONFIG_NAME
        if is_data or is_json or item.data_type in (DataType.ENVIRONMENT, DataType.GENERIC) or isinstance(item.metadata, Sbom):
            alignment = 4096 if is_data else 1
            builder.add(item.data_type, sif.reader(item), name=item.name, metadata=item.metadata, alignment=alignment)
