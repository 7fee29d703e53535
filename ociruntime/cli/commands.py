"""What each command does, in terms of the public API."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import ociruntime as oci

from ..errors import ContainerNotFound, UnsupportedError, WrongStatus

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Refuse(argparse.Action):
    """A flag that others have and that is not carried out here: said, not ignored."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        parser.error(f"{option} is not supported")


def mount(o: argparse.Namespace) -> None:
    oci.Bundle.from_sif(o.sif, o.bundle, writable=not o.read_only)


def umount(o: argparse.Namespace) -> None:
    oci.Bundle.load(o.bundle).umount()


def create(o: argparse.Namespace) -> None:
    oci.Container.create(
        o.id, o.bundle, root=o.root, pid_file=o.pid_file, console_socket=o.console_socket, preserve_fds=o.preserve_fds
    )


def run(o: argparse.Namespace) -> int:
    container = oci.Container.run(
        o.id, o.bundle, root=o.root, pid_file=o.pid_file, console_socket=o.console_socket, preserve_fds=o.preserve_fds
    )
    if o.detach:
        return 0
    try:
        with forwarding(container.fileno()):
            code = container.wait()
    finally:
        if not o.keep:
            container.delete(force=True)
    assert code is not None, "a child's exit status is known"
    return shell_status(code)


def shell_status(code: int) -> int:
    return 128 - code if code < 0 else code


@contextmanager
def forwarding(pidfd: int) -> Iterator[None]:
    """Pass the signals that people send to this process on to the container."""

    def forward(number: int, frame: FrameType | None) -> None:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            pass  # it ended by itself

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(o: argparse.Namespace) -> None:
    oci.Container.load(o.id, root=o.root).start()


def state(o: argparse.Namespace) -> None:
    print(oci.Container.load(o.id, root=o.root).state.to_json())


def exec_(o: argparse.Namespace) -> int:
    if o.tty and not o.console_socket:
        raise UnsupportedError("--tty needs --console-socket: a terminal of our own is not supported yet")
    args: Sequence[str] = o.args[1:] if o.args[:1] == ["--"] else o.args
    process = None
    if o.process:
        from ..spec import Process
        from ..spec.codec import parse, structure

        process = structure(Process, parse(Path(o.process).read_bytes(), o.process), o.process)
    elif not args:
        raise ValueError("exec needs a command, or --process")
    child = oci.Container.load(o.id, root=o.root).popen(
        args,
        env=o.env,
        cwd=o.cwd,
        user=user(o.user),
        process=process,
        console_socket=o.console_socket,
        pid_file=o.pid_file,
        preserve_fds=o.preserve_fds,
    )
    if o.detach:
        return 0
    with forwarding(child.fileno()):
        return shell_status(child.wait())


def user(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    uid, _, gid = text.partition(":")
    if not uid.isdigit() or (gid and not gid.isdigit()):
        raise ValueError(f"--user takes UID[:GID] in numbers, not {text!r}")
    return int(uid), int(gid or 0)


def kill(o: argparse.Namespace) -> None:
    wanted = "KILL" if o.force else o.named or o.signal or "TERM"
    container = oci.Container.load(o.id, root=o.root)
    container.kill(wanted, all=o.all)
    if o.timeout is None:
        return
    try:
        container.wait(o.timeout)
    except TimeoutError:
        container.kill("KILL", all=o.all)


def delete(o: argparse.Namespace) -> None:
    try:
        oci.Container.load(o.id, root=o.root).delete(force=o.force)
    except ContainerNotFound:
        if not o.force:
            raise


def pause(o: argparse.Namespace) -> None:
    oci.Container.load(o.id, root=o.root).pause()


def resume(o: argparse.Namespace) -> None:
    oci.Container.load(o.id, root=o.root).resume()


def list_(o: argparse.Namespace) -> None:
    states = []
    for container in oci.Container.list(root=o.root):
        try:
            states.append(container.state)
        except ContainerNotFound:
            continue  # deleted meanwhile
    if o.quiet:
        for entry in states:
            print(entry.id)
    elif o.format == "json":
        print(json.dumps([{**entry.to_dict(), "pid": entry.pid, "created": when(entry.created_at)} for entry in states]))
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED")]
        rows += [(s.id, str(s.pid), str(s.status), s.bundle, when(s.created_at)) for s in states]
        table(rows)


def when(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9))


def table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def ps(o: argparse.Namespace) -> None:
    container = oci.Container.load(o.id, root=o.root)
    if not container.state.status.can_kill:
        raise WrongStatus(o.id, "list the processes of", container.status, "running")
    pids = container.processes()
    if o.format == "json":
        print(json.dumps(pids))
        return
    rows = [("PID", "COMMAND")]
    for pid in pids:
        try:
            rows.append((str(pid), Path(f"/proc/{pid}/comm").read_text().strip()))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    table(rows)


def spec(o: argparse.Namespace) -> None:
    path = Path(o.bundle, "config.json")
    if path.exists():
        raise FileExistsError(17, os.strerror(17), str(path))
    oci.RuntimeSpec.default().save(path)


def plan(o: argparse.Namespace) -> None:
    made = oci.Bundle.load(o.bundle).plan()
    sys.stdout.write(made.to_json(indent=2) + "\n" if o.json else made.explain())


def sif(o: argparse.Namespace) -> None:
    with oci.SifImage.open(o.file) as image:
        print(json.dumps(image.to_dict(), indent=2) if o.json else image.table())
