"""The life of a container: create, start, run, state, kill, delete."""

from __future__ import annotations

import os

import ociruntime as oci

from ..errors import ContainerNotFound
from .common import (
    Verb,
    bundle_argument,
    container_argument,
    shell_status,
)
from .options import Options, Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final


def _create(sub: Parser) -> None:
    container_argument(sub)
    _supervised(sub)
    bundle_argument(sub)
    sub.add_argument("--config", metavar="FILE", help="in the place of the bundle's config.json")
    sub.add_argument("--pid-file", metavar="FILE", help="gets the pid of the container's process")
    sub.add_argument("--console-socket", metavar="SOCKET", help="gets the master of the container's terminal")
    sub.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="descriptors from 3 on that the process inherits")
    sub.add_argument("--no-pivot", action="refuse", help="refused: the root is always pivoted into")
    sub.add_argument("--no-new-keyring", action="store_true", help="leave the caller's session keyring to the container")


def _supervised(sub: Parser) -> None:
    sub.add_argument("--supervise", action="store_true", help="with a supervisor: keeps a log, lets people attach")
    sub.add_argument("--log-path", "-l", metavar="FILE", help="the log; by default one in the state directory (supervises)")
    sub.add_argument("--log-format", dest="container_log_format", choices=("kubernetes", "json", "basic"), help="(supervises)")
    sub.add_argument("--empty-process", action="store_true", help="no program: a first process that only reaps, as in a pod")
    sub.add_argument("--sync-socket", "-s", metavar="SOCKET", help="gets the state at every change of the status (supervises)")


def _run(sub: Parser) -> None:
    _create(sub)
    sub.add_argument("--detach", "-d", action="store_true", help="do not wait; without a console socket it is supervised")
    sub.add_argument("--tty", "-t", action="store_true", help="with a terminal, whatever the config says")
    sub.add_argument("--interactive", "-i", action="store_true", help="accepted for compatibility: our input is always passed on")
    sub.add_argument("--keep", action="store_true", help="do not delete the container at its end")


def _state(sub: Parser) -> None:
    container_argument(sub)
    sub.add_argument("--sync-socket", "-s", metavar="SOCKET", help="write it to this Unix socket instead")


def _kill(sub: Parser) -> None:
    container_argument(sub)
    sub.add_argument("signal", nargs="?", metavar="SIGNAL", help="name or number (default: TERM)")
    sub.add_argument("--signal", "-s", dest="named", metavar="SIGNAL")
    sub.add_argument("--all", "-a", action="store_true", help="to every process in the container")
    sub.add_argument("--force", "-f", action="store_true", help="KILL")
    sub.add_argument("--timeout", "-t", type=float, metavar="SECONDS", help="then KILL")


def _delete(sub: Parser) -> None:
    container_argument(sub)
    sub.add_argument("--force", "-f", action="store_true", help="kill it first; a container that does not exist is no error")


def wanted(o: Options) -> dict[str, Any]:
    """What create and run are asked for, as `Container.create` takes it."""
    supervised = o.supervise or o.container_log_format or o.log_path or o.sync_socket
    return {
        "root": o.root,
        "pid_file": o.pid_file,
        "console_socket": o.console_socket,
        "preserve_fds": o.preserve_fds,
        "cgroup_manager": o.cgroup_manager,
        "new_keyring": not o.no_new_keyring,
        "supervise": bool(supervised),
        "log_path": o.log_path,
        "log_format": o.container_log_format or "kubernetes",
        "sync_socket": o.sync_socket,
        "empty_process": o.empty_process,
        **from_systemd(),
    }


def from_systemd() -> dict[str, Any]:
    """What systemd gave us is for the container: sockets, and the one that hears who is ready. Raises ValueError."""
    found: dict[str, Any] = {}
    count = os.environ.get("LISTEN_FDS")
    if count and os.environ.get("LISTEN_PID") in (None, "", str(os.getpid())):
        if not (count.isascii() and count.isdigit()):
            raise ValueError(f"LISTEN_FDS is {count!r}, not a count")
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        found["listen_fds"] = names if len(names) == int(count) and all(names) else int(count)
    if os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@")):
        found["notify_socket"] = os.environ["NOTIFY_SOCKET"]
    return found


def create(o: Options) -> None:
    oci.Container.create(o.id, oci.Bundle.load(o.bundle, config=o.config), **wanted(o))


def run(o: Options) -> int:
    bundle, options = oci.Bundle.load(o.bundle, config=o.config), wanted(o)
    if o.tty and not o.console_socket:
        options["terminal"] = True
    if o.detach:
        options["supervise"] |= o.console_socket is None
        oci.Container.run(o.id, bundle, **options)
        return 0
    if options["supervise"]:
        return run_supervised(o, bundle, options)
    if bundle.spec.process and bundle.spec.process.terminal and not o.console_socket:
        options["terminal"] = True
    from .forwarding import Forwarding

    with Forwarding() as signals:
        container = oci.Container.run(o.id, bundle, **options)
        try:
            pidfd = signals.to(container.fileno())
            if container.terminal is not None:
                from ..terminal import interact

                interact(container.terminal.fileno(), container.terminal.resize, ended=pidfd)
                container.terminal.close()  # a hang-up of ours is one of the container's
            code = container.wait()
        finally:
            signals.stop()
            if not o.keep:
                container.delete(force=True)
    assert code is not None, "a child's exit status is known"
    return shell_status(code)


def run_supervised(o: Options, bundle: oci.Bundle, options: dict[str, Any]) -> int:
    """Create, attach, start: so that nothing that it prints passes us by."""
    from ..terminal import DetachKeys
    from .attached import follow
    from .forwarding import Forwarding

    with Forwarding() as signals:
        container = oci.Container.create(o.id, bundle, **options)
        try:
            with container.attach(stderr=True) as attachment:
                if "notify_socket" in options:
                    return _read_while_starting(container, lambda: follow(attachment, DetachKeys(""), signals))
                container.start()
                return follow(attachment, DetachKeys(""), signals)
        finally:
            signals.stop()
            if not o.keep:
                try:
                    container.delete(force=True)
                except ContainerNotFound:
                    pass  # a hook of its start failed: that deletes it


def _read_while_starting(container: oci.Container, read: Callable[[], int]) -> int:
    """Start a container that says when it is ready: until then its output must be read, or it is taken from us."""
    from threading import Thread

    failed: list[Exception] = []

    def start() -> None:
        try:
            container.start()
        except Exception as error:
            failed.append(error)

    starting = Thread(target=start, daemon=True)
    starting.start()
    gone: ContainerNotFound | None = None
    status = 0
    try:
        status = read()
    except ContainerNotFound as error:  # perhaps because its start has failed
        gone = error
    starting.join()
    for problem in (*failed, *([gone] if gone else ())):
        raise problem
    return status


def start(o: Options) -> None:
    oci.Container.load(o.id, root=o.root).start()


def state(o: Options) -> None:
    document = oci.Container.load(o.id, root=o.root).state.to_json()
    if o.sync_socket is None:
        print(document)
        return
    import socket

    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(o.sync_socket)
        peer.sendall(document.encode())


def kill(o: Options) -> None:
    wanted = "KILL" if o.force else o.named or o.signal or "TERM"
    container = oci.Container.load(o.id, root=o.root)
    container.kill(wanted, all=o.all)
    if o.timeout is None:
        return
    try:
        container.wait(o.timeout)
    except TimeoutError:
        container.kill("KILL", all=o.all)


def delete(o: Options) -> None:
    try:
        oci.Container.load(o.id, root=o.root).delete(force=o.force)
    except ContainerNotFound:
        if not o.force:
            raise


VERBS: Final = {
    "create": Verb(create, "create a container", _create),
    "start": Verb(start, "run the process of a created container", container_argument),
    "run": Verb(run, "create, start, wait and delete; exits with the process's exit code", _run),
    "state": Verb(state, "print the state as JSON", _state),
    "kill": Verb(kill, "send a signal to the container's process", _kill),
    "delete": Verb(delete, "remove what create made", _delete),
}
