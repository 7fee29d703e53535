"""Presets: what `ociruntime.run` gives a container of its caller: directories, variables and the network."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, Self, TypeAlias, get_args

import attrs

from .arguments import check_choice, parse_path, shown, wrong_type
from .errors import BundleError
from .files import absolute_path
from .host import Host
from .overrides import Network, Overrides, StrPath, UserLike, parse_env
from .rootfs.users import CALLER, Caller, is_shown, working_directory
from .spec import Linux, Mount, ProcessSpec, RuntimeSpec
from .spec.base import is_below

__all__ = ["CONTAIN", "CONTAINALL", "HPC", "Environment", "HostFiles", "Preset", "parse_preset"]

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


_EMPTY: Final = "empty"


def _check_home(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool):
        return
    what = "True, False, 'empty' or '/source:/destination'"
    if not isinstance(value, str):
        raise wrong_type(attribute.name, value, what)
    source, colon, destination = value.partition(":")
    if not (source == _EMPTY or source.startswith("/")) or (colon and not destination.startswith("/")):
        raise ValueError(f"{attribute.name} is {shown(value)}: {what} is needed")


@attrs.frozen(kw_only=True)
class Preset:
    """What a container gets of its caller.

    Arguments of the call win: ``user``, ``network`` and ``hostname`` replace what the preset says, and ``mounts`` and ``env`` are
    added to it and replace what has the same destination or name.
    """

    user: UserLike | None = None
    """The user of the program. Default: as the configuration says."""
    home: bool | str = attrs.field(default=False, validator=_check_home)
    """The home directory. True: that of the caller, at the same path. ``"empty"``: an empty one in memory, at the same path.
    ``"/source:/destination"``, or ``"empty:/destination"``: at another path, to which ``HOME`` is set. False: none."""
    cwd: bool = False
    """Whether the working directory of the caller is bound at the same path."""
    tmpdir: bool = False
    """Whether ``$TMPDIR`` of the caller is bound at the same path."""
    binds: tuple[str, ...] = ()
    """Further paths of the host that are bound at the same paths."""
    read_only_binds: tuple[str, ...] = ()
    """Those that are bound read-only."""
    tmpfs: tuple[str, ...] = ()
    """Directories that are empty and in memory."""
    environment: Environment = attrs.field(default="image", validator=_check_environment)
    """Which variables of the caller the container has."""
    network: Network | None = None
    """The network, as for `ociruntime.run`."""
    hostname: bool = False
    """Whether the hostname is that of the host."""

    def home_directory(self) -> tuple[str, str]:
        """Return where the home directory comes from, a path or ``"empty"``, and its path in the container. It needs `home`."""
        own = Caller.current().home
        source, _, destination = (own if self.home is True else str(self.home)).partition(":")
        return source, destination or (own if source == _EMPTY else source)


def complete(preset: Preset, overrides: Overrides) -> Overrides:
    """Return the overrides of a call with those of a preset. What does not exist on the host is not bound."""
    caller, cwd, temporary = Caller.current(), working_directory(), os.environ.get("TMPDIR", "")
    candidates = ((caller.home, preset.home is True), (cwd, preset.cwd), (posixpath.normpath(temporary), preset.tmpdir))
    directories = [path for path, is_wanted in candidates if is_wanted and path is not None and _is_bindable(path)]
    own = preset.user if overrides.user is None else overrides.user
    mounts = (
        *(_memory(path) for path in preset.tmpfs),
        *_binds((*preset.binds, *directories), preset.read_only_binds),
        *_other_home(preset, caller if own == CALLER else None),
        *(overrides.mounts or ()),
    )
    home = preset.home_directory()[1] if isinstance(preset.home, str) else caller.home
    if preset.cwd and cwd is not None and is_shown(cwd, mounts):
        start = cwd
    else:
        start = home if isinstance(preset.home, str) or (preset.cwd and is_shown(home, mounts)) else ""
    environ = {name: value for name, value in os.environ.items() if name != "TMPDIR" or is_shown(value, mounts)}
    return attrs.evolve(
        overrides,
        user=own,
        network=preset.network if overrides.network is None else overrides.network,
        cwd=overrides.cwd or start or None,
        mounts=mounts,
        env={
            **_variables_set(preset, environ),
            **({"HOME": home} if isinstance(preset.home, str) else {}),
            **parse_env(overrides.env or {}),
        },
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


def _memory(path: str, *options: str) -> Mount:
    """Return the mount of an empty directory in memory."""
    return Mount(destination=path, type="tmpfs", source="tmpfs", options=("nosuid", "nodev", *(options or ("mode=1777",))))


def _other_home(preset: Preset, caller: Caller | None) -> Iterator[Mount]:
    """Yield the mount of a home directory that is not that of the caller, which owns it if it is the user of the program."""
    if not isinstance(preset.home, str):
        return
    source, destination = preset.home_directory()
    if source != _EMPTY:
        yield Mount(destination=destination, type="bind", source=source, options=("rbind", "nosuid", "nodev"))
    else:
        yield _memory(destination, *(("mode=0700", f"uid={caller.uid}", f"gid={caller.gid}") if caller is not None else ()))


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
CONTAIN: Final = attrs.evolve(HPC, home=_EMPTY, cwd=False, tmpdir=False, binds=(), tmpfs=("/tmp", "/var/tmp"))
"""The same without the directories of the caller: ``--contain`` of Apptainer."""
CONTAINALL: Final = attrs.evolve(CONTAIN, environment="clean")
"""The same without its variables: ``--containall`` of Apptainer."""
_PRESETS: Final = {"hpc": HPC, "contain": CONTAIN, "containall": CONTAINALL}


def parse_preset(preset: Preset | str | None) -> Preset | None:
    """Return a preset, by its name or as it is. Raises TypeError, ValueError."""
    if preset is None or isinstance(preset, Preset):
        return preset
    if not isinstance(preset, str):
        raise wrong_type("preset", preset, "a name or a Preset")
    check_choice("preset", preset, tuple(_PRESETS))
    return _PRESETS[preset]


# ---- the programs and files of the host, in place of an image ----

_PROGRAMS: Final = "/usr /bin /sbin /lib /lib32 /lib64 /libx32 /etc /opt /nix /gnu /run/current-system /run/systemd/resolve".split()
"""Paths with the programs of the host and what they need, as far as they exist."""
_PASSED: Final = "PATH LANG LANGUAGE TERM TZ USER LOGNAME".split()


def _secrets(directory: str) -> Iterator[str]:
    """Yield the files and directories below one that not every user of the host can read."""
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue  # it was removed meanwhile
            needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
            if mode & needed != needed:
                yield entry.path
            elif stat.S_ISDIR(mode):
                yield from _secrets(entry.path)


def _parse_paths(name: str, paths: Iterable[StrPath]) -> tuple[str, ...]:
    if isinstance(paths, str | bytes | os.PathLike) or not isinstance(paths, Iterable):
        raise wrong_type(name, paths, "a sequence of paths")
    found = []
    for number, path in enumerate(paths):
        absolute = absolute_path(parse_path(f"{name}[{number}]", path))
        if absolute == "/" or _covers(_KERNEL, absolute):
            raise ValueError(f"{name} contains {shown(path)}: a path of the host outside of /proc, /sys and /dev is needed")
        found.append(absolute)
    return tuple(found)


@attrs.frozen(kw_only=True)
class HostFiles:
    """What a sandbox shows of the host in place of an image: its programs read-only, and paths that the caller names."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    hide: tuple[str, ...]

    @classmethod
    def of(cls, read: Iterable[StrPath], write: Iterable[StrPath], hide: Iterable[StrPath]) -> Self:
        """Check the arguments of `Sandbox.host`. Raises TypeError, ValueError, BundleError: a path does not exist."""
        files = cls(read=_parse_paths("read", read), write=_parse_paths("write", write), hide=_parse_paths("hide", hide))
        for name, paths in (("read", files.read), ("write", files.write)):
            for path in paths:
                if not os.path.exists(path):
                    raise BundleError(f"{name} contains {path}, which does not exist on the host")
        return files

    def make_root(self, root: str) -> None:
        """Make the root filesystem below the mounts: links of the host, and the directories to write to. Raises OSError."""
        home = Caller.current().home
        for path in _PROGRAMS:
            if os.path.islink(path):
                os.makedirs(root + os.path.dirname(path), exist_ok=True)
                os.symlink(os.readlink(path), root + path)
        private = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/run": 0o755, **({home: 0o700} if _is_bindable(home) else {})}
        for path, mode in private.items():
            os.makedirs(root + path, exist_ok=True)
            os.chmod(root + path, mode)

    def configuration(self) -> RuntimeSpec:
        """Return the configuration, for a bundle with a ``rootfs`` that `make_root` has made."""
        programs = (path for path in _PROGRAMS if os.path.isdir(path) and not os.path.islink(path))
        read_only = dict.fromkeys((*programs, *self.read), ("rro",))
        attributes: dict[str, tuple[str, ...]] = {**read_only, **dict.fromkeys(self.write, ())}
        spec = RuntimeSpec.default(host=Host.probe())
        for path in sorted(attributes, key=lambda path: path.count("/")):  # outer ones first
            options = ("rbind", "nosuid", "nodev", *attributes[path])
            spec = spec.with_mount(Mount(destination=path, type="bind", source=path, options=options))
        linux = spec.linux or Linux()
        secrets = _secrets("/etc") if os.geteuid() == 0 else ()  # other users cannot read them anyway
        hidden = (*(linux.masked_paths or ()), *secrets, *self.hide)
        variables = {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith("LC_")}
        process = (spec.process or ProcessSpec(cwd="/")).with_env(variables)
        return spec.evolve(process=process, linux=linux.evolve(masked_paths=hidden))
