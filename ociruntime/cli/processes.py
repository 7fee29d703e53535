"""Processes in a container, their output and files: exec, ps, attach, logs, cp, diff, commit."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import ociruntime as oci

from ..errors import StepError, UnsupportedError
from ..files import absolute_path
from ..terminal import DetachKeys, check_user_terminal, interact
from .common import (
    OF_NEW_CONTAINER,
    Interrupted,
    SignalForwarding,
    is_image,
    pidfd_socket,
    print_compact,
    print_table,
    refuse_options,
    shell_status,
    shorten,
)

_POLL: Final = 0.05
"""Seconds between two looks at a paused container."""


def execute(options: Namespace) -> int:
    args = _without_separator(options.args)
    if is_image(options.id) and not _exists(options):
        if not args:
            raise ValueError("exec: no command is given; add one")
        from .bundles import run_image

        return run_image(options, options.id, args, terminal=options.tty)
    refuse_options(options, OF_NEW_CONTAINER, f"needs a new container, and {shorten(options.id)} is not an image")
    process = None
    if options.process:
        from ..spec import ProcessSpec
        from ..spec.codec import parse, structure

        process = structure(ProcessSpec, parse(Path(options.process).read_bytes(), options.process), options.process)
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
        print("".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(entry)))


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


def _without_separator(words: list[str]) -> list[str]:
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
        _print_host_ps(_without_separator(options.ps_options) or ["-efww"], pids)
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
    import subprocess

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
