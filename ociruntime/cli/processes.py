"""Processes in containers and images, their output and files: exec, shell, ps, attach, logs, cp, diff, commit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import ociruntime as oci

from ..arguments import printable, shown
from ..errors import StepError, UnsupportedError
from ..files import absolute_path
from ..terminal import DetachKeys, check_user_terminal, interact
from .common import (
    OF_IMAGE,
    OF_NEW_CONTAINER,
    Interrupted,
    SignalForwarding,
    explain_uri,
    flag,
    is_image,
    parse_env,
    parse_env_file,
    pidfd_socket,
    print_compact,
    print_table,
    refuse_options,
    shell_status,
    shorten,
)

if TYPE_CHECKING:
    from ..overrides import MountLike

_ALLOWED: Final = OF_NEW_CONTAINER | frozenset(
    "args cgroup_manager command cwd env id image interactive root shell tty user".split()
)
"""The options that can be used with an image, beside the global ones."""
_GLOBAL: Final = frozenset({"debug", "log", "log_format", "rootless", "run"})
_DEFAULTS: Final[tuple[object, ...]] = (None, False, 0, [], ".")
_SHELL: Final = ("/bin/sh", "-c", 'command -v bash >/dev/null && exec bash "$@"; exec sh "$@"', "sh")
_POLL: Final = 0.05
"""Seconds between two looks at a paused container."""


def execute(options: Namespace) -> int:
    args = without_separator(options.args)
    if is_image(options.id) and not _exists(options):
        if not args:
            raise ValueError("exec: no command is given; add one")
        return run_image(options, options.id, args, terminal=options.tty)
    refuse_options(options, OF_NEW_CONTAINER, f"needs a new container, and {shorten(options.id)} is not an image")
    process = None
    if options.process:
        from ..spec.codec import parse, structure

        process = structure(oci.spec.ProcessSpec, parse(Path(options.process).read_bytes(), options.process), options.process)
    elif not args:
        raise ValueError("exec: no command is given; add one, or --process FILE")
    terminal = options.tty or bool(process and process.terminal)
    if terminal and options.detach and not options.console_socket:
        raise UnsupportedError("--detach with a terminal: nothing reads the terminal; pass --console-socket SOCKET")
    if terminal and not options.console_socket:
        check_user_terminal()
    container = oci.Container.load(options.id, state_root=options.root)
    while options.ignore_paused and container.status is oci.Status.PAUSED:
        time.sleep(_POLL)
    with SignalForwarding() as signals, pidfd_socket(options.pidfd_socket) as send:
        child = container.popen(
            args,
            env=options.env,
            cwd=options.cwd,
            user=options.user,
            groups=options.additional_gids,
            capabilities=options.cap,
            no_new_privileges=options.no_new_privs or None,
            apparmor_profile=options.apparmor,
            selinux_label=options.process_label,
            process=process,
            terminal=terminal and not options.console_socket,
            console_socket=options.console_socket,
            pid_file=options.pid_file,
            preserve_fds=options.preserve_fds,
            cgroup=parse_cgroups(options.cgroup),
            own_cgroup=False,  # the command kills no more than the program
        )
        try:
            send(child.fileno())
        except OSError:
            child.kill()
            child.wait()
            raise
        if options.detach:
            child.detach()
            return 0
        try:
            signals.forward_to(child.fileno())
            if child.terminal is not None:
                interact(child.terminal.fileno(), child.terminal.resize, ended=child.fileno())
                child.terminal.close()  # a hang-up of the command's terminal is one of the program's
            return shell_status(child.wait())
        except (Interrupted, StepError):
            signals.stop()
            with child:  # an exception in the block kills the program
                raise


def shell(options: Namespace) -> int:
    """Run a shell on the caller's terminal, or one that reads commands from stdin."""
    image: str | oci.Bundle = options.image
    if os.path.isfile(f"{options.image}/config.json"):
        refuse_options(options, OF_IMAGE, f"needs an image, and {shorten(options.image)} is a bundle")
        from ..bundle import with_own_writes

        image = with_own_writes(oci.Bundle.load(options.image))
    program = (options.shell,) if options.shell else _SHELL
    return run_image(options, image, (*program, *without_separator(options.args)), terminal=os.isatty(0))


def run_image(options: Namespace, image: str | oci.Bundle, args: Sequence[str], *, terminal: bool) -> int:
    """Run a program in a new container of an image, and return its exit status. Signals are forwarded to it."""
    from ..ephemeral import execute as execute_run
    from ..options import RunOptions

    given = RunOptions(args=args, terminal=terminal, **image_keywords(options, image))
    with SignalForwarding() as signals, verified(options, image) as source:
        result = execute_run(source, given, signals)
    return shell_status(result.returncode)


@contextmanager
def verified(options: Namespace, image: str | oci.Bundle) -> Iterator[str | oci.Bundle | oci.Image]:
    """Give the image for the block: open and verified if the options say so. Raises as `open_image`."""
    if isinstance(image, str) and (options.verify or options.keys):
        with open_image(options, image) as opened:
            yield opened
    else:
        yield image


def image_keywords(options: Namespace, image: str | oci.Bundle) -> dict[str, Any]:
    """Return the keyword arguments of `ociruntime.run` for a new container of an image. Raises ValueError, OSError."""
    if isinstance(image, str) and (message := explain_uri(image)):
        raise ValueError(message)
    for name, value in vars(options).items():
        if name not in _ALLOWED | _GLOBAL and value not in _DEFAULTS:
            raise ValueError(f"{flag(name)} cannot be used with an image, only with the id of a container")
    is_verified = bool(options.verify or options.keys)
    return {
        "overlay": overlay(options),
        "strategy": getattr(options, "strategy", None),
        "state_root": options.root,
        "cgroup_manager": options.cgroup_manager,
        "reference": None if is_verified else options.reference,
        "platform": None if is_verified else options.platform,
        **changes(options),
    }


@contextmanager
def open_image(options: Namespace, path: str) -> Iterator[oci.Image]:
    """Open an image for the block, and verify it if the options say so. Raises as `Image.open` and `Image.verify`."""
    with oci.Image.open(path, reference=options.reference, platform=options.platform) as image:
        if options.verify or options.keys:
            verify_image(image, path, options.keys)
        yield image


def verify_image(image: oci.Image, path: str, keys: Sequence[str]) -> oci.image.Verification:
    """Verify an image and return what was found. Raises as `Image.verify`."""
    if not keys and image.kind == "sif":
        raise ValueError(f"{shown(path)} is a SIF file, which is verified by its signatures; add --key FILE")
    return image.verify(keys, progress=True)


def changes(options: Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `ociruntime.run` for the options that change a configuration. Raises ValueError, OSError."""
    variables = [variable for file in options.env_file for variable in parse_env_file(file)] + parse_env(options.env)
    mounts: list[MountLike] = [mount for mounts in options.bind for mount in mounts]
    mounts += [oci.spec.Mount(destination=path, type="tmpfs", source="tmpfs", options=_SCRATCH) for path in options.scratch]
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
    network = "private" if options.net and options.network is None else options.network
    if options.publish and network != "private":
        raise ValueError("--publish needs --network private or --net: the ports of other networks are not forwarded")
    return {
        "env": variables or None,
        "cwd": options.cwd,
        "user": 0 if options.fakeroot else options.user,
        "mounts": mounts or None,
        "memory": options.memory,
        "cpus": options.cpus,
        "pids": options.pids_limit,
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
    unwanted = [name for item in options.no_mount for name in item.split(",")]
    if not (options.hpc or _is_contained(options)):  # --cleanenv, --no-home and --no-mount have nothing to take away
        for name in unwanted:
            _without_mount(preset, name)
        return None if options.home is None else oci.Preset(home=options.home)
    from attrs import evolve

    if options.cleanenv:
        preset = evolve(preset, environment="clean")
    if options.home is not None:
        preset = evolve(preset, home=options.home)
    elif options.workdir is not None and preset.home:
        os.makedirs(f"{options.workdir}/home", exist_ok=True)
        preset = evolve(preset, home=f"{options.workdir}/home:{preset.home_directory()[1]}")
    if options.fakeroot and preset.home and options.home is None:
        preset = evolve(preset, home=f"{preset.home_directory()[0]}:/root")
    for name in unwanted + ["home"] * options.no_home:
        preset = evolve(preset, **_without_mount(preset, name))
    return preset


def _without_mount(preset: oci.Preset, name: str) -> dict[str, Any]:
    """Return what changes in a preset when it loses a mount of --no-mount. Raises ValueError."""
    paths = {"/tmp", "/var/tmp"} if name == "tmp" else {name}
    if name != "tmp" and not name.startswith("/"):
        if name not in _NO_MOUNTS:
            known = ", ".join(sorted({*_NO_MOUNTS, "tmp"}))
            raise ValueError(f"--no-mount {shown(name)}: {known}, or a path that --hpc binds, can be left out")
        return _NO_MOUNTS[name]
    kept: dict[str, Any] = {field: tuple(path for path in getattr(preset, field) if path not in paths) for field in _PATHS}
    if name != "tmp" and all(kept[field] == getattr(preset, field) for field in _PATHS):
        raise ValueError(f"--no-mount {shown(name)}: this path is not one that --hpc binds")
    return kept


_PATHS: Final = ("binds", "read_only_binds", "tmpfs")


def overlay(options: Namespace) -> list[str] | None:
    """Return the layers that the options choose. Raises ValueError."""
    return [*options.overlay, *(["tmpfs"] if options.writable_tmpfs or options.compat else [])] or None


def changed(bundle: oci.Bundle, options: Namespace) -> oci.Bundle:
    """Return a bundle with the changes of its configuration, and with its upper layer. Raises ValueError, BundleError."""
    bundle = bundle.with_overrides(**changes(options))
    chosen = overlay(options)
    return bundle if chosen is None else bundle.fresh(overlay=chosen)


def cp(options: Namespace) -> None:
    source, destination = _place(options.source), _place(options.destination)
    if bool(source.id) == bool(destination.id):
        raise ValueError("cp: one of SOURCE and DESTINATION is ID:PATH, and the other one a path of the host or -")
    container = oci.Container.load(source.id or destination.id, state_root=options.root)
    if source.id and destination.path == "-":
        container.files.get_archive(source.path, sys.stdout.buffer, user=options.user)
        sys.stdout.buffer.flush()
    elif source.id:
        container.files.get(source.path, destination.path, user=options.user)
    elif source.path == "-":
        container.files.put_archive(sys.stdin.buffer, destination.path, user=options.user)
    else:
        container.files.put(source.path, destination.path, user=options.user)


def diff(options: Namespace) -> None:
    container = oci.Container.load(options.id, state_root=options.root)
    if options.path is not None:
        sys.stdout.buffer.write(container.diff_text(options.path).encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
        return
    changes = container.changes()
    if options.format == "json":
        print_compact([{"path": entry.path, "kind": entry.kind, "type": entry.type, "size": entry.size} for entry in changes])
        return
    for entry in changes:
        print(printable(str(entry)))


def commit(options: Namespace) -> None:
    container = oci.Container.load(options.id, state_root=options.root)
    container.commit(
        options.target,
        image=options.image,
        labels=dict(options.label),
        compression=options.compression,
        overwrite=options.force,
    )


class _Place(NamedTuple):
    """One end of a copy."""

    id: str
    """The container, or an empty string for the host."""
    path: str


def _place(word: str) -> _Place:
    """Return the place that a word of the command line names. Raises FileNotFoundError: the working directory was removed."""
    container_id, colon, rest = word.partition(":")
    if not colon or "/" in container_id or container_id in ("", ".", ".."):
        if word != "-":
            absolute_path(word)  # refuses a relative one in a directory that was removed; an end such as "/." has a meaning
        return _Place("", word)
    return _Place(container_id, rest if rest.startswith("/") else f"/{rest}")


def _exists(options: Namespace) -> bool:
    """Return whether there is a container with the id, which is the name of a file too."""
    try:
        return "/" not in options.id and bool(oci.Container.load(options.id, state_root=options.root))
    except oci.ContainerNotFound:
        return False


def without_separator(words: list[str]) -> list[str]:
    """Return the words behind a ``--`` that separates them from the options before them."""
    return words[1:] if words[:1] == ["--"] else words


def parse_cgroups(values: Sequence[str]) -> str | dict[str, str] | None:
    """Return the values of --cgroup as one path for all controllers, or as paths by controller. Raises ValueError."""
    if len(values) == 1 and ":" not in values[0]:
        return values[0]
    paths: dict[str, str] = {}
    for value in values:
        controllers, colon, path = value.partition(":")
        if not colon:
            raise ValueError(f"--cgroup {shorten(value)}: one of several needs its controllers, as in memory,cpu:PATH")
        for controller in controllers.split(","):
            if not controller:
                raise ValueError(f"--cgroup {shorten(value)}: a controller has no name")
            if controller in paths:
                raise ValueError(f"--cgroup {shorten(value)}: {shorten(controller)} is given twice")
            paths[controller] = path
    return paths or None


def ps(options: Namespace) -> None:
    container = oci.Container.load(options.id, state_root=options.root)
    pids = container.processes() if container.state.status.can_kill else ()
    if options.format == "json":
        print_compact(pids)
    elif options.ps_options or shutil.which("ps"):
        _print_host_ps(without_separator(options.ps_options) or ["-efww"], pids)
    else:
        print_table([("UID", "PID", "PPID", "COMMAND"), *(row for pid in pids if (row := _process_row(pid)))])


def _process_row(pid: int) -> tuple[str, str, str, str] | None:
    """Return the row of a process, or None if it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace", newline="\n") as text:
            status = dict(line.split(":", 1) for line in text)
        args = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode("utf-8", "replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    command = " ".join(args) if args != [""] else f"[{status['Name'].strip()}]"
    return status["Uid"].split()[0], str(pid), status["PPid"].strip(), "".join(c if c.isprintable() else "?" for c in command)


def _print_host_ps(arguments: list[str], pids: tuple[int, ...]) -> None:
    """Print the lines of the host's ps(1) that are of these processes."""
    command = shorten(f"ps {' '.join(arguments)}")
    try:
        completed = subprocess.run(["ps", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=True)
    except FileNotFoundError:
        raise UnsupportedError(
            f"{command}: options are passed to the host's ps, which is not in $PATH; install it (Debian: procps), "
            "or omit the options"
        ) from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{command}: {error.stderr.strip()}") from None
    titles, *lines = completed.stdout.rstrip("\n").split("\n")
    if "PID" not in titles.split():
        raise ValueError(f"{command} prints no PID; use other options, such as -ef")
    column = titles.split().index("PID")
    listed = {str(pid) for pid in pids}
    print("\n".join([titles, *(line for line in lines if listed.intersection(line.split()[column : column + 1]))]))


def attach(options: Namespace) -> int:
    keys = DetachKeys(options.detach_keys)
    container = oci.Container.load(options.id, state_root=options.root)
    with container.attach(stderr=True) as attachment:
        # A hang-up ends the command, not the container, which outlives the terminals of its clients.
        with SignalForwarding(ending={signal.SIGHUP}) as signals:
            return follow(attachment, keys, signals, stdin=not options.no_stdin)


def follow(attachment: oci.Attachment, keys: DetachKeys, signals: SignalForwarding, *, stdin: bool = True) -> int:
    """Copy the streams until the container ends, and return its exit code as a shell does.

    Returns:
        0 if the keys detached, 129 after a hang-up.
    """

    def resize(rows: int, columns: int) -> None:
        try:
            attachment.resize(rows, columns)
        except oci.StateError:
            pass  # the container is about to end; then the stream ends

    signals.forward_to(attachment.pidfd)
    end = interact(
        attachment.fileno(),
        resize if attachment.terminal else None,
        errors=attachment.stderr.fileno() if attachment.stderr is not None else -1,
        stdin=0 if stdin else -1,
        end_input=None if attachment.terminal else attachment.end_input,
        detach=keys if attachment.terminal else None,
    )
    codes = {"detached": 0, "hung up": 128 + signal.SIGHUP}
    return codes[end] if end in codes else shell_status(attachment.returncode)


def logs(options: Namespace) -> None:
    container = oci.Container.load(options.id, state_root=options.root)
    if options.reopen:
        container.reopen_log()
        return
    files = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    in_line = {"stdout": False, "stderr": False}
    last = ""
    for record in container.logs(follow=options.follow, since=options.since, tail=options.tail, stream=options.stream):
        if options.json:
            print_compact({"time": record.stamp, "stream": record.stream, "text": record.text, "partial": record.partial})
            continue
        if last not in ("", record.stream):
            files[last].flush()  # both may be the same terminal
        last, file = record.stream, files[record.stream]
        if options.timestamps and not in_line[record.stream]:
            file.write(f"{record.stamp} ".encode())
        file.write(record.text.encode("utf-8", "surrogateescape") + (b"" if record.partial else b"\n"))
        in_line[record.stream] = record.partial
        if options.follow:
            file.flush()
    sys.stdout.flush()
    try:
        state = container.state
    except oci.ContainerNotFound:
        return  # deleted while its log was followed
    if lost := state.log_lost:
        print(f"ociruntime: {lost.entries} entries ({lost.bytes} bytes) of the log are lost: {state.log_error}", file=sys.stderr)
