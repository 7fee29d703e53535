"""`pull`: makes a SIF file of an image in a registry, which the program skopeo fetches."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, NoReturn

from ociruntime.arguments import check_bool, check_int, check_str, optional, parse_path, shown
from ociruntime.errors import ImageError, UnsupportedError, naming
from ociruntime.files import NO_SPACE, StagedFile, absolute_path, flock, open_regular
from ociruntime.image import oci
from ociruntime.image.blobs import check_digest
from ociruntime.image.convert import build
from ociruntime.image.files import MAX_BYTES, MAX_FILES
from ociruntime.image.model import Image, Layer
from ociruntime.image.packing import Compression, ShownProgress, check_progress, shown_progress
from ociruntime.image.sif.format import FdSource
from ociruntime.image.sif.reader import SifImage
from ociruntime.image.sif.writer import check_target
from ociruntime.interrupts import deliver, uninterruptible, wait_for_child

__all__ = ["pull"]

StrPath = str | os.PathLike[str]

_SIF_LAYER: Final = "application/vnd.sylabs.sif.layer.v1.sif"
_STAGING: Final = ".ociruntime-pull-"
_PIECE: Final = 1 << 20
_REMEDIES: Final = {
    "no such host|lookup |network is unreachable|no route to host": "check the network, and the name of the registry",
    "connection refused|i/o timeout|deadline exceeded": "check that the registry runs, and that this host may reach it",
    "unauthorized|authentication required|denied|forbidden": "log in with 'skopeo login REGISTRY', or pass auth_file=",
    "HTTP response to HTTPS client|x509|tls: ": "pass insecure=True for a registry without TLS or a trusted certificate",
    "policy.json": "install the configuration of container tools (Debian: golang-github-containers-common)",
}
"""What helps, by a pattern in skopeo's message."""


@uninterruptible()
@naming(lambda reference, *_, **_options: f"cannot pull {reference}")
def pull(
    reference: str,
    target: StrPath,
    *,
    format: Literal["sif", "oci-sif"] = "sif",
    platform: str | None = None,
    auth_file: StrPath | None = None,
    insecure: bool = False,
    compression: Compression = "gzip",
    overwrite: bool = False,
    progress: ShownProgress = None,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Make a SIF file of an image in a registry. The program skopeo fetches it and compares all digests.

    A SIF file that was pushed as an ORAS artifact is taken as it is; other images are converted, see `build`. The blobs are kept in
    a hidden directory beside the target until the file is complete. What a killed process leaves of it, the next call for a target
    in the same directory removes.

    Args:
        reference: ``docker://`` or ``oras://``, and the name: ``docker://registry.example/team/app:1``, or with ``@sha256:...``.
        target: the file to write.
        format: see `build`.
        platform: the platform of which to take the image, such as ``linux/arm64``. Default: that of this machine.
        auth_file: credentials, as ``skopeo login`` and ``docker login`` write them. Default: where skopeo looks for them.
        insecure: use HTTP, or HTTPS without a check of the certificate, if the registry has no valid one.
        compression: see `build`.
        overwrite: replace an existing file when the new one is complete.
        progress: see `build`. While the image is fetched, a progress bar has only a label, and a function is not called.
        max_files: see `build`.
        max_bytes: see `build`.

    Raises:
        FileExistsError: ``target`` exists, and ``overwrite`` is false.
        ImageError: the image cannot be fetched, or is damaged or exceeds a limit. The message has the reason.
        UnsupportedError: skopeo, or a program that makes a squashfs, is not installed.
        ValueError: an argument is not valid.
        OSError: a file cannot be written.
    """
    name = _parse_reference(reference)
    target = absolute_path(parse_path("target", target))
    check_bool("insecure", insecure)
    check_progress(progress)
    check_int("max_files", max_files, 0)
    check_int("max_bytes", max_bytes, 0)
    optional(check_str, "platform", platform)
    machine = oci.host_platform() if platform is None else oci.parse_platform(platform)
    check_target(target, overwrite=overwrite)
    command = ["skopeo", f"--override-os={machine.os}", f"--override-arch={machine.architecture}"]
    command += [f"--override-variant={machine.variant}"] if machine.variant else []
    command += ["copy", "--quiet"] + (["--src-tls-verify=false"] if insecure else [])
    if auth_file is not None:
        auth_file = absolute_path(parse_path("auth_file", auth_file))
        os.close(open_regular(auth_file))  # skopeo ignores a file that does not exist
        command.append(f"--src-authfile={auth_file}")
    with shown_progress(progress, f"fetching {reference}") as report, staging(os.path.dirname(target), _STAGING) as place:
        _fetch([*command, f"docker://{name}", f"oci:{place}/layout"], reference, target)
        with Image.open(f"{place}/layout") as image:
            artifact = next((layer for layer in image.data if layer.media_type == _SIF_LAYER), None)
            if artifact is not None:
                _copy_artifact(image, artifact, target, overwrite=overwrite)
                return
            build(
                image,
                target,
                format=format,
                compression=compression,
                overwrite=overwrite,
                progress=report,
                max_files=max_files,
                max_bytes=max_bytes,
            )


def _parse_reference(reference: str) -> str:
    """Return the name in a registry. Raises ValueError."""
    check_str("reference", reference)
    transport, separator, name = reference.partition("://")
    if transport not in ("docker", "oras") or not separator or not re.fullmatch(r"[A-Za-z0-9][\w.:/@\[\]-]*", name, re.ASCII):
        raise ValueError(f"reference is {shown(reference)}: docker://NAME or oras://NAME is needed, as docker://alpine:3")
    return name


@contextmanager
def staging(folder: str, prefix: str) -> Iterator[str]:
    """Make a directory for the block, and remove it in the end, with those that killed processes have left.

    Args:
        folder: where it is made. No other user can replace files there.
        prefix: begins the names of such directories.
    """
    for entry in os.scandir(folder):
        if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
            _remove_unused(entry.path)
    place = tempfile.mkdtemp(dir=folder, prefix=prefix)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flock(fd, fcntl.LOCK_EX, place)
        yield place
    finally:
        shutil.rmtree(place)
        os.close(fd)


def _remove_unused(path: str) -> None:
    """Remove a directory of this user that no process holds."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return  # another process has removed it, or it belongs to another user
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
            shutil.rmtree(path, ignore_errors=True)  # it is not what this call is about
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _fetch(command: list[str], reference: str, target: str) -> None:
    """Run skopeo. Raises ImageError, UnsupportedError, OSError: the disk is full."""
    if shutil.which(command[0]) is None:
        raise UnsupportedError(f"{reference}: cannot be pulled: skopeo not found; install it (Debian: skopeo)")
    if shutil.which("setpriv") is not None:
        command = ["setpriv", "--pdeathsig", "KILL", *command]  # it ends with this process
    with tempfile.TemporaryFile(buffering=0) as messages:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages)
        try:
            status = wait_for_child(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if status:
            messages.seek(0)
            _fail(reference, target, messages.read(1 << 16).decode(errors="backslashreplace"))


def _fail(reference: str, target: str, output: str) -> NoReturn:
    found = re.findall(r'level=fatal msg=("(?:[^"\\]|\\.)*"|\S+)', output)
    try:
        message = json.loads(found[-1])
    except (IndexError, ValueError):
        message = (output.strip().splitlines() or ["skopeo failed without a message"])[-1]
    for number in NO_SPACE:
        if os.strerror(number).lower() in message.lower():
            raise OSError(number, os.strerror(number), target)
    remedy = next((text for pattern, text in _REMEDIES.items() if re.search(pattern, message)), "")
    raise ImageError(f"{reference}: cannot be pulled: {message}{'; ' if remedy else ''}{remedy}")


def _copy_artifact(image: Image, layer: Layer, target: str, *, overwrite: bool) -> None:
    """Write a SIF file that a registry has as it is."""
    assert layer._section is not None  # the layers of OCI images are in files
    check_digest(layer._section, layer.digest, f"{image.name}: layer {layer.digest}")
    with StagedFile(target, mode=0o777, anonymous=True) as file, image.reader(layer) as reader:
        while piece := reader.read(_PIECE):
            deliver()
            file.write(piece)
        SifImage(FdSource(os.dup(file.fd), target)).close()  # never put a file in place that the reader refuses
        file.commit(durable=True, replace=overwrite)
