"""The life of a container: create, start, run, state, kill, delete, list, prune, and the control of its resources."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import ociruntime as oci

from ..arguments import shown
from ..errors import ContainerNotFound, WrongStatus
from ..files import connect_socket
from .common import (
    OF_IMAGE,
    SignalForwarding,
    format_time,
    is_image,
    pidfd_socket,
    print_compact,
    print_json,
    print_table,
    refuse_options,
    shell_status,
    shorten,
)


def _create_options(options: Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `Container.create` that the options of create and run stand for."""
    supervised = options.supervise or options.container_log_format or options.log_path or options.sync_socket
    return {
        "state_root": options.root,
        "pid_file": options.pid_file,
        "console_socket": options.console_socket,
        "preserve_fds": options.preserve_fds,
        "cgroup_manager": options.cgroup_manager,
        "new_keyring": not options.no_new_keyring,
        "pivot_root": not options.no_pivot,
        "supervise": bool(supervised),
        "log_path": options.log_path,
        "log_format": options.container_log_format or "kubernetes",
        "sync_socket": options.sync_socket,
        "empty_process": options.empty_process,
        **_systemd_options(),
    }


def _systemd_options() -> dict[str, Any]:
    """Return the keyword arguments that pass the sockets and the notification socket of systemd on. Raises ValueError."""
    keywords: dict[str, Any] = {}
    count = os.environ.get("LISTEN_FDS")
    if count and os.environ.get("LISTEN_PID") in (None, "", str(os.getpid())):
        if not (count.isascii() and count.isdigit()):
            raise ValueError(f"LISTEN_FDS is {shown(count)}, not a number of sockets")
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        keywords["listen_fds"] = names if len(names) == int(count) and all(names) else int(count)
    if os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@")):
        keywords["notify_socket"] = os.environ["NOTIFY_SOCKET"]
    return keywords


def create(options: Namespace) -> None:
    _make(oci.Container.create, options, _load_bundle(options), _create_options(options))


def _make(
    function: Callable[..., oci.Container], options: Namespace, bundle: oci.Bundle, keywords: dict[str, Any]
) -> oci.Container:
    """Call `Container.create` or `Container.run`, and send the pidfd of the init process where the options say."""
    with pidfd_socket(options.pidfd_socket) as send:
        container = function(options.id, bundle, **keywords)
        try:
            if options.pidfd_socket is not None:
                send(container.fileno())
        except BaseException:
            container.delete(force=True)
            raise
    return container


def _load_bundle(options: Namespace) -> oci.Bundle:
    """Return the bundle with the changes of its configuration and its upper layers. Raises BundleError, ValueError."""
    from .processes import changed

    return changed(oci.Bundle.load(options.bundle, config=options.config), options)


def run(options: Namespace) -> int:
    if options.bundle == "." and is_image(options.id):
        from .processes import run_image

        return run_image(options, options.id, options.args, terminal=options.tty)
    refuse_options(options, OF_IMAGE, f"needs an image, and {shorten(options.id)} is the id of a container")
    if options.args:
        raise ValueError(
            f"COMMAND {shown(options.args[0])}: a container of a bundle runs the program in config.json, and "
            f"{shorten(options.id)} is not an image; write a directory with a slash, as ./DIR"
        )
    if options.bundle == "." and options.config is None and not os.path.lexists("config.json"):
        raise oci.BundleError(
            f"{shown(options.id)} is not the name of an image file, and the working directory is not a bundle: it has no "
            "config.json; name the image, or the bundle with --bundle"
        )
    bundle, keywords = _load_bundle(options), _create_options(options)
    if options.tty and not options.console_socket:
        keywords["terminal"] = True
    if options.detach:
        keywords["supervise"] |= options.console_socket is None
        _make(oci.Container.run, options, bundle, keywords)
        return 0
    if keywords["supervise"]:
        return _run_supervised(options, bundle, keywords)
    if bundle.spec.process and bundle.spec.process.terminal and not options.console_socket:
        keywords["terminal"] = True

    with SignalForwarding() as signals:
        return _attend(_make(oci.Container.run, options, bundle, keywords), signals, keep=options.keep)


def _attend(container: oci.Container, signals: SignalForwarding, *, keep: bool = False) -> int:
    """Connect a container with the user's terminal if it has one, wait for its end, and return the exit status.

    Args:
        keep: whether it is not deleted then.
    """
    try:
        pidfd = container.fileno()
        signals.forward_to(pidfd)
        if container.terminal is not None:
            from ..terminal import interact

            interact(container.terminal.fileno(), container.terminal.resize, ended=pidfd)
            container.terminal.close()  # a hang-up of the command's terminal is one of the container's
        code = container.wait()
    finally:
        signals.stop()
        if not keep:
            container.delete(force=True)
    assert code is not None, "a child's exit status is known"
    return shell_status(code)


def _run_supervised(options: Namespace, bundle: oci.Bundle, keywords: dict[str, Any]) -> int:
    """Create, attach and start, in this order, so that no output is missed; return the exit status."""
    from ..terminal import DetachKeys
    from .processes import follow

    with SignalForwarding() as signals:
        container = _make(oci.Container.create, options, bundle, keywords)
        try:
            with container.attach(stderr=True) as attachment:
                if "notify_socket" in keywords:
                    return _read_while_starting(container, lambda: follow(attachment, DetachKeys(""), signals))
                container.start()
                return follow(attachment, DetachKeys(""), signals)
        finally:
            signals.stop()
            if not options.keep:
                try:
                    container.delete(force=True)
                except ContainerNotFound:
                    pass  # a start whose hook fails deletes the container


def _read_while_starting(container: oci.Container, read: Callable[[], int]) -> int:
    """Start a container in a thread, as start returns only at its readiness notification, and read its output meanwhile.

    The supervisor drops an attach client that does not read.
    """
    from threading import Thread

    failures: list[Exception] = []

    def start() -> None:
        try:
            container.start()
        except Exception as error:
            failures.append(error)

    thread = Thread(target=start, daemon=True)
    thread.start()
    status = 0
    missing: list[Exception] = []
    try:
        status = read()
    except ContainerNotFound as error:
        missing.append(error)  # the start may have failed, which explains more
    thread.join()
    for failure in failures + missing:
        raise failure
    return status


def start(options: Namespace) -> None:
    oci.Container.load(options.id, state_root=options.root).start()


def state(options: Namespace) -> None:
    container = oci.Container.load(options.id, state_root=options.root)
    document = container.state_document()
    if options.sync_socket is None:
        print_json(document)
        return
    import socket

    with socket.socket(socket.AF_UNIX) as peer:
        connect_socket(peer, options.sync_socket)
        peer.sendall(json.dumps(document, indent=2).encode())


def kill(options: Namespace) -> None:
    given = [name for name in ("KILL" if options.force else None, options.signal_option, options.signal) if name is not None]
    signal = given[0] if given else "TERM"
    container = oci.Container.load(options.id, state_root=options.root)
    container.kill(signal, all=options.all)
    if options.timeout is None:
        return
    try:
        container.wait(options.timeout)
    except TimeoutError:
        container.kill("KILL", all=options.all)


def delete(options: Namespace) -> None:
    try:
        oci.Container.load(options.id, state_root=options.root).delete(force=options.force)
    except ContainerNotFound:
        if not options.force:
            raise


def _criu_options(options: Namespace) -> dict[str, Any]:
    """Return the keyword arguments that `Container.checkpoint` and `Container.restore` share."""
    names = ("work_path", "tcp_established", "ext_unix_sk", "shell_job", "file_locks", "auto_dedup", "manage_cgroups_mode")
    return {name: getattr(options, name) for name in names}


def checkpoint(options: Namespace) -> None:
    oci.Container.load(options.id, state_root=options.root).checkpoint(
        options.image_path,
        parent_path=options.parent_path,
        leave_running=options.leave_running,
        pre_dump=options.pre_dump,
        **_criu_options(options),
    )


def restore(options: Namespace) -> int:
    bundle = oci.Bundle.load(options.bundle)
    in_terminal = bundle.spec.process is not None and bundle.spec.process.terminal
    with SignalForwarding() as signals:
        container = oci.Container.restore(
            options.id,
            bundle,
            options.image_path,
            state_root=options.root,
            terminal=True if in_terminal and not options.detach and options.console_socket is None else None,
            console_socket=options.console_socket,
            pid_file=options.pid_file,
            cgroup_manager=options.cgroup_manager,
            **_criu_options(options),
        )
        return 0 if options.detach else _attend(container, signals)


def list_containers(options: Namespace) -> None:
    states = []
    if options.root is not None:
        os.stat(options.root)  # one that is named exists
    for container in oci.Container.list(state_root=options.root):
        try:
            states.append(container.state)
        except ContainerNotFound:
            continue  # deleted meanwhile
    if options.quiet:
        for entry in states:
            print(entry.id)
    elif options.format == "json":
        print_compact([_listed(entry) for entry in states])
    else:
        titles = ("id", "pid", "status", "bundle", "created", "owner")
        rows = [[str(document[title]) for title in titles] for document in map(_listed, states)]
        print_table([[title.upper() for title in titles], *rows])


def _listed(state: oci.State) -> dict[str, object]:
    """Return the document of a container in a list, which begins with the members of runc's in their order."""
    document = {**state.to_dict(), "pid": state.pid, "created": format_time(state.created_at), "owner": _caller()}
    first = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner")
    return {key: document[key] for key in (*first, *document) if key in document}


def _caller() -> str:
    """Return the name of this user, to whom the containers of the state directory belong."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"#{os.geteuid()}"


def prune(options: Namespace) -> None:
    names = oci.prune(state_root=options.root)
    if options.json:
        print_json(names)
        return
    for name in names:
        print(name)


def update(options: Namespace) -> None:
    container = oci.Container.load(options.id, state_root=options.root)
    limits = {name: value for name in options.limits if (value := getattr(options, name)) is not None}
    if options.resources is None:
        container.update(**limits)
        return
    if limits:
        raise ValueError("--resources and single limits exclude each other")
    container.update(oci.spec.Resources.load(sys.stdin.buffer.read() if options.resources == "-" else options.resources))


def pause(options: Namespace) -> None:
    oci.Container.load(options.id, state_root=options.root).pause()


def resume(options: Namespace) -> None:
    oci.Container.load(options.id, state_root=options.root).resume()


def events(options: Namespace) -> None:
    container = oci.Container.load(options.id, state_root=options.root)
    if options.stats:
        if not container.state.status.can_kill:
            raise WrongStatus(options.id, "measure", container.status, "running")
        print_compact(oci.Event("stats", 0, stats=container.stats()).to_dict(options.id))
        return
    for event in container.events(options.interval):
        print_compact(event.to_dict(options.id))
