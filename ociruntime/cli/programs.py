"""Programs in new containers of images: shell, and run and exec with an image; and the options that change a configuration."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import attrs

import ociruntime as oci

from ..arguments import shown
from ..ephemeral import execute
from ..files import absolute_path
from ..options import RunOptions
from ..overrides import MountLike
from ..spec import Mount
from .common import (
    OF_IMAGE,
    OF_NEW_CONTAINER,
    SignalForwarding,
    flag,
    parse_env,
    parse_env_file,
    refuse_options,
    shell_status,
    shorten,
)

_SHELL: Final = ("/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh")
_ALLOWED: Final = OF_NEW_CONTAINER | frozenset(
    "args cgroup_manager command cwd env id image interactive root shell tty user".split()
)
"""The options that can be used with an image, beside the global ones."""
_GLOBAL: Final = frozenset({"debug", "log", "log_format", "rootless", "run"})
_DEFAULTS: Final[tuple[object, ...]] = (None, False, 0, [], ".")


def shell(options: Namespace) -> int:
    """Run a shell on the caller's terminal, or one that reads commands from stdin."""
    image: str | oci.Bundle = options.image
    if os.path.isfile(f"{options.image}/config.json"):
        refuse_options(options, OF_IMAGE, f"needs an image, and {shorten(options.image)} is a bundle")
        image = oci.Bundle.load(options.image).fresh()
    return run_image(options, image, (options.shell,) if options.shell else _SHELL, terminal=os.isatty(0))


def run_image(options: Namespace, image: str | oci.Bundle, args: Sequence[str], *, terminal: bool) -> int:
    """Run a program in a new container of an image, and return its exit status. Signals are forwarded to it."""
    for name, value in vars(options).items():
        if name not in _ALLOWED | _GLOBAL and value not in _DEFAULTS:
            raise ValueError(f"{flag(name)} cannot be used with an image, only with the id of a container")
    is_verified = bool(options.verify or options.keys)
    given = RunOptions(
        args=args,
        terminal=terminal,
        overlay=overlay(options),
        strategy=getattr(options, "strategy", None),
        state_root=options.root,
        cgroup_manager=options.cgroup_manager,
        reference=None if is_verified else options.reference,
        platform=None if is_verified else options.platform,
        **changes(options),
    )
    with SignalForwarding() as signals, ExitStack() as stack:
        source = stack.enter_context(open_image(options, image)) if is_verified and isinstance(image, str) else image
        result = execute(source, given, signals)
    return shell_status(result.returncode)


@contextmanager
def open_image(options: Namespace, path: str) -> Iterator[oci.Image]:
    """Open an image for the block, and verify it if the options say so. Raises as `Image.open` and `Image.verify`."""
    with oci.Image.open(path, reference=options.reference, platform=options.platform) as image:
        if options.verify or options.keys:
            if not options.keys and image.kind == "sif":
                raise ValueError(f"--verify: {shown(path)} is a SIF file, which is verified by its signatures; add --key FILE")
            image.verify(options.keys)
        yield image


def changes(options: Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `ociruntime.run` for the options that change a configuration. Raises ValueError, OSError."""
    variables = [variable for file in options.env_file for variable in parse_env_file(file)] + parse_env(options.env)
    mounts: list[MountLike] = [mount for mounts in options.bind for mount in mounts]
    mounts += [Mount(destination=path, type="tmpfs", source="tmpfs", options=_SCRATCH) for path in options.scratch]
    if options.workdir is not None:
        options.workdir = absolute_path(options.workdir)
    preset = _preset(options)
    if options.workdir is not None:
        if not _is_contained(options):
            raise ValueError("--workdir needs --contain: without it, /tmp, /var/tmp and the home directory are not replaced")
        for name, destination in (("tmp", "/tmp"), ("var_tmp", "/var/tmp")):
            os.makedirs(f"{options.workdir}/{name}", exist_ok=True)
            mounts.insert(0, f"{options.workdir}/{name}:{destination}")
    if options.fakeroot and options.user is not None:
        raise ValueError("--fakeroot conflicts with --user: it makes the program root of the container")
    network = "none" if options.net and options.network is None else options.network
    if options.publish and network != "private":
        raise ValueError("--publish needs --network private: the ports of other networks are not forwarded")
    return {
        "env": variables or None,
        "cwd": options.cwd,
        "user": 0 if options.fakeroot else options.user,
        "mounts": mounts or None,
        "network": network,
        "ports": options.publish or None,
        "hostname": options.hostname,
        "devices": options.device or None,
        "gpus": options.gpus,
        "preset": preset,
    }


_SCRATCH: Final = ("nosuid", "nodev", "mode=1777")
_NO_MOUNTS: Final[dict[str, dict[str, Any]]] = {
    "bind-paths": {"read_only_binds": ()},
    "cwd": {"cwd": False},
    "home": {"home": False},
    "hostfs": {},
}
"""What --no-mount changes of a preset, beside paths and ``tmp``."""


def _is_contained(options: Namespace) -> bool:
    return bool(options.contain or options.containall or options.compat)


def _preset(options: Namespace) -> oci.Preset | None:
    """Return the preset that the options describe, if there is one. Raises ValueError."""
    preset = oci.CONTAINALL if options.containall or options.compat else oci.CONTAIN if options.contain else oci.HPC
    if not (options.hpc or _is_contained(options)):
        for name, why in (
            ("cleanenv", "no variable of the caller is passed"),
            ("no_home", "the home directory is not bound"),
            ("no_mount", "nothing of the host is bound"),
        ):
            refuse_options(options, {name}, f"needs --hpc: without it {why}")
        return None if options.home is None else oci.Preset(home=options.home)
    if options.cleanenv:
        preset = attrs.evolve(preset, environment="clean")
    if options.home is not None:
        preset = attrs.evolve(preset, home=options.home)
    elif options.workdir is not None and preset.home:
        os.makedirs(f"{options.workdir}/home", exist_ok=True)
        preset = attrs.evolve(preset, home=f"{options.workdir}/home:{preset.home_directory()[1]}")
    if options.fakeroot and preset.home and options.home is None:
        preset = attrs.evolve(preset, home=f"{preset.home_directory()[0]}:/root")
    for name in [item for items in options.no_mount for item in items.split(",")] + ["home"] * options.no_home:
        preset = _without_mount(preset, name)
    return preset


def _without_mount(preset: oci.Preset, name: str) -> oci.Preset:
    """Return a preset without a mount of --no-mount. Raises ValueError."""
    paths = {"/tmp", "/var/tmp"} if name == "tmp" else {name}
    if name != "tmp" and not name.startswith("/"):
        if name not in _NO_MOUNTS:
            known = ", ".join(sorted({*_NO_MOUNTS, "tmp"}))
            raise ValueError(f"--no-mount {shown(name)}: {known}, or a path that --hpc binds, can be left out")
        return attrs.evolve(preset, **_NO_MOUNTS[name])
    kept: dict[str, Any] = {field: tuple(path for path in getattr(preset, field) if path not in paths) for field in _PATHS}
    if name != "tmp" and all(kept[field] == getattr(preset, field) for field in _PATHS):
        raise ValueError(f"--no-mount {shown(name)}: this path is not one that --hpc binds")
    return attrs.evolve(preset, **kept)


_PATHS: Final = ("binds", "read_only_binds", "tmpfs")


def overlay(options: Namespace) -> str | None:
    """Return the upper layer that the options choose. Raises ValueError."""
    chosen: list[str] = [*options.overlay, *(["tmpfs"] if options.writable_tmpfs or options.compat else [])]
    if len(chosen) > 1:
        raise ValueError(f"--overlay {shown(chosen[0])}: a container has one upper layer, and another one is given too")
    return chosen[0] if chosen else None


def changed(bundle: oci.Bundle, options: Namespace) -> oci.Bundle:
    """Return a bundle with the changes of its configuration, and with its upper layer. Raises ValueError, BundleError."""
    bundle = bundle.with_overrides(**changes(options))
    chosen = overlay(options)
    return bundle if chosen is None else bundle.fresh(overlay=chosen)
