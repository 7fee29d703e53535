"""Presets: what `ociruntime.run` gives a container of its caller: directories, variables and the network."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import attrs

from .arguments import check_choice, wrong_type
from .overrides import Network, Overrides, UserLike, parse_env, parse_mount
from .rootfs.users import CALLER, Caller, is_shown, working_directory
from .spec import Mount
from .spec.base import is_below

__all__ = ["HPC", "Environment", "Preset", "parse_preset"]

Environment: TypeAlias = Literal["image", "clean", "caller"]
"""The variables of a container beside those of its configuration: none; those of `CLEAN`; all of the caller but `OMITTED`."""

CLEAN: Final = frozenset(
    name for scheme in ("http", "https", "ftp", "all", "no") for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper())
) | {"TERM"}
"""Variables that a container gets in a clean environment too."""
OMITTED: Final = frozenset(
    "BASH_ENV DBUS_SESSION_BUS_ADDRESS ENV HOME LISTEN_FDNAMES LISTEN_FDS LISTEN_PID NOTIFY_SOCKET OLDPWD PATH PWD SHELL SHLVL "
    "XDG_RUNTIME_DIR _".split()
)
"""Variables about the caller's shell, or about files and sockets of the host that the container does not have."""
_OMITTED_PREFIXES: Final = ("APPTAINER", "BASH_FUNC_", "LD_", "SINGULARITY")
_SETTING: Final = ("SINGULARITYENV_", "APPTAINERENV_")
"""Prefixes of variables that set a variable of the container, the stronger one last."""
_SYSTEM: Final = frozenset("/ /bin /etc /lib /lib64 /mnt /opt /sbin /usr /var".split())
"""Directories that are the image's, even where they are the caller's home or working directory."""
_KERNEL: Final = ("/dev", "/proc", "/sys")


def _check_environment(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_choice(attribute.name, value, get_args(Environment))


@attrs.frozen(kw_only=True)
class Preset:
    """What a container gets of its caller.

    Arguments of the call win: ``user``, ``network`` and ``hostname`` replace what the preset says, and ``mounts`` and ``env`` are
    added to it and replace what has the same destination or name.
    """

    user: UserLike | None = None
    """The user of the program. Default: as the configuration says."""
    home: bool = False
    """Whether the home directory of the caller is bound at the same path."""
    cwd: bool = False
    """Whether the working directory of the caller is bound at the same path."""
    tmpdir: bool = False
    """Whether ``$TMPDIR`` of the caller is bound at the same path."""
    binds: tuple[str, ...] = ()
    """Further paths of the host that are bound at the same paths."""
    read_only_binds: tuple[str, ...] = ()
    """Those that are bound read-only."""
    environment: Environment = attrs.field(default="image", validator=_check_environment)
    """Which variables of the caller the container has."""
    network: Network | None = None
    """The network, as for `ociruntime.run`."""
    hostname: bool = False
    """Whether the hostname is that of the host."""


def complete(preset: Preset, overrides: Overrides) -> Overrides:
    """Return the overrides of a call with those of a preset. What does not exist on the host is not bound."""
    caller, cwd, temporary = Caller.current(), working_directory(), os.environ.get("TMPDIR", "")
    wanted = ((caller.home, preset.home), (cwd, preset.cwd), (posixpath.normpath(temporary), preset.tmpdir))
    directories = [path for path, is_wanted in wanted if is_wanted and path is not None and _is_bindable(path)]
    mounts = tuple(_binds((*preset.binds, *directories), preset.read_only_binds))
    mounts += tuple(map(parse_mount, overrides.mounts or ()))
    at_home = preset.cwd and is_shown(caller.home, mounts) and not (cwd and is_shown(cwd, mounts))
    environ = {name: value for name, value in os.environ.items() if name != "TMPDIR" or is_shown(value, mounts)}
    return attrs.evolve(
        overrides,
        user=preset.user if overrides.user is None else overrides.user,
        network=preset.network if overrides.network is None else overrides.network,
        cwd=caller.home if at_home and overrides.cwd is None else overrides.cwd,
        mounts=mounts,
        env={**_variables_set(preset, environ), **parse_env(overrides.env or {})},
        default_env=_variables_passed(preset, environ),
        default_hostname=os.uname().nodename if preset.hostname else None,
    )


def _variables_passed(preset: Preset, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the caller that the container has unless its configuration sets them."""
    if preset.environment == "caller":
        kept = (name for name in environ if name not in OMITTED and not name.startswith(_OMITTED_PREFIXES))
    else:
        kept = (name for name in CLEAN if name in environ and preset.environment == "clean")
    return {name: environ[name] for name in kept}


def _variables_set(preset: Preset, environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that the caller sets in the container, whatever its configuration says."""
    if preset.environment == "image":
        return {}
    found: dict[str, str | None] = {"TERM": environ["TERM"]} if "TERM" in environ else {}
    for prefix in _SETTING:
        found |= {name[len(prefix) :]: environ[name] for name in environ if name.startswith(prefix) and name != prefix}
    return found


def _covers(places: Iterable[str], path: str) -> bool:
    return any(is_below(path, place) for place in places)


def _is_bindable(path: str) -> bool:
    """Return whether a directory of the caller may cover what an image has at its path."""
    return path.startswith("/") and path not in _SYSTEM and not _covers(_KERNEL, path)


def _binds(paths: tuple[str, ...], read_only: tuple[str, ...]) -> Iterator[Mount]:
    """Yield the mounts for paths of the host, without those that an earlier one shows."""
    done: list[str] = []
    for path in (*paths, *read_only):
        if _covers(done, path) or not os.path.exists(path):
            continue
        done.append(path)
        attributes = ("rro",) if path in read_only else ()
        yield Mount(destination=path, type="bind", source=path, options=("rbind", "nosuid", "nodev", *attributes))


HPC: Final = Preset(
    user=CALLER,
    home=True,
    cwd=True,
    tmpdir=True,
    binds=("/tmp", "/var/tmp", "/dev/shm"),
    read_only_binds=("/etc/resolv.conf", "/etc/hosts", "/etc/localtime"),
    environment="caller",
    network="host",
    hostname=True,
)
"""The habits of Apptainer: the caller with its files, variables and network."""
_PRESETS: Final = {"hpc": HPC}


def parse_preset(preset: Preset | str | None) -> Preset | None:
    """Return a preset, by its name or as it is. Raises TypeError, ValueError."""
    if preset is None or isinstance(preset, Preset):
        return preset
    if not isinstance(preset, str):
        raise wrong_type("preset", preset, "a name or a Preset")
    check_choice("preset", preset, tuple(_PRESETS))
    return _PRESETS[preset]
