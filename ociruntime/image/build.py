"""`build_sif`: makes a SIF file of a root directory, with ``mksquashfs``.

`layout_entries` returns what a root filesystem needs for ``/.singularity.d/actions/run``, the default command of a SIF without OCI
data. The scripts are POSIX shell and need only ``/bin/sh``.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import attrs

from ociruntime.arguments import check_bool, check_int, check_mapping, check_str, optional, parse_path, shown, wrong_type
from ociruntime.errors import ImageError, ProcessError, SifError, UnsupportedError
from ociruntime.files import absolute_path
from ociruntime.image.config import OciImageConfig
from ociruntime.image.model import Image, ImageKind
from ociruntime.image.sif.writer import DEFAULT_LAUNCH_SCRIPT, SifBuilder, check_target
from ociruntime.interrupts import uninterruptible, waiting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ociruntime.image.sif.model import Architecture, JsonValue

__all__ = [
    "Compression",
    "LayoutEntry",
    "build_sif",
    "layout_entries",
    "missing_entries",
]


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
echo "this image has no runscript" >&2
exit 127
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
# Sets up the image's environment and starts a shell.
{_LOAD_ENVIRONMENT}
exec /bin/sh "$@"
"""


@attrs.frozen
class LayoutEntry:
    """A directory (``content`` is None) or a regular file to add. ``path`` is relative to the root of the image."""

    path: str
    mode: int
    content: bytes | None = None


def layout_entries(
    oci_config: Mapping[str, JsonValue] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    definition: str | None = None,
) -> tuple[LayoutEntry, ...]:
    """Return the directories and files of the convention, and the directories that a runtime uses as mount points.

    ``actions/run`` runs ``runscript``. That runs its arguments, or ``/bin/sh`` without arguments. If ``oci_config`` has an
    Entrypoint or a Cmd, it runs Entrypoint with the arguments, or with Cmd without arguments. ``env/10-docker2singularity.sh``
    sets PATH, and the other variables of Env unless they are set. Names that the shell cannot assign are left to runtimes that
    read ``oci-config.json``.

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
        LayoutEntry(".singularity.d/actions/exec", 0o755, _EXEC.encode()),
        LayoutEntry(".singularity.d/actions/run", 0o755, _RUN.encode()),
        LayoutEntry(".singularity.d/actions/shell", 0o755, _SHELL.encode()),
        LayoutEntry(".singularity.d/env/10-docker2singularity.sh", 0o755, _env_script(config.env)),
        LayoutEntry(".singularity.d/runscript", 0o755, _runscript(config)),
    ]
    if labels is not None:
        import json

        entries.append(LayoutEntry(".singularity.d/labels.json", 0o644, json.dumps(dict(labels), indent=2).encode() + b"\n"))
    if definition is not None:
        entries.append(LayoutEntry(".singularity.d/Singularity", 0o644, definition.encode()))
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


def missing_entries(rootfs: str, entries: Iterable[LayoutEntry]) -> tuple[LayoutEntry, ...]:
    """Return the entries that do not exist in the directory ``rootfs``.

    Raises:
        SifError: the parent of an entry exists and is not a directory.
    """
    missing: list[LayoutEntry] = []
    absent: set[str] = set()
    for entry in entries:
        parent = os.path.dirname(entry.path)
        if parent and parent not in absent and not stat.S_ISDIR(os.lstat(os.path.join(rootfs, parent)).st_mode):
            raise SifError(f"/{parent} in the root filesystem is not a directory, so /{entry.path} cannot be added", path=rootfs)
        if parent in absent or not os.path.lexists(os.path.join(rootfs, entry.path)):
            missing.append(entry)
            absent.add(entry.path)
    return tuple(missing)


_MAX_PROCESSORS: Final = 1 << 16
Compression: TypeAlias = Literal["gzip", "lzma", "lzo", "lz4", "xz", "zstd"]


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
    mksquashfs: str | os.PathLike[str] = "mksquashfs",
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
    An interruption, KeyboardInterrupt for example, ends ``mksquashfs`` and leaves nothing behind either, or arrives when the new
    file is in place.

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
        mksquashfs: The program, by name or path.
        singularity_layout: Add the missing parts of ``/.singularity.d`` (see `layout_entries`), so that the image also
            runs without OCI data.
        exclude: Shell patterns of paths to leave out, relative to ``rootfs_dir``.
        all_root: Whether root owns every file in the image. Default: yes, unless the caller is root.
        processors: Number of processors for ``mksquashfs``. Default: all.
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
        BundleError, UnsupportedError: ``rootfs_dir`` is a bundle or an image, not a root filesystem; or ``mksquashfs`` is not
            installed.
        ProcessError: ``mksquashfs`` failed; the message has its output.
        OSError: a file cannot be read or written.
    """
    import tempfile

    path, rootfs_dir, mksquashfs = (
        parse_path("path", path),
        parse_path("rootfs_dir", rootfs_dir),
        parse_path("mksquashfs", mksquashfs),
    )
    check_bool("singularity_layout", singularity_layout)
    optional(check_bool, "all_root", all_root)
    optional(check_int, "processors", processors, 1, _MAX_PROCESSORS)
    if compression not in get_args(Compression):
        raise ValueError(f"compression is {shown(compression)}: one of {', '.join(get_args(Compression))} is needed")
    patterns = _parse_exclude(exclude)
    optional(check_mapping, "oci_config", oci_config)
    optional(check_str, "definition", definition)
    target, root = absolute_path(path), os.path.realpath(absolute_path(rootfs_dir), strict=True)
    _check_root_filesystem(os.fspath(rootfs_dir))
    folder = os.path.realpath(os.path.dirname(target))
    if os.path.commonpath([folder, root]) == root:
        raise SifError(f"the image cannot be written into {root}, the directory that it contains", field="path", path=target)
    check_target(target, overwrite=overwrite)
    epoch = _source_date_epoch()
    if epoch is not None:
        deterministic, timestamp = True, epoch if timestamp is None else timestamp
    builder = SifBuilder(launch_script=launch_script, deterministic=deterministic, timestamp=timestamp)
    if definition is not None:
        builder.add_definition(definition)
    if oci_config is not None:
        builder.add_oci_config(oci_config)
    if labels is not None:
        builder.add_labels(labels)
    if env is not None:
        builder.add_env(env)
    added: Sequence[LayoutEntry] = ()
    if singularity_layout:
        entries = layout_entries(oci_config, labels=labels, definition=definition)
        added = missing_entries(root, entries)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".sif-build-") as work:
        squashfs = os.path.join(work, "rootfs.squashfs")
        builder.add_partition(squashfs, arch=arch, name="rootfs.squashfs")
        command = _squashfs_command(os.fspath(mksquashfs), root, squashfs, compression, all_root, processors)
        if added:
            command += ["-pf", _stage(work, added)]
        if patterns:
            command += ["-wildcards", "-e", *patterns]  # -e takes all following arguments
        _run(command, work, timestamp if timestamp is not None or not deterministic else 0)
        builder.write(target, mode=mode, overwrite=overwrite)


def _parse_exclude(exclude: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns as ``mksquashfs`` takes them. Raises TypeError, ValueError."""
    if isinstance(exclude, str | bytes) or not isinstance(exclude, Iterable):
        raise wrong_type("exclude", exclude, "a sequence of patterns")
    patterns: list[str] = []
    for number, pattern in enumerate(exclude):
        check_str(f"exclude[{number}]", pattern)
        patterns.append(pattern.strip("/"))
        if not patterns[-1]:
            raise ValueError(f"exclude[{number}] is {shown(pattern)}: a pattern with a name is needed")
    return tuple(patterns)


def _squashfs_command(
    program: str, root: str, target: str, compression: Compression, all_root: bool | None, processors: int | None
) -> list[str]:
    """Return the command that packs a directory, for further options at its end."""
    command = [absolute_path(program) if os.sep in program else program, root, target]
    command += ["-noappend", "-no-progress", "-exit-on-error", "-comp", compression]
    if all_root or (all_root is None and os.geteuid() != 0):
        command.append("-all-root")
    if processors is not None:
        command += ["-processors", str(processors)]
    return command


def _check_root_filesystem(path: str) -> None:
    """Check that a directory is not an image or a bundle. Raises NotADirectoryError, BundleError, UnsupportedError, ImageError."""
    try:
        with Image.open(path) as image:
            if image.kind is ImageKind.DIRECTORY:
                return
            remedy = image.unpacking() or "use it as it is"
            raise UnsupportedError(f"{path} is an image of the kind {image.kind}, not a root filesystem: {remedy}")
    except ImageError as error:
        if os.path.isdir(path):
            raise
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error


def _source_date_epoch() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise SifError(f"{text!r} is not a number of seconds", field="SOURCE_DATE_EPOCH")
    return int(text)


def _stage(work: str, entries: Sequence[LayoutEntry]) -> str:
    """Write the files to add below ``work``; return the name of the file with their pseudo-file definitions for mksquashfs.

    Pseudo-file definitions merge into existing directories without a change of the caller's directory. A second source directory
    would not merge.
    """
    lines: list[str] = []
    for number, entry in enumerate(entries):
        if entry.content is None:
            lines.append(f"/{entry.path} d {entry.mode:o} 0 0\n")
            continue
        with open(os.path.join(work, f"file-{number}"), "xb") as file:
            file.write(entry.content)
        lines.append(f"/{entry.path} f {entry.mode:o} 0 0 cat file-{number}\n")  # run in ``work``, so nothing needs quoting
    with open(os.path.join(work, "pseudo-files"), "x", encoding="ascii") as listing:
        listing.writelines(lines)
    return "pseudo-files"


def _run(command: Sequence[str], work: str, epoch: int | None) -> None:
    import subprocess

    environment = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    if epoch is not None:
        environment["SOURCE_DATE_EPOCH"] = str(max(0, epoch))
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=work,
            env=environment,
            text=True,
            errors="backslashreplace",
        )
    except FileNotFoundError as error:
        raise UnsupportedError(f"cannot build an image: {command[0]} not found; install squashfs-tools") from error
    except OSError as error:
        raise UnsupportedError(f"cannot build an image: cannot run {command[0]}: {os.strerror(error.errno or 0)}") from error
    with process:
        try:
            with waiting():
                output, _ = process.communicate()
        except BaseException:
            process.kill()
            process.wait()  # Popen waits only briefly after a KeyboardInterrupt, and mksquashfs writes into ``work``
            raise
    if process.returncode:
        last = "\n".join(output.strip().splitlines()[-20:])
        done = subprocess.CompletedProcess(command, process.returncode, output)
        raise ProcessError(f"{command[0]} ended with status {process.returncode}: {last}", done)
