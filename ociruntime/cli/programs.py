"""Programs in new containers of images: shell, and run and exec with an image; and the options that change a configuration."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Final

import attrs

import ociruntime as oci

from ..ephemeral import execute
from ..options import RunOptions
from .common import SignalForwarding, parse_env, shell_status

_SHELL: Final = ("/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh")
_CHANGES: Final = frozenset({"bind", "cleanenv", "cwd", "env", "hpc", "network", "no_home", "overlay", "user"})
_ALLOWED: Final = _CHANGES | {"args", "cgroup_manager", "command", "id", "image", "interactive", "root", "shell", "tty"}
"""The options that can be used with an image, beside the global ones."""
_GLOBAL: Final = frozenset({"debug", "log", "log_format", "rootless", "run"})
_DEFAULTS: Final[tuple[object, ...]] = (None, False, 0, [], ".")


def shell(options: Namespace) -> int:
    """Run a shell on the caller's terminal, or one that reads commands from stdin."""
    image: str | oci.Bundle = options.image
    if os.path.isfile(f"{options.image}/config.json"):
        image = oci.Bundle.load(options.image).fresh()
    return run_image(options, image, (options.shell,) if options.shell else _SHELL, terminal=os.isatty(0))


def run_image(options: Namespace, image: str | oci.Bundle, args: Sequence[str], *, terminal: bool) -> int:
    """Run a program in a new container of an image, and return its exit status. Signals are forwarded to it."""
    for name, value in vars(options).items():
        if name not in _ALLOWED | _GLOBAL and value not in _DEFAULTS:
            raise ValueError(f"--{name.replace('_', '-')} cannot be used with an image, only with the id of a container")
    given = RunOptions(
        args=args,
        terminal=terminal,
        overlay=getattr(options, "overlay", None),
        state_root=options.root,
        cgroup_manager=options.cgroup_manager,
        **changes(options),
    )
    with SignalForwarding() as signals:
        result = execute(image, given, signals)
    return shell_status(result.returncode)


def changes(options: Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `ociruntime.run` for the options that change a configuration. Raises ValueError."""
    preset = None
    if options.hpc:
        preset = attrs.evolve(
            oci.HPC,
            home=oci.HPC.home and not options.no_home,
            environment="clean" if options.cleanenv else oci.HPC.environment,
        )
    elif options.cleanenv:
        raise ValueError("--cleanenv needs --hpc: without it no variable of the caller is passed")
    elif options.no_home:
        raise ValueError("--no-home needs --hpc: without it the home directory is not bound")
    return {
        "env": parse_env(options.env) or None,
        "cwd": options.cwd,
        "user": options.user,
        "mounts": [mount for mounts in options.bind for mount in mounts] or None,
        "network": options.network,
        "preset": preset,
    }


def changed(bundle: oci.Bundle, options: Namespace) -> oci.Bundle:
    """Return a bundle with the changes of its configuration."""
    return bundle.with_overrides(RunOptions(**changes(options)).overrides)
