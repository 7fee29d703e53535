"""The ``/.singularity.d`` convention: files in an image that define how it runs.

`singularity_layout` returns what a root filesystem needs for ``/.singularity.d/actions/run``, the default command of a SIF
without OCI data. The scripts are POSIX shell and need only ``/bin/sh``.
"""

from __future__ import annotations

import os
import shlex
import stat
from typing import TYPE_CHECKING

import attrs

from ociruntime.errors import SifError
from ociruntime.image.config import OciImageConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ociruntime.image.sif.model import JsonValue

__all__ = ["LayoutEntry", "missing_entries", "singularity_layout"]

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


def singularity_layout(
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
